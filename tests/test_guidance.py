"""The loss for generators and the encoder: values, gradients in frames and sound, warnings of common mistakes."""

import dataclasses
import functools
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mtd_jax
from mtd_jax.network.model import ModelConfig, SyncModel
from mtd_jax.network.weights import bind, model_arrays
from tests.helpers.configs import SMALL
from tests.network.test_folded import assert_close, lively_model

CONFIG = ModelConfig(**SMALL)
T, SAMPLES = 5, 3200


@pytest.fixture(scope="module")
def model():
    return lively_model(CONFIG)


@pytest.fixture
def windows():
    """(frames, waveform) of two windows; faces are more red than blue."""
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 256, (2, T, 96, 96, 3)) * np.array([1.0, 0.9, 0.8])
    return frames.astype(np.uint8), rng.uniform(-0.5, 0.5, (2, SAMPLES)).astype(np.float32)


def test_the_loss_is_the_cross_entropy_against_in_sync(model, windows):
    frames, sound = windows
    mel = mtd_jax.log_mel(sound)[:, :-1]
    logits = np.asarray(model(frames[:, :, 48:], mel))
    expected = np.log1p(np.exp(-logits)).mean()
    for pixels in (frames, frames.astype(np.float32), frames[:, :, 48:].astype(np.float16)):
        for heard in (sound, mel):
            np.testing.assert_allclose(mtd_jax.sync_loss(model, pixels, heard), expected, rtol=1e-5)
    with_margin = mtd_jax.sync_loss(model, frames, sound, margin=2.0)
    np.testing.assert_allclose(with_margin, np.log1p(np.exp(2 - logits)).mean(), rtol=1e-5)


@pytest.mark.parametrize("offset", [2, -3])
def test_an_offset_moves_the_audio_as_verdicts_count_it(model, windows, offset):
    """Audio that is early by k frames has at frame i what belongs to frame i + k."""
    frames, _ = windows
    more = abs(offset)
    long = np.random.default_rng(1).uniform(-0.5, 0.5, (2, SAMPLES + 2 * more * 640)).astype(np.float32)
    start = (more - offset) * 640
    expected = mtd_jax.sync_loss(model, frames, long[:, start : start + SAMPLES])
    np.testing.assert_allclose(mtd_jax.sync_loss(model, frames, long, offset=offset), expected, rtol=1e-6)


def test_gradients_are_those_of_the_values(windows):
    """Along random directions, by central differences in float64; the model itself stays as it is."""
    frames, sound = windows
    with jax.enable_x64(True):
        config = dataclasses.replace(CONFIG, compute_dtype="float64")
        arrays = {
            name: jnp.asarray(array, jnp.float64) for name, array in model_arrays(lively_model(CONFIG)).items()
        }
        before = jax.tree.map(np.asarray, arrays)

        @jax.jit
        def loss(frames, sound):
            return mtd_jax.sync_loss(bind(config, arrays), frames, sound)

        point = frames[:, :, 48:].astype(np.float64), sound.astype(np.float64)
        gradients = jax.jit(jax.grad(loss, argnums=(0, 1)))(*point)
        rng = np.random.default_rng(2)
        for number, (x, gradient, step) in enumerate(zip(point, gradients, (1e-4, 1e-7), strict=True)):
            direction = rng.standard_normal(x.shape)
            sides = [
                loss(*(y + s * step * direction if i == number else y for i, y in enumerate(point)))
                for s in (1, -1)
            ]
            slope = float(sides[0] - sides[1]) / (2 * step)
            np.testing.assert_allclose(float(jnp.vdot(gradient, direction)), slope, rtol=1e-4)
            assert abs(slope) > 1e-6
        jax.tree.map(np.testing.assert_array_equal, before, arrays)


def test_in_bfloat16_the_loss_is_float32_and_silence_has_a_gradient(model, windows):
    frames, sound = windows
    half = bind(dataclasses.replace(CONFIG, compute_dtype="bfloat16"), model_arrays(model))
    loss, gradient = jax.jit(jax.value_and_grad(functools.partial(mtd_jax.sync_loss, half)))(
        frames.astype(np.float32), 0 * sound
    )
    assert loss.dtype == jnp.float32 and np.isfinite(gradient).all() and np.abs(gradient).max() > 0
    assert not np.abs(gradient[:, :, :48]).any()  # the upper halves are not seen
    whole = mtd_jax.sync_loss(model, frames, 0 * sound)
    np.testing.assert_allclose(loss, whole, rtol=0.05)
    silent = jax.grad(lambda heard: mtd_jax.sync_loss(model, frames, heard))(0 * sound)
    assert np.isfinite(silent).all()


