"""An evaluation of LRS2's size, from files to accuracies: 1,243 clips of 36 frames, the student, random weights.

    python -m benchmarks.evaluate --compute_dtype=bfloat16            # on a GPU: pip install "jax[cuda12]"
    python -m benchmarks.evaluate --tiny --clips=12 --distinct=4      # to see it run, on any machine

Synthetic clips are made once, in --corpus, as JPEG and WAV files in the LRS2 layout. The list names each of them
several times, by links in the same folder, so files come from the system's cache after the first reading: this is
decoding, not the disk. Timed are the index of the list (`open_source`) and `evaluate`, as in `--mode=evaluate`;
compilation, on the first clip, is told beside that.

The published log has 31 minutes for LRS2's test list of 1,243 clips and 45,000 frames.
"""

import os
import time
from pathlib import Path

import jax
from absl import flags

from benchmarks.common import machine, print_results, run_benchmark, summarize, versions, warn_if_busy
from mtd_jax import compilation
from mtd_jax.data.clip import FPS
from mtd_jax.data.sources import open_source
from mtd_jax.evaluation.evaluate import evaluate
from mtd_jax.network.model import ModelConfig, SyncModel
from mtd_jax.synthetic.corpus import synthesize

CORPUS = flags.DEFINE_string("corpus", "~/.cache/mtd_jax/benchmark_evaluation", "Folder for the clips, kept.")
CLIPS = flags.DEFINE_integer("clips", 1243, "Clips of the list.", lower_bound=1)
DISTINCT = flags.DEFINE_integer("distinct", 64, "Different ones among them.", lower_bound=1)
REPEATS = flags.DEFINE_integer("repeats", 3, "Evaluations.", lower_bound=1)
COMPUTE_DTYPE = flags.DEFINE_enum("compute_dtype", "float32", ["float32", "bfloat16"], "Of the model.")
TINY = flags.DEFINE_boolean("tiny", False, "A model of 0.4 M parameters.")

FRAMES = 36  # 45,000 / 1,243
LIST = "benchmark"


def make_clips(corpus: Path, distinct: int, clips: int) -> str:
    """Root of a data set whose list "benchmark" names `clips` folders: links to `distinct` synthetic ones."""
    root = corpus / f"{distinct}_clips"
    synthesize(root, train_clips=0, val_clips=0, test_clips=distinct, seconds=FRAMES / FPS)
    names = [line.split()[0] for line in (root / "test.txt").read_text().splitlines()]
    listed = []
    for number in range(clips):
        link = root / "links" / f"{number:05d}"
        link.parent.mkdir(exist_ok=True)
        if not link.is_symlink():
            link.symlink_to(os.path.join("..", names[number % distinct]))
        listed.append(f"links/{link.name}\n")
    (root / f"{LIST}.txt").write_text("".join(listed))
    return str(root)


def measure(model, root: str, repeats: int) -> dict:
    """{"seconds", "index_seconds": each a list; "clips", "frames", "compile_seconds"}."""
    enough = model.config.window_frames + 1
    first = open_source("lrs2", root, "test", min_frames=enough)
    started = time.perf_counter()
    evaluate(model, _First(first), progress=False)
    measured = {"compile_seconds": time.perf_counter() - started, "seconds": [], "index_seconds": []}
    for _ in range(repeats):
        started = time.perf_counter()
        source = open_source("lrs2", root, LIST, min_frames=enough)
        indexed = time.perf_counter()
        results = evaluate(model, source, progress=False)
        measured["seconds"].append(time.perf_counter() - started)
        measured["index_seconds"].append(indexed - started)
    measured["clips"] = len(results["clips"])
    measured["frames"] = sum(clip["windows"] + model.config.window_frames for clip in results["clips"])
    return measured


class _First:
    """The first clip of a source: clips of any length compile the same programs."""

    def __init__(self, source):
        self.source, self.skipped = source, {}

    def __len__(self):
        return 1

    def __getitem__(self, index):
        return self.source[index]


def main():
    warn_if_busy()
    compilation.prepare()
    root = make_clips(Path(CORPUS.value).expanduser(), DISTINCT.value, CLIPS.value)
    named = ModelConfig.tiny if TINY.value else ModelConfig.mtd_vocalist
    config = named(compute_dtype=COMPUTE_DTYPE.value)
    measured = measure(SyncModel(config, seed=0), root, REPEATS.value)
    times = {name: summarize(measured[name]) for name in ("seconds", "index_seconds")}
    results = {
        "benchmark": "evaluate",
        "machine": machine(),
        "versions": versions("jax", "jaxlib", "numpy", "simplejpeg", "soundfile"),
        "settings": {"compute_dtype": COMPUTE_DTYPE.value, "tiny": TINY.value, "distinct": DISTINCT.value},
        **{name: measured[name] for name in ("clips", "frames", "compile_seconds")},
        **times,
    }
    seconds = times["seconds"]
    rows = [
        ["clips, frames", f"{measured['clips']:,}, {measured['frames']:,}", ""],
        ["seconds, from files to accuracies", *_told(seconds)],
        ["frames / s", f"{measured['frames'] / seconds['median']:,.0f}", ""],
        ["of it: index of the list, s", *_told(times["index_seconds"])],
        ["beside it: first clip with compilation, s", f"{measured['compile_seconds']:.1f}", ""],
    ]
    device = f"{jax.default_backend()}, {jax.devices()[0].device_kind}"
    print_results(f"Evaluation on {device}, {COMPUTE_DTYPE.value}", ["median", "quartiles"], rows, results)
    return 0


def _told(found: dict) -> list[str]:
    return [f"{found['median']:,.2f}", f"{found['low']:,.2f}–{found['high']:,.2f}"]


if __name__ == "__main__":
    run_benchmark(main)
