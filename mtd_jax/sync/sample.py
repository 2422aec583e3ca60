"""Which parts of a film to look at, so that its cost does not grow with its length.

A long film is measured at stretches of a few seconds. They are visited coarse to fine, evenly at every level (van
der Corput's order), until the offset is sure and all stretches agree. Where neighbours disagree, the gap between
them is halved until the change is located. An edit that begins and ends between two stretches stays unseen: with
`FIRST` stretches that is at most a share of 1 / (FIRST − 1) of the film.
"""

from collections.abc import Iterator

from mtd_jax.data.clip import FPS

STRETCH = 4 * FPS  # frames
WHOLE = 45 * FPS  # shorter films are looked at whole
FIRST = 9  # stretches that are always looked at
MOST = 17  # if the offset is not sure by then, more will not help
LOCATED = 2 * FPS  # gaps between stretches that disagree are halved until they are no longer than this


def van_der_corput() -> Iterator[float]:
    """0, 1, 1/2, 1/4, 3/4, 1/8, 5/8, 3/8, 7/8, …: the ends, then always into the middle of gaps."""
    yield 0.0
    yield 1.0
    step = 0.5
    while True:
        count = round(0.5 / step)
        order = sorted(range(count), key=lambda i: int(f"{i:0{max(count.bit_length() - 1, 1)}b}"[::-1], 2))
        for i in order:
            yield (2 * i + 1) * step
        step /= 2


def stretches(num_frames: int) -> Iterator[tuple[int, int]]:
    """Stretches [start, end) of a film, coarse to fine. Starts are multiples of 5 frames."""
    if num_frames <= WHOLE:
        yield 0, num_frames
        return
    last = (num_frames - STRETCH) // 5 * 5
    seen: set[int] = set()
    for count, place in enumerate(van_der_corput()):
        start = round(place * last / 5) * 5
        if count >= MOST:
            return
        if start not in seen:
            seen.add(start)
            yield start, start + STRETCH


def between(left: int, right: int) -> tuple[int, int] | None:
    """A stretch in the middle of a gap between frames `left` and `right`; None if it is located well enough."""
    if right - left <= LOCATED:
        return None
    length = min(STRETCH, max((right - left) // 2, LOCATED))
    start = ((left + right - length) // 2) // 5 * 5
    return start, start + length
