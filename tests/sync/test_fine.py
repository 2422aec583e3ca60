"""Offsets finer than a frame, from made-up curves and from sound that moves by less than a frame."""

import numpy as np
import pytest

from mtd_jax.network.mel import N_FFT
from mtd_jax.network.model import SyncModel
from mtd_jax.scoring import Scorer
from mtd_jax.sync.fine import Voice, fine_offset
from tests.helpers.configs import STUDENT
from tests.helpers.videos import noise


class Curves:
    """A scorer whose best column is known, with noise."""

    def __init__(self, column, spread=0.0):
        self.config, self.column, self.spread = STUDENT, column, spread

    def compare_columns(self, video, samples):
        rng = np.random.default_rng(0)
        return -np.square(np.arange(13) - self.column) + self.spread * rng.normal(size=(len(video), 13))


def voices(count):
    return [
        Voice(5 * i, 1.0, np.zeros((5, 8)), lambda first, frames: np.zeros(640 * frames + N_FFT))
        for i in range(count)
    ]


@pytest.mark.parametrize("column", [4.0, 5.6, 6.0, 7.3])
def test_the_peak_is_found_between_columns(column):
    found = fine_offset(Curves(column), voices(20), 3)
    assert found.seconds == pytest.approx(0.12 - (column - 6) * 0.0125)
    assert found.error_seconds == pytest.approx(0, abs=1e-9)


def test_the_error_is_that_of_repeated_measurements():
    found = [fine_offset(Curves(6.0, spread=4.0), voices(n), 0) for n in (16, 60)]
    assert found[0].error_seconds > found[1].error_seconds > 0
    assert abs(found[1].seconds) < 4 * found[1].error_seconds


@pytest.mark.parametrize("column, count", [(6.0, 3), (0.0, 20), (12.5, 20)])
def test_too_little_or_no_peak_is_no_answer(column, count):
    assert fine_offset(Curves(column), voices(count), 0) is None


def test_columns_are_those_of_the_sound():
    """Each column against the model on the audio that begins there."""
    scorer = Scorer(SyncModel(STUDENT, seed=0))
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 256, (5 * 7 + 5, 48, 96, 3), np.uint8)
    sound = noise(4.0)
    samples = np.stack([sound[640 * 5 * i : 640 * 5 * i + (16 + 12 - 1) * 200 + N_FFT] for i in range(8)])
    video = scorer.scan(frames, sound, max_shift=2, every=5).video
    found = scorer.compare_columns(video, samples)
    assert found.shape == (8, 13)
    for column in (0, 7, 12):
        moved = np.concatenate([np.zeros(640 * 5, np.int16), sound[200 * column :]])  # the lead of max_shift=2
        expected = scorer.scan(frames, moved, max_shift=2, every=5).scores[:, 2]
        np.testing.assert_allclose(found[:, column], expected, atol=1e-4)
