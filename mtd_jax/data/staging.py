"""Where an unfinished data set waits: found again after an interruption, out of readers' sight, one at a time."""

import fcntl
import json
import shutil
from pathlib import Path

from mtd_jax.data.records import DATASET_NAME, VERSION
from mtd_jax.errors import UserError

DESCRIPTION = "contents.json"


class Staging:
    """Context of one build into `output`.

    Attributes:
      target: the data set's folder, `output`/lip_sync_clips/VERSION.
      folder: for finished shards until the data set is whole; kept when the build fails.
      is_complete: the data set is there already, with the same contents.

    Raises:
      UserError: another data set is there, or another process builds one.
    """

    def __init__(self, output: Path, description: dict):
        self.target = output / DATASET_NAME / VERSION
        self.folder = output / f".{DATASET_NAME}.partial"
        self.is_complete = False
        self._description = json.dumps(description)

    def __enter__(self) -> "Staging":
        self.folder.parent.mkdir(parents=True, exist_ok=True)
        self._lock = open(self.folder.with_suffix(".lock"), "w")  # noqa: SIM115 (closing it gives up the lock)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(f"another process builds a data set in {self.folder.parent}; wait for it") from error
        if self.target.exists():
            if _read(self.target / DESCRIPTION) != self._description:
                raise UserError(
                    f"{self.target} holds other clips or settings; delete it or choose another --output"
                )
            self.is_complete = True
            return self
        for folder in self.target.parent.glob(f"incomplete.*_{VERSION}"):
            shutil.rmtree(folder)  # of a build that was killed in its last step
        if _read(self.folder / DESCRIPTION) != self._description:
            shutil.rmtree(self.folder, ignore_errors=True)  # shards of other contents
            self.folder.mkdir()
            (self.folder / DESCRIPTION).write_text(self._description)
        return self

    def __exit__(self, kind, *_) -> None:
        if kind is None:
            shutil.rmtree(self.folder, ignore_errors=True)
        self._lock.close()


def _read(path: Path) -> str | None:
    return path.read_text() if path.exists() else None
