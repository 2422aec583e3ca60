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
        video = self.video_vectors(video_tokens)
        audio = self.audio_vectors(audio_tokens, video.shape[1])
        return self.compare(video, audio), video, audio

    def video_vectors(self, tokens: Shaped[Array, "batch T width"]) -> Float[Array, "batch T width"]:
        return unit(self.video_head(tokens))

    def audio_vectors(self, tokens: Shaped[Array, "batch S width"], time: int) -> Float[Array, "batch T width"]:
        return unit(per_frame(self.audio_head(tokens), time))

    def compare(
        self, video: Float[Array, "batch T width"], audio: Float[Array, "batch T width"]
    ) -> Float[Array, " batch"]:
        """Logits of pairs of vectors."""
        return self.scale[...] * jnp.sum(video * audio, axis=(1, 2)) + self.bias[...]


def with_neighbours(x: Shaped[Array, "batch time width"]) -> Shaped[Array, "batch time 3*width"]:
    """Each token after the one before it and before the one after it; zeros beyond the ends."""
    padded = jnp.pad(x, ((0, 0), (1, 1), (0, 0)))
    return jnp.concatenate([padded[:, :-2], x, padded[:, 2:]], axis=-1)


def per_frame(audio_tokens: Shaped[Array, "*batch S width"], time: int) -> Shaped[Array, "*batch T width"]:
    """Audio tokens averaged over the mel columns of each of T frames."""
    average = frame_averages(audio_tokens.shape[-2], time)
    return jnp.einsum("ts,...sd->...td", average.astype(audio_tokens.dtype), audio_tokens, precision="highest")


def frame_averages(steps: int, time: int) -> Float[np.ndarray, "T S"]:
    """What averages S columns over the frames that they belong to."""
    frame_of_step = np.arange(steps) * time // steps == np.arange(time)[:, None]
    return (frame_of_step / frame_of_step.sum(axis=1, keepdims=True)).astype(np.float32)


def unit(x: Shaped[Array, "batch time width"]) -> Float[Array, "batch time width"]:
    """All tokens of a window as one vector of length 1, in float32 at least."""
    x = at_least_float32(x)
    return x * lax.rsqrt(jnp.sum(jnp.square(x), axis=(1, 2), keepdims=True) + 1e-12)
