"""Small random networks as the PyTorch twin in float64, and inputs for them."""

import numpy as np
import torch

from converters.verify import twin_of
from mtd_jax.network.model import PIXELS, ModelConfig
from mtd_jax.released.key_table import torch_shapes
from tests.helpers.recipe import recipe_weights

RANDOM_SEEDS = (1, 2, 5)  # one and two layers, two and four heads, all pixel conventions
NO_DROPOUT = {"embedding_dropout": 0.0, "relu_dropout": 0.0, "residual_dropout": 0.0}


def random_config(seed: int, **changes) -> ModelConfig:
    """Widths up to 8, one or two layers, any number of heads and pixel convention, short windows; no dropout."""
    rng = np.random.default_rng(seed)
    heads = int(rng.choice([1, 2, 4]))
    fields = {
        "widths": (*rng.integers(3, 9, 4).tolist(), int(rng.choice([n for n in (4, 6, 8) if n % heads == 0]))),
        "num_heads": heads,
        "num_layers": int(rng.integers(1, 3)),
        "window_frames": int(rng.integers(3, 7)),
        "pixels": str(rng.choice(PIXELS)),
        "stem_stride": (2, 2),
        "last_stride": (1, 1),
    }
    return ModelConfig(**fields | NO_DROPOUT | changes)


def twin_and_weights(config: ModelConfig, seed: int):
    """The twin in float64, in eval mode, and its state dict, recipe weights as arrays."""
    weights = recipe_weights({name: spec.shape for name, spec in torch_shapes(config).items()}, seed)
    twin = twin_of(config).double()
    twin.load_state_dict({name: torch.from_numpy(array) for name, array in weights.items()})
    scale = twin.scale_pixels
    twin.scale_pixels = lambda frames: scale(frames).double()
    return twin, weights


def random_inputs(config: ModelConfig, batch: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """uint8 frames and a float64 mel."""
    rng = np.random.default_rng(seed)
    frames = rng.integers(0, 256, (batch, config.window_frames, 48, 96, 3), dtype=np.uint8)
    return frames, rng.uniform(-4, 4, (batch, config.window_frames * 16 // 5, 80))
