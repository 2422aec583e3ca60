"""From any video file to a verdict: are picture and sound together, and if not, by how much?"""

import os
from collections.abc import Callable

import numpy as np

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

Progress = Callable[[str, float, float | None], None]  # what is being done, how much of how much (if known)
_LEAST_SHIFT, _LARGEST_SHIFT = 2, 5 * FPS
_CHUNK = 500  # windows scored at a time: an hour of video fits into memory. A multiple of 5, see score_track


def detect_offset(
    model: SyncModel | Scorer,
    path: str | os.PathLike,
    *,
    faces: str | FaceDetector | list[FaceBox] = "mtcnn",
    max_shift: int = MAX_SHIFT,
    find: FindSettings | None = None,
    progress: Progress | None = None,
) -> Result:
    """Measures by how much picture and sound of a video are apart, for every face in it.

    Args:
      model: for several videos pass a `Scorer`, which prepares the weights once.
      path: of any video file that FFmpeg reads.
      faces: a name as in `face_source` ("mtcnn", "whole", a .json file), or what that returns.
      max_shift: offsets from −max_shift to max_shift frames of 40 ms are compared, 2 to 125.
      find: how faces are searched.
      progress: told what is being done, and how far it is.

    Raises:
      UserError: no usable video, sound or face.
    """
    check_max_shift(max_shift)
    scorer = model if isinstance(model, Scorer) else Scorer(model)
    window = scorer.config.window_frames
    source = face_source(faces) if isinstance(faces, str) else faces
    video = open_video(path)
    looking = None if progress is None else lambda done, total: progress("looking for faces", done, total)
    clips, found = face_clips(video, source, find, looking)
    warnings = [*video.warnings, *_face_warnings(found)]
    total = sum(clip.clip.num_frames for clip in clips)
    tracks: list[Track] = []
    done = 0
    if progress is not None:
        progress("scoring", 0, total)
    for clip in clips:

        def scored(windows: int, before: int = done) -> None:
            if progress is not None:
                progress("scoring", before + windows, total)

        place = f"the face at {clip.start_seconds:.1f}–{clip.end_seconds:.1f} s"
        if clip.clip.num_frames <= window:
            warnings.append(f"{place} was left out: {clip.clip.num_frames} frames with sound are too few")
        else:
            tracks.append(_track(scorer, clip, max_shift, scored))
        done += clip.clip.num_frames
    if not tracks:
        raise UserError(f"{path}: too short to measure: {warnings[-1]}, expected at least {window + 1}")
    for number, track in enumerate(tracks):
        warnings += [f"track {number}: {line}" for line in track.warnings]
    speaker = max(range(len(tracks)), key=lambda number: tracks[number].verdict.z)
    return Result(str(path), tracks, speaker, warnings)


def check_max_shift(max_shift: int) -> None:
    """Raises `UserError` for a range in which no offset has rivals, or that no recording needs."""
    if not _LEAST_SHIFT <= max_shift <= _LARGEST_SHIFT:
        raise UserError(f"expected max_shift from {_LEAST_SHIFT} to {_LARGEST_SHIFT} frames, got {max_shift}")


def score_track(
    scorer: Scorer, clip: Clip, max_shift: int, progress: Callable[[int], None] | None = None
) -> np.ndarray:
    """Scores a clip of any length, a stretch of it in memory at a time.

    Stretches start on multiples of 5 frames, which are whole mel columns, and overlap by max_shift and more, so
    that the scores are those of the whole clip.

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
        sound_end = len(clip.waveform) if last == usable else (last + 2) * SAMPLES_PER_FRAME
        sound = clip.waveform[first * SAMPLES_PER_FRAME : sound_end]
        part = scorer(clip.frames[first:last], sound, max_shift=max_shift, reference_edges=False)
        rows.append(part[start - first : end - first])
        if progress is not None:
            progress(end)
    return np.concatenate(rows)


def _track(scorer: Scorer, clip: FaceClip, max_shift: int, progress: Callable[[int], None]) -> Track:
    scores = score_track(scorer, clip.clip, max_shift, progress)
    verdict = judge(scores, clip.start_seconds, scorer.config.window_frames)
    verdict.warnings.extend(material_warnings(_motion(clip.clip), _loudness(clip.clip)))
    return Track(clip.start_seconds, clip.end_seconds, clip.track.box, verdict, scores, clip.thumbnail)


def _motion(clip: Clip) -> float:
    """Mean change of the mouth region between frames in grey levels, over ten stretches of up to a second."""
    starts = np.linspace(0, max(clip.num_frames - FPS, 0), 10).astype(int)
    changes = [np.diff(clip.frames[s : min(s + FPS, clip.num_frames)][:, 8:, 24:72].astype(np.int16), axis=0)
               for s in sorted(set(starts.tolist()))]  # fmt: skip
    return float(np.mean([np.abs(change).mean() for change in changes]))


def _loudness(clip: Clip) -> float:
    """RMS of the loudest tenth of the frames' sound, full scale = 1."""
    frames = np.asarray(clip.waveform[: clip.num_frames * SAMPLES_PER_FRAME]).reshape(-1, SAMPLES_PER_FRAME)
    power = np.sort([float(np.mean(np.square(frame.astype(np.float64) / 32768))) for frame in frames])
    return float(np.sqrt(power[-max(len(power) // 10, 1) :].mean()))


def _face_warnings(found: FoundFaces) -> list[str]:
    """What of the video was not measured."""
    lines = [f"no face at {start / FPS:.1f}–{end / FPS:.1f} s" for start, end in found.faceless]
    if len(lines) > 3:
        share = sum(end - start for start, end in found.faceless) / found.num_frames
        lines = [f"no face in {len(lines)} stretches, {share:.0%} of the video"]
    return lines + [
        f"a face at {d.start / FPS:.1f}–{d.end / FPS:.1f} s was left out: {d.reason}" for d in found.dropped
    ]
