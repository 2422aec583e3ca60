"""Two towers: windows of video and of audio become vectors that a cosine compares, without any transformer.

The idea is SyncNet's (Chung & Zisserman 2016). Every window is encoded once, and a scan is one matrix product.
"""

from typing import TYPE_CHECKING

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax
from jaxtyping import Array, Float, Shaped

from mtd_jax.network.layers import Draws, Linear, at_least_float32, normalised

if TYPE_CHECKING:
    from mtd_jax.network.model import ModelConfig

_FIRST_SCALE = 10.0  # of the cosine; the published temperature of 0.1 of contrastive losses


class TemporalHead(nnx.Module):
    """A light head over time: each token, normalised, plus a small network of it and its two neighbours."""

    def __init__(self, config: "ModelConfig", rng: Draws):
        self.fc1 = Linear(3 * config.width, config.width, config.compute_dtype, rng)
        self.fc2 = Linear(config.width, config.width, config.compute_dtype, rng)

    def __call__(self, tokens: Shaped[Array, "batch time width"]) -> Shaped[Array, "batch time width"]:
        x = normalised(tokens)
        return x + self.fc2(nnx.relu(self.fc1(with_neighbours(x))))


class TwoTowers(nnx.Module):
    """What follows the prenets in a model of two towers.

    Logit = scale · cosine + bias, both learned.
    """

    def __init__(self, config: "ModelConfig", rng: Draws):
        self.video_head = TemporalHead(config, rng)
        self.audio_head = TemporalHead(config, rng)
        self.scale = nnx.Param(jnp.full(1, _FIRST_SCALE, jnp.float32))
        self.bias = nnx.Param(jnp.zeros(1, jnp.float32))

    def __call__(
        self, video_tokens: Shaped[Array, "batch T width"], audio_tokens: Shaped[Array, "batch S width"]
    ) -> tuple[Float[Array, " batch"], Float[Array, "batch T width"], Float[Array, "batch T width"]]:
        """Logits, and the vectors of both windows, of length 1 in all."""
        video = unit(self.video_head(video_tokens))
        audio = unit(per_frame(self.audio_head(audio_tokens), video.shape[1]))
        cosine = jnp.sum(video * audio, axis=(1, 2))
        return self.scale[...] * cosine + self.bias[...], video, audio


def with_neighbours(x: Shaped[Array, "batch time width"]) -> Shaped[Array, "batch time 3*width"]:
    """Each token after the one before it and before the one after it; zeros beyond the ends."""
    padded = jnp.pad(x, ((0, 0), (1, 1), (0, 0)))
    return jnp.concatenate([padded[:, :-2], x, padded[:, 2:]], axis=-1)


def per_frame(audio_tokens: Shaped[Array, "*batch S width"], time: int) -> Shaped[Array, "*batch T width"]:
    """Audio tokens averaged over the mel columns of each of T frames."""
    steps = audio_tokens.shape[-2]
    frame_of_step = np.arange(steps) * time // steps == np.arange(time)[:, None]  # (T, S)
    average = (frame_of_step / frame_of_step.sum(axis=1, keepdims=True)).astype(np.float32)
    return jnp.einsum("ts,...sd->...td", average.astype(audio_tokens.dtype), audio_tokens, precision="highest")


def unit(x: Shaped[Array, "batch time width"]) -> Float[Array, "batch time width"]:
    """All tokens of a window as one vector of length 1, in float32 at least."""
    x = at_least_float32(x)
    return x * lax.rsqrt(jnp.sum(jnp.square(x), axis=(1, 2), keepdims=True) + 1e-12)
