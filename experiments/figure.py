"""Draws docs/experiments.png: what each loss gains, learned uncertainty, accuracy against cost and size."""

from pathlib import Path
from typing import Any

import numpy as np

from experiments.runs import Run, Runs, leads, percent, step_ms
from experiments.tables import ROWS, STEPS, TABLES, TEACHER, Row

# Colour and marker.
_KINDS = {
    "plain student": ("tab:gray", "o"),
    "published pairs": ("tab:brown", "v"),
    "other losses": ("tab:cyan", "."),
    "MTD": ("tab:blue", "s"),
    "two towers": ("tab:red", "D"),
    "teacher": ("black", "*"),
}
_NAMED = ("plain student", "two towers")  # few enough for a name beside each point
_TERMS = ["BCE", *(f"{encoder} {layer}" for encoder in ("fusion", "A→V", "V→A") for layer in (1, 2))]


def draw(runs: Runs, file: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, ((gain, weights), (cost, size)) = plt.subplots(2, 2, figsize=(13, 10), layout="constrained")
    _draw_gains(gain, runs)
    _draw_uncertainty(weights, runs["MTD"][0])
    points = [point(ROWS[row], runs) for row in runs if _is_comparable(ROWS[row], len(runs[row]))]
    _draw_points(cost, points, "minutes")
    for kind, (colour, _) in _KINDS.items():
        longer = [p for p in points if p["kind"] == kind and ROWS[p["row"]] in TABLES["length"].rows]
        cost.plot([p["minutes"] for p in longer], [p["five"] for p in longer], color=colour)
    _draw_points(size, [p for p in points if p["steps"] == STEPS or p["row"] == TEACHER], "parameters")
    cost.set(xlabel="minutes of training, those of the start included", title="Accuracy against cost")
    size.set(xlabel="million parameters", title=f"Accuracy against size, {STEPS} steps (teacher: more)")
    for axes in (gain, weights, cost, size):
        axes.grid(alpha=0.3)
    figure.savefig(file, dpi=90)
    plt.close(figure)


def _draw_gains(axes, runs: Runs) -> None:
    """A line for each row that begins as the plain student does: a point for each seed, a bar for the mean."""
    rows = dict.fromkeys(row.name for name in ("losses", "parts", "pairs") for row in TABLES[name].rows[1:])
    of_rows = {row: leads(runs[row], runs["none"]) for row in rows if row in runs}
    order = sorted(of_rows, key=lambda row: np.mean(of_rows[row]))
    for height, row in enumerate(order):
        axes.plot(of_rows[row], [height] * len(of_rows[row]), "o", color="tab:blue", alpha=0.5, markersize=5)
        axes.plot(np.mean(of_rows[row]), height, "|", color="black", markersize=13, markeredgewidth=2)
    axes.axvline(0, color="black", linewidth=0.8)
    axes.set_yticks(range(len(order)), order, fontsize=8)
    axes.set(xlabel="K5 above the plain student's of the same seed, points", title="What a loss gains")


def _draw_uncertainty(axes, run: Run) -> None:
    steps, *lines = zip(*run["uncertainty"], strict=True)
    for line, term in zip(lines, _TERMS, strict=True):
        axes.plot(steps, line, label=term)
    axes.legend(fontsize=8, ncols=2)
    axes.set(xlabel="steps", ylabel="w", title=f"Learned uncertainty of MTD's terms, seed {run['seed']}")


def _draw_points(axes, points: list[dict[str, Any]], horizontal: str) -> None:
    for kind, (colour, marker) in _KINDS.items():
        of_kind = [p for p in points if p["kind"] == kind]
        across, up = [p[horizontal] for p in of_kind], [p["five"] for p in of_kind]
        axes.plot(across, up, marker=marker, color=colour, linestyle="", label=kind)
        for p in of_kind if kind in _NAMED else []:
            x, y = p[horizontal], p["five"]
            above = any(0 < y - other < 5 for other in up)  # not on the name of the one below it
            axes.annotate(p["row"], (x, y), (5, 4 if above else -9), textcoords="offset points", fontsize=7)
    axes.set(ylabel="K5 on unseen speakers, %")
    axes.legend(fontsize=8, loc="lower right")


def _is_comparable(row: Row, seeds: int) -> bool:
    """On the corpus, with the common start (the teacher has none), and with all seeds: one may have been lucky."""
    complete = any(seeds >= len(table.seeds) for table in TABLES.values() if row in table.rows)
    return complete and not row.on_grid and (row.start is not None or row.name == TEACHER)


def point(row: Row, runs: Runs) -> dict[str, Any]:
    """Where a row stands: K5 in %, minutes of training with those of its start, millions of parameters."""
    milliseconds = sum(r.steps * step_ms(runs[r.name]) for r in (row, row.start) if r is not None)
    return {
        "row": row.name,
        "kind": _kind(row),
        "steps": row.steps,
        "minutes": milliseconds / 60e3,
        "parameters": runs[row.name][0]["parameters"] / 1e6,
        "five": np.mean(percent(runs[row.name])),
    }


def _kind(row: Row) -> str:
    if row.name == TEACHER:
        return "teacher"
    if row.changes.get("model.fusion") == "none":
        return "two towers"
    if row.changes.get("data.pairing") == "reference":
        return "published pairs"
    return {"bce": "plain student", "mtd": "MTD"}.get(row.changes.get("loss.name", "bce"), "other losses")
