"""Training metrics on disk: one JSON object per line, and TensorBoard."""

import json
import tempfile

from etils import epath
from tensorboardX import SummaryWriter

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
