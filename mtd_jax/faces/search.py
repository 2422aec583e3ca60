"""Finds the faces of a video and follows them, in one pass over its pictures."""

import collections
import dataclasses
from collections.abc import Iterable, Iterator

import cv2
import numpy as np

from mtd_jax.data.clip import FPS
from mtd_jax.errors import UserError
from mtd_jax.faces.boxes import WHOLE_FRAME, FaceBox, inside, read_boxes, track_of_box
from mtd_jax.faces.detect import CloseUpDetector, FaceDetector, load_detector
from mtd_jax.faces.shots import SIDE, CutDetector
from mtd_jax.faces.tracks import DroppedTrack, FaceTrack, Linker, LinkSettings, OpenTrack, faceless, iou
from mtd_jax.video.decode import Picture, Progress, VideoFile

_SURROUNDINGS = 2.0  # times a face's longer side: as far as a face moves from one search to the next
_NEAR = 140  # pixels that these surroundings are searched at; the face has half of them
_SAME = 0.5  # intersection over union of two boxes of one face
_NOTHING = np.zeros((0, 5), np.float32)


@dataclasses.dataclass(frozen=True)
class FindSettings:
    """How to search a video.

    Attributes:
      every: step between searched frames. The frames on either side of a cut and the last frame of the video are
        always searched, so that tracks fill their shots.
      whole: step between searches of the whole picture while no face is known, and half the step while faces are
        followed. In between only their surroundings are searched, unless one of them is lost. The first frame of a
        shot is always searched wholly.
      max_hold: a frozen frame keeps its faces for this many frames, then it counts as having none: a longer freeze
        shows no speech.
      min_score: boxes with a lower detector score are ignored.
      max_faces: so many faces are followed at a time, the largest; None = all.
      box_scale: size of the crops, as a multiple of the detector's boxes; docs/real.md has what it does to scores.
      link: how detections become tracks.

    Raises:
      UserError: a `box_scale` outside 0.5 … 2.
    """

    every: int = 5
    whole: int = FPS
    max_hold: int = 5 * FPS
    min_score: float = 0.8
    max_faces: int | None = None
    box_scale: float = 1.0
    link: LinkSettings = LinkSettings()

    def __post_init__(self) -> None:
        if not 0.5 <= self.box_scale <= 2:
            raise UserError(f"box_scale: expected 0.5 to 2, got {self.box_scale}")


@dataclasses.dataclass(frozen=True)
class FoundFaces:
    """The faces of a video, in frames of the 25 fps grid.

    Attributes:
      tracks: sorted by start, then from left to right.
      dropped: faces that were seen too briefly.
      faceless: intervals [start, end) without a track.
      first, end: frames first … end − 1 were searched; none if first = end.
    """

    tracks: list[FaceTrack]
    dropped: list[DroppedTrack]
    faceless: list[tuple[int, int]]
    first: int
    end: int

    @property
    def num_frames(self) -> int:
        """How many were searched."""
        return self.end - self.first


def face_source(name: str) -> FaceDetector | list[FaceBox]:
    """The detector or the boxes that `name` stands for.

    Args:
      name: "mtcnn"; the path of a .json file with the user's boxes (`boxes.py`); or "whole" for videos that are
        already cropped to the face.

    Raises:
      UserError: `name` is none of these, its file cannot be loaded, or the detector's package is missing.
    """
    if name == "whole":
        return WHOLE_FRAME
    return read_boxes(name) if name.lower().endswith(".json") else load_detector(name)


def find_faces(
    video: VideoFile,
    source: FaceDetector | list[FaceBox],
    settings: FindSettings | None = None,
    progress: Progress | None = None,
) -> FoundFaces:
    """Finds and follows the faces of a video. Holds only a few frames in memory at a time.

    Args:
      video: an open video.
      source: a detector, or the user's boxes (`boxes.py`), which need no search.
      settings: how to search; None = the defaults. Without effect on the user's boxes.
      progress: called as the pass proceeds.

    Raises:
      UserError: the boxes do not fit the video, or nothing in it can be decoded.
    """
    if isinstance(source, list):
        return found_boxes(video, source, 0, video.count_frames(progress))
    follower = Follower(source, settings or FindSettings())
    for _ in follower.follow(video.pictures(progress)):
        pass
    _, found = follower.finish()
    return found


