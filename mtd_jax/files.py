"""Writing a file whole or not at all, and finding out beforehand whether that will be possible."""

import contextlib
import os

from etils import epath

from mtd_jax.errors import UserError


@contextlib.contextmanager
def writing_to(path, advice: str = ""):
    """Turns what the system says when `path` cannot be written into a `UserError` of one line."""
    try:
        yield
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}{advice}") from error


def write_whole(path: str | os.PathLike, content: str) -> None:
    """Writes a text file anywhere; whatever goes wrong, the old one stays and nothing else is left behind.

    Raises:
      UserError: the file cannot be written.
    """
    path = epath.Path(path)
    partial = path.parent / f".{path.name}.partial"
    try:
        with writing_to(path):
            partial.write_bytes(content.encode())
            partial.replace(path)
    finally:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)


def check_writable(path: str | os.PathLike) -> None:
    """Raises `UserError` if `write_whole` could not write there: before the work whose result it is, not after."""
    path = epath.Path(path)
    if path.is_dir():
        raise UserError(f"{path} is a folder; name a file to write")
    probe = path.parent / f".{path.name}.partial"
    with writing_to(path, "; name another file"):
        probe.write_text("")
        probe.unlink()
