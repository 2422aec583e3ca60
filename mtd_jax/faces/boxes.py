"""Faces from the user instead of a detector: boxes from a JSON file, or the whole frame.

The file holds one entry or a list of them; each entry is a track of its own:

    {"box": [x0, y0, x1, y1], "start_seconds": 1.2, "end_seconds": 7.0}

`box` is in pixels of the upright frame, x1 and y1 exclusive, tight around the face: forehead to chin, without
hair and ears. The times count from the first frame and default to the start and the end of the video.
A bare [x0, y0, x1, y1] is short for an entry without times.
"""

import dataclasses
import json
import math
import os
from pathlib import Path

import numpy as np

from mtd_jax.data.clip import FPS
from mtd_jax.errors import UserError
from mtd_jax.faces.tracks import FaceTrack

# The sidecar files of synthetic .mp4 clips hold the last one as well.
_KEYS = {"box", "start_seconds", "end_seconds", "audio_delay_samples"}


@dataclasses.dataclass(frozen=True)
class FaceBox:
    """One face at one place.

    Attributes:
      box: (x0, y0, x1, y1) in pixels; None is the whole frame.
      start_seconds, end_seconds: when it is there, counted from the first frame; by default to the end.
    """

    box: tuple[float, float, float, float] | None
    start_seconds: float = 0.0
    end_seconds: float = math.inf


WHOLE_FRAME = [FaceBox(None)]


def read_boxes(path: str | os.PathLike) -> list[FaceBox]:
    """Reads a file of the format above.

    Raises:
      UserError: missing, no JSON, or an entry that makes no sense, with its number.
    """
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read as JSON with face boxes ({error})") from error
    if isinstance(content, dict) or _is_box(content):
        content = [content]
    if not isinstance(content, list) or not content:
        raise UserError(f'{path}: expected {{"box": [x0, y0, x1, y1]}} or a list of such entries')
    return [_entry(entry, f"{path}, entry {number}") for number, entry in enumerate(content, start=1)]


def inside(face: FaceBox, height: int, width: int) -> np.ndarray:
    """The box clipped at the frame's edges, float32 (4,).

    Raises:
      UserError: it is outside the frame.
    """
    x0, y0, x1, y1 = face.box or (0, 0, width, height)
    cut = np.array([max(x0, 0), max(y0, 0), min(x1, width), min(y1, height)], np.float32)
    if cut[2] - cut[0] < 2 or cut[3] - cut[1] < 2:
        raise UserError(f"face box {_shown(face.box)} is outside the {width}×{height} frame")
    return cut


def covers(face: FaceBox, frame: int) -> bool:
    """Whether the face is there in this frame."""
    return round(face.start_seconds * FPS) <= frame < round(min(face.end_seconds * FPS, frame + 1))


def track_of_box(face: FaceBox, box: np.ndarray, first: int, end: int) -> FaceTrack:
    """The track of a face in frames first … end − 1, which are all that were looked at.

    Raises:
      UserError: it is in none of them.
    """
    start, stop = max(round(face.start_seconds * FPS), first), round(min(face.end_seconds * FPS, end))
    if start >= stop:
        until = "its end" if face.end_seconds == math.inf else f"{face.end_seconds:g} s"
        span = f"from {face.start_seconds:g} s to {until}"
        raise UserError(f"the face box {span} is outside the video of {end / FPS:.2f} s")
    return FaceTrack(start, np.tile(box, (stop - start, 1)))


def _is_box(value) -> bool:
    return isinstance(value, list) and len(value) == 4 and all(_is_number(side) for side in value)


def _is_number(value) -> bool:
    """Whether it is a finite number of pixels or seconds, not true or false."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e12


def _shown(entry) -> str:
    text = json.dumps(entry)
    return text if len(text) <= 100 else f"{text[:100]}…"


def _entry(entry, where: str) -> FaceBox:
    if _is_box(entry):
        entry = {"box": entry}
    if not isinstance(entry, dict) or "box" not in entry or not _is_box(entry["box"]):
        raise UserError(f'{where}: expected {{"box": [x0, y0, x1, y1]}} in pixels, got {_shown(entry)}')
    if unknown := sorted(set(entry) - _KEYS):
        raise UserError(f"{where}: unknown {', '.join(unknown)}; expected box, start_seconds, end_seconds")
    times = {key: entry[key] for key in ("start_seconds", "end_seconds") if entry.get(key) is not None}
    face = FaceBox(tuple(entry["box"]), **times)
    if not all(_is_number(time) for time in times.values()) or not (0 <= face.start_seconds < face.end_seconds):
        raise UserError(f"{where}: expected 0 ≤ start_seconds < end_seconds, got {_shown(entry)}")
    x0, y0, x1, y1 = entry["box"]
    if not (x0 < x1 and y0 < y1):
        raise UserError(f"{where}: expected x0 < x1 and y0 < y1, got {_shown(entry['box'])}")
    return face