def found_boxes(video: VideoFile, boxes: list[FaceBox], first: int, end: int) -> FoundFaces:
    """The user's boxes in frames first … end − 1 of a video. Raises `UserError` if one does not fit."""
    sides = sides_of(video, boxes)
    try:
        tracks = [track_of_box(face, side, first, end) for face, side in zip(boxes, sides, strict=True)]
    except UserError as error:
        raise UserError(f"{video.path}: {error}") from error
    return FoundFaces(tracks, [], faceless(tracks, first, end), first, end)


def sides_of(video: VideoFile, boxes: list[FaceBox]) -> list[np.ndarray]:
    """The user's boxes within the frames of a video. Raises `UserError` if one does not fit."""
    try:
        return [inside(face, video.height, video.width) for face in boxes]
    except UserError as error:
        raise UserError(f"{video.path}: {error}") from error


class Follower:
    """Searches the pictures of a video and follows the faces in them."""

    def __init__(self, detector: FaceDetector, settings: FindSettings) -> None:
        self.faces = Linker(settings.link, settings.max_faces)
        self._settings = settings
        self._detect = detector.detect
        self._detect_near = detector.detect_close_up if isinstance(detector, CloseUpDetector) else detector.detect
        self._first = self._end = 0
        self._latest: _Searched | None = None

    def follow(self, pictures: Iterable[tuple[int, Picture]]) -> Iterator[collections.deque[tuple[int, Picture]]]:
        """Takes pictures in order; yields the last few whenever the faces in them are known.

        After each searched frame these are all since the frame before that a face was seen in: now it is known
        which frames in between show it, too.
        """
        settings, cuts = self._settings, CutDetector()
        waiting: collections.deque[tuple[int, Picture]] = collections.deque()
        k, previous = -1, None
        due = whole_due = searched_wholly = -1
        for k, picture in pictures:
            if previous is None:
                self._first = k
            if picture is not previous and cuts.is_cut(picture.sample(SIDE)):
                yield from self._search_last(waiting)
                self.faces.cut()
                waiting.clear()
                due = whole_due = k
            previous = picture
            waiting.append((k, picture))
            if k < due:
                continue
            if self._search(k, picture, whole=k >= whole_due):
                seen = any(track.last == k for track in self.faces.open)
                whole_due, searched_wholly = k + settings.whole * (2 if seen else 1), k
                self._trace_back(k, waiting)
            due = k + settings.every
            yield waiting
            needed = min([searched_wholly, *(track.last for track in self.faces.open)])
            while waiting and waiting[0][0] <= needed:
                waiting.popleft()
        yield from self._search_last(waiting)
        self._end = k + 1

    def finish(self) -> tuple[list[OpenTrack], FoundFaces]:
        """The faces that were found, and the same as `FoundFaces`."""
        kept, dropped = self.faces.finish()
        tracks = [face.track() for face in kept]
        gaps = faceless(tracks, self._first, self._end)
        return kept, FoundFaces(tracks, dropped, gaps, self._first, self._end)

    def _search_last(
        self, waiting: collections.deque[tuple[int, Picture]]
    ) -> Iterator[collections.deque[tuple[int, Picture]]]:
        """Searches the last frame of a shot, if that has not been done."""
        if waiting and self._latest is not None and self._latest.frame < waiting[-1][0]:
            self._search(*waiting[-1], whole=False)
            yield waiting

    def _search(self, frame: int, picture: Picture, whole: bool) -> bool:
        """Searches a frame, wholly or near the faces that are followed; returns whether it was wholly."""
        still = self._latest if self._latest is not None and self._latest.picture is picture else None
        since = frame if still is None else still.since
        held = frame - since <= self._settings.max_hold
        if still is not None and (still.whole >= whole or not held):
            boxes, whole = still.boxes, still.whole
        elif whole or self.faces.open:
            pixels = picture.rgb()
            near = None if whole else self._near_all(pixels)
            whole = near is None
            boxes = self._confident(self._detect([pixels]))[0] if near is None else near
        else:
            boxes = _NOTHING
        self.faces.add(frame, boxes if held else _NOTHING, begin=whole)
        self._latest = _Searched(frame, since, picture, boxes, whole)
        return whole

    def _trace_back(self, frame: int, waiting: Iterable[tuple[int, Picture]]) -> None:
        """Looks for the faces that begin in this frame in the pictures since the whole one was searched before."""
        new = [track for track in self.faces.open if track.first == frame]
        *earlier, (_, found_in) = waiting
        for before, picture in reversed(earlier):
            if not new:
                return
            # The same picture shows nothing new; and where it stands for long, it counts as having no faces.
            if picture is found_in or (frame - before) % self._settings.every:
                continue
            boxes = self._near(picture.rgb(), [track.boxes(track.first)[0] for track in new])
            for track, box in zip(list(new), boxes, strict=True):
                others = [other.box_at(before) for other in self.faces.open if other.first <= before]
                if box is None or (others and iou(box[None, :4], np.array(others)).max() >= _SAME):
                    new.remove(track)
                else:
                    track.seen_before(before, box[:4])

    def _near_all(self, pixels: np.ndarray) -> np.ndarray | None:
        """Boxes near those of the faces that are followed; None if a face has been lost since the last search."""
        found: list[tuple[float, np.ndarray]] = []
        for track, box in zip(
            self.faces.open, self._near(pixels, [track.last_box for track in self.faces.open]), strict=True
        ):
            if box is not None:
                found.append((iou(track.last_box[None], box[None, :4]).item(), box))
            elif self._latest is not None and track.last == self._latest.frame:
                return None
        boxes: list[np.ndarray] = []
        for _, box in sorted(found, key=lambda pair: -pair[0]):
            # A face near another one is found in the surroundings of both.
            if not boxes or iou(box[None, :4], np.array(boxes)[:, :4]).max() < _SAME:
                boxes.append(box)
        return np.array(boxes, np.float32).reshape(-1, 5)

    def _near(self, pixels: np.ndarray, sides: list[np.ndarray]) -> list[np.ndarray | None]:
        """For each box of an earlier frame, the face in its surroundings that overlaps it most, float32 (5,)."""
        height, width = pixels.shape[:2]
        places, pieces = [], []
        for x0, y0, x1, y1 in sides:
            side = int(_SURROUNDINGS * max(x1 - x0, y1 - y0)) + 1
            left = max(min(int((x0 + x1 - side) / 2), width - side), 0)
            top = max(min(int((y0 + y1 - side) / 2), height - side), 0)
            piece = pixels[top : top + side, left : left + side]
            scale = min(_NEAR / max(piece.shape[:2]), 1.0)
            size = max(round(scale * piece.shape[1]), 1), max(round(scale * piece.shape[0]), 1)
            places.append((left, top, piece.shape[1] / size[0], piece.shape[0] / size[1]))
            step = max(side // (2 * _NEAR), 1)
            pieces.append(cv2.resize(piece[::step, ::step], size, interpolation=cv2.INTER_AREA))
        best: list[np.ndarray | None] = []
        detected = self._confident(self._detect_near(pieces))
        for box, found, (left, top, wide, high) in zip(sides, detected, places, strict=True):
            found[:, :4] = found[:, :4] * [wide, high, wide, high] + [left, top, left, top]
            overlap = iou(box[None], found[:, :4])[0]
            near = len(found) and overlap.max() >= self._settings.link.min_iou
            best.append(found[np.argmax(overlap)] if near else None)
        return best

    def _confident(self, found: list[np.ndarray]) -> list[np.ndarray]:
        return [boxes[boxes[:, 4] >= self._settings.min_score] for boxes in found]


@dataclasses.dataclass(frozen=True)
class _Searched:
    """The frame that was searched last.

    Attributes:
      since: the first frame of the same picture that was searched.
      whole: not only near the faces that were followed.
    """

    frame: int
    since: int
    picture: Picture
    boxes: np.ndarray
    whole: bool
