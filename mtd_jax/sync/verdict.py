"""What the scores of a face track say: the offset, how sure it is (`confidence.py`), and whether it stays."""

import dataclasses
import json
import math

import numpy as np

from mtd_jax.data.clip import FPS
from mtd_jax.scoring import context_scores

CONFIDENT = 0.9  # below it the offset is a guess; README.md has the histogram this follows from
_CONTEXT = 15  # frames behind the offset of a window
_SEGMENT = 3 * FPS  # windows behind a point of the offset over time
_ENOUGH = FPS  # windows to judge by, even where that narrows the range of shifts


@dataclasses.dataclass(frozen=True)
class Window:
    """The 15 frames around one window: their best offset (positive = the audio is early) and its mean logit."""

    start_seconds: float
    offset_frames: int
    score: float


@dataclasses.dataclass(frozen=True)
class Segment:
    """About 3 s of a track, judged alone."""

    start_seconds: float
    end_seconds: float
    offset_frames: int
    confidence: float


@dataclasses.dataclass(frozen=True)
class Verdict:
    """What holds for a whole track.

    Attributes:
      offset_frames: in frames of 40 ms, positive = the audio is early: delay it to fix.
      confidence: 0 … 1. Low means wrong face, no speech, picture and sound of different recordings,
        too little material, an offset outside the range, or one that changes.
      z: the unbounded number behind it, see `confidence.py`.
      max_shift: offsets from −max_shift to max_shift were compared; less than asked for in short tracks.
      score: mean logit at the offset; above 0 the model takes the two to belong together.
      windows: one per window that sees every one of these shifts.
      segments: the offset over time.
      drifts: segments that are sure of themselves disagree by more than a frame.
      warnings: reasons for doubt, one line each.
    """

    offset_frames: int
    confidence: float
    z: float
    max_shift: int
    score: float
    windows: list[Window]
    segments: list[Segment]
    drifts: bool
    warnings: list[str]

    @property
    def offset_seconds(self) -> float:
        return self.offset_frames / FPS

    @property
    def in_sync(self) -> bool:
        """Within ±1 frame all the time. Says nothing about how sure that is."""
        return abs(self.offset_frames) <= TOLERANCE and not self.drifts

    @property
    def sync_words(self) -> str:
        """ "in sync", "not in sync", or that this cannot be told."""
        if not self.is_sure and not self.drifts:
            return "cannot tell"
        return "in sync" if self.in_sync else "not in sync"

    @property
    def is_sure(self) -> bool:
        return self.confidence >= CONFIDENT

    @property
    def words(self) -> str:
        """The offset with its sign in words."""
        return words(self.offset_frames)

    @property
    def summary(self) -> str:
        """One sentence for people; it says so when the offset is a guess or not constant."""
        if self.drifts:
            return "the offset changes over time"
        if not self.is_sure:
            return f"cannot tell (the best guess: {self.words})"
        return self.words + (", within tolerance" if self.in_sync and self.offset_frames else "")


def words(offset_frames: int) -> str:
    """An offset as people say it: "the audio is early by 160 ms (4 frames)"."""
    if offset_frames == 0:
        return "picture and sound are in sync"
    side, count = ("early" if offset_frames > 0 else "late"), abs(offset_frames)
    return f"the audio is {side} by {1000 * count // FPS} ms ({count} frame{'s' if count > 1 else ''})"


