"""Links the face boxes of single frames to tracks: one face through one shot. Pure NumPy."""

import bisect
import dataclasses
from collections.abc import Sequence

import numpy as np

from mtd_jax.data.clip import FPS

_LARGER = 1.5  # times the area: enough for a new face to take the place of one that is followed


@dataclasses.dataclass(frozen=True)
class FaceTrack:
    """One face in consecutive frames of the 25 fps grid.

    Attributes:
      start: the first frame.
      boxes: float32 (frames, 4): x0, y0, x1, y1 in pixels, x1 and y1 exclusive.
    """

    start: int
    boxes: np.ndarray

    @property
    def end(self) -> int:
        """One past the last frame."""
        return self.start + len(self.boxes)

    def within(self, first: int, end: int) -> "FaceTrack":
        """Its part in frames first … end − 1, which it must reach."""
        start = max(self.start, first)
        return FaceTrack(start, self.boxes[start - self.start : end - self.start])

    @property
    def box(self) -> tuple[float, float, float, float]:
        """The median box: x0, y0, x1, y1, each the median over the frames."""
        x0, y0, x1, y1 = (float(side) for side in np.median(self.boxes, axis=0))
        return x0, y0, x1, y1


@dataclasses.dataclass(frozen=True)
class DroppedTrack:
    """A face that is not measured: frames start … end − 1, and the reason."""

    start: int
    end: int
    reason: str


@dataclasses.dataclass(frozen=True)
class LinkSettings:
    """How detections become tracks.

    Attributes:
      min_iou: two boxes belong to the same face if their intersection over union is at least this.
      max_gap: a track ends when its face is not detected again within this many frames.
      min_frames: shorter tracks are dropped.
    """

    min_iou: float = 0.3
    max_gap: int = 15
    min_frames: int = FPS


class OpenTrack:
    """A face that is being followed: the frames that it was seen in, and its boxes there."""

    def __init__(self, frame: int, box: np.ndarray):
        self.ends = False  # whether another face takes its place
        self._frames, self._boxes = [frame], [box]

    @property
    def first(self) -> int:
        return self._frames[0]

    @property
    def last(self) -> int:
        return self._frames[-1]

    @property
    def last_box(self) -> np.ndarray:
        return self._boxes[-1]

    def seen(self, frame: int, box: np.ndarray) -> None:
        self._frames.append(frame)
        self._boxes.append(box)

    def seen_before(self, frame: int, box: np.ndarray) -> None:
        """As `seen`, in a frame before all others."""
        self._frames.insert(0, frame)
        self._boxes.insert(0, box)

    def box_at(self, frame: int) -> np.ndarray:
        """float32 (4,), by a straight line between the frames that the face was seen in."""
        return np.array([np.interp(frame, self._frames, side) for side in np.transpose(self._boxes)], np.float32)

    def boxes(self, first: int) -> np.ndarray:
        """A box for every frame from `first` to the last, on straight lines, float32 (frames, 4)."""
        begin = max(bisect.bisect_right(self._frames, first) - 1, 0)
        sides, wanted = np.array(self._boxes[begin:]), np.arange(first, self.last + 1)
        lines = [np.interp(wanted, self._frames[begin:], side) for side in sides.T]
        return np.stack(lines, axis=1).astype(np.float32)

    def track(self) -> FaceTrack:
        return FaceTrack(self.first, self.boxes(self.first))


