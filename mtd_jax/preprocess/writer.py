"""One video to clips in the LRS2 layout, by the same search and crop as inference.

A clip's folder appears when it is complete, and a record (`manifest.py`) when all clips of a video are there. A
run that finds the record, with the same settings and the same file, leaves the video alone.

The stored faces differ from those inference sees by JPEG's losses alone: at quality 95 without colour subsampling
about one grey level on average, for 5 kB a frame.
"""

import dataclasses
import hashlib
import os
import shutil
from pathlib import Path

import numpy as np
import simplejpeg
import soundfile

from mtd_jax.data.clip import FPS, SAMPLE_RATE, SAMPLES_PER_FRAME
from mtd_jax.data.lrs2 import AUDIO_FILE
from mtd_jax.errors import UserError
from mtd_jax.faces.boxes import FaceBox
from mtd_jax.faces.clips import audio_of, crop_tracks, no_face
from mtd_jax.faces.detect import FaceDetector
from mtd_jax.faces.search import FindSettings, FoundFaces, find_faces
from mtd_jax.faces.tracks import DroppedTrack, FaceTrack, largest
from mtd_jax.preprocess.manifest import STATE, Record, read_record, write_record
from mtd_jax.preprocess.videos import clip_name
from mtd_jax.video.container import read_head
from mtd_jax.video.decode import open_video

_VERSION = 3  # raise when the same settings give other clips
_JPEG_QUALITY = 95
_LONGEST_NAME = 230  # bytes; file systems take 255, and suffixes are added


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
    """The outcome of one video.

    Attributes:
      clips: names of its clips, relative to the output folder.
      dropped: parts without a clip and why, one line each.
      error: why the file cannot be used at all; empty if it can.
      was_there: whether an earlier run had done it.
      name_is_taken: whether there are clips of another video under its name.
    """

    clips: list[str]
    dropped: list[str]
    error: str = ""
    was_there: bool = False
    name_is_taken: bool = False


def write_clips(job: Job, source: FaceDetector | list[FaceBox]) -> Outcome:
    """Writes the clips of one video, unless they are there.

    Raises:
      OutputError: the output folder cannot be written.
    """
    # Flat, so that no empty folders stay behind.
    partial = job.output / STATE / "partial" / hashlib.sha256(job.name.encode()).hexdigest()[:32]
    try:
        read_head(job.video)
        if len(os.fsencode(Path(job.name).name)) > _LONGEST_NAME:
            raise UserError(f"{job.video}: its name is too long to name folders after it, rename it")
        stat = job.video.stat()
        if earlier := _earlier(job, stat):
            return earlier
        outcome = _extract(job, source, partial)
    except OutputError:
        raise
    except (UserError, OSError) as error:
        return Outcome([], [], str(error))
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    try:
        write_record(
            job.output,
            Record(
                name=job.name,
                video=os.fspath(job.video),
                size=stat.st_size,
                mtime_ns=stat.st_mtime_ns,
                settings=job.settings,
                clips=outcome.clips,
                dropped=outcome.dropped,
            ),
        )
    except (OSError, UserError) as error:
        raise OutputError(f"cannot write to {job.output}: {error}") from error
    return outcome


def _earlier(job: Job, stat: os.stat_result) -> Outcome | None:
    """What an earlier run wrote, if it is complete and still what this one would write; else it is removed.

    An error if it is of another video that had the same name.
    """
    record = read_record(job.output, job.name)
    if record is None:
        return None
    unchanged = record.is_unchanged(stat)
    clips = [clip for clip in record.clips if (job.output / clip).is_dir()]
    if clips and not unchanged and record.video != os.fspath(job.video):
        error = (
            f"{job.video}: an earlier run made {', '.join(clips)} from {record.video}: rename it, or delete them"
        )
        return Outcome([], [], error, name_is_taken=True)
    complete = all((job.output / clip / AUDIO_FILE).is_file() for clip in record.clips)
    if unchanged and complete and record.settings == job.settings:
        return Outcome(record.clips, record.dropped, was_there=True)
    for clip in record.clips:
        shutil.rmtree(job.output / clip, ignore_errors=True)
    return None


def _extract(job: Job, source: FaceDetector | list[FaceBox], partial: Path) -> Outcome:
    video = open_video(job.video)
    found = find_faces(video, source, job.find)
    if not found.tracks:
        return Outcome([], [no_face([found]), *video.warnings])
    audio = video.waveform()
    if not audio.any():
        return Outcome([], ["no clip: the audio is silent", *video.warnings])
    usable, dropped = choose_tracks(found, audio, all_faces=job.all_faces, min_frames=job.find.link.min_frames)
    lines = [f"no clip for {d.start / FPS:g}–{d.end / FPS:g} s: {d.reason}" for d in dropped] + video.warnings
    names = [clip_name(job.name, track) for track in range(1, len(usable) + 1)]
    try:
        shutil.rmtree(partial, ignore_errors=True)
        folders = [partial / str(number) for number in range(len(usable))]
        for folder in folders:
            folder.mkdir(parents=True)
        box_scale = 1.0 if isinstance(source, list) else job.find.box_scale  # the user's boxes are as they are
        for number, frame, face in crop_tracks(video, usable, box_scale=box_scale):
            jpeg = simplejpeg.encode_jpeg(face, _JPEG_QUALITY, colorspace="RGB", colorsubsampling="444")
            (folders[number] / f"{frame - usable[number].start}.jpg").write_bytes(jpeg)
        for folder, track, name in zip(folders, usable, names, strict=True):
            samples = audio_of(track, audio)
            soundfile.write(folder / AUDIO_FILE, samples, SAMPLE_RATE, subtype="PCM_16")
            final = job.output / name
            shutil.rmtree(final, ignore_errors=True)
            final.parent.mkdir(parents=True, exist_ok=True)
            folder.replace(final)
    except (OSError, soundfile.SoundFileError) as error:
        raise OutputError(f"cannot write to {job.output}: {error}") from error
    return Outcome(names, lines)


# Which of the faces of a video are worth a training clip.


def choose_tracks(
    found: FoundFaces, audio: np.ndarray, *, all_faces: bool, min_frames: int
) -> tuple[list[FaceTrack], list[DroppedTrack]]:
    """Tracks cut to the frames that have audio, and the other parts, with reasons.

    Args:
      found: the faces of a video.
      audio: int16 (samples,), its audio.
      all_faces: keep faces next to a larger one.
      min_frames: frames with audio that a track needs; a shorter track needs audio for all of its frames.
    """
    tracks, dropped = found.tracks, list(found.dropped)
    if not all_faces:
        tracks, smaller = largest(tracks, at_once=1)
        dropped += smaller
    usable = []
    for track in tracks:
        frames = len(audio_of(track, audio)) // SAMPLES_PER_FRAME
        if frames < min(min_frames, len(track.boxes)):
            dropped.append(DroppedTrack(track.start, track.end, f"only {frames / FPS:g} s of it have audio"))
        else:
            usable.append(FaceTrack(track.start, track.boxes[:frames]))
    return usable, dropped
