"""The reference values' models: recipe weights of a seed in a `SyncModel`."""

import functools
import json
import pathlib

import numpy as np

from mtd_jax.checkpoint import model_from_arrays
from mtd_jax.network.model import ModelConfig
from mtd_jax.released.key_table import to_flax, torch_shapes
from tests.helpers.recipe import recipe_weights

GOLDEN = pathlib.Path(__file__).parents[1] / "golden"
# The recipe feeds the teacher RGB/255, not the released weights' BGR.
TEACHER = ModelConfig.vocalist(pixels="rgb01")
STUDENT = ModelConfig.mtd_vocalist()


def golden(name: str) -> dict[str, np.ndarray]:
    if name.endswith(".json"):
        return json.loads((GOLDEN / name).read_text())
    with np.load(GOLDEN / name) as file:
        return dict(file)


@functools.cache
def recipe_model(config: ModelConfig, seed: int):
    shapes = {name: spec.shape for name, spec in torch_shapes(config).items()}
    return model_from_arrays(config, to_flax(config, recipe_weights(shapes, seed), "recipe"), "recipe")


def mel_from_torch(mel) -> np.ndarray:
    """(batch, 80, steps) → (batch, steps, 80)."""
    return np.swapaxes(np.asarray(mel), 1, 2)
