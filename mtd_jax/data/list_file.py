"""List files: text with an entry per line."""

import os
from pathlib import Path

from mtd_jax.errors import UserError, one_line


def read_list(path: str | os.PathLike, expected: str = "a text file that lists clips") -> list[tuple[int, str]]:
    """The lines that are not blank, as (line number from 1, text).

    Args:
      path: of the file, UTF-8 with or without a byte order mark.
      expected: what it should be, for the error.

    Raises:
      UserError: the file cannot be read, or is no text.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read ({one_line(error)}); expected {expected}") from error
    return [(number, line) for number, line in enumerate(lines, start=1) if line.strip()]
