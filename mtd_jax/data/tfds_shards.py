"""Files of ArrayRecords from a source of clips, written by several processes and kept when a build is interrupted.

Each finished shard lies in a staging folder beside a JSON file that says what it holds; a shard without it, or of
another size, is written again.
"""

import dataclasses
import json
from pathlib import Path

import numpy as np
import simplejpeg
import tensorflow_datasets as tfds
from array_record.python.array_record_module import ArrayRecordReader, ArrayRecordWriter

from mtd_jax.data.clip import SAMPLES_PER_FRAME, Clip
from mtd_jax.data.records import features, records_of
from mtd_jax.data.unusable import UnusableClip
from mtd_jax.data.views import decode_lower_face
from mtd_jax.errors import UserError
from mtd_jax.parallel import Crashed, run_jobs

LOWER_HALF_QUALITY = 95  # of JPEG, with 4:2:0 colour as in the faces: 48 dB against the half it was made from
_OPTIONS = "group_size:1,uncompressed"  # one record per read; JPEGs do not compress


@dataclasses.dataclass(frozen=True)
class Shard:
    """A file of records to write.

    Attributes:
      clips: what goes into it, unread; picklable.
      path: of the file.
      record_frames, lower_half: see `records.ClipIndex`.
    """

    clips: tuple[Clip, ...]
    path: Path
    record_frames: int
    lower_half: bool

    @property
    def report(self) -> Path:
        """JSON: what is in the finished file."""
        return self.path.with_name(f"{self.path.name}.json")


def plan(
    source, stage: Path, split: str, *, shard_frames: int, record_frames: int, lower_half: bool
) -> list[Shard]:
    """Cuts a source into shards of whole clips, each of at most `shard_frames` frames if it has several clips."""
    groups, frames = [[]], 0
    for index in range(len(source)):
        clip = source[index]
        if groups[-1] and frames + len(clip.frames) > shard_frames:
            groups.append([])
            frames = 0
        groups[-1].append(clip)
        frames += len(clip.frames)
    paths = (stage / f"{split}-{number:05d}" for number in range(len(groups)))
    return [Shard(tuple(g), path, record_frames, lower_half) for g, path in zip(groups, paths, strict=True)]


def write_shards(shards: list[Shard], workers: int, progress: bool) -> list[dict]:
    """Writes what is not there yet, in spawned processes if `workers` is more than 1.

    Returns:
      Per shard {"clips": [[name, images, samples]], "skipped": [[name, reason]], "records", "bytes"}.

    Raises:
      UserError: a file that cannot be read or written, a dead worker process. Finished shards stay.
    """
    missing = [shard for shard in shards if _finished(shard) is None]
    for shard, outcome in run_jobs(
        write_shard, missing, workers=workers, what="writing shards", progress=progress
    ):
        if isinstance(outcome, Crashed):
            raise UserError(
                f"the process that wrote {shard.path.name} died (out of memory?): run again with fewer --workers"
            )
    return [_finished(shard) for shard in shards]


def write_shard(shard: Shard) -> None:
    """Writes one file of records, then the report that makes it count."""
    shard.report.unlink(missing_ok=True)
    form, clips, skipped, records = features(), [], [], 0
    serializer = tfds.core.ExampleSerializer(form.get_serialized_info())
    try:
        writer = ArrayRecordWriter(str(shard.path), _OPTIONS)
        for clip in shard.clips:
            try:
                examples = list(stretches(clip, shard.record_frames, shard.lower_half))
            except UnusableClip as error:
                skipped.append([clip.name, f"where {error.reason}"])
                continue
            for example in examples:
                message = serializer.get_tf_example(form.encode_example(example))
                writer.write(message.SerializeToString(deterministic=True))  # else its order differs by process
            clips.append([clip.name, len(clip.frames), len(clip.waveform)])
            records += len(examples)
        writer.close()
        if records:
            written = ArrayRecordReader(str(shard.path))
            if written.num_records() != records:  # the library is silent about some failed writes
                raise RuntimeError(f"{written.num_records()} of {records} records arrived")
        content = {"clips": clips, "skipped": skipped, "records": records, "bytes": shard.path.stat().st_size}
        partial = shard.report.with_suffix(".partial")
        partial.write_text(json.dumps(content))
        partial.replace(shard.report)
    except (OSError, RuntimeError) as error:  # the writer reports a full disk as a RuntimeError
        reason = str(error).split(";")[0]
        raise UserError(f"cannot write {shard.path} ({reason}); run again to go on from the last shard") from error


def _finished(shard: Shard) -> dict | None:
    try:
        content = json.loads(shard.report.read_text())
        return content if shard.path.stat().st_size == content["bytes"] else None
    except (OSError, ValueError, KeyError):
        return None


def stretches(clip: Clip, record_frames: int, lower_half: bool):
    """The examples of a clip, in order: see `records.features`.

    Args:
      clip: its `frames` have `encoded(number) -> bytes`, as `FrameFolder`.
      record_frames: frames per example.
      lower_half: encode the lower half of the 96×96 face again, instead of keeping the JPEG as it is.

    Raises:
      UnusableClip: a file cannot be read. JPEGs that cannot be decoded are kept: a draw that meets one passes on.
    """
    samples = clip.waveform[: len(clip.waveform)]
    count = len(clip.frames)
    for number in range(int(records_of(count, len(samples), record_frames))):
        start, stop = number * record_frames, (number + 1) * record_frames
        pictures = [clip.frames.encoded(n) for n in range(start, min(stop, count))]
        yield {
            "name": clip.name,
            "first_frame": start,
            "frames": [_lower_half(picture) for picture in pictures] if lower_half else pictures,
            "waveform": samples[start * SAMPLES_PER_FRAME : stop * SAMPLES_PER_FRAME],
        }


def _lower_half(picture: bytes) -> bytes:
    try:
        half = np.ascontiguousarray(decode_lower_face(picture))
    except ValueError:
        return picture  # not decodable: reading says so, as it would of the file
    return simplejpeg.encode_jpeg(half, quality=LOWER_HALF_QUALITY, colorspace="RGB", colorsubsampling="420")
