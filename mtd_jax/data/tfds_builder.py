"""Builds a TensorFlow Datasets data set of ArrayRecords from clips on disk; works without TensorFlow.

    python -m mtd_jax.data.tfds_builder --root=ROOT --output=DIR [--lists=train,val] [--workers=N] [--lower_half]

`DIR/lip_sync_clips/2.0.0` appears when it is complete; train from it with `--config.data.format=tfds
--config.data.root=DIR`. JPEGs are kept byte for byte. With `--lower_half` only the half that the networks see is
kept, decoded, cut and encoded again at quality 95: smaller and quicker to decode, but no longer the same pixels.

tfds writes into `DIR/lip_sync_clips/incomplete.…` and renames that folder at the end. A build that fails or is
interrupted removes it; one that is killed leaves it behind, to be deleted by hand. Run the same command again.
"""

import functools
import os
import re
import signal
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import rich.console
import rich.progress
import simplejpeg
import tensorflow_datasets as tfds
from absl import flags, logging

from mtd_jax.data.clip import SAMPLES_PER_FRAME, Clip, ClipSource, JpegFrames, UnusableClip
from mtd_jax.data.folder import decode_lower_face
from mtd_jax.data.record_file import write_records
from mtd_jax.data.records import DATASET_NAME, RECORD_FRAMES, VERSION, features, records_of
from mtd_jax.data.sources import FORMATS, list_names, open_source
from mtd_jax.errors import UserError, main_function
from mtd_jax.storage import is_remote, writing_to
from mtd_jax.workers import usable_cores

SHARD_FRAMES = 25_000  # 1000 s: 100 MB of 96×96 faces with their audio. tfds holds one shard in memory
LOWER_HALF_QUALITY = 95  # of JPEG, with 4:2:0 colour as in the faces: 48 dB against the half it was made from
_FILE_FORMAT = tfds.core.FileFormat.ARRAY_RECORD

_FLAGS = flags.FlagValues()
_ROOT = flags.DEFINE_string("root", None, "Folder of the clips.", flag_values=_FLAGS, required=True)
_OUTPUT = flags.DEFINE_string("output", None, "Folder for the data set.", flag_values=_FLAGS, required=True)
_LISTS = flags.DEFINE_list(
    "lists", None, "Lists (Acappella: splits) to take. [all that are there]", flag_values=_FLAGS
)
_LAYOUTS = [name for name in FORMATS if name != "tfds"]
_LAYOUT = flags.DEFINE_enum("format", "lrs2", _LAYOUTS, "Layout of --root.", flag_values=_FLAGS)
_WORKERS = flags.DEFINE_integer(
    "workers", None, "Threads that read and encode. [one per CPU core]", flag_values=_FLAGS
)
_LOWER_HALF = flags.DEFINE_bool(
    "lower_half", False, "Keep only lower halves of faces, encoded again.", flag_values=_FLAGS
)
_RECORD_FRAMES = flags.DEFINE_integer("record_frames", RECORD_FRAMES, "Frames per record.", flag_values=_FLAGS)


