"""Clips of a data set that `tfds_builder` wrote: the same `Clip`s as from its files, out of ArrayRecords.

A slice of a clip reads the records that it touches, each once per clip object, so all windows of a draw share
them; of their pictures it decodes only its own.
"""

import dataclasses
import os
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from etils import epath

from mtd_jax.data.clip import SAMPLES_PER_FRAME, Clip
from mtd_jax.data.records import DATASET_NAME, VERSION, ClipIndex, Stretch, index_file, parse, records_of
from mtd_jax.data.unusable import UnusableClip, report_unusable
from mtd_jax.data.views import decode_lower_faces
from mtd_jax.errors import UserError, one_line


class TfdsSource:
    """Clips of one split: `len(source)`, `source[i] -> Clip`, in the order of the list it was built from.

    Args:
      root: the --output of the builder.
      split: name of the list it was built from.
      min_frames: clips with fewer frames that have both picture and sound are left out.

    Attributes:
      list_path: what the clips are of, for people.
      skipped: names of the clips left out, by reason.
      encoding: says if the pixels are not those of the files, so that no run goes on with others unnoticed.

    Raises:
      UserError: no complete data set there, no such split, or no usable clip.
    """

    def __init__(self, root: str | os.PathLike, split: str, *, min_frames: int):
        folder = epath.Path(root) / DATASET_NAME / VERSION
        if not (folder / "dataset_info.json").exists():
            raise UserError(
                f"{root}: no complete data set ({DATASET_NAME}/{VERSION}); "
                "build one with python -m mtd_jax.data.tfds_builder"
            )
        builder = tfds.builder_from_directory(folder)
        split = split.removesuffix(".txt")
        if split not in builder.info.splits:
            raise UserError(f"{folder}: no split {split!r}; it has {', '.join(sorted(builder.info.splits))}")
        self.list_path = f"{folder}, split {split}"
        index = ClipIndex.read(folder, split)
        counts = records_of(index.images, index.samples, index.record_frames)
        _check_shards(builder.info.splits[split], index, int(counts.sum()), folder / index_file(split))
        # tfds' own source decodes every picture of a record; the one beneath it gives the bytes, and travels to
        # worker processes without the data set's description, to open its files there.
        self._records = builder.as_data_source(split).data_source
        frames = np.minimum(index.images, index.samples // SAMPLES_PER_FRAME)
        self._usable = np.flatnonzero(frames >= min_frames)
        self._index = index
        self.encoding = "lower halves encoded again\n" if index.lower_half else ""
        self._first_record = np.cumsum(counts) - counts
        self.skipped = {reason: list(names) for reason, names in index.skipped.items()}
        short = [index.names[i] for i in np.flatnonzero(frames < min_frames)]
        if short:
            self.skipped[f"with fewer than {min_frames} frames"] = short
        listed = len(index.names) + sum(len(names) for names in index.skipped.values())
        report_unusable(self.list_path, len(self), listed, self.skipped)

    def __len__(self) -> int:
        return len(self._usable)

    def __getitem__(self, index: int) -> Clip:
        number = self._usable[index]
        name = self._index.names[number]
        stretches = _Stretches(name, self._records, int(self._first_record[number]), self._index.record_frames)
        return Clip(
            name=name,
            frames=RecordFrames(stretches, int(self._index.images[number]), self._index.lower_half),
            waveform=RecordWaveform(stretches, int(self._index.samples[number])),
        )


def _check_shards(info: tfds.core.SplitInfo, index: ClipIndex, records: int, index_path) -> None:
    """Finds out at the start, not in the middle of a run, when files are missing or of another build."""
    if info.num_examples != records or len(info.filepaths) != len(index.shard_bytes):
        raise UserError(f"{index_path} does not belong to the records beside it; build the data set again")
    for path, size in zip(info.filepaths, index.shard_bytes, strict=True):
        found = path.stat().length if path.exists() else None
        if found != size:
            is_what = "is missing" if found is None else f"has {found} bytes"
            raise UserError(
                f"{path} {is_what}, expected {size} bytes: the data set is incomplete, copy or build it again"
            )


class _Stretches:
    """The records of one clip, read on demand and kept as long as the clip."""

    def __init__(self, name: str, records: Any, first: int, length: int):
        self.name, self.length = name, length
        self._records, self._first = records, first
        self._read: dict[int, Stretch] = {}

    def __getitem__(self, number: int) -> Stretch:
        if number not in self._read:
            try:
                stretch = parse(self._records[self._first + number])
            except Exception as error:  # damaged files make the libraries raise errors of many kinds
                reason = f"record {self._first + number} cannot be read ({one_line(error)})"
                raise UnusableClip(self.name, reason) from error
            if (stretch.name, stretch.first_frame) != (self.name, number * self.length):
                found = f"is of {stretch.name}, frame {stretch.first_frame}"
                raise UnusableClip(
                    self.name, f"record {self._first + number} {found}; expected frame {number * self.length}"
                )
            self._read[number] = stretch
        return self._read[number]


@dataclasses.dataclass(frozen=True)
class RecordFrames:
    """The lower face halves of a clip's records. Slicing is as of `views.FrameFolder`."""

    stretches: _Stretches
    count: int
    are_halves: bool

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, window: slice) -> np.ndarray:
        numbers = range(*window.indices(self.count))
        labels = (f"frame {number}" for number in numbers)
        encoded = map(self.encoded, numbers)
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
    """The sound of a clip's records. Slicing is as of `views.WaveformFile`."""

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
            raise UnusableClip(name, f"the sound ends before sample {stop}")
        return samples
