"""From a video to a clip per face: the crops of each track, and the audio that goes with them."""

import dataclasses
import tempfile
import threading
import weakref
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from mtd_jax.data.clip import FACE_SIZE, FPS, SAMPLES_PER_FRAME, Clip
from mtd_jax.data.folder import lower_face
from mtd_jax.errors import UserError
from mtd_jax.faces.boxes import FaceBox, covers
from mtd_jax.faces.crop import crop_face, scaled_box
from mtd_jax.faces.detect import FaceDetector
from mtd_jax.faces.search import FindSettings, Follower, FoundFaces, found_boxes, sides_of
from mtd_jax.faces.tracks import FaceTrack, OpenTrack
from mtd_jax.video.decode import Picture, Progress, VideoFile
from mtd_jax.workers import ahead

_AHEAD = 8  # pictures that are decoded while others are searched


@dataclasses.dataclass(frozen=True)
class FaceClip:
    """One face track, ready for the network.

    Attributes:
      track: where the face is in the video.
      clip: its lower face halves and its audio, which covers the same frames, or fewer if the file's audio ends.
      thumbnail: uint8 (96, 96, 3) RGB, a whole face of the second half of the track.
    """

    track: FaceTrack
    clip: Clip
    thumbnail: np.ndarray

    @property
    def start_seconds(self) -> float:
        """Start of the track, counted from the first video frame."""
        return self.track.start / FPS

    @property
    def end_seconds(self) -> float:
        """End of the track, counted from the first video frame."""
        return self.track.end / FPS


def face_clips(
    video: VideoFile,
    source: FaceDetector | list[FaceBox],
    settings: FindSettings | None = None,
    progress: Progress | None = None,
    audio: np.ndarray | None = None,
    first: int = 0,
    end: int | None = None,
) -> tuple[list[FaceClip], FoundFaces]:
    """Turns a video, or a part of it, into one clip per face track: one pass, a few frames in memory at a time.

    Args:
      video: an open video; its `warnings` are complete afterwards.
      source: a face detector, or the user's boxes.
      settings: how to search; None = the defaults.
      progress: called as the work proceeds.
      audio: of the whole video; None = decode it.
      first, end: frames first … end − 1; None = to the end of the video.

    Returns:
      A clip per track, and everything that was found; perhaps nothing.

    Raises:
      UserError: as `find_faces` and `VideoFile.waveform`.
    """
    pictures, spool = ahead(video.pictures(progress, first, end), _AHEAD), FaceSpool()
    if isinstance(source, list):
        reels, found = _film_boxes(video, source, pictures, first, spool)
    else:
        reels, found = _film_faces(source, settings or FindSettings(), pictures, spool)
    audio = video.waveform() if audio is None else audio
    clips = []
    for number, (track, reel) in enumerate(zip(found.tracks, reels, strict=True)):
        clip = Clip(
            name=f"{video.path.stem}/{number}",
            frames=FaceView(spool, np.array(reel.places, np.int64)),
            waveform=audio_of(track, audio),
        )
        clips.append(FaceClip(track, clip, reel.thumbnail))
    return clips, found


def _film_boxes(
    video: VideoFile,
    boxes: list[FaceBox],
    pictures: Iterable[tuple[int, Picture]],
    first: int,
    spool: "FaceSpool",
) -> tuple[list["_Reel"], FoundFaces]:
    """The crops of the user's boxes."""
    sides = sides_of(video, boxes)
    reels, k = [_Reel(spool, 1) for _ in boxes], first - 1
    for k, picture in pictures:
        there = [number for number, face in enumerate(boxes) if covers(face, k)]
        for number, face in zip(there, _crop(picture, [sides[number] for number in there]), strict=True):
            reels[number].add(face)
    if k < first:
        return [], FoundFaces([], [], [], first, first)
    return reels, found_boxes(video, boxes, first, k + 1)


def _film_faces(
    detector: FaceDetector, settings: FindSettings, pictures: Iterable[tuple[int, Picture]], spool: "FaceSpool"
) -> tuple[list["_Reel"], FoundFaces]:
    """Finds faces, and crops them as soon as it is known where they are."""
    follower, reels = Follower(detector, settings), dict[OpenTrack, _Reel]()
    for known in follower.follow(pictures):
        wanted: dict[int, list[tuple[_Reel, np.ndarray]]] = {}
        for track in follower.faces.open:
            reel = reels.setdefault(track, _Reel(spool, settings.link.min_frames))
            begin = track.first + len(reel)
            for frame, box in enumerate(track.boxes(begin), start=begin):
                wanted.setdefault(frame, []).append((reel, scaled_box(box, settings.box_scale)))
        for frame, picture in known:
            there = wanted.get(frame, [])
            for (reel, _), face in zip(there, _crop(picture, [box for _, box in there]), strict=True):
                reel.add(face)
    tracks, found = follower.finish()
    return [reels[track] for track in tracks], found


