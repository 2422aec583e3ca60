"""Second pass over a video: the crops of each face track, and the sound that goes with them.

Faces are found in one pass and cut out in another, so that the only full-size pictures in memory are the few being
worked on, and only tracks that stay are cut out. Decoding twice is cheap beside finding faces and scoring.
"""

import dataclasses
import tempfile
import threading
from collections.abc import Iterator, Sequence

import numpy as np

from mtd_jax.data.clip import FACE_SIZE, FPS, SAMPLES_PER_FRAME, Clip
from mtd_jax.data.folder import lower_face
from mtd_jax.errors import UserError
from mtd_jax.faces.boxes import FaceBox
from mtd_jax.faces.crop import crop_face
from mtd_jax.faces.detect import FaceDetector
from mtd_jax.faces.search import FindSettings, FoundFaces, find_faces
from mtd_jax.faces.tracks import FaceTrack
from mtd_jax.video.decode import Progress, VideoFile


@dataclasses.dataclass(frozen=True)
class FaceClip:
    """One face track, ready for the network.

    Attributes:
      track: where in the video it is.
      clip: its pictures and its sound. The sound covers exactly its frames, less where the file's sound ends.
      thumbnail: uint8 (96, 96, 3) RGB, the whole face from the middle of the track.
    """

    track: FaceTrack
    clip: Clip
    thumbnail: np.ndarray

    @property
    def start_seconds(self) -> float:
        """Counted from the first picture."""
        return self.track.start / FPS

    @property
    def end_seconds(self) -> float:
        return self.track.end / FPS


def face_clips(
    video: VideoFile,
    source: FaceDetector | list[FaceBox],
    settings: FindSettings | None = None,
    progress: Progress | None = None,
) -> tuple[list[FaceClip], FoundFaces]:
    """From a video file to the clips of its faces, in under 2 GB of memory for hours of video.

    Args:
      video: an open video; its `warnings` are complete afterwards.
      source: a face detector, or boxes of the user's own.
      settings: how it is searched.
      progress: told how far the work is: the two passes count half of the duration each.

    Returns:
      A clip per track, and what was found and dropped.

    Raises:
      UserError: no face was found for long enough; the boxes don't fit; see `find_faces`.
    """
    found = find_faces(video, source, settings, _half(progress, 0))
    if not found.tracks:
        raise UserError("; ".join([f"{video.path}: {no_face(found)}", *video.warnings]))
    sound = video.waveform()
    spool = FaceSpool()
    places: list[list[int]] = [[] for _ in found.tracks]
    thumbnails = [np.zeros((FACE_SIZE, FACE_SIZE, 3), np.uint8) for _ in found.tracks]
    for number, frame, face in crop_tracks(video, found.tracks, _half(progress, 1)):
        places[number].append(spool.append(lower_face(face)))
        if frame <= (found.tracks[number].start + found.tracks[number].end) // 2:
            thumbnails[number] = face
    clips = []
    for number, track in enumerate(found.tracks):
        clip = Clip(
            name=f"{video.path.stem}/{number}",
            frames=FaceView(spool, np.array(places[number], np.int64)),
            waveform=sound_of(track, sound),
        )
        clips.append(FaceClip(track, clip, thumbnails[number]))
    return clips, found


def crop_tracks(
    video: VideoFile, tracks: Sequence[FaceTrack], progress: Progress | None = None
) -> Iterator[tuple[int, int, np.ndarray]]:
    """Yields (number of the track, frame, uint8 (96, 96, 3) RGB face), frame by frame."""
    last = max((track.end for track in tracks), default=0)
    for frame, picture in video.frames(progress):
        if frame >= last:
            break
        for number, track in enumerate(tracks):
            if track.start <= frame < track.end:
                yield number, frame, crop_face(picture, track.boxes[frame - track.start])


def sound_of(track: FaceTrack, sound: np.ndarray) -> np.ndarray:
    """int16 (≤ 640 · frames,): the part of a video's sound that belongs to a track's frames."""
    return sound[track.start * SAMPLES_PER_FRAME : track.end * SAMPLES_PER_FRAME]


def no_face(found: FoundFaces) -> str:
    """Why there is nothing to measure, in words."""
    seconds = f"{found.num_frames / FPS:.1f} s of video"
    if not found.dropped:
        return f"no face was found in {seconds}"
    longest = max(found.dropped, key=lambda track: track.end - track.start)
    return f"no face was found for long enough in {seconds} (one was {longest.reason})"


def _half(progress: Progress | None, number: int) -> Progress | None:
    """Lets a pass count from (number / 2) of the whole on."""
    if progress is None:
        return None

    def tell(done: float, total: float | None) -> None:
        progress(done / 2 + (0 if total is None else total / 2 * number), total)

    return tell


# Face crops of a long video: kept in memory while they are few, in a temporary file beyond that.

_SHAPE = (FACE_SIZE // 2, FACE_SIZE, 3)
_SIZE = FACE_SIZE // 2 * FACE_SIZE * 3
_IN_MEMORY = 256 << 20  # bytes; five minutes of one face. An hour takes 1.2 GB on disk


class FaceSpool:
    """Holds lower face halves, uint8 (48, 96, 3), in the order they come; the file goes with the last view."""

    def __init__(self, in_memory: int = _IN_MEMORY):
        self._file = tempfile.SpooledTemporaryFile(in_memory)  # noqa: SIM115 (closed when collected)
        self._count = 0
        self._lock = threading.Lock()

    def append(self, half: np.ndarray) -> int:
        """Adds one picture; returns its place, for `FaceView`."""
        try:
            self._file.seek(self._count * _SIZE)
            self._file.write(np.ascontiguousarray(half).tobytes())
        except OSError as error:
            folder = tempfile.gettempdir()
            raise UserError(f"no room for face crops in {folder} ({error.strerror}): set TMPDIR") from error
        self._count += 1
        return self._count - 1

    def read(self, places: np.ndarray) -> np.ndarray:
        """uint8 (n, 48, 96, 3) of the given places."""
        halves = np.empty((len(places), *_SHAPE), np.uint8)
        with self._lock:
            for half, place in zip(halves, places, strict=True):
                self._file.seek(int(place) * _SIZE)
                half[:] = np.frombuffer(self._file.read(_SIZE), np.uint8).reshape(_SHAPE)
        return halves


class FaceView:
    """The pictures of one track: `view[a:b]` reads only its own, uint8 (n, 48, 96, 3)."""

    def __init__(self, spool: FaceSpool, places: np.ndarray):
        self._spool, self._places = spool, places

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, window: slice) -> np.ndarray:
        return self._spool.read(self._places[window])
