"""From the scores of a face track to its verdict: the offset, the confidence in it, and whether it drifts.

Confidence compares the best offset with its rivals, which are all offsets but its neighbours. For each rival, take
the difference of the two scores in every window; its mean, in units of its standard error, is the lead over that
rival. z is the smallest lead, and confidence = erf(z / √2): near 1 no rival comes close, at 0 one is just as good.
"""

import dataclasses
import json
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Float, Shaped

from mtd_jax.data.clip import FPS
from mtd_jax.scoring import context_scores

CONFIDENT = 0.9  # below it the offset is a guess; docs/video.md has the histogram this threshold comes from
TOLERANCE = 1  # frames; viewers do not notice 40 ms, and the published protocol counts it as in sync
_CONTEXT = 15  # frames averaged for the offset of one window
_SEGMENT = 3 * FPS  # windows per segment of the offset over time
_ENOUGH = FPS  # keep at least so many windows to judge by, even if that narrows the range of offsets


@dataclasses.dataclass(frozen=True)
class Window:
    """The best offset of the 15 frames around one window (positive = the audio is early), and its mean logit."""

    start_seconds: float
    offset_frames: int
    score: float


@dataclasses.dataclass(frozen=True)
class Segment:
    """About 3 s of a track, judged on their own."""

    start_seconds: float
    end_seconds: float
    offset_frames: int
    confidence: float


@dataclasses.dataclass(frozen=True)
class Verdict:
    """The verdict on a whole track.

    Attributes:
      offset_frames: in frames of 40 ms; positive = the audio is early, so delay it to fix the video.
      confidence: 0 … 1. Low for the wrong face, no speech, audio and video of different recordings, too little
        material, an offset outside the range, or one that changes.
      z: smallest lead over a rival in standard errors, from which the confidence is computed (see above).
      max_shift: offsets from −max_shift to max_shift were compared; fewer than requested in short tracks.
      score: mean logit at the offset; above 0 the model considers audio and video in sync.
      windows: one entry per window that sees all of these offsets.
      segments: the offset over time.
      drifts: confident segments disagree by more than a frame.
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
        """Within ±1 frame throughout. True or false whatever the confidence: check `is_sure` as well."""
        return abs(self.offset_frames) <= TOLERANCE and not self.drifts

    @property
    def is_sure(self) -> bool:
        return self.confidence >= CONFIDENT

    @property
    def sync_words(self) -> str:
        """ "in sync", "not in sync" or "cannot tell"."""
        if not self.is_sure and not self.drifts:
            return "cannot tell"
        return "in sync" if self.in_sync else "not in sync"

    @property
    def words(self) -> str:
        """The offset with its sign in words."""
        return words(self.offset_frames)

    @property
    def summary(self) -> str:
        """One sentence for people, which says when the offset is a guess or not constant."""
        if self.drifts:
            return "the offset changes over time"
        if not self.is_sure:
            return f"cannot tell (the best guess: {self.words})"
        return self.words + (", within tolerance" if self.in_sync and self.offset_frames else "")


@dataclasses.dataclass(frozen=True)
class Track:
    """One face of a video and its verdict.

    Attributes:
      start_seconds, end_seconds: counted from the first frame.
      box: x0, y0, x1, y1 in pixels, the median of the track's boxes.
      verdict: all that was measured.
      scores: float32 (N, 2·max_shift + 1) logits; column c is audio shifted by c − max_shift frames.
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


@dataclasses.dataclass(frozen=True)
class Result:
    """What `detect_offset` found. docs/video.md documents the fields of its JSON.

    Attributes:
      video: path as given.
      tracks: at least one, ordered by start, then from left to right.
      speaker: index of the track whose lips fit the audio best, that is with the largest z.
      warnings: about the file and its faces, and those of every track with its index.
      fps: of all frame counts; 25 whatever the frame rate of the file.
    """

    video: str
    tracks: list[Track]
    speaker: int
    warnings: list[str]
    fps: int = FPS

    @property
    def speaker_track(self) -> Track:
        return self.tracks[self.speaker]

    def to_dict(self) -> dict[str, Any]:
        """The object that `to_json` writes."""
        return {
            "video": self.video,
            "fps": self.fps,
            "tracks": [_track_dict(track) for track in self.tracks],
            "speaker": self.speaker,
            "warnings": self.warnings,
        }

    def to_json(self) -> str:
        """One JSON object on one line."""
        return one_line_json(self.to_dict())


def words(offset_frames: int) -> str:
    """An offset in words: "the audio is early by 160 ms (4 frames)"."""
    if offset_frames == 0:
        return "audio and video are in sync"
    side, count = ("early" if offset_frames > 0 else "late"), abs(offset_frames)
    return f"the audio is {side} by {1000 * count // FPS} ms ({count} frame{'s' if count > 1 else ''})"


