"""A `Clip` as a folder of JPEGs and a WAV file: its index, and tracks of which a slice reads only its part."""

import dataclasses
import os
import re
from collections.abc import Iterable
from pathlib import Path

import cv2
import numpy as np
import simplejpeg
import soundfile

from mtd_jax.data.clip import FACE_SIZE, SAMPLE_RATE, SAMPLES_PER_FRAME, UnusableClip
from mtd_jax.errors import one_line

GAP = "with a gap in the numbering of the frames"
_FRAME_FILE = re.compile(r"(0|[1-9]\d*)\.jpg")
_HALF_SHAPE = (FACE_SIZE // 2, FACE_SIZE, 3)


@dataclasses.dataclass(frozen=True)
class FrameFolder:
    """The faces of `directory/{first,first+1,…}.jpg`. A slice decodes only the files that it covers.

    Slicing gives uint8 RGB (n, 48, 96, 3), the lower halves, or whole faces (n, 96, 96, 3), and raises
    `UnusableClip` if a file is missing or damaged.

    Attributes:
      name: the clip's name, for error messages.
      directory: contains the JPEGs, one face crop each, of any size.
      count: number of JPEGs.
      first: number of the first JPEG.
      whole: gives whole faces.
    """

    name: str
    directory: str
    count: int
    first: int = 0
    whole: bool = False

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, window: slice) -> np.ndarray:
        numbers = range(*window.indices(self.count))
        decode = decode_faces if self.whole else decode_lower_faces
        return decode(map(self.encoded, numbers), self.name, map(self._file, numbers))

    def _file(self, number: int) -> str:
        return f"{self.first + number}.jpg"

    def encoded(self, number: int) -> bytes:
        """The JPEG of frame `number`, counted from 0.

        Raises:
          UnusableClip: the file cannot be read.
        """
        file = self._file(number)
        try:
            return Path(self.directory, file).read_bytes()
        except OSError as error:
            raise UnusableClip(self.name, f"{file} cannot be read ({one_line(error)})") from error


@dataclasses.dataclass(frozen=True)
class WaveformFile:
    """A 16 kHz mono WAV file. A slice reads only the samples that it covers.

    Slicing gives int16 (n,) and raises `UnusableClip` if the file is damaged or has another format.

    Attributes:
      name: the clip's name, for error messages.
      path: the WAV file.
      count: number of samples.
    """

    name: str
    path: str
    count: int

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, window: slice) -> np.ndarray:
        start, stop, step = window.indices(self.count)
        if step != 1:
            raise ValueError(f"{self.name}: a waveform must be sliced with step 1, got {step}")
        wanted = max(stop - start, 0)
        try:
            with soundfile.SoundFile(self.path) as file:
                check_format(self.name, file)
                file.seek(start)
                # libsndfile rounds float samples to int16 without scaling, which leaves only 0 and ±1.
                is_float = file.subtype in ("FLOAT", "DOUBLE")
                samples = file.read(wanted, dtype="float32" if is_float else "int16")
        except (OSError, soundfile.SoundFileError) as error:
            raise UnusableClip(self.name, f"the audio cannot be read ({one_line(error)})") from error
        if len(samples) != wanted:
            raise UnusableClip(self.name, f"the audio ends before sample {stop}")
        if is_float:
            samples = np.clip(np.rint(samples * 32768), -32768, 32767).astype(np.int16)
        return samples


