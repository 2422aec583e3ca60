"""Detects shot cuts, where a frame differs sharply from the one before. Pure NumPy."""

from collections import deque

import numpy as np

_GRID = 12  # frames are compared as 12×12 patches, so that motion within a patch counts little
_SAMPLES = 8  # pixels sampled along each side of a patch
_MIN_CHANGE = 16.0  # grey levels per patch and channel, on average
_MIN_RATIO = 3.0  # times the largest change of the last frames
_MEMORY = 12  # frames


class CutDetector:
    """Finds the frames that start a new shot. Takes every frame of a video, in order.

    At a cut the patches change by at least 16 grey levels on average, and by at least three times as much as in
    any of the 12 frames before. Slow fades fail the first condition; shaky, noisy and flickering video fails the
    second.
    """

    def __init__(self) -> None:
        self._previous: np.ndarray | None = None
        self._changes: deque[float] = deque(maxlen=_MEMORY)

    def is_cut(self, frame: np.ndarray) -> bool:
        """Whether this uint8 (height, width, 3) frame starts a new shot."""
        patches = _patches(frame)
        if self._previous is None:
            self._previous = patches
            return False
        change = float(np.abs(patches - self._previous).mean())
        self._previous = patches
        cut = change >= _MIN_CHANGE and change >= _MIN_RATIO * max(self._changes, default=0.0)
        if cut:
            self._changes.clear()
        else:
            self._changes.append(change)
        return cut


def _patches(frame: np.ndarray) -> np.ndarray:
    """Mean colours, float32 (12, 12, 3), of a sparse sample of the pixels."""
    side = _GRID * _SAMPLES
    rows = np.linspace(0, frame.shape[0] - 1, side).astype(int)
    columns = np.linspace(0, frame.shape[1] - 1, side).astype(int)
    sample = frame[rows[:, None], columns].reshape(_GRID, _SAMPLES, _GRID, _SAMPLES, 3)
    return sample.mean(axis=(1, 3), dtype=np.float32)