def judge(
    scores: Shaped[np.ndarray, "windows shifts"], start_seconds: float = 0.0, window_frames: int = 5
) -> Verdict:
    """Judges one track by its scores.

    All offsets are compared on the same windows, those that see every offset. A track too short for that is judged
    on fewer offsets.

    Args:
      scores: (N, 2·max_shift + 1) from `Scorer` with reference_edges=False, N ≥ 1.
      start_seconds: start of the track in the video.
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


def best_offset(scores: Float[np.ndarray, "windows shifts"]) -> tuple[int, float]:
    """The offset with the best mean score, and z, its lead over the closest rival in standard errors."""
    means = scores.mean(axis=0)
    best, middle = int(np.argmax(means)), scores.shape[1] // 2
    rivals = np.abs(np.arange(len(means)) - best) > TOLERANCE
    if not rivals.any() or len(scores) < 2:
        return middle - best, 0.0
    lead = scores[:, [best]] - scores[:, rivals]
    error = np.maximum(_standard_error(lead), 1e-9)
    return middle - best, float(min((lead.mean(axis=0) / error).min(), 1e6))


def confidence_of(z: float) -> float:
    """Confidence in [0, 1]; 0 if a rival is ahead."""
    return math.erf(max(z, 0.0) / math.sqrt(2))


def material_warnings(motion: float, loudness: float) -> list[str]:
    """Doubts about what was measured.

    Args:
      motion: mean change of the mouth region from frame to frame, in grey levels of 255.
      loudness: RMS of the loudest tenth of the audio, in [0, 1].
    """
    warnings = []
    if loudness == 0:
        warnings.append("the audio is silent: there is nothing to compare the video with")
    elif loudness < 10 ** (-50 / 20):
        warnings.append(f"the audio is nearly silent ({20 * math.log10(loudness):.0f} dBFS at its loudest)")
    if motion < 0.25:
        warnings.append(f"the mouth region hardly moves ({motion:.2f} grey levels per frame): a still image?")
    return warnings


def one_line_json(content: Mapping[str, Any]) -> str:
    """JSON on one line, ASCII only (a file name need not be valid UTF-8). Raises `ValueError` for NaN."""
    return json.dumps(content, allow_nan=False)


def _standard_error(values: Float[np.ndarray, "windows rivals"]) -> Float[np.ndarray, " rivals"]:
    """Standard error of the mean over axis 0.

    Windows are not independent: neighbours share frames, and the rhythm of speech reaches further. So this takes
    the long-run variance (Newey and West 1987, lags up to 1 s), and at least that of one independent window in
    five.
    """
    count = len(values)
    centred = values - values.mean(axis=0)
    lags = min(FPS, count // 4)
    total = (centred**2).sum(axis=0)
    floor = 5 * total
    for lag in range(1, lags + 1):
        total = total + 2 * (1 - lag / (lags + 1)) * (centred[lag:] * centred[:-lag]).sum(axis=0)
    return np.sqrt(np.maximum(total, floor)) / count


def _warnings(verdict: Verdict, asked: int, frames: int) -> list[str]:
    """Doubts about the verdict on a track of this many frames, for which offsets up to `asked` were requested."""
    warnings = []
    if verdict.max_shift < asked:
        tested = "no offset could be compared"
        if verdict.max_shift:
            tested = f"only offsets up to {verdict.max_shift} frames could be compared"
        warnings.append(f"short: {frames / FPS:.2f} s, {tested} (asked for {asked})")
    if verdict.max_shift and abs(verdict.offset_frames) == verdict.max_shift:
        warnings.append(
            "the best offset is at the edge of the range; the true one may be outside it: try a larger --max_shift"
        )
    if verdict.drifts:
        sure = [s for s in verdict.segments if s.confidence >= CONFIDENT]
        course = ", ".join(f"{s.offset_frames:+d} from {s.start_seconds:.1f} s" for s in _changes(sure))
        warnings.append(f"the offset is not constant (in frames: {course}): an edit, or drifting clocks")
    elif not verdict.is_sure:
        warnings.append(
            f"low confidence ({verdict.confidence:.2f}): other offsets fit nearly as well; this may be another "
            "person's voice, no speech, or too little of it"
        )
    return warnings


def _changes(segments: list[Segment]) -> list[Segment]:
    """The first segment, and each one whose offset differs from that of its predecessor."""
    changed = [b for a, b in zip(segments, segments[1:], strict=False) if a.offset_frames != b.offset_frames]
    return segments[:1] + changed


def _track_dict(track: Track) -> dict[str, Any]:
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
