"""Training metrics on disk: one JSON object per line, and TensorBoard."""

import json
import tempfile
import time

import jax
import numpy as np
from etils import epath
from tensorboardX import SummaryWriter

from mtd_jax.errors import UserError
from mtd_jax.storage import is_remote, write_text, writing_to


class MetricWriter:
    """Writes WORKDIR/metrics.jsonl and WORKDIR/tensorboard; lines beyond `step` of an interrupted run go.

    On an object store, which cannot append, both are brought up to date by `flush`, with every checkpoint: what an
    interruption loses is what the resumed run writes again.
    """

    def __init__(self, workdir, step: int):
        workdir = epath.Path(workdir)
        self._path, self._events = workdir / "metrics.jsonl", workdir / "tensorboard"
        self._lines = [line for line in _whole_lines(self._path) if json.loads(line)["step"] <= step]
        write_text(self._path, _text(self._lines))
        self._spool = tempfile.TemporaryDirectory() if is_remote(workdir) else None
        self._file = None if self._spool else self._path.open("a")
        self._tensorboard = SummaryWriter(
            self._spool.name if self._spool else str(self._events), purge_step=step + 1
        )

    def write(self, step: int, values: dict[str, float]):
        """Appends {"step": step, **values}."""
        line = json.dumps({"step": step, **values})
        if self._spool:
            self._lines.append(line)
        else:
            with writing_to(self._path):
                self._file.write(line + "\n")
                self._file.flush()
        for name, value in values.items():
            self._tensorboard.add_scalar(name, value, step)

    def flush(self):
        """Brings an object store up to date."""
        with writing_to(self._path):
            self._tensorboard.flush()
            if self._spool:
                self._path.write_text(_text(self._lines))
                self._events.mkdir(parents=True, exist_ok=True)
                for file in epath.Path(self._spool.name).iterdir():
                    (self._events / file.name).write_bytes(file.read_bytes())

    def close(self):
        with writing_to(self._path):
            self._tensorboard.close()
        if self._spool:
            self.flush()
            self._spool.cleanup()
        else:
            self._file.close()


class NoWriter:
    """In the place of a `MetricWriter` in all processes but the first."""

    def write(self, step: int, values: dict[str, float]):
        pass

    def flush(self):
        pass

    def close(self):
        pass


def _text(lines: list[str]) -> str:
    return "".join(line + "\n" for line in lines)


def _whole_lines(path) -> list[str]:
    """Lines of a file that a killed run may have cut short."""
    if not path.exists():
        return []
    *lines, _cut = path.read_text().split("\n")
    return lines


# What a running training says and logs, one step behind, and the stop when its loss is not finite.


class Progress:
    """Logs each step's metrics once the next step is on its way, and stops a run whose loss is not finite."""

    def __init__(self, config, writer, report, factor, first, total_steps, manager):
        self._config, self._writer, self._report, self._manager = config, writer, report, manager
        self._factor, self._total_steps = factor, total_steps
        self._first, self._pending = first, None
        self._logged, self._logged_at, self._skipped = first, time.monotonic(), 0

    def after_dispatch(self, step, metrics):
        self.catch_up()
        self._pending = (step, metrics)

    def catch_up(self):
        """Looks at the metrics of the last dispatched step."""
        if self._pending is None:
            return
        (step, metrics), self._pending = self._pending, None
        self._skipped += int(metrics.pop("skipped_clips"))
        total, norm = float(metrics["total"]), float(metrics["gradient_norm"])
        self._stop_unless_finite((total, norm), f"loss {total}, gradient norm {norm} at step {step}")
        now = time.monotonic()
        if step % self._config.log_every and step != self._total_steps:
            if step == self._first + 1:  # clips a second are counted from here on: this step was compiled first
                self._logged, self._logged_at = step, now
            return
        rate = self._config.optimizer.learning_rate * float(self._factor(np.int32(step - 1)))
        values = {name: float(value) for name, value in jax.device_get(metrics).items()}
        extra, speed = {"learning_rate": rate, "skipped_clips": self._skipped}, ""
        if step > self._first + 1:  # the first one was compiled, too
            clips_per_second = (step - self._logged) * self._config.batch_size / (now - self._logged_at)
            extra["clips_per_second"] = clips_per_second
            left = (self._total_steps - step) * self._config.batch_size / clips_per_second
            speed = f"  {clips_per_second:.1f} clips/s  {left / 60:.1f} min left"
        self._writer.write(step, values | extra)
        self._report(f"step {step}/{self._total_steps}  loss {total:.4f}  bce {values['bce']:.4f}{speed}")
        self._logged, self._logged_at = step, now

    def epoch(self, step, epoch, validation):
        loss = validation["val_loss"]
        self._stop_unless_finite(loss, f"validation loss {loss} after step {step}")
        self._writer.write(step, {"epoch": epoch, **validation})
        numbers = "  ".join(f"{name.removeprefix('val_')} {value:.4f}" for name, value in validation.items())
        self._logged, self._logged_at = step, time.monotonic()
        self._report(f"epoch {epoch}/{self._config.epochs}  validation: {numbers}")

    def _stop_unless_finite(self, values, what: str):
        if np.isfinite(values).all():
            return
        self._manager.wait_until_finished()
        last = self._manager.latest_step()
        saved = "no checkpoint yet" if last is None else f"last checkpoint: {self._manager.directory}/{last}"
        raise UserError(
            f"{what}; {saved}; start anew in another --workdir with a lower learning rate or with "
            "config.optimizer.clip_norm"
        )
