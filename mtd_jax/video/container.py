"""Opens media files and decodes single streams of them, with faults as one clear line."""

import contextlib
import dataclasses
import os
import re
import stat
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import av
from av.stream import Disposition

from mtd_jax.errors import UserError, one_line


@dataclasses.dataclass
class Faults:
    """What went wrong while decoding one stream, and could be left behind.

    Attributes:
      kind: "picture" or "sound", for the messages.
      damaged: packets that the decoder refused.
      concealed: frames it made up in part, because their data were damaged.
      messages: other faults, in words.
    """

    kind: str
    damaged: int = 0
    concealed: int = 0
    messages: list[str] = dataclasses.field(default_factory=list)

    def warnings(self) -> list[str]:
        damage = [f"{self.kind}: {self.damaged} damaged packets were left out"] if self.damaged else []
        if self.concealed:
            damage.append(
                f"{self.kind}: {self.concealed} frames are damaged, and shown as far as they could be decoded"
            )
        return damage + self.messages


def read_head(path: Path) -> bytes:
    """The first bytes of a file, at least one.

    Raises:
      UserError: missing, a URL, a folder, a pipe, unreadable or empty.
    """
    try:
        mode = os.stat(path).st_mode
    except (FileNotFoundError, NotADirectoryError) as error:
        if re.match(r"[A-Za-z][A-Za-z0-9+.-]+:/", str(path)):
            raise UserError(f"{path}: URLs are not read; download the video, and give its file") from error
        if path.is_symlink():
            raise UserError(f"{path}: a link to {os.readlink(path)}, which is missing") from error
        raise UserError(f"{path}: no such file") from error
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({one_line(error)})") from error
    if stat.S_ISDIR(mode):
        raise UserError(f"{path}: is a folder, expected a video file")
    if not stat.S_ISREG(mode):  # a pipe would block, and cannot be read twice
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
def open_container(path: Path) -> Iterator[av.container.InputContainer]:
    """Opens a media file for reading.

    Raises:
      UserError: see `read_head`, or nothing FFmpeg can read.
    """
    head = read_head(path)
    try:
        container = av.open(f"file:{path}", metadata_errors="replace")  # the prefix: names may hold colons
    except av.FFmpegError as error:
        # MP4 and MOV keep their index at the end, so the cut-off part of such a file takes everything with it.
        if head[4:8] == b"ftyp":
            raise UserError(f"{path}: damaged or cut short: an MP4 without a usable index (moov)") from error
        raise UserError(f"{path}: not a video that FFmpeg can read ({one_line(error)})") from error
    with container:
        yield container


def video_stream(container, path: Path):
    """The main video stream; cover art of sound files doesn't count."""
    streams = [s for s in container.streams.video if not s.disposition & Disposition.attached_pic]
    if not streams:
        raise UserError(f"{path}: has no video stream")
    best = container.streams.best("video")
    stream = best if best in streams else streams[0]
    stream.thread_type = "AUTO"
    return stream


def audio_stream(container, path: Path):
    """The main audio stream."""
    stream = container.streams.best("audio")
    if stream is None:
        raise UserError(f"{path}: has no audio stream; sync is measured between picture and sound")
    return stream


def stream_notes(container, video, audio) -> list[str]:
    """Says which streams were chosen where there is a choice."""
    pictures = [s for s in container.streams.video if not s.disposition & Disposition.attached_pic]
    return [
        f"{len(streams)} {kind} streams: number {1 + streams.index(chosen)} of them is measured"
        for kind, streams, chosen in (("video", pictures, video), ("audio", list(container.streams.audio), audio))
        if len(streams) > 1
    ]


def decoded(container, stream, faults: Faults) -> Iterator[av.frame.Frame]:
    """Yields the stream's frames; damage is counted in `faults`, and a broken container ends it."""
    try:
        for packet in container.demux(stream):
            try:
                frames = packet.decode()
            except av.FFmpegError:
                faults.damaged += 1
                continue
            for frame in frames:
                faults.concealed += frame.is_corrupt
                yield frame
    except av.FFmpegError as error:
        faults.messages.append(f"{faults.kind}: the file is damaged, reading stopped early ({one_line(error)})")


def declared_times(container) -> tuple[float, float | None]:
    """When a container says that it starts, by its own clock, and how long it lasts, in seconds."""
    start = (container.start_time or 0) / av.time_base
    if container.duration is None:
        return start, None
    duration = container.duration / av.time_base
    if "matroska" in container.format.name and 0 < start < duration:  # declares its end, counted from 0
        duration -= start
    return start, duration


def seconds(time: int | None, time_base: Fraction | None) -> Fraction | None:
    """A time stamp in seconds, exactly."""
    return None if time is None or not time_base else time * time_base
