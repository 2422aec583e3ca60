"""What every benchmark says beside its figures, and how it prints them."""

import importlib.metadata
import json
import math
import os
import platform
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from absl import flags, logging
from rich.console import Console
from rich.table import Table

from mtd_jax.errors import exit_code, parse_flags
from mtd_jax.workers import usable_cores


def run_benchmark(main: Callable[[], int | None]) -> None:
    """Runs a benchmark's `main()` on the flags it defined, and exits; a user's mistake becomes one line."""

    def work() -> int | None:
        parse_flags(flags.FLAGS, sys.argv)
        logging.set_verbosity(logging.WARNING)
        return main()

    if "--help" in sys.argv:
        print(sys.modules["__main__"].__doc__, flags.FLAGS.module_help(sys.argv[0]), sep="\n")
        sys.exit(0)
    sys.exit(exit_code(work))


def warn_if_busy() -> None:
    """Says so where other work takes the cores from what is measured: libraries suffer from it differently."""
    load, cores = os.getloadavg()[0], usable_cores()
    if load > cores / 2:
        print(f"other work keeps the cores busy (load {load:.1f} on {cores}): do not compare the ways", flush=True)


def machine() -> dict:
    """Processor, cores, and what else kept them busy when this was called; JAX's devices where it is in use."""
    model = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if "model name" in line]
        model = names[0] if names else model
    devices = {}
    if "jax" in sys.modules:
        found = sys.modules["jax"].devices()
        devices = {"backend": found[0].platform, "device": found[0].device_kind, "devices": len(found)}
    return {
        "cpu": model,
        "cores": usable_cores(),
        "system": platform.platform(),
        "load_average": [round(load, 2) for load in os.getloadavg()],
    } | devices


def versions(*packages: str) -> dict[str, str]:
    """Of Python and of these installed packages."""
    return {"python": platform.python_version()} | {name: importlib.metadata.version(name) for name in packages}


def in_turns(ways: Mapping[str, Callable[[], object]], repeats: int) -> dict[str, list[float]]:
    """Seconds of each call: every way once a round, so that all suffer alike from what else the machine does.

    Args: ways: compiled already, or called once before.
    """
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(repeats):
        for name, run in ways.items():
            started = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - started)
    return seconds


def summarize(samples) -> dict[str, float]:
    """Median and spread of repeated measurements: {"median", "low" (quartile), "high" (quartile), "repeats"}."""
    low, median, high = np.percentile(samples, (25, 50, 75))
    return {"median": float(median), "low": float(low), "high": float(high), "repeats": len(samples)}


def print_results(title: str, columns: list[str], rows: list[list[str]], results: dict) -> None:
    """Prints a table, then all of `results` as one line of JSON."""
    table = Table("", *columns, title=title)
    for row in rows:
        table.add_row(*row)
    Console(width=120).print(table)
    print(to_json(results))


def to_json(results: dict, indent: int | None = None) -> str:
    """JSON proper: a number that is not finite becomes null."""

    def proper(value):
        if isinstance(value, dict):
            return {name: proper(entry) for name, entry in value.items()}
        if isinstance(value, list | tuple):
            return [proper(entry) for entry in value]
        return None if isinstance(value, float) and not math.isfinite(value) else value

    return json.dumps(proper(results), indent=indent)
