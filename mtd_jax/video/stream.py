"""The last seconds of a stream that does not end: an address, a pipe, a device.

Packets are kept as they arrive, undecoded, so memory is that of a few seconds of the stream. On request they
become a file, which the rest of the project reads like any other.
"""

import collections
import dataclasses
import errno
import itertools
import math
import os
import sys
import threading
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
from av.container import InputContainer
from av.error import ExitError, FFmpegError, InvalidDataError
from av.stream import Stream

from mtd_jax.errors import UserError, one_line
from mtd_jax.video.container import audio_stream, seconds, video_stream

ENDED = "the stream has ended"
_OPENING, _SILENCE = 30.0, 20.0  # seconds without a byte
_BACK = 1.0  # seconds; a clock that goes back further begins another stream
_MOST_BYTES = 500_000_000  # of packets; a stream without key frames would fill the memory
_RTSP = {"rtsp_transport": "tcp"}  # over UDP a lost packet damages everything to the next key frame


@dataclasses.dataclass(frozen=True)
class _Kept:
    """A packet's content and times, in units of its stream."""

    stream: int
    data: bytes
    pts: int | None
    dts: int | None
    duration: int | None
    is_key: bool
    seconds: float


class RecentStream:
    """Reads a stream in a thread of its own and keeps its last seconds. A context manager.

    Attributes:
      ended: why there is nothing more to come; empty while there is.
    """

    def __init__(self, source: str, keep: float, track: str | None = None):
        """Opens the stream.

        Args:
          source: what FFmpeg opens: an address, a named pipe or a device; "-": the standard input.
          keep: seconds. A little more is kept, back to a key frame of the video.
          track: see `audio_stream`.

        Raises:
          UserError: it cannot be opened, or has no video or no audio.
        """
        self._keep, self._source = keep, source
        self._container = _open(source)
        try:
            self._video = video_stream(self._container, Path(source))
            self._audio = audio_stream(self._container, Path(source), track)
        except UserError:
            self._container.close()
            raise
        self._packets: collections.deque[_Kept] = collections.deque()
        self._bytes = 0
        self._changed = threading.Condition()
        self._begin, self._newest = math.inf, -math.inf
        self._closing = False
        self.ended = ""
        self._thread = threading.Thread(target=self._read, name="stream", daemon=True)

    def __enter__(self) -> "RecentStream":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._closing = True
        self._thread.join(timeout=1.0)
        if not self._thread.is_alive():  # else FFmpeg still waits for data, and the process's end will close it
            self._container.close()

    def wait(self, after: float) -> float | None:
        """Waits for video later than this time of the stream; returns the newest time, None once it has ended."""
        with self._changed:
            self._changed.wait_for(lambda: self._newest > after or self.ended)
            return self._newest if self._newest > after else None

    def write(self, path: str | os.PathLike) -> bool:
        """Writes what is kept, from a key frame on, as a Matroska file that begins at 0 s.

        Returns False while there is no key frame. Before the first one nothing can be decoded.
        """
        with self._changed:
            kept = list(itertools.dropwhile(lambda packet: not self._begins(packet), self._packets))
        if not kept:
            return False
        sources: dict[int, Stream] = {stream.index: stream for stream in (self._video, self._audio)}
        with av.open(os.fspath(path), "w", format="matroska") as output:
            copies = {index: output.add_stream_from_template(stream) for index, stream in sources.items()}
            first = min(packet.seconds for packet in kept)
            for packet in kept:
                copy = av.Packet(packet.data)
                copy.stream = copies[packet.stream]
                copy.time_base = unit = sources[packet.stream].time_base or Fraction(1, 1000)
                moved = round(first / unit)
                copy.pts = None if packet.pts is None else packet.pts - moved
                copy.dts = None if packet.dts is None else packet.dts - moved
                copy.duration, copy.is_keyframe = packet.duration or 0, packet.is_key
                output.mux(copy)
        return True

    def _read(self) -> None:
        try:
            for packet in self._container.demux(self._video, self._audio):
                if self._closing:
                    break
                # At the start of a Matroska file with B-frames only one of the two is known.
                if packet.size and (packet.dts is not None or packet.pts is not None):
                    self._add(packet)
            why = ENDED
        except ExitError:
            why = f"nothing came for {_SILENCE:.0f} s"
        except (FFmpegError, OSError) as error:
            # FFmpeg says "Input/output error" whether a server has no more to send or the connection is lost.
            closed = error.errno == errno.EIO and "://" in self._source
            why = "the connection was closed" if closed else one_line(error)
        except _Stopped as stop:
            why = str(stop)
        with self._changed:
            self.ended = why
            self._changed.notify_all()

    def _add(self, packet: av.Packet) -> None:
        is_video = packet.stream.index == self._video.index
        shown = float(seconds(packet.pts if packet.pts is not None else packet.dts, packet.time_base) or 0)
        kept = _Kept(
            packet.stream.index,
            bytes(packet),
            packet.pts,
            packet.dts,
            packet.duration,
            packet.is_keyframe,
            shown,
        )
        if is_video and shown < self._newest - _BACK:
            raise _Stopped("its clock went back")
        self._begin = min(self._begin, shown)
        if shown > max(self._newest, self._begin) + max(_SILENCE, self._keep):
            raise _Stopped("its video has stopped")
        with self._changed:
            self._packets.append(kept)
            self._bytes += len(kept.data)
            if is_video:
                self._newest = max(self._newest, shown)
            self._forget(self._newest - self._keep)
            self._changed.notify_all()

    def _begins(self, packet: _Kept) -> bool:
        """Whether decoding can begin here."""
        return packet.is_key and packet.stream == self._video.index

    def _forget(self, before: float) -> None:
        """Drops what is older than the last key frame before this time."""
        keys = [n for n, packet in enumerate(self._packets) if self._begins(packet) and packet.seconds <= before]
        drop = keys[-1] if keys else 0
        while drop or self._bytes > _MOST_BYTES:
            self._bytes -= len(self._packets.popleft().data)
            drop = max(drop - 1, 0)


class _Stopped(Exception):
    """What comes now is not the stream that it was."""


def _open(source: str) -> InputContainer:
    options = _RTSP if source.startswith("rtsp://") else {}
    what: Any = sys.stdin.buffer if source == "-" else source
    try:
        container = av.open(what, "r", metadata_errors="replace", options=options, timeout=(_OPENING, _SILENCE))
    except FFmpegError as error:
        unreadable = (
            "; expected one that is readable from its start, such as MPEG-TS or Matroska: an .mp4 often has its "
            "index at the end"
        )
        hint = unreadable if isinstance(error, InvalidDataError) else ""
        raise UserError(f"{source}: cannot be read as a stream ({one_line(error)}){hint}") from error
    assert isinstance(container, InputContainer)
    return container
