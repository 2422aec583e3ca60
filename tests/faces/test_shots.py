"""Shot cuts: found where the picture changes at once, and nowhere else."""

import cv2
import numpy as np
import pytest

from mtd_jax.faces.shots import SIDE, CutDetector
from mtd_jax.synthetic.clips import portrait, record


@pytest.fixture(scope="module")
def shots():
    return [portrait(record(0, speaker, 0, 1.0))[0] for speaker in (0, 1)]


def cuts(frames):
    detector = CutDetector()
    return [number for number, frame in enumerate(frames) if detector.is_cut(sample(frame))]


def sample(frame):
    return cv2.resize(frame, (SIDE, SIDE), interpolation=cv2.INTER_NEAREST)


def test_a_cut_is_its_first_frame(shots):
    a, b = shots
    film = np.concatenate([a[:10], 255 - b[:12], a[10:20]])
    assert cuts(film) == [10, 22]


def test_a_cut_between_shots_with_repeated_frames(shots):
    a, b = shots
    assert cuts(np.repeat(np.concatenate([a[:6], 255 - b[:6]]), 2, axis=0)) == [12]


def test_talking_faces_have_no_cuts(shots):
    for shot in shots:
        assert cuts(shot) == []


def test_noise_and_flicker_have_no_cuts(shots):
    rng = np.random.default_rng(0)
    assert cuts(rng.integers(0, 256, (30, 90, 120, 3), dtype=np.uint8)) == []
    flicker = 1 - 0.12 * (np.arange(25) % 2)
    assert cuts([(frame * level).astype(np.uint8) for frame, level in zip(shots[0], flicker, strict=True)]) == []


def test_a_fade_and_a_pan_have_no_cuts(shots):
    a, b = shots[0][0].astype(float), 255.0 - shots[1][0]
    assert cuts([(a + (b - a) * step / 24).astype(np.uint8) for step in range(25)]) == []
    wide = np.concatenate([shots[0][0], shots[1][0]], axis=1)
    assert cuts([wide[:, 10 * step : 10 * step + 256] for step in range(25)]) == []


def test_small_pictures():
    assert cuts(np.zeros((3, 5, 7, 3), np.uint8)) == []
