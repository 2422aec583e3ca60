"""What a media file holds, and what of it a copy with moved audio does not keep."""

import contextlib
import dataclasses
from collections.abc import Iterable
from pathlib import Path

import av
import numpy as np
from av.error import FFmpegError
from av.stream import Disposition, Stream

from mtd_jax.errors import UserError
from mtd_jax.video.container import Faults, decoded, open_container, seconds, video_stream

_EXACT = 0.002  # seconds; containers round time stamps, Matroska and FLV to milliseconds
_PRIMING = 0.2  # seconds; the most that an encoder puts before the first sample, or a decoder drops
_LEAP = 1.0  # seconds; time stamps that go back further begin another recording, which FFmpeg appends
_UPRIGHT = [1 << 16, 0, 0, 1 << 16]


@dataclasses.dataclass
class Contents:
    """The streams of a media file, by index, and how its frames are shown.

    Attributes:
      kinds: "video", "audio", "cover", "subtitle", "attachment", "timecode", "chapters" or "data".
      labels: codec, audio format and language, for messages.
      times: presentation times of the packets in the first seconds, float64 (packets,), in the file's order.
      video, audio: indices of the main streams; no audio is None.
      start: when the earliest stream starts, in seconds.
      matrix: how players rotate or mirror the frames, 2 × 2 in 16.16 fixed point.
      width, height: of a frame as shown, upright, in square pixels.
      chapters: how many.
    """

    kinds: dict[int, str]
    labels: dict[int, str]
    times: dict[int, np.ndarray]
    video: int
    audio: int | None
    start: float
    matrix: list[int]
    width: int
    height: int
    chapters: int

    def of_kind(self, kind: str, among: Iterable[int] | None = None) -> list[int]:
        """Indices of the streams of this kind, in order."""
        return [i for i in sorted(self.kinds if among is None else among) if self.kinds[i] == kind]

    def words(self, index: int) -> str:
        """The stream's name in messages."""
        kind = self.kinds[index]
        if kind in ("video", "audio") and len(self.of_kind(kind)) == 1:
            return f"the {kind}"
        return f"the {kind} stream {index} ({self.labels[index]})"


def read_contents(path: Path, span: float) -> Contents:
    """Reads the packets of the first `span` seconds, and decodes one frame.

    Raises:
      UserError: no video that FFmpeg reads, or no frame can be decoded.
    """
    times: dict[int, list[float]] = {}
    with open_container(path) as container:
        video, audio = video_stream(container, path), container.streams.best("audio")
        has_chapters = bool(container.chapters())
        frame = next(decoded(container, video, Faults("video")), None)
        if frame is None:
            raise UserError(f"{path}: no frame could be decoded from its video stream")
        data = frame.side_data.get("DISPLAYMATRIX")
        matrix = _UPRIGHT if data is None else np.frombuffer(bytes(data), np.int32)[[0, 1, 3, 4]].tolist()
        size = round(frame.width * (video.sample_aspect_ratio or 1)), frame.height
        width, height = size if matrix[0] else reversed(size)  # a quarter turn has a zero there
        contents = Contents(
            kinds={s.index: _kind(s, has_chapters) for s in container.streams},
            labels={s.index: _label(s) for s in container.streams},
            times={},
            video=video.index,
            audio=audio.index if audio else None,
            start=(container.start_time or 0) / av.time_base,
            matrix=matrix,
            width=width,
            height=height,
            chapters=len(container.chapters()),
        )
    with open_container(path) as container, contextlib.suppress(FFmpegError):  # damage ends the comparison
        for packet in container.demux():
            if packet.pts is None:
                continue
            due, before = float(packet.pts * packet.time_base), times.setdefault(packet.stream.index, [])
            if due > contents.start + span or (before and due < before[-1] - _LEAP):
                break
            before.append(due)
    due = seconds(frame.pts, frame.time_base)
    if due is not None:  # AVI and raw streams leave the times of packets to the decoder
        times.setdefault(contents.video, [float(due)])
    contents.times = {index: np.array(times.get(index, [])) for index in contents.kinds}
    return contents


def lost_in_copy(
    held: Contents,
    copy: Contents,
    kept: list[int],
    encoded: dict[int, float],
    delays: dict[int, float],
    span: float,
) -> str | None:
    """What the first seconds of a copy do not keep, in words; None if they are right.

    Args:
      kept: the source's streams that the copy should hold.
      encoded: those of them that were re-encoded, with the time at which each should start, by the source's clock.
      delays: of each audio stream, in seconds.
      span: seconds that both were read for.
    """
    kinds = {held.kinds[index] for index in kept}
    if any(len(copy.of_kind(kind)) != len(held.of_kind(kind, kept)) for kind in kinds):
        return "streams of this kind"
    twins = {i: j for kind in kinds for i, j in zip(held.of_kind(kind, kept), copy.of_kind(kind), strict=True)}
    matrix = _UPRIGHT if held.video in encoded else held.matrix
    if copy.matrix != matrix or abs(copy.width * held.height / (copy.height * held.width) - 1) > 0.05:
        return "the orientation or shape of the frames"
    sent, found = held.times[held.video], copy.times[twins[held.video]]
    if not len(sent) or not len(found):
        return "the times of the frames"
    if held.video not in encoded and np.any(np.diff(sent) < 0) != np.any(np.diff(found) < 0):
        return "the order of the frames"
    sent, found = np.sort(sent), np.sort(found)
    moved = found[0] - sent[0]
    sent = sent[sent <= sent[0] + span - 1]  # reading may have stopped within a group of reordered frames
    rounding = np.ptp(sent) / len(sent) / 2 if held.video in encoded else 0
    if np.abs(found[:, None] - sent - moved).min(axis=0).max() > _EXACT + rounding:
        return "the times of the frames"
    for index in held.of_kind("audio", kept):
        due, first = held.times[index] + delays[index], copy.times[twins[index]][:1]
        if index in encoded:
            due = encoded[index] + np.arange(-_PRIMING, _PRIMING, _EXACT)
        if len(due) and (not len(first) or np.abs(due + moved - first).min() > _EXACT):
            return "the times of the audio"
    return None


def _kind(stream: Stream, has_chapters: bool) -> str:
    if stream.disposition & Disposition.attached_pic:
        return "cover"
    if stream.type == "data" and "timecode" in stream.metadata:
        return "timecode"
    if stream.type == "data" and has_chapters and stream.name == "bin_data":
        return "chapters"  # MP4 repeats their titles as a track
    return stream.type


def _label(stream: Stream) -> str:
    audio = (
        f"{stream.rate} Hz, {stream.layout.name.replace('1 channels', 'mono')}"
        if isinstance(stream, av.AudioStream)
        else ""
    )
    language = stream.metadata.get("language")
    return ", ".join(filter(None, (getattr(stream, "name", None), audio, language if language != "und" else "")))
