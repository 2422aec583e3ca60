"""Pictures encoded anew, packet by packet, for containers that cannot take them as they are."""

from collections.abc import Iterator
from fractions import Fraction

import av
import numpy as np
from av.format import Flags

# Settings at which a second encoding is hard to tell from the first; every other encoder's finest usual quantiser.
_FINE = {
    "libx264": {"crf": "16"},
    "libvpx-vp9": {"crf": "18", "b": "0", "row-mt": "1", "cpu-used": "3"},
    "libvpx": {"crf": "6", "b": "50M", "cpu-used": "3"},
}
_FINEST_QUANTISER = {"flags": "+qscale", "global_quality": str(2 * 118)}  # FFmpeg counts λ, 118 to the step


class PictureEncoder:
    """Decodes a stream's packets and encodes the pictures upright, at their times.

    Args:
      height, width: of the upright pictures; an odd row or column is lost.
    """

    def __init__(self, writer, stream, height: int, width: int):
        self._damaged = self._doubled = 0
        self._last = None
        codec = av.Codec(modern_codec(writer, "libx264") or writer.default_video_codec, "w")
        self._clock = _clock(writer, codec, stream)
        rate = stream.average_rate or 25 if keeps_times(writer) else 1 / self._clock
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
        frames = decoded_frames(packet)
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
        return self._notes + damage_words(self._damaged) + ([doubled] if self._doubled else [])

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


def modern_codec(writer, codec: str) -> str | None:
    """This codec where the container takes it and keeps time stamps: better than its own default."""
    known = writer.supported_codecs
    if writer.format.name == "mpegts":  # has no list of its codecs
        known = known | {codec}
    return codec if keeps_times(writer) and codec in known else None


def keeps_times(writer) -> bool:
    return bool(writer.format.flags & Flags.variable_fps.value)


def _clock(writer, codec, stream) -> Fraction:
    """The step of the encoder's time stamps in seconds: AVI and MPEG count pictures, and refuse finer clocks."""
    if keeps_times(writer):
        return stream.time_base
    if writer.format.name == "asf":
        return Fraction(1, 1000)
    rate = Fraction(stream.average_rate or 25)
    uneven = stream.base_rate and abs(stream.base_rate / rate - 1) > Fraction(1, 100)
    rate = Fraction(100) if uneven else rate.limit_denominator(1001)
    known = [Fraction(each) for each in codec.frame_rates or []]
    return 1 / min((each for each in known if each >= rate), default=max(known, default=rate))


def decoded_frames(packet) -> list | None:
    """The frames of a packet; None of a damaged one."""
    try:
        return packet.decode()
    except av.FFmpegError:
        return None


def damage_words(packets: int) -> list[str]:
    return [f"{packets} damaged packets were left out"] if packets else []
