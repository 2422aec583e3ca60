"""Decodes the audio of a media file to 16 kHz mono, with every sample at its time."""

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.error import FFmpegError

from mtd_jax.data.clip import FPS, SAMPLE_RATE
from mtd_jax.errors import UserError
from mtd_jax.video.container import Faults, audio_stream, decoded, open_container, seconds

# Time stamps within half a video frame of the sample count are rounded (Matroska stores milliseconds), so the
# samples stay contiguous. A larger difference is a real gap or overlap, and the samples move.
_TOLERANCE = Fraction(1, 2 * FPS)
QUIET = 10 ** (-50 / 20) * 32768  # RMS


def rms(samples: np.ndarray) -> float:
    """Root mean square of int16 samples; of hours of them, of every n-th, so that no large copy is made."""
    some = samples[:: max(len(samples) // 5_000_000, 1)].astype(np.float32)
    return float(np.sqrt(np.mean(np.square(some)))) if len(some) else 0.0


def decode_audio(
    path: Path,
    origin: Fraction,
    faults: Faults,
    track: str | None = None,
    stereo: bool = False,
    rate: int = SAMPLE_RATE,
) -> np.ndarray:
    """Decodes an audio stream.

    FFmpeg's weights mix the channels down. Gaps in the time stamps, and the time before a late start, become
    silence. Encoder padding before the start (AAC priming) is dropped where the file marks it.

    Args:
      path: the media file.
      origin: the time of sample 0 on the container's clock, in seconds; earlier audio is cut off.
      faults: receives the faults that decoding survived.
      track: see `audio_stream`.
      stereo: mix to two channels instead of one.
      rate: samples per second.

    Returns:
      int16 (samples,), of stereo (samples, 2), as long as the audio lasts.

    Raises:
      UserError: there is no audio stream, nothing in it decodes, or it ends before `origin`.
    """
    timeline = _Timeline(origin, 2 if stereo else 1, rate)
    with open_container(path) as container:
        for frame in decoded(container, audio_stream(container, path, track), faults):
            try:
                timeline.add(frame)
            except (FFmpegError, ValueError) as error:
                kind = f"{frame.layout.name}, {frame.sample_rate} Hz, {frame.format.name}"
                raise UserError(f"{path}: this kind of audio ({kind}) cannot be converted to mono") from error
    samples = timeline.finish()
    if timeline.is_empty:
        raise UserError(f"{path}: nothing in its audio stream could be decoded")
    if not len(samples):
        raise UserError(f"{path}: the audio ends before the first video frame")
    return samples


class _Timeline:
    """Samples on a clock: resamples each run of contiguous frames as a whole and places it by its time stamp."""

    def __init__(self, origin: Fraction, channels: int, rate: int):
        self._origin, self._channels, self._rate = origin, channels, rate
        self._pieces: list[np.ndarray] = []
        self._length = 0
        self._resampler: av.AudioResampler | None = None
        self._input: tuple[str, str, int] | None = None  # the format that the resampler was set up for
        self._run: list[np.ndarray] = []
        self._run_start = self._run_end = origin
        self.is_empty = True

    def add(self, frame: av.AudioFrame) -> None:
        """Appends a decoded frame."""
        start = seconds(frame.pts, frame.time_base)
        if start is None:
            start = self._run_end
        kind = (frame.format.name, frame.layout.name, frame.sample_rate)
        resampler = self._resampler
        if resampler is None or kind != self._input or abs(start - self._run_end) > _TOLERANCE:
            self._end_run()
            layout = "mono" if self._channels == 1 else "stereo"
            resampler = av.AudioResampler(format="s16", layout=layout, rate=self._rate)
            self._resampler, self._input, self._run_start, self._run_end = resampler, kind, start, start
        self._run += self._pieces_of(resampler.resample(frame))
        self._run_end += Fraction(frame.samples, frame.sample_rate)
        self.is_empty = False

    def _pieces_of(self, frames: list[av.AudioFrame]) -> list[np.ndarray]:
        return [frame.to_ndarray()[0].reshape(-1, self._channels) for frame in frames]

    def finish(self) -> np.ndarray:
        """All samples, int16 (samples,), of several channels (samples, channels)."""
        self._end_run()
        samples = np.concatenate([self._silence(0), *self._pieces])
        return samples[:, 0] if self._channels == 1 else samples

    def _end_run(self) -> None:
        if self._resampler is None:
            return
        self._run += self._pieces_of(self._resampler.resample(None))
        samples = np.concatenate([self._silence(0), *self._run])
        self._run = []
        silence = round((self._run_start - self._origin) * self._rate) - self._length
        samples = samples[max(-silence, 0) :]  # drops what overlaps earlier samples or precedes the origin
        if not len(samples):
            return
        self._pieces += [self._silence(max(silence, 0)), samples]
        self._length += max(silence, 0) + len(samples)

    def _silence(self, count: int) -> np.ndarray:
        return np.zeros((count, self._channels), np.int16)
