"""The command line, run as a user runs it."""

import pathlib
import subprocess
import sys

from tests.helpers.compiling import quick_environment

ROOT = pathlib.Path(__file__).parents[2]


TINY = "--config.model.widths=(4,4,8,8,8)", "--config.model.num_heads=2", "--config.model.num_layers=1"


def run_main(*arguments, cwd=ROOT):
    return subprocess.run(
        [sys.executable, str(ROOT / "main.py"), *arguments],
        cwd=cwd,
        env=quick_environment() | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
