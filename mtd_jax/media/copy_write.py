"""One attempt to write a video with its sound moved, as planned."""

from fractions import Fraction
from pathlib import Path

from av.format import Flags

from mtd_jax.media.container import open_container, seconds, video_stream
from mtd_jax.media.copy_packets import Written, timed_packets
from mtd_jax.media.copy_plan import Plan, Refused, add_copy, open_writer
from mtd_jax.media.decode import open_video
from mtd_jax.media.encode import PictureEncoder
from mtd_jax.media.encode_sound import SoundEncoder


def write_copy(source: Path, output: Path, delay: Fraction, plan: Plan) -> Written:
    """Writes what the plan copies and encodes, all sound later by `delay` seconds.

    Raises:
      Refused: the container takes something of it not.
      OSError, MemoryError: the file cannot be written, whatever is in it.
      UserError: the source cannot be read.
    """
    written, targets, encoders = Written(), {}, {}
    start = _first_picture(source) if plan.encoded else None
    with open_container(source) as reader, open_writer(output) as writer:
        writer.metadata.update(reader.metadata)
        writer.set_chapters([_moved(chapter, plan.chapters_delay) for chapter in reader.chapters()])
        for stream in reader.streams:
            if stream.index in plan.copied:
                targets[stream.index] = add_copy(writer, stream, source)
            elif stream.index in plan.encoded and stream.type == "audio":
                encoders[stream.index] = SoundEncoder(writer, stream, delay, start)
            elif stream.index in plan.encoded:
                upright = open_video(source)
                encoders[stream.index] = PictureEncoder(writer, stream, upright.height, upright.width)
        writer.start_encoding()

        def mux(index: int, packet) -> None:
            if packet.stream.type in ("audio", "video") and packet.pts is not None:
                written.times.setdefault(index, []).append(seconds(packet.pts, packet.time_base))
            writer.mux(packet)

        streams = [s for s in reader.streams if s.index in encoders or targets.get(s.index) is not None]
        strict = not writer.format.flags & Flags.ts_nonstrict.value
        for packet in timed_packets(reader, streams, written, strict=strict):
            index = packet.stream.index
            if index in encoders:
                for encoded in encoders[index].add(packet):
                    mux(index, encoded)
            elif packet.size and not _is_pause(packet):
                if packet.stream.type == "audio":
                    ticks = round(delay / packet.time_base)
                    packet.dts += ticks
                    packet.pts = None if packet.pts is None else packet.pts + ticks
                packet.stream = targets[index]
                mux(index, packet)
        for index, encoder in encoders.items():
            for encoded in encoder.finish():
                mux(index, encoded)
            written.encoding[index] = encoder.losses()
    return written


def _first_picture(path: Path) -> Fraction:
    """When the first picture is due, in seconds."""
    with open_container(path) as container:
        for packet in container.demux(video_stream(container, path)):
            if packet.pts is not None:
                return seconds(packet.pts, packet.time_base)
    raise Refused("the pictures have no time stamps")


def _is_pause(packet) -> bool:
    """Whether this is nothing between two texts of MP4, which its writers put there by themselves."""
    return packet.stream.name == "mov_text" and bytes(packet) == bytes(2)


def _moved(chapter: dict, delay: Fraction) -> dict:
    ticks = round(delay / chapter["time_base"])
    return chapter | {"start": chapter["start"] + ticks, "end": chapter["end"] + ticks}
