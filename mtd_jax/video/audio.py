"""The sound of a media file at 16 kHz mono, every sample at its time."""

from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from mtd_jax.data.clip import FPS, SAMPLE_RATE
from mtd_jax.errors import UserError
from mtd_jax.video.container import Faults, audio_stream, decoded, open_container, seconds

# Time stamps that stray less than half a video frame from the count of samples are rounding (Matroska keeps
# milliseconds) and are smoothed over; beyond it they are real holes or overlaps, and the samples are moved.
_TOLERANCE = Fraction(1, 2 * FPS)
LONGEST_JUMP = 600  # seconds; a longer leap of the time stamps is a fault of the file, not a pause


def decode_sound(path: Path, origin: Fraction, faults: Faults) -> np.ndarray:
    """Decodes the main audio stream.

    Channels are mixed down with FFmpeg's weights. Holes in the time stamps, and the time before a late start,
    become silence. What an encoder puts before the start (AAC priming) is left out where the file marks it.

    Args:
      path: of the media file.
      origin: the moment of the container's clock, in seconds, that becomes sample 0; earlier sound is cut off.
      faults: collects what was left behind.

    Returns:
      int16 (samples,), as long as the sound lasts.

    Raises:
      UserError: no audio stream, nothing that decodes, or nothing after `origin`.
    """
    track = _Track(origin)
    with open_container(path) as container:
        for frame in decoded(container, audio_stream(container, path), faults):
            try:
                on_time = track.add(frame)
            except (av.FFmpegError, ValueError) as error:
                kind = f"{frame.layout.name}, {frame.sample_rate} Hz, {frame.format.name}"
                raise UserError(f"{path}: sound of this kind ({kind}) cannot be converted to mono") from error
            if not on_time:
                faults.messages.append("sound: the time stamps leap, the sound behind the leap was left out")
                break
    samples = track.finish()
    if track.is_empty:
        raise UserError(f"{path}: no sound could be decoded from its audio stream")
    if not len(samples):
        raise UserError(f"{path}: the sound ends before the first picture is shown")
    return samples


class _Track:
    """Samples on a clock: runs of decoded frames are resampled as one and put where their time stamps say."""

    def __init__(self, origin: Fraction):
        self._origin = origin
        self._pieces: list[np.ndarray] = []
        self._length = 0
        self._resampler: av.AudioResampler | None = None
        self._input = None  # what the resampler was set up for
        self._run: list[np.ndarray] = []
        self._run_start = self._run_end = origin
        self.is_empty = True

    def add(self, frame: av.AudioFrame) -> bool:
        """Appends a decoded frame. False if its time stamp is impossible."""
        start = seconds(frame.pts, frame.time_base)
        if start is None:
            start = self._run_end
        if not self.is_empty and abs(start - self._run_end) > LONGEST_JUMP:
            return False
        kind = (frame.format.name, frame.layout.name, frame.sample_rate)
        if kind != self._input or abs(start - self._run_end) > _TOLERANCE:
            self._end_run()
            self._resampler = av.AudioResampler(format="s16", layout="mono", rate=SAMPLE_RATE)
            self._input, self._run_start, self._run_end = kind, start, start
        self._run += [piece.to_ndarray()[0] for piece in self._resampler.resample(frame)]
        self._run_end += Fraction(frame.samples, frame.sample_rate)
        self.is_empty = False
        return True

    def finish(self) -> np.ndarray:
        self._end_run()
        return np.concatenate([np.zeros(0, np.int16), *self._pieces])

    def _end_run(self) -> None:
        if self._resampler is None:
            return
        self._run += [piece.to_ndarray()[0] for piece in self._resampler.resample(None)]
        samples = np.concatenate([np.zeros(0, np.int16), *self._run])
        self._run = []
        silence = round((self._run_start - self._origin) * SAMPLE_RATE) - self._length
        samples = samples[max(-silence, 0) :]  # overlap with what is there, or before the origin
        if not len(samples):
            return
        self._pieces += [np.zeros(max(silence, 0), np.int16), samples]
        self._length += max(silence, 0) + len(samples)
