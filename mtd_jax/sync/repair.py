"""`--fix` where one shift is no cure: audio is moved piece by piece, or its clock is set right, and encoded anew.

Everything happens on the clock of `video/decode.py`: sample 0 is heard when the first frame is shown.
"""

import os
import tempfile
from pathlib import Path

import numpy as np
import soundfile

from mtd_jax.data.clip import FPS
from mtd_jax.errors import UserError
from mtd_jax.storage import atomic
from mtd_jax.sync.ffmpeg import Refused, find_ffmpeg, run
from mtd_jax.sync.fix import check_output
from mtd_jax.sync.verdict import Course
from mtd_jax.video.decode import open_video

_RATE = 48_000


def repair_audio(
    source: str | os.PathLike, output: str | os.PathLike, course: Course, offset_seconds: float, audio_track: int
) -> list[str]:
    """Writes a copy of a video whose audio follows the course of the offset.

    Args:
      source: of any format that FFmpeg reads.
      output: its suffix chooses the container.
      course: with a rate, or with jumps.
      offset_seconds: at the first frame, for a course with a rate.
      audio_track: number of the measured audio stream, from 1.

    Returns:
      What was done, and what was left out, a line each.

    Raises:
      UserError: the source is unusable, or the output cannot be written.
    """
    source, output = Path(source), Path(output)
    muxer = check_output(source, output).name
    video = open_video(source, str(audio_track))
    samples = video.stereo(_RATE)
    if course.rate is None:
        moved, speed = piecewise(samples, course, _RATE), 1.0
    else:
        moved, speed = _delayed(samples, round(offset_seconds * _RATE), 0, len(samples)), 1 - course.rate
    with atomic(output) as scratch, tempfile.TemporaryDirectory() as folder:
        sound = Path(folder, "audio.wav")
        try:
            soundfile.write(sound, moved, _RATE, subtype="PCM_16")
        except (OSError, soundfile.SoundFileError) as error:
            raise UserError(f"no room for the audio in {folder}; set TMPDIR to another folder") from error
        command = [find_ffmpeg(), "-nostdin", "-y", "-v", "error", "-i", f"file:{source}"]
        command += ["-itsoffset", f"{video.start_seconds:.6f}", "-i", f"file:{sound}"]
        command += ["-map", f"0:{video.stream_index}", "-map", "1:a", "-c:v", "copy"]
        command += ["-af", f"asetrate={_RATE * speed:.4f},aresample={_RATE}"] if speed != 1 else []
        try:
            run([*command, f"file:{scratch}"], muxer)
        except Refused as error:
            raise UserError(f"cannot write {output}: {error}; another suffix may do, such as .mkv") from error
    if course.rate:
        what = f"played {abs(course.rate):.3%} {'slower' if course.rate > 0 else 'faster'}"
    else:
        what = f"moved in {len(course.jumps) + 1} pieces"
    return [f"the audio was {what} and encoded anew", "only the video and this audio were kept"]


def piecewise(samples: np.ndarray, course: Course, rate: int) -> np.ndarray:
    """Each stretch between two edits moved by its own offset; silence where nothing is left to play.

    Args:
      samples: (n, channels) at `rate`.
    """
    edits = [round((start + end) / 2 * rate) for start, end, *_ in course.jumps]
    offsets = [course.jumps[0][2], *(after for *_, after in course.jumps)]
    ends = [0, *edits, len(samples)]
    parts = [
        _delayed(samples, round(offset / FPS * rate), start, end)
        for offset, start, end in zip(offsets, ends, ends[1:], strict=False)
    ]
    return np.concatenate(parts)


def _delayed(samples: np.ndarray, delay: int, start: int, end: int) -> np.ndarray:
    """Samples `start` to `end` of the same sound `delay` samples later."""
    places = np.arange(start, end) - delay
    inside = (places >= 0) & (places < len(samples))
    moved = np.zeros((end - start, samples.shape[1]), samples.dtype)
    moved[inside] = samples[places[inside]]
    return moved
