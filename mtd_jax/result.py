"""What a measurement found, and its JSON: README.md documents the fields."""

import dataclasses
import json

import numpy as np

from mtd_jax.data.clip import FPS
from mtd_jax.verdict import Segment, Verdict, Window


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
