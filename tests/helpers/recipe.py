"""The weight recipe of the reference values (golden/README.md): an entry from its name, shape and seed."""

import json
import math
import zlib
from pathlib import Path

import numpy as np

GOLDEN = Path(__file__).parents[1] / "golden"


def state_dict_shapes(which: str) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the released "teacher" or "student" state dict, in its order."""
    shapes = json.loads((GOLDEN / f"{which}_state_dict.json").read_text())
    return {name: tuple(shape) for name, shape in shapes.items()}


def recipe_weights(shapes: dict[str, tuple[int, ...]], seed: int) -> dict[str, np.ndarray]:
    """PyTorch-layout state dict by the recipe; float32, except the int64 counters `num_batches_tracked`."""
    return {name: _entry(name, tuple(shape), seed) for name, shape in shapes.items()}


def _entry(name: str, shape: tuple[int, ...], seed: int) -> np.ndarray:
    if name.endswith("num_batches_tracked"):
        return np.zeros(shape, np.int64)
    if name.endswith(".version"):
        return np.full(shape, 2, np.float32)
    if name.endswith("_float_tensor"):
        return np.zeros(shape, np.float32)
    z = np.random.default_rng([zlib.crc32(name.encode()), seed]).standard_normal(shape)
    if name.endswith("running_var"):
        values = np.exp(0.2 * z)
    elif name.endswith("running_mean"):
        values = 0.1 * z
    elif name.endswith("bias"):
        values = 0.05 * z
    elif len(shape) == 1:
        values = 1 + 0.1 * z
    else:
        values = z * math.sqrt((2 if len(shape) > 2 else 1) / math.prod(shape[1:]))
    return values.astype(np.float32)
