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


@dataclasses.dataclass
class Faults:
    """The faults that decoding one stream met and survived.

    Attributes:
      kind: of the stream; the first word of each message.
      damaged: packets that the decoder rejected.
      concealed: frames that the decoder partly made up, because their data are damaged.
      messages: other faults, one line each.
    """

    kind: Literal["video", "audio"]
    damaged: int = 0
    concealed: int = 0
    messages: list[str] = dataclasses.field(default_factory=list)

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
            raise UserError(f"{url}: is a URL; download the video and pass the file instead") from error
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


def stream_notes(container: InputContainer, video: av.VideoStream, audio: av.AudioStream) -> list[str]:
    """One line for each kind of stream, video or audio, that offers a choice: which one is measured."""
    choices: list[tuple[str, Sequence[Stream], Stream]] = [
        ("video", _moving(container), video),
        ("audio", container.streams.audio, audio),
    ]
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
    """Yields the stream's frames. Records damage in `faults`; ends early where the container is broken."""
    try:
        for packet in container.demux(stream):
            try:
                frames = stream.decode(packet)
            except FFmpegError:
                faults.damaged += 1
                continue
            for frame in frames:
                faults.concealed += frame.is_corrupt
                yield frame
    except FFmpegError as error:
        faults.messages.append(f"{faults.kind}: the file is damaged, reading stopped early ({one_line(error)})")


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


def _moving(container: InputContainer) -> list[av.VideoStream]:
    """The video streams without attached pictures, such as cover art."""
    return [s for s in container.streams.video if not s.disposition & Disposition.attached_pic]
