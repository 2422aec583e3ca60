"""What the clamp of the released code does to the V→A attention term of MTD, by layer.

    python -m experiments.clamp --workdir=EXPERIMENTS

Looks at the MTD student of seed 0, with fresh weights, where it starts and where it ends, and at its teacher, on
eight training batches. Writes `clamp.json` beside the results of the experiments.
"""

import functools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from benchmarks.common import machine, run_benchmark, to_json, versions
from experiments.runs import RESULTS, load
from experiments.tables import START_RATE, TABLES, TEACHER
from mtd_jax import compilation
from mtd_jax.checkpoint import load_model
from mtd_jax.data.pipeline import Shard
from mtd_jax.errors import UserError
from mtd_jax.network.model import SyncModel
from mtd_jax.network.weights import bind, split_statistics
from mtd_jax.storage import write_text
from mtd_jax.training.input import batches_of, open_input
from mtd_jax.training.losses import CLAMP_FLOOR, relation_kl
from mtd_jax.training.step import score_grid, training_mel

WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the corpus and the trainings.", required=True)
BATCHES = flags.DEFINE_integer("batches", 8, "Training batches to look at.", lower_bound=1)


def main():
    compilation.prepare()
    runs, folder = load(RESULTS), Path(WORKDIR.value)
    if "MTD" not in runs:
        raise UserError("no run of MTD in experiments/results: run the table losses first")
    row = next(row for row in TABLES["losses"].rows if row.name == "MTD")
    run = runs["MTD"][0]
    teacher = load_model(folder / TABLES[TEACHER].rows[0].run_name(*_of(runs[TEACHER][0])))
    config = row.config(run["seed"], run["learning_rate"], str(folder / "corpus"))
    batches = batches_of(config, open_input(config), Shard())
    chosen = [next(batches) for _ in range(BATCHES.value)]
    trained = load_model(folder / row.run_name(*_of(run)))
    assert row.start is not None
    students = {
        "fresh weights": SyncModel(trained.config, seed=config.seed),
        "where it starts": load_model(folder / row.start.run_name(config.seed, START_RATE)),
        "where it ends": trained,
    }
    found: dict[str, Any] = {}
    for when, student in students.items():
        measure = jax.jit(functools.partial(measured, student, teacher))
        rows = [jax.device_get(measure(batch["frames"], batch["audio"])) for batch in chosen]
        found[when] = jax.tree.map(lambda *values: np.mean(values, axis=0).round(6).tolist(), *rows)
    result = {"measured": found, "batches": len(chosen), "commit_of_run": run["commit"]}
    result |= {"machine": machine(), "versions": versions("jax", "flax")}
    write_text(RESULTS / "clamp.json", to_json(result, indent=1) + "\n")
    for when in students:
        print(when)
        for name, value in found[when].items():
            print(f"  {name:<50} {value}")


def measured(student: SyncModel, teacher: SyncModel, frames: jax.Array, audio: jax.Array) -> dict[str, jax.Array]:
    """By layer: the terms of both directions, with the clamp and without, and what it does to the logits."""
    mel = training_mel(student.config, audio)
    theirs = score_grid(teacher, frames, mel).features.attention_logits
    ours = score_grid(student, frames, mel).features.attention_logits
    visible = jnp.isfinite(theirs["va"])
    clamped = jax.nn.softmax(jnp.maximum(theirs["va"], CLAMP_FLOOR))
    return {
        "V→A term, clamped": relation_kl(theirs["va"], ours["va"], clamp=True),
        "V→A term": relation_kl(theirs["va"], ours["va"]),
        "A→V term": relation_kl(theirs["av"], ours["av"]),
        "share of V→A logits that are masked": _by_layer(~visible),
        "attention that the clamped teacher gives to them": _by_layer(jnp.sum(clamped * ~visible, axis=-1)),
        "share of seen logits below the floor, teacher": _share(theirs["va"] < CLAMP_FLOOR, visible),
        "share of seen logits below the floor, student": _share(ours["va"] < CLAMP_FLOOR, visible),
    } | _gradients(student, theirs["va"], frames, mel)


def _of(run: dict[str, Any]) -> tuple[int, float]:
    return run["seed"], run["learning_rate"]


def _gradients(student: SyncModel, theirs: jax.Array, frames: jax.Array, mel: jax.Array) -> dict[str, jax.Array]:
    """Norms of the gradients of each layer's V→A term, by part of the network."""
    params, statistics = split_statistics(student)

    def term(params, clamp: bool):
        model = bind(student.config, params | statistics)
        ours = score_grid(model, frames, mel).features.attention_logits["va"]
        return relation_kl(theirs, ours, clamp=clamp)

    norms = {}
    for how, clamp in ((", clamped", True), ("", False)):
        gradients = jax.jacrev(functools.partial(term, clamp=clamp))(params)
        for part in ("va_encoder", "video_prenet", "audio_prenet"):
            arrays = [array for name, array in gradients.items() if name.startswith(part)]
            squares = [jnp.sum(jnp.square(array), axis=tuple(range(1, array.ndim))) for array in arrays]
            norms[f"gradient of the V→A term{how}: {part}"] = jnp.sqrt(sum(squares))
    return norms


def _by_layer(values: jax.Array) -> jax.Array:
    return jnp.mean(values.astype(jnp.float32), axis=tuple(range(1, values.ndim)))


def _share(chosen: jax.Array, among: jax.Array) -> jax.Array:
    axes = tuple(range(1, chosen.ndim))
    return jnp.sum(chosen & among, axis=axes) / jnp.sum(among, axis=axes)


if __name__ == "__main__":
    run_benchmark(main)
