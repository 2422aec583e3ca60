"""The start of both converter commands: they parse their own flags and run on the CPU."""

import sys
from collections.abc import Callable

import jax
from absl import flags

from mtd_jax.errors import exit_code, parse_flags


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


def run(main: Callable[[list[str]], int]) -> None:
    """Runs a command on the CPU, which has enough memory and full float32 precision, and exits."""
    jax.config.update("jax_platforms", "cpu")
    sys.exit(main(sys.argv))
