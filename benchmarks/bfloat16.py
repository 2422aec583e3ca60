"""What bfloat16 changes in the offsets of a list of clips, for trained models: float32 and bfloat16 side by side.

    python main.py                                  # trains the models, makes the clips
    python -m benchmarks.bfloat16 --checkpoints=workdir/student_mtd,workdir/teacher --root=workdir/corpus

Says for every context how many windows get another offset, how many of those are no longer within a frame of the
other one, and what becomes of the accuracy; and whether whole clips get another one. At the ends of a clip shifts
that leave it count as −1000, as published, which draws windows near them towards 0; whole clips do without.
"""

import numpy as np
from absl import flags
from rich.progress import track

from benchmarks.common import machine, print_results, run_benchmark, versions
from mtd_jax import compilation
from mtd_jax.checkpoint import load_model
from mtd_jax.data.clip import UnusableClip
from mtd_jax.data.sources import open_source
from mtd_jax.errors import UserError
from mtd_jax.network.model import SyncModel
from mtd_jax.network.weights import computing_in
from mtd_jax.scoring import MAX_SHIFT, OUT_OF_CLIP, Scorer, window_offsets

CHECKPOINTS = flags.DEFINE_list("checkpoints", None, "Trained models.", required=True)
flags.register_validator("checkpoints", bool, "at least one")
ROOT = flags.DEFINE_string("root", None, "Clips in the LRS2 layout.", required=True)
LIST = flags.DEFINE_string("list", "test", "Which of its lists.")

BEYOND_THE_WINDOW = (0, 4, 10)  # frames of context: 5, 9, 15 for windows of 5


def compare(model: SyncModel, source) -> dict:
    """Counts over all clips of a source, by context; "clip" is the mean of the windows that have each shift.

    Raises:
      UserError: none of the clips can be read.
    """
    window, scorers = (
        model.config.window_frames,
        [Scorer(computing_in(dtype, model)) for dtype in ("float32", "bfloat16")],
    )
    contexts = [window + more for more in BEYOND_THE_WINDOW]
    offsets = {name: ([], []) for name in (*contexts, "clip")}
    largest, left_out = 0.0, []
    for number in track(range(len(source)), "scoring"):
        clip = source[number]
        try:
            frames, waveform = clip.frames[: clip.num_frames], clip.waveform[: len(clip.waveform)]
        except UnusableClip as error:
            left_out.append(str(error))
            continue
        pair = [scorer(frames, waveform, reference_edges=False) for scorer in scorers]
        largest = max(largest, float(np.abs(pair[0] - pair[1]).max()))
        for scores, index in zip(pair, (0, 1), strict=True):
            for context in contexts:
                offsets[context][index].extend(window_offsets(scores, context, window))
            inside = np.where(scores == OUT_OF_CLIP, np.nan, scores)
            offsets["clip"][index].append(MAX_SHIFT - int(np.nanargmax(np.nanmean(inside, axis=0))))
    if len(left_out) == len(source):
        raise UserError(f"{source.list_path}: no clip can be read; the first: {left_out[0]}")
    found = {}
    for name, (full, half) in offsets.items():
        full, half = np.array(full), np.array(half)
        found[name if name == "clip" else f"context {name}"] = {
            "offsets": len(full),
            "different": int((full != half).sum()),
            "more than a frame apart": int((np.abs(full - half) > 1).sum()),
            "accuracy float32": float(np.mean(np.abs(full) <= 1)),
            "accuracy bfloat16": float(np.mean(np.abs(half) <= 1)),
        }
    return {"largest difference of a score": largest, "contexts": found, "left out": left_out}


def main():
    compilation.prepare()
    results = {
        "benchmark": "bfloat16",
        "machine": machine(),
        "versions": versions("jax", "jaxlib"),
        "settings": {"list": LIST.value},
    }
    rows = []
    for name, model in {name: load_model(name) for name in CHECKPOINTS.value}.items():
        source = open_source("lrs2", ROOT.value, LIST.value, min_frames=model.config.window_frames + 1)
        results[name] = compare(model, source)
        for line in results[name]["left out"]:
            print(f"left out: {line}")
        for context, found in results[name]["contexts"].items():
            accuracies = [f"{100 * found[f'accuracy {dtype}']:.2f}" for dtype in ("float32", "bfloat16")]
            counts = [f"{found[key]:,}" for key in ("offsets", "different", "more than a frame apart")]
            rows.append([f"{name}, {context}", *counts, *accuracies])
    columns = ["offsets", "different in bfloat16", "more than a frame apart", "accuracy", "in bfloat16"]
    print_results("Offsets in bfloat16 against float32", columns, rows, results)


if __name__ == "__main__":
    run_benchmark(main)
