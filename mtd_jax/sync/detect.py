"""From a video file to its verdict: is the audio in sync with the faces, and if not, by how much is it off?"""

import dataclasses
import functools
import os
from collections.abc import Callable, Iterator
from typing import Protocol

import numpy as np
from jaxtyping import Int16

from mtd_jax.data.clip import FPS, SAMPLES_PER_FRAME
from mtd_jax.errors import UserError
from mtd_jax.faces.boxes import WHOLE_FRAME, FaceBox
from mtd_jax.faces.clips import FaceClip, face_clips, no_face
from mtd_jax.faces.detect import FaceDetector
from mtd_jax.faces.search import FindSettings, FoundFaces, face_source
from mtd_jax.faces.tracks import LinkSettings
from mtd_jax.network.mel import N_FFT
from mtd_jax.network.model import SyncModel
from mtd_jax.scoring import MAX_SHIFT, Scorer, context_scores, lead
from mtd_jax.sync import sample
from mtd_jax.sync.evidence import MEMORY, TOLERANCE, Estimate, Scores, centred, estimate, pool
from mtd_jax.sync.fine import Fine, Voice, fine_offset
from mtd_jax.sync.reasons import doubts
from mtd_jax.sync.verdict import CONFIDENT, Course, Result, Track, Window, course_of, pieces
from mtd_jax.video.decode import VideoFile, open_video, read_audio

MAX_FACES = 6  # at a time, the largest
EVERY = 5  # frames from one scored window to the next, unless all are: windows of 5 frames then share none
_LEAST_SHIFT, _LARGEST_SHIFT = 2, 5 * FPS
_CHUNK = 500  # frames scored at a time, so that an hour of video fits in memory; a multiple of 5
_CONTEXT = 15  # frames averaged for the offset of one window
_SURE = 0.97  # of a sampled film: enough to stop
_WIDE = 3 * FPS  # frames; how far a wider search goes if nothing in the range fits
_WIDE_WINDOWS = 24  # and on how many windows
# Shots are often short, and the windows of all of them count together.
FIND = FindSettings(link=LinkSettings(min_frames=10))


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


@dataclasses.dataclass(frozen=True)
class _Face:
    """A face that was scored: its clip, its scores, and its windows as the network has encoded them."""

    clip: FaceClip
    scores: Scores
    tokens: np.ndarray


def detect_offset(
    model: SyncModel | Scorer,
    path: str | os.PathLike,
    *,
    faces: str | FaceDetector | list[FaceBox] = "mtcnn",
    max_shift: int = MAX_SHIFT,
    thorough: bool = False,
    max_faces: int = MAX_FACES,
    audio_track: str | int | None = None,
    audio: str | os.PathLike | None = None,
    find: FindSettings | None = None,
    progress: Progress | None = None,
) -> Result:
    """Measures how far the audio of a video is out of sync with the faces in it.

    Args:
      model: for several videos pass a `Scorer`, which prepares the weights once.
      path: a video file that FFmpeg reads.
      faces: "mtcnn", "whole" (the video is cropped to the face already), a .json file of boxes, or what
        `face_source` returns for these.
      max_shift: compares offsets from −max_shift to max_shift frames of 40 ms; 2 to 125.
      thorough: score every window of every frame. Else every fifth, and of a film of more than 45 s as many
        stretches as it takes to be sure (`sample.py`).
      max_faces: of faces that are seen at the same time, so many are scored, the largest.
      audio_track: number, from 1, or language of the audio stream to measure; None = the main one.
      audio: another file whose audio is measured instead; it is taken to start when the video does.
      find: how faces are searched for; None = `FIND`.
      progress: follows the stages of the work.

    Raises:
      UserError: no usable video, audio or face.
    """
    check_max_shift(max_shift)
    if max_faces < 1:
        raise UserError(f"expected max_faces ≥ 1, got {max_faces}")
    check_arguments(model, path, faces)
    progress = progress or NoProgress()
    chosen = None if audio_track is None else str(audio_track)
    video = open_video(path, chosen, silent=audio is not None)
    film = _Film(
        scorer=model if isinstance(model, Scorer) else Scorer(model),
        video=video,
        source=face_source(faces) if isinstance(faces, str) else faces,
        find=dataclasses.replace(find or FIND, max_faces=max_faces),
        audio=video.waveform() if audio is None else read_audio(audio),
        max_shift=max_shift,
        every=1 if thorough else EVERY,
    )
    timed = isinstance(film.source, list) and film.source != WHOLE_FRAME  # boxes tell where to look
    whole = thorough or timed or not video.can_seek
    share = film.look(None if whole else _declared_frames(video), progress)
    if not film.faces:
        raise UserError(film.why_nothing())
    return film.result(str(path), share)


