"""Any video file to pictures at 25 per second and sound at 16 kHz, on one clock. The only reader of video.

The clock is the container's: a picture and a sample belong together when their time stamps say so, whatever the
frame rate and wherever the streams start. Grid frame 0 is the first picture; grid frame k is k/25 s later, and
sample 640·k sounds at that moment. So a video stream that starts 200 ms after the audio loses the first 200 ms
of sound, and the offset between the two is measured, not lost; a late audio stream starts with silence.
"""

import dataclasses
import os
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from mtd_jax.data.clip import FPS, SAMPLES_PER_FRAME
from mtd_jax.errors import UserError
from mtd_jax.video.audio import LONGEST_JUMP, decode_sound
from mtd_jax.video.container import (
    Faults,
    audio_stream,
    declared_times,
    decoded,
    open_container,
    seconds,
    stream_notes,
    video_stream,
)

# The pictures of a video stream with their times, and which of them each frame of the 25 fps grid shows.

_LONG_HOLD = 10  # seconds; that a picture stands longer is worth a warning
_LAST_HOLD = 1  # seconds; a last picture that claims to last longer is taken for one like the others


class Picture:
    """A decoded picture with its time; converted to RGB once, when first asked for.

    Attributes:
      time, end: in seconds of the container's clock; the end is what the file declares, or the usual.
    """

    def __init__(self, frame, time: Fraction, end: Fraction):
        self.time, self.end = time, end
        self._frame, self._rgb = frame, None

    def rgb(self, height: int | None = None, width: int | None = None) -> np.ndarray:
        """Upright uint8 (height, width, 3); a stream that changes its size midway is brought to one size."""
        if self._rgb is None:
            turns = round(self._frame.rotation / 90)
            if turns % 2:
                height, width = width, height
            pixels = self._frame.to_ndarray(format="rgb24", width=width, height=height)
            self._rgb = np.ascontiguousarray(np.rot90(pixels, turns))
            self._rgb.flags.writeable = False
            self._frame = None
        return self._rgb


def pictures(container, stream, faults: Faults) -> Iterator[Picture]:
    """Yields pictures with rising time stamps, up to a leap that no recording makes."""
    usual = 1 / stream.average_rate if stream.average_rate else Fraction(1, FPS)
    start, duration = declared_times(container)
    previous, first, steps = None, None, 0
    for frame in decoded(container, stream, faults):
        time = seconds(frame.pts, frame.time_base)
        if time is None:
            time = Fraction(0) if previous is None else previous.end
        if previous is not None:
            step = time - previous.time
            past_the_end = duration is not None and time > start + duration + 1
            if abs(step) > LONGEST_JUMP or (step > _LONG_HOLD and past_the_end):
                faults.messages.append("picture: the time stamps leap, what lies behind the leap was left out")
                return
            if step <= 0:
                continue
            steps += 1
            usual = (time - first) / steps
        else:
            first = time
        end = time + (seconds(frame.duration or None, frame.time_base) or usual)
        previous = Picture(frame, time, end)
        yield previous


def on_grid(shown: Iterator[Picture], origin: Fraction, faults: Faults) -> Iterator[tuple[int, Picture]]:
    """Yields (k, the picture for time origin + k/25): the nearest, but never one that is 20 ms or more ahead.

    A picture is held until the next one, for whatever time. The last one is held as long as it claims, unless
    that is more than a second and more than usual: nothing tells such a claim from a fault of the file.
    """
    period = Fraction(1, FPS)
    k, current, steps, first, held = 0, None, 0, Fraction(0), Fraction(0)
    for picture in shown:
        if current is None:
            first = picture.time
        else:
            steps += 1
            held = max(held, picture.time - current.time)
            # From here on the new picture is nearer, and due within half a period.
            turn = max((current.time + picture.time) / 2, picture.time - period / 2) - origin
            while k * period <= turn:
                yield k, current
                k += 1
        current = picture
    if current is None:
        return
    usual = (current.time - first) / steps if steps else period
    claim = current.end - current.time
    end = current.end if claim <= max(_LAST_HOLD, usual) else current.time + usual
    while k == 0 or origin + (k + Fraction(1, 2)) * period < end:
        yield k, current
        k += 1
    if held > _LONG_HOLD:
        faults.messages.append(f"picture: one stands still for {float(held):.1f} s")
    if end < current.end:
        faults.messages.append(
            f"picture: the last one is said to last {float(claim):.1f} s; it was taken for {float(usual):.2f} s"
        )


