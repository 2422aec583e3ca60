"""Downloads a file once, into the user's cache; a broken download resumes."""

import contextlib
import hashlib
import http
import http.client
import json
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import rich.console
import rich.progress

from mtd_jax.errors import UserError, one_line
from mtd_jax.storage import cache_folder, lock, writing_to

_ATTEMPTS = 3
_PAUSE = 1.0  # seconds before another attempt
_TIMEOUT = 30.0  # seconds without a byte
_BLOCK = 1 << 18


class _BrokenOff(Exception):
    """The connection ended early; what has arrived is kept."""


def is_url(name: object) -> bool:
    return str(name).startswith(("http://", "https://"))


def download(url: str, folder: Path | None = None) -> Path:
    """The local copy of a file; says where it is and its SHA-256 on stderr when it has just arrived.

    Args:
      url: http:// or https://.
      folder: for downloads; None: downloads/ in the user's cache folder.

    Raises:
      UserError: the server refuses, cannot be reached or ends the connection three times, or the disk is full.
        What has arrived by then is kept, and the next call goes on from there.
    """
    folder = folder or cache_folder() / "downloads"
    name = Path(urllib.parse.unquote(url.split("?")[0])).name
    target = folder / f"{hashlib.sha256(url.encode()).hexdigest()[:12]}-{name[-100:]}"
    if target.exists():
        return target
    with writing_to(folder):
        folder.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f"{target.name}.partial")
    with lock(f"{partial}.lock", f"{url} is being downloaded by another process; wait for it"):
        for attempt in range(_ATTEMPTS):
            try:
                _fetch(url, partial)
                break
            except urllib.error.HTTPError as error:
                raise UserError(f"{url}: the server says {error.code} {error.reason}") from error
            except (_BrokenOff, OSError, http.client.HTTPException, ValueError) as error:
                there = partial.stat().st_size if partial.exists() else 0
                if isinstance(error, ValueError) or (attempt == _ATTEMPTS - 1 and not there):
                    raise UserError(f"{url}: cannot be downloaded ({one_line(error)})") from error
                if attempt == _ATTEMPTS - 1:
                    raise UserError(
                        f"{url}: the download broke off after {there / 1e6:.1f} MB ({one_line(error)}); "
                        "run the command again to resume it"
                    ) from error
                time.sleep(_PAUSE)
        with writing_to(target):
            partial.replace(target)
            _facts(partial).unlink(missing_ok=True)
    Path(f"{partial}.lock").unlink(missing_ok=True)
    with target.open("rb") as file:
        checksum = hashlib.file_digest(file, "sha256").hexdigest()
    print(f"downloaded {target}: {target.stat().st_size / 1e6:.1f} MB, SHA-256 {checksum}", file=sys.stderr)
    return target


def _fetch(url: str, partial: Path) -> None:
    """One attempt; goes on where `partial` ends if the server still has the same file."""
    request = urllib.request.Request(url, headers={"User-Agent": "mtd-jax", "Accept-Encoding": "identity"})
    there = partial.stat().st_size if partial.exists() else 0
    known = json.loads(_facts(partial).read_text()) if there and _facts(partial).exists() else {}
    if there and known.get("is"):  # what says that the file is the same; without it, begin again
        request.add_header("Range", f"bytes={there}-")
        request.add_header("If-Range", known["is"])
    try:
        response = urllib.request.urlopen(request, timeout=_TIMEOUT)
    except urllib.error.HTTPError as error:
        if error.code != http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
            raise
        partial.unlink()
        raise _BrokenOff("the server has another file now") from error
    with response:
        resumed = response.status == http.HTTPStatus.PARTIAL_CONTENT
        begins = there if resumed else 0
        length = response.headers.get("Content-Length")
        total = None if length is None else begins + int(length)
        etag = response.headers.get("ETag")
        same = etag if etag and not etag.startswith("W/") else response.headers.get("Last-Modified")
        with writing_to(partial):
            if not resumed:
                _facts(partial).write_text(json.dumps({"is": same}))
            file = partial.open("ab" if resumed else "wb")
        with file, _bar(partial.name.removesuffix(".partial"), begins, total) as (bar, task):
            while block := _read(response):
                with writing_to(partial):
                    file.write(block)
                bar.advance(task, len(block))
        if total is not None and partial.stat().st_size != total:
            raise _BrokenOff(f"of {total / 1e6:.1f} MB")


def _read(response: IO[bytes]) -> bytes:
    try:
        return response.read(_BLOCK)
    except http.client.IncompleteRead as error:
        return error.partial


def _facts(partial: Path) -> Path:
    """What the server says the file is, beside what has arrived of it."""
    return partial.with_name(f"{partial.name}.json")


@contextlib.contextmanager
def _bar(
    name: str, begins: int, total: int | None
) -> Iterator[tuple[rich.progress.Progress, rich.progress.TaskID]]:
    """A progress bar on stderr, in bytes."""
    columns = rich.progress.BarColumn(), rich.progress.DownloadColumn(), rich.progress.TransferSpeedColumn()
    console = rich.console.Console(stderr=True)
    with rich.progress.Progress(
        f"downloading {name}", *columns, console=console, transient=True, disable=not console.is_terminal
    ) as bar:
        yield bar, bar.add_task(name, total=total, completed=begins)
