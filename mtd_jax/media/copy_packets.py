"""Packets of a file in the order it holds them, each with a time that every container takes."""

import dataclasses
from collections.abc import Iterator
from fractions import Fraction

import av
from av.stream import Disposition

from mtd_jax.errors import UserError
from mtd_jax.media.container import seconds


@dataclasses.dataclass
class Written:
    """What of a file went into its copy, and what did not.

    Attributes:
      times: when the packets of pictures and sound are due in the copy, in seconds, by the source's stream.
      untimed: packets without any time stamp, by stream.
      encoding: what encoders lost beside their usual loss, in words, by stream.
      damage: where and why reading stopped early, in words.
    """

    times: dict[int, list[Fraction]] = dataclasses.field(default_factory=dict)
    untimed: dict[int, int] = dataclasses.field(default_factory=dict)
    encoding: dict[int, list[str]] = dataclasses.field(default_factory=dict)
    damage: str | None = None


def timed_packets(reader, streams: list, written: Written, *, strict: bool) -> Iterator[av.Packet]:
    """Yields the packets of these streams with decoding times that rise in each stream; empty ones mark its end.

    Matroska leaves open when a stream's first packets are to be decoded: that follows from the packets behind
    them. A still picture without a time, a cover, is due at once.

    Args:
      strict: decoding times must differ; else they may repeat, as those of simultaneous subtitles do.

    Raises:
      UserError: the disk or the net failed, rather than the file.
    """
    clocks = {stream.index: _Clock(stream, strict) for stream in streams}
    for packet in _read(reader, streams, written):
        index = packet.stream.index
        if not packet.size:
            yield from clocks[index].rest()
            yield packet
            continue
        if packet.pts is None and packet.dts is None:
            if not packet.stream.disposition & Disposition.attached_pic:
                written.untimed[index] = written.untimed.get(index, 0) + 1
                continue
            packet.pts = packet.dts = 0
        yield from clocks[index].add(packet)
    for clock in clocks.values():  # reading stopped before the end
        yield from clock.rest()


def _read(reader, streams: list, written: Written) -> Iterator[av.Packet]:
    reached = 0.0
    try:
        for packet in reader.demux(streams):
            if packet.dts is not None:
                reached = float(seconds(packet.dts, packet.time_base))
            yield packet
    except OSError as error:
        raise UserError(f"{reader.name.removeprefix('file:')}: reading failed ({error.strerror})") from error
    except av.FFmpegError as error:
        written.damage = f"the video is damaged, its copy ends at {reached:.1f} s ({error.strerror})"


class _Clock:
    """Decoding times of one stream."""

    def __init__(self, stream, strict: bool):
        rate = stream.average_rate if stream.type == "video" else None
        self._usual = round(1 / rate / stream.time_base) if rate and stream.time_base else 0
        self._least = 1 if strict else 0
        self._held, self._last = [], None

    def add(self, packet) -> Iterator[av.Packet]:
        if self._last is None and packet.dts is None:
            self._held.append(packet)
            return
        if self._held:
            due, step = packet.dts, packet.duration or self._usual or 1
            for early in reversed(self._held):
                early.dts = due = min(due - step, early.pts)
            yield from self.rest()
        yield self._set(packet)

    def rest(self) -> Iterator[av.Packet]:
        """The packets that still wait: of a stream so short that no decoding time was ever told."""
        held, self._held = self._held, []
        if held and held[0].dts is None:
            order = sorted(packet.pts for packet in held)
            late = max(due - packet.pts for due, packet in zip(order, held, strict=True))
            for due, packet in zip(order, held, strict=True):
                packet.dts = due - late
        yield from map(self._set, held)

    def _set(self, packet) -> av.Packet:
        """Mends times that go back, and pictures that would be shown before they are decoded."""
        due = packet.pts if packet.dts is None else packet.dts
        if self._last is not None:
            due = max(due, self._last + self._least)
        packet.dts = self._last = due
        packet.duration = packet.duration or self._usual  # else the last picture of an MPEG-TS is lost in MP4
        if packet.pts is not None:
            packet.pts = max(packet.pts, due)
        return packet
