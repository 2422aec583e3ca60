"""Opens media files and decodes single streams; every fault becomes one clear line."""

import contextlib
import dataclasses
import os
import re
import stat
from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Literal, overload

import av
from av.codec.context import ThreadType
from av.container import InputContainer
from av.error import FFmpegError
from av.stream import Disposition, Stream

from mtd_jax.errors import UserError, one_line

_PATIENT = {"analyzeduration": "60000000", "probesize": "200000000"}  # microseconds, bytes
_LONGEST_JUMP = 600  # seconds; no pause is longer
_LONGEST_RETURN = 1  # seconds; a clock that goes back further begins another recording
_OVERLAP = 0.2  # seconds; a clock that goes back so far is worth a note


@dataclasses.dataclass
class Faults:
    """The faults that decoding one stream met and survived.

    Attributes:
      kind: of the stream; the first word of each message.
      damaged: packets that the decoder rejected.
      concealed: frames that the decoder partly made up, because their data are damaged.
      messages: other faults, one line each.
      ended_early: the rest of the file was left out, and a message says so.
    """

    kind: Literal["video", "audio"]
    damaged: int = 0
    concealed: int = 0
    messages: list[str] = dataclasses.field(default_factory=list)
    ended_early: bool = False

    def warnings(self) -> list[str]:
        """All faults, one line each."""
        damage = []
        if self.damaged:
            packets = "1 damaged packet was" if self.damaged == 1 else f"{self.damaged} damaged packets were"
            damage.append(f"{self.kind}: {packets} skipped")
        if self.concealed:
            frames = "1 frame is" if self.concealed == 1 else f"{self.concealed} frames are"
            damage.append(f"{self.kind}: {frames} damaged, and the decoder filled the gaps")
        return damage + self.messages


def read_head(path: Path) -> bytes:
    """Reads the first 12 bytes of a file, or all of a shorter one.

    Raises:
      UserError: the file is missing, a URL, a folder, a pipe, unreadable or empty.
    """
    try:
        mode = os.stat(path).st_mode
    except (FileNotFoundError, NotADirectoryError) as error:
        if re.match(r"[A-Za-z][A-Za-z0-9+.-]+:/", str(path)):
            url = re.sub(r":/+", "://", str(path), count=1)  # a Path has one slash of two
            raise UserError(
                f"{url}: is a URL; download the video and pass the file, or use --live for a stream"
            ) from error
        if path.is_symlink():
            raise UserError(f"{path}: is a link to {os.readlink(path)}, which does not exist") from error
        raise UserError(f"{path}: no such file") from error
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({one_line(error)})") from error
    if stat.S_ISDIR(mode):
        raise UserError(f"{path}: is a folder, expected a video file")
    if not stat.S_ISREG(mode):  # opening a pipe would block, and every pass needs to read from the start
        raise UserError(f"{path}: is a pipe or a device, expected a video file")
    try:
        with path.open("rb") as file:
            head = file.read(12)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({one_line(error)})") from error
    if not head:
        raise UserError(f"{path}: the file is empty (0 bytes)")
    return head


@contextlib.contextmanager
def open_container(path: Path) -> Iterator[InputContainer]:
    """Opens a media file for reading.

    Raises:
      UserError: as `read_head`, or FFmpeg cannot read the file.
    """
    head = read_head(path)
    try:
        # The prefix keeps FFmpeg from taking a name with a colon for a URL.
        container = av.open(f"file:{path}", metadata_errors="replace")
        if any(map(_is_unknown, container.streams)):
            container.close()
            container = av.open(f"file:{path}", metadata_errors="replace", options=_PATIENT)
    except FFmpegError as error:
        # MP4 and MOV may store their index at the end; without it, nothing in a truncated file can be decoded.
        if head[4:8] == b"ftyp":
            raise UserError(f"{path}: damaged or cut short: an MP4 without a usable index (moov)") from error
        raise UserError(f"{path}: not a video that FFmpeg can read ({one_line(error)})") from error
    with container:
        yield container


def video_stream(container: InputContainer, path: Path) -> av.VideoStream:
    """The main video stream. The cover art of audio files does not count.

    Raises:
      UserError: there is none.
    """
    streams = _moving(container)
    if not streams:
        raise UserError(f"{path}: has no video stream")
    best = container.streams.best("video")
    stream = next((stream for stream in streams if stream is best), streams[0])
    stream.thread_type = ThreadType.AUTO
    return stream


def audio_stream(container: InputContainer, path: Path, track: str | None = None) -> av.AudioStream:
    """An audio stream: the main one, or the one that is chosen.

    Args:
      track: number of the stream among those of audio, from 1, or its language, as in "eng"; None = the main one.

    Raises:
      UserError: there is none.
    """
    stream = container.streams.best("audio")
    if not isinstance(stream, av.AudioStream):
        raise UserError(f"{path}: has no audio stream, but sync is measured between video and audio")
    if track is None:
        return stream
    streams = container.streams.audio
    languages = [s.metadata.get("language", "?") for s in streams]
    if track.isdecimal() and 1 <= int(track) <= len(streams):
        return streams[int(track) - 1]
    if track.lower() in languages:
        return streams[languages.index(track.lower())]
    there = ", ".join(f"{number} ({language})" for number, language in enumerate(languages, start=1))
    raise UserError(f"{path}: no audio stream {track!r}; it has {there}")


