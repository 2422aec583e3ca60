"""From a video file to its verdict: is the audio in sync with each face, and if not, by how much is it off?"""

import os
from collections.abc import Callable
from typing import Protocol

import numpy as np
from jaxtyping import Float32

from mtd_jax.data.clip import FPS, SAMPLES_PER_FRAME, Clip
from mtd_jax.errors import UserError
from mtd_jax.faces.boxes import FaceBox
from mtd_jax.faces.clips import FaceClip, face_clips
from mtd_jax.faces.detect import FaceDetector
from mtd_jax.faces.search import FindSettings, FoundFaces, face_source
from mtd_jax.network.model import SyncModel
from mtd_jax.scoring import MAX_SHIFT, Scorer
from mtd_jax.sync.verdict import Result, Track, judge, material_warnings
from mtd_jax.video.decode import open_video

_LEAST_SHIFT, _LARGEST_SHIFT = 2, 5 * FPS
_CHUNK = 500  # windows scored at a time, so that an hour of video fits in memory; a multiple of 5, see score_track


class Progress(Protocol):
    """Follows the work of `detect_offset`, stage by stage."""

    def stage(self, name: str, total: float | None) -> None:
        """A stage begins. `total` is its amount of work, in any unit; None if unknown."""

    def update(self, done: float) -> None:
        """So much of the current stage is done."""


class NoProgress:
    """A `Progress` that shows nothing."""

    def stage(self, name: str, total: float | None) -> None:
        pass

    def update(self, done: float) -> None:
        pass


def detect_offset(
    model: SyncModel | Scorer,
    path: str | os.PathLike,
    *,
    faces: str | FaceDetector | list[FaceBox] = "mtcnn",
    max_shift: int = MAX_SHIFT,
    find: FindSettings | None = None,
    progress: Progress | None = None,
) -> Result:
    """Measures how far the audio of a video is out of sync with each face in it.

    Args:
      model: for several videos pass a `Scorer`, which prepares the weights once.
      path: a video file that FFmpeg reads.
      faces: "mtcnn", "whole" (the video is cropped to the face already), a .json file of boxes, or what
        `face_source` returns for these.
      max_shift: compares offsets from −max_shift to max_shift frames of 40 ms; 2 to 125.
      find: how faces are searched for.
      progress: follows the stages "looking for faces" and "scoring".

    Raises:
      UserError: no usable video, audio or face.
    """
    check_max_shift(max_shift)
    progress = progress or NoProgress()
    scorer = model if isinstance(model, Scorer) else Scorer(model)
    window = scorer.config.window_frames
    source = face_source(faces) if isinstance(faces, str) else faces
    video = open_video(path)
    progress.stage("looking for faces", video.duration_seconds)
    clips, found = face_clips(video, source, find, lambda done, _: progress.update(done))
    warnings = [*video.warnings, *_face_warnings(found)]
    progress.stage("scoring", sum(clip.clip.num_frames for clip in clips))
    tracks: list[Track] = []
    done = 0
    for clip in clips:
        frames = clip.clip.num_frames
        if frames > window:
            tracks.append(_track(scorer, clip, max_shift, progress, done))
        else:
            place = f"the face at {clip.start_seconds:.1f}–{clip.end_seconds:.1f} s"
            warnings.append(f"{place} was skipped: {frames} frames with audio are too few")
        done += frames
    if not tracks:
        raise UserError(f"{path}: too short to measure: {warnings[-1]}, expected at least {window + 1}")
    for number, track in enumerate(tracks):
        warnings += [f"track {number}: {line}" for line in track.verdict.warnings]
    speaker = max(range(len(tracks)), key=lambda number: tracks[number].verdict.z)
    return Result(str(path), tracks, speaker, warnings)


def check_max_shift(max_shift: int) -> None:
    """Raises `UserError` for a range too small for offsets to have rivals, or larger than any recording needs."""
    if not _LEAST_SHIFT <= max_shift <= _LARGEST_SHIFT:
        raise UserError(f"expected max_shift from {_LEAST_SHIFT} to {_LARGEST_SHIFT} frames, got {max_shift}")


def score_track(
    scorer: Scorer, clip: Clip, max_shift: int, scored: Callable[[int], None] | None = None
) -> Float32[np.ndarray, "windows shifts"]:
    """Scores a clip of any length, with one stretch of it in memory at a time.

    Stretches start at multiples of 5 frames, which are whole mel columns, and overlap by more than max_shift, so
    the scores equal those of the whole clip at once.

    Args:
      scored: called after each stretch with the number of windows scored so far.

    Returns:
      float32 (N, 2·max_shift + 1).
    """
    window = scorer.config.window_frames
    usable = clip.num_frames
    count = usable - window
    margin = 5 * (max_shift // 5 + 2)
    rows = []
    for start in range(0, count, _CHUNK):
        end = min(start + _CHUNK, count)
        first, last = max(start - margin, 0), min(end + margin + window, usable)
        audio_end = len(clip.waveform) if last == usable else (last + 2) * SAMPLES_PER_FRAME
        audio = clip.waveform[first * SAMPLES_PER_FRAME : audio_end]
        part = scorer(clip.frames[first:last], audio, max_shift=max_shift, reference_edges=False)
        rows.append(part[start - first : end - first])
        if scored is not None:
            scored(end)
    return np.concatenate(rows)


def _track(scorer: Scorer, clip: FaceClip, max_shift: int, progress: Progress, done: int) -> Track:
    """Scores and judges one face. `done`: what `progress` has counted before it."""
    scores = score_track(scorer, clip.clip, max_shift, lambda windows: progress.update(done + windows))
    verdict = judge(scores, clip.start_seconds, scorer.config.window_frames)
    verdict.warnings.extend(material_warnings(_motion(clip.clip), _loudness(clip.clip)))
    return Track(clip.start_seconds, clip.end_seconds, clip.track.box, verdict, scores, clip.thumbnail)


def _motion(clip: Clip) -> float:
    """Mean change of the mouth region between frames in grey levels, over ten stretches of up to a second."""
    starts = np.linspace(0, max(clip.num_frames - FPS, 0), 10).astype(int)
    changes = []
    for start in sorted(set(starts.tolist())):
        frames = clip.frames[start : min(start + FPS, clip.num_frames)]
        mouth = frames[:, 8:, 24:72].astype(np.int16)
        changes.append(np.abs(np.diff(mouth, axis=0)).mean())
    return float(np.mean(changes))


def _loudness(clip: Clip) -> float:
    """RMS of the loudest tenth of the audio, frame by frame; full scale = 1."""
    frames = np.asarray(clip.waveform[: clip.num_frames * SAMPLES_PER_FRAME]).reshape(-1, SAMPLES_PER_FRAME)
    power = np.sort([float(np.mean(np.square(frame.astype(np.float64) / 32768))) for frame in frames])
    return float(np.sqrt(power[-max(len(power) // 10, 1) :].mean()))


def _face_warnings(found: FoundFaces) -> list[str]:
    """The parts of the video that were not measured."""
    lines = [f"no face at {start / FPS:.1f}–{end / FPS:.1f} s" for start, end in found.faceless]
    if len(lines) > 3:
        share = sum(end - start for start, end in found.faceless) / found.num_frames
        lines = [f"no face in {len(lines)} stretches, {share:.0%} of the video"]
    return lines + [
        f"a face at {d.start / FPS:.1f}–{d.end / FPS:.1f} s was skipped: {d.reason}" for d in found.dropped
    ]
