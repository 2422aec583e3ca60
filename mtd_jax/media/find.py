"""First pass over a video: where the faces are, as tracks."""

import dataclasses

import numpy as np

from mtd_jax.data.clip import FPS
from mtd_jax.errors import UserError
from mtd_jax.media.boxes import WHOLE_PICTURE, FaceBox, read_boxes, tracks_of_boxes
from mtd_jax.media.cuts import CutDetector
from mtd_jax.media.decode import Progress, VideoFile
from mtd_jax.media.faces import FaceDetector, load_detector
from mtd_jax.media.tracks import DroppedTrack, FaceTrack, LinkSettings, faceless, link

_PICTURES_AT_ONCE = 4  # handed to the detector; at 4K they take 100 MB


@dataclasses.dataclass(frozen=True)
class FindSettings:
    """How a video is searched.

    Attributes:
      every: frames from one searched frame to the next. The last frame before a cut, the first after it and the
        last of the video are always searched, so that tracks fill their shots.
      max_hold: for so many frames a picture that stands still shows the faces that were found in it, then none:
        such stretches are no speech.
      min_score: boxes the detector is less sure of are ignored.
      link: how detections become tracks.
    """

    every: int = 5
    max_hold: int = 5 * FPS
    min_score: float = 0.8
    link: LinkSettings = LinkSettings()


@dataclasses.dataclass(frozen=True)
class FoundFaces:
    """The faces of a video, in frames of the 25 fps grid.

    Attributes:
      tracks: by start, then from left to right.
      dropped: faces that were seen too shortly.
      faceless: stretches (start, end) without any track.
      num_frames: of the video.
    """

    tracks: list[FaceTrack]
    dropped: list[DroppedTrack]
    faceless: list[tuple[int, int]]
    num_frames: int


def face_source(name: str) -> FaceDetector | list[FaceBox]:
    """Where faces come from, by name.

    "mtcnn"; "whole" for videos that are cropped to the face already; or the path of a .json file with the user's
    boxes (`boxes.py`).

    Raises:
      UserError: none of these, or a file or package that doesn't load.
    """
    if name == "whole":
        return WHOLE_PICTURE
    return read_boxes(name) if name.lower().endswith(".json") else load_detector(name)


def find_faces(
    video: VideoFile,
    source: FaceDetector | list[FaceBox],
    settings: FindSettings | None = None,
    progress: Progress | None = None,
) -> FoundFaces:
    """Finds and follows the faces of a video; holds a few frames in memory at a time.

    Args:
      video: an open video.
      source: a detector, or boxes of the user's own (`boxes.py`), which need no search.
      settings: see there; they don't concern boxes of the user's own.
      progress: told how far the pass is.

    Raises:
      UserError: boxes that don't fit the video; nothing that decodes.
    """
    if isinstance(source, list):
        num_frames = video.count_frames(progress)
        try:
            tracks = tracks_of_boxes(source, num_frames, video.height, video.width)
        except UserError as error:
            raise UserError(f"{video.path}: {error}") from error
        return FoundFaces(tracks, [], faceless(tracks, num_frames), num_frames)
    settings = settings or FindSettings()
    detections, cuts, num_frames = _search(video, source, settings, progress)
    tracks, dropped = link(detections, cuts, settings.link)
    return FoundFaces(tracks, dropped, faceless(tracks, num_frames), num_frames)


def _search(video: VideoFile, detector: FaceDetector, settings: FindSettings, progress: Progress | None):
    """Detections by frame, the cuts, and the number of frames."""
    search = _Search(detector, settings)
    cuts: list[int] = []
    cut_detector = CutDetector()
    last, previous, due = -1, None, 0
    for last, picture in video.frames(progress):
        if picture is not previous and cut_detector.is_cut(picture):
            cuts.append(last)
            search.add(last - 1, previous)
            due = last
        if last >= due:
            search.add(last, picture)
            due = last + settings.every
        previous = picture
    if last >= 0:
        search.add(last, previous)
    return search.finish(), cuts, last + 1


class _Search:
    """Detections of chosen frames, some pictures at a time, and each picture once however many frames show it."""

    def __init__(self, detector: FaceDetector, settings: FindSettings):
        self._detector, self._settings = detector, settings
        self._found: dict[int, np.ndarray] = {}
        self._waiting: dict[int, np.ndarray] = {}
        self._again: dict[int, int] = {}  # frame → the searched frame that shows the same picture
        self._frame, self._picture = -1, None  # the last ones that were new

    def add(self, frame: int, picture: np.ndarray) -> None:
        if picture is self._picture:
            if 0 < frame - self._frame <= self._settings.max_hold:
                self._again[frame] = self._frame
            return
        self._frame, self._picture = frame, picture
        self._waiting[frame] = picture
        if len(self._waiting) == _PICTURES_AT_ONCE:
            self._detect()

    def finish(self) -> dict[int, np.ndarray]:
        """float32 (faces, 5) by frame."""
        if self._waiting:
            self._detect()
        return self._found | {frame: self._found[first] for frame, first in self._again.items()}

    def _detect(self) -> None:
        pictures = list(self._waiting.values())
        for frame, found in zip(self._waiting, self._detector.detect(pictures), strict=True):
            self._found[frame] = found[found[:, 4] >= self._settings.min_score]
        self._waiting.clear()
