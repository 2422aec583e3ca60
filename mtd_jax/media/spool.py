"""Stores the face crops of a video: in memory while they are few, in a temporary file beyond that."""

import tempfile
import threading

import numpy as np

from mtd_jax.data.clip import FACE_SIZE
from mtd_jax.errors import UserError

_SHAPE = (FACE_SIZE // 2, FACE_SIZE, 3)
_SIZE = FACE_SIZE // 2 * FACE_SIZE * 3
_IN_MEMORY = 256 << 20  # bytes, about 13 minutes of one face; an hour takes 1.2 GB


class FaceSpool:
    """An append-only store of lower face halves, uint8 (48, 96, 3). The file vanishes with the last view of it."""

    def __init__(self, in_memory: int = _IN_MEMORY) -> None:
        self._file = tempfile.SpooledTemporaryFile(in_memory)  # noqa: SIM115 (closed when garbage-collected)
        self._count = 0
        self._lock = threading.Lock()

    def append(self, half: np.ndarray) -> int:
        """Stores one face half and returns its index, for `FaceView`.

        Raises:
          UserError: the temporary folder has no room.
        """
        try:
            self._file.seek(self._count * _SIZE)
            self._file.write(np.ascontiguousarray(half).tobytes())
        except OSError as error:
            folder = tempfile.gettempdir()
            raise UserError(
                f"no room for face crops in {folder} ({error.strerror}); set TMPDIR to another folder"
            ) from error
        self._count += 1
        return self._count - 1

    def read(self, places: np.ndarray) -> np.ndarray:
        """The face halves at n indices, uint8 (n, 48, 96, 3)."""
        halves = np.empty((len(places), *_SHAPE), np.uint8)
        with self._lock:
            for half, place in zip(halves, places, strict=True):
                self._file.seek(int(place) * _SIZE)
                half[:] = np.frombuffer(self._file.read(_SIZE), np.uint8).reshape(_SHAPE)
        return halves


class FaceView:
    """The face halves of one track: `view[a:b]` reads only those, uint8 (b − a, 48, 96, 3)."""

    def __init__(self, spool: FaceSpool, places: np.ndarray) -> None:
        self._spool, self._places = spool, places

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, window: slice) -> np.ndarray:
        return self._spool.read(self._places[window])
