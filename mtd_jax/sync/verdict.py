"""From the scores of a film to its verdict: in sync, out of sync, drifting, or unknown; and what the tools return.

The film is cut into pieces of about 3 s. A piece counts if it is sure of its offset beyond doubt, or as its
neighbour is. If all that count agree, the verdict rests on the whole film; if they do not, the offset drifts (a
line through them fits) or jumps (an edit).
"""

import dataclasses
import json
import math
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np

from mtd_jax.data.clip import FPS
from mtd_jax.sync.evidence import TOLERANCE, Estimate, Scores, centred, estimate

CONFIDENT = 0.9  # below it the offset is a guess; docs/video.md has the diagram this threshold comes from
_BEYOND_DOUBT = 0.995  # of a piece alone: a film has hundreds of them
GUESS = 0.5  # below it there is not even a guess
_SIDES = 0.97  # of both sides of an edit
_PIECE = 3 * FPS
_RATES = {  # of the audio's clock to the video's: what conversions between frame rates leave behind
    "24 to 25 frames per second": 25 / 24 - 1,
    "25 to 24 frames per second": 24 / 25 - 1,
    "1001 to 1000": 1.001 - 1,
    "1000 to 1001": 1 / 1.001 - 1,
}
_NAMED = 0.1  # a measured rate has a name if it is this near, as a share of it
Kind = Literal["in_sync", "out_of_sync", "drifting", "unknown"]


@dataclasses.dataclass(frozen=True)
class Standard:
    """A published tolerance, in seconds.

    Attributes:
      early, late: by how much the audio may be.
      noticed: from where on viewers notice that it is early, and late, if the standard says so.
    """

    name: str
    early: float
    late: float
    noticed: tuple[float, float] | None = None

    def __str__(self) -> str:
        text = f"{self.name}, which tolerates {1000 * self.early:.0f} ms early and {1000 * self.late:.0f} ms late"
        if self.noticed:
            text += f" (noticed from {1000 * self.noticed[0]:.0f} and {1000 * self.noticed[1]:.0f} ms on)"
        return text


STANDARDS = {
    "atsc": Standard("ATSC IS-191", 0.015, 0.045),
    "ebu": Standard("EBU R37", 0.040, 0.060),
    "itu": Standard("ITU-R BT.1359", 0.090, 0.185, (0.045, 0.125)),
}


@dataclasses.dataclass(frozen=True)
class Window:
    """The best offset of the 15 frames around one window (positive = the audio is early), and its mean logit."""

    start_seconds: float
    offset_frames: int
    score: float


@dataclasses.dataclass(frozen=True)
class Segment:
    """A piece of the film with its own offset. `track` is that of the face that speaks in it."""

    start_seconds: float
    end_seconds: float
    offset_frames: int
    confidence: float
    track: int

    @property
    def offset_seconds(self) -> float:
        return self.offset_frames / FPS


@dataclasses.dataclass(frozen=True)
class Course:
    """How the offset changes over the film.

    Attributes:
      segments: the film in pieces of about 3 s.
      rate: by how much the audio's clock is fast, as a share; None unless the offset follows a line.
      jumps: (from second, to second, frames before, frames after) of each edit.
      confidence: in the least sure of the offsets between the edits; without edits 0.
    """

    segments: list[Segment]
    rate: float | None
    jumps: list[tuple[float, float, int, int]]
    confidence: float = 0.0

    @property
    def is_constant(self) -> bool:
        return self.rate is None and not self.jumps


@dataclasses.dataclass(frozen=True)
class Track:
    """One face of a video, as far as it was looked at.

    Attributes:
      start_seconds, end_seconds: counted from the first frame.
      box: x0, y0, x1, y1 in pixels, the median of the track's boxes.
      estimate: the offset that this face alone speaks for.
      windows: the best offset around each moment.
      scores: with the first frame of every window, in frames of the video.
      thumbnail: uint8 (96, 96, 3) RGB.
    """

    start_seconds: float
    end_seconds: float
    box: tuple[float, float, float, float]
    estimate: Estimate
    windows: list[Window]
    scores: Scores
    thumbnail: np.ndarray

    @property
    def offset_frames(self) -> int:
        return self.estimate.offset_frames

    @property
    def offset_seconds(self) -> float:
        return self.offset_frames / FPS

    @property
    def confidence(self) -> float:
        return self.estimate.confidence


