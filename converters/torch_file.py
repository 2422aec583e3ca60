"""Writes files of the released form."""

import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mtd_jax.errors import UserError


def write_checkpoint(
    path: str | os.PathLike, state_dict: Mapping[str, np.ndarray], loss_weights: np.ndarray | None, step: int
) -> None:
    """Writes the released outer dict; the file appears whole or not at all.

    Raises:
      UserError: the file cannot be written.
    """
    content: dict[str, Any] = {"state_dict": {n: torch.from_numpy(np.array(a)) for n, a in state_dict.items()}}
    if loss_weights is not None:
        content["aw_loss"] = {"params": torch.from_numpy(np.array(loss_weights, np.float32))}
    content["global_step"] = step
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # Under its final name in a scratch folder, because PyTorch repeats the file's name inside the file.
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as folder:
            torch.save(content, Path(folder) / path.name)
            os.replace(Path(folder) / path.name, path)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from error
