"""Draws training examples from a clip: windows of frames and audio, and labels that say which are in sync.

Pure functions of a NumPy generator and a clip. A window is T frames and their T·640 samples, and only windows with
complete frames and audio are drawn. A window is near-silent if the RMS of its audio is at most 0.01 of full scale;
such a window carries no information about sync.
"""

import dataclasses

import numpy as np

from mtd_jax.data.clip import SAMPLES_PER_FRAME, Clip, UnusableClip
from mtd_jax.errors import UserError

SILENCE_RMS = 0.01
_FULL_SCALE = 32768.0
_SILENT_WEIGHT = 1e-8  # of a near-silent window in a grid, relative to a loud one


@dataclasses.dataclass(frozen=True)
class Pairing:
    """How to draw a training example of G windows (frames, audio and labels) from a clip.

    Attributes:
      kind: "reference" (one pair, in sync with probability ½; G = 1) or "grid" (G windows of one clip, all frames
        paired with all audio).
      window_frames: T, frames per window.
      windows: G of a grid.
      min_gap: minimum distance between the starts of two windows of a clip, in frames.
      clips: how many clips the windows of a grid come from, equally many from each.

    Raises:
      UserError: an unknown kind, a number below 1, or windows that cannot be shared out.
    """

    kind: str
    window_frames: int = 5
    windows: int = 8
    min_gap: int = 1
    clips: int = 1

    def __post_init__(self) -> None:
        if self.kind not in ("reference", "grid"):
            raise UserError(f"pairing kind is {self.kind!r}; expected 'reference' or 'grid'")
        for field in ("window_frames", "windows", "min_gap", "clips"):
            if getattr(self, field) < 1:
                raise UserError(f"pairing {field} is {getattr(self, field)}; expected 1 or more")
        if self.windows_per_example % self.clips:
            raise UserError(
                f"pairing clips (data.clips_per_grid) is {self.clips}; expected a divisor of the "
                f"{self.windows_per_example} windows, which is 1 for reference pairs"
            )

    @property
    def windows_per_example(self) -> int:
        """G; 1 for reference pairs."""
        return self.windows if self.kind == "grid" else 1

    @property
    def min_frames(self) -> int:
        """The shortest clip, in frames, from which an example can be drawn."""
        if self.kind == "reference":
            return self.window_frames + 1
        return self.window_frames + (self.windows // self.clips - 1) * self.min_gap

    def draw(
        self, rng: np.random.Generator, clip: Clip, altered: Clip | None = None
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Draws an example, or its part of one clip if the windows come from several.

        Args:
          clip: decides which windows are drawn.
          altered: the same clip after augmentation, from which they are cut; None = `clip`. Its frames may be
            whole faces, (G, T, 96, 96, 3) in the result.

        Returns:
          uint8 frames (G, T, 48, 96, 3), int16 audio (G, T·640), float32 labels (G, G).

        Raises:
          UnusableClip: as `draw_reference` or `draw_grid`.
        """
        if self.kind == "grid":
            return draw_grid(rng, clip, self.window_frames, self.windows // self.clips, self.min_gap, altered)
        frames, audio, label = draw_reference(rng, clip, self.window_frames, altered)
        return frames[None], audio[None], np.full((1, 1), label, np.float32)


def draw_reference(
    rng: np.random.Generator, clip: Clip, window_frames: int, altered: Clip | None = None
) -> tuple[np.ndarray, np.ndarray, float]:
    """Draws a window and pairs it, with probability ½ each, with its own audio or that of another window.

    These are the pairs of VocaLiST and MTDVocaLiST (arXiv 2210.15563); see docs/method.md, section 4. The other
    window starts at any other frame of the clip. If the window's own audio is near-silent, the other one is not:
    two silent windows would be indistinguishable.

    Returns:
      uint8 frames (T, 48, 96, 3), int16 audio (T·640,), and the label: 1.0 in sync, 0.0 not.

    Raises:
      UnusableClip: the clip has fewer than two windows, or the drawn one and all others are near-silent.
    """
    starts = clip.num_frames - window_frames + 1
    if starts < 2:
        raise UnusableClip(clip.name, f"{clip.num_frames} frames, expected at least {window_frames + 1}")
    altered = altered or clip
    start = heard = int(rng.integers(starts))
    label = float(rng.random() < 0.5)
    if not label:
        if _rms(_window_audio(clip, start, window_frames)) > SILENCE_RMS:
            others = np.arange(starts)
        else:
            others = np.flatnonzero(window_rms(clip, window_frames) > SILENCE_RMS)
        others = others[others != start]
        if len(others) == 0:
            raise UnusableClip(clip.name, "near-silent throughout, so no pair can be recognized as out of sync")
        heard = int(rng.choice(others))
    return altered.frames[start : start + window_frames], _window_audio(altered, heard, window_frames), label


def draw_grid(
    rng: np.random.Generator,
    clip: Clip,
    window_frames: int,
    windows: int,
    min_gap: int,
    altered: Clip | None = None,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Draws G windows of one clip, in order of time, whose starts are at least `min_gap` frames apart.

    All sets of starts without near-silent windows are equally likely. If the clip has no such set, the drawn one
    has as few near-silent windows as possible. (Exceptions have odds of 1e-8 per window.)

    Returns:
      uint8 frames (G, T, 48, 96, 3), int16 audio (G, T·640), float32 labels (G, G), the identity matrix.

    Raises:
      UnusableClip: the clip is too short for G such windows.
    """
    loud = window_rms(clip, window_frames) > SILENCE_RMS
    starts = draw_spaced(rng, np.where(loud, 1.0, _SILENT_WEIGHT), windows, min_gap)
    if starts is None:
        needed = window_frames + (windows - 1) * min_gap
        raise UnusableClip(clip.name, f"{clip.num_frames} frames, expected at least {needed}")
    altered = altered or clip
    frames = np.stack([altered.frames[start : start + window_frames] for start in starts])
    audio = np.stack([_window_audio(altered, start, window_frames) for start in starts])
    return frames, audio, np.eye(windows, dtype=np.float32)


def draw_spaced(rng: np.random.Generator, weights: np.ndarray, count: int, min_gap: int) -> list[int] | None:
    """Draws a set of `count` indices at least `min_gap` apart, with odds equal to the product of its weights.

    Exact, and without rejection sampling. Dynamic programming from the last pick to the first gives the total
    weight of all continuations of each index; then each pick is drawn in proportion to that total.

    Args:
      rng: the only source of randomness.
      weights: (n,), positive.
      count: size of the set.
      min_gap: minimum distance between two indices.

    Returns:
      The indices in increasing order, or None if n is too small for any set.
    """
    size = len(weights)
    if size < 1 + (count - 1) * min_gap:
        return None
    totals = [np.asarray(weights, np.float64)]  # totals[k][i]: all sets of k + 1 indices that start with i
    for _ in range(count - 1):
        ways = np.cumsum(totals[-1][::-1])[::-1]  # ways[i]: all sets that start at i or later
        total = np.zeros(size)
        total[: size - min_gap] = weights[: size - min_gap] * ways[min_gap:]
        totals.append(total / total.max())  # scaled against underflow; only proportions within a row matter
    picks: list[int] = []
    first = 0
    for total in reversed(totals):
        odds = total[first:]
        picks.append(first + int(rng.choice(len(odds), p=odds / odds.sum())))
        first = picks[-1] + min_gap
    return picks


def window_rms(clip: Clip, window_frames: int) -> np.ndarray:
    """RMS of the audio of every window of a clip, relative to full scale: float64 (number of window starts,)."""
    audio = clip.waveform[: clip.num_frames * SAMPLES_PER_FRAME].astype(np.float64) / _FULL_SCALE
    energy = np.square(audio).reshape(-1, SAMPLES_PER_FRAME).mean(axis=1)
    if len(energy) < window_frames:
        return np.zeros(0)
    windows = np.lib.stride_tricks.sliding_window_view(energy, window_frames)
    return np.sqrt(windows.mean(axis=1))


def _window_audio(clip: Clip, start: int, window_frames: int) -> np.ndarray:
    return clip.waveform[start * SAMPLES_PER_FRAME : (start + window_frames) * SAMPLES_PER_FRAME]


def _rms(samples: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.square(samples / _FULL_SCALE))))