def test_embeddings_are_the_prenets_tokens(model, windows):
    frames, sound = windows
    found = mtd_jax.embed(model, frames, sound)
    _, features = model(frames[:, :, 48:], mtd_jax.log_mel(sound)[:, :-1], return_features=True)
    assert_close(found.video, features.video_tokens, 1e-5)
    assert_close(found.audio, features.audio_tokens, 1e-5)
    assert found.video.shape[1] == T and found.audio.shape[1] == 16


def test_common_mistakes_are_named(model, windows):
    frames, sound = windows
    mel = mtd_jax.log_mel(sound)[:, :-1]
    with pytest.warns(UserWarning, match=r"expected 0 to 255, got 0.* to 1; multiply them by 255$"):
        mtd_jax.sync_loss(model, np.minimum(frames / 254, 1), sound)
    with pytest.warns(UserWarning, match=r"got -.* to .*; multiply them by 127.5, then add 127.5"):
        mtd_jax.sync_loss(model, frames / 127.5 - 1, sound)
    with pytest.warns(UserWarning, match="expected 0 to 255, got -.* to"):
        mtd_jax.sync_loss(model, frames.astype(np.float32) - 300, sound)
    with pytest.warns(UserWarning, match="more blue than red, .* expected RGB, not BGR"):
        mtd_jax.embed(model, frames[..., ::-1], sound)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        mtd_jax.embed(model, frames, sound)
    for wrong, message in (
        ((frames[:, :, :50], sound), r"frames: expected \(batch, T, 96, 96, 3\), or lower halves"),
        ((frames, np.swapaxes(mel, 1, 2)), r"sound: expected \(batch, 16, 80\), got .* swap the last two axes"),
        ((frames, mel[:, :-1]), r"sound: expected \(batch, 16, 80\) for windows of 5 frames"),
        ((frames, sound[:, :-1]), r"sound: expected a waveform \(batch, 3200\), 640 samples for each of 5 frames"),
        (
            (frames, 32768 * sound),
            r"expected finite float .*, got ±16\d.*; divide int16 values by 32768",
        ),
        ((frames, np.nan * sound), r"waveform: expected finite float in \[−1, 1\), got ±nan"),
        ((frames, np.where(mel == mel.max(), np.nan, mel)), "sound: expected a finite spectrogram"),
        ((frames, sound[:1]), "sound: expected as many windows as frames, 2, got 1"),
        ((frames[:0], sound[:0]), "frames: expected at least one window, got none"),
        ((np.where(frames == frames.max(), np.nan, frames), sound), "frames: expected finite numbers"),
        ((frames.tolist(), sound), "frames: expected an array, got list"),
        ((frames, sound.tolist()), "sound: expected an array, got list"),
    ):
        for use in (mtd_jax.sync_loss, mtd_jax.embed):
            with pytest.raises(ValueError, match=message):
                use(model, *wrong)
    with pytest.raises(ValueError, match="offset: expected a whole number of frames, got 1.5"):
        mtd_jax.sync_loss(model, frames, sound, offset=1.5)
    with pytest.raises(ValueError, match="expected a SyncModel, got str"):
        mtd_jax.embed("box", frames, sound)
    with pytest.raises(ValueError, match="640 samples for each of 5 frames and 2 more at both ends"):
        mtd_jax.sync_loss(model, frames, sound, offset=2)
    with pytest.raises(ValueError, match="an offset needs a waveform"):
        mtd_jax.sync_loss(model, frames, mel, offset=2)


def test_two_towers_guide_too(windows):
    frames, sound = windows
    towers = SyncModel(dataclasses.replace(CONFIG, fusion="none"), seed=0)
    gradient = jax.grad(lambda pixels: mtd_jax.sync_loss(towers, pixels, sound))(frames.astype(np.float32))
    assert np.isfinite(gradient).all() and np.abs(gradient).max() > 0
