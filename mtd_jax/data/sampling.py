"""Training examples from one clip: windows of picture and sound and whether they belong together.

Pure functions of a NumPy generator and a clip. A window is T frames and its T·640 samples; only windows that
have both picture and sound in full are drawn. A window whose sound has an RMS of at most 0.01 (full scale 1)
is near-silent: it says nothing about synchrony.
"""

import dataclasses

import numpy as np

from mtd_jax.data.clip import SAMPLES_PER_FRAME, Clip, UnusableClip
from mtd_jax.errors import UserError

SILENCE_RMS = 0.01
_FULL_SCALE = 32768.0
_SILENT_WEIGHT = 1e-8  # one near-silent window in a grid counts as much as this share of a loud one


@dataclasses.dataclass(frozen=True)
class Pairing:
    """How a clip becomes a training example of G windows: frames, audio and labels.

    Attributes:
      kind: "reference" (one pair, in sync with probability ½; G = 1) or "grid" (G windows of one clip, every
        picture against every sound).
      window_frames: T, frames per window.
      windows: G of a grid.
      min_gap: of a grid, frames between the starts of two windows at least.
    """

    kind: str
    window_frames: int = 5
    windows: int = 8
    min_gap: int = 1

    def __post_init__(self):
        if self.kind not in ("reference", "grid"):
            raise UserError(f"pairing kind is {self.kind!r}; expected 'reference' or 'grid'")
        for field in ("window_frames", "windows", "min_gap"):
            if getattr(self, field) < 1:
                raise UserError(f"pairing {field} is {getattr(self, field)}; expected 1 or more")

    @property
    def windows_per_example(self) -> int:
        """G: 1 for reference pairs."""
        return self.windows if self.kind == "grid" else 1

    @property
    def min_frames(self) -> int:
        """The shortest clip, in frames, from which an example can be drawn."""
        if self.kind == "reference":
            return self.window_frames + 1
        return self.window_frames + (self.windows - 1) * self.min_gap

    def draw(self, rng: np.random.Generator, clip: Clip) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """uint8 frames (G, T, 48, 96, 3), int16 audio (G, T·640), float32 labels (G, G)."""
        if self.kind == "grid":
            return draw_grid(rng, clip, self.window_frames, self.windows, self.min_gap)
        frames, audio, label = draw_reference(rng, clip, self.window_frames)
        return frames[None], audio[None], np.full((1, 1), label, np.float32)


def draw_reference(
    rng: np.random.Generator, clip: Clip, window_frames: int
) -> tuple[np.ndarray, np.ndarray, float]:
    """One window and, with probability ½, its own sound; else that of another window of the clip.

    The pairs of VocaLiST and MTDVocaLiST (arXiv 2210.15563). The other window starts at any other frame;
    where the true sound is near-silent the other one is not, or the two could not be told apart.

    Returns:
      uint8 frames (T, 48, 96, 3), int16 audio (T·640,), and the label: 1.0 in sync, 0.0 not.

    Raises:
      UnusableClip: the clip has no two windows, or the drawn one is near-silent and so is every other.
    """
    starts = clip.num_frames - window_frames + 1
    if starts < 2:
        raise UnusableClip(clip.name, f"{clip.num_frames} frames, expected at least {window_frames + 1}")
    start = int(rng.integers(starts))
    audio = _window_audio(clip, start, window_frames)
    label = float(rng.random() < 0.5)
    if not label:
        if _rms(audio) > SILENCE_RMS:
            others = np.arange(starts)
        else:
            others = np.flatnonzero(window_rms(clip, window_frames) > SILENCE_RMS)
        others = others[others != start]
        if len(others) == 0:
            raise UnusableClip(clip.name, "near-silent throughout, no pair out of sync can be told")
        audio = _window_audio(clip, int(rng.choice(others)), window_frames)
    return clip.frames[start : start + window_frames], audio, label


def draw_grid(
    rng: np.random.Generator, clip: Clip, window_frames: int, windows: int, min_gap: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """G windows of one clip whose starts lie at least `min_gap` frames apart, in order of time.

    Every set of starts without near-silent windows is equally likely. Where the clip has no such set, the
    drawn one has as few near-silent windows as it can (up to odds of 1e-8 per window).

    Returns:
      uint8 frames (G, T, 48, 96, 3), int16 audio (G, T·640), float32 labels = eye(G).

    Raises:
      UnusableClip: the clip is too short for G such windows.
    """
    loud = window_rms(clip, window_frames) > SILENCE_RMS
    starts = draw_spaced(rng, np.where(loud, 1.0, _SILENT_WEIGHT), windows, min_gap)
    if starts is None:
        needed = window_frames + (windows - 1) * min_gap
        raise UnusableClip(clip.name, f"{clip.num_frames} frames, expected at least {needed}")
    frames = np.stack([clip.frames[start : start + window_frames] for start in starts])
    audio = np.stack([_window_audio(clip, start, window_frames) for start in starts])
    return frames, audio, np.eye(windows, dtype=np.float32)


def draw_spaced(rng: np.random.Generator, weights: np.ndarray, count: int, min_gap: int) -> list[int] | None:
    """Draws `count` indices at least `min_gap` apart, a set with odds of the product of its weights.

    Exact and without rejection: first the total weight of every way to continue from each index, by dynamic
    programming from the last pick to the first; then the picks, each in proportion to what it leads to.

    Args:
      weights: (n,), positive.

    Returns:
      The indices in rising order, or None when n is too small for any set.
    """
    size = len(weights)
    if size < 1 + (count - 1) * min_gap:
        return None
    totals = [np.asarray(weights, np.float64)]  # totals[k][i]: all ways to pick k + 1 indices, i the first
    for _ in range(count - 1):
        ways = np.cumsum(totals[-1][::-1])[::-1]  # from i on
        total = np.zeros(size)
        total[: size - min_gap] = weights[: size - min_gap] * ways[min_gap:]
        totals.append(total / total.max())  # only proportions within a row matter; no underflow
    picks, first = [], 0
    for total in reversed(totals):
        odds = total[first:]
        picks.append(first + int(rng.choice(len(odds), p=odds / odds.sum())))
        first = picks[-1] + min_gap
    return picks


def window_rms(clip: Clip, window_frames: int) -> np.ndarray:
    """RMS of the sound of every window of a clip, full scale 1: float64 (number of window starts,)."""
    sound = clip.waveform[: clip.num_frames * SAMPLES_PER_FRAME].astype(np.float64) / _FULL_SCALE
    energy = np.square(sound).reshape(-1, SAMPLES_PER_FRAME).mean(axis=1)
    if len(energy) < window_frames:
        return np.zeros(0)
    windows = np.lib.stride_tricks.sliding_window_view(energy, window_frames)
    return np.sqrt(windows.mean(axis=1))


def _window_audio(clip: Clip, start: int, window_frames: int) -> np.ndarray:
    return clip.waveform[start * SAMPLES_PER_FRAME : (start + window_frames) * SAMPLES_PER_FRAME]


def _rms(samples: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.square(samples / _FULL_SCALE))))
