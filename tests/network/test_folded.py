"""The network as scoring runs it against `SyncModel`, and what it is made of against plain convolutions."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from mtd_jax import scoring
from mtd_jax.network import conv3d, folded
from mtd_jax.network.folded import fold
from mtd_jax.network.model import ModelConfig, SyncModel
from mtd_jax.network.weights import abstract_arrays, bind, model_arrays

SMALL = {"widths": (4, 8, 8, 16, 32), "num_layers": 2}
CONFIGS = {
    "student": ModelConfig.mtd_vocalist(**SMALL),
    "teacher": ModelConfig.vocalist(**SMALL | {"num_heads": 4}, zero_tokens_lose_position=False),
    "tiny, T=7": ModelConfig.tiny(num_layers=1, window_frames=7),
    "tiny, T=25": ModelConfig.tiny(num_layers=1, window_frames=25),
}


def lively_model(config):
    """Random statistics, scales and biases too: those of a fresh model would hide a mistake in folding."""
    rng = np.random.default_rng(0)
    arrays = model_arrays(SyncModel(config, seed=0))
    for name, spec in abstract_arrays(config).items():
        if name.endswith(("/scale", "/var")):
            arrays[name] = jnp.asarray(rng.uniform(0.5, 1.5, spec.shape), jnp.float32)
        elif len(spec.shape) == 1:
            arrays[name] = jnp.asarray(0.1 * rng.standard_normal(spec.shape), jnp.float32)
    return bind(config, arrays)


def assert_close(actual, expected, tolerance):
    assert actual.shape == expected.shape
    assert np.abs(np.asarray(actual) - np.asarray(expected)).max() <= tolerance * np.abs(expected).max()


@pytest.mark.parametrize("name", CONFIGS)
def test_tokens_and_logits_are_those_of_the_model(name):
    config = CONFIGS[name]
    model = lively_model(config)
    weights = fold(model)
    rng = np.random.default_rng(1)
    frames = rng.integers(0, 256, (2 + config.window_frames, *(48, 96, 3)), dtype=np.uint8)
    mel = rng.uniform(-4, 4, (5, scoring.mel_steps(config.window_frames), 80)).astype(np.float32)

    @jax.jit
    def plain(arrays, frames, mel):
        model = bind(config, arrays)
        windows = jnp.stack([frames[i : i + config.window_frames] for i in range(3)])
        video, audio = model.encode_video(windows), model.encode_audio(mel)
        pairs = np.arange(3)[:, None] + np.arange(3)
        logits, _ = model.compare(jnp.repeat(video, 3, axis=0), audio[pairs.reshape(-1)])
        return video, audio, logits.reshape(3, 3)

    @jax.jit
    def fast(weights, frames, mel):
        video = folded.encode_video(config, weights, frames)
        audio = folded.encode_audio(config, weights, mel)
        return video, audio, folded.compare_shifts(config, weights, video, audio)

    expected = plain(model_arrays(model), frames, mel)
    for actual, wanted in zip(fast(weights, frames, mel), expected, strict=True):
        assert_close(actual, wanted, 2e-5)
    video, audio, logits = expected
    assert (video[..., 0] == 0).any() or (audio[..., 0] == 0).any()  # the tokens without position occur
    assert np.std(logits) > 1e-3 * np.abs(logits).max()


@pytest.mark.parametrize("window, k_time, pad_time", [(5, 7, 3), (2, 7, 3), (4, 3, 0)])
def test_shared_frames_convolve_as_separate_windows(window, k_time, pad_time):
    rng = np.random.default_rng(3)
    frames = rng.standard_normal((7, 9, 11, 3)).astype(np.float32)
    taps = tuple(rng.standard_normal((k_time, 3, 3, 3, 4)).astype(np.float32))
    args = ((2, 1), (1, 0, pad_time))
    windows = np.stack([frames[t : t + 8 - window] for t in range(window)])
    expected = reference_conv(windows, taps, *args)
    assert_close(conv3d.conv3d_windows(frames, taps, window, *args), expected, 1e-5)


def reference_conv(x, taps, stride, padding):
    """XLA's own 3-D convolution, (time, batch, height, width, channels)."""
    return lax.conv_general_dilated(
        np.moveaxis(x, 0, 1),
        np.stack(taps),
        (1, *stride),
        [(p, p) for p in (padding[2], *padding[:2])],
        dimension_numbers=("NDHWC", "DHWIO", "NDHWC"),
    ).swapaxes(0, 1)


@pytest.fixture(scope="module")
def clip():
    rng = np.random.default_rng(4)
    frames = rng.integers(0, 256, (28, 48, 96, 3), dtype=np.uint8)
    return frames, rng.integers(-20_000, 20_000, 28 * 640).astype(np.int16)


def test_chunks_do_not_change_scores(clip):
    model = lively_model(ModelConfig.tiny(num_layers=1))
    scores = scoring.score_clip(model, *clip)
    other = scoring.Scorer(model, chunks=scoring.Chunks(15, 15, 15))
    np.testing.assert_allclose(other(*clip), scores, atol=1e-4)


def test_bfloat16_scores_are_near(clip):
    config = ModelConfig.tiny(num_layers=1)
    model = SyncModel(config, seed=0)
    half = bind(dataclasses.replace(config, compute_dtype="bfloat16"), model_arrays(model))
    scores, half_scores = scoring.score_clip(model, *clip), scoring.score_clip(half, *clip)
    assert half_scores.dtype == np.float32
    np.testing.assert_allclose(half_scores, scores, atol=0.1)
    assert not np.array_equal(half_scores, scores)
