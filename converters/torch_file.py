"""Reads released .pth files without running any code in them, and writes files of the same form."""

import collections
import os
import pickle
import re
import tempfile
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from mtd_jax.errors import UserError

NUM_LOSS_WEIGHTS = 13
_ZIP, _PICKLE = b"PK\x03\x04", b"\x80"  # first bytes of the current and of the older file format
_UNUSED = ("num_batches_tracked", ".version", "._float_tensor")


class _Ignored:
    """An inert stand-in for an object of the training run that the conversion does not need."""

    def __setstate__(self, state: Any) -> None:
        pass


# Complete training files of the public code contain their learning-rate scheduler as an object, which refers to
# the optimiser. These few classes are replaced with inert stand-ins; a file with any other class is refused.
_STAND_INS = [
    (_Ignored, "torch.optim.lr_scheduler.StepLR"),
    (_Ignored, "torch.optim.adam.Adam"),
    (lambda *_: {}, "collections.defaultdict"),
    (dict, "builtins.dict"),
]


class TorchCheckpoint(NamedTuple):
    """A released file, cleaned up.

    Attributes:
      state_dict: float32 arrays under names without a "module." prefix.
      loss_weights: (13,) learned uncertainties, or None.
      step: of the training.
      notes: what was changed in the clean-up, one line each.
    """

    state_dict: dict[str, np.ndarray]
    loss_weights: np.ndarray | None
    step: int
    notes: list[str]


def read_checkpoint(path: str | os.PathLike) -> TorchCheckpoint:
    """Reads a bare state dict or the released outer dict {"state_dict", "aw_loss", "global_step", …}.

    Raises:
      UserError: the file is missing or damaged, needs code to be read, is no checkpoint, or contains entries that
        are not finite floating-point arrays.
    """
    content = _load(path)
    if not isinstance(content, Mapping) or not content:
        raise UserError(f"{path}: expected a checkpoint (a dict of arrays), got {_kind(content)}")
    step, loss_weights, notes = 0, None, []
    state_dict = content
    if "state_dict" in content:
        state_dict = content["state_dict"]
        if not isinstance(state_dict, Mapping) or not state_dict:
            raise UserError(f"{path}: expected its state_dict to be a dict of arrays, got {_kind(state_dict)}")
        step = _step(content["global_step"], path) if "global_step" in content else 0
        if content.get("aw_loss") is not None:
            loss_weights = _loss_weights(content["aw_loss"], path)
    state_dict = _strip_prefix(state_dict, path, notes)
    return TorchCheckpoint(_to_arrays(state_dict, path, notes), loss_weights, step, notes)


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


def _load(path: str | os.PathLike) -> Any:
    if os.path.isdir(path):
        raise UserError(f"{path} is a directory; expected a PyTorch checkpoint file (.pth)")
    try:
        with open(path, "rb") as file:
            start = file.read(4)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    try:
        with warnings.catch_warnings(), torch.serialization.safe_globals(_STAND_INS):
            warnings.simplefilter("ignore")
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file can raise anything: KeyError, OSError, EOFError, …
        is_pickle = start == _ZIP or start[:1] == _PICKLE
        if (is_pickle and isinstance(error, pickle.UnpicklingError)) or "TorchScript" in str(error):
            name = re.search(r"GLOBAL ([\w.]+)", str(error))
            raise UserError(
                f"{path}: refused because reading it would run code{f' ({name[1]})' if name else ''}; "
                "expected arrays only. If you trust its source, save its state_dict alone with PyTorch"
            ) from error
        if start == _ZIP:
            raise UserError(f"{path}: truncated or damaged; download or copy the file again") from error
        raise UserError(
            f"{path}: not a PyTorch checkpoint, or a truncated or damaged one; expected a file saved by torch.save"
        ) from error


