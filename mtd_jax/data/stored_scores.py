"""A teacher's logits of every training draw, on disk: for losses that need no more of it.

A folder with `scores.json`, which says of which draws and teacher they are, and one ArrayRecord file per epoch. A
record is the grid of a draw: G·G logits, float16, in the order of their draws.
"""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
from array_record.python.array_record_data_source import ArrayRecordDataSource
from jaxtyping import Float

from mtd_jax.data.record_file import write_records
from mtd_jax.errors import UserError
from mtd_jax.storage import atomic, write_text

_ABOUT = "scores.json"


class StoredScores:
    """Logits by number of the draw. Can be pickled for worker processes.

    Args:
      folder: as `write_about` and `write_epoch` left it.

    Attributes:
      about: of which draws and teacher they are.

    Raises:
      UserError: the folder holds no scores, or not those of every epoch that it should.
    """

    def __init__(self, folder: str | os.PathLike):
        path = Path(folder)
        try:
            self.about: dict[str, Any] = json.loads((path / _ABOUT).read_text())
        except (OSError, ValueError) as error:
            raise UserError(f"{folder}: expected stored scores, from --mode=store_scores ({error})") from error
        files = [epoch_file(path, epoch) for epoch in range(self.about["epochs"])]
        if missing := [file.name for file in files if not file.exists()]:
            raise UserError(f"{folder}: {missing[0]} is missing; run --mode=store_scores again to complete it")
        self._side = self.about["windows"]
        self._records = ArrayRecordDataSource([os.fspath(file) for file in files])

    def __len__(self) -> int:
        """Draws."""
        return len(self._records)

    def __getitem__(self, draw: int) -> Float[np.ndarray, "windows windows"]:
        logits = np.frombuffer(self._records[draw], np.float16)
        return logits.reshape(self._side, self._side).astype(np.float32)


def epoch_file(folder: Path, epoch: int) -> Path:
    """The file with the grids of an epoch, counted from 0."""
    return folder / f"epoch-{epoch:04d}.array_record"


def write_about(folder: Path, about: dict[str, Any]) -> None:
    """Raises `UserError` if the folder holds the scores of other draws or of another teacher."""
    file = folder / _ABOUT
    if file.exists() and (before := json.loads(file.read_text())) != about:
        different = ", ".join(key for key in sorted(before | about) if before.get(key) != about.get(key))
        raise UserError(f"{folder}: holds scores that differ in {different}; name another folder")
    folder.mkdir(parents=True, exist_ok=True)
    write_text(file, json.dumps(about, indent=1) + "\n")


def write_epoch(folder: Path, epoch: int, grids: list[Float[np.ndarray, "windows windows"]]) -> None:
    """Writes the grids of an epoch, whole or not at all."""
    with atomic(epoch_file(folder, epoch)) as scratch:
        write_records(scratch, (grid.astype(np.float16).tobytes() for grid in grids))