@dataclasses.dataclass(frozen=True)
class Result:
    """What `detect_offset` found. docs/video.md documents the fields of its JSON.

    Attributes:
      video: path as given.
      offset_frames: of the whole film, in frames of 40 ms; positive = the audio is early: delay it to fix.
      offset_seconds: the same, finer than a frame where speech allows.
      offset_error_seconds: its standard error; None where it is no finer than a frame.
      confidence: in the offset, 0 … 1; of an edited film in the least sure of its offsets.
      course: the offset over time.
      tracks: at least one, ordered by start, then from left to right.
      speaker: index of the track that says most for the offset.
      warnings: about the file, its faces and the verdict, one line each.
      sampled: the share of the film that was looked at, 1 for all of it.
      is_cut_short: the clock of the file jumps, and what follows was left out.
      model: name of the model that judged.
      audio_track: number of the audio stream that was measured, from 1.
      fps: of all frame counts; 25 whatever the frame rate of the file.
    """

    video: str
    offset_frames: int
    offset_seconds: float
    offset_error_seconds: float | None
    confidence: float
    course: Course
    tracks: list[Track]
    speaker: int
    warnings: list[str]
    sampled: float = 1.0
    is_cut_short: bool = False
    model: str = ""
    audio_track: int = 1
    fps: int = FPS

    @property
    def verdict(self) -> Kind:
        """ "in_sync" (within ±1 frame), "out_of_sync", "drifting" (or edited), or "unknown" if it is not sure."""
        if not self.course.is_constant:
            return "drifting"
        if self.confidence < CONFIDENT:
            return "unknown"
        return "in_sync" if abs(self.offset_frames) <= TOLERANCE else "out_of_sync"

    @property
    def segments(self) -> list[Segment]:
        return self.course.segments

    @property
    def speaker_track(self) -> Track:
        return self.tracks[self.speaker]

    @property
    def words(self) -> str:
        """The offset with its sign in words."""
        return words(self.offset_seconds)

    @property
    def summary(self) -> str:
        """One sentence for people, which says when the offset is a guess or not constant."""
        if self.course.rate is not None:
            return "the offset drifts: " + rate_words(self.course.rate)
        if self.course.jumps:
            places = ", ".join(f"{(start + end) / 2:.0f} s" for start, end, *_ in self.course.jumps)
            return f"the offset changes over time, at {places}"
        if self.verdict == "unknown":
            return "cannot tell" + (f" (the best guess: {self.words})" if self.confidence >= GUESS else "")
        if self.verdict == "in_sync":
            return "audio and video are in sync" + (f": {self.words}" if self.offset_frames else "")
        return self.words

    @property
    def basis(self) -> str:
        """What the summary rests on: the offset with its error, the confidence, how much was seen, and by whom."""
        offset = f"{1000 * self.offset_seconds:+.0f}"
        if self.offset_error_seconds is not None:
            offset += f" ± {1000 * self.offset_error_seconds:.0f}"
        share = "less than 1 %" if self.sampled < 0.01 else f"{self.sampled:.0%}"
        seen = "all of the film" if self.sampled == 1 else f"{share} of the film"
        judge = f", by {self.model}" if self.model else ""
        return f"offset {offset} ms, confidence {two_digits(self.confidence)}, from {seen}{judge}"

    def meets(self, standard: str) -> bool | None:
        """Whether the offset is within a published tolerance, see `STANDARDS`; None if it is not known."""
        if self.verdict == "unknown":
            return None
        tolerated = STANDARDS[standard]
        return self.course.is_constant and -tolerated.late <= self.offset_seconds <= tolerated.early

    def to_dict(self) -> dict[str, Any]:
        """The object that `to_json` writes."""
        return {
            "video": self.video,
            "fps": self.fps,
            "model": self.model,
            "verdict": self.verdict,
            "offset_frames": self.offset_frames,
            "offset_seconds": self.offset_seconds,
            "offset_error_seconds": self.offset_error_seconds,
            "confidence": self.confidence,
            "segments": [
                dataclasses.asdict(segment) | {"offset_seconds": segment.offset_seconds}
                for segment in self.segments
            ],
            "rate": self.course.rate,
            "tracks": [_track_dict(track) for track in self.tracks],
            "speaker": self.speaker,
            "audio_track": self.audio_track,
            "sampled": self.sampled,
            "within": {name: self.meets(name) for name in STANDARDS},
            "warnings": self.warnings,
        }

    def to_json(self) -> str:
        """One JSON object on one line."""
        return one_line_json(self.to_dict())


