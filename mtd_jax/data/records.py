"""Clips stored as ArrayRecords: what a record holds, the index of the clips, and the source that reads them.

A training draw needs five frames, and a record is read whole. So a clip is cut into stretches of `record_frames`
frames with their audio: of 5 s of 96×96 faces as one record (0.5 MB), reading alone would cost more than decoding
the window. The records of a clip follow each other, clips in the order of their list. `tfds_builder.py` writes
them.
"""

import dataclasses
import os
from collections.abc import Sequence

import numpy as np
import tensorflow_datasets as tfds
from etils import epath
from google.protobuf.message import DecodeError
from tensorflow_datasets.proto import tf_example_pb2

from mtd_jax.data.clip import SAMPLES_PER_FRAME, Clip, UnusableClip, report_unusable
from mtd_jax.data.folder import decode_faces, decode_lower_faces
from mtd_jax.errors import UserError, one_line
from mtd_jax.storage import path_of

DATASET_NAME = "lip_sync_clips"  # what tfds makes of the builder's class name
VERSION = "2.0.0"  # raise it when records or index change; data sets of other versions are refused
RECORD_FRAMES = 12

# What array_record and protobuf raise for damaged or missing files.
_UNREADABLE = (OSError, RuntimeError, ValueError, IndexError, DecodeError)


def features() -> tfds.features.FeaturesDict:
    """The fields of a record, by which any other program can read it with `tfds.data_source`."""
    return tfds.features.FeaturesDict(
        {
            "name": tfds.features.Text(doc="of the clip, for example speaker/clip"),
            "first_frame": tfds.features.Scalar(np.int64, doc="number of the first frame within the clip"),
            "frames": tfds.features.Sequence(tfds.features.Image(shape=(None, None, 3), encoding_format="jpeg")),
            "waveform": tfds.features.Tensor(
                shape=(None,), dtype=np.int16, encoding="bytes", doc="16 kHz, from sample 640 · first_frame on"
            ),
        }
    )


