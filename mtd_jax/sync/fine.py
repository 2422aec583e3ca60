"""The offset finer than a frame: mel columns are 12.5 ms apart, and between them a parabola tells."""

from collections.abc import Callable, Iterable
from typing import NamedTuple

import numpy as np

from mtd_jax.data.clip import FPS, SAMPLE_RATE, SAMPLES_PER_FRAME
from mtd_jax.network.mel import HOP, N_FFT
from mtd_jax.scoring import Scorer, mel_steps

REACH = 6  # columns to either side of the best frame: 75 ms
MOST = 60  # windows; more make it hardly finer
_SIDE = 2  # columns to either side of the best one that the parabola is laid through
_FEWEST = 8  # windows that can be fine at all


class Voice(NamedTuple):
    """A window in which somebody speaks.

    Attributes:
      start: its first frame in the film.
      vote: what it says for the best offset.
      tokens: (T, width), of its frames.
      samples: (first frame, frames) → audio of the film, with N_FFT / 2 more samples on both sides.
    """

    start: int
    vote: float
    tokens: np.ndarray
    samples: Callable[[int, int], np.ndarray]


class Fine(NamedTuple):
    """An offset in seconds (positive = the audio is early), and its standard error."""

    seconds: float
    error_seconds: float


def fine_offset(scorer: Scorer, voices: Iterable[Voice], offset_frames: int) -> Fine | None:
    """The offset near a whole number of frames; None if there is too little to tell, or no peak there."""
    chosen = sorted(voices, key=lambda voice: voice.vote, reverse=True)[:MOST]
    if len(chosen) < _FEWEST:
        return None
    window = scorer.config.window_frames
    length = (mel_steps(window) + 2 * REACH - 1) * HOP + N_FFT
    audio = []
    for voice in chosen:
        # A frame more before it, as the columns begin within a frame.
        around = voice.samples(voice.start - offset_frames - 2, window + 6)
        first = 2 * SAMPLES_PER_FRAME - REACH * HOP
        audio.append(around[first : first + length])
    scores = scorer.compare_columns(np.stack([voice.tokens for voice in chosen]), np.stack(audio))
    columns = _peak(scores.mean(axis=0))
    if columns is None:
        return None
    # Leave one window out at a time (jackknife).
    total, count = scores.sum(axis=0), len(scores)
    others = [_peak((total - row) / (count - 1)) for row in scores]
    found = np.array([columns if other is None else other for other in others])
    error = np.sqrt((count - 1) * np.mean((found - found.mean()) ** 2))
    step = HOP / SAMPLE_RATE
    # Later audio fits at a later column: the audio is less early.
    return Fine(offset_frames / FPS - (columns - REACH) * step, float(error) * step)


def _peak(curve: np.ndarray) -> float | None:
    """Where a curve is highest, between its points; None if that is at its ends."""
    best = int(np.argmax(curve))
    if not _SIDE <= best < len(curve) - _SIDE:
        return None
    around = np.arange(best - _SIDE, best + _SIDE + 1)
    square, slope, _ = np.polyfit(around - best, curve[around], 2)
    if square >= 0:
        return None
    return best + float(np.clip(-slope / (2 * square), -_SIDE, _SIDE))