class _Reel:
    """The crops of one track, in order: kept aside while they are few, for it may be dropped; then spooled.

    Attributes:
      places: of the lower halves in the spool.
      thumbnail: a whole face, of the second half of the track.
    """

    def __init__(self, spool: "FaceSpool", least: int):
        self.places: list[int] = []
        self.thumbnail = np.zeros((FACE_SIZE, FACE_SIZE, 3), np.uint8)
        self._spool, self._least = spool, least
        self._aside: list[np.ndarray] = []

    def __len__(self) -> int:
        return len(self.places) + len(self._aside)

    def add(self, face: np.ndarray) -> None:
        """Args: face: uint8 (96, 96, 3) of the next frame."""
        self._aside.append(lower_face(face))
        if len(self).bit_count() == 1:  # 1, 2, 4, 8 …
            self.thumbnail = face
        if len(self) >= self._least:
            self.places += [self._spool.append(half) for half in self._aside]
            self._aside = []


def crop_tracks(
    video: VideoFile, tracks: Sequence[FaceTrack], progress: Progress | None = None, box_scale: float = 1.0
) -> Iterator[tuple[int, int, np.ndarray]]:
    """Yields (index of the track, frame number, uint8 (96, 96, 3) RGB face), frame by frame."""
    last = max((track.end for track in tracks), default=0)
    for frame, picture in video.pictures(progress):
        if frame >= last:
            break
        there = [number for number, track in enumerate(tracks) if track.start <= frame < track.end]
        boxes = [scaled_box(tracks[number].boxes[frame - tracks[number].start], box_scale) for number in there]
        for number, face in zip(there, _crop(picture, boxes), strict=True):
            yield number, frame, face


def _crop(picture: Picture, boxes: Sequence[np.ndarray]) -> list[np.ndarray]:
    """The faces in these boxes, uint8 (96, 96, 3) RGB each. Without boxes, the picture need not be converted."""
    if not boxes:
        return []
    pixels = picture.rgb()
    return [crop_face(pixels, box) for box in boxes]


def audio_of(track: FaceTrack, audio: np.ndarray) -> np.ndarray:
    """The part of a video's audio that belongs to a track, int16 (at most 640 · frames,)."""
    return audio[track.start * SAMPLES_PER_FRAME : track.end * SAMPLES_PER_FRAME]


def no_face(found: Sequence[FoundFaces]) -> str:
    """A message that says why there is nothing to measure. Args: found: in each part that was searched."""
    seconds = f"{sum(part.num_frames for part in found) / FPS:.1f} s of video"
    dropped = [track for part in found for track in part.dropped]
    if not dropped:
        return f"no face was found in {seconds}"
    longest = max(dropped, key=lambda track: track.end - track.start)
    return f"no face was found for long enough in {seconds} (one was {longest.reason})"


# Stores the face crops of a video: in memory while they are few, in a temporary file beyond that.

_SHAPE = (FACE_SIZE // 2, FACE_SIZE, 3)
_SIZE = FACE_SIZE // 2 * FACE_SIZE * 3
_IN_MEMORY = 256 << 20  # bytes, about 13 minutes of one face; an hour takes 1.2 GB


class FaceSpool:
    """An append-only store of lower face halves, uint8 (48, 96, 3). The file vanishes with the last view of it."""

    def __init__(self, in_memory: int = _IN_MEMORY) -> None:
        self._file = tempfile.SpooledTemporaryFile(in_memory)  # noqa: SIM115 (closed with the last view, below)
        weakref.finalize(self, self._file.close)
        self._count = 0
        self._lock = threading.Lock()

    def append(self, half: np.ndarray) -> int:
        """Stores one face half and returns its index, for `FaceView`.

        Raises:
          UserError: the temporary folder has no room.
        """
        try:
            self._file.seek(self._count * _SIZE)
            self._file.write(np.ascontiguousarray(half).tobytes())
        except OSError as error:
            folder = tempfile.gettempdir()
            raise UserError(
                f"no room for face crops in {folder} ({error.strerror}); set TMPDIR to another folder"
            ) from error
        self._count += 1
        return self._count - 1

    def read(self, places: np.ndarray) -> np.ndarray:
        """The face halves at n indices, uint8 (n, 48, 96, 3)."""
        halves = np.empty((len(places), *_SHAPE), np.uint8)
        with self._lock:
            for half, place in zip(halves, places, strict=True):
                self._file.seek(int(place) * _SIZE)
                half[:] = np.frombuffer(self._file.read(_SIZE), np.uint8).reshape(_SHAPE)
        return halves


class FaceView:
    """The face halves of one track: `view[a:b]` reads only those, uint8 (b − a, 48, 96, 3)."""

    def __init__(self, spool: FaceSpool, places: np.ndarray) -> None:
        self._spool, self._places = spool, places

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, window: slice) -> np.ndarray:
        return self._spool.read(self._places[window])
