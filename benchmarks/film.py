"""Films of any length for the benchmarks."""

from pathlib import Path

import cv2
import numpy as np

from mtd_jax.data.clip import FPS
from mtd_jax.synthetic.clips import portrait, record
from mtd_jax.video.write import write_mp4

_LOOP = 60.0  # seconds of a speaker that a longer film repeats


class Film:
    """A portrait in the middle of a wide picture, repeated; an array to `write_mp4`, made a picture at a time."""

    dtype, ndim = np.dtype(np.uint8), 4

    def __init__(self, portraits, count: int, height: int):
        self.portraits = portraits
        self.shape = (count, height, height * 16 // 9 // 2 * 2, 3)

    def __len__(self):
        return self.shape[0]

    def __iter__(self):
        count, height, width, _ = self.shape
        for number in range(count):
            picture = np.full((height, width, 3), 90, np.uint8)
            left = (width - height) // 2
            face = cv2.resize(self.portraits[number % len(self.portraits)], (height, height))
            picture[:, left : left + height] = face
            yield picture


def film(folder: Path, seconds: float, height: int) -> Path:
    """Films a synthetic speaker for so long, `height` pixels high and 16:9; returns the file."""
    path, count = folder / f"{seconds:g} s.mp4", round(seconds * FPS)
    recording = record(0, 300_000, 0, min(seconds, _LOOP))
    repeats = -(-count // len(recording.visemes))
    write_mp4(path, Film(portrait(recording)[0], count, height), np.tile(recording.waveform, repeats))
    return path
