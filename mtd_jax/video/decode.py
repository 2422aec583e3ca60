"""The only reader of video: any file to frames at 25 fps and audio at 16 kHz, on one clock.

The clock is the container's: its time stamps decide which frame and which sample belong together, whatever the
frame rate and wherever the streams start. Grid frame 0 is the first video frame, grid frame k is shown k/25 s
later, and sample 640·k is heard at that moment. If the video starts 200 ms after the audio, the first 200 ms of
audio are dropped; if the audio starts late, it is padded with silence. Either way the offset between them is
preserved.
"""

import contextlib
import dataclasses
import gc
import os
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.container import InputContainer
from av.error import FFmpegError
from av.video.reformatter import Interpolation, VideoReformatter

from mtd_jax.data.clip import FPS, SAMPLES_PER_FRAME
from mtd_jax.errors import UserError
from mtd_jax.video.audio import QUIET, decode_audio, rms
from mtd_jax.video.container import (
    Faults,
    audio_stream,
    declared_times,
    decoded,
    end_of,
    open_container,
    seconds,
    stream_notes,
    video_stream,
)

# Frames of a video stream with their time stamps, and their resampling to 25 fps.

# Others count frames from where they begin to read (AVI), or give few of them a time (MPEG-PS).
_SEEKABLE = ("mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm", "mpegts")
_LONG_HOLD = 10  # seconds; a frame shown for longer is worth a warning
_LAST_HOLD = 1  # seconds; the last frame may claim this much, or as much as the average frame, but no more


class TimedFrame:
    """A decoded frame of the source video.

    Attributes:
      time, end: when it is shown, in seconds on the container's clock. Where the file declares no duration, the
        end assumes the average one.
    """

    def __init__(self, frame: av.VideoFrame, time: Fraction, end: Fraction):
        self.time, self.end = time, end
        self._source = frame

    def rgb(self, converter: VideoReformatter, height: int | None = None, width: int | None = None) -> np.ndarray:
        """Upright uint8 (height, width, 3), scaled to the given size if the stream changes its size midway.

        A converter that has seen frames like it takes half a millisecond at 720p, a new one seven.
        """
        turns, mirrored = _orientation(self._source)
        if turns % 2:
            height, width = width, height
        upright = converter.reformat(self._source, width, height, "rgb24", threads=1)
        pixels = upright.to_ndarray()
        pixels = np.ascontiguousarray(np.rot90(pixels[:, ::-1] if mirrored else pixels, turns))
        pixels.flags.writeable = False  # several grid frames may share it
        return pixels

    def sample(self, converter: VideoReformatter, side: int) -> np.ndarray:
        """Some of its pixels in a grid, uint8 (side, side, 3) RGB, as stored: perhaps not upright."""
        pixels = converter.reformat(
            self._source, side, side, "rgb24", interpolation=Interpolation.POINT, threads=1
        )
        return pixels.to_ndarray()


class Picture:
    """What a video shows at one position of the grid, or at several; converted only when it is asked for."""

    def __init__(self, frame: TimedFrame, video: "VideoFile"):
        self.frame, self._video = frame, video

    def rgb(self) -> np.ndarray:
        """Upright uint8 (height, width, 3), read-only.

        Raises:
          UserError: the pixel format cannot be converted to RGB.
        """
        video = self._video
        return self._converted(lambda: self.frame.rgb(video._converter, video.height, video.width))

    def sample(self, side: int) -> np.ndarray:
        """Some of its pixels, uint8 (side, side, 3) RGB, as stored: perhaps not upright. Raises as `rgb`."""
        return self._converted(lambda: self.frame.sample(self._video._sampler, side))

    def _converted(self, convert: Callable[[], np.ndarray]) -> np.ndarray:
        try:
            return convert()
        except (FFmpegError, ValueError) as error:
            raise UserError(f"{self._video.path}: its frames cannot be converted to RGB ({error})") from error


def _orientation(frame: av.VideoFrame) -> tuple[int, bool]:
    """Quarter turns, and whether to mirror left and right before them, as the frame's display matrix asks."""
    data = frame.side_data.get("DISPLAYMATRIX")
    if data is None:
        return 0, False
    a, b, c, d = np.frombuffer(bytes(data), np.int32)[[0, 1, 3, 4]].astype(float)
    mirrored = a * d < b * c
    turned = np.degrees(np.arctan2(b, a) if not mirrored else np.arctan2(-b, -a))
    return round(-turned / 90) % 4, bool(mirrored)


