"""Which of the faces of a video are worth a training clip."""

from collections.abc import Sequence

import numpy as np

from mtd_jax.data.clip import FPS, SAMPLES_PER_FRAME
from mtd_jax.media.extract import sound_of
from mtd_jax.media.find import FoundFaces
from mtd_jax.media.tracks import DroppedTrack, FaceTrack


def choose_tracks(
    found: FoundFaces, sound: np.ndarray, *, all_faces: bool, min_frames: int
) -> tuple[list[FaceTrack], list[DroppedTrack]]:
    """Tracks cut to the frames that have sound, and what was left out, with reasons.

    Args:
      found: the faces of a video.
      sound: int16 (samples,), its sound.
      all_faces: keep faces beside a larger one.
      min_frames: with sound, that a track needs; shorter ones must have it all the time.
    """
    tracks, dropped = found.tracks, list(found.dropped)
    if not all_faces:
        tracks, smaller = largest_at_a_time(tracks)
        dropped += smaller
    usable = []
    for track in tracks:
        frames = len(sound_of(track, sound)) // SAMPLES_PER_FRAME
        if frames < min(min_frames, len(track.boxes)):
            dropped.append(DroppedTrack(track.start, track.end, f"only {frames / FPS:g} s of it have sound"))
        else:
            usable.append(FaceTrack(track.start, track.boxes[:frames]))
    return usable, dropped


def largest_at_a_time(tracks: Sequence[FaceTrack]) -> tuple[list[FaceTrack], list[DroppedTrack]]:
    """Leaves out faces that spend more than half of their frames beside a larger one: listeners, bystanders."""
    kept: list[FaceTrack] = []
    dropped = []
    for track in sorted(tracks, key=_area, reverse=True):
        beside = max((min(track.end, other.end) - max(track.start, other.start) for other in kept), default=0)
        if 2 * beside > len(track.boxes):
            dropped.append(DroppedTrack(track.start, track.end, "beside a larger face"))
        else:
            kept.append(track)
    return sorted(kept, key=lambda track: track.start), dropped


def _area(track: FaceTrack) -> float:
    x0, y0, x1, y1 = track.box
    return (x1 - x0) * (y1 - y0)
