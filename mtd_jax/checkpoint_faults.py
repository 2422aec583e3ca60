"""What can go wrong with checkpoints, in one line: disks that are full, files that are damaged.

Orbax raises exceptions of any kind, logs for developers, and leaves threads and coroutines behind.
"""

import contextlib
import errno
import functools
import json
import logging
import os
import re
import sys
import warnings

import orbax.checkpoint as ocp

from mtd_jax.errors import UserError, one_line


@contextlib.contextmanager
def writing(manager: ocp.CheckpointManager):
    """Turns a failed write of a checkpoint, now or in the background, into one line; earlier ones are intact."""
    silence_unfinished_work()
    try:
        yield
    except (OSError, ValueError) as error:
        raise UserError(cannot_write(error, manager.directory)) from error


@contextlib.contextmanager
def restoring(manager, where: str):
    """Turns what orbax raises for a damaged checkpoint, which can be any exception, into one line."""
    silence_unfinished_work()
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        earlier = sorted(manager.all_steps())[:-1]
        rest = f"go on from step {earlier[-1]}" if earlier else "start afresh"
        raise UserError(
            f"{where}: damaged, it cannot be read ({one_line(error)}); remove this folder to {rest}"
        ) from error


@contextlib.contextmanager
def readable(path, item: str):
    """Turns what orbax raises for a missing or damaged item, which can be any exception, into a `UserError`."""
    silence_unfinished_work()
    try:
        yield
    except Exception as error:
        mend = "copy or convert the checkpoint again"
        if path.name.isdigit():  # one of a training run
            others = [int(other.name) for other in path.parent.iterdir() if other.name.isdigit() and other != path]
            mend = f"use {path.parent / str(max(others))}" if others else mend
        raise UserError(f"{path}: cannot read its item {item!r} ({one_line(error)}); {mend}") from error


def damaged_metrics(directory) -> str | None:
    """One line for the validation metrics of a step that are no JSON, which orbax reads first."""
    for file in sorted(directory.glob("*/metrics/metrics")):
        try:
            json.loads(file.read_text())
        except ValueError:
            step = file.parent.parent
            return f"{step}: damaged, its metrics cannot be read; remove this folder to go on from the one before"
    return None


def cannot_write(error: Exception, directory) -> str:
    """One line for a checkpoint that could not be written."""
    within = re.search(r"os_error_code='(\d+)'", str(error))  # tensorstore's way
    code = int(within[1]) if within else getattr(error, "errno", None)
    reason = os.strerror(code) if code else one_line(error)
    mend = "make room" if code in (errno.ENOSPC, errno.EDQUOT) else "mend that"
    return (
        f"cannot write a checkpoint to {directory} ({reason}); {mend}, then run the same command again: "
        "what was saved before is intact"
    )


def _for_users(record: logging.LogRecord) -> bool:
    """Keeps what orbax logs for developers from users; what it fails to write reaches them as an exception."""
    if "orbax" not in record.pathname:
        return True
    error = record.exc_info[1] if record.exc_info else None
    if not isinstance(error, (OSError, ValueError)):
        return record.levelno >= logging.ERROR
    return False


logging.getLogger("absl").addFilter(_for_users)
# Of many writes that fail together asyncio logs all but the first, which is the one that orbax raises.
logging.getLogger("asyncio").addFilter(lambda record: "never retrieved" not in record.getMessage())


@functools.cache
def silence_unfinished_work():
    """From before the first reading or writing of a process.

    When one fails, orbax drops what else it had begun, and Python and tensorstore would report each piece, before
    the line that says why and after it.
    """
    report_unraisable, report = sys.unraisablehook, sys.excepthook

    def of_others(error) -> bool:
        return not (isinstance(error, RuntimeError) and str(error) == "Event loop is closed")

    sys.unraisablehook = lambda found: report_unraisable(found) if of_others(found.exc_value) else None
    sys.excepthook = lambda kind, error, trace: report(kind, error, trace) if of_others(error) else None
    warnings.filterwarnings("ignore", "coroutine .* was never awaited", RuntimeWarning)