def video_frames(container: InputContainer, stream: av.VideoStream, faults: Faults) -> Iterator[TimedFrame]:
    """Yields frames with increasing time stamps; stops at a jump that no recording makes."""
    average = 1 / stream.average_rate if stream.average_rate else Fraction(1, FPS)
    start, duration = declared_times(container)
    previous: TimedFrame | None = None
    first, steps = Fraction(0), 0
    # AVI has no presentation times: what PyAV gives for one is the time of decoding, out of order with B-frames.
    # FFmpeg takes the decoding time of the packet that completed the frame, and so do we.
    counts = container.format.name == "avi"
    for frame in decoded(container, stream, faults):
        time = seconds(frame.dts if counts else frame.pts, frame.time_base)
        if time is None:
            time = Fraction(0) if previous is None else previous.end
        if previous is not None:
            step = time - previous.time
            past_the_end = duration is not None and time > start + duration + 1
            if step > _LONG_HOLD and past_the_end:
                faults.messages.append("video: the time stamps jump; everything after the jump was ignored")
                faults.ended_early = True
                return
            if step <= 0:
                continue
            steps += 1
            average = (time - first) / steps
        else:
            first = time
        end = time + (seconds(frame.duration or None, frame.time_base) or average)
        previous = TimedFrame(frame, time, end)
        yield previous


def on_grid(
    frames: Iterator[TimedFrame], origin: Fraction, faults: Faults, first: int = 0
) -> Iterator[tuple[int, TimedFrame]]:
    """Yields (k, the frame for time origin + k/25): the nearest one, but never one 20 ms or more ahead.

    k counts from `first`; earlier frames may come, and are passed over.

    A frame is held until the next one, however long that takes. The last frame is held for its declared duration,
    unless that exceeds both one second and the average duration: such a value may well be an error in the file.
    """
    period = Fraction(1, FPS)
    k, current, steps, begin, longest = first, None, 0, Fraction(0), Fraction(0)
    for frame in frames:
        if current is None:
            begin = frame.time
        else:
            steps += 1
            longest = max(longest, frame.time - current.time)
            # From this time on the new frame is the nearer one, and due within half a period.
            turn = max((current.time + frame.time) / 2, frame.time - period / 2) - origin
            while k * period <= turn:
                yield k, current
                k += 1
        current = frame
    if current is None:
        return
    average = (current.time - begin) / steps if steps else period
    claim = current.end - current.time
    end = current.end if claim <= max(_LAST_HOLD, average) else current.time + average
    while k == first == 0 or origin + (k + Fraction(1, 2)) * period < end:
        yield k, current
        k += 1
    if longest > _LONG_HOLD:
        faults.messages.append(f"video: one frame is shown for {float(longest):.1f} s")
    if end < current.end:
        faults.messages.append(
            f"video: the last frame declares a duration of {float(claim):.1f} s; "
            f"{float(average):.2f} s was used instead"
        )


Progress = Callable[[float, float | None], None]  # seconds decoded, seconds in total if known


