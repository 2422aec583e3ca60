"""The distillation step beside PyTorch, in turns in one process: teacher forward, student forward, backward, Adam.

    pip install "jax[cuda12]" torch && python -m benchmarks.train_step     # published sizes, 128 pairs
    # To see it run, on any machine:
    python -m benchmarks.train_step --tiny --repeats=2 --steps=2 --rows=ours_float32,ours_bfloat16,torch_published

Every way has the same weights and batches, which lie on the device beforehand as uint8 and int16. This package
makes its mel spectrograms from the sound inside the step; PyTorch is given them. The step is that of
configs/distill.py: MTD loss with 12 layers, Adam, dropout as published.

  ours_float32        full float32 precision: no TF32, unlike torch_published, so it is no counterpart of that
  ours_bfloat16       `--config.model.compute_dtype=bfloat16`
  torch_published     eager, float32 with TF32
  torch_autocast      eager, bfloat16 autocast, channels_last_3d, fused Adam
  torch_compile       torch.compile, bfloat16 autocast, fused Adam
  torch_compile_last  the same in channels_last_3d
  torch_autotune      the same with mode="max-autotune": kernels by trial, CUDA graphs

First, with dropout off, the losses of three steps of every way are compared with ours_float32's (--nocheck skips
that and its compilation); the run fails if they differ by more than TOLERANCE. A way that PyTorch refuses is
reported with its reason. No way waits for the device inside a measurement of --steps steps. The share of the
matrix rate is that of 60 GFLOP a sample in a bfloat16 product's rate, measured in the same turns.

Beside other work on the cores PyTorch's threads wait for each other, and its step takes many times as long (tiny,
2 cores under a load of 6 to 8: 593 ms by the clock, 50 ms of processor time with one thread on one core); eager
steps on a GPU wait for the processor. Such a run says so; its ratios mean nothing.
"""

import dataclasses
import importlib.util
import os
import time

# PyTorch needs the GPU's memory too.
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")

import jax  # noqa: E402
import numpy as np  # noqa: E402
from absl import flags  # noqa: E402

from benchmarks.common import machine, print_results, run_benchmark, summarize, to_json, versions, warn_if_busy  # noqa: E402
from benchmarks.step_ways import (  # noqa: E402
    GFLOP_PER_SAMPLE,
    NO_DROPOUT,
    PRODUCTS,
    Sizes,
    Way,
    largest_difference,
    matrix_product,
    our_way,
    torch_way,
)
from mtd_jax import compilation  # noqa: E402
from mtd_jax.errors import UserError  # noqa: E402
from mtd_jax.storage import check_writable, write_text  # noqa: E402

WARM_UP_STEPS = 4  # compilation, algorithms by trial, recording of CUDA graphs
CHECKED_STEPS = 3
# Of `largest_difference` to ours_float32. Chosen at the tiny size, where bfloat16 differed by 0.02.
TOLERANCE = {"float32": 1e-3, "tf32": 0.02, "bfloat16": 0.1}
OURS = {"ours_float32": "float32", "ours_bfloat16": "bfloat16"}
PEERS = {  # name → fields of torch_step.Form
    "torch_published": {},
    "torch_autocast": {"bfloat16": True, "channels_last": True, "fused": True},
    "torch_compile": {"bfloat16": True, "compile_mode": "default", "fused": True},
    "torch_compile_last": {"bfloat16": True, "channels_last": True, "compile_mode": "default", "fused": True},
    "torch_autotune": {"bfloat16": True, "channels_last": True, "compile_mode": "max-autotune", "fused": True},
}

BATCH_SIZE = flags.DEFINE_integer("batch_size", 0, "Pairs a step. [128, with --tiny 4]")
flags.register_validator(
    "batch_size",
    lambda pairs: pairs == 0 or pairs >= 2,
    "2 or more (statistics of one pair differ by more than the check allows), or 0: by default",
)
STEPS = flags.DEFINE_integer("steps", 20, "Steps per measurement.", lower_bound=1)
REPEATS = flags.DEFINE_integer("repeats", 7, "Measurements of each way.", lower_bound=1)
ROWS = flags.DEFINE_list("rows", [*OURS, *PEERS], "Which ways.")
CHECK = flags.DEFINE_boolean("check", True, "First compare the losses of three steps.")
TINY = flags.DEFINE_boolean("tiny", False, "Networks of a layer per encoder.")
JSON = flags.DEFINE_string("json", None, "File to write the figures to.")
TRACE = flags.DEFINE_string("trace", None, "Folder for a profile of five steps of this package's last way.")
flags.register_validator("rows", lambda rows: rows and set(rows) <= {*OURS, *PEERS}, f"of {[*OURS, *PEERS]}")


