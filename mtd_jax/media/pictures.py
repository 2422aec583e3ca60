"""Frames of a video stream with their time stamps, and their resampling to 25 fps."""

from collections.abc import Iterator
from fractions import Fraction

import av
import numpy as np
from av.container import InputContainer

from mtd_jax.data.clip import FPS
from mtd_jax.media.container import Faults, declared_times, decoded, seconds
from mtd_jax.media.sound import LONGEST_JUMP

_LONG_HOLD = 10  # seconds; a frame shown for longer is worth a warning
_LAST_HOLD = 1  # seconds; the last frame may claim this much, or as much as the average frame, but no more


class Picture:
    """A decoded frame of the source video. Its conversion to RGB waits for the first use and happens once.

    Attributes:
      time, end: when it is shown, in seconds on the container's clock. Where the file declares no duration, the
        end assumes the average one.
    """

    def __init__(self, frame: av.VideoFrame, time: Fraction, end: Fraction):
        self.time, self.end = time, end
        self._source: av.VideoFrame | np.ndarray = frame  # replaced by the RGB pixels, which frees the frame

    def rgb(self, height: int | None = None, width: int | None = None) -> np.ndarray:
        """Upright uint8 (height, width, 3), scaled to the given size if the stream changes its size midway."""
        if isinstance(self._source, av.VideoFrame):
            turns = round(self._source.rotation / 90)
            if turns % 2:
                height, width = width, height
            pixels = self._source.to_ndarray(format="rgb24", width=width, height=height)
            self._source = np.ascontiguousarray(np.rot90(pixels, turns))
            self._source.flags.writeable = False  # several grid frames may share it
        return self._source


def pictures(container: InputContainer, stream: av.VideoStream, faults: Faults) -> Iterator[Picture]:
    """Yields frames with increasing time stamps; stops at a jump that no recording makes."""
    average = 1 / stream.average_rate if stream.average_rate else Fraction(1, FPS)
    start, duration = declared_times(container)
    previous: Picture | None = None
    first, steps = Fraction(0), 0
    for frame in decoded(container, stream, faults):
        time = seconds(frame.pts, frame.time_base)
        if time is None:
            time = Fraction(0) if previous is None else previous.end
        if previous is not None:
            step = time - previous.time
            past_the_end = duration is not None and time > start + duration + 1
            if abs(step) > LONGEST_JUMP or (step > _LONG_HOLD and past_the_end):
                faults.messages.append("video: the time stamps jump; everything after the jump was ignored")
                return
            if step <= 0:
                continue
            steps += 1
            average = (time - first) / steps
        else:
            first = time
        end = time + (seconds(frame.duration or None, frame.time_base) or average)
        previous = Picture(frame, time, end)
        yield previous


def on_grid(frames: Iterator[Picture], origin: Fraction, faults: Faults) -> Iterator[tuple[int, Picture]]:
    """Yields (k, the frame for time origin + k/25): the nearest one, but never one 20 ms or more ahead.

    A frame is held until the next one, however long that takes. The last frame is held for its declared duration,
    unless that exceeds both one second and the average duration: such a value may well be an error in the file.
    """
    period = Fraction(1, FPS)
    k, current, steps, first, longest = 0, None, 0, Fraction(0), Fraction(0)
    for frame in frames:
        if current is None:
            first = frame.time
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
    average = (current.time - first) / steps if steps else period
    claim = current.end - current.time
    end = current.end if claim <= max(_LAST_HOLD, average) else current.time + average
    while k == 0 or origin + (k + Fraction(1, 2)) * period < end:
        yield k, current
        k += 1
    if longest > _LONG_HOLD:
        faults.messages.append(f"video: one frame is shown for {float(longest):.1f} s")
    if end < current.end:
        faults.messages.append(
            f"video: the last frame declares a duration of {float(claim):.1f} s; "
            f"{float(average):.2f} s was used instead"
        )
