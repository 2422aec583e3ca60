"""Writes the tables of docs/experiments.md, and draws its figure, from the results alone.

    python -m experiments.report

In that page a line `<!-- table: NAME -->` begins a table and `<!-- end -->` ends it; what stands between is
replaced. A test compares the page with the results.
"""

import json
import re
from pathlib import Path

import numpy as np

from benchmarks.common import run_benchmark
from experiments.figure import draw
from experiments.runs import RESULTS, Run, Runs, leads, load, percent, read_all, step_ms
from experiments.tables import ROWS, TABLES, TEACHER, Row, Table
from mtd_jax.storage import write_text

ROOT = Path(__file__).parents[1]
PAGE, FIGURE = ROOT / "docs/experiments.md", ROOT / "docs/experiments.png"


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
            lines.append(_line(row, runs[row.name], base if row is not table.rows[0] else [], table.seeds))
    return "\n".join(lines)


def _line(row: Row, runs: list[Run], base: list[Run], seeds: tuple[int, ...]) -> str:
    cells = [
        row.name,
        f"{runs[0]['parameters'] / 1e6:.2f} M",
        _spread(percent(runs)),
        _spread(percent(runs, 15)),
        _spread(leads(runs, base), "+"),
        str(len(runs)) if len(runs) >= len(seeds) else f"{len(runs)} of {len(seeds)}",
        f"{runs[0]['learning_rate']:g}",
        f"{step_ms(runs):.0f}",
    ]
    return f"| {' | '.join(cells)} |"


def _spread(values: list[float], sign: str = "") -> str:
    if not values:
        return ""
    mean = f"{np.mean(values):{sign}.1f}"
    return f"{mean} ± {np.std(values, ddof=1):.1f}" if len(values) > 1 else mean


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


def counted(folder: Path) -> str:
    """How many runs there are, those of the learning rates that were not chosen included, and what they took."""
    hours: dict[str, list[float]] = {}
    beginnings = TABLES[TEACHER].rows + TABLES["starts"].rows
    for run in read_all(folder):
        row = ROWS[run["row"]]
        if row.on_grid:
            kind = "on GRID"
        elif row.start:
            kind = "with the common start"
        else:
            kind = "teacher and starts" if row in beginnings else "from scratch"
        hours.setdefault(kind, []).append(run["seconds"] / 3600)
    lines = ["| runs | number | hours of a core |", "|---|---|---|"]
    lines += [f"| {kind} | {len(spent)} | {sum(spent):.1f} |" for kind, spent in sorted(hours.items())]
    everything = [one for spent in hours.values() for one in spent]
    return "\n".join([*lines, f"| all | {len(everything)} | {sum(everything):.1f} |"])


def filled(page: str, runs: Runs, folder: Path) -> str:
    """The page with its tables made anew. Args: folder: of the results."""

    def table(match: re.Match[str]) -> str:
        name = match.group(1)
        if name == "runs":
            made = counted(folder)
        else:
            made = markdown(TABLES[name], runs) if name in TABLES else measured(folder / f"{name}.json")
        return f"<!-- table: {name} -->\n{made}\n<!-- end -->"

    return re.sub(r"<!-- table: (\w+) -->\n.*?<!-- end -->", table, page, flags=re.DOTALL)


def main():
    runs = load(RESULTS)
    write_text(PAGE, filled(PAGE.read_text(), runs, RESULTS))
    draw(runs, FIGURE)
    print(f"{sum(map(len, runs.values()))} runs of {len(runs)} rows: {PAGE}, {FIGURE}")


if __name__ == "__main__":
    run_benchmark(main)