def judge(scores: np.ndarray, start_seconds: float = 0.0, window_frames: int = 5) -> Verdict:
    """Judges one track by its scores.

    All shifts are compared on the same windows, those that see all. A track too short for that is judged on
    fewer shifts.

    Args:
      scores: (N, 2·max_shift + 1) of `score_clip` with reference_edges=False, N ≥ 1.
      start_seconds: of the track in the video.
      window_frames: T of the model.
    """
    count, asked = len(scores), scores.shape[1] // 2
    reach = min(asked, (count - min(_ENOUGH, max(count // 3, 1))) // 2)
    inside = slice(reach, count - reach)
    scores = np.asarray(scores, np.float64)[inside, asked - reach : asked + reach + 1]
    start_seconds += reach / FPS
    offset, z = best_offset(scores)
    smooth = context_scores(scores, max(_CONTEXT, window_frames), window_frames)
    windows = [
        Window(start_seconds + i / FPS, reach - int(best), float(smooth[i, best]))
        for i, best in enumerate(np.argmax(smooth, axis=1))
    ]
    segments = []
    for rows in np.array_split(np.arange(len(scores)), max(round(len(scores) / _SEGMENT), 1)):
        part, part_z = best_offset(scores[rows])
        start = start_seconds + int(rows[0]) / FPS
        end = start_seconds + (int(rows[-1]) + window_frames) / FPS
        segments.append(Segment(start, end, part, confidence_of(part_z)))
    sure = [segment.offset_frames for segment in segments if segment.confidence >= CONFIDENT]
    drifts = bool(sure) and max(sure) - min(sure) > TOLERANCE
    verdict = Verdict(
        offset, confidence_of(z), z, reach, float(scores[:, reach - offset].mean()), windows, segments, drifts, []
    )
    verdict.warnings.extend(_warnings(verdict, asked, count + window_frames))
    return verdict


def material_warnings(motion: float, loudness: float) -> list[str]:
    """Doubts about what was measured.

    Args:
      motion: mean change of the mouth region from frame to frame, in grey levels of 255.
      loudness: of the loudest tenth of the sound, RMS in [0, 1].
    """
    warnings = []
    if loudness == 0:
        warnings.append("the sound is silent: there is nothing to compare with")
    elif loudness < 10 ** (-50 / 20):
        warnings.append(f"the sound is nearly silent ({20 * math.log10(loudness):.0f} dBFS at its loudest)")
    if motion < 0.25:
        warnings.append(f"the mouth region hardly moves ({motion:.2f} grey levels per frame): a still picture?")
    return warnings


def _warnings(verdict: Verdict, asked: int, frames: int) -> list[str]:
    warnings = []
    if verdict.max_shift < asked:
        tested = f"only offsets up to {verdict.max_shift} frames could be compared" if verdict.max_shift else (
            "no offset could be compared"
        )  # fmt: skip
        warnings.append(f"short: {frames / FPS:.2f} s, {tested} (asked for {asked})")
    if verdict.max_shift and abs(verdict.offset_frames) == verdict.max_shift:
        warnings.append(
            "the best offset is at the edge of the range: the true one may lie beyond, see --max_shift"
        )
    if verdict.drifts:
        sure = [s for s in verdict.segments if s.confidence >= CONFIDENT]
        course = ", ".join(f"{s.offset_frames:+d} from {s.start_seconds:.1f} s" for s in _changes(sure))
        warnings.append(f"the offset is not constant (in frames: {course}): an edit, or clocks that drift")
    elif not verdict.is_sure:
        warnings.append(
            f"low confidence ({verdict.confidence:.2f}): other offsets fit nearly as well; this may be another "
            "person's voice, no speech, or too little of it"
        )
    return warnings


def _changes(segments: list[Segment]) -> list[Segment]:
    """The first segment, and each one whose offset is not that of the one before."""
    return [
        s
        for i, s in enumerate(segments)
        if not i or s.offset_frames != segments[i - 1].offset_frames
    ]  # fmt: skip


# How sure an offset is. Pure NumPy.
#
# The best offset is compared with every other one that is not its neighbour, window by window. The mean
# difference
# of their scores, in units of its standard error, is z; the smallest z counts (the closest rival), and
# confidence = erf(z / √2). So 1 means that no other offset comes close, and 0 that another one does just as
# well.

TOLERANCE = 1  # frames; people don't notice 40 ms, and the published protocol counts them as right


def best_offset(scores: np.ndarray) -> tuple[int, float]:
    """The offset with the best mean over the windows, and its lead over the closest rival in standard errors."""
    means = scores.mean(axis=0)
    best, middle = int(np.argmax(means)), scores.shape[1] // 2
    rivals = np.abs(np.arange(len(means)) - best) > TOLERANCE
    if not rivals.any() or len(scores) < 2:
        return middle - best, 0.0
    lead = scores[:, [best]] - scores[:, rivals]
    error = np.maximum(_standard_error(lead), 1e-9)
    return middle - best, float(min((lead.mean(axis=0) / error).min(), 1e6))


def _standard_error(values: np.ndarray) -> np.ndarray:
    """Of the mean over axis 0. Neighbouring windows share frames, and speech rhythm reaches further: the long-run
    variance (Newey and West 1987, lags up to 1 s), never less than if every fifth window were independent."""
    count = len(values)
    centred = values - values.mean(axis=0)
    lags = min(FPS, count // 4)
    total = (centred**2).sum(axis=0)
    floor = 5 * total
    for lag in range(1, lags + 1):
        total = total + 2 * (1 - lag / (lags + 1)) * (centred[lag:] * centred[:-lag]).sum(axis=0)
    return np.sqrt(np.maximum(total, floor)) / count


def confidence_of(z: float) -> float:
    """0 … 1; 0 where a rival is ahead."""
    return math.erf(max(z, 0.0) / math.sqrt(2))


# What a measurement found, and its JSON: README.md documents the fields.


@dataclasses.dataclass(frozen=True)
class Track:
    """One face of a video and its verdict, whose numbers are attributes of the track too.

    Attributes:
      start_seconds, end_seconds: counted from the first picture.
      box: x0, y0, x1, y1 in pixels, the middle of the track's boxes.
      verdict: see there for the meaning of each number.
      scores: float32 (N, 2·max_shift + 1) logits, column c is audio shifted by c − max_shift frames.
      thumbnail: uint8 (96, 96, 3) RGB.
    """

    start_seconds: float
    end_seconds: float
    box: tuple[float, float, float, float]
    verdict: Verdict
    scores: np.ndarray
    thumbnail: np.ndarray

    @property
    def offset_frames(self) -> int:
        return self.verdict.offset_frames

    @property
    def offset_seconds(self) -> float:
        return self.verdict.offset_seconds

    @property
    def confidence(self) -> float:
        return self.verdict.confidence

    @property
    def in_sync(self) -> bool:
        return self.verdict.in_sync

    @property
    def windows(self) -> list[Window]:
        return self.verdict.windows

    @property
    def segments(self) -> list[Segment]:
        return self.verdict.segments

    @property
    def warnings(self) -> list[str]:
        return self.verdict.warnings


@dataclasses.dataclass(frozen=True)
class Result:
    """What `detect_offset` found.

    Attributes:
      video: path as given.
      tracks: at least one, by start and then from left to right.
      speaker: number of the track whose lips fit the sound best: the one whose offset leads its rivals most.
      warnings: about the file and its faces, and those of every track with its number.
      fps: of all frame counts, 25 whatever the file's own rate.
    """

    video: str
    tracks: list[Track]
    speaker: int
    warnings: list[str]
    fps: int = FPS

    @property
    def speaker_track(self) -> Track:
        return self.tracks[self.speaker]

    def to_dict(self) -> dict:
        """What `to_json` writes, see README.md."""
        return {
            "video": self.video,
            "fps": self.fps,
            "tracks": [_track_dict(track) for track in self.tracks],
            "speaker": self.speaker,
            "warnings": self.warnings,
        }

    def to_json(self) -> str:
        """One JSON object in one line."""
        return one_line_json(self.to_dict())


def one_line_json(content: dict) -> str:
    """JSON without NaN; what a file name holds beside UTF-8 is escaped."""
    return json.dumps(content, allow_nan=False)


def _track_dict(track: Track) -> dict:
    verdict = track.verdict
    return {
        "start_seconds": track.start_seconds,
        "end_seconds": track.end_seconds,
        "box": list(track.box),
        "offset_frames": verdict.offset_frames,
        "offset_seconds": verdict.offset_seconds,
        "confidence": verdict.confidence,
        "in_sync": verdict.in_sync,
        "windows": [dataclasses.asdict(window) for window in verdict.windows],
        "score": verdict.score,
        "max_shift": verdict.max_shift,
        "drift": {"detected": verdict.drifts, "segments": [dataclasses.asdict(s) for s in verdict.segments]},
    }
