"""Training metrics: JSON lines and TensorBoard on disk, progress lines for people, abort on a non-finite loss."""

import dataclasses
import json
import tempfile
import time
from collections.abc import Callable, Mapping
from typing import IO

import jax
import numpy as np
import optax
import orbax.checkpoint as ocp
from etils import epath

from mtd_jax.config import Config
from mtd_jax.errors import UserError
from mtd_jax.storage import is_remote, write_text, writing_to


class MetricWriter:
    """Writes WORKDIR/metrics.jsonl and WORKDIR/tensorboard.

    An object store cannot append, so there both stay on the local disk until `flush` uploads them with each
    checkpoint. An interruption loses only lines that the resumed run writes again.
    """

    def __init__(self, workdir: epath.Path, step: int):
        """Opens both for a run that resumes after `step`, and removes the lines of later steps."""
        from tensorboardX import SummaryWriter  # imports PyTorch where that is installed, which takes seconds

        self._path, self._events = workdir / "metrics.jsonl", workdir / "tensorboard"
        self._lines = [line for line in _whole_lines(self._path) if json.loads(line)["step"] <= step]
        write_text(self._path, _text(self._lines))
        self._file: IO[str] | None = None
        self._spool: tempfile.TemporaryDirectory[str] | None = None
        if is_remote(workdir):
            self._spool = tempfile.TemporaryDirectory()
        else:
            self._file = self._path.open("a")
        self._tensorboard = SummaryWriter(
            self._spool.name if self._spool else str(self._events), purge_step=step + 1
        )

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Appends {"step": step, **values}."""
        line = json.dumps({"step": step, **values})
        if self._file is None:
            self._lines.append(line)
        else:
            with writing_to(self._path):
                self._file.write(line + "\n")
                self._file.flush()
        for name, value in values.items():
            self._tensorboard.add_scalar(name, value, step)

    def flush(self) -> None:
        """Uploads to an object store what it lacks."""
        with writing_to(self._path):
            self._tensorboard.flush()
            if self._spool:
                self._path.write_text(_text(self._lines))
                self._events.mkdir(parents=True, exist_ok=True)
                for file in epath.Path(self._spool.name).iterdir():
                    (self._events / file.name).write_bytes(file.read_bytes())

    def close(self) -> None:
        with writing_to(self._path):
            self._tensorboard.close()
        if self._spool:
            self.flush()
            self._spool.cleanup()
        if self._file:
            self._file.close()


class NoWriter:
    """Replaces `MetricWriter` in every process but the first."""

    def write(self, step: int, values: Mapping[str, float]) -> None:
        pass

    def flush(self) -> None:
        pass

    def close(self) -> None:
        pass


@dataclasses.dataclass(kw_only=True)
class Progress:
    """Logs metrics one step behind dispatch; aborts on a non-finite loss.

    Reading the metrics of a step waits for the device. One step behind, the device already has its next work.

    Attributes:
      config: of the training.
      writer: gets the metrics.
      report: takes one line for people.
      factor: step, counted from 0 → factor of the learning rate.
      first: steps done when this process began.
      total_steps: steps of the whole training.
      manager: of the checkpoints; an abort names the last one.
    """

    config: Config
    writer: MetricWriter | NoWriter
    report: Callable[[str], None]
    factor: optax.Schedule
    first: int
    total_steps: int
    manager: ocp.CheckpointManager
    _pending: tuple[int, dict[str, jax.Array]] | None = dataclasses.field(default=None, init=False)
    _skipped: int = dataclasses.field(default=0, init=False)
    _logged: int = dataclasses.field(init=False)
    _logged_at: float = dataclasses.field(init=False)

    def __post_init__(self) -> None:
        self._logged, self._logged_at = self.first, time.monotonic()

    def after_dispatch(self, step: int, metrics: dict[str, jax.Array]) -> None:
        """Call with the metrics of the step just dispatched; logs those of the step before."""
        self.catch_up()
        self._pending = (step, metrics)

    def catch_up(self) -> None:
        """Logs the metrics of the last dispatched step, and waits for them.

        Raises:
          UserError: its loss or gradient is not finite.
        """
        if self._pending is None:
            return
        (step, metrics), self._pending = self._pending, None
        self._skipped += int(metrics.pop("skipped_clips"))
        total, norm = float(metrics["total"]), float(metrics["gradient_norm"])
        self._abort_unless_finite((total, norm), f"loss {total}, gradient norm {norm} at step {step}")
        now = time.monotonic()
        if step % self.config.log_every and step != self.total_steps:
            if step == self.first + 1:  # its time includes the compilation, so the speed is measured from here on
                self._logged, self._logged_at = step, now
            return
        rate = self.config.optimizer.learning_rate * float(np.asarray(self.factor(np.int32(step - 1))))
        values = {name: float(value) for name, value in jax.device_get(metrics).items()}
        extra, speed = {"learning_rate": rate, "skipped_clips": self._skipped}, ""
        if step > self.first + 1:
            clips_per_second = (step - self._logged) * self.config.batch_size / (now - self._logged_at)
            extra["clips_per_second"] = clips_per_second
            left = (self.total_steps - step) * self.config.batch_size / clips_per_second
            speed = f"  {clips_per_second:.1f} clips/s  {left / 60:.1f} min left"
        self.writer.write(step, values | extra)
        self.report(f"step {step}/{self.total_steps}  loss {total:.4f}  bce {values['bce']:.4f}{speed}")
        self._logged, self._logged_at = step, now

    def epoch(self, step: int, epoch: int, validation: Mapping[str, float]) -> None:
        """Logs the validation after `step`, the last one of an epoch.

        Raises:
          UserError: the validation loss is not finite.
        """
        loss = validation["val_loss"]
        self._abort_unless_finite((loss,), f"validation loss {loss} after step {step}")
        self.writer.write(step, {"epoch": epoch, **validation})
        numbers = "  ".join(f"{name.removeprefix('val_')} {value:.4f}" for name, value in validation.items())
        self._logged, self._logged_at = step, time.monotonic()
        self.report(f"epoch {epoch}/{self.config.epochs}  validation: {numbers}")

    def _abort_unless_finite(self, values: tuple[float, ...], what: str) -> None:
        if np.isfinite(values).all():
            return
        self.manager.wait_until_finished()
        last = self.manager.latest_step()
        saved = "no checkpoint yet" if last is None else f"last checkpoint: {self.manager.directory}/{last}"
        raise UserError(
            f"{what}; {saved}; start a new run in another --workdir with a lower learning rate or with "
            "config.optimizer.clip_norm"
        )


def _text(lines: list[str]) -> str:
    return "".join(line + "\n" for line in lines)


def _whole_lines(path: epath.Path) -> list[str]:
    """The complete lines of a file whose last one a killed run may have cut short."""
    if not path.exists():
        return []
    *lines, _cut = path.read_text().split("\n")
    return lines
