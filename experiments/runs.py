"""What has been run: the JSON files of experiments/results, and which of them count."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from experiments.tables import best_rate

RESULTS = Path(__file__).parent / "results"
Run = dict[str, Any]  # as `experiments.run` writes it
Runs = dict[str, list[Run]]  # by row, the runs of its best learning rate, by seed


def read_all(folder: Path) -> list[Run]:
    """Those with learning rates that were not chosen included."""
    return [json.loads(file.read_text()) for file in sorted(folder.glob("*/*.json"))]


def load(folder: Path) -> Runs:
    """The runs that count: of each row those with the learning rate that its first seed did best with."""
    runs: Runs = {}
    for run in read_all(folder):
        runs.setdefault(run["row"], []).append(run)
    chosen: Runs = {}
    for row, all_of_row in runs.items():
        first = min(run["seed"] for run in all_of_row)
        rate = best_rate(run for run in all_of_row if run["seed"] == first)
        chosen[row] = sorted(
            (run for run in all_of_row if run["learning_rate"] == rate), key=lambda run: run["seed"]
        )
    return chosen


def percent(runs: Iterable[Run], context: int = 5) -> list[float]:
    """Accuracy of each run on the test list, in %. Args: context: K, in frames."""
    return [100 * run["test"]["accuracy"][str(context)] for run in runs]


def leads(runs: Iterable[Run], base: list[Run]) -> list[float]:
    """K5 of each run less that of the run in `base` of the same seed, in points; of the seeds that both have."""
    of_base = dict(zip((run["seed"] for run in base), percent(base), strict=True))
    return [percent([run])[0] - of_base[run["seed"]] for run in runs if run["seed"] in of_base]


def step_ms(runs: Iterable[Run]) -> float:
    """Milliseconds of a step: of the run that other work on the machine disturbed least."""
    return min(run["step_ms"] for run in runs)