def main():
    if JSON.value:
        check_writable(JSON.value)
    if TRACE.value and not set(ROWS.value) & set(OURS):
        raise UserError(f"--trace is of this package's own rows; name one of {', '.join(OURS)} with --rows")
    if TRACE.value:
        if not jax.config.jax_platforms and importlib.util.find_spec("libtpu"):
            raise UserError(
                "--trace: JAX's profiler may crash beside libtpu; set JAX_PLATFORMS to cuda,cpu or cpu"
            )
        os.makedirs(TRACE.value, exist_ok=True)
    compilation.prepare()
    jax.devices()  # JAX before PyTorch: each brings its own cuDNN, and JAX is the one that asks for a newer one
    sizes = Sizes(BATCH_SIZE.value or (4 if TINY.value else 128), TINY.value)
    torch = ["torch"] if importlib.util.find_spec("torch") else []
    results = {"benchmark": "train_step", "machine": machine(), "versions": versions("jax", "jaxlib", *torch),
               "settings": {"batch_size": sizes.batch_size, "steps": STEPS.value, "tiny": TINY.value}}  # fmt: skip
    say(f"backend {jax.default_backend()}, device {jax.devices()[0].device_kind}")
    if jax.default_backend() != "gpu":
        say("no GPU: this shows that the benchmark runs, and measures nothing the project claims")
    warn_if_busy()
    refused: dict[str, str] = {}
    if CHECK.value:
        results["check"] = check(ROWS.value, sizes, refused)
    matrix_size = 256 if TINY.value else 8192
    ways = {"matrix product": matrix_product(matrix_size)}
    for name in ROWS.value:
        say(f"{name}: compiling")
        way = None if name in refused else start(name, sizes, refused, WARM_UP_STEPS)
        if way is not None:
            ways[name] = way[0]
    if len(ways) == 1:
        raise UserError(f"none of the rows ran: {'; '.join(f'{name}: {why}' for name, why in refused.items())}")
    seconds = measure(ways, REPEATS.value, STEPS.value)
    rate = 2e-12 * PRODUCTS * matrix_size**3 / np.array(seconds.pop("matrix product"))
    results["matrix_tflops"] = summarize(rate)
    results["seconds_per_step"] = {name: summarize(samples) for name, samples in seconds.items()}
    results["compiled"] = {name: way.figures for name, way in ways.items() if way.figures}
    results["refused"] = refused
    if JSON.value:
        write_text(JSON.value, to_json(results, indent=1) + "\n")
    columns = ["ms a step", "quartiles", "samples / s", "of the matrix rate", "speed, torch_published = 1"]
    title = f"Distillation step, {sizes.batch_size} pairs{', tiny networks' if TINY.value else ''}"
    print_results(title, columns, table_rows(results), results)
    if TRACE.value:
        trace(ways)
    wrong = [name for name, found in results.get("check", {}).items() if not found["passed"]]
    if wrong:
        print(f"failed: losses differ from ours_float32's by more than the tolerance: {', '.join(wrong)}")
    return 1 if wrong else 0


def table_rows(results: dict) -> list[list[str]]:
    """A row per way; the matrix rate means something at the published sizes only."""
    seconds, rate = results["seconds_per_step"], results["matrix_tflops"]["median"]
    pairs, tiny = results["settings"]["batch_size"], results["settings"]["tiny"]
    rows = []
    for name, found in seconds.items():
        median = found["median"]
        share = "" if tiny else f"{pairs * GFLOP_PER_SAMPLE / 1e3 / median / rate:.1%}"
        peer = seconds.get("torch_published")
        rows.append(
            [
                name,
                f"{1e3 * median:,.1f}",
                f"{1e3 * found['low']:,.1f}–{1e3 * found['high']:,.1f}",
                f"{pairs / median:,.0f}",
                share,
                f"{peer['median'] / median:.2f}" if peer else "",
            ]
        )
    rows.append(["bfloat16 product", "", "", "", f"{rate:,.1f} TFLOP/s", ""])
    return rows + [[name, "refused", reason, "", "", ""] for name, reason in results["refused"].items()]


def start(name: str, sizes: Sizes, refused: dict, steps: int) -> tuple[Way, list[dict]] | None:
    """A way and the losses of its first steps; None, with the reason in `refused`, if PyTorch cannot do it so."""
    try:
        way = our_way(sizes, OURS[name]) if name in OURS else torch_way(sizes, PEERS[name])
        return way, [{part: float(loss) for part, loss in way.step(i).items()} for i in range(steps)]
    except Exception as error:  # compilers and kernels that lack something raise errors of every kind
        if name in OURS:
            raise
        refused[name] = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        say(f"{name}: refused, {refused[name]}")
        return None


def check(names: list[str], sizes: Sizes, refused: dict) -> dict:
    """{way: losses without dropout, largest difference to ours_float32's, whether that passes}."""
    sizes = dataclasses.replace(sizes, changes=NO_DROPOUT)
    say("ours_float32: computing the reference")
    _, reference = start("ours_float32", sizes, refused, CHECKED_STEPS)
    finite = all(np.isfinite(list(step.values())).all() for step in reference)
    found = {"ours_float32": {"losses": reference, "passed": finite}}
    for name in names:
        if name == "ours_float32" or (started := start(name, sizes, refused, CHECKED_STEPS)) is None:
            continue
        different, tolerance = largest_difference(started[1], reference), TOLERANCE[precision_of(name)]
        found[name] = {"losses": started[1], "difference": different, "tolerance": tolerance}
        found[name]["passed"] = different <= tolerance
        say(f"{name}: differs by {different:.1e}, tolerance {tolerance:g}")
    return found


def precision_of(name: str) -> str:
    if name in OURS:
        return OURS[name]
    if PEERS[name].get("bfloat16"):
        return "bfloat16"
    return "tf32" if jax.default_backend() == "gpu" else "float32"


def measure(ways: dict[str, Way], repeats: int, steps: int) -> dict[str, list[float]]:
    """Seconds per step, by way; the ways take turns, and wait for the device once per turn."""
    seconds = {name: [] for name in ways}
    for _ in range(repeats):
        for name, way in ways.items():
            way.wait()
            started = time.perf_counter()
            for number in range(steps):
                way.step(number)
            way.wait()
            seconds[name].append((time.perf_counter() - started) / steps)
    return seconds


def trace(ways: dict[str, Way]):
    """A profile of five steps of our last way, for TensorBoard or Perfetto."""
    name = [name for name in ways if name in OURS][-1]
    with jax.profiler.trace(TRACE.value):
        for number in range(5):
            ways[name].step(number)
        ways[name].wait()
    say(f"trace of {name}: {TRACE.value}")


def say(line: str):
    print(line, flush=True)


if __name__ == "__main__":
    run_benchmark(main)
