"""Two towers: the model, and the same folded for scoring."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mtd_jax import scoring
from mtd_jax.errors import UserError
from mtd_jax.network import folded
from mtd_jax.network.folded import fold
from mtd_jax.network.model import ModelConfig, SyncModel
from mtd_jax.network.towers import per_frame, with_neighbours
from mtd_jax.network.weights import bind, model_arrays
from mtd_jax.released.key_table import to_torch
from tests.network.test_folded import assert_close, lively_model


@pytest.mark.parametrize("frames_of_window", [5, 7])
def test_folded_towers_are_the_model(frames_of_window):
    config = ModelConfig.tiny(widths=(4, 8, 8, 8, 16), fusion="none", window_frames=frames_of_window)
    model = lively_model(config)
    rng = np.random.default_rng(1)
    frames = rng.integers(0, 256, (2 + frames_of_window, 48, 96, 3), dtype=np.uint8)
    mel = rng.uniform(-4, 4, (7, scoring.mel_steps(frames_of_window), 80)).astype(np.float32)

    @jax.jit
    def plain(arrays, frames, mel):
        windows = jnp.stack([frames[i : i + frames_of_window] for i in range(3)])
        pairs = 2 * np.arange(3)[:, None] + np.arange(3)
        logits, features = bind(config, arrays)._forward(
            jnp.repeat(windows, 3, axis=0), mel[pairs.reshape(-1)], train=False, rngs=None
        )
        return features.va_tokens[::3], logits.reshape(3, 3), features.fusion_tokens.sum(axis=(1, 2)).reshape(3, 3)

    @jax.jit
    def fast(weights, frames, mel):
        video = folded.encode_video(config, weights, frames)
        audio = folded.encode_audio(config, weights, mel)
        return video, folded.compare_shifts(config, weights, video, audio, every=2)

    video, logits, cosines = plain(model_arrays(model), frames, mel)
    for actual, wanted in zip(fast(fold(model), frames, mel), (video, logits), strict=True):
        assert_close(actual, wanted, 2e-5)
    np.testing.assert_allclose(np.square(video).sum(axis=(1, 2)), 1, rtol=1e-5)
    towers = model.towers
    np.testing.assert_allclose(logits, towers.scale[...] * cosines + towers.bias[...], rtol=1e-5)
    assert np.std(cosines) > 1e-3


def test_audio_is_averaged_over_the_columns_of_each_frame():
    steps = jnp.arange(16.0).reshape(1, 16, 1)
    np.testing.assert_allclose(per_frame(steps, 5)[0, :, 0], [1.5, 5, 8, 11, 14])  # 4 columns, then 3 each
    np.testing.assert_allclose(per_frame(steps, 16), steps)


def test_neighbours_are_those_in_time():
    x = jnp.array([[[1.0], [2.0], [3.0]]])
    np.testing.assert_array_equal(with_neighbours(x), [[[0, 1, 2], [1, 2, 3], [2, 3, 0]]])


def test_two_towers_have_no_counterpart_in_the_released_format():
    config = ModelConfig.tiny(fusion="none")
    with pytest.raises(UserError, match=r"two towers \(model.fusion=none\) have no counterpart"):
        to_torch(config, model_arrays(SyncModel(config)), "DIR")
    with pytest.raises(UserError, match="model.fusion: expected one of transformers, none, got 'cosine'"):
        ModelConfig.tiny(fusion="cosine")
