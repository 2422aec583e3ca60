"""What the converter commands share: flags of their own, and every error of the user as one line on stderr."""

import sys
from collections.abc import Callable

import jax
from absl import flags

from mtd_jax.errors import UserError


def main_function(
    work: Callable[[], None], flag_values: flags.FlagValues, about: str
) -> Callable[[list[str]], int]:
    """A `main(argv)` that parses `flag_values`, calls `work()` and returns the exit status, 0 or 1."""

    def main(argv: list[str]) -> int:
        if "--help" in argv:
            print(f"{about}\n{flag_values.get_help()}")
            return 0
        try:
            _parse(flag_values, argv)
            work()
        except UserError as error:
            print("error: " + " ".join(str(error).split()), file=sys.stderr)
            return 1
        return 0

    return main


def run(main: Callable[[list[str]], int]):
    """Runs a command and exits. On the CPU: it has the memory and the full float32 precision that this needs."""
    jax.config.update("jax_platforms", "cpu")
    sys.exit(main(sys.argv))


def _parse(flag_values: flags.FlagValues, argv: list[str]):
    flag_values.unparse_flags()
    try:
        rest = flag_values(argv)
    except flags.Error as error:
        raise UserError(f"{error} (--help lists the flags)") from error
    if len(rest) > 1:
        raise UserError(f"expected flags only, got {' '.join(rest[1:])}; write --flag=value (--help lists them)")