class Linker:
    """Links boxes to tracks, searched frame by searched frame.

    Matching is greedy: in each searched frame, the track and the box with the largest overlap are linked first. A
    track ends with its last detection.
    """

    def __init__(self, settings: LinkSettings, at_once: int | None = None):
        """Args: at_once: follow no more faces than that at a time, the largest; None = all."""
        self.open: list[OpenTrack] = []
        self._settings, self._at_once = settings, at_once
        self._ended: list[OpenTrack] = []

    def cut(self) -> None:
        """A new shot begins: no track crosses it."""
        self._ended += self.open
        self.open = []

    def add(self, frame: int, boxes: np.ndarray, begin: bool = True) -> None:
        """Takes the boxes of the next searched frame, float32 (faces, ≥ 4).

        Args:
          begin: boxes that continue no track begin one.
        """
        settings = self._settings
        ended = [track for track in self.open if track.ends or frame - track.last > settings.max_gap]
        self._ended += ended
        self.open = [track for track in self.open if track not in ended]
        matches = _match(np.array([track.last_box for track in self.open]), boxes[:, :4], settings.min_iou)
        for box, track in matches.items():
            self.open[track].seen(frame, boxes[box, :4])
        if begin:
            new = sorted(set(range(len(boxes))) - matches.keys(), key=lambda box: -_area(boxes[box]))
            for box in new:
                self._begin(frame, boxes[box, :4])

    def _begin(self, frame: int, box: np.ndarray) -> None:
        staying = [track for track in self.open if not track.ends]
        if self._at_once is not None and len(staying) >= self._at_once:
            smallest = min(staying, key=lambda track: _area(track.last_box))
            if _area(box) < _LARGER * _area(smallest.last_box):
                return
            smallest.ends = True
        self.open.append(OpenTrack(frame, box))

    def finish(self) -> tuple[list[OpenTrack], list[DroppedTrack]]:
        """Ends all tracks. Returns them, sorted by start and then from left to right, and the dropped ones."""
        self.cut()
        kept: list[OpenTrack] = []
        dropped: list[DroppedTrack] = []
        for track in self._ended:
            start, end, least = track.first, track.last + 1, self._settings.min_frames
            if end - start >= least:
                kept.append(track)
            else:
                reason = f"seen for {(end - start) / FPS:g} s, less than {least / FPS:g} s"
                dropped.append(DroppedTrack(start, end, reason))
        return (
            sorted(kept, key=lambda track: (track.first, track.boxes(track.first)[0, 0])),
            sorted(dropped, key=lambda track: (track.start, track.end)),
        )


def largest(tracks: Sequence[FaceTrack], at_once: int) -> tuple[list[FaceTrack], list[DroppedTrack]]:
    """Drops faces that spend more than half of their frames next to so many larger ones: listeners, bystanders."""
    kept: list[FaceTrack] = []
    dropped = []
    for track in sorted(tracks, key=lambda track: _area(np.array(track.box)), reverse=True):
        shared = [min(track.end, other.end) - max(track.start, other.start) for other in kept]
        if sum(2 * frames > len(track.boxes) for frames in shared) >= at_once:
            what = "a larger face" if at_once == 1 else f"{at_once} larger faces"
            dropped.append(DroppedTrack(track.start, track.end, f"next to {what}"))
        else:
            kept.append(track)
    return sorted(kept, key=lambda track: track.start), dropped


def _area(box: np.ndarray) -> float:
    return float((box[2] - box[0]) * (box[3] - box[1]))


def iou(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Intersection over union of every pair of boxes: (n, 4), (m, 4) → (n, m)."""
    low = np.maximum(a[:, None, :2], b[None, :, :2])
    high = np.minimum(a[:, None, 2:], b[None, :, 2:])
    shared = np.prod(np.maximum(high - low, 0), axis=2)
    areas = [np.prod(boxes[:, 2:] - boxes[:, :2], axis=1) for boxes in (a, b)]
    return shared / np.maximum(areas[0][:, None] + areas[1][None] - shared, 1e-9)


def faceless(tracks: Sequence[FaceTrack], first: int, end: int) -> list[tuple[int, int]]:
    """The intervals [start, end) of frames first … end − 1 that no track covers."""
    intervals: list[tuple[int, int]] = []
    seen = first
    for track in sorted(tracks, key=lambda track: track.start):
        if track.start > seen:
            intervals.append((seen, track.start))
        seen = max(seen, track.end)
    if seen < end:
        intervals.append((seen, end))
    return intervals


def _match(tracked: np.ndarray, found: np.ndarray, min_iou: float) -> dict[int, int]:
    """Index of a found box → index of the track that it continues, largest overlap first."""
    matches: dict[int, int] = {}
    if not len(tracked) or not len(found):
        return matches
    overlap = iou(tracked, found)
    while overlap.max() >= min_iou:
        track, box = np.unravel_index(np.argmax(overlap), overlap.shape)
        matches[int(box)] = int(track)
        overlap[track] = overlap[:, box] = -1
    return matches
