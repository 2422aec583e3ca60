"""The folder of a run: one run at a time writes it, and all its processes see the same one."""

import contextlib
import os
import time
from collections.abc import Iterator
from typing import IO

import jax
from etils import epath

from mtd_jax.distributed.launch import exchange
from mtd_jax.errors import UserError, one_line
from mtd_jax.storage import is_remote, lock

_LOCK = ".lock"
_PATIENCE_SECONDS = 20.0  # network file systems show new files late


@contextlib.contextmanager
def taken(workdir: epath.Path) -> Iterator[None]:
    """Creates the work directory and holds it for this run: two runs in one folder would destroy each other.

    Process 0 holds the lock, and its end releases it, however it ends. Object stores have no locks.

    Raises:
      UserError: the folder cannot be written, another run holds it, it is a checkpoint, or another process sees
        another folder.
    """
    if (workdir / "config").exists():  # loading it later would find that checkpoint, not those of the run
        raise UserError(f"--workdir {workdir} is a checkpoint already; name another directory for the run")
    mark = os.urandom(8).hex()
    held = _hold(workdir, mark) if jax.process_index() == 0 else None
    mark = exchange(mark)[0]
    if jax.process_index() and not is_remote(workdir) and not _appears(workdir / _LOCK, mark):
        raise UserError(
            f"--workdir {workdir} is not the one of process 0; name a directory that all processes share"
        )
    try:
        yield
    finally:
        if held:
            held.close()


def _hold(workdir: epath.Path, mark: str) -> IO[str] | None:
    """Locks the folder and leaves `mark` in the lock file, for the other processes to find."""
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        if is_remote(workdir):
            return None
        file = lock(
            workdir / _LOCK, f"another run is writing to {workdir}; wait for it, or name another --workdir"
        )
        file.truncate(0)
        file.write(mark)
        file.flush()
        return file
    except FileExistsError as error:  # mkdir says so of a file, and of a link to nowhere
        raise UserError(f"cannot write to --workdir {workdir}: a file with that name exists") from error
    except (OSError, ImportError) as error:
        raise UserError(f"cannot write to --workdir {workdir}: {one_line(error)}") from error


def _appears(path: epath.Path, text: str) -> bool:
    """Whether `path` holds `text` within some seconds."""
    end = time.monotonic() + _PATIENCE_SECONDS
    while time.monotonic() < end:
        if path.exists() and path.read_text() == text:
            return True
        time.sleep(0.2)
    return False