@dataclasses.dataclass
class VideoFile:
    """A file with both video and audio. Every pass reads it again from the start.

    Attributes:
      path: the file.
      height, width: frame size in pixels, after rotation.
      start_seconds: when grid frame 0 is shown, counted from the start of the earlier stream, as players do.
      duration_seconds: the duration that the container declares; None if it does not declare one.
      stream_index: of the video stream, among all of the file.
      audio_track: number of the audio stream among those of the file, from 1; 0: none.
      is_cut_short: the clock jumps in what was decoded so far; what follows was left out.
      can_seek: the container gives every frame its time, so that a part can be found and its frames be told.
    """

    path: Path
    height: int
    width: int
    start_seconds: float
    duration_seconds: float | None
    can_seek: bool
    stream_index: int
    audio_track: int
    _origin: Fraction
    _audio_tracks: int
    _chosen: bool
    _faults: dict[str, list[str]] = dataclasses.field(default_factory=dict)
    is_cut_short: bool = False
    _converter: VideoReformatter = dataclasses.field(default_factory=VideoReformatter)
    _sampler: VideoReformatter = dataclasses.field(default_factory=VideoReformatter)

    @property
    def warnings(self) -> list[str]:
        """Faults of the file found so far, one line each."""
        return [line for lines in self._faults.values() for line in lines]

    def frames(self, progress: Progress | None = None) -> Iterator[tuple[int, np.ndarray]]:
        """Yields (k, uint8 (height, width, 3) RGB) for k = 0, 1, …: the frame shown at k/25 s.

        That is the frame nearest in time, but never one 20 ms or more ahead. A frame that fills several grid
        positions is yielded as the same read-only array each time.

        Raises:
          UserError: the pixel format cannot be converted to RGB.
        """
        shown: Picture | None = None
        pixels = np.empty(0)
        for k, picture in self.pictures(progress):
            if picture is not shown:
                shown, pixels = picture, picture.rgb()
            yield k, pixels

    def pictures(
        self, progress: Progress | None = None, first: int = 0, end: int | None = None
    ) -> Iterator[tuple[int, Picture]]:
        """Yields (k, picture) as `frames` does, for k from `first` to end − 1, or to the end of the file.

        Earlier frames are not decoded, where the container can seek.
        """
        picture: Picture | None = None
        for k, frame in self._grid(progress, first, end):
            if picture is None or picture.frame is not frame:
                picture = Picture(frame, self)
            yield k, picture
        if end is not None:
            # A container and its streams refer to each other, and its decoder keeps 300 MB of frames at 1080p:
            # left to Python, the decoders of several parts would be alive at once.
            gc.collect()

    def count_frames(self, progress: Progress | None = None) -> int:
        """How many frames `frames` yields. Decodes the video, but skips the conversion to RGB."""
        return sum(1 for _ in self._grid(progress, 0, None))

    def last_frame(self) -> int | None:
        """How many grid frames there are by the times in the file, which is not decoded; None without times."""
        with open_container(self.path) as container:
            end = end_of(container, video_stream(container, self.path))
        return None if end is None else int((end - self._origin) * FPS)

    def waveform(self) -> np.ndarray:
        """int16 (samples,), 16 kHz mono, from grid frame 0 to the end of the audio.

        Raises:
          UserError: as `decode_audio`.
        """
        faults = Faults("audio")
        samples = decode_audio(self.path, self._origin, faults, str(self.audio_track))
        if rms(samples) < QUIET:
            samples = self._something_louder(samples, faults)
        self._faults["audio"] = faults.warnings()
        self.is_cut_short |= faults.ended_early
        return samples

    def stereo(self, rate: int) -> np.ndarray:
        """The same audio at another rate: int16 (samples, 2). Raises `UserError` as `decode_audio` does."""
        track = str(self.audio_track)
        return decode_audio(self.path, self._origin, Faults("audio"), track, stereo=True, rate=rate)

    def _something_louder(self, silence: np.ndarray, faults: Faults) -> np.ndarray:
        """Channels of opposite phase cancel out in the mix, and the first of several tracks may be empty."""
        left = decode_audio(self.path, self._origin, Faults("audio"), str(self.audio_track), stereo=True)[:, 0]
        if rms(left) > max(QUIET, 10 * rms(silence)):
            faults.messages.append(
                "audio: the channels have opposite phase and cancel out; the left one was taken"
            )
            return left
        for number in () if self._chosen else range(1, self._audio_tracks + 1):
            if number == self.audio_track:
                continue
            with contextlib.suppress(UserError):
                other = decode_audio(self.path, self._origin, (found := Faults("audio")), str(number))
                if rms(other) >= QUIET:
                    faults.messages += [
                        f"audio: track {self.audio_track} is silent; track {number} was taken",
                        *found.messages,
                    ]
                    self.audio_track = number
                    return other
        return silence

    def _grid(self, progress: Progress | None, first: int, last: int | None) -> Iterator[tuple[int, TimedFrame]]:
        faults, frame = Faults("video"), None
        with open_container(self.path) as container:
            for k, frame in on_grid(self._from(container, first, faults), self._origin, faults, first):
                if last is not None and k >= last:
                    break
                if progress is not None and k % FPS == 0:
                    progress(k / FPS, self.duration_seconds)
                yield k, frame
        self.is_cut_short |= faults.ended_early
        if last is not None:  # a part of the file: what other parts had stays
            self._faults["video"] = list(dict.fromkeys(self._faults.get("video", []) + faults.messages))
            return
        if frame is not None and self.duration_seconds is not None and not faults.ended_early:
            end = self.start_seconds + float(frame.end - self._origin)
            if end < 0.95 * self.duration_seconds - 1:
                faults.messages.append(f"video: ends at {end:.1f} s of {self.duration_seconds:.1f} s")
        self._faults["video"] = faults.warnings()

    def _from(self, container: InputContainer, first: int, faults: Faults) -> Iterator[TimedFrame]:
        """The frames of the file from grid frame `first` on, and perhaps some before it."""
        stream = video_stream(container, self.path)
        target = self._origin + Fraction(first, FPS)
        if first == 0 or not _seek(container, stream, target - Fraction(1, FPS)):
            yield from video_frames(container, stream, faults)
            return
        frames = video_frames(container, stream, faults)
        start = next(frames, None)
        if start is not None and start.time <= target:
            yield start
            yield from frames
            return
        # A container without an index, or with a wrong one, got us too far: read it from the beginning.
        with open_container(self.path) as again:
            yield from video_frames(again, video_stream(again, self.path), faults)


