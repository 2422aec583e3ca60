"""Copying streams into another container: which it takes, what becomes of the others, how people call them."""

import contextlib
import dataclasses
import errno
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import av
from av.codec.codec import UnknownCodecError
from av.stream import Disposition

from mtd_jax.media.container import audio_stream, open_container, video_stream

# Of the containers that hold covers, those where a cover is a stream; in Matroska it is an attached file.
_COVER_STREAMS = {"mp4", "mov", "ipod", "3gp", "3g2", "f4v"}


class Refused(Exception):
    """This container cannot hold these streams at these times."""


@dataclasses.dataclass
class Plan:
    """What becomes of each stream of a source, by index.

    Attributes:
      copied: their packets are copied, all else is as told.
      encoded, left_out: with the reason, in words.
      chapters_delay: seconds by which chapters start later than in the source.
    """

    copied: set[int] = dataclasses.field(default_factory=set)
    encoded: dict[int, str] = dataclasses.field(default_factory=dict)
    left_out: dict[int, str] = dataclasses.field(default_factory=dict)
    chapters_delay: Fraction = Fraction(0)

    def encode(self, index: int, reason: str) -> None:
        self.copied.discard(index)
        self.encoded[index] = reason

    def leave_out(self, index: int, reason: str) -> None:
        self.copied.discard(index)
        self.encoded.pop(index, None)
        self.left_out[index] = reason


@contextlib.contextmanager
def open_writer(path: Path) -> Iterator[av.container.OutputContainer]:
    """A new file; its suffix chooses the container.

    Raises:
      Refused: whatever in the block the container or an encoder does not take.
      OSError, MemoryError: the file cannot be written, whatever is in it.
    """
    try:
        with av.open(f"file:{path}", "w") as writer:  # the prefix: names may hold colons
            yield writer
    except (OSError, MemoryError, ValueError, av.FFmpegError) as error:
        # A full disk, say; refusals have other classes, but for the -1 of some muxers, which reads as EPERM.
        if isinstance(error, OSError | MemoryError) and getattr(error, "errno", None) != errno.EPERM:
            raise
        words = getattr(error, "strerror", None)
        reason = f"{container_words(path)} refuses it: {words}" if words else " ".join(str(error).split())
        raise Refused(reason) from error


def first_plan(source: Path, scratch: Path) -> Plan:
    """Copies whatever the container of `scratch` takes beside the streams before it, picture and sound first.

    Streams of picture and sound that it would not even take alone are to be encoded; of other moving pictures,
    and of all else that it refuses, nothing is kept.
    """
    plan = Plan()
    with open_container(source) as reader:
        main = [video_stream(reader, source), audio_stream(reader, source)]
        order = {"audio": 0, "video": 1, "subtitle": 2, "attachment": 3}
        others = [s for s in reader.streams if s not in main and not is_written_anew(s, reader)]
        for stream in main + sorted(others, key=lambda s: (is_cover(s), order.get(s.type, 4))):
            beside = [s for s in reader.streams if s.index in plan.copied]
            reason = _refusal(source, scratch, reader, [*beside, stream])
            if reason is None:
                plan.copied.add(stream.index)
            elif stream in main or stream.type == "audio":
                alone = _refusal(source, scratch, reader, [stream])
                if alone or stream in main:
                    plan.encode(stream.index, alone or reason)
                else:
                    plan.leave_out(stream.index, f"{container_words(scratch)} takes no more of its kind")
            else:
                plan.leave_out(stream.index, reason)
    return plan


def _refusal(source: Path, scratch: Path, reader, streams: list) -> str | None:
    """Why a container of these streams cannot even be begun; None if it can."""
    try:
        with open_writer(scratch) as writer:
            for stream in streams:
                add_copy(writer, stream, source)
            writer.start_encoding()
    except Refused as error:
        return str(error)
    return None


def add_copy(writer, stream, source: Path):
    """Adds a stream to a file that isn't begun; returns where its packets go, None if it takes none.

    Raises:
      Refused: the container takes no such stream.
    """
    if is_cover(stream):
        if writer.format.name == "matroska":
            return _attach_cover(writer, stream, source)
        if writer.format.name not in _COVER_STREAMS or stream.disposition & Disposition.timed_thumbnails:
            raise Refused(f"{container_words(Path(writer.name))} takes no pictures of this kind")
    if stream.type in ("audio", "video", "subtitle") and stream.codec_context is None:
        raise Refused("its codec is unknown")
    try:
        copy = writer.add_stream_from_template(stream)
    except UnknownCodecError:  # there is a decoder, but no encoder, of that name: AV1's
        copy = writer.add_stream_from_template(stream, opaque=True)
    except ValueError as error:
        raise Refused(f"{container_words(Path(writer.name))} takes no {stream.name or stream.type}") from error
    copy.disposition = stream.disposition
    copy.metadata.update(stream.metadata)
    return None if stream.type == "attachment" else copy


def _attach_cover(writer, stream, source: Path) -> None:
    with open_container(source) as reader:
        data = next((bytes(p) for p in reader.demux(reader.streams[stream.index]) if p.size), b"")
    kind = {"mjpeg": "jpeg"}.get(stream.name, stream.name)
    name = stream.metadata.get("filename", f"cover.{kind.replace('jpeg', 'jpg')}")
    attachment = writer.add_attachment(name, stream.metadata.get("mimetype", f"image/{kind}"), data)
    attachment.metadata.update(stream.metadata)


def is_cover(stream) -> bool:
    """Whether this is a still picture of a film rather than a part of it."""
    return stream.type == "video" and bool(stream.disposition & Disposition.attached_pic)


def is_timecode(stream) -> bool:
    """Whether this holds the running time of the recording, which MOV keeps as a track of one packet."""
    return stream.type == "data" and "timecode" in stream.metadata


def is_written_anew(stream, reader) -> bool:
    """Whether a container writes this stream of its own accord: from the chapters or the picture's tags."""
    return is_timecode(stream) or (stream.type == "data" and stream.name == "bin_data" and bool(reader.chapters()))


def signature(stream) -> tuple:
    """What a stream's copy must share with it."""
    return stream.type, getattr(stream, "name", None), is_cover(stream)  # streams of unknown codecs have no name


def container_words(path: Path) -> str:
    """The container that a file's suffix chooses, in words."""
    return f"the {path.suffix.lower().lstrip('.')} container"


def in_words(stream, reader) -> str:
    """A stream's name for people."""
    if is_cover(stream):
        return f"the cover picture (stream {stream.index})"
    if stream.type == "attachment":
        return f"the attachment {stream.name} (stream {stream.index})"
    if is_timecode(stream):
        return f"the timecode track (stream {stream.index})"
    alike = [s for s in reader.streams if s.type == stream.type and not is_cover(s)]
    if len(alike) == 1 and stream.type in ("audio", "video"):
        return f"the {stream.type}"
    about = ", ".join(filter(None, (getattr(stream, "name", None), stream.metadata.get("language"))))
    return f"the {stream.type} stream {stream.index}{about and f' ({about})'}"
