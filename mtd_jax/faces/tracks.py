"""Face boxes of single frames joined to tracks: one face through one shot. Pure NumPy."""

import bisect
import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from mtd_jax.data.clip import FPS


@dataclasses.dataclass(frozen=True)
class FaceTrack:
    """One face in consecutive frames of the 25 fps grid.

    Attributes:
      start: its first frame.
      boxes: float32 (frames, 4): x0, y0, x1, y1 in pixels, x1 and y1 exclusive.
    """

    start: int
    boxes: np.ndarray

    @property
    def end(self) -> int:
        """One past its last frame."""
        return self.start + len(self.boxes)

    @property
    def box(self) -> tuple[float, float, float, float]:
        """The middle (median) of its boxes, side by side."""
        return tuple(float(side) for side in np.median(self.boxes, axis=0))


@dataclasses.dataclass(frozen=True)
class DroppedTrack:
    """A face that isn't measured: frames start … end − 1, and why."""

    start: int
    end: int
    reason: str


@dataclasses.dataclass(frozen=True)
class LinkSettings:
    """How detections become tracks.

    Attributes:
      min_iou: a face goes on where boxes of two detections overlap by this intersection over union or more.
      max_gap: it may be missed in between, as long as two detections are at most so many frames apart.
      min_frames: shorter tracks are dropped.
    """

    min_iou: float = 0.3
    max_gap: int = 15
    min_frames: int = FPS


def link(
    detections: Mapping[int, np.ndarray], cuts: Sequence[int], settings: LinkSettings
) -> tuple[list[FaceTrack], list[DroppedTrack]]:
    """Joins the boxes of searched frames to tracks; the frames in between get interpolated boxes.

    At each searched frame the pairs of a track and a box that overlap most are joined first. A track ends with
    its last detection.

    Args:
      detections: frame → float32 (faces, 5), boxes and scores; an empty array where none was found.
      cuts: the frames with which a new shot starts, rising. No track goes across.
      settings: see there.

    Returns:
      The tracks, by start and then from left to right, and those dropped.
    """
    open_tracks: list[dict[int, np.ndarray]] = []
    ended = []
    for frame in sorted(detections):
        shot = bisect.bisect_right(cuts, frame)
        still_open = []
        for track in open_tracks:
            last = max(track)
            goes_on = bisect.bisect_right(cuts, last) == shot and frame - last <= settings.max_gap
            (still_open if goes_on else ended).append(track)
        boxes = detections[frame][:, :4]
        joined = _match(np.array([track[max(track)] for track in still_open]), boxes, settings.min_iou)
        for number, box in enumerate(boxes):
            if number in joined:
                still_open[joined[number]][frame] = box
            else:
                still_open.append({frame: box})
        open_tracks = still_open
    tracks, dropped = [], []
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


def iou(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Intersection over union of every pair of boxes: (n, 4), (m, 4) → (n, m)."""
    low = np.maximum(a[:, None, :2], b[None, :, :2])
    high = np.minimum(a[:, None, 2:], b[None, :, 2:])
    shared = np.prod(np.maximum(high - low, 0), axis=2)
    areas = [np.prod(boxes[:, 2:] - boxes[:, :2], axis=1) for boxes in (a, b)]
    return shared / np.maximum(areas[0][:, None] + areas[1][None] - shared, 1e-9)


def faceless(tracks: Sequence[FaceTrack], num_frames: int) -> list[tuple[int, int]]:
    """The stretches (start, end) of a video in which no track runs."""
    stretches, seen = [], 0
    for track in sorted(tracks, key=lambda track: track.start):
        if track.start > seen:
            stretches.append((seen, track.start))
        seen = max(seen, track.end)
    if seen < num_frames:
        stretches.append((seen, num_frames))
    return stretches


def _match(tracked: np.ndarray, found: np.ndarray, min_iou: float) -> dict[int, int]:
    """Number of the found box → number of the track it continues, best overlaps first."""
    joined: dict[int, int] = {}
    if not len(tracked) or not len(found):
        return joined
    overlap = iou(tracked, found)
    while overlap.max() >= min_iou:
        track, box = np.unravel_index(np.argmax(overlap), overlap.shape)
        joined[int(box)] = int(track)
        overlap[track] = overlap[:, box] = -1
    return joined


def _interpolate(track: dict[int, np.ndarray], start: int, end: int) -> np.ndarray:
    """Boxes float32 (end − start, 4) for every frame, straight lines between the detections."""
    frames = sorted(track)
    sides = np.array([track[frame] for frame in frames])
    wanted = np.arange(start, end)
    return np.stack([np.interp(wanted, frames, side) for side in sides.T], axis=1).astype(np.float32)
