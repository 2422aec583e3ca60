"""The exceptions that `main.py` prints as a single line: mistakes a user can mend, and a wish to stop."""


class UserError(Exception):
    """A mistake in flags, configuration or files: what was expected, what came, and what to do."""


class Interrupted(Exception):
    """A signal stopped the run in good order: the line to print, and the exit code of the process."""

    def __init__(self, line: str, exit_code: int):
        super().__init__(line)
        self.exit_code = exit_code


def in_one_line(error: UserError | OSError) -> str:
    """What to print for an exception that needs no traceback."""
    if isinstance(error, OSError):
        return f"error: {error.filename or ''}: {error.strerror or error}"
    return f"error: {error}"


def first_line(error: Exception) -> str:
    """What to quote of a library's exception."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
