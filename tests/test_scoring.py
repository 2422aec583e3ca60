"""Scoring against the reference values, against scoring pair by pair, and its invariances."""

import jax
import numpy as np
import pytest

from mtd_jax import scoring
from mtd_jax.network.mel import log_mel
from mtd_jax.network.model import ModelConfig, SyncModel
from tests.helpers.golden_models import STUDENT, golden, recipe_model

CONTEXTS = (5, 7, 9, 11, 13, 15)


@pytest.fixture(scope="module")
def tiny():
    return SyncModel(ModelConfig.tiny(num_layers=1), seed=0)


def make_clip(seed, frames):
    rng = np.random.default_rng(seed)
    return (
        rng.integers(0, 256, (frames, 48, 96, 3), dtype=np.uint8),
        rng.integers(-20_000, 20_000, frames * 640).astype(np.int16),
    )


def test_clip_scores_match_the_reference():
    reference = golden("clip_scores_student.npz")
    scores = scoring.score_clip(recipe_model(STUDENT, 1), reference["frames"], reference["waveform"])
    expected = reference["scores"]
    assert scores.shape == expected.shape
    outside = expected == scoring.OUT_OF_CLIP
    np.testing.assert_array_equal(scores == scoring.OUT_OF_CLIP, outside)
    assert np.abs(scores - expected)[~outside].max() <= 1e-4 * np.abs(expected[~outside]).max()


@pytest.mark.parametrize("windows", [12, 19, 40, 75])
def test_context_accuracy_matches_the_reference(windows):
    reference = golden("context_accuracy.npz")
    accuracy = [scoring.context_accuracy(reference[f"scores_{windows}"], k) for k in CONTEXTS]
    np.testing.assert_allclose(accuracy, reference[f"accuracy_{windows}"], rtol=1e-12)


@pytest.mark.parametrize("frames", [6, 31, 56, 90])
def test_scores_equal_the_model_run_on_each_pair(tiny, frames):
    """Across chunk borders and at both ends; for each pair the encoders run again."""
    video, wave = make_clip(frames, frames)
    count = frames - 5
    scores = scoring.score_clip(tiny, video, wave, reference_edges=False)
    assert scores.shape == (count, 31)
    mel = np.asarray(log_mel(wave))
    run = jax.jit(tiny)
    rng = np.random.default_rng(0)
    i = np.concatenate([[0, count - 1], rng.integers(0, count, 30)])
    j = np.clip(i + np.concatenate([[0, 0], rng.integers(-15, 16, 30)]), 0, count - 1)
    windows = np.stack([video[k : k + 5] for k in i])
    columns = np.stack([mel[int(3.2 * k) : int(3.2 * k) + 16] for k in j])
    np.testing.assert_allclose(scores[i, j - i + 15], run(windows, columns), atol=2e-4)
    audio_window = np.arange(count)[:, None] + np.arange(-15, 16)
    outside = (audio_window < 0) | (audio_window >= count)
    np.testing.assert_array_equal(scores == scoring.OUT_OF_CLIP, outside)


def test_reference_edges_differ_only_where_documented(tiny):
    video, wave = make_clip(1, 25)
    published = scoring.score_clip(tiny, video, wave)
    plain = scoring.score_clip(tiny, video, wave, reference_edges=False)
    audio_window = np.arange(20)[:, None] + np.arange(-15, 16)
    quirk = (audio_window >= 20) & (np.arange(20) < 15)[:, None]
    np.testing.assert_array_equal(published != plain, quirk)


def test_shifting_the_audio_moves_the_score_map(tiny):
    video, wave = make_clip(2, 60)
    base = scoring.score_clip(tiny, video, wave, reference_edges=False)
    rows = slice(20, 35)  # far from both ends, where the roll wraps around
    columns = np.arange(8, 22)
    # By multiples of 5 frames, which are whole mel columns: other shifts change the rounding of int(3.2·f).
    for shift in (-5, 5):
        moved = scoring.score_clip(tiny, video, np.roll(wave, shift * 640), reference_edges=False)
        np.testing.assert_allclose(moved[rows, columns + shift], base[rows, columns], atol=2e-4)
        assert np.abs(moved[rows, columns] - base[rows, columns]).max() > 1e-2


def test_lengths_compile_nothing_new(tiny):
    programs = (scoring._encode_frames, scoring._encode_audio, scoring._score_chunk, scoring._encode_zero_mel)
    scoring.score_clip(tiny, *make_clip(3, 20))
    before = [program._cache_size() for program in programs]
    for frames in (7, 33, 121):
        scoring.score_clip(tiny, *make_clip(3, frames))
    assert before == [program._cache_size() for program in programs]


def test_int16_and_float_waveforms_score_alike(tiny):
    video, wave = make_clip(4, 20)
    np.testing.assert_allclose(
        scoring.score_clip(tiny, video, wave), scoring.score_clip(tiny, video, wave / np.float32(32768)), atol=1e-4
    )


def test_offset_sign_positive_is_early_audio():
    """Audio that is early by 3 frames: window i matches the audio of window i − 3."""
    scores = np.zeros((40, 31), np.float32)
    scores[:, 15 - 3] = 5
    assert (scoring.window_offsets(scores, 5) == 3).all()


@pytest.mark.parametrize(
    "frames, wave, message",
    [
        (np.zeros((5, 48, 96, 3), np.uint8), np.zeros(5 * 640, np.int16), "at least 6 frames"),
        (np.zeros((50, 48, 96, 3), np.uint8), np.zeros(640, np.int16), "at least 6 frames"),
        (np.zeros((50, 96, 96, 3), np.uint8), np.zeros(50 * 640, np.int16), "48, 96, 3"),
        (np.zeros((50, 48, 96, 3), np.uint8), np.zeros((50 * 640, 2), np.int16), "mono"),
        (np.zeros((50, 48, 96, 3), np.uint8), np.full(50 * 640, np.nan), "finite"),
        (np.zeros((50, 48, 96, 3), np.uint8), np.zeros(50 * 640, np.int32), "int16"),
        (np.zeros((50, 48, 96, 3), np.uint8), np.zeros(50 * 640, np.longdouble), "float"),
    ],
)
def test_unusable_clips_are_refused(tiny, frames, wave, message):
    with pytest.raises(ValueError, match=message):
        scoring.score_clip(tiny, frames, wave)


@pytest.mark.parametrize("shift", [-1, 1.5, 2.0])
def test_shifts_are_whole_frames(tiny, shift):
    with pytest.raises(ValueError, match=f"whole number, 0 or more, got {shift}"):
        scoring.score_clip(tiny, np.zeros((50, 48, 96, 3), np.uint8), np.zeros(50 * 640), max_shift=shift)


def test_a_scorer_keeps_the_weights_it_was_made_with():
    model = SyncModel(ModelConfig.tiny(num_layers=1), seed=0)
    scorer, clip = scoring.Scorer(model), make_clip(3, 20)
    before = scorer(*clip)
    model.classifier.bias[...] += 4
    np.testing.assert_array_equal(scorer(*clip), before)
    inside = before > scoring.OUT_OF_CLIP
    np.testing.assert_allclose(scoring.score_clip(model, *clip)[inside], before[inside] + 4, atol=1e-4)


def test_a_scorer_computes_on_its_device(tiny):
    device = jax.local_devices()[-1]
    scorer = scoring.Scorer(tiny, device)
    assert all(array.devices() == {device} for array in jax.tree.leaves(scorer.weights))
    np.testing.assert_allclose(scorer(*make_clip(3, 20)), scoring.score_clip(tiny, *make_clip(3, 20)), atol=1e-5)