def records_of(images: np.ndarray | int, samples: np.ndarray | int, record_frames: int) -> np.ndarray:
    """How many records a clip takes, at least one; for integers or arrays of them."""
    frames = np.maximum(images, -(-samples // SAMPLES_PER_FRAME))
    return np.maximum(-(-frames // record_frames), 1)


@dataclasses.dataclass(frozen=True)
class Stretch:
    """A parsed record: the clip's name, the number of its first frame, its JPEGs and its int16 audio."""

    name: str
    first_frame: int
    frames: Sequence[bytes]
    waveform: np.ndarray


def parse(record: bytes) -> Stretch:
    """Takes a record apart without decoding an image.

    Raises:
      DecodeError, ValueError: the bytes are no such record.
    """
    fields = tf_example_pb2.Example.FromString(record).features.feature  # pyright: ignore[reportAttributeAccessIssue]
    (name,) = fields["name"].bytes_list.value
    (first_frame,) = fields["first_frame"].int64_list.value
    (waveform,) = fields["waveform"].bytes_list.value
    frames = fields["frames"].bytes_list.value
    return Stretch(name.decode(), first_frame, frames, np.frombuffer(waveform, np.int16))


class RecordSource:
    """Clips of one split of a data set that `tfds_builder` wrote, in the order of the list it was built from.

    They are the same `Clip`s as from the files it was built from. A slice of a clip reads the records that it
    touches, each once per clip object, so all windows of a draw share them, and decodes only its own frames.

    Args:
      root: the --output of the builder; a local folder or one in an object store (gs://…).
      split: name of the list it was built from.
      min_frames: clips with fewer frames that have both image and audio are skipped.

    Attributes:
      list_path, skipped, encoding: see `clip.ClipSource`.

    Raises:
      UserError: no complete data set there, no such split, or no usable clip.
    """

    def __init__(self, root: str | os.PathLike, split: str, *, min_frames: int):
        folder = path_of(root) / DATASET_NAME / VERSION
        if not (folder / "dataset_info.json").exists():
            raise UserError(
                f"{root}: expected a complete data set of this program's version in {DATASET_NAME}/{VERSION}; "
                "build one with python -m mtd_jax.data.tfds_builder"
            )
        builder = tfds.builder_from_directory(folder)
        split = split.removesuffix(".txt")
        if split not in builder.info.splits:
            raise UserError(f"{folder}: no split {split!r}; it has {', '.join(sorted(builder.info.splits))}")
        self.list_path = f"{folder}, split {split}"
        try:  # what the builder noted of the clips, so that nothing has to be read to know their lengths
            index = (builder.info.metadata or {})[split]
            self._names, images, samples, skipped, self._record_frames, self._are_halves = (
                index[key] for key in ("names", "images", "samples", "skipped", "record_frames", "lower_half")
            )
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(f"{folder}: expected an index of clips in metadata.json; build it again") from error
        self._images, self._samples = np.array(images, np.int64), np.array(samples, np.int64)
        counts = records_of(self._images, self._samples, self._record_frames)
        self._first_record = np.cumsum(counts) - counts
        _check_files(folder, builder.info.splits[split], int(counts.sum()))
        # The source beneath tfds' own gives the bytes of a record, and is pickled for worker processes without the
        # data set's description. tfds' own decodes every frame of a record, 40 times the time of `parse`. (tfds
        # 4.9.10 can skip that only with TensorFlow: SkipDecoding fails on a sequence of images in NumPy,
        # DESERIALIZE_NO_DECODE imports TensorFlow.)
        self._records = builder.as_data_source(split).data_source  # pyright: ignore[reportCallIssue]
        self.encoding = "lower halves encoded again\n" if self._are_halves else ""
        frames = np.minimum(self._images, self._samples // SAMPLES_PER_FRAME)
        self._usable = np.flatnonzero(frames >= min_frames)
        self.skipped: dict[str, list[str]] = {reason: list(names) for reason, names in skipped.items()}
        if short := [self._names[i] for i in np.flatnonzero(frames < min_frames)]:
            self.skipped[f"with fewer than {min_frames} frames"] = short
        listed = len(self) + sum(map(len, self.skipped.values()))
        report_unusable(self.list_path, len(self), listed, self.skipped)

    def __len__(self) -> int:
        return len(self._usable)

    def __getitem__(self, index: int) -> Clip:
        number = self._usable[index]
        name = self._names[number]
        stretches = _Stretches(name, self._records, int(self._first_record[number]), self._record_frames)
        images = int(self._images[number])
        return Clip(
            name=name,
            frames=RecordFrames(stretches, images, self._are_halves),
            waveform=RecordWaveform(stretches, int(self._samples[number])),
            faces=None if self._are_halves else RecordFrames(stretches, images, False, whole=True),
        )


def _check_files(folder: epath.Path, info: tfds.core.SplitInfo | tfds.core.SubSplitInfo, records: int) -> None:
    """Raises `UserError` when files are missing, cut off or of another build: before a run, not in its middle."""
    if info.num_examples != records:
        raise UserError(f"{folder}: metadata.json belongs to another build; build the data set again")
    sizes = [path.stat().length if path.exists() else 0 for path in info.filepaths]
    if sum(sizes) != info.num_bytes:
        raise UserError(
            f"{folder}: the data set is incomplete: expected {info.num_bytes} bytes in {len(sizes)} files of "
            f"split {info.name}, found {sum(sizes)}; copy or build it again"
        )


class _Stretches:
    """The records of one clip, read on demand and kept as long as the clip."""

    def __init__(self, name: str, records: Sequence[bytes], first: int, length: int):
        self.name, self.length = name, length
        self._records, self._first = records, first
        self._read: dict[int, Stretch] = {}

    def __getitem__(self, number: int) -> Stretch:
        if number not in self._read:
            place = self._first + number
            try:
                stretch = parse(self._records[place])
            except _UNREADABLE as error:
                raise UnusableClip(self.name, f"record {place} cannot be read ({one_line(error)})") from error
            if (stretch.name, stretch.first_frame) != (self.name, number * self.length):
                found = f"is of {stretch.name}, frame {stretch.first_frame}"
                raise UnusableClip(self.name, f"record {place} {found}; expected frame {number * self.length}")
            self._read[number] = stretch
        return self._read[number]


@dataclasses.dataclass(frozen=True)
class RecordFrames:
    """The faces of a clip's records. Slicing works as in `folder.FrameFolder`."""

    stretches: _Stretches
    count: int
    are_halves: bool
    whole: bool = False

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, window: slice) -> np.ndarray:
        numbers = range(*window.indices(self.count))
        labels = (f"frame {number}" for number in numbers)
        encoded = map(self.encoded, numbers)
        if self.whole:
            return decode_faces(encoded, self.stretches.name, labels)
        return decode_lower_faces(encoded, self.stretches.name, labels, are_halves=self.are_halves)

    def encoded(self, number: int) -> bytes:
        """The JPEG of frame `number`."""
        at, within = divmod(number, self.stretches.length)
        try:
            return self.stretches[at].frames[within]
        except IndexError as error:
            raise UnusableClip(self.stretches.name, f"frame {number} is not in its record") from error


@dataclasses.dataclass(frozen=True)
class RecordWaveform:
    """The audio of a clip's records. Slicing works as in `folder.WaveformFile`."""

    stretches: _Stretches
    count: int

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, window: slice) -> np.ndarray:
        name = self.stretches.name
        start, stop, step = window.indices(self.count)
        if step != 1:
            raise ValueError(f"{name}: a waveform is sliced without a step, got {step}")
        wanted = max(stop - start, 0)
        length = self.stretches.length * SAMPLES_PER_FRAME
        parts = [
            self.stretches[number].waveform[max(start - number * length, 0) : stop - number * length]
            for number in range(start // length, -(-stop // length) if wanted else 0)
        ]
        samples = np.concatenate(parts) if parts else np.zeros(0, np.int16)
        if len(samples) != wanted:
            raise UnusableClip(name, f"the audio ends before sample {stop}")
        return samples
