"""Opens media files and decodes single streams of them, with faults as one clear line."""

import contextlib
import dataclasses
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import av
from av.stream import Disposition

from mtd_jax.errors import UserError


@dataclasses.dataclass
class Faults:
    """What went wrong while decoding one stream, and could be left behind.

    Attributes:
      kind: "picture" or "sound", for the messages.
      damaged: packets that the decoder refused.
      messages: other faults, in words.
    """

    kind: str
    damaged: int = 0
    messages: list[str] = dataclasses.field(default_factory=list)

    def warnings(self) -> list[str]:
        damage = [f"{self.kind}: {self.damaged} damaged packets were left out"] if self.damaged else []
        return damage + self.messages


@contextlib.contextmanager
def open_container(path: Path) -> Iterator[av.container.InputContainer]:
    """Opens a media file for reading.

    Raises:
      UserError: missing, a folder, empty, or nothing FFmpeg can read.
    """
    if not path.exists():
        raise UserError(f"{path}: no such file")
    if path.is_dir():
        raise UserError(f"{path}: is a folder, expected a video file")
    try:
        with path.open("rb") as file:
            head = file.read(12)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({_words(error)})") from error
    if not head:
        raise UserError(f"{path}: the file is empty (0 bytes)")
    try:
        container = av.open(f"file:{path}", metadata_errors="replace")  # the prefix: names may hold colons
    except av.FFmpegError as error:
        # MP4 and MOV keep their index at the end, so the cut-off part of such a file takes everything with it.
        if head[4:8] == b"ftyp":
            raise UserError(f"{path}: damaged or cut short: an MP4 without a usable index (moov)") from error
        raise UserError(f"{path}: not a video that FFmpeg can read ({_words(error)})") from error
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


def decoded(container, stream, faults: Faults) -> Iterator[av.frame.Frame]:
    """Yields the stream's frames; damaged packets are counted in `faults`, and a broken container ends it."""
    try:
        for packet in container.demux(stream):
            try:
                yield from packet.decode()
            except av.FFmpegError:
                faults.damaged += 1
    except av.FFmpegError as error:
        faults.messages.append(f"{faults.kind}: the file is damaged, reading stopped early ({_words(error)})")


def seconds(time: int | None, time_base: Fraction | None) -> Fraction | None:
    """A time stamp in seconds, exactly."""
    return None if time is None or not time_base else time * time_base


def _words(error: Exception) -> str:
    return getattr(error, "strerror", None) or " ".join(str(error).split())