def two_digits(confidence: float) -> str:
    """Rounded down, so that what is not sure does not look as if it were."""
    return f"{math.floor(100 * confidence) / 100:.2f}"


def words(offset_seconds: float) -> str:
    """An offset in words: "the audio is early by 160 ms (4 frames)"."""
    milliseconds, frames = round(1000 * abs(offset_seconds)), abs(offset_seconds) * FPS
    if milliseconds < 1:
        return "audio and video are in sync"
    side, count = ("early" if offset_seconds > 0 else "late"), f"{frames:.1f}".removesuffix(".0")
    return f"the audio is {side} by {milliseconds} ms ({count} frame{'s' if count != '1' else ''})"


def rate_words(rate: float) -> str:
    """A rate in words, with its name if it has one."""
    text = f"the audio runs {'fast' if rate > 0 else 'slow'} by {abs(rate):.2%} ({1e6 * rate:+.0f} ppm)"
    names = [name for name, known in _RATES.items() if abs(rate - known) <= _NAMED * abs(known)]
    return f"{text}, as after a conversion from {names[0]}" if names else text


def course_of(scores: Scores, speaker_at: Mapping[int, int], window_frames: int) -> Course:
    """Whether the offset of a film is constant, follows a line, or jumps.

    Args:
      scores: of all faces, pooled.
      speaker_at: first frame of a window → track that it is of.
      window_frames: T of the model.
    """
    parts = pieces(scores)
    estimates = [estimate(scores.only(rows)) for rows in parts]
    starts = [int(scores.starts[rows[0]]) for rows in parts]
    ends = [int(scores.starts[rows[-1]]) + window_frames for rows in parts]
    segments = [
        Segment(start / FPS, end / FPS, e.offset_frames, e.confidence, speaker_at.get(start, 0))
        for start, end, e in zip(starts, ends, estimates, strict=True)
    ]
    counting = _counting(segments)
    rate = _rate(scores, segments)
    if rate is not None:
        return Course(segments, rate, [])
    runs: list[list[Segment]] = []
    for segment in (segments[i] for i in counting):
        if runs and abs(segment.offset_frames - _median(runs[-1])) <= TOLERANCE:
            runs[-1].append(segment)
        else:
            runs.append([segment])
    if len(runs) < 2 and (split := _split(scores, parts)):
        return Course(segments, None, [split], _SIDES)
    jumps = [
        (*_between(_within(scores, a[-1], b[0]), _median(a), _median(b)), _median(a), _median(b))
        for a, b in zip(runs, runs[1:], strict=False)
    ]
    return Course(segments, None, jumps, min((max(s.confidence for s in run) for run in runs), default=0.0))


def _split(scores: Scores, parts: list[np.ndarray]) -> tuple[float, float, int, int] | None:
    """The edit of a film whose pieces say little on their own: both sides of it are sure, of different offsets."""
    for place in range(1, len(parts)):
        sides = [np.concatenate(parts[:place]), np.concatenate(parts[place:])]
        left, right = (estimate(scores.only(rows)) for rows in sides)
        apart = abs(left.offset_frames - right.offset_frames) > TOLERANCE
        if apart and min(left.confidence, right.confidence) >= _SIDES:
            before, after = left.offset_frames, right.offset_frames
            return (*_between(scores, before, after), before, after)
    return None


def pieces(scores: Scores) -> list[np.ndarray]:
    """Rows of the pieces of a film: about 3 s each, none across a gap of more than a second."""
    gaps = np.flatnonzero(np.diff(scores.starts) > FPS) + 1
    parts = []
    for rows in np.split(np.arange(len(scores.starts)), gaps):
        if len(rows):
            span = int(scores.starts[rows[-1]] - scores.starts[rows[0]]) + scores.every
            parts += np.array_split(rows, max(round(span / _PIECE), 1))
    return parts


