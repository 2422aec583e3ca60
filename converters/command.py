"""How both converter commands run."""

import sys
from collections.abc import Callable

import jax


def run(main: Callable[[list[str]], int]) -> None:
    """Runs a command on the CPU, which has enough memory and full float32 precision, and exits."""
    jax.config.update("jax_platforms", "cpu")
    sys.exit(main(sys.argv))