Progress = Callable[[float, float | None], None]  # seconds decoded, seconds in all if known


@dataclasses.dataclass
class VideoFile:
    """A video file that has both picture and sound; every pass reads the file anew.

    Attributes:
      path: of the file.
      height, width: of the pictures in pixels, after rotation.
      start_seconds: when grid frame 0 is shown, counted from the start of the earlier stream as players do.
      duration_seconds: what the container declares, from its start; None if it doesn't say.
    """

    path: Path
    height: int
    width: int
    start_seconds: float
    duration_seconds: float | None
    _origin: Fraction
    _faults: dict[str, list[str]] = dataclasses.field(default_factory=dict)

    @property
    def warnings(self) -> list[str]:
        """Faults of the file met so far, one line each."""
        return [line for lines in self._faults.values() for line in lines]

    def frames(self, progress: Progress | None = None) -> Iterator[tuple[int, np.ndarray]]:
        """Yields (k, uint8 (height, width, 3) RGB) for k = 0, 1, …: the picture of time k/25 s.

        It is the picture nearest in time, but never one that is 20 ms or more ahead. Where a picture serves
        twice the same array comes again, so don't write into it.
        """
        for k, picture in self._grid(progress):
            try:
                pixels = picture.rgb(self.height, self.width)
            except (av.FFmpegError, ValueError) as error:
                raise UserError(f"{self.path}: its pictures cannot be converted to RGB ({error})") from error
            yield k, pixels

    def count_frames(self, progress: Progress | None = None) -> int:
        """How many frames `frames` yields; decodes the video, but spares the conversion to RGB."""
        return sum(1 for _ in self._grid(progress))

    def waveform(self) -> np.ndarray:
        """int16 (samples,), 16 kHz mono from grid frame 0 to the end of the sound."""
        faults = Faults("sound")
        samples = decode_sound(self.path, self._origin, faults)
        self._faults["sound"] = faults.warnings()
        return samples

    def _grid(self, progress: Progress | None) -> Iterator[tuple[int, Picture]]:
        faults, picture = Faults("picture"), None
        with open_container(self.path) as container:
            shown = pictures(container, video_stream(container, self.path), faults)
            for k, picture in on_grid(shown, self._origin, faults):
                if progress is not None and k % FPS == 0:
                    progress(k / FPS, self.duration_seconds)
                yield k, picture
        if picture is not None and self.duration_seconds is not None:
            end = self.start_seconds + float(picture.end - self._origin)
            if end < 0.95 * self.duration_seconds - 1:
                faults.messages.append(f"picture: ends at {end:.1f} s of {self.duration_seconds:.1f} s")
        self._faults["picture"] = faults.warnings()


def open_video(path: str | os.PathLike) -> VideoFile:
    """Opens any container and codec that FFmpeg reads.

    Raises:
      UserError: the file is missing, empty, no video, cut off beyond use, or lacks picture or sound.
    """
    path = Path(path)
    with open_container(path) as container:
        video, audio = video_stream(container, path), audio_stream(container, path)
        audio_start = seconds(audio.start_time, audio.time_base)
        _, duration = declared_times(container)
        notes = stream_notes(container, video, audio)
        first = next(pictures(container, video, Faults("picture")), None)
    if first is None:
        raise UserError(f"{path}: no picture could be decoded from its video stream")
    height, width = first.rgb().shape[:2]
    start = first.time if audio_start is None else min(first.time, audio_start)
    return VideoFile(path, height, width, float(first.time - start), duration, first.time, {"streams": notes})


def read(path: str | os.PathLike) -> tuple[np.ndarray, np.ndarray]:
    """Decodes a short clip whole.

    Returns:
      frames uint8 (n, height, width, 3) RGB at 25 per second, and waveform int16 (at most 640·n,) at 16 kHz.

    Raises:
      UserError: as `open_video`.
    """
    video = open_video(path)
    frames = np.stack([picture for _, picture in video.frames()])
    return frames, video.waveform()[: len(frames) * SAMPLES_PER_FRAME]
