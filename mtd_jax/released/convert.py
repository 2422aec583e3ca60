"""A released file → the model it holds, or a checkpoint directory in the user's cache."""

import hashlib
import os
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from mtd_jax.checkpoint import model_config, model_from_arrays, save_model
from mtd_jax.errors import UserError
from mtd_jax.network.model import ModelConfig, SyncModel
from mtd_jax.released.key_table import to_flax, torch_shapes
from mtd_jax.released.pth import NotACheckpoint
from mtd_jax.released.state_dict import TorchCheckpoint, read_checkpoint
from mtd_jax.storage import atomic, cache_folder

MODELS = {"vocalist": ModelConfig.vocalist, "mtd_vocalist": ModelConfig.mtd_vocalist}
PIXELS_ADVICE = {
    "vocalist": "correct for vocalist_*.pth; the reproduced teacher repro_Vocalist.pth needs --pixels=rgb255",
    "mtd_vocalist": "correct for pure_MTDVocaLiST.pth; pass --pixels for weights trained on others",
}
LICENCE = (
    "These weights were released by others and are no part of MTD-JAX: the terms of who released them apply, and "
    "those of the data they were trained on (LRS2: research only)."
)
_CONVERSION = 1  # version; increment when the same file gives another checkpoint


def read_model(
    path: str | os.PathLike, kind: str | None = None, pixels: str | None = None, window_frames: int = 5
) -> tuple[SyncModel, TorchCheckpoint]:
    """The model in a released file, and what else is in the file.

    Args:
      kind: a name in `MODELS`; None: the one that the file fits best.
      pixels: the convention of the weights; None: that of the released weights of this model.
      window_frames: T of the model.

    Raises:
      UserError: the file is unusable, or belongs to the other model.
    """
    released = read_checkpoint(path)
    kind = _fitting_kind(released.state_dict, kind, path)
    changes = {"window_frames": window_frames} | ({} if pixels is None else {"pixels": pixels})
    config = MODELS[kind](**changes)
    try:
        arrays = to_flax(config, released.state_dict, str(path))
    except UserError as error:
        raise NotACheckpoint(str(error)) from error
    return model_from_arrays(config, arrays, str(path)), released


def write_model(
    directory: str | os.PathLike, model: SyncModel, released: TorchCheckpoint, path: str | os.PathLike
) -> None:
    """Writes what `read_model` gave as a checkpoint directory. Raises `UserError` as `save_model`."""
    save_model(
        directory,
        model,
        step=released.step,
        loss_weights=released.loss_weights,
        source=f"converted from {Path(path).name}",
        licence=LICENCE,
    )


def converted(path: str | os.PathLike) -> Path:
    """The checkpoint directory of a released file, made at first use; says on stderr what is assumed.

    It lies in the user's cache folder under the SHA-256 of the file, so that a changed file is converted again.

    Raises:
      UserError: as `read_model`, or the folder cannot be written.
    """
    try:
        with open(path, "rb") as file:
            checksum = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    directory = cache_folder() / "converted" / f"{checksum[:32]}-{_CONVERSION}"
    notes = [] if directory.exists() else _convert(path, directory)
    config = model_config(directory)
    kind = next(name for name, make in MODELS.items() if make().widths == config.widths)
    assumed = f"{path}: taken for {kind} with windows of {config.window_frames} frames, pixels {config.pixels}"
    print(f"{assumed}; converted into {directory}", *map("  note: {}".format, notes), sep="\n", file=sys.stderr)
    return directory


def _convert(path: str | os.PathLike, directory: Path) -> list[str]:
    """Writes the checkpoint directory; returns what there is to know about it."""
    model, released = read_model(path)
    try:
        with atomic(directory) as scratch:
            scratch.parent.mkdir(parents=True, exist_ok=True)
            write_model(scratch, model, released, path)
    except UserError:
        if not directory.exists():  # which another process has written meanwhile
            raise
    advice = "for other pixels or windows, as of repro_Vocalist.pth and vocalist_25f_acappella.pth, run"
    return [*released.notes, f"{advice} python -m converters.torch_to_flax", LICENCE]


def _fitting_kind(state_dict: Mapping[str, np.ndarray], asked: str | None, source: str | os.PathLike) -> str:
    """The requested model, or the one that fits best; `UserError` for a file of the other, or of neither.

    A file that fits the requested model best, but not exactly, is left to `to_flax`, which names what differs.
    """

    def fitting(model: str) -> int:
        shapes = torch_shapes(MODELS[model]())
        return sum(name in shapes and shapes[name].shape == array.shape for name, array in state_dict.items())

    scores = {model: fitting(model) for model in MODELS}
    best = max(scores, key=lambda model: scores[model])
    asked = asked or best
    if scores[asked] == scores[best] > 0:
        return asked
    if scores[best] == 0:
        raise NotACheckpoint(
            f"{source}: none of its {len(state_dict)} entries belongs to {' or '.join(MODELS)}; expected names "
            f"like vid_prenet.0.conv_block.0.weight, got {next(iter(state_dict))}"
        )
    raise UserError(
        f"{source} looks like {best} ({scores[best]} of {len(state_dict)} entries fit it, {scores[asked]} "
        f"fit {asked}); pass --model={best}"
    )