def _strip_prefix(state_dict: Mapping[Any, Any], path: str | os.PathLike, notes: list[str]) -> dict[str, Any]:
    """Removes the "module." that data-parallel wrappers put before some or all names."""
    stripped: dict[str, Any] = {}
    doubled = []
    for name, value in state_dict.items():
        if not isinstance(name, str):
            raise UserError(f"{path}: expected entry names to be text, got {name!r}")
        short = re.sub(r"^(module\.)+", "", name)
        if short in stripped:
            doubled.append(short)
        stripped[short] = value
    if doubled:
        raise UserError(f"{path}: entries with and without the prefix module.: {', '.join(doubled)}")
    prefixed = sum(name.startswith("module.") for name in state_dict)
    if prefixed:
        notes.append(f"removed the prefix module. from {prefixed} of {len(state_dict)} names")
    return stripped


def _to_arrays(state_dict: Mapping[str, Any], path: str | os.PathLike, notes: list[str]) -> dict[str, np.ndarray]:
    """Every entry as an array, in float32; notes casts, and raises `UserError` for anything unusable."""
    not_arrays = [f"{n} is {_kind(v)}" for n, v in state_dict.items() if not isinstance(v, torch.Tensor)]
    if not_arrays:
        raise UserError(f"{path}: expected every entry to be an array, but {_listing(not_arrays)}")
    arrays: dict[str, np.ndarray] = {}
    not_float, not_finite = [], []
    cast: collections.Counter[str] = collections.Counter()
    for name, tensor in state_dict.items():
        if tensor.layout is not torch.strided or tensor.device.type != "cpu" or tensor.is_quantized:
            raise UserError(f"{path}: expected {name} to be a plain array, got {tensor.layout} on {tensor.device}")
        if name.endswith(_UNUSED):  # not checked: one is uninitialised memory in the released files
            arrays[name] = (tensor.float() if tensor.is_floating_point() else tensor).numpy(force=True)
            continue
        if not tensor.is_floating_point():
            not_float.append(f"{name} is {_dtype(tensor)}")
            continue
        if tensor.dtype is not torch.float32:
            cast[_dtype(tensor)] += 1
        arrays[name] = tensor.float().numpy(force=True)
        if not np.isfinite(arrays[name]).all():
            not_finite.append(name)
    if not_float:
        raise UserError(f"{path}: expected floating-point entries, but {_listing(not_float)}")
    if not_finite:
        raise UserError(f"{path}: NaN or infinite values in {_listing(not_finite)}; the weights are unusable")
    notes.extend(f"cast {count} entries from {dtype} to float32" for dtype, count in cast.items())
    return arrays


def _loss_weights(aw_loss: Any, path: str | os.PathLike) -> np.ndarray:
    params = None
    if isinstance(aw_loss, Mapping):
        params = {str(name).removeprefix("module."): value for name, value in aw_loss.items()}.get("params")
    expected = f"{path}: expected aw_loss to be {{params: ({NUM_LOSS_WEIGHTS},)}} of finite floats"
    if not isinstance(params, torch.Tensor) or not params.is_floating_point():
        raise UserError(f"{expected}, got {_kind(params if params is not None else aw_loss)}")
    if tuple(params.shape) != (NUM_LOSS_WEIGHTS,):
        raise UserError(f"{expected}, got shape {tuple(params.shape)}")
    if not torch.isfinite(params.float()).all():
        raise UserError(f"{expected}, got NaN or infinite values")
    return params.float().numpy(force=True)


def _step(value: Any, path: str | os.PathLike) -> int:
    try:
        step = int(value)
    except (TypeError, ValueError, OverflowError, RuntimeError):
        step = -1
    if step < 0:
        raise UserError(f"{path}: expected global_step to be a whole number ≥ 0, got {_kind(value)}")
    return step


def _kind(value: Any) -> str:
    """A value in a few words, for a message."""
    if isinstance(value, Mapping):
        return f"a dict with {_listing([str(key) for key in value])}" if value else "an empty dict"
    if isinstance(value, torch.Tensor):
        return f"a {_dtype(value)} array of shape {tuple(value.shape)}"
    return f"{value!r}" if isinstance(value, int | float | None) else f"a {type(value).__name__}"


def _dtype(tensor: torch.Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _listing(names: list[str], most: int = 5) -> str:
    rest = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + rest
