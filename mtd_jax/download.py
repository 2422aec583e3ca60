"""Downloads a file once, into the user's cache; a broken download resumes."""

import contextlib
import hashlib
import http
import http.client
import json
import re
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import rich.console
import rich.progress

from mtd_jax.errors import UserError, one_line
from mtd_jax.storage import cache_folder, lock, write_text, writing_to

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
    name = re.sub(r"[^A-Za-z0-9._-]+", "_", urllib.parse.unquote(url.split("?")[0]).rpartition("/")[2])[-100:]
    target = folder / f"{hashlib.sha256(url.encode()).hexdigest()[:12]}-{name}"
    if target.exists():
        return target
    with writing_to(folder):
        folder.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f"{target.name}.partial")
    with lock(f"{partial}.lock", f"{url} is being downloaded by another process; wait for it"):
        if target.exists():  # the other process was just done
            return target
        try:
            _fetch_patiently(url, partial)
        except UserError:
            if not partial.exists():  # nothing to resume: leave nothing
                Path(f"{partial}.lock").unlink(missing_ok=True)
            raise
        with writing_to(target):
            partial.replace(target)
            _facts(partial).unlink(missing_ok=True)
            Path(f"{partial}.lock").unlink()
    with target.open("rb") as file:
        checksum = hashlib.file_digest(file, "sha256").hexdigest()
    print(f"downloaded {target}: {_shown(target.stat().st_size)}, SHA-256 {checksum}", file=sys.stderr)
    return target


def _fetch_patiently(url: str, partial: Path) -> None:
    """Several attempts, each of which goes on where the last one ended."""
    for attempt in range(_ATTEMPTS):
        try:
            return _fetch(url, partial)
        except UserError:
            raise
        except urllib.error.HTTPError as error:
            raise UserError(f"{url}: the server says {error.code} {error.reason}") from error
        except ValueError as error:
            raise UserError(f"{url}: not an address that can be downloaded from ({one_line(error)})") from error
        except (_BrokenOff, OSError, http.client.HTTPException) as error:
            if attempt == _ATTEMPTS - 1:
                there = partial.stat().st_size if partial.exists() else 0
                if not there:
                    raise UserError(f"{url}: cannot be downloaded ({_why(error)})") from error
                raise UserError(
                    f"{url}: the download broke off after {_shown(there)} ({_why(error)}); "
                    "run the command again to resume it"
                ) from error
        time.sleep(_PAUSE)
    return None


def _fetch(url: str, partial: Path) -> None:
    """One attempt; goes on where `partial` ends if the server still has the same file."""
    request = urllib.request.Request(url, headers={"User-Agent": "mtd-jax", "Accept-Encoding": "identity"})
    there = partial.stat().st_size if partial.exists() else 0
    known = _known(partial) if there else ""  # what says that the file is the same; without it, begin again
    if known:
        request.add_header("Range", f"bytes={there}-")
        request.add_header("If-Range", known)
    try:
        response = urllib.request.urlopen(request, timeout=_TIMEOUT)
    except urllib.error.HTTPError as error:
        if error.code != http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
            raise
        if error.headers.get("Content-Range") == f"bytes */{there}":
            return  # all of it was there
        partial.unlink()
        raise _BrokenOff("the server has another file now") from error
    with response:
        resumed = response.status == http.HTTPStatus.PARTIAL_CONTENT
        same = _validator(response.headers)
        if resumed and not (
            response.headers.get("Content-Range", "").startswith(f"bytes {there}-") and same in ("", known)
        ):
            partial.unlink()
            raise _BrokenOff("the server sent another part than asked for")
        begins = there if resumed else 0
        length = response.headers.get("Content-Length", "")
        total = begins + int(length) if length.isdecimal() else None
        with writing_to(partial):
            file = partial.open("ab" if resumed else "wb")
        if not resumed:
            write_text(_facts(partial), json.dumps({"validator": same}))
        size = "" if total is None else f" ({_shown(total)})"
        print(f"downloading {url}{size}", file=sys.stderr)
        with _bar(partial.stem, begins, total) as advance, writing_to(partial), file:
            for block in _blocks(response):
                file.write(block)
                advance(len(block))
    if total is not None and partial.stat().st_size != total:
        raise _BrokenOff(f"the connection ended before {_shown(total)}")


def _why(error: Exception) -> str:
    """What the system says, without the wrapping that urllib puts around it."""
    inner = error.reason if isinstance(error, urllib.error.URLError) else error
    if isinstance(inner, str):
        return inner
    return (isinstance(inner, OSError) and inner.strerror) or one_line(inner)


def _shown(size: int) -> str:
    return f"{size / 1e6:.1f} MB" if size >= 1e5 else f"{size} bytes"


def _validator(headers: http.client.HTTPMessage) -> str:
    """What says whether a file is still the same, byte for byte; empty if the server does not say."""
    etag = headers.get("ETag", "")
    return etag if etag and not etag.startswith("W/") else headers.get("Last-Modified", "")


def _blocks(response: http.client.HTTPResponse) -> Iterator[bytes]:
    while True:
        try:
            block = response.read1(_BLOCK)  # what is there, so that a slow download shows progress and is kept
        except http.client.IncompleteRead as error:
            yield error.partial
            raise _BrokenOff("the connection ended early") from error
        except OSError as error:
            raise _BrokenOff(one_line(error)) from error
        if not block:
            return
        yield block


def _facts(partial: Path) -> Path:
    """What the server says the file is, beside what has arrived of it."""
    return partial.with_name(f"{partial.name}.json")


def _known(partial: Path) -> str:
    try:
        return json.loads(_facts(partial).read_text())["validator"]
    except (OSError, ValueError, KeyError, TypeError):
        return ""


@contextlib.contextmanager
def _bar(name: str, begins: int, total: int | None) -> Iterator[Callable[[int], None]]:
    """A progress bar on stderr, in bytes."""
    console = rich.console.Console(stderr=True)
    columns = (
        rich.progress.TextColumn("downloading {task.description}", markup=False),
        rich.progress.BarColumn(),
        rich.progress.DownloadColumn(),
        rich.progress.TransferSpeedColumn(),
    )
    with rich.progress.Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(name, total=total, completed=begins)
        yield lambda count: bar.advance(task, count)