def check_max_shift(max_shift: int) -> None:
    """Raises `UserError` for a range too small for offsets to have rivals, or larger than any recording needs."""
    if not _LEAST_SHIFT <= max_shift <= _LARGEST_SHIFT:
        raise UserError(f"expected max_shift from {_LEAST_SHIFT} to {_LARGEST_SHIFT} frames, got {max_shift}")


def check_arguments(model, path, faces) -> None:
    """Raises `UserError` for what is none of these: one line instead of a traceback from far below."""
    if not isinstance(model, SyncModel | Scorer):
        got = type(model).__name__
        raise UserError(f"model: expected a SyncModel or a Scorer, got {got}; load_model(DIR) gives one")
    if not isinstance(path, str | os.PathLike):
        raise UserError(f"path: expected the path of a video file, got {type(path).__name__}")
    boxes = isinstance(faces, list) and all(isinstance(face, FaceBox) for face in faces)
    if not (isinstance(faces, str) or boxes or hasattr(faces, "detect")):
        raise UserError(
            'faces: expected "mtcnn", "whole", a .json file, a detector, or a list of FaceBox '
            f"(mtd_jax.faces.boxes), got {repr(faces):.60}"
        )


@dataclasses.dataclass
class _Film:
    """A video while it is being measured."""

    scorer: Scorer
    video: VideoFile
    source: FaceDetector | list[FaceBox]
    find: FindSettings
    audio: Int16[np.ndarray, " samples"]
    max_shift: int
    every: int
    faces: list[_Face] = dataclasses.field(default_factory=list)
    found: list[FoundFaces] = dataclasses.field(default_factory=list)
    short: list[str] = dataclasses.field(default_factory=list)
    looked: int = 0
    ends_early: bool = False

    def look(self, length: int | None, progress: Progress) -> float:
        """Looks at the film, long ones at samples. Returns the share that was looked at.

        Args:
          length: frames that the container declares; None = look at all, however many there are.
        """
        if length is None or length <= sample.WHOLE:
            self._look_at_all(progress)
            if self.every > 1 and self.faces and estimate(self._pooled()).confidence < CONFIDENT:
                self._look_closer(progress)
            return 1.0
        share = self._look_at_samples(length, progress)
        if share is not None:
            return share
        # Often the audio is longer than the video. The stretches are spread anew over what there is.
        self.faces, self.found, self.short, self.looked, self.ends_early = [], [], [], 0, True
        return self.look(min(self.video.last_frame() or length, length), progress)

    def _look_at_all(self, progress: Progress) -> None:
        progress.stage("looking for faces", self.video.duration_seconds)

        def told(done: float, total: float | None) -> None:
            progress.update(done)

        clips, found = face_clips(self.video, self.source, self.find, told, self.audio)
        self.found.append(found)
        progress.stage("scoring", sum(len(clip.clip.frames) for clip in clips))
        self._score_all(clips, progress)

    def _score_all(self, clips: list[FaceClip], progress: Progress) -> None:
        done = 0
        for clip in clips:
            self._score(clip, lambda frames, before=done: progress.update(before + frames))
            done += len(clip.clip.frames)

    def _look_closer(self, progress: Progress) -> None:
        """Scores every window of the faces that were found."""
        clips, self.every, self.faces = [face.clip for face in self.faces], 1, []
        progress.stage("scoring every window", sum(len(clip.clip.frames) for clip in clips))
        self._score_all(clips, progress)

    def _look_at_samples(self, length: int, progress: Progress) -> float | None:
        """Looks at stretches until the verdict is sure.

        Returns:
          The share of the film that was looked at; None where it is found to end before this length.
        """
        progress.stage("sampling the film", sample.MOST)
        looked: list[tuple[int, int]] = []

        def look(start: int, end: int) -> bool:
            clips, found = face_clips(self.video, self.source, self.find, None, self.audio, start, end)
            looked.append((start, end))
            self.looked += found.num_frames
            if found.num_frames:
                self.found.append(found)
            for clip in clips:
                self._score(clip)
            progress.update(len(looked))
            return found.num_frames > 0 and found.end >= min(end, length - FPS)

        for count, (start, end) in enumerate(sample.stretches(length), start=1):
            if not look(start, end) and not self.ends_early:
                return None
            if count >= sample.FIRST and self.faces and self._is_sure():
                break
        for _ in range(sample.MOST):
            gap = self._gap_that_jumps(looked)
            if gap is None:
                break
            look(*gap)
        return min(self.looked / length, 1.0)

    def _score(self, clip: FaceClip, scored: Callable[[int], None] | None = None) -> None:
        """Scores one face, with one stretch of it in memory at a time."""
        window, start = self.scorer.config.window_frames, -(-clip.track.start // 5) * 5
        first, frames = start - clip.track.start, clip.clip.frames
        count = len(range(0, len(frames) - first - window, self.every))
        if count < 1:
            place = f"the face at {clip.start_seconds:.1f}–{clip.end_seconds:.1f} s"
            self.short.append(f"{place} was skipped: {len(frames)} frames are too few")
            return
        scans, chunk = [], _CHUNK // self.every
        for row in range(0, count, chunk):
            end = min(row + chunk, count)
            part = frames[first + self.every * row : first + self.every * (end - 1) + window]
            scans.append(self._scan(part, start + self.every * row, self.max_shift, self.every))
            if scored is not None:
                scored(first + self.every * end)
        scores, tokens = zip(*scans, strict=True)
        table = np.concatenate([part.table for part in scores])
        whole = dataclasses.replace(scores[0], starts=start + self.every * np.arange(count), table=table)
        keep = slice(None, None, max(EVERY // self.every, 1))
        self.faces.append(_Face(clip, whole, np.concatenate(tokens)[keep]))

    def _scan(self, frames: np.ndarray, start: int, max_shift: int, every: int) -> tuple[Scores, np.ndarray]:
        """Scores frames from `start` of the film on, a multiple of 5; and the tokens of their windows."""
        window, margin = self.scorer.config.window_frames, lead(max_shift)
        samples = self._samples(start - margin, margin + len(frames) + max_shift)
        scan = self.scorer.scan(frames, samples, max_shift=max_shift, every=every)
        starts = start + every * np.arange(len(scan.scores))
        heard = starts[:, None] + np.arange(-max_shift, max_shift + 1)
        heard = (heard >= 0) & ((heard + window) * SAMPLES_PER_FRAME <= len(self.audio))
        table = np.where(heard, scan.scores, np.float32(np.nan))
        return Scores(starts, table, every, max(window, MEMORY)), scan.video

    def _samples(self, first: int, frames: int) -> np.ndarray:
        """Audio of these frames of the film, and N_FFT / 2 samples on both sides, mirrored at its ends."""
        padded = self._padded
        begin, end = first * SAMPLES_PER_FRAME, (first + frames) * SAMPLES_PER_FRAME + N_FFT
        inside = padded[max(begin, 0) : max(end, 0)]
        before = min(max(-begin, 0), end - begin)
        return np.pad(inside, (before, end - begin - before - len(inside)))

    @functools.cached_property
    def _padded(self) -> np.ndarray:
        if len(self.audio) <= N_FFT // 2:
            return np.pad(self.audio, N_FFT // 2)
        return np.pad(self.audio, N_FFT // 2, mode="reflect")

    def _pooled(self) -> Scores:
        return pool([face.scores for face in self.faces])

    def _is_sure(self) -> bool:
        """Whether the offset is sure, and at least half of the pieces are and agree with it."""
        scores = self._pooled()
        whole = estimate(scores)
        parts = [estimate(scores.only(rows)) for rows in pieces(scores)]
        sure = [part for part in parts if part.confidence >= CONFIDENT]
        agree = [abs(part.offset_frames - whole.offset_frames) <= 1 for part in sure]
        return whole.confidence >= _SURE and 2 * len(sure) >= len(parts) and all(agree)

    def _gap_that_jumps(self, looked: list[tuple[int, int]]) -> tuple[int, int] | None:
        """The next stretch to look at, to locate an edit; None if all are located."""
        if not self.faces:
            return None
        course = self._course(self._pooled())
        for before, after, *_ in course.jumps:
            left, right = round(before * FPS), round(after * FPS)
            inside = [place for place in looked if place[0] < right and place[1] > left]
            ends = sorted([left, right, *(edge for place in inside for edge in place if left < edge < right)])
            gaps = [(b - a, a, b) for a, b in zip(ends, ends[1:], strict=False)]
            free = [gap for gap in gaps if not any(s <= gap[1] and gap[2] <= e for s, e in looked)]
            if free:
                _, a, b = max(free)
                if (gap := sample.between(a, b)) is not None:
                    return gap
        return None

    def _course(self, scores: Scores) -> Course:
        return course_of(scores, self._speakers(scores), self.scorer.config.window_frames)

    def _speakers(self, scores: Scores) -> dict[int, int]:
        """First frame of a window → the face whose scores were taken at the best offset."""
        column = scores.max_shift - estimate(scores).offset_frames
        chosen = dict(zip(scores.starts.tolist(), scores.table[:, column].tolist(), strict=True))
        found: dict[int, int] = {}
        for number, face in enumerate(self._in_order()):
            for start, score in zip(
                face.scores.starts.tolist(), face.scores.table[:, column].tolist(), strict=True
            ):
                if chosen[start] == score or start not in found:
                    found[start] = number
        return found

    def _in_order(self) -> list[_Face]:
        return sorted(self.faces, key=lambda face: (face.clip.track.start, face.clip.track.boxes[0, 0]))

    def result(self, name: str, share: float) -> Result:
        faces = self._in_order()
        scores = self._pooled()
        whole = estimate(scores)
        course = self._course(scores)
        if course.rate is not None:
            whole = estimate(scores.moved(course.rate * FPS), everywhere=False)
        tracks = [self._track(face) for face in faces]
        column = scores.max_shift - whole.offset_frames
        votes = [float(np.nansum(centred(face.scores)[:, column])) for face in faces]
        speaker = int(np.argmax(votes))
        wide = better = None
        if course.is_constant and self.max_shift < _WIDE and _is_suspect(whole, self.max_shift):
            found = self._wider(max(faces, key=lambda face: len(face.scores.starts)))
            if whole.confidence >= CONFIDENT and abs(found.offset_frames - whole.offset_frames) > TOLERANCE:
                better, whole = found.offset_frames, dataclasses.replace(whole, confidence=0.0)
            if found.confidence >= _SURE:
                wide = found.offset_frames
        fine: Fine | None = None
        if course.is_constant and whole.confidence >= CONFIDENT:
            fine = fine_offset(self.scorer, self._voices(scores, whole), whole.offset_frames)
        warnings = [*self.video.warnings, *_face_warnings(self.found, share), *self.short]
        if self.ends_early and not self.video.is_cut_short:
            ends = max(part.end for part in self.found) / FPS
            warnings.append(
                f"video: ends at {ends:.0f} s, before the file does at {self.video.duration_seconds:.0f} s"
            )
        seconds = fine.seconds if fine else (whole.offset_frames if wide is None else wide) / FPS
        warnings += doubts(
            whole,
            course,
            self.max_shift,
            wide,
            motions=[motion(face.clip) for face in faces],
            audio=self.audio,
            video_seconds=max(face.clip.end_seconds for face in faces),
            better=better,
        )
        return Result(
            video=name,
            offset_frames=round(seconds * FPS),
            offset_seconds=seconds,
            offset_error_seconds=fine.error_seconds if fine else None,
            confidence=course.confidence if course.jumps else whole.confidence,
            course=course,
            tracks=tracks,
            speaker=speaker,
            warnings=warnings,
            sampled=share,
            is_cut_short=self.video.is_cut_short,
            audio_track=self.video.audio_track,
        )

    def _track(self, face: _Face) -> Track:
        clip, scores = face.clip, face.scores
        window = self.scorer.config.window_frames
        filled = np.where(np.isfinite(scores.table), scores.table, np.nanmin(scores.table, initial=0.0))
        rows = max(_CONTEXT, window) if self.every == 1 else window + 2  # as many frames, in windows
        smooth = context_scores(filled, rows, window)
        best = np.argmax(smooth, axis=1)
        windows = [
            Window(int(start) / FPS, scores.max_shift - int(b), float(smooth[i, b]))
            for i, (start, b) in enumerate(zip(scores.starts, best, strict=True))
        ]
        return Track(
            clip.start_seconds, clip.end_seconds, clip.track.box, estimate(scores), windows, scores, clip.thumbnail
        )

    def _voices(self, scores: Scores, whole: Estimate) -> Iterator[Voice]:
        """The windows of whoever speaks: their tokens, and the audio around the best offset."""
        speakers = self._speakers(scores)
        column = scores.max_shift - whole.offset_frames
        for number, face in enumerate(self._in_order()):
            step = max(EVERY // self.every, 1)
            votes = centred(face.scores)[::step, column]
            for start, vote, tokens in zip(face.scores.starts[::step].tolist(), votes, face.tokens, strict=True):
                if speakers.get(start) == number and vote > 0:
                    yield Voice(start, float(vote), tokens, self._samples)

    def _wider(self, face: _Face) -> Estimate:
        """What a search of ±3 s on a few windows of the face finds."""
        count = min(len(face.tokens), _WIDE_WINDOWS)
        window = self.scorer.config.window_frames
        # In the middle, where most of the audio around them is in the film.
        start = int(face.scores.starts[0]) + EVERY * ((len(face.tokens) - count) // 2)
        first = start - face.clip.track.start
        frames = face.clip.clip.frames[first : first + EVERY * (count - 1) + window]
        scores, _ = self._scan(frames, start, _WIDE, EVERY)
        return estimate(scores, everywhere=False)

    def why_nothing(self) -> str:
        """A message that says why there is nothing to measure."""
        path = self.video.path
        if self.short:
            least = self.scorer.config.window_frames + 1
            return f"{path}: too short to measure: {self.short[-1]}, expected at least {least}"
        return "; ".join([f"{path}: {no_face(self.found)}", *self.video.warnings])


def _is_suspect(found: Estimate, max_shift: int) -> bool:
    """Whether the true offset may be outside of the range: nothing in it is sure, the best is at its edge, or the
    model takes even that for out of sync."""
    edge = max_shift - abs(found.offset_frames) <= TOLERANCE
    return found.confidence < CONFIDENT or found.score < 0 or edge


def _declared_frames(video: VideoFile) -> int | None:
    if video.duration_seconds is None:
        return None
    return int((video.duration_seconds - video.start_seconds) * FPS)


def motion(clip: FaceClip) -> float:
    """How much the mouth changes from frame to frame beyond what a move of the crop explains.

    In grey levels, over ten stretches of up to a second. A box that moves by a fraction of a pixel changes the
    crops of a still image, too; that part follows the gradients of the image.
    """
    frames = clip.clip.frames
    starts = np.linspace(0, max(len(frames) - FPS, 0), 10).astype(int)
    changes = []
    for start in sorted(set(starts.tolist())):
        mouths = frames[start : min(start + FPS, len(frames))][:, 8:, 24:72].mean(axis=3, dtype=np.float32)
        for before, after in zip(mouths, mouths[1:], strict=False):
            down, across = np.gradient(before)
            rows, columns = np.indices(before.shape) - np.reshape(before.shape, (2, 1, 1)) / 2
            moves = [down, across, rows * down + columns * across, rows * across - columns * down]
            basis = np.stack([move.ravel() for move in [*moves, before, np.ones_like(before)]], axis=1)
            change = (after - before).ravel()
            # Least squares by the normal equations: six columns of a thousand pixels each.
            explained = basis @ (np.linalg.pinv(basis.T @ basis, hermitian=True) @ (basis.T @ change))
            changes.append(np.abs(change - explained).mean())
    return float(np.mean(changes))


def _face_warnings(found: list[FoundFaces], share: float) -> list[str]:
    """The parts of the video that were not measured."""
    gaps = [gap for part in found for gap in part.faceless if gap[1] - gap[0] >= EVERY]
    lines = [f"no face at {start / FPS:.1f}–{end / FPS:.1f} s" for start, end in gaps]
    if len(lines) > 3:
        seen = sum(part.num_frames for part in found)
        part = "the video" if share == 1 else "what was looked at"
        lines = [f"no face in {len(lines)} stretches, {sum(b - a for a, b in gaps) / seen:.0%} of {part}"]
    dropped = [
        f"a face at {d.start / FPS:.1f}–{d.end / FPS:.1f} s was skipped: {d.reason}"
        for part in found
        for d in part.dropped
    ]
    return lines + (
        dropped if len(dropped) <= 3 else [f"{len(dropped)} faces were seen too briefly to be measured"]
    )
