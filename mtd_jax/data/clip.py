"""The one record type of the data side, a talking face at 25 fps with 16 kHz audio, and where it comes from."""

import dataclasses
from typing import Protocol, runtime_checkable

import numpy as np
from absl import logging

from mtd_jax.errors import UserError

FPS = 25
SAMPLE_RATE = 16_000
SAMPLES_PER_FRAME = SAMPLE_RATE // FPS
FACE_SIZE = 96


class Sliceable(Protocol):
    """What `Clip` needs of its two tracks: a NumPy array fits, and so does a view that decodes on demand."""

    def __len__(self) -> int: ...

    def __getitem__(self, window: slice, /) -> np.ndarray: ...


@runtime_checkable
class JpegFrames(Sliceable, Protocol):
    """Frames that are stored as JPEGs, which `tfds_builder` copies as they are."""

    def encoded(self, number: int) -> bytes: ...


@dataclasses.dataclass(frozen=True)
class Clip:
    """One clip of one face.

    Attributes:
      name: unique within its source, for example `speaker/clip`.
      frames: slicing gives uint8 RGB (n, 48, 96, 3), the lower half of the face crop, 25 per second.
      waveform: slicing gives int16 (n,), mono at 16 kHz; frame f starts at sample 640·f.
      faces: where the source has them, the whole face crops that `frames` are the lower halves of: slicing gives
        uint8 RGB (n, 96, 96, 3).
    """

    name: str
    frames: Sliceable
    waveform: Sliceable
    faces: Sliceable | None = None

    @property
    def num_frames(self) -> int:
        """Frames that have audio."""
        return min(len(self.frames), len(self.waveform) // SAMPLES_PER_FRAME)


class ClipSource(Protocol):
    """Where clips come from: `sources.open_source` opens one. Picklable, for worker processes.

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


# Clips that cannot serve: readers and samplers raise `UnusableClip`, the pipeline skips it; sources list them.


class UnusableClip(Exception):
    """A single clip that cannot be read or drawn from: a fault of its data; the others may be fine.

    Attributes:
      name: the clip's name within its source.
      reason: what is wrong with it, in words.
    """

    def __init__(self, name: str, reason: str):
        super().__init__(name, reason)
        self.name = name
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.name}: {self.reason}"


def report_unusable(what: str, usable: int, listed: int, skipped: dict[str, list[str]]) -> None:
    """Logs the clips that a source leaves out, in one line.

    Args:
      what: the list, for people.
      usable, listed: how many clips.
      skipped: names by reason.

    Raises:
      UserError: none is usable.
    """
    reasons = "; ".join(f"{len(names)} {reason} (first: {names[0]})" for reason, names in sorted(skipped.items()))
    if not usable:
        raise UserError(f"{what}: none of its {listed} clips is usable: {reasons or 'the list is empty'}")
    if skipped:
        logging.warning("%s: %d of %d clips usable; skipped: %s", what, usable, listed, reasons)
