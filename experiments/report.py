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
from experiments.corpus import CHECKSUM
from experiments.tables import STEPS, TABLES, TEACHER, Row, Table, best_rate
from mtd_jax.storage import write_text

ROOT = Path(__file__).parents[1]
RESULTS, PAGE, FIGURE = ROOT / "experiments/results", ROOT / "docs/experiments.md", ROOT / "docs/experiments.png"
Runs = dict[str, list[dict[str, Any]]]  # by row, the runs of its best learning rate, by seed

# Of the figure: colour and marker.
KINDS = {
    "plain student": ("tab:gray", "o"),
    "published pairs": ("tab:brown", "v"),
    "other losses": ("tab:cyan", "."),
    "MTD": ("tab:blue", "s"),
    "two towers": ("tab:red", "D"),
    "teacher": ("black", "*"),
}
_BEGINNINGS = {row.name for table in (TEACHER, "starts") for row in TABLES[table].rows}
MTD_LAYERS = [f"{encoder} {layer}" for encoder in ("fusion", "A→V", "V→A") for layer in (1, 2)]


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
            lines.append(_line(row, runs[row.name], base if row is not table.rows[0] else [], table.seeds))
    return "\n".join(lines)


def _line(row: Row, runs: list[dict[str, Any]], base: list[dict[str, Any]], seeds: tuple[int, ...]) -> str:
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
        str(len(runs)) if len(runs) >= len(seeds) else f"{len(runs)} of {len(seeds)}",
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


def counted(folder: Path) -> str:
    """How many runs there are, those of the learning rates that were not chosen included, and what they took."""
    hours: dict[str, list[float]] = {}
    for file in folder.glob("*/*.json"):
        run = json.loads(file.read_text())
        kind = "on GRID" if run["corpus"] != f"{CHECKSUM:#010x}" else "with the common start"
        if kind != "on GRID" and not run["start"]:
            kind = "teacher and starts" if run["row"] in _BEGINNINGS else "from scratch"
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


def draw(runs: Runs, file: Path) -> None:
    """What each loss gains; accuracy against minutes and against size; how MTD's learned uncertainty moves."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, ((gain, weights), (cost, size)) = plt.subplots(2, 2, figsize=(13, 10), layout="constrained")
    _draw_gains(gain, runs)
    for run in runs.get("MTD", [])[:1]:
        steps, *lines = zip(*run["uncertainty"], strict=True)
        for number, line in enumerate(lines):
            weights.plot(steps, line, label="BCE" if number == 0 else MTD_LAYERS[number - 1])
        weights.legend(fontsize=8, ncols=2)
    weights.set(xlabel="steps", ylabel="w", title="Learned uncertainty of MTD's terms, seed 0")
    points = [
        _point(row, of_row, runs)
        for row, of_row in runs.items()
        if _is_drawn(row, of_row[0]) and _is_complete(row, of_row)
    ]
    for axes, horizontal in ((cost, "minutes"), (size, "parameters")):
        for kind, (colour, marker) in KINDS.items():
            chosen = sorted((p for p in points if p["kind"] == kind), key=lambda p: p[horizontal])
            if axes is size:  # at equal steps
                chosen = [p for p in chosen if p["steps"] == STEPS or kind == TEACHER]
            across, up = [p[horizontal] for p in chosen], [p["five"] for p in chosen]
            axes.plot(across, up, marker=marker, color=colour, linestyle="", label=kind)
            if kind in ("two towers", "plain student"):
                for point, x, y in zip(chosen, across, up, strict=True):
                    above = any(0 < y - other < 5 for other in up)  # not on the label of the one below it
                    axes.annotate(
                        point["row"],
                        (x, y),
                        (5, 4 if above else -9),
                        textcoords="offset points",
                        fontsize=7,
                    )
            longer = [p for p in chosen if p["row"] in {row.name for row in TABLES["length"].rows}]
            if horizontal == "minutes":
                axes.plot([p["minutes"] for p in longer], [p["five"] for p in longer], color=colour)
        axes.set(ylabel="K5 on unseen speakers, %")
        axes.legend(fontsize=8, loc="lower right")
    cost.set(xlabel="minutes of training, those of the start included", title="Accuracy against cost")
    size.set(xlabel="million parameters", title=f"Accuracy against size, {STEPS} steps (teacher: more)")
    for axes in (gain, weights, cost, size):
        axes.grid(alpha=0.3)
    figure.savefig(file, dpi=90)
    plt.close(figure)


def _draw_gains(axes, runs: Runs) -> None:
    """A line for each row that begins as the plain student does: a point for each seed, a bar for the mean."""
    base = {run["seed"]: 100 * run["test"]["accuracy"]["5"] for run in runs.get("none", [])}
    rows = dict.fromkeys(row.name for name in ("losses", "parts", "pairs") for row in TABLES[name].rows[1:])
    leads = {
        row: [100 * run["test"]["accuracy"]["5"] - base[run["seed"]] for run in runs[row] if run["seed"] in base]
        for row in rows
        if row in runs
    }
    order = sorted((row for row in leads if leads[row]), key=lambda row: np.mean(leads[row]))
    for height, row in enumerate(order):
        axes.plot(leads[row], [height] * len(leads[row]), "o", color="tab:blue", alpha=0.5, markersize=5)
        axes.plot(np.mean(leads[row]), height, "|", color="black", markersize=13, markeredgewidth=2)
    axes.axvline(0, color="black", linewidth=0.8)
    axes.set_yticks(range(len(order)), order, fontsize=8)
    axes.set(xlabel="K5 above the plain student's of the same seed, points", title="What a loss gains")


def _is_drawn(row: str, run: dict[str, Any]) -> bool:
    """Whether a row can be compared: on the corpus, and with the common start (the teacher has none)."""
    return row == TEACHER or bool(run["start"] and run["corpus"] == f"{CHECKSUM:#010x}")


def _is_complete(row: str, of_row: list[dict[str, Any]]) -> bool:
    """Whether all its seeds are there: a point of one lucky seed would mislead."""
    return any(len(of_row) >= len(table.seeds) for table in TABLES.values() if row in {r.name for r in table.rows})


def _point(row: str, of_row: list[dict[str, Any]], runs: Runs) -> dict[str, Any]:
    """Where a row stands in the figure."""
    run = of_row[0]
    steps = run["steps"] * min(one["step_ms"] for one in of_row)  # what other work disturbed least
    if run["start"]:
        folder = run["start"].split("/")[0]
        begun = next(one for of in runs.values() for one in of if _folder(one["row"]) == folder)
        steps += begun["steps"] * begun["step_ms"]
    loss = run["config"]["loss"]["name"]
    if row == TEACHER:
        kind = "teacher"
    elif run["config"]["model"]["fusion"] == "none":
        kind = "two towers"
    elif row == "reference pairs":
        kind = "published pairs"
    else:
        kind = {"bce": "plain student", "mtd": "MTD"}.get(loss, "other losses")
    five = np.mean([100 * one["test"]["accuracy"]["5"] for one in of_row])
    of_point = {"row": row, "kind": kind, "steps": run["steps"], "five": five}
    return of_point | {"minutes": steps / 60e3, "parameters": run["parameters"] / 1e6}


def _folder(row: str) -> str:
    return Row(row).run_name(0, 1.0).split("/")[0]


def main():
    runs = load(RESULTS)
    write_text(PAGE, filled(PAGE.read_text(), runs, RESULTS))
    draw(runs, FIGURE)
    print(f"{sum(map(len, runs.values()))} runs of {len(runs)} rows: {PAGE}, {FIGURE}")


if __name__ == "__main__":
    run_benchmark(main)
