"""The same file with its sound moved: packets are copied, only their time stamps change."""

import contextlib
import os
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import av

from mtd_jax.errors import UserError
from mtd_jax.media.container import audio_stream, open_container, seconds, video_stream
from mtd_jax.media.decode import open_video
from mtd_jax.media.encode import PictureEncoder, SoundEncoder

_EXACT = Fraction(3, 1000)  # seconds; containers round time stamps, Matroska to milliseconds
# What is encoded anew, the least first, and whether streams beside picture and sound come along.
_ATTEMPTS = (((), True), ((), False), (("audio",), False), (("video",), False), (("audio", "video"), False))


class _Refused(Exception):
    """This container cannot hold these streams at these times."""


def shift_audio(source: str | os.PathLike, output: str | os.PathLike, delay_seconds: float) -> list[str]:
    """Writes a copy of a video whose sound comes later by `delay_seconds` (earlier if negative).

    Every packet of the source is in the copy: sound that would come before the first picture is marked to be
    skipped (MP4), or everything else starts later. Streams are encoded anew only where the output's container (by
    its suffix) takes them in no other way; then the sound starts with the picture. The file appears whole or not
    at all.

    Args:
      source: of any format FFmpeg reads.
      output: may exist, but must not be the source.

    Returns:
      What is not as in the source, a line each: nothing if it was a pure copy.

    Raises:
      UserError: the output is the source, its container is unknown, or it cannot be written.
    """
    source, output = Path(source), Path(output)
    delay = Fraction(round(delay_seconds * 1_000_000), 1_000_000)
    check_output(source, output)
    partial = output.with_name(f".partial-{os.getpid()}-{output.name}")  # the suffix chooses the container
    reason = "no attempt"
    try:
        wanted = _audio_lead(source) + delay
        for encode, others in _ATTEMPTS:
            try:
                notes = _write(source, partial, delay, encode, others)
                if "audio" not in encode and abs(_audio_lead(partial) - wanted) > _EXACT:
                    raise _Refused("the container does not keep when a stream starts")
            except (_Refused, ValueError, av.FFmpegError) as error:
                if isinstance(error, PermissionError | FileNotFoundError | NotADirectoryError):
                    raise
                reason = " ".join((getattr(error, "strerror", None) or str(error)).split())
                continue
            partial.replace(output)
            return notes + [f"the {kind} was encoded anew ({reason})" for kind in encode]
    except OSError as error:
        raise UserError(f"cannot write {output}: {getattr(error, 'strerror', None) or error}") from error
    finally:
        with contextlib.suppress(OSError):
            partial.unlink()
    raise UserError(f"cannot write {output} ({reason}); another suffix may do, .mkv takes most streams")


def check_output(source: str | os.PathLike, output: str | os.PathLike) -> None:
    """Raises `UserError` if `shift_audio` could not write there."""
    source, output = Path(source), Path(output)
    if output.is_dir() or (output.exists() and source.exists() and os.path.samefile(source, output)):
        raise UserError(f"{output}: is {'a folder' if output.is_dir() else 'the video itself'}; name a new file")
    if not output.parent.is_dir():
        raise UserError(f"{output}: there is no folder {output.parent}")
    try:
        av.ContainerFormat(_container_name(output), "w")
    except ValueError as error:
        known = "expected a suffix such as .mp4, .mov or .mkv"
        raise UserError(f"{output}: {known}, which chooses the container") from error


def _container_name(output: Path) -> str:
    suffix = output.suffix.lower().lstrip(".")
    return {"mkv": "matroska", "ts": "mpegts", "m4v": "mp4", "wmv": "asf", "mpg": "mpeg"}.get(suffix, suffix)


def _audio_lead(path: Path) -> Fraction:
    """When the first packet of the sound is due, counted from the first picture's; in seconds."""
    picture, sound = _first_times(path)
    return sound - picture


def _first_times(path: Path) -> tuple[Fraction, Fraction]:
    """When the first packets of picture and sound are due, in seconds."""
    with open_container(path) as container:
        video, audio = video_stream(container, path), audio_stream(container, path)
        first: dict[int, Fraction] = {}
        for packet in container.demux(video, audio):
            if packet.pts is not None and packet.stream.index not in first:
                first[packet.stream.index] = seconds(packet.pts, packet.time_base)
                if len(first) == 2:
                    return first[video.index], first[audio.index]
    raise _Refused("a stream has no time stamps")


def _write(source: Path, partial: Path, delay: Fraction, encode: tuple[str, ...], others: bool) -> list[str]:
    """One attempt; returns which streams were left out."""
    notes = []
    picture = open_video(source) if encode else None
    start = _first_times(source)[0]
    with open_container(source) as reader, av.open(f"file:{partial}", "w") as writer:
        writer.metadata.update(reader.metadata)
        copies, encoders = {}, {}
        for stream in reader.streams:
            if stream.type in encode:
                if stream is audio_stream(reader, source):
                    encoders[stream.index] = SoundEncoder(writer, stream, delay, start)
                elif stream is video_stream(reader, source):
                    encoders[stream.index] = PictureEncoder(writer, stream, picture.height, picture.width)
            elif stream.type in ("audio", "video") or others:
                copies[stream.index] = writer.add_stream_from_template(stream)
                copies[stream.index].disposition = stream.disposition
                copies[stream.index].metadata.update(stream.metadata)
            if stream.index not in copies and stream.index not in encoders:
                notes.append(f"stream {stream.index} ({stream.type}) was left out")
        for packet in _with_dts(reader.demux([reader.streams[index] for index in {**copies, **encoders}])):
            index = packet.stream.index
            if index in encoders:
                encoders[index].add(packet)
            elif packet.dts is not None:
                if packet.stream.type == "audio":
                    ticks = round(delay / packet.time_base)
                    packet.dts += ticks
                    packet.pts = None if packet.pts is None else packet.pts + ticks
                packet.stream = copies[index]
                writer.mux(packet)
        for encoder in encoders.values():
            encoder.finish()
    return notes


def _with_dts(packets: Iterator[av.Packet]) -> Iterator[av.Packet]:
    """Fills in when a stream's first packets are to be decoded, which Matroska leaves open."""
    waiting: dict[int, list[av.Packet]] = {}
    running = set()
    for packet in packets:
        index = packet.stream.index
        if index in running or not packet.size:
            yield packet
        elif packet.dts is None:
            waiting.setdefault(index, []).append(packet)
        else:
            running.add(index)
            rate = packet.stream.average_rate if packet.stream.type == "video" else None
            step = packet.duration or (round(1 / rate / packet.time_base) if rate else 1)
            held = waiting.pop(index, [])
            for number, early in enumerate(held):
                early.dts = packet.dts - step * (len(held) - number)
                yield early
            yield packet
