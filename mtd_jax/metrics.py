"""Training metrics on disk: one JSON object per line, and TensorBoard."""

import json

from etils import epath
from tensorboardX import SummaryWriter


class MetricWriter:
    """Writes WORKDIR/metrics.jsonl and WORKDIR/tensorboard; lines beyond `step` of an interrupted run go."""

    def __init__(self, workdir, step: int):
        path = epath.Path(workdir) / "metrics.jsonl"
        kept = [line for line in _whole_lines(path) if json.loads(line)["step"] <= step]
        partial = path.parent / f".{path.name}.partial"
        partial.write_text("".join(line + "\n" for line in kept))
        partial.replace(path)
        self._file = path.open("a")
        self._tensorboard = SummaryWriter(str(epath.Path(workdir) / "tensorboard"), purge_step=step + 1)

    def write(self, step: int, values: dict[str, float]):
        """Appends {"step": step, **values}."""
        self._file.write(json.dumps({"step": step, **values}) + "\n")
        self._file.flush()
        for name, value in values.items():
            self._tensorboard.add_scalar(name, value, step)

    def close(self):
        self._file.close()
        self._tensorboard.close()


def _whole_lines(path) -> list[str]:
    """Lines of a file that a killed run may have cut short."""
    if not path.exists():
        return []
    *lines, _cut = path.read_text().split("\n")
    return lines
