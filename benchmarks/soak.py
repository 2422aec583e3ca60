"""Kills one training again and again, and compares what comes out with a training that was left alone.

    python -m benchmarks.soak --kills=24

A third of the kills are SIGTERM (the run saves and asks to be started again), a third SIGKILL at any moment, a
third SIGKILL while a checkpoint is being written. Afterwards the last checkpoint must hold the same bits (model,
optimiser, position in the data), and every step must have been logged once, with the same loss.
"""

import json
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import numpy as np
from absl import flags

from benchmarks.common import run_benchmark

ROOT = Path(__file__).parent.parent
KILLS = flags.DEFINE_integer("kills", 24, "How often the training is killed.", lower_bound=1)
SEED = flags.DEFINE_integer("seed", 0, "Of the moments at which it is.")

REQUEUE = 75  # exit code of a run that was asked to stop
KINDS = ("SIGTERM", "SIGKILL", "SIGKILL in a save")
STEPS_PER_KILL = 12  # on average; the training is as long as it takes
_PATIENCE = 600  # seconds for a run to get anywhere


class SoakError(Exception):
    """The training did not come through."""


def main():
    with tempfile.TemporaryDirectory() as folder:
        counts = soak(Path(folder), KILLS.value, SEED.value, tell=print)
    print(f"bit-identical after {sum(counts.values())} kills: {dict(counts)}")


def soak(folder: Path, kills: int, seed: int, kinds=KINDS, tell=lambda line: None) -> Counter:
    """Runs both trainings in `folder`; returns how often it was killed in which way. Raises `SoakError`."""
    from mtd_jax.synthetic.corpus import synthesize

    corpus = synthesize(folder / "corpus", train_clips=8, val_clips=2, test_clips=0, seconds=1.6, progress=False)
    command = training(corpus, steps=kills * STEPS_PER_KILL)
    _finish(command, folder / "alone")
    tell("left alone: done")
    counts = _finish_with_kills(command, folder / "killed", kills, kinds, random.Random(seed), tell)
    compare(folder / "alone", folder / "killed")
    return counts


def training(corpus: Path, steps: int) -> list[str]:
    """The command line of a small training with a checkpoint every third step."""
    options = {
        "data.root": corpus,
        "data.train_list": "train",
        "data.workers": 1,
        "model.widths": "(4,4,8,8,8)",
        "model.num_heads": 2,
        "model.num_layers": 1,
        "batch_size": 2,
        "val_batch_size": 2,
        "epochs": 4,
        "draws_per_epoch": 2 * -(-steps // 4),
        "checkpoint_every": 3,
        "log_every": 1,
    }
    fields = [f"--config.{name}={value}" for name, value in options.items()]
    return [sys.executable, "main.py", "--mode=train", "--config=configs/teacher.py:tiny", *fields]


def _start(command: list[str], workdir: Path) -> subprocess.Popen:
    return subprocess.Popen(
        [*command, f"--workdir={workdir}"], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def _finish(command: list[str], workdir: Path) -> None:
    process = _start(command, workdir)
    output, _ = process.communicate()
    if process.returncode:
        raise SoakError(f"exit code {process.returncode}: {output[-2000:]}")


def _finish_with_kills(command, workdir: Path, kills: int, kinds, rng: random.Random, tell) -> Counter:
    counts = Counter()
    while sum(counts.values()) < kills:
        kind = kinds[sum(counts.values()) % len(kinds)]
        process = _start(command, workdir)
        before = _steps(workdir)
        _wait(process, lambda before=before: _steps(workdir) > before)
        time.sleep(rng.uniform(0, 0.6))
        if kind == "SIGKILL in a save":
            _wait(process, lambda: any((workdir / "checkpoints").glob("*tmp*")))
        process.send_signal(signal.SIGTERM if kind == "SIGTERM" else signal.SIGKILL)
        output, _ = process.communicate()
        expected = REQUEUE if kind == "SIGTERM" else -signal.SIGKILL
        if process.returncode == 0:
            raise SoakError(f"the training ended after {sum(counts.values())} kills: make it longer")
        if process.returncode != expected:
            raise SoakError(f"{kind}: exit code {process.returncode}, expected {expected}: {output[-2000:]}")
        counts[kind] += 1
        tell(f"{kind} after step {_steps(workdir)}")
    _finish(command, workdir)
    return counts


def _wait(process, condition) -> None:
    """Until the condition holds or the process has ended."""
    end = time.monotonic() + _PATIENCE
    while not condition() and process.poll() is None:
        if time.monotonic() > end:
            process.kill()
            raise SoakError(f"nothing happened for {_PATIENCE} s")
        time.sleep(0.002)


def _rows(workdir: Path) -> list[dict]:
    """The logged steps; a line that is being written is not one yet."""
    path = workdir / "metrics.jsonl"
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]


def _steps(workdir: Path) -> int:
    return max((row["step"] for row in _rows(workdir) if "total" in row), default=0)


def compare(alone: Path, killed: Path) -> None:
    """Raises `SoakError` unless both trainings came to the same end over the same steps."""
    from mtd_jax.checkpoint import load_description, restore_arrays

    losses = [[(row["step"], row["total"]) for row in _rows(run) if "total" in row] for run in (alone, killed)]
    if losses[0] != losses[1]:
        different = [a for a, b in zip(*losses, strict=False) if a != b] or losses
        raise SoakError(f"the logged steps differ, first {different[0]}")
    last = max(int(path.name) for path in (alone / "checkpoints").iterdir() if path.name.isdigit())
    runs = [run / "checkpoints" / str(last) for run in (alone, killed)]
    positions = [load_description(run)["data"] for run in runs]
    if positions[0] != positions[1]:
        raise SoakError(f"the position in the data is {positions[1]}, expected {positions[0]}")
    for item in ("model", "training"):
        one, other = (restore_arrays(run, item) for run in runs)
        wrong = [name for name in one if not np.array_equal(one[name], other[name])]
        if one.keys() != other.keys() or wrong:
            raise SoakError(f"{item}: {wrong or one.keys() ^ other.keys()} differ")
    shutil.rmtree(killed)


if __name__ == "__main__":
    run_benchmark(main)
