"""Compiles the distillation step and the validation step for TPU slices that need not be there.

    pip install libtpu
    python -m benchmarks.tpu_compile --slices=v5e:2x4,v5e:16x16 --fsdp=1 --clips_per_chip=8

Prints per chip what the compiler reports: memory, floating-point operations, bytes moved in memory, and every kind
of collective operation with its count and bytes; fails if one is not as designed. A training step of the full size
takes minutes to compile.
"""

import json
import os
import time

os.environ["JAX_PLATFORMS"] = "cpu"  # this process's own arrays; the TPUs are described, not opened
os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")  # nor looked for
os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")  # describing takes no chip from another process

import jax  # noqa: E402
from absl import flags  # noqa: E402
from jax.experimental import topologies  # noqa: E402
from rich.console import Console  # noqa: E402
from rich.table import Table  # noqa: E402

from benchmarks.ahead import abstract_teacher, collectives, lower, memory_of, published_run  # noqa: E402
from benchmarks.common import run_benchmark  # noqa: E402
from mtd_jax.errors import UserError, one_line  # noqa: E402
from mtd_jax.network.model import abstract_model  # noqa: E402
from mtd_jax.network.weights import split_statistics  # noqa: E402
from mtd_jax.storage import check_writable, write_text  # noqa: E402
from mtd_jax.training.step import Run  # noqa: E402

HBM_GIB = {"v4": 32, "v5e": 16, "v5p": 95, "v6e": 32}  # memory of a chip

SLICES = flags.DEFINE_list("slices", ["v5e:2x4"], "TPU slices, as libtpu names them.")
flags.register_validator(
    "slices",
    lambda names: names and {name.split(":")[0] for name in names} <= set(HBM_GIB),
    f"of {', '.join(HBM_GIB)}",
)
FSDP = flags.DEFINE_list(
    "fsdp", ["1"], "Chips along the fsdp axis, the others being along data; several: in turn."
)
flags.register_validator("fsdp", lambda counts: counts and all(map(str.isdecimal, counts)), "whole numbers")
CLIPS_PER_CHIP = flags.DEFINE_integer("clips_per_chip", 8, "Pairs per chip and step.", lower_bound=1)
STEPS = flags.DEFINE_list("steps", ["train", "validate"], "What to compile.")
flags.register_validator("steps", lambda names: names and set(names) <= {"train", "validate"}, "train, validate")
TINY = flags.DEFINE_boolean("tiny", False, "Models of a layer per encoder, to try things on.")
JSON = flags.DEFINE_string("json", None, "File to write the figures to.")


def main():
    if JSON.value:
        check_writable(JSON.value)
    # Less time for the compiler's search; memory and collectives come out alike.
    jax.config.update("jax_exec_time_optimization_effort", -1.0)
    described = {slice_name: describe(slice_name) for slice_name in SLICES.value}
    runs = [
        (slice_name, devices, published_run(devices, int(fsdp), "bfloat16", tiny=TINY.value))
        for slice_name, devices in described.items()
        for fsdp in FSDP.value
    ]
    reports = []
    for slice_name, devices, run in runs:
        for step in STEPS.value:
            reports.append({"slice": slice_name} | report(run, devices, step))
            print_report(reports[-1])
            if JSON.value:
                write_text(JSON.value, json.dumps(reports, indent=1) + "\n")
    found = [f"{r['slice']}, {r['mesh']}, {r['step']}: {line}" for r in reports for line in violations(r)]
    print("\n".join(found) or "collectives and memory are as the design says")
    return 1 if found else 0


def describe(slice_name: str) -> list:
    """The chips of a slice. Raises `UserError` without libtpu, or if libtpu does not know the slice."""
    try:
        return topologies.get_topology_desc(slice_name, "tpu").devices
    except RuntimeError as error:
        reason = one_line(error)
        raise UserError(f"--slices={slice_name}: {reason}; pip install libtpu, and name a slice of its") from error


def report(run: Run, devices, step: str) -> dict:
    """What the compiler says of one step."""
    rows = CLIPS_PER_CHIP.value * len(devices)
    started = time.perf_counter()
    compiled = lower(run, rows, step).compile()
    cost = compiled.cost_analysis()
    return {
        "chips": len(devices),
        "hosts": len({device.process_index for device in devices}),
        "mesh": dict(run.mesh.shape),
        "step": step,
        "rows": rows,
        "compile_seconds": time.perf_counter() - started,
        "memory_bytes": memory_of(compiled) | {"program": compiled.memory_analysis().generated_code_size_in_bytes},
        "flops": cost["flops"],
        "bytes_accessed": cost["bytes accessed"],
        "collectives": collectives(compiled.as_text()),
        "trained_bytes": bytes_of(split_statistics(abstract_model(run.model))[0]),
        "teacher_bytes": bytes_of(abstract_teacher(run)),
    }


def violations(figures: dict) -> list[str]:
    """What in a report is not as designed: kernels, gradients, BatchNorm and losses travel, never rows."""
    kinds, trained = figures["collectives"], figures["trained_bytes"]
    kernels = trained + figures["teacher_bytes"] if figures["step"] == "train" else trained
    # Kernels go both ways in up to four times their size: XLA prefers to send some with their taps unfolded
    # (`conv3d.py`), and gathers the student's for the backward pass again.
    allowed = {"all-reduce": 4 * trained if figures["step"] == "train" else 1000}
    if figures["mesh"]["fsdp"] > 1:
        allowed |= {"all-gather": 4 * kernels, "reduce-scatter": allowed["all-reduce"]}
    lines = [
        f"{kind}: {found['bytes']:,} bytes, expected at most {allowed.get(kind, 0):,}"
        for kind, found in kinds.items()
        if found["bytes"] > allowed.get(kind, 0)
    ]
    memory, there = sum(figures["memory_bytes"].values()), HBM_GIB[figures["slice"].split(":")[0]] * 2**30
    if memory > there:
        lines.append(f"memory: {memory:,} bytes, a chip has {there:,}")
    return lines


def bytes_of(arrays: dict) -> int:
    return sum(array.dtype.itemsize * array.size for array in arrays.values())


def print_report(figures: dict):
    mesh = " × ".join(f"{name} {size}" for name, size in figures["mesh"].items())
    print(f"{figures['slice']} ({mesh}), {figures['step']} step on {figures['rows']} pairs; per chip")
    table = Table(show_header=False)
    for name, size in figures["memory_bytes"].items():
        table.add_row(f"memory: {name}", f"{size / 1e6:,.0f} MB")
    table.add_row("floating-point operations", f"{figures['flops'] / 1e9:,.0f} G")
    table.add_row("bytes accessed", f"{figures['bytes_accessed'] / 1e9:,.1f} GB")
    for kind, found in figures["collectives"].items():
        table.add_row(kind, f"{found['count']}, {found['bytes'] / 1e6:,.2f} MB in all")
    table.add_row("compiled in", f"{figures['compile_seconds']:.0f} s")
    Console(width=100).print(table)


if __name__ == "__main__":
    run_benchmark(main)
