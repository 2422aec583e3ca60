"""Runs a table, resumes it, skips what is done.

    python -m experiments.run --table=losses --workdir=EXPERIMENTS
    python -m experiments.run --table=losses --rows=MTD --seeds=0 --rates=0.003 --workdir=NEW --results=AGAIN

Every run writes one JSON file, and is skipped where that exists. Several processes can share a table once the
teacher and the starts are there (`--table=teacher`, `--table=starts`): `--part=0/2` and `--part=1/2` take turns at
the rows. What the teacher and the starts reached is not measured again where experiments/results has it.
"""

import functools
import json
import re
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags

from benchmarks.common import machine, run_benchmark, to_json, versions
from experiments.corpus import CHECKSUM, make
from experiments.runs import RESULTS
from experiments.tables import START_RATE, TABLES, TEACHER, Row, best_rate
from mtd_jax import compilation
from mtd_jax.checkpoint import load_model
from mtd_jax.config import Config
from mtd_jax.data.sources import open_source
from mtd_jax.errors import UserError
from mtd_jax.evaluation.evaluate import evaluate
from mtd_jax.network.model import count_parameters
from mtd_jax.storage import check_writable, write_text, writing_to
from mtd_jax.training.train import IN_THE_BOX, train

TABLE = flags.DEFINE_enum("table", None, list(TABLES), "Which table.", required=True)
WORKDIR = flags.DEFINE_string("workdir", None, "Folder for the corpus and the trainings, kept.", required=True)
OUTPUT = flags.DEFINE_string("results", str(RESULTS), "Folder for the results.")
ROWS = flags.DEFINE_list("rows", None, "Rows to run. [all]")
RATES = flags.DEFINE_list("rates", None, "Learning rates to try. [those of the table]")
SEEDS = flags.DEFINE_list("seeds", None, "Seeds to run; the first one is tuned. [those of the table]")
GRID = flags.DEFINE_string("grid", None, "Folder of GRID's speaker 1, see docs/real.md, for the table grid.")
PART = flags.DEFINE_string("part", "0/1", "Which share of the rows: NUMBER/OF.")


def main():
    compilation.prepare()
    table = TABLES[TABLE.value]
    rows = {row.name: row for row in table.rows}
    if unknown := set(ROWS.value or ()) - rows.keys():
        raise UserError(f"--rows: expected some of {', '.join(rows)}, got {', '.join(map(repr, unknown))}")
    seeds = _numbers("--seeds", SEEDS.value, int, "whole numbers, 0 or more", minimum=0) or table.seeds
    tried = _numbers("--rates", RATES.value, float, "learning rates above 0", minimum=1e-12) or table.rates
    number, of = _part(PART.value)
    if any(row.on_grid for row in table.rows):
        _grid()
    with writing_to(OUTPUT.value):
        Path(OUTPUT.value).mkdir(parents=True, exist_ok=True)
    check_writable(Path(OUTPUT.value) / "run.json")
    corpus = make(Path(WORKDIR.value) / "corpus")
    run = functools.partial(_run, corpus=corpus)
    chosen = [rows[name] for name in ROWS.value or rows]
    if any(row.needs_teacher and not row.on_grid for row in chosen):
        run = functools.partial(run, teacher=_teacher(run, corpus))
    for index, row in enumerate(table.rows):
        if index % of == number and row in chosen:
            if row.rate_of and not RATES.value:
                of_table = functools.partial(run, known=RESULTS)
                _tuned(row, seeds, (_tuned(row.rate_of, seeds[:1], tried, of_table),), run)
            else:
                _tuned(row, seeds, tried, run)


def _numbers(flag: str, given: list[str] | None, kind: Callable, expected: str, minimum: float) -> tuple:
    """Of a flag; empty where it is not given."""
    try:
        numbers = tuple(map(kind, given or ()))
    except ValueError:
        numbers = (-1,)
    if any(not minimum <= number < np.inf for number in numbers):
        raise UserError(f"{flag}: expected {expected}, got {','.join(given or ())}")
    return numbers


def _part(given: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d+)/(\d+)", given)
    number, of = map(int, match.groups()) if match else (0, 0)
    if number >= of:
        raise UserError(f"--part: expected NUMBER/OF with a number below OF, such as 0/2 or 1/2, got {given}")
    return number, of


def _teacher(run, corpus: Path) -> Path:
    """The work directory of the teacher."""
    table = TABLES[TEACHER]
    row, seed = table.rows[0], table.seeds[0]
    run = functools.partial(run, known=RESULTS)
    return _trained(row, seed, _tuned(row, (seed,), table.rates, run), corpus)


def _trained(row: Row, seed: int, learning_rate: float, corpus: Path) -> Path:
    """The work directory of a run. Where its results are known but the model is not here, it is trained."""
    _run(row, seed, learning_rate, corpus, known=RESULTS)
    workdir = Path(WORKDIR.value) / row.run_name(seed, learning_rate)
    if not (workdir / "checkpoints" / str(row.steps)).exists():
        train(row.config(seed, learning_rate, str(corpus)), workdir, report=_indented)
    return workdir


