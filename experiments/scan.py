"""What a verdict costs with each kind of network: a ±15 scan of one clip, all in turns in one process.

python -m experiments.scan

The weights are random, since their values cost nothing. Writes `scan.json` beside the results of the experiments.
"""

import functools

import jax
import numpy as np

from benchmarks.common import in_turns, machine, run_benchmark, summarize, to_json, versions, warn_if_busy
from experiments.runs import RESULTS
from experiments.tables import TABLES, TEACHER
from mtd_jax import compilation
from mtd_jax.config import model_config
from mtd_jax.data.clip import SAMPLES_PER_FRAME
from mtd_jax.network.model import SyncModel
from mtd_jax.scoring import Scorer
from mtd_jax.storage import write_text

FRAMES, REPEATS = 104, 9


def main():
    jax.config.update("jax_platforms", "cpu")
    compilation.prepare()
    warn_if_busy()
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 256, (FRAMES, 48, 96, 3), dtype=np.uint8)
    waveform = rng.integers(-20_000, 20_000, FRAMES * SAMPLES_PER_FRAME).astype(np.int16)
    rows = {row.name: row for name in (TEACHER, "towers") for row in TABLES[name].rows if not row.needs_teacher}
    scorers = {
        name: Scorer(SyncModel(model_config(row.config(0, 1e-3, "")), seed=0)) for name, row in rows.items()
    }
    for scorer in scorers.values():
        scorer(frames, waveform)  # compiles
    ways = {name: functools.partial(scorer, frames, waveform) for name, scorer in scorers.items()}
    spent = in_turns(ways, REPEATS)
    spread = {name: summarize(1e3 * np.array(seconds) / FRAMES) for name, seconds in spent.items()}
    found = {
        "ms a frame": {name: round(spread[name]["median"], 3) for name in spread},
        "times the first": {name: round(spread[name]["median"] / spread[TEACHER]["median"], 3) for name in spread},
    }
    result = {"measured": found, "spread": spread, "machine": machine(), "versions": versions("jax", "flax")}
    write_text(RESULTS / "scan.json", to_json(result, indent=1) + "\n")
    for name, summary in spread.items():
        print(f"{name:<20} {summary['median']:.2f} ms a frame ({summary['low']:.2f}–{summary['high']:.2f})")


if __name__ == "__main__":
    run_benchmark(main)
