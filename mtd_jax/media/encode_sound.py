"""Sound encoded anew, packet by packet, for containers that cannot take it as it is."""

from collections.abc import Iterator
from fractions import Fraction

import av
import numpy as np

from mtd_jax.media.encode import damage_words, decoded_frames, modern_codec
from mtd_jax.media.sound import LONGEST_JUMP

_STEREO_AT_MOST = {"mp2", "mp3", "wmav1", "wmav2"}
_HOLE = Fraction(1, 10)  # seconds; shorter ones in the sound's time stamps are rounding


class SoundEncoder:
    """Decodes a stream's packets and encodes them for another container, from the first picture on.

    What sounds before it, after the delay, is cut off; what is missing becomes silence.

    Args:
      start: of the first picture in seconds.
      delay: in seconds, positive = later.
    """

    def __init__(self, writer, stream, delay: Fraction, start: Fraction):
        self._shift, self._start = delay - start, start
        codec = modern_codec(writer, "aac") or writer.default_audio_codec
        if writer.format.name == "avi":  # has no way to mark what an encoder puts before the start
            codec = "pcm_s16le"
        self._layout = stream.codec_context.layout.name
        self._notes = []
        if codec in _STEREO_AT_MOST and stream.codec_context.layout.nb_channels > 2:
            self._notes.append(f"mixed down from {self._layout} to stereo")
            self._layout = "stereo"
        self._rate = _rate(codec, stream.codec_context.sample_rate)
        if self._rate < stream.codec_context.sample_rate:
            self._notes.append(f"resampled from {stream.codec_context.sample_rate} to {self._rate} Hz")
        self._target = writer.add_stream(codec, rate=self._rate, layout=self._layout)
        self._target.bit_rate = _bit_rate(self._rate, self._target.codec_context.layout.nb_channels)
        self._target.metadata.update(stream.metadata)
        self._target.disposition = stream.disposition
        self._resampler = av.AudioResampler(format="fltp", layout=self._layout, rate=self._rate)
        self._place, self._damaged = None, 0  # of the next sample, counted from the first picture

    def add(self, packet) -> Iterator[av.Packet]:
        """What a packet of the source becomes; the empty one at its end brings out what the decoder held."""
        frames = decoded_frames(packet)
        self._damaged += frames is None
        for frame in frames or []:
            if frame.pts is not None:
                yield from self._silence(round((frame.pts * frame.time_base + self._shift) * self._rate))
            yield from self._resample(frame)

    def finish(self) -> Iterator[av.Packet]:
        yield from self._resample(None)
        yield from self._target.encode(None)

    def losses(self) -> list[str]:
        """What was lost beside fine detail, in words."""
        return self._notes + damage_words(self._damaged)

    def _silence(self, due: int) -> Iterator[av.Packet]:
        """Fills what is missing before sample `due`."""
        least = _HOLE * self._rate if self._place is not None else 0
        self._place = min(due, 0) if self._place is None else self._place
        if least < due - self._place <= LONGEST_JUMP * self._rate:
            channels = self._target.codec_context.layout.nb_channels
            while due > self._place:
                yield from self._encode(np.zeros((channels, min(due - self._place, self._rate)), np.float32))

    def _resample(self, frame) -> Iterator[av.Packet]:
        for piece in self._resampler.resample(frame):
            yield from self._encode(piece.to_ndarray())

    def _encode(self, samples: np.ndarray) -> Iterator[av.Packet]:
        first = self._place = self._place or 0
        self._place += samples.shape[1]
        samples = samples[:, max(-first, 0) :]
        if samples.shape[1]:
            frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(samples), format="fltp", layout=self._layout)
            frame.sample_rate, frame.time_base = self._rate, Fraction(1, self._rate)
            frame.pts = round(self._start * self._rate) + max(first, 0)
            yield from self._target.encode(frame)


def _rate(codec: str, wanted: int) -> int:
    """The sample rate in Hz that loses least of those an encoder knows."""
    known = av.Codec(codec, "w").audio_rates
    if not known or wanted in known:
        return wanted
    return min((rate for rate in known if rate > wanted), default=max(known))


def _bit_rate(rate: int, channels: int) -> int:
    """Bits per second at which the usual lossy codecs are transparent; all of them know these rates."""
    return min((128_000 if rate >= 32_000 else 64_000) * channels, 640_000)