def build(
    sources: Mapping[str, ClipSource],
    output: str | os.PathLike,
    *,
    record_frames: int = RECORD_FRAMES,
    shard_frames: int = SHARD_FRAMES,
    lower_half: bool = False,
    workers: int | None = None,
    progress: bool = True,
) -> Path:
    """Writes a data set; it appears when it is complete.

    Args:
      sources: clips by split, from `open_source` with min_frames=0.
      output: folder, new or with other data sets.
      record_frames: frames per record; a number beyond the longest clip makes one record of each.
      shard_frames: frames per file, at most, if it has several clips.
      lower_half: keep the lower halves of the faces only, see the module's docstring.
      workers: threads that read and encode clips; None = one per CPU core.
      progress: show a progress bar per file on stderr.

    Returns:
      `output`/lip_sync_clips/VERSION.

    Raises:
      UserError: a data set is there already; a file cannot be written; no clip can be read.
    """
    for split in sources:
        if not re.fullmatch(r"[A-Za-z]\w*", split) or split == "all":
            raise UserError(f"list {split!r} cannot name a split; expected letters, digits and _, and not 'all'")
    if record_frames < 1 or shard_frames < 1 or (workers is not None and workers < 1):
        raise UserError("expected 1 or more frames per record and per shard, and 1 or more workers")
    if is_remote(output):
        raise UserError(f"{output}: expected a local folder; copy the data set to its place when it is complete")
    target = Path(output, DATASET_NAME, VERSION)
    if target.exists():
        raise UserError(f"{target} is there already; delete it to build another, or choose another --output")
    with writing_to(target), tempfile.TemporaryDirectory() as nothing:  # tfds makes folders for downloads in it
        builder = LipSyncClips(
            data_dir=output,
            sources=sources,
            record_frames=record_frames,
            shard_frames=shard_frames,
            lower_half=lower_half,
            workers=workers or usable_cores(),
            progress=progress,
        )
        config = tfds.download.DownloadConfig(try_download_gcs=False)
        builder.download_and_prepare(download_dir=nothing, download_config=config)
    return target


def clip_examples(clip: Clip, record_frames: int, lower_half: bool) -> list[dict[str, Any]] | UnusableClip:
    """The records of a clip, see `records.features`; or the error, if one of its files cannot be read.

    JPEGs that cannot be decoded are kept: a draw that meets one skips the clip, as it does with files.
    """
    try:
        samples = clip.waveform[: len(clip.waveform)]
        assert isinstance(clip.frames, JpegFrames)
        jpegs = [clip.frames.encoded(number) for number in range(len(clip.frames))]
    except UnusableClip as error:
        return error
    if lower_half:
        jpegs = [_lower_half(jpeg) for jpeg in jpegs]
    examples = []
    for record in range(int(records_of(len(jpegs), len(samples), record_frames))):
        start, end = record * record_frames, (record + 1) * record_frames
        audio = samples[start * SAMPLES_PER_FRAME : end * SAMPLES_PER_FRAME]
        examples.append({"name": clip.name, "first_frame": start, "frames": jpegs[start:end], "waveform": audio})
    return examples


def _lower_half(jpeg: bytes) -> bytes:
    try:
        half = np.ascontiguousarray(decode_lower_face(jpeg))
    except ValueError:
        return jpeg
    return simplejpeg.encode_jpeg(half, quality=LOWER_HALF_QUALITY, colorspace="RGB", colorsubsampling="420")


