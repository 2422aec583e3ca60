"""MTD-JAX on the command line: `python main.py --help` lists modes and flags, README.md has the recipes."""

import sys

from mtd_jax.cli import run

if __name__ == "__main__":
    sys.exit(run())
