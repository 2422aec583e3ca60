"""The one record type of the data side, a talking face at 25 fps with 16 kHz audio, and where it comes from."""

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


class ClipSource(Protocol):
    """Where clips come from: `source.open_source` opens one. Picklable, for worker processes.

    Attributes:
      list_path: the list or the split, in words for people.
      skipped: names of the listed clips that cannot be used, by reason.
      encoding: empty, or what was done to the pixels of the files; part of the clips' checksum, so that no
        training resumes with other pixels unnoticed.
    """

    list_path: str
    skipped: dict[str, list[str]]
    encoding: str

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Clip: ...
