"""First pass over a video: finds the faces and links them to tracks."""

import dataclasses

import numpy as np

from mtd_jax.data.clip import FPS
from mtd_jax.errors import UserError
from mtd_jax.faces.boxes import WHOLE_FRAME, FaceBox, read_boxes, tracks_of_boxes
from mtd_jax.faces.detect import FaceDetector, load_detector
from mtd_jax.faces.shots import CutDetector
from mtd_jax.faces.tracks import DroppedTrack, FaceTrack, LinkSettings, faceless, largest, link
from mtd_jax.video.decode import Progress, VideoFile, VideoPart

_BATCH = 4  # frames per call of the detector; at 4K they take 100 MB


@dataclasses.dataclass(frozen=True)
class FindSettings:
    """How to search a video.

    Attributes:
      every: step between searched frames. The frames on either side of a cut and the last frame of the video are
        always searched, so that tracks fill their shots.
      max_hold: a frozen frame keeps its faces for this many frames, then it counts as having none: a longer freeze
        shows no speech.
      min_score: boxes with a lower detector score are ignored.
      max_faces: of faces that are seen at the same time, the so many largest are kept; None = all.
      link: how detections become tracks.
    """

    every: int = 5
    max_hold: int = 5 * FPS
    min_score: float = 0.8
    max_faces: int | None = None
    link: LinkSettings = LinkSettings()


@dataclasses.dataclass(frozen=True)
class FoundFaces:
    """The faces of a video, in frames of the 25 fps grid.

    Attributes:
      tracks: sorted by start, then from left to right.
      dropped: faces that were seen too briefly.
      faceless: intervals [start, end) without a track.
      num_frames: how many were searched.
    """

    tracks: list[FaceTrack]
    dropped: list[DroppedTrack]
    faceless: list[tuple[int, int]]
    num_frames: int


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
    video: VideoFile | VideoPart,
    source: FaceDetector | list[FaceBox],
    settings: FindSettings | None = None,
    progress: Progress | None = None,
) -> FoundFaces:
    """Finds and tracks the faces of a video. Holds only a few frames in memory at a time.

    Args:
      video: an open video, or a part of it; frames keep their numbers.
      source: a detector, or the user's boxes (`boxes.py`), which need no search.
      settings: how to search; None = the defaults. Without effect on the user's boxes.
      progress: called as the pass proceeds.

    Raises:
      UserError: the boxes do not fit the video, or nothing in it can be decoded.
    """
    if isinstance(source, list):
        first, end = (
            (video.first, video.end) if isinstance(video, VideoPart) else (0, video.count_frames(progress))
        )
        if isinstance(video, VideoPart):  # boxes of other parts
            source = [box for box in source if box.start_seconds * FPS < end]
        try:
            tracks = tracks_of_boxes(source, end, video.height, video.width)
        except UserError as error:
            raise UserError(f"{video.path}: {error}") from error
        tracks = [track.within(first, end) for track in tracks if track.end > first]
        return FoundFaces(tracks, [], faceless(tracks, first, end), end - first)
    settings = settings or FindSettings()
    detections, cuts, first, end = _search(video, source, settings, progress)
    tracks, dropped = link(detections, cuts, settings.link)
    if settings.max_faces is not None:
        tracks, smaller = largest(tracks, settings.max_faces)
        dropped += smaller
    return FoundFaces(tracks, dropped, faceless(tracks, first, end), end - first)


def _search(
    video: VideoFile | VideoPart, detector: FaceDetector, settings: FindSettings, progress: Progress | None
) -> tuple[dict[int, np.ndarray], list[int], int, int]:
    """Detections by frame, the first frames of new shots, the first frame, and one past the last."""
    search = _Search(detector, settings)
    cuts: list[int] = []
    cut_detector = CutDetector()
    previous: np.ndarray | None = None
    first, last, due = 0, -1, 0
    for last, frame in video.frames(progress):
        if previous is None:
            first = last
        if frame is not previous and cut_detector.is_cut(frame):
            cuts.append(last)
            if previous is not None:
                search.add(last - 1, previous)
            due = last
        if last >= due:
            search.add(last, frame)
            due = last + settings.every
        previous = frame
    if previous is not None:
        search.add(last, previous)
    return search.finish(), cuts, first, last + 1


class _Search:
    """Detects faces in chosen frames, several at a time. A repeated frame is searched only once."""

    def __init__(self, detector: FaceDetector, settings: FindSettings) -> None:
        self._detector, self._settings = detector, settings
        self._found: dict[int, np.ndarray] = {}
        self._waiting: dict[int, np.ndarray] = {}
        self._repeats: dict[int, int] = {}  # number of a repeated frame → number under which it was searched
        self._latest = -1
        self._latest_pixels: np.ndarray | None = None

    def add(self, number: int, pixels: np.ndarray) -> None:
        """Searches frame `number`, now or with the next batch."""
        if pixels is self._latest_pixels:
            if 0 < number - self._latest <= self._settings.max_hold:
                self._repeats[number] = self._latest
            return
        self._latest, self._latest_pixels = number, pixels
        self._waiting[number] = pixels
        if len(self._waiting) == _BATCH:
            self._detect()

    def finish(self) -> dict[int, np.ndarray]:
        """All detections: frame → float32 (faces, 5)."""
        if self._waiting:
            self._detect()
        return self._found | {number: self._found[first] for number, first in self._repeats.items()}

    def _detect(self) -> None:
        detections = self._detector.detect(list(self._waiting.values()))
        for number, found in zip(self._waiting, detections, strict=True):
            self._found[number] = found[found[:, 4] >= self._settings.min_score]
        self._waiting.clear()
