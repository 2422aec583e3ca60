"""User errors and interruptions, and the one place that turns an exception into a line and an exit code."""

import os
import signal
import sys
from collections.abc import Callable

from absl import flags

PREEMPTED = 75  # exit code EX_TEMPFAIL of sysexits.h: rerun the same command


class UserError(ValueError):
    """A mistake in flags, configuration, files or arguments: what was expected, what was given, what to do."""


class Interrupted(Exception):
    """The run was asked to stop and did so cleanly: the line to print, and the process's exit code."""

    def __init__(self, line: str, exit_code: int):
        super().__init__(line)
        self.exit_code = exit_code


# Modules that a plain installation lacks, and the extra that has them.
_EXTRAS = {
    "optax": "train",
    "grain": "train",
    "tensorflow_datasets": "train",
    "array_record": "train",
    "tensorboardX": "train",
    "torch": "convert",
    "gradio": "app",
    "onnx": "export",
    "onnxruntime": "export",
}


def one_line(error: BaseException, limit: int = 200) -> str:
    """A library's exception as text for a message: no line breaks, at most `limit` characters, never empty.

    For an `OSError` the system's own words, which name neither the errno nor (again) the file.
    """
    text = getattr(error, "strerror", None) or str(error)
    return " ".join(str(text).split())[:limit] or type(error).__name__


def error_line(error: BaseException) -> str:
    """What a command prints for an exception that needs no traceback."""
    if isinstance(error, OSError):
        file = f"{error.filename}: " if error.filename else ""
        return f"error: {file}{one_line(error)}"
    if isinstance(error, ModuleNotFoundError) and (module := (error.name or "").split(".")[0]) in _EXTRAS:
        extra = _EXTRAS[module]
        how = f"in a checkout, pip install '.[{extra}]'; --mode=infer --video=FILE works without it"
        return f"error: this needs {module}, which is not installed: {how}"
    return f"error: {' '.join(str(error).split())}"


def exit_code(work: Callable[[], int | None]) -> int:
    """Runs a command's work and returns its exit code.

    A user's mistake, a failing disk, Ctrl-C or a clean interruption is one line on stderr. Any other exception is
    a bug of ours and keeps its traceback.
    """
    try:
        return work() or 0
    except Interrupted as stop:
        print(stop, file=sys.stderr)
        return stop.exit_code
    except BrokenPipeError:  # the reader of our output closed it, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (UserError, flags.Error, OSError, ModuleNotFoundError) as error:
        print(error_line(error), file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("error: interrupted", file=sys.stderr)
        return 130


def main_function(
    work: Callable[[], None], flag_values: flags.FlagValues, about: str | None
) -> Callable[[list[str]], int]:
    """A `main(argv)` that parses `flag_values`, calls `work()` and returns the exit code.

    Args:
      about: printed by --help, before the flags.
    """

    def command(argv: list[str]) -> None:
        flag_values.unparse_flags()
        parse_flags(flag_values, argv)
        work()

    def main(argv: list[str]) -> int:
        if "--help" in argv:
            print(f"{about or ''}\n{flag_values.get_help()}")
            return 0
        return exit_code(lambda: command(argv))

    return main


def exit_at_once_on_sigterm() -> None:
    """Lets SIGTERM end a command that has nothing to save with exit code 75.

    A training saves its current step instead, see `distributed.preemption`. In several processes
    `distributed.launch.start` installs JAX's handler; call this again after it where there is nothing to save.
    """

    def end(*_: object) -> None:
        os.write(2, b"SIGTERM: stopped; rerun the same command\n")
        os._exit(PREEMPTED)

    signal.signal(signal.SIGTERM, end)


def parse_flags(flag_values: flags.FlagValues, argv: list[str]) -> None:
    """Parses a command line of flags only.

    Raises:
      UserError: an unknown flag, a bad value, or an argument that is not a flag.
    """
    try:
        rest = flag_values(argv)[1:]
    except flags.Error as error:
        origin: BaseException = error
        while origin.__context__ is not None:
            origin = origin.__context__
        if isinstance(origin, UserError):  # raised by a config file, and wrapped on its way here
            raise origin from None
        raise UserError(f"{one_line(error)} (--help lists the flags)") from error
    if rest:
        raise UserError(f"expected only flags such as --name=value, got {' '.join(rest)} (--help lists the flags)")