def _indented(line: str) -> None:
    print(f"  {line}", flush=True)


def _tuned(row: Row, seeds: tuple[int, ...], rates: tuple[float, ...], run) -> float:
    """Runs the first seed of a row with all learning rates, the others with the best. Returns the best."""
    best = best_rate([run(row, seeds[0], rate) for rate in rates])
    for seed in seeds[1:]:
        run(row, seed, best)
    return best


def _run(
    row: Row,
    seed: int,
    learning_rate: float,
    corpus: Path,
    teacher: Path | None = None,
    known: Path | None = None,
) -> dict:
    """One run: what its JSON file says, or will. Args: known: another folder that may have that file."""
    start = _trained(row.start, seed, START_RATE, corpus) if row.start else ""
    root, tests = (_grid(), "val") if row.on_grid else (str(corpus), "test")
    teacher_name = IN_THE_BOX if row.on_grid else str(teacher or "")
    config = row.config(seed, learning_rate, root, teacher_name, str(start))
    name = f"{row.run_name(seed, learning_rate)}.json"
    file = Path(OUTPUT.value) / name
    settings = json.loads(to_json(config.to_dict()))
    settings["data"]["root"] = settings["teacher"] = settings["init"] = ""  # folders of this machine
    for found in [file] if known is None else [file, known / name]:
        if found.exists():
            return _done(found, settings)
    workdir = Path(WORKDIR.value) / row.run_name(seed, learning_rate)
    print(f"{row.name}, seed {seed}, learning rate {learning_rate:g}", flush=True)
    commit = _commit()
    started = time.monotonic()
    trained = train(config, workdir, report=_indented)
    model = load_model(workdir)
    scored = {
        listed: evaluate(model, open_source("lrs2", root, listed, min_frames=6), progress=False)
        for listed in dict.fromkeys(("val", tests))
    }
    logged = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    result = {
        "row": row.name,
        "seed": seed,
        "learning_rate": learning_rate,
        "steps": row.steps,
        "start": row.start.run_name(seed, START_RATE) if row.start else "",
        "parameters": count_parameters(model),
        "corpus": "GRID, speaker 1" if row.on_grid else f"{CHECKSUM:#010x}",
        "commit": commit,
        "config": settings,
        "train_seconds": round(trained["train_seconds"], 1),
        "step_ms": round(_step_ms(config, logged), 1),
        "seconds": round(time.monotonic() - started, 1),
        "validation": {"accuracy": scored["val"]["accuracy"]},
        "test": {
            "accuracy": scored[tests]["accuracy"],
            "clips": {clip["name"]: clip["accuracy"]["5"] for clip in scored[tests]["clips"]},
        },
        "curve": [
            {k: line[k] for k in ("step", "val_loss", "val_accuracy")} for line in logged if "epoch" in line
        ],
        "uncertainty": [
            [line["step"], *(line[name] for name in sorted(line) if name.startswith("uncertainty_"))]
            for line in logged
            if "uncertainty_0" in line
        ],
        "machine": machine(),
        "versions": versions("jax", "flax"),
    }
    file.parent.mkdir(parents=True, exist_ok=True)
    write_text(file, to_json(result, indent=1) + "\n")
    print(
        f"  K5 {result['test']['accuracy']['5']:.3f}, K15 {result['test']['accuracy']['15']:.3f}: {file}",
        flush=True,
    )
    return result


def _done(file: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """The results of a run. Raises `UserError` if they are damaged, or of another config."""
    try:
        done = json.loads(file.read_text())
    except ValueError as error:
        raise UserError(
            f"{file}: expected the results of a run, got damaged JSON; remove it to run it again"
        ) from error
    if done["config"] != settings:
        raise UserError(f"{file}: is of another config; remove it to run it again")
    return done


def _grid() -> str:
    if GRID.value is None:
        raise UserError(
            "--grid: expected the folder of GRID's speaker 1, which docs/real.md makes (REAL), got none"
        )
    return GRID.value


def _step_ms(config: Config, logged: list[dict[str, Any]]) -> float:
    """Of the fastest `log_every` steps: those that other work on the machine disturbed least."""
    return 1000 * config.batch_size / max(line["clips_per_second"] for line in logged if "bce" in line)


def _commit() -> str:
    """Of the checkout, with a + if files were changed since; empty where there is none."""

    def git(*words: str) -> str:
        done = subprocess.run(
            ["git", *words], cwd=Path(__file__).parent, capture_output=True, text=True, check=False
        )
        return done.stdout.strip() if done.returncode == 0 else ""

    return git("rev-parse", "--short=12", "HEAD") + ("+" if git("status", "--porcelain", "--", "mtd_jax") else "")


if __name__ == "__main__":
    run_benchmark(main)
