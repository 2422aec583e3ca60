"""Draws the tables and figures of docs/experiments.md from the results alone.

    python -m experiments.report

In that page a line `<!-- table: NAME -->` begins a table and `<!-- end -->` ends it; what stands between is
replaced. A test compares the page with the results.
"""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import run_benchmark
from experiments.tables import TABLES, Row, Table, best_rate
from mtd_jax.storage import write_text

ROOT = Path(__file__).parents[1]
RESULTS, PAGE, FIGURE = ROOT / "experiments/results", ROOT / "docs/experiments.md", ROOT / "docs/experiments.png"
Runs = dict[str, list[dict[str, Any]]]  # by row, the runs of its best learning rate, by seed


def load(folder: Path) -> Runs:
    """The runs that count: of each row those with the learning rate that its first seed did best with."""
    runs: Runs = {}
    for file in sorted(folder.glob("*/*.json")):
        run = json.loads(file.read_text())
        runs.setdefault(run["row"], []).append(run)
    chosen: Runs = {}
    for row, all_of_row in runs.items():
        first = min(run["seed"] for run in all_of_row)
        rate = best_rate(run for run in all_of_row if run["seed"] == first)
        chosen[row] = sorted(
            (run for run in all_of_row if run["learning_rate"] == rate), key=lambda run: run["seed"]
        )
    return chosen


def markdown(table: Table, runs: Runs) -> str:
    """The rows that have been run: mean ± standard deviation over the seeds, and the lead over the first row."""
    if not any(row.name in runs for row in table.rows):
        return "Not run yet."
    lines = [
        "| | parameters | K5 | K15 | K5 against the first row | seeds | learning rate | ms a step |",
        "|---|---|---|---|---|---|---|---|",
    ]
    base = runs.get(table.rows[0].name, [])
    for row in table.rows:
        if row.name in runs:
            lines.append(_line(row, runs[row.name], base if row is not table.rows[0] else []))
    return "\n".join(lines)


def _line(row: Row, runs: list[dict[str, Any]], base: list[dict[str, Any]]) -> str:
    five, fifteen = (np.array([100 * run["test"]["accuracy"][k] for run in runs]) for k in ("5", "15"))
    by_seed = {run["seed"]: 100 * run["test"]["accuracy"]["5"] for run in base}
    leads = np.array(
        [k5 - by_seed[run["seed"]] for run, k5 in zip(runs, five, strict=True) if run["seed"] in by_seed]
    )
    cells = [
        row.name,
        f"{runs[0]['parameters'] / 1e6:.2f} M",
        _spread(five),
        _spread(fifteen),
        _spread(leads, "+") if len(leads) else "",
        str(len(runs)),
        f"{runs[0]['learning_rate']:g}",
        f"{min(run['step_ms'] for run in runs):.0f}",
    ]
    return f"| {' | '.join(cells)} |"


def _spread(values: np.ndarray, sign: str = "") -> str:
    mean = f"{values.mean():{sign}.1f}"
    return f"{mean} ± {values.std(ddof=1):.1f}" if len(values) > 1 else mean


def measured(file: Path) -> str:
    """A table of what `experiments.scan` or `experiments.clamp` wrote."""
    if not file.exists():
        return "Not run yet."
    found = json.loads(file.read_text())["measured"]
    columns = list(found)
    lines = [f"| | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
    for name in found[columns[0]]:
        cells = [" / ".join(f"{value:.3g}" for value in np.ravel(found[column][name])) for column in columns]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def filled(page: str, runs: Runs, folder: Path) -> str:
    """The page with its tables made anew. Args: folder: of the results."""

    def table(match: re.Match[str]) -> str:
        name = match.group(1)
        made = markdown(TABLES[name], runs) if name in TABLES else measured(folder / f"{name}.json")
        return f"<!-- table: {name} -->\n{made}\n<!-- end -->"

    return re.sub(r"<!-- table: (\w+) -->\n.*?<!-- end -->", table, page, flags=re.DOTALL)


def draw(runs: Runs, file: Path) -> None:
    """Accuracy of each row against its cost and size, and how the uncertainty weights of MTD move."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, (cost, size, weights) = plt.subplots(1, 3, figsize=(15, 4.6), layout="constrained")
    colours = plt.get_cmap("tab20").colors  # type: ignore[attr-defined]
    for number, (row, of_row) in enumerate(sorted(runs.items())):
        five = np.mean([100 * run["test"]["accuracy"]["5"] for run in of_row])
        mark = {"marker": "osD^vP*X"[number % 8], "color": colours[number % 20], "label": row, "linestyle": "none"}
        cost.plot(np.mean([run["steps"] * run["step_ms"] / 60e3 for run in of_row]), five, **mark)
        size.plot(of_row[0]["parameters"] / 1e6, five, **mark)
    cost.set(xlabel="minutes of training", ylabel="K5 on unseen speakers, %", xscale="log")
    size.set(xlabel="million parameters", ylabel="K5 on unseen speakers, %")
    size.legend(fontsize=6, ncols=2)
    for run in runs.get("MTD", [])[:1]:
        steps, *lines = zip(*run["uncertainty"], strict=True)
        for number, line in enumerate(lines):
            weights.plot(steps, line, label="BCE" if number == 0 else f"layer {number}")
        weights.legend(fontsize=7)
    weights.set(xlabel="steps", ylabel="learned uncertainty w (MTD)")
    for axes in (cost, size, weights):
        axes.grid(alpha=0.3)
    figure.savefig(file, dpi=100)


def main():
    runs = load(RESULTS)
    write_text(PAGE, filled(PAGE.read_text(), runs, RESULTS))
    draw(runs, FIGURE)
    print(f"{sum(map(len, runs.values()))} runs of {len(runs)} rows: {PAGE}, {FIGURE}")


if __name__ == "__main__":
    run_benchmark(main)
