"""Files that appear whole or not at all, folders that one process writes at a time."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from etils import epath

from mtd_jax.errors import UserError, one_line

_OBJECT_STORES = ("gs", "s3", "az")  # those that the path library knows


def cache_folder() -> Path:
    """The user's cache folder for this program; it may not exist yet."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mtd_jax"


def path_of(path: str | os.PathLike) -> epath.Path:
    """A path on this machine or on an object store. Raises `UserError` for any other kind of address."""
    scheme, separator, _ = str(path).partition("://")
    if separator and scheme not in _OBJECT_STORES:
        stores = ", ".join(f"{store}://…" for store in _OBJECT_STORES)
        raise UserError(f"{path}: expected a path, or an address of the kind {stores}, got {scheme}://…")
    return epath.Path(path)


def is_remote(path: str | os.PathLike) -> bool:
    """Whether a path is on an object store (gs://, s3://, …), where files cannot be appended to or locked."""
    return "://" in str(path)


@contextlib.contextmanager
def writing_to(path: str | os.PathLike, advice: str = "") -> Iterator[None]:
    """Turns the system's refusal to write `path` into a `UserError`."""
    try:
        yield
    except OSError as error:
        raise UserError(f"cannot write {path}: {one_line(error)}{advice}") from error


@contextlib.contextmanager
def atomic(path: str | os.PathLike) -> Iterator[epath.Path]:
    """Yields a scratch path in the folder of `path`; the block writes a file or a folder there.

    When the block succeeds, the scratch is renamed to `path` (a file replaces an older file); when it raises, the
    scratch is deleted and `path` is as it was. The scratch keeps the suffix, by which writers choose a format.

    Raises:
      UserError: the system refuses to write there.
    """
    path = path_of(path)
    scratch = path.parent / f".partial-{os.getpid()}-{path.name}"
    try:
        with writing_to(path):
            yield scratch
            scratch.replace(path)
    finally:
        with contextlib.suppress(OSError):
            scratch.rmtree() if scratch.is_dir() else scratch.unlink(missing_ok=True)


def write_text(path: str | os.PathLike, content: str) -> None:
    """Writes a text file, on a disk or an object store, whole or not at all; raises `UserError`."""
    with atomic(path) as scratch:
        scratch.write_bytes(content.encode())


def check_writable(path: str | os.PathLike) -> None:
    """Raises `UserError` if a file could not be written there: before the work whose result it is, not after."""
    path = path_of(path)
    if path.is_dir():
        raise UserError(f"{path} is a folder; name a file to write")
    probe = path.parent / f".partial-{os.getpid()}-{path.name}"
    with writing_to(path, "; name another file"):
        probe.write_text("")
        probe.unlink()


def lock(path: str | os.PathLike, taken: str) -> IO[str]:
    """Creates `path` as a lock file and returns it, open for writing; closing it, or the process's end, unlocks.

    Args:
      taken: the message of the `UserError` raised if another process holds the lock.
    """
    import fcntl  # Unix only, and only needed here

    file = open(Path(path), "a")  # noqa: SIM115 (closing it would release the lock)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        file.close()
        raise UserError(taken) from error
    return file
