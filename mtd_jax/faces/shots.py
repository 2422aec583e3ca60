"""Detects shot cuts, where a frame differs sharply from the one before. Pure NumPy."""

from collections import deque

import numpy as np

SIDE = 96  # pixels of a sample of a frame
_GRID = 12  # frames are compared as 12×12 patches, so that motion within a patch counts little
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

    def is_cut(self, sample: np.ndarray) -> bool:
        """Whether a frame starts a new shot. Args: sample: of its pixels, uint8 (SIDE, SIDE, 3) RGB."""
        size = SIDE // _GRID
        patches = sample.reshape(_GRID, size, _GRID, size, 3).mean(axis=(1, 3), dtype=np.float32)
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
