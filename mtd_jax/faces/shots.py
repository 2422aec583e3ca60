"""Shot cuts: frames that look nothing like the one before. Pure NumPy."""

from collections import deque

import numpy as np

_GRID = 12  # the picture is compared as 12×12 patches, so that motion within one counts little
_SAMPLES = 8  # pixels along each side of a patch that are looked at
_MIN_CHANGE = 16.0  # grey levels per patch and channel, on average
_MIN_RATIO = 3.0  # and so many times the largest change of the last frames
_MEMORY = 12  # frames


class CutDetector:
    """Feed it every frame in order; it tells the frames with which a new shot starts.

    A cut changes the picture's patches by 16 grey levels or more on average, and three times as much as any of
    the 12 frames before it did. So shaky, noisy or flickering pictures don't count, nor does a slow fade.
    """

    def __init__(self):
        self._previous: np.ndarray | None = None
        self._changes: deque[float] = deque(maxlen=_MEMORY)

    def is_cut(self, frame: np.ndarray) -> bool:
        """Whether a new shot starts with this uint8 (height, width, 3) frame."""
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
    """Mean colours float32 (12, 12, 3), from a sparse sample of the pixels."""
    side = _GRID * _SAMPLES
    rows = np.linspace(0, frame.shape[0] - 1, side).astype(int)
    columns = np.linspace(0, frame.shape[1] - 1, side).astype(int)
    sample = frame[rows[:, None], columns].reshape(_GRID, _SAMPLES, _GRID, _SAMPLES, 3)
    return sample.mean(axis=(1, 3), dtype=np.float32)