def index_files(files: Iterable[str], audio: str | os.PathLike, min_frames: int) -> tuple[int, int, int] | str:
    """What a clip holds, from names and the header of its WAV file, without decoding images or audio.

    Args:
      files: names in its folder of JPEGs.
      audio: path of its WAV file.
      min_frames: clips with fewer frames that have both image and audio cannot be used.

    Returns:
      (number of the first JPEG, JPEGs, samples), or the reason why it cannot be used.
    """
    files = list(files)
    numbers = [int(match[1]) for name in files if (match := _FRAME_FILE.fullmatch(name))]
    others = sorted(name for name in files if name.lower().endswith((".jpg", ".jpeg", ".png")))
    if not numbers and others:
        return f"with images named like {others[0]}, not 0.jpg, 1.jpg, …"
    first = min(numbers, default=0)
    if len(numbers) != max(numbers, default=-1) + 1 - first:
        return GAP
    if not os.path.exists(audio):
        return "without audio"
    try:
        with soundfile.SoundFile(audio) as file:
            check_format(os.fspath(audio), file)
            samples = file.frames
    except UnusableClip as error:
        return f"where {error.reason}"
    except (OSError, soundfile.SoundFileError):
        return "with unreadable audio"
    if min(len(numbers), samples // SAMPLES_PER_FRAME) < min_frames:
        return f"with fewer than {min_frames} frames"
    return first, len(numbers), samples


def decode_lower_faces(
    encoded: Iterable[bytes], clip: str, labels: Iterable[str], *, are_halves: bool = False
) -> np.ndarray:
    """Decodes n JPEGs.

    Args:
      encoded: JPEGs of face crops of any size.
      clip: the clip's name, for error messages.
      labels: a name for each JPEG, for error messages.
      are_halves: the JPEGs are already the lower halves, 48×96.

    Returns:
      uint8 RGB (n, 48, 96, 3).

    Raises:
      UnusableClip: a JPEG is damaged.
    """
    encoded = list(encoded)
    halves = np.empty((len(encoded), *_HALF_SHAPE), np.uint8)
    scratch = np.empty((FACE_SIZE, FACE_SIZE, 3), np.uint8)
    for half, data, label in zip(halves, encoded, labels, strict=True):
        try:
            if are_halves:
                decoded = simplejpeg.decode_jpeg(data, colorspace="RGB", buffer=half)
                if decoded.shape != _HALF_SHAPE:
                    raise ValueError(f"{decoded.shape}, expected {_HALF_SHAPE}")
            else:
                half[:] = decode_lower_face(data, scratch)
        except ValueError as error:
            raise UnusableClip(clip, f"{label} cannot be read ({one_line(error)})") from error
    return halves


def decode_faces(encoded: Iterable[bytes], clip: str, labels: Iterable[str]) -> np.ndarray:
    """As `decode_lower_faces`, but whole faces: uint8 RGB (n, 96, 96, 3)."""
    faces = []
    for data, label in zip(encoded, labels, strict=True):
        try:
            faces.append(whole_face(simplejpeg.decode_jpeg(data, colorspace="RGB")))
        except ValueError as error:
            raise UnusableClip(clip, f"{label} cannot be read ({one_line(error)})") from error
    return np.stack(faces) if faces else np.empty((0, FACE_SIZE, FACE_SIZE, 3), np.uint8)


def decode_lower_face(data: bytes, scratch: np.ndarray | None = None) -> np.ndarray:
    """Decodes the lower half of the face crop in a JPEG.

    Args:
      data: a JPEG of a face crop of any size.
      scratch: uint8 buffer to decode into if it is large enough; reusing one that is in the cache saves an eighth
        of the time.

    Returns:
      uint8 RGB (48, 96, 3), possibly a view of `scratch`.

    Raises:
      ValueError: the JPEG is damaged.
    """
    try:
        return lower_face(simplejpeg.decode_jpeg(data, colorspace="RGB", buffer=scratch))
    except ValueError:
        if scratch is None:
            raise
        return decode_lower_face(data)  # damaged, or larger than `scratch`


def check_format(name: str, file: soundfile.SoundFile) -> None:
    """Raises `UnusableClip` unless the file is 16 kHz mono."""
    if (file.samplerate, file.channels) != (SAMPLE_RATE, 1):
        got = f"{file.samplerate} Hz in {file.channels} channel(s)"
        raise UnusableClip(name, f"the audio has {got}, expected {SAMPLE_RATE} Hz mono")


def lower_face(face: np.ndarray) -> np.ndarray:
    """The lower half of a face crop, which is first resized (bilinearly) to 96×96 if it has another size.

    Args:
      face: uint8 (height, width, 3), any channel order.

    Returns:
      uint8 (48, 96, 3), rows 48–95 of the 96×96 face.
    """
    return whole_face(face)[FACE_SIZE // 2 :]


def whole_face(face: np.ndarray) -> np.ndarray:
    """A face crop (height, width, 3), resized (bilinearly) to 96×96 if it has another size."""
    if face.shape[:2] == (FACE_SIZE, FACE_SIZE):
        return face
    return cv2.resize(face, (FACE_SIZE, FACE_SIZE), interpolation=cv2.INTER_LINEAR)