def _seek(container: InputContainer, stream: av.VideoStream | av.AudioStream, time: Fraction) -> bool:
    """Goes to the last key frame at or before `time`; False if the container cannot."""
    if stream.time_base is None:
        return False
    try:
        container.seek(int(time / stream.time_base), stream=stream)
    except (FFmpegError, ValueError, OverflowError):
        return False
    return True


def open_video(path: str | os.PathLike, audio_track: str | None = None, *, silent: bool = False) -> VideoFile:
    """Opens any container and codec that FFmpeg reads.

    Args:
      audio_track: number, from 1, or language of the audio stream to take; None = the main one, or where that is
        silent the first that is not.
      silent: its audio is not wanted, and need not be there.

    Raises:
      UserError: the file is missing, empty, not a video, truncated beyond use, or lacks video or audio.
    """
    path = Path(path)
    with open_container(path) as container:
        video, audio = video_stream(container, path), None
        streams, number, index, audio_start = container.streams.audio, 0, video.index, None
        if not silent:
            audio = audio_stream(container, path, audio_track)
            number = 1 + streams.index(audio)
            audio_start = seconds(audio.start_time, audio.time_base)
        _, duration = declared_times(container)
        notes = stream_notes(container, video, audio)
        can_seek = container.format.name in _SEEKABLE
        first = next(video_frames(container, video, Faults("video")), None)
    if first is None:
        raise UserError(f"{path}: no frame could be decoded from its video stream")
    height, width = first.rgb(VideoReformatter()).shape[:2]
    start = first.time if audio_start is None else min(first.time, audio_start)
    return VideoFile(
        path=path,
        height=height,
        width=width,
        start_seconds=float(first.time - start),
        duration_seconds=duration,
        can_seek=can_seek,
        stream_index=index,
        audio_track=number,
        _origin=first.time,
        _audio_tracks=len(streams),
        _chosen=audio_track is not None,
        _faults={"streams": notes},
    )


def read_audio(path: str | os.PathLike) -> np.ndarray:
    """The audio of a file, with video or without, from its start: int16 (samples,), 16 kHz mono.

    Raises:
      UserError: as `decode_audio`.
    """
    path = Path(path)
    with open_container(path) as container:
        start = Fraction(declared_times(container)[0]).limit_denominator(90_000)
    return decode_audio(path, start, Faults("audio"))


def read(path: str | os.PathLike) -> tuple[np.ndarray, np.ndarray]:
    """Decodes a whole short clip into memory.

    Returns:
      frames uint8 (n, height, width, 3) RGB at 25 fps, and waveform int16 (at most 640·n,) at 16 kHz.

    Raises:
      UserError: as `open_video`, `VideoFile.frames` and `VideoFile.waveform`.
    """
    video = open_video(path)
    frames = np.stack([pixels for _, pixels in video.frames()])
    return frames, video.waveform()[: len(frames) * SAMPLES_PER_FRAME]
