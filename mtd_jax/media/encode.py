"""Streams encoded anew, packet by packet, for containers that cannot take them as they are."""

from collections.abc import Iterator
from fractions import Fraction

import av
import numpy as np
from av.format import Flags

from mtd_jax.media.sound import LONGEST_JUMP

# Settings at which a second encoding is hard to tell from the first; every other encoder's finest usual quantiser.
_FINE = {
    "libx264": {"crf": "16"},
    "libvpx-vp9": {"crf": "18", "b": "0", "row-mt": "1", "cpu-used": "3"},
    "libvpx": {"crf": "6", "b": "50M", "cpu-used": "3"},
}
_FINEST_QUANTISER = {"flags": "+qscale", "global_quality": str(2 * 118)}  # FFmpeg counts λ, 118 to the step
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
        codec = _modern(writer, "aac") or writer.default_audio_codec
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
        frames = _decoded(packet)
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
        return self._notes + _damage(self._damaged)

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


class PictureEncoder:
    """Decodes a stream's packets and encodes the pictures upright, at their times.

    Args:
      height, width: of the upright pictures; an odd row or column is lost.
    """

    def __init__(self, writer, stream, height: int, width: int):
        self._damaged = self._doubled = 0
        self._last = None
        codec = av.Codec(_modern(writer, "libx264") or writer.default_video_codec, "w")
        self._clock = _clock(writer, codec, stream)
        rate = stream.average_rate or 25 if _keeps_times(writer) else 1 / self._clock
        self._target = writer.add_stream(codec.name, rate=rate, options=_FINE.get(codec.name, _FINEST_QUANTISER))
        self._target.codec_context.time_base = self._clock
        self._target.height, self._target.width, self._target.pix_fmt = height // 2 * 2, width // 2 * 2, "yuv420p"
        self._notes = ["the odd last row or column was cut off"] if height % 2 or width % 2 else []
        self._target.metadata.update(stream.metadata)
        self._target.disposition = stream.disposition
        if shape := stream.sample_aspect_ratio:  # of a pixel
            turned = (height, width) != (stream.codec_context.height, stream.codec_context.width)
            self._target.codec_context.sample_aspect_ratio = 1 / shape if turned else shape

    def add(self, packet) -> Iterator[av.Packet]:
        """What a packet of the source becomes; the empty one at its end brings out what the decoder held."""
        frames = _decoded(packet)
        self._damaged += frames is None
        for frame in frames or []:
            picture = self._fitting(frame)
            if frame.pts is not None:
                picture.pts, picture.time_base = round(frame.pts * frame.time_base / self._clock), self._clock
                if self._last is not None and picture.pts <= self._last:
                    self._doubled += 1
                    continue
                self._last = picture.pts
            yield from self._target.encode(picture)

    def finish(self) -> Iterator[av.Packet]:
        yield from self._target.encode(None)

    def losses(self) -> list[str]:
        """What was lost beside fine detail, in words."""
        doubled = f"{self._doubled} pictures were left out, the container has no times between {self._clock} s"
        return self._notes + _damage(self._damaged) + ([doubled] if self._doubled else [])

    def _fitting(self, frame) -> av.VideoFrame:
        turns = round(frame.rotation / 90)
        size = self._target.height, self._target.width
        if turns % 4 == 0 and frame.format.name == "yuv420p" and (frame.height, frame.width) == size:
            picture = frame  # bit for bit
            picture.pict_type = 0  # the encoder places its own key frames
        else:
            pixels = np.rot90(frame.to_ndarray(format="rgb24"), turns)[: size[0], : size[1]]
            picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
        return picture


def _modern(writer, codec: str) -> str | None:
    """This codec where the container takes it and keeps time stamps: better than its own default."""
    known = writer.supported_codecs
    if writer.format.name == "mpegts":  # has no list of its codecs
        known = known | {codec}
    return codec if _keeps_times(writer) and codec in known else None


def _keeps_times(writer) -> bool:
    return bool(writer.format.flags & Flags.variable_fps.value)


def _clock(writer, codec, stream) -> Fraction:
    """The step of the encoder's time stamps in seconds: AVI and MPEG count pictures, and refuse finer clocks."""
    if _keeps_times(writer):
        return stream.time_base
    if writer.format.name == "asf":
        return Fraction(1, 1000)
    rate = Fraction(stream.average_rate or 25)
    uneven = stream.base_rate and abs(stream.base_rate / rate - 1) > Fraction(1, 100)
    rate = Fraction(100) if uneven else rate.limit_denominator(1001)
    known = [Fraction(each) for each in codec.frame_rates or []]
    return 1 / min((each for each in known if each >= rate), default=max(known, default=rate))


def _rate(codec: str, wanted: int) -> int:
    """The sample rate in Hz that loses least of those an encoder knows."""
    known = av.Codec(codec, "w").audio_rates
    if not known or wanted in known:
        return wanted
    return min((rate for rate in known if rate > wanted), default=max(known))


def _bit_rate(rate: int, channels: int) -> int:
    """Bits per second at which the usual lossy codecs are transparent; all of them know these rates."""
    return min((128_000 if rate >= 32_000 else 64_000) * channels, 640_000)


def _decoded(packet) -> list | None:
    """The frames of a packet; None of a damaged one."""
    try:
        return packet.decode()
    except av.FFmpegError:
        return None


def _damage(packets: int) -> list[str]:
    return [f"{packets} damaged packets were left out"] if packets else []
