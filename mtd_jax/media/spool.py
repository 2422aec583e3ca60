"""Face crops of a long video: kept in memory while they are few, in a temporary file beyond that."""

import tempfile
import threading

import numpy as np

from mtd_jax.data.clip import FACE_SIZE
from mtd_jax.errors import UserError

_SHAPE = (FACE_SIZE // 2, FACE_SIZE, 3)
_SIZE = FACE_SIZE // 2 * FACE_SIZE * 3
_IN_MEMORY = 256 << 20  # bytes; five minutes of one face. An hour takes 1.2 GB on disk


class FaceSpool:
    """Holds lower face halves, uint8 (48, 96, 3), in the order they come; the file goes with the last view."""

    def __init__(self, in_memory: int = _IN_MEMORY):
        self._file = tempfile.SpooledTemporaryFile(in_memory)  # noqa: SIM115 (closed when collected)
        self._count = 0
        self._lock = threading.Lock()

    def append(self, half: np.ndarray) -> int:
        """Adds one picture; returns its place, for `FaceView`."""
        try:
            self._file.seek(self._count * _SIZE)
            self._file.write(np.ascontiguousarray(half).tobytes())
        except OSError as error:
            folder = tempfile.gettempdir()
            raise UserError(f"no room for face crops in {folder} ({error.strerror}): set TMPDIR") from error
        self._count += 1
        return self._count - 1

    def read(self, places: np.ndarray) -> np.ndarray:
        """uint8 (n, 48, 96, 3) of the given places."""
        halves = np.empty((len(places), *_SHAPE), np.uint8)
        with self._lock:
            for half, place in zip(halves, places, strict=True):
                self._file.seek(int(place) * _SIZE)
                half[:] = np.frombuffer(self._file.read(_SIZE), np.uint8).reshape(_SHAPE)
        return halves


class FaceView:
    """The pictures of one track: `view[a:b]` reads only its own, uint8 (n, 48, 96, 3)."""

    def __init__(self, spool: FaceSpool, places: np.ndarray):
        self._spool, self._places = spool, places

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, window: slice) -> np.ndarray:
        return self._spool.read(self._places[window])
