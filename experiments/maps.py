"""Draws what teacher, MTD student and plain student look at, and how they score an easy and a hard clip.

python -m experiments.maps --workdir=EXPERIMENTS

Takes the models of seed 0. Easy and hard: the teacher is right in most, and in fewest, of the windows.
"""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from benchmarks.common import run_benchmark
from experiments.report import ROOT
from experiments.runs import RESULTS, load
from experiments.tables import TABLES, TEACHER
from mtd_jax import compilation
from mtd_jax.checkpoint import load_model
from mtd_jax.data.clip import SAMPLES_PER_FRAME
from mtd_jax.data.sources import open_source
from mtd_jax.errors import UserError
from mtd_jax.network.mel import log_mel
from mtd_jax.network.model import SyncModel
from mtd_jax.scoring import score_clip

WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the corpus and the trainings.", required=True)
FIGURE = ROOT / "docs/experiments_maps.png"
_ROWS = (TEACHER, "MTD", "none")
_ENCODERS = {"fusion": "fusion", "av": "A→V", "va": "V→A"}


def main():
    compilation.prepare()
    runs, folder = load(RESULTS), Path(WORKDIR.value)
    if missing := set(_ROWS) - runs.keys():
        raise UserError(f"no runs of {', '.join(missing)} in experiments/results: run the table losses first")
    rows = {row.name: row for name in (TEACHER, "losses") for row in TABLES[name].rows}
    chosen = {name: (rows[name], runs[name][0]) for name in _ROWS}
    models = {
        name: load_model(folder / row.run_name(run["seed"], run["learning_rate"]))
        for name, (row, run) in chosen.items()
    }
    source = open_source("lrs2", str(folder / "corpus"), "test", min_frames=6)
    ranked = sorted(runs[TEACHER][0]["test"]["clips"].items(), key=lambda item: item[1])
    clips = {}
    for what, (name, share) in (("easy", ranked[-1]), ("hard", ranked[0])):
        clip = next(clip for clip in (source[i] for i in range(len(source))) if clip.name == name)
        clips[f"{what}: the teacher has {share:.0%} right"] = (clip.frames[:], clip.waveform[:])
    draw(models, clips)
    print(FIGURE)


def draw(models: dict[str, SyncModel], clips: dict[str, tuple[np.ndarray, np.ndarray]]) -> None:
    """One row per model: attention of the last layers in the middle of the first clip, scores of all clips."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    columns = len(_ENCODERS) + len(clips)
    figure, axes = plt.subplots(
        len(models), columns, figsize=(3.1 * columns, 3.1 * len(models)), layout="constrained"
    )
    for line, (name, model) in zip(axes, models.items(), strict=True):
        for place, (encoder, attention) in zip(
            line, attentions(model, next(iter(clips.values()))).items(), strict=False
        ):
            place.imshow(attention, cmap="magma", vmin=0, aspect="auto")
            place.set(title=f"{name}: {_ENCODERS[encoder]}", xlabel="key", ylabel="query")
        for place, (what, clip) in zip(line[len(_ENCODERS) :], clips.items(), strict=True):
            scores = score_clip(model, *clip, reference_edges=False)
            shown = np.where(scores > -999, scores, np.nan)
            reach = scores.shape[1] / 2
            place.imshow(shown, cmap="viridis", aspect="auto", extent=(-reach, reach, len(scores) / 25, 0))
            place.set(title=what, xlabel="audio shifted by frames", ylabel="seconds")
    figure.savefig(FIGURE, dpi=80)


def attentions(model: SyncModel, clip: tuple[np.ndarray, np.ndarray]) -> dict[str, np.ndarray]:
    """By encoder, (query, key): attention of the last layer, mean of its heads, for a pair in the middle."""
    (frames, waveform), window = clip, model.config.window_frames
    start = len(frames) // 2
    mel = log_mel(waveform[SAMPLES_PER_FRAME * start : SAMPLES_PER_FRAME * (start + window)])[:-1]
    _, features = model(jnp.asarray(frames[start : start + window])[None], mel[None], return_features=True)
    return {
        encoder: np.asarray(jax.nn.softmax(features.attention_logits[encoder][-1, 0]).mean(axis=0))
        for encoder in _ENCODERS
    }


if __name__ == "__main__":
    run_benchmark(main)
