"""Links the face boxes of single frames to tracks: one face through one shot. Pure NumPy."""

import bisect
import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from mtd_jax.data.clip import FPS


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


def link(
    detections: Mapping[int, np.ndarray], cuts: Sequence[int], settings: LinkSettings
) -> tuple[list[FaceTrack], list[DroppedTrack]]:
    """Links the boxes of searched frames to tracks and interpolates the boxes of the frames in between.

    Matching is greedy: in each searched frame, the track and the box with the largest overlap are linked first. A
    track ends with its last detection.

    Args:
      detections: frame → float32 (faces, 5), boxes and scores; an empty array if no face was found.
      cuts: the first frame of each new shot, in increasing order. No track crosses a cut.
      settings: see `LinkSettings`.

    Returns:
      The tracks, sorted by start and then from left to right, and the dropped ones.
    """
    open_tracks: list[dict[int, np.ndarray]] = []
    ended: list[dict[int, np.ndarray]] = []
    for frame in sorted(detections):
        shot = bisect.bisect_right(cuts, frame)
        still_open = []
        for track in open_tracks:
            last = max(track)
            continues = bisect.bisect_right(cuts, last) == shot and frame - last <= settings.max_gap
            (still_open if continues else ended).append(track)
        boxes = detections[frame][:, :4]
        matches = _match(np.array([track[max(track)] for track in still_open]), boxes, settings.min_iou)
        for number, box in enumerate(boxes):
            if number in matches:
                still_open[matches[number]][frame] = box
            else:
                still_open.append({frame: box})
        open_tracks = still_open
    tracks: list[FaceTrack] = []
    dropped: list[DroppedTrack] = []
    for track in ended + open_tracks:
        start, end = min(track), max(track) + 1
        if end - start < settings.min_frames:
            needed = f"{settings.min_frames / FPS:g} s"
            dropped.append(DroppedTrack(start, end, f"seen for {(end - start) / FPS:g} s, less than {needed}"))
        else:
            tracks.append(FaceTrack(start, _interpolate(track, start, end)))
    return (
        sorted(tracks, key=lambda track: (track.start, track.boxes[0, 0])),
        sorted(dropped, key=lambda track: (track.start, track.end)),
    )


def largest(tracks: Sequence[FaceTrack], at_once: int) -> tuple[list[FaceTrack], list[DroppedTrack]]:
    """Drops faces that spend more than half of their frames next to so many larger ones: listeners, bystanders."""
    kept: list[FaceTrack] = []
    dropped = []
    for track in sorted(tracks, key=_area, reverse=True):
        shared = [min(track.end, other.end) - max(track.start, other.start) for other in kept]
        if sum(2 * frames > len(track.boxes) for frames in shared) >= at_once:
            what = "a larger face" if at_once == 1 else f"{at_once} larger faces"
            dropped.append(DroppedTrack(track.start, track.end, f"next to {what}"))
        else:
            kept.append(track)
    return sorted(kept, key=lambda track: track.start), dropped


def _area(track: FaceTrack) -> float:
    x0, y0, x1, y1 = track.box
    return (x1 - x0) * (y1 - y0)


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


def _interpolate(track: dict[int, np.ndarray], start: int, end: int) -> np.ndarray:
    """A box for every frame, float32 (end − start, 4), linearly interpolated between the detections."""
    frames = sorted(track)
    sides = np.array([track[frame] for frame in frames])
    wanted = np.arange(start, end)
    return np.stack([np.interp(wanted, frames, side) for side in sides.T], axis=1).astype(np.float32)
