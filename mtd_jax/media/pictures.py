"""The pictures of a video stream with their times, and which of them each frame of the 25 fps grid shows."""

from collections.abc import Iterator
from fractions import Fraction

import numpy as np

from mtd_jax.data.clip import FPS
from mtd_jax.media.container import Faults, declared_times, decoded, seconds
from mtd_jax.media.sound import LONGEST_JUMP

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
