"""Curves of trainings: BCE while training, and loss and accuracy on the validation pairs, over steps.

    python -m benchmarks.curves --workdirs=real_teacher,real_student --figure=curves.png --json=curves.json

The figures come from WORKDIR/metrics.jsonl, which every training writes; `--from_json=curves.json` draws them
again without the work directories.
"""

import json
from pathlib import Path

import numpy as np
from absl import flags

from benchmarks.common import machine, run_benchmark, to_json, versions
from mtd_jax.checkpoint import load_description
from mtd_jax.errors import UserError
from mtd_jax.storage import check_writable, write_text

WORKDIRS = flags.DEFINE_list("workdirs", [], "Work directories of trainings, in the order of the legend.")
FROM_JSON = flags.DEFINE_string("from_json", None, "Results of an earlier call, to draw them again.")
FIGURE = flags.DEFINE_string("figure", None, "PNG file to draw to.")
JSON = flags.DEFINE_string("json", None, "File to write the results to.")


def main():
    if bool(WORKDIRS.value) == bool(FROM_JSON.value):
        raise UserError("expected one of --workdirs and --from_json")
    for file in filter(None, (FIGURE.value, JSON.value)):
        check_writable(file)
    if FROM_JSON.value:
        result = json.loads(Path(FROM_JSON.value).read_text())
    else:
        result = {"benchmark": "curves", "machine": machine(), "versions": versions("jax", "flax")}
        result["runs"] = {Path(workdir).name: curve(Path(workdir)) for workdir in WORKDIRS.value}
    for name, run in result["runs"].items():
        best = int(np.argmin(run["val_loss"]))
        print(
            f"{name}: {run['steps'][-1]} steps in {run['train_seconds'] / 60:.0f} minutes, seed {run['seed']}; "
            f"best validation loss {run['val_loss'][best]:.3f}, accuracy {run['val_accuracy'][best]:.3f}, "
            f"after step {run['steps'][best]}"
        )
    if FIGURE.value:
        draw(result["runs"], FIGURE.value)
    if JSON.value:
        write_text(JSON.value, to_json(result, indent=1) + "\n")


def curve(workdir: Path) -> dict:
    """What a training logged, by epoch. Raises `UserError` where there is no validation to show."""
    try:
        lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    except OSError as error:
        raise UserError(f"{workdir}: expected the work directory of a training ({error})") from error
    epochs = [line for line in lines if "val_loss" in line]
    if not epochs:
        raise UserError(f"{workdir}: no epoch of this training has ended yet")
    last = max((workdir / "checkpoints").glob("[0-9]*"), key=lambda path: int(path.name))
    description = load_description(last)
    steps = [0, *(epoch["step"] for epoch in epochs)]
    config = description["training"]
    config["data"]["root"] = config["data"]["extra"]["root"] = config["teacher"] = ""  # folders of this machine
    return {
        "config": config,
        "seed": description["training"]["seed"],
        "train_seconds": round(description["train_seconds"]),
        "steps": steps[1:],
        "train_bce": [
            float(np.mean([line["bce"] for line in lines if "bce" in line and a < line["step"] <= b]))
            for a, b in zip(steps, steps[1:], strict=False)
        ],
        "val_loss": [epoch["val_loss"] for epoch in epochs],
        "val_accuracy": [epoch["val_accuracy"] for epoch in epochs],
    }


def draw(runs: dict[str, dict], file: str) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    titles = {
        "train_bce": "BCE of a training step",
        "val_loss": "BCE, validation",
        "val_accuracy": "accuracy, validation",
    }
    figure, axes = plt.subplots(1, len(titles), figsize=(12, 3.6), layout="constrained")
    for panel, (key, title) in zip(axes, titles.items(), strict=True):
        for name, run in runs.items():
            panel.plot(run["steps"], run[key], label=name, linewidth=1.4)
        panel.set(title=title, xlabel="steps")
        panel.grid(alpha=0.3)
    axes[0].legend(fontsize=8)
    figure.savefig(file, dpi=110)


if __name__ == "__main__":
    run_benchmark(main)
