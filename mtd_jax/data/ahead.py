"""Clips read and decoded by threads while those before them are scored."""

import time
from collections import deque
from concurrent.futures import ThreadPoolExecutor

from mtd_jax.data.clip import Clip
from mtd_jax.data.unusable import UnusableClip

_THREADS = 4  # JPEG decoding and file reads leave Python's lock, so threads are enough
_AHEAD = 8  # clips begun but not yet asked for; a clip of 10 s takes 4 MB


class ReadAhead:
    """The clips of a source in its order, whole and in memory: NumPy arrays in the place of lazy tracks.

    Iterating gives for each clip the `Clip`, or the `UnusableClip` that reading it raised; every other error is
    raised where its clip would come.

    Attributes:
      seconds_waiting: how long the one who iterates has waited for clips, so far.
    """

    def __init__(self, source):
        self.source = source
        self.seconds_waiting = 0.0

    def __iter__(self):
        pending = deque()
        with ThreadPoolExecutor(_THREADS) as threads:
            try:
                for index in range(len(self.source)):
                    pending.append(threads.submit(_read, self.source, index))
                    if len(pending) > _AHEAD:
                        yield self._first_of(pending)
                while pending:
                    yield self._first_of(pending)
            finally:  # the one who iterates may stop early: what has not begun is not read
                for future in pending:
                    future.cancel()

    def _first_of(self, pending):
        started = time.perf_counter()
        clip = pending.popleft().result()
        self.seconds_waiting += time.perf_counter() - started
        return clip


def _read(source, index: int) -> Clip | UnusableClip:
    clip = source[index]
    try:
        # The whole waveform: its last mel columns reach beyond the last frame.
        return Clip(clip.name, clip.frames[: clip.num_frames], clip.waveform[: len(clip.waveform)])
    except UnusableClip as error:
        return error
