"""Training input per CPU core: this project's pipeline against the loader of the published PyTorch code.

    pip install natsort && python -m benchmarks.data [--cache=FOLDER] [--repeats=9] [--batches=20]

Everything runs in one process on one core, in turn, and is counted in the processor time of that process, so that
other jobs of the machine disturb little. A sample is a window of five pictures with its sound, ready in a batch of
128: read, decoded, cut or resized, stacked. On neither side: mel, conversion to float, transfer to a device. The
clips (200 of 125 frames) are synthetic and in the page cache.

The peer is an equivalent, written here, of what the published loader does for a sample: list the clip's pictures
and sort them with natsort, look for five files, read them with OpenCV, resize them to 96×96; seek in the WAV file,
read the window and take its RMS; for a pair out of sync read a second window. Ours draws pairs by the same rules.
"""

import functools
import glob
import os
import time
from pathlib import Path

import cv2
import numpy as np
import soundfile
from absl import flags

from benchmarks.common import machine, print_results, run_benchmark, summarize, versions, warn_if_busy
from mtd_jax.config import augmentation, load_config
from mtd_jax.data import augment
from mtd_jax.data.augment import Augmentation
from mtd_jax.data.clip import FACE_SIZE, FPS, SAMPLES_PER_FRAME
from mtd_jax.data.pipeline import Loading, make_training_iterator
from mtd_jax.data.records import DATASET_NAME, VERSION
from mtd_jax.data.sampling import SILENCE_RMS, Pairing
from mtd_jax.data.sources import open_source
from mtd_jax.data.tfds_builder import build
from mtd_jax.errors import UserError
from mtd_jax.synthetic.corpus import synthesize

try:
    from natsort import natsorted
except ImportError:
    natsorted = None

CACHE = flags.DEFINE_string("cache", "~/.cache/mtd_jax/benchmark_data", "Folder for the clips, kept.")
REPEATS = flags.DEFINE_integer("repeats", 9, "Measurements of each way.", lower_bound=1)
BATCHES = flags.DEFINE_integer(
    "batches",
    20,
    "Batches per measurement: what the first few pay in new memory is no part of a training.",
    lower_bound=1,
)

CLIPS, SECONDS = 200, 5.0
BATCH_SIZE = 128
WINDOW = 5
GRID = Pairing("grid", windows=8, min_gap=5)


def make_data(cache: Path) -> dict[str, str]:
    """Root of the clips by format, made where they are missing."""
    roots = {"lrs2": cache / "files", "faces": cache / "faces", "halves": cache / "halves"}
    synthesize(roots["lrs2"], train_clips=CLIPS, val_clips=0, test_clips=0, seconds=SECONDS)
    sources = {"train": open_source("lrs2", str(roots["lrs2"]), "train", min_frames=0)}
    for name in ("faces", "halves"):
        if not (roots[name] / DATASET_NAME / VERSION).exists():
            build(sources, roots[name], lower_half=name == "halves")
    return {name: str(root) for name, root in roots.items()}


def published_loader(root: str):
    """Endless batches by the steps of the published loader."""
    cv2.setNumThreads(0)
    names = Path(root, "train.txt").read_text().split()
    rng = np.random.default_rng(0)
    while True:
        rows = [_published_sample(root, names, rng) for _ in range(BATCH_SIZE)]
        yield [np.stack(column) for column in zip(*rows, strict=True)]


