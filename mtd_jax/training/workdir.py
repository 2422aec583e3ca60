"""The directory of a run: taken by one run at a time, seen by all its processes."""

import contextlib
import fcntl
import os
import time

import jax

from mtd_jax.distributed.launch import exchange
from mtd_jax.errors import UserError
from mtd_jax.storage import is_remote

_LOCK = ".lock"
_PATIENCE_SECONDS = 20.0  # network file systems show new files late


@contextlib.contextmanager
def taken(workdir):
    """Makes the work directory and holds it for this run: two runs in one would destroy each other.

    The lock goes with process 0, however that ends. Object stores have none.

    Raises:
      UserError: if it cannot be written, another run has it, or another process sees another directory.
    """
    mark = os.urandom(8).hex()
    lock = _lock(workdir, mark) if jax.process_index() == 0 else None
    mark = exchange(mark)[0]
    if jax.process_index() and not is_remote(workdir) and not _appears(workdir / _LOCK, mark):
        raise UserError(
            f"--workdir {workdir} is not the one of process 0; name a directory that all processes share"
        )
    try:
        yield
    finally:
        if lock:
            lock.close()


def _lock(workdir, mark: str):
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        if is_remote(workdir):
            return None
        lock = open(workdir / _LOCK, "a")  # noqa: SIM115 (closing it would give up the lock)
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        lock.truncate(0)
        lock.write(mark)
        lock.flush()
    except BlockingIOError as error:
        raise UserError(f"another run is writing to {workdir}; wait for it, or name another --workdir") from error
    except (OSError, ImportError) as error:
        reason = getattr(error, "strerror", None) or error
        if isinstance(error, FileExistsError):  # what mkdir says of a link that leads nowhere, too
            reason = "there is something else than a folder of that name"
        raise UserError(f"cannot write to --workdir {workdir}: {reason}") from error
    return lock


def _appears(path, text: str) -> bool:
    end = time.monotonic() + _PATIENCE_SECONDS
    while time.monotonic() < end:
        if path.exists() and path.read_text() == text:
            return True
        time.sleep(0.2)
    return False
