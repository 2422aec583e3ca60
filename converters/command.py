"""How both converters start: flags of their own, on the CPU."""

import sys
from collections.abc import Callable

import jax
from absl import flags

from mtd_jax.errors import exit_code, parse_flags


def main_function(
    work: Callable[[], None], flag_values: flags.FlagValues, about: str
) -> Callable[[list[str]], int]:
    """A `main(argv)` that parses `flag_values`, calls `work()` and returns the exit code."""

    def command(argv: list[str]) -> None:
        flag_values.unparse_flags()
        parse_flags(flag_values, argv)
        work()

    def main(argv: list[str]) -> int:
        if "--help" in argv:
            print(f"{about}\n{flag_values.get_help()}")
            return 0
        return exit_code(lambda: command(argv))

    return main


def run(main: Callable[[list[str]], int]) -> None:
    """Runs a command and exits. On the CPU: it has the memory and the full float32 precision that this needs."""
    jax.config.update("jax_platforms", "cpu")
    sys.exit(main(sys.argv))
