"""What every benchmark says beside its figures, and how it prints them."""

import importlib.metadata
import json
import os
import platform
import sys
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table


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
        "cores": os.cpu_count(),
        "system": platform.platform(),
        "load_average": [round(load, 2) for load in os.getloadavg()],
    } | devices


def versions(*packages: str) -> dict[str, str]:
    """Of Python and of these installed packages."""
    return {"python": platform.python_version()} | {name: importlib.metadata.version(name) for name in packages}


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
    print(json.dumps(results))
