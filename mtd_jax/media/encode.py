"""Streams encoded anew, packet by packet, for containers that cannot take them as they are."""

from fractions import Fraction

import av
import numpy as np


class SoundEncoder:
    """Decodes a stream's packets and encodes them for another container, from the first picture on.

    What sounds before it, after the delay, is cut off; what is missing becomes silence. The sound then runs on by
    the count of its samples.

    Args:
      start: of the first picture in seconds.
      delay: in seconds, positive = later.
    """

    def __init__(self, writer, stream, delay: Fraction, start: Fraction):
        self._writer, self._stream, self._shift = writer, stream, delay - start
        self._rate, self._layout = stream.codec_context.sample_rate, stream.codec_context.layout.name
        # AVI has no way to mark what an encoder puts before the start, so its sound must do without.
        codec = "pcm_s16le" if writer.format.name == "avi" else writer.default_audio_codec
        self._target = writer.add_stream(codec, rate=self._rate, layout=self._layout)
        self._resampler = av.AudioResampler(format="fltp", layout=self._layout, rate=self._rate)
        self._start, self._written, self._skip = start, 0, None

    def add(self, packet) -> None:
        for frame in _decoded(packet):
            if self._skip is None:
                time = Fraction(0) if frame.pts is None else frame.pts * frame.time_base
                first = round((time + self._shift) * self._rate)
                self._skip = max(-first, 0)
                channels = frame.layout.nb_channels
                self._encode(np.zeros((channels, max(first, 0)), np.float32))
            for piece in self._resampler.resample(frame):
                samples = piece.to_ndarray()
                self._encode(samples[:, self._skip :])
                self._skip = max(self._skip - samples.shape[1], 0)

    def finish(self) -> None:
        self._writer.mux(self._target.encode(None))

    def _encode(self, samples: np.ndarray) -> None:
        if not samples.shape[1]:
            return
        frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(samples), format="fltp", layout=self._layout)
        frame.sample_rate, frame.time_base = self._rate, Fraction(1, self._rate)
        frame.pts = round(self._start * self._rate) + self._written
        self._written += samples.shape[1]
        self._writer.mux(self._target.encode(frame))


class PictureEncoder:
    """Decodes a stream's packets and encodes the pictures upright, at their times.

    Args:
      height, width: of the upright pictures; an odd row or column is lost.
    """

    def __init__(self, writer, stream, height: int, width: int):
        self._writer = writer
        self._target = writer.add_stream(writer.default_video_codec, rate=stream.average_rate or 25)
        self._target.height, self._target.width, self._target.pix_fmt = height // 2 * 2, width // 2 * 2, "yuv420p"
        # AVI counts pictures, and its codecs refuse finer clocks.
        counted = writer.format.name == "avi" and stream.average_rate
        self._target.codec_context.time_base = 1 / stream.average_rate if counted else stream.time_base

    def add(self, packet) -> None:
        for frame in _decoded(packet):
            pixels = np.rot90(frame.to_ndarray(format="rgb24"), round(frame.rotation / 90))
            pixels = pixels[: self._target.height, : self._target.width]
            picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
            picture.pts, picture.time_base = frame.pts, frame.time_base
            self._writer.mux(self._target.encode(picture))

    def finish(self) -> None:
        self._writer.mux(self._target.encode(None))


def _decoded(packet) -> list:
    """The frames of a packet; none of a damaged one."""
    try:
        return packet.decode()
    except av.FFmpegError:
        return []
