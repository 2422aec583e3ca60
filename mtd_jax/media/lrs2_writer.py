"""One video to clips in the LRS2 layout, by the same search and crop as inference.

A clip's folder appears when it is complete, and a record in `<output>/.preprocess/` when all clips of a video are
there. A run that finds the record, with the same settings and the same file, leaves the video alone.

The stored faces differ from those inference sees by JPEG's losses alone: at quality 95 without colour subsampling
about one grey level on average, for 5 kB a frame.
"""

import dataclasses
import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import simplejpeg
import soundfile

from mtd_jax.data.clip import FPS, SAMPLE_RATE, SAMPLES_PER_FRAME
from mtd_jax.data.lrs2 import AUDIO_FILE
from mtd_jax.errors import UserError
from mtd_jax.media.boxes import FaceBox
from mtd_jax.media.decode import open_video
from mtd_jax.media.extract import crop_tracks, no_face, sound_of
from mtd_jax.media.faces import FaceDetector
from mtd_jax.media.find import FindSettings, find_faces
from mtd_jax.media.tracks import DroppedTrack, FaceTrack

STATE = ".preprocess"
_VERSION = 1  # raise when the same settings give other clips
_JPEG_QUALITY = 95


class OutputError(UserError):
    """The output folder cannot be written: no other video would fare better."""


@dataclasses.dataclass(frozen=True)
class Job:
    """One video and where its clips go; `settings` is what makes a finished video outdated when it changes."""

    name: str
    video: Path
    output: Path
    faces: str
    all_faces: bool
    find: FindSettings

    @property
    def settings(self) -> dict:
        chosen = {"version": _VERSION, "faces": self.faces, "all_faces": self.all_faces}
        return chosen | {"find": dataclasses.asdict(self.find)}


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What came of a video.

    Attributes:
      clips: names of its clips, relative to the output folder.
      dropped: what was left out and why, a line each.
      error: why the file cannot be used at all; empty if it can.
      was_there: whether an earlier run had done it.
    """

    clips: list[str]
    dropped: list[str]
    error: str = ""
    was_there: bool = False


def write_clips(job: Job, source: FaceDetector | list[FaceBox]) -> Outcome:
    """Writes the clips of one video, unless they are there.

    Raises:
      OutputError: the output folder cannot be written.
    """
    record_file = job.output / STATE / f"{job.name}.json"
    partial = job.output / STATE / "partial" / job.name
    try:
        stat = job.video.stat()
        source_state = {"settings": job.settings, "size": stat.st_size, "mtime_ns": stat.st_mtime_ns}
        if done := _finished(job, record_file, source_state):
            return done
        outcome = _extract(job, source, partial)
    except OutputError:
        raise
    except (UserError, OSError) as error:
        return Outcome([], [], str(error))
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    try:
        record_file.parent.mkdir(parents=True, exist_ok=True)
        unfinished = record_file.with_suffix(".partial")
        unfinished.write_text(json.dumps(source_state | {"clips": outcome.clips, "dropped": outcome.dropped}))
        unfinished.replace(record_file)
    except OSError as error:
        raise OutputError(f"cannot write to {job.output}: {error}") from error
    return outcome


def largest_at_a_time(tracks: Sequence[FaceTrack]) -> tuple[list[FaceTrack], list[DroppedTrack]]:
    """Leaves out faces that spend more than half of their frames beside a larger one: listeners, bystanders."""
    kept: list[FaceTrack] = []
    dropped = []
    for track in sorted(tracks, key=_area, reverse=True):
        beside = max((min(track.end, other.end) - max(track.start, other.start) for other in kept), default=0)
        if 2 * beside > len(track.boxes):
            dropped.append(DroppedTrack(track.start, track.end, "beside a larger face"))
        else:
            kept.append(track)
    return sorted(kept, key=lambda track: track.start), dropped


def _area(track: FaceTrack) -> float:
    x0, y0, x1, y1 = track.box
    return (x1 - x0) * (y1 - y0)


def _finished(job: Job, record_file: Path, source_state: dict) -> Outcome | None:
    """What an earlier run wrote, if it is complete and still what this one would write; else it is removed."""
    try:
        record = json.loads(record_file.read_text())
    except (OSError, ValueError):
        return None
    complete = all((job.output / clip / AUDIO_FILE).is_file() for clip in record["clips"])
    if complete and all(record[key] == value for key, value in source_state.items()):
        return Outcome(record["clips"], record["dropped"], was_there=True)
    for clip in record["clips"]:
        shutil.rmtree(job.output / clip, ignore_errors=True)
    return None


def _extract(job: Job, source: FaceDetector | list[FaceBox], partial: Path) -> Outcome:
    video = open_video(job.video)
    found = find_faces(video, source, job.find)
    tracks, dropped = found.tracks, list(found.dropped)
    if not tracks:
        return Outcome([], [no_face(found), *video.warnings])
    if not job.all_faces:
        tracks, smaller = largest_at_a_time(tracks)
        dropped += smaller
    sound = video.waveform()
    usable = []
    for track in tracks:
        frames = len(sound_of(track, sound)) // SAMPLES_PER_FRAME
        if frames < min(job.find.link.min_frames, len(track.boxes)):
            dropped.append(DroppedTrack(track.start, track.end, f"only {frames / FPS:g} s of it have sound"))
        else:
            usable.append(FaceTrack(track.start, track.boxes[:frames]))
    lines = [f"left out {d.start / FPS:g}–{d.end / FPS:g} s: {d.reason}" for d in dropped] + video.warnings
    names = [job.name] if len(usable) == 1 else [f"{job.name}_track{n}" for n in range(1, len(usable) + 1)]
    try:
        shutil.rmtree(partial, ignore_errors=True)
        folders = [partial / str(number) for number in range(len(usable))]
        for folder in folders:
            folder.mkdir(parents=True)
        for number, frame, face in crop_tracks(video, usable):
            jpeg = simplejpeg.encode_jpeg(face, _JPEG_QUALITY, colorspace="RGB", colorsubsampling="444")
            (folders[number] / f"{frame - usable[number].start}.jpg").write_bytes(jpeg)
        for folder, track, name in zip(folders, usable, names, strict=True):
            samples = sound_of(track, sound)
            soundfile.write(folder / AUDIO_FILE, samples, SAMPLE_RATE, subtype="PCM_16")
            final = job.output / name
            shutil.rmtree(final, ignore_errors=True)
            final.parent.mkdir(parents=True, exist_ok=True)
            folder.replace(final)
    except (OSError, soundfile.SoundFileError) as error:
        raise OutputError(f"cannot write to {job.output}: {error}") from error
    return Outcome(names, lines)