def _published_sample(root: str, names: list[str], rng: np.random.Generator):
    folder = os.path.join(root, names[rng.integers(len(names))])
    pictures = natsorted(glob.glob(os.path.join(folder, "*.jpg")), key=str.lower)
    starts = len(pictures) - WINDOW + 1
    start = int(rng.integers(starts))
    files = [os.path.join(folder, f"{number}.jpg") for number in range(start, start + WINDOW)]
    if not all(map(os.path.isfile, files)):
        raise FileNotFoundError(folder)
    window = [cv2.resize(cv2.imread(file), (FACE_SIZE, FACE_SIZE)) for file in files]
    sound = _read_sound(folder, start)
    loud = np.sqrt(np.mean(np.square(sound))) > SILENCE_RMS
    in_sync = rng.random() < 0.5
    while not in_sync:
        other = int(rng.integers(starts))
        if other != start:
            sound = _read_sound(folder, other)
            if loud or np.sqrt(np.mean(np.square(sound))) > SILENCE_RMS:
                break
    return np.stack(window)[:, FACE_SIZE // 2 :], sound, np.float32(in_sync)


def _read_sound(folder: str, start: int) -> np.ndarray:
    with soundfile.SoundFile(os.path.join(folder, "audio.wav")) as audio:
        audio.seek(start * SAMPLES_PER_FRAME)
        return audio.read(WINDOW * SAMPLES_PER_FRAME, dtype="float32")


def our_pipeline(source, pairing: Pairing, augmentation: Augmentation = augment.OFF):
    """Endless batches of this project, drawn by one thread."""
    return make_training_iterator(
        source,
        pairing,
        seed=0,
        batch_size=BATCH_SIZE // pairing.windows_per_example,
        loading=Loading(threads=1, prefetch=1),
        augmentation=augmentation,
    )


def measure(ways: dict, repeats: int, count: int) -> dict[str, dict]:
    """Samples per second of processor time and of the clock, by way; the ways take turns.

    Args:
      ways: name → function that starts batches.
      repeats: measurements of each way.
      count: batches per measurement.
    """
    rates = {name: ([], []) for name in ways}
    for _ in range(repeats):
        for name, start in ways.items():
            batches = start()
            next(batches)  # opens files; the next batch is then only begun
            processor, clock = time.process_time(), time.perf_counter()
            for _ in range(count):
                next(batches)
            for rate, seconds in zip(
                rates[name], (time.process_time() - processor, time.perf_counter() - clock), strict=True
            ):
                rate.append(BATCH_SIZE * count / seconds)
            batches.close()
    return {
        name: {"per_processor_second": summarize(processor), "per_second": summarize(clock)}
        for name, (processor, clock) in rates.items()
    }


def main():
    if natsorted is None:
        raise UserError("the peer sorts with natsort: pip install natsort")
    warn_if_busy()
    roots = make_data(Path(CACHE.value).expanduser())
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    sources = {name: open_source("lrs2" if name == "lrs2" else "tfds", root, "train", min_frames=26)
               for name, root in roots.items()}  # fmt: skip
    labels = {"lrs2": "files", "faces": "ArrayRecord", "halves": "ArrayRecord, lower halves"}
    peer = "published loader's steps"
    ways = {peer: functools.partial(published_loader, roots["lrs2"])}
    for pairing, said in ((Pairing("reference"), "a window a draw"), (GRID, "8 windows a draw")):
        for name, source in sources.items():
            ways[f"{labels[name]}, {said}"] = functools.partial(our_pipeline, source, pairing)
    for name, alterations in (
        ("mildly", augment.MILD),
        ("as in configs/real.py", augmentation(load_config("real", "teacher"))),
    ):
        ways[f"{labels['lrs2']}, 8 windows a draw, altered {name}"] = functools.partial(
            our_pipeline, sources["lrs2"], GRID, alterations
        )
    results = {
        "benchmark": "data",
        "machine": machine(),
        "versions": versions("numpy", "grain", "array_record", "tensorflow-datasets", "simplejpeg",
                             "opencv-python-headless", "soundfile", "natsort"),
        "settings": {"clips": CLIPS, "frames": int(SECONDS * FPS), "batch_size": BATCH_SIZE,
                     "batches": BATCHES.value},
        "samples": measure(ways, REPEATS.value, BATCHES.value),
    }  # fmt: skip
    base = results["samples"][peer]["per_processor_second"]["median"]
    rows = []
    for name, rates in results["samples"].items():
        processor, clock = rates["per_processor_second"], rates["per_second"]
        spread = f"{processor['low']:,.0f}–{processor['high']:,.0f}"
        ratio = f"{processor['median'] / base:.1f}×"
        rows.append([name, f"{processor['median']:,.0f}", spread, ratio, f"{clock['median']:,.0f}"])
    columns = ["samples / s of one core", "quartiles", "against the peer", "by the clock"]
    print_results("Training input, samples of 5 pictures and their sound", columns, rows, results)
    return 0


if __name__ == "__main__":
    run_benchmark(main)
