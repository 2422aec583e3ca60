"""Second pass over a video: crops the face of each track and cuts out the matching audio.

One pass finds the faces and another crops them, so that memory holds only a few full-size frames at a time and no
dropped track is cropped. Decoding twice is cheap compared with face detection and scoring.
"""

import dataclasses
import tempfile
import threading
import weakref
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
from mtd_jax.video.decode import Progress, VideoFile, VideoPart


@dataclasses.dataclass(frozen=True)
class FaceClip:
    """One face track, ready for the network.

    Attributes:
      track: where the face is in the video.
      clip: its lower face halves and its audio, which covers the same frames, or fewer if the file's audio ends.
      thumbnail: uint8 (96, 96, 3) RGB, the whole face in the middle of the track.
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
) -> tuple[list[FaceClip], FoundFaces]:
    """Turns a video file into one clip per face track, in under 2 GB of memory even for hours of video.

    Args:
      video: an open video; its `warnings` are complete afterwards.
      source: a face detector, or the user's boxes.
      settings: how to search; None = the defaults.
      progress: called as the work proceeds; each of the two passes counts as half of the duration.
      audio: of the whole video; None = decode it.

    Returns:
      A clip per track, and everything that was found.

    Raises:
      UserError: no face was found for long enough; otherwise as `find_faces` and `VideoFile.waveform`.
    """
    found = find_faces(video, source, settings, _half(progress, 0))
    if not found.tracks:
        raise UserError("; ".join([f"{video.path}: {no_face([found])}", *video.warnings]))
    return crops(video, found, video.waveform() if audio is None else audio, _half(progress, 1)), found


def crops(
    video: VideoFile | VideoPart, found: FoundFaces, audio: np.ndarray, progress: Progress | None = None
) -> list[FaceClip]:
    """A clip per face track that was found in this video, or in this part of it.

    Args:
      audio: of the whole video.
    """
    spool = FaceSpool()
    places: list[list[int]] = [[] for _ in found.tracks]
    thumbnails = [np.zeros((FACE_SIZE, FACE_SIZE, 3), np.uint8) for _ in found.tracks]
    for number, frame, face in crop_tracks(video, found.tracks, progress):
        places[number].append(spool.append(lower_face(face)))
        if frame <= (found.tracks[number].start + found.tracks[number].end) // 2:
            thumbnails[number] = face
    clips = []
    for number, track in enumerate(found.tracks):
        clip = Clip(
            name=f"{video.path.stem}/{number}",
            frames=FaceView(spool, np.array(places[number], np.int64)),
            waveform=audio_of(track, audio),
        )
        clips.append(FaceClip(track, clip, thumbnails[number]))
    return clips


def crop_tracks(
    video: VideoFile | VideoPart, tracks: Sequence[FaceTrack], progress: Progress | None = None
) -> Iterator[tuple[int, int, np.ndarray]]:
    """Yields (index of the track, frame number, uint8 (96, 96, 3) RGB face), frame by frame."""
    last = max((track.end for track in tracks), default=0)
    for frame, pixels in video.frames(progress):
        if frame >= last:
            break
        for number, track in enumerate(tracks):
            if track.start <= frame < track.end:
                yield number, frame, crop_face(pixels, track.boxes[frame - track.start])


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


def _half(progress: Progress | None, number: int) -> Progress | None:
    """Progress of pass `number` (0 or 1), reported as one half of the whole."""
    if progress is None:
        return None

    def report(done: float, total: float | None) -> None:
        progress(done / 2 + (0 if total is None else total / 2 * number), total)

    return report


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