def one_line_json(content: Mapping[str, Any]) -> str:
    """JSON on one line, ASCII only (a file name need not be valid UTF-8). Raises `ValueError` for NaN."""
    return json.dumps(content, allow_nan=False)


def _counting(segments: list[Segment]) -> list[int]:
    """Indices of the segments that count: sure beyond doubt, or sure and of one mind with a sure neighbour."""
    sure = [i for i, segment in enumerate(segments) if segment.confidence >= CONFIDENT]
    agreed = set()
    for a, b in zip(sure, sure[1:], strict=False):
        if abs(segments[a].offset_frames - segments[b].offset_frames) <= TOLERANCE:
            agreed |= {a, b}
    return [i for i in sure if i in agreed or segments[i].confidence >= _BEYOND_DOUBT]


def _rate(scores: Scores, segments: list[Segment]) -> float | None:
    """The rate at which the offset moves; None if a constant fits as well, or jumps fit better.

    Tried are the rates with names, and those that move the offset by up to max_shift frames within the film.
    """
    sure = [segment.offset_frames for segment in segments if segment.confidence >= CONFIDENT]
    if len(sure) > 1 and max(sure) - min(sure) <= TOLERANCE:
        return None
    likely = [segment for segment in segments if segment.confidence >= GUESS]
    if len({segment.offset_frames for segment in likely}) < 3:
        return None  # a line fits any two offsets
    span = (int(scores.starts[-1]) - int(scores.starts[0])) / FPS
    steps = [move / span for move in range(-scores.max_shift, scores.max_shift + 1) if move] if span else []
    steps += [rate * FPS for rate in _RATES.values() if abs(rate) * FPS * span > 2 * TOLERANCE]
    constant = estimate(scores)
    table = centred(scores)
    fixed = table[:, scores.max_shift - constant.offset_frames]
    best, best_rate = 5.0, None
    for step in steps:
        moved = scores.moved(step)
        middle = estimate(moved, everywhere=False)
        line = centred(moved, scores)[:, scores.max_shift - middle.offset_frames]
        both = np.isfinite(line) & np.isfinite(fixed)
        lead = (line - fixed)[both]
        if middle.confidence < CONFIDENT or len(lead) < 10 or not lead.std():
            continue
        t = lead.mean() / (lead.std() / np.sqrt(len(lead) * scores.share))
        if t > best:
            off = [
                segment.offset_frames
                - (middle.offset_frames + step * (segment.start_seconds + segment.end_seconds) / 2)
                for segment in likely
            ]
            if np.mean(np.abs(off) <= TOLERANCE + 0.5) >= 0.8:
                best, best_rate = t, step / FPS
    return best_rate


def _between(scores: Scores, before: int, after: int) -> tuple[float, float]:
    """Where the offset jumps, in seconds: a moment within a stretch, or all of a gap."""
    table = np.nan_to_num(centred(scores))
    lead = table[:, scores.max_shift - before] - table[:, scores.max_shift - after]
    sums = np.concatenate([[0.0], np.cumsum(lead)])
    place = int(np.argmax(sums))  # the windows before it have the old offset, those after it the new one
    moments = scores.starts / FPS
    if place == 0 or place == len(moments):
        return float(moments[0]), float(moments[-1])
    return float(moments[place - 1]), float(moments[place])


def _within(scores: Scores, first: Segment, last: Segment) -> Scores:
    """The windows from one segment to another."""
    inside = (scores.starts >= first.start_seconds * FPS) & (scores.starts < last.end_seconds * FPS)
    return scores.only(np.flatnonzero(inside))


def _median(run: list[Segment]) -> int:
    return int(np.median([segment.offset_frames for segment in run]))


def _track_dict(track: Track) -> dict[str, Any]:
    return {
        "start_seconds": track.start_seconds,
        "end_seconds": track.end_seconds,
        "box": list(track.box),
        "offset_frames": track.offset_frames,
        "offset_seconds": track.offset_seconds,
        "confidence": track.confidence,
        "score": track.estimate.score,
        "windows": [dataclasses.asdict(window) for window in track.windows],
    }