class LipSyncClips(tfds.core.ShardBasedBuilder):
    """Clips of talking faces, a split per list. Read with `as_data_source`; `as_dataset` needs TensorFlow.

    Not a `GeneratorBasedBuilder`: beyond 1 GB that one sorts the records in files that need TensorFlow.
    """

    VERSION = tfds.core.Version(VERSION)

    def __init__(
        self,
        *,
        data_dir: str | os.PathLike | None = None,
        sources: Mapping[str, ClipSource] | None = None,
        record_frames: int = RECORD_FRAMES,
        shard_frames: int = SHARD_FRAMES,
        lower_half: bool = False,
        workers: int = 1,
        progress: bool = False,
    ):
        """All but `data_dir` is for `build`."""
        self._sources = sources or {}
        self._record_frames, self._shard_frames, self._lower_half = record_frames, shard_frames, lower_half
        self._workers, self._progress = workers, progress
        self._index = tfds.core.MetadataDict()  # which clips a split holds; tfds stores it as metadata.json
        super().__init__(data_dir=data_dir, file_format=_FILE_FORMAT)

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description="Talking faces, 25 frames per second, with their audio, for audio-visual synchronisation.",
            features=features(),
            disable_shuffling=True,  # training draws at random; clips keep the order of their list
            metadata=self._index,
        )

    def _shard_iterators_per_split(self, dl_manager) -> dict[str, list[Callable[[], Iterator]]]:
        """Cuts every source into shards of whole clips."""
        del dl_manager  # nothing to download
        shards = {}
        for split, source in self._sources.items():
            skipped = {reason: list(names) for reason, names in source.skipped.items()}
            self._index[split] = {
                "record_frames": self._record_frames,
                "lower_half": self._lower_half,
                "names": [],
                "images": [],  # frames of every clip
                "samples": [],
                "skipped": skipped,
            }
            groups: list[list[Clip]] = [[]]
            frames = 0
            for clip in map(source.__getitem__, range(len(source))):
                if groups[-1] and frames + len(clip.frames) > self._shard_frames:
                    groups.append([])
                    frames = 0
                groups[-1].append(clip)
                frames += len(clip.frames)
            labels = (f"{split}, file {number} of {len(groups)}" for number in range(1, len(groups) + 1))
            shards[split] = [
                functools.partial(self._shard, split, *shard) for shard in zip(groups, labels, strict=True)
            ]
        return shards

    def _shard(self, split: str, clips: list[Clip], label: str) -> Iterator[tuple[int, dict[str, Any]]]:
        """Yields (a number, example) of a shard, in order, and notes its clips in the index."""
        index = self._index[split]
        read = functools.partial(clip_examples, record_frames=self._record_frames, lower_half=self._lower_half)
        # Threads are enough: reading files and coding JPEGs release Python's global lock.
        with ThreadPoolExecutor(self._workers) as pool:
            results = rich.progress.track(
                zip(clips, pool.map(read, clips), strict=True),
                description=label,
                total=len(clips),
                console=rich.console.Console(stderr=True),
                transient=True,
                disable=not self._progress,
            )
            for clip, examples in results:
                if isinstance(examples, UnusableClip):
                    index["skipped"].setdefault(f"where {examples.reason}", []).append(clip.name)
                    continue
                index["names"].append(clip.name)
                index["images"].append(len(clip.frames))
                index["samples"].append(len(clip.waveform))
                yield from enumerate(examples)

    def _download_and_prepare(self, dl_manager, download_config=None) -> None:
        super()._download_and_prepare(dl_manager, download_config)
        for split, index in self._index.items():
            if not index["names"]:
                raise UserError(f"none of the clips of {split} can be read: {'; '.join(sorted(index['skipped']))}")

    def _example_writer(self) -> tfds.core.ExampleWriter:
        return RecordWriter(_FILE_FORMAT)

    def _log_download_bytes(self) -> None:
        """Says nothing on stdout about a download, as there is none."""

    def _log_download_done(self) -> None:
        """Likewise."""


class RecordWriter(tfds.core.ExampleWriter):
    """Writes ArrayRecords as tfds does, but uncompressed, as JPEGs don't compress, and without silent losses."""

    def write(self, path: str | os.PathLike, examples: Iterable[tuple[Any, bytes]]) -> None:
        """Writes a file from (key, record), ignoring the keys. Raises `UserError` if the disk refuses."""
        write_records(path, (record for _, record in examples))


def _command() -> None:
    logging.set_verbosity(logging.WARNING)
    given = [name.removesuffix(".txt") for name in _LISTS.value or ()]
    names = given or list_names(_LAYOUT.value, _ROOT.value)
    sources = {name: open_source(_LAYOUT.value, _ROOT.value, name, min_frames=0) for name in names}
    target = build(
        sources,
        _OUTPUT.value,
        record_frames=_RECORD_FRAMES.value,
        lower_half=_LOWER_HALF.value,
        workers=_WORKERS.value,
    )
    info = tfds.builder_from_directory(target).info
    for split, index in (info.metadata or {}).items():
        skipped = sum(map(len, index["skipped"].values()))
        mebibytes = info.splits[split].num_bytes / 2**20
        print(f"{split}: {len(index['names'])} clips, {skipped} skipped, {mebibytes:.1f} MiB")
    print(f"data set: {target}; use it with --config.data.format=tfds --config.data.root={_OUTPUT.value}")


main = main_function(_command, _FLAGS, __doc__)

if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C: the incomplete folder is removed
    sys.exit(main(sys.argv))
