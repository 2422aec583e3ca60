"""The one record type of the data side: a talking face at 25 fps with its sound at 16 kHz."""

import dataclasses
from typing import Protocol

import numpy as np

FPS = 25
SAMPLE_RATE = 16_000
SAMPLES_PER_FRAME = SAMPLE_RATE // FPS
FACE_SIZE = 96


class Sliceable(Protocol):
    """What `Clip` needs of its two tracks: a NumPy array fits, and so does a view that decodes on demand."""

    def __len__(self) -> int: ...

    def __getitem__(self, window: slice) -> np.ndarray: ...


@dataclasses.dataclass(frozen=True)
class Clip:
    """One clip of one face.

    Attributes:
      name: unique within its source, for example `speaker/clip`.
      frames: slicing gives uint8 RGB (n, 48, 96, 3), the lower half of the face crop, 25 per second.
      waveform: slicing gives int16 (n,), mono at 16 kHz; frame f starts at sample 640·f.
    """

    name: str
    frames: Sliceable
    waveform: Sliceable

    @property
    def num_frames(self) -> int:
        """Frames that have both picture and sound."""
        return min(len(self.frames), len(self.waveform) // SAMPLES_PER_FRAME)
