"""What a released file holds, cleaned up: arrays in float32 under their names, loss weights, step."""

import collections
import math
import os
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from mtd_jax.released import pth
from mtd_jax.released.pth import NotACheckpoint, StoredArray, Unsupported

NUM_LOSS_WEIGHTS = 13
_LONGEST_NAME = 200
_UNUSED = ("num_batches_tracked", ".version", "._float_tensor")


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
    content = pth.read(path)
    if not isinstance(content, Mapping) or not content:
        raise NotACheckpoint(f"{path}: expected a checkpoint (a dict of arrays), got {_kind(content)}")
    step, loss_weights, notes = 0, None, []
    state_dict = content
    if "state_dict" in content:
        state_dict = content["state_dict"]
        if not isinstance(state_dict, Mapping) or not state_dict:
            raise NotACheckpoint(
                f"{path}: expected its state_dict to be a dict of arrays, got {_kind(state_dict)}"
            )
        step = _step(content["global_step"], path) if "global_step" in content else 0
        if content.get("aw_loss") is not None:
            loss_weights = _loss_weights(content["aw_loss"], path)
    state_dict = _strip_prefix(state_dict, path, notes)
    return TorchCheckpoint(_to_arrays(state_dict, path, notes), loss_weights, step, notes)


def _strip_prefix(state_dict: Mapping[Any, Any], path: str | os.PathLike, notes: list[str]) -> dict[str, Any]:
    """Removes the "module." that data-parallel wrappers put before some or all names."""
    stripped: dict[str, Any] = {}
    doubled = []
    for name, value in state_dict.items():
        if not isinstance(name, str) or len(name) > _LONGEST_NAME:
            raise NotACheckpoint(f"{path}: expected entry names to be text, and not long, got {_kind(name)}")
        short = re.sub(r"^(module\.)+", "", name)
        if short in stripped:
            doubled.append(short)
        stripped[short] = value
    if doubled:
        raise NotACheckpoint(f"{path}: entries with and without the prefix module.: {', '.join(doubled)}")
    prefixed = sum(name.startswith("module.") for name in state_dict)
    if prefixed:
        notes.append(f"removed the prefix module. from {prefixed} of {len(state_dict)} names")
    return stripped


def _to_arrays(state_dict: Mapping[str, Any], path: str | os.PathLike, notes: list[str]) -> dict[str, np.ndarray]:
    """Every entry as an array, in float32; notes casts, and raises `UserError` for anything unusable."""
    not_arrays = [f"{n} is {_kind(v)}" for n, v in state_dict.items() if not isinstance(v, StoredArray)]
    if not_arrays:
        raise NotACheckpoint(f"{path}: expected every entry to be an array, but {_listing(not_arrays)}")
    if sum(math.prod(stored.shape) for stored in state_dict.values()) > os.path.getsize(path):  # it holds them all
        raise NotACheckpoint(f"{path}: expected each number once, but several entries share theirs")
    arrays: dict[str, np.ndarray] = {}
    not_float, not_finite = [], []
    cast: collections.Counter[str] = collections.Counter()
    for name, stored in state_dict.items():
        if name.endswith(_UNUSED):  # not checked: one is uninitialised memory in the released files
            array = stored.read()
            arrays[name] = array.astype(np.float32) if stored.is_float else array
            continue
        if not stored.is_float:
            not_float.append(f"{name} is {stored.dtype}")
            continue
        if stored.dtype != "float32":
            cast[stored.dtype] += 1
        with np.errstate(over="ignore"):  # becomes infinite, which is reported
            arrays[name] = stored.read().astype(np.float32)
        if not np.isfinite(arrays[name]).all():
            not_finite.append(name)
    if not_float:
        raise NotACheckpoint(f"{path}: expected floating-point entries, but {_listing(not_float)}")
    if not_finite:
        raise NotACheckpoint(f"{path}: NaN or infinite values in {_listing(not_finite)}; the weights are unusable")
    notes.extend(f"cast {count} entries from {dtype} to float32" for dtype, count in cast.items())
    return arrays


def _loss_weights(aw_loss: Any, path: str | os.PathLike) -> np.ndarray:
    params = None
    if isinstance(aw_loss, Mapping):
        params = {str(name).removeprefix("module."): value for name, value in aw_loss.items()}.get("params")
    expected = f"{path}: expected aw_loss to be {{params: ({NUM_LOSS_WEIGHTS},)}} of finite floats"
    if not isinstance(params, StoredArray) or not params.is_float:
        raise NotACheckpoint(f"{expected}, got {_kind(params if params is not None else aw_loss)}")
    if params.shape != (NUM_LOSS_WEIGHTS,):
        raise NotACheckpoint(f"{expected}, got shape {params.shape}")
    weights = params.read().astype(np.float32)
    if not np.isfinite(weights).all():
        raise NotACheckpoint(f"{expected}, got NaN or infinite values")
    return weights


def _step(value: Any, path: str | os.PathLike) -> int:
    number = value
    if isinstance(value, StoredArray):
        number = value.read().item() if math.prod(value.shape) == 1 else None
    if isinstance(number, int | float) and 0 <= number < 1 << 53 and number == int(number):
        return int(number)
    raise NotACheckpoint(f"{path}: expected global_step to be a whole number ≥ 0, got {_kind(value)}")


def _kind(value: Any) -> str:
    """A value in a few words, for a message."""
    if isinstance(value, Mapping):
        keys = [key[:80] if isinstance(key, str) else _kind(key) for key in value]
        return f"a dict with {_listing(keys)}" if value else "an empty dict"
    if isinstance(value, StoredArray):
        return f"a {value.dtype} array of shape {value.shape}"
    if isinstance(value, Unsupported):
        return value.kind
    if isinstance(value, int) and abs(value) >= 1 << 63:
        return "a huge number"
    return f"{value!r}" if isinstance(value, int | float | None) else f"a {type(value).__name__}"


def _listing(names: list[str], most: int = 5) -> str:
    rest = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + rest
