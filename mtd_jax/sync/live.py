"""`--mode=infer --live`: a running verdict over the last seconds of a stream, a JSON line per second."""

import contextlib
import ctypes
import dataclasses
import gc
import math
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from mtd_jax.errors import UserError
from mtd_jax.faces.search import face_source
from mtd_jax.models import load_model, shown
from mtd_jax.scoring import MAX_SHIFT, Scorer
from mtd_jax.sync.detect import FIND, MAX_FACES, check_max_shift, detect_offset
from mtd_jax.sync.verdict import one_line_json
from mtd_jax.video.stream import ENDED, RecentStream

_EVERY = 1.0  # seconds from one line to the next
_FIND = dataclasses.replace(FIND, every=10)  # every line searches the same seconds again, so less closely
_M_ARENA_MAX, _M_MMAP_THRESHOLD = -8, -3  # of glibc's malloc.h


def live(
    checkpoint,
    source: str,
    *,
    seconds: float = 10.0,
    faces: str = "mtcnn",
    max_shift: int = MAX_SHIFT,
    max_faces: int = MAX_FACES,
    audio_track: str | None = None,
    report: Callable[[str], None] = print,
) -> int:
    """Runs the command until the stream ends. Where measuring takes longer than a second, lines come less often.

    Args:
      checkpoint: see `load_model`; None: the included model.
      source, audio_track: see `RecentStream`.
      seconds: that each verdict is about, or a little more, back to a key frame.
      faces, max_shift, max_faces: see `detect_offset`.
      report: receives the lines.

    Returns:
      The exit code.

    Raises:
      UserError: the stream cannot be opened, ends without any verdict, or breaks off.
    """
    if not 2 <= seconds <= 60:
        raise UserError(f"--live_seconds: expected 2 to 60, got {seconds:g}")
    check_max_shift(max_shift)
    _give_memory_back()
    scorer, detector = Scorer(load_model(checkpoint)), face_source(faces)
    lines, due = 0, -math.inf
    with RecentStream(source, seconds, audio_track) as stream, tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "recent.mkv"
        while (now := stream.wait(due)) is not None:
            due, began = now + _EVERY, time.monotonic()
            if not stream.write(path):
                continue
            line: dict[str, object] = {"time": round(now, 2), "model": shown(checkpoint)}
            try:
                found = detect_offset(
                    scorer, path, faces=detector, find=_FIND, max_shift=max_shift, max_faces=max_faces
                )
            except UserError as error:
                why = str(error).removeprefix(f"{path}: ")
                line |= {"verdict": "unknown", "offset_seconds": None, "confidence": 0.0, "warnings": [why]}
            else:
                line |= {
                    "verdict": found.verdict,
                    "offset_seconds": round(found.offset_seconds, 4),
                    "confidence": round(found.confidence, 4),
                    "warnings": found.warnings,
                }
            line["delay_seconds"] = round(time.monotonic() - began, 2)
            report(one_line_json(line))
            lines += 1
            gc.collect()  # of a file that was read; its cycles would pile up for minutes, and this runs for days
    if not lines:
        raise UserError(f"{source}: {stream.ended}, before there was anything to measure")
    if stream.ended != ENDED:
        raise UserError(f"{source}: stopped after {lines} {'line' if lines == 1 else 'lines'}: {stream.ended}")
    return 0


def _give_memory_back() -> None:
    """Has glibc return arrays to the system once they are freed, and serve all threads from two pools.

    Left alone it keeps large blocks for reuse, in one pool or more for every thread. Each verdict decodes with new
    threads, about a little more or less of the stream, so blocks seldom fit again, and memory grows by the hour.
    """
    with contextlib.suppress(AttributeError, OSError, TypeError):  # another C library
        tune = ctypes.CDLL(None).mallopt
        tune(_M_ARENA_MAX, 2)
        tune(_M_MMAP_THRESHOLD, 1 << 18)