def stream_notes(container: InputContainer, video: av.VideoStream, audio: av.AudioStream | None) -> list[str]:
    """One line for each kind of stream, video or audio, that offers a choice: which one is measured."""
    choices: list[tuple[str, Sequence[Stream], Stream]] = [("video", _moving(container), video)]
    if audio is not None:
        choices.append(("audio", container.streams.audio, audio))
    return [
        f"{len(streams)} {kind} streams; measuring number {1 + streams.index(chosen)}"
        for kind, streams, chosen in choices
        if len(streams) > 1
    ]


@overload
def decoded(container: InputContainer, stream: av.VideoStream, faults: Faults) -> Iterator[av.VideoFrame]: ...
@overload
def decoded(container: InputContainer, stream: av.AudioStream, faults: Faults) -> Iterator[av.AudioFrame]: ...
def decoded(
    container: InputContainer, stream: av.VideoStream | av.AudioStream, faults: Faults
) -> Iterator[av.VideoFrame | av.AudioFrame]:
    """Yields the stream's frames. Records damage in `faults`.

    Ends early where the container is broken, or where the clock of any stream jumps: there, files were joined, and
    nobody knows what belongs together beyond. So video and audio end at the same place.
    """
    watched = [*_moving(container), *container.streams.audio]
    clock = _Clock(declared_times(container)[0])
    try:
        for packet in container.demux(watched):
            if clock.jumps(packet):
                yield from _frames_of(stream, None, faults)
                break
            if packet.stream.index == stream.index:  # of the last, empty packets only this one is right
                yield from _frames_of(stream, packet, faults)
    except FFmpegError as error:
        faults.messages.append(f"{faults.kind}: the file is damaged, reading stopped early ({one_line(error)})")
    faults.messages += [f"{faults.kind}: {line}" for line in clock.notes]
    faults.ended_early |= clock.has_jumped


def end_of(container: InputContainer, stream: av.VideoStream) -> Fraction | None:
    """When the last frame before a jump of the clock is over, without decoding; None if no packet has a time."""
    clock, end = _Clock(declared_times(container)[0]), None
    with contextlib.suppress(FFmpegError):  # damage ends it
        for packet in container.demux([*_moving(container), *container.streams.audio]):
            if clock.jumps(packet):
                break
            time = seconds(packet.pts, packet.time_base)
            if packet.stream.index == stream.index and time is not None:
                after = time + (seconds(packet.duration, packet.time_base) or 0)
                end = after if end is None else max(end, after)
    return end


def _frames_of(
    stream: av.VideoStream | av.AudioStream, packet: av.Packet | None, faults: Faults
) -> Iterator[av.VideoFrame | av.AudioFrame]:
    """What the decoder gives for a packet; for None, all that it still holds."""
    try:
        frames = stream.decode(packet)
    except FFmpegError:
        faults.damaged += 1
        return
    for frame in frames:
        faults.concealed += frame.is_corrupt
        yield frame


class _Clock:
    """Watches the times of the packets of a file: within a stream they should grow."""

    def __init__(self, start: float):
        self.notes: list[str] = []
        self.has_jumped = False
        self._start = start
        self._latest: dict[int, float] = {}

    def jumps(self, packet: av.Packet) -> bool:
        """Whether the clock goes on or back further at this packet than it does in any recording."""
        if packet.dts is None or packet.time_base is None:
            return False
        time = float(packet.dts * packet.time_base)
        before = self._latest.get(packet.stream_index, time)
        place = f"at {before - self._start:.1f} s"
        if time < before - _LONGEST_RETURN:
            self.notes, self.has_jumped = [f"the clock goes back {place}; what follows was left out"], True
        elif time > before + _LONGEST_JUMP:
            self.notes, self.has_jumped = [f"the clock jumps {place}; what follows was left out"], True
        elif time < before - _OVERLAP and not self.notes:
            self.notes.append(f"the clock goes back by {before - time:.1f} s {place}; what overlaps was left out")
        self._latest[packet.stream_index] = max(time, before)
        return self.has_jumped


def declared_times(container: InputContainer) -> tuple[float, float | None]:
    """The start time and the duration that the container declares, in seconds.

    The start is on the container's own clock; the duration is None if the container does not declare one.
    """
    start = (container.start_time or 0) / av.time_base
    if container.duration is None:
        return start, None
    duration = container.duration / av.time_base
    if "matroska" in container.format.name and 0 < start < duration:  # Matroska declares the end, not the length
        duration -= start
    return start, duration


def seconds(time: int | None, time_base: Fraction | None) -> Fraction | None:
    """A time stamp in seconds, exactly; None if it or its unit is missing."""
    return None if time is None or not time_base else time * time_base


def _is_unknown(stream: Stream) -> bool:
    """Whether FFmpeg has met no packet of this stream while it looked at the start of the file."""
    if not isinstance(stream, av.VideoStream | av.AudioStream) or stream.codec_context is None:
        return False
    return not (stream.width if isinstance(stream, av.VideoStream) else stream.sample_rate)


def _moving(container: InputContainer) -> list[av.VideoStream]:
    """The video streams without attached pictures, such as cover art."""
    return [s for s in container.streams.video if not s.disposition & Disposition.attached_pic]
