"""Compiles the distillation step for H200 GPUs that need not be there, and adds up what its kernels have to do.

    pip install jax-cuda12-plugin==VERSION jax-cuda12-pjrt==VERSION     # or cuda13; VERSION is that of jax
    python -m benchmarks.gpu_compile --clips_per_gpu=128 --compute_dtype=bfloat16

The time is that of a kernel's operations at the data sheet's rate, or of its operands and results at the rate of
memory, whichever is longer: what a step would take if every kernel were perfect, though what stays in a cache from
one kernel to the next is counted as moved. The compiler cannot try kernels out without a GPU, so matrix products
go to cuBLAS; on a GPU it may pick others. Collectives are counted, but not in the time. A step of the full size
takes minutes to compile. Where there is no driver, JAX's plugin says so several times.
"""

import json
import os
import time
from importlib.util import find_spec

os.environ["JAX_PLATFORMS"] = "cpu"  # this process's own arrays; the GPUs are described, not opened

from absl import flags  # noqa: E402
from jax.experimental import topologies  # noqa: E402
from rich.console import Console  # noqa: E402
from rich.table import Table  # noqa: E402

from benchmarks.ahead import lower, memory_of, published_run  # noqa: E402
from benchmarks.common import run_benchmark, versions  # noqa: E402
from benchmarks.hlo import Kernel, collectives, gpu_kernels  # noqa: E402
from mtd_jax.errors import UserError, one_line  # noqa: E402
from mtd_jax.storage import check_writable, write_text  # noqa: E402

GPUS = flags.DEFINE_integer("gpus", 1, "GPUs of one host, all along the data axis.", lower_bound=1)
CLIPS_PER_GPU = flags.DEFINE_integer("clips_per_gpu", 128, "Pairs per GPU and step.", lower_bound=1)
STEP = flags.DEFINE_enum("step", "train", ["train", "validate"], "What to compile.")
COMPUTE_DTYPE = flags.DEFINE_enum("compute_dtype", "bfloat16", ["bfloat16", "float32"], "Of both networks.")
TINY = flags.DEFINE_boolean("tiny", False, "Models of a layer per encoder, to try things on.")
JSON = flags.DEFINE_string("json", None, "File to write the figures to.")

# NVIDIA's data sheet: dense operations and bytes a second.
RATES = {"bf16": 989e12, "f32": 67e12}
MEMORY_RATE = 4.8e12
KERNEL_SECONDS = 2e-6  # assumed for the shortest kernel, its start included; not measured

# What the compiler asks of a device: CUDA's properties of an H200 (SXM, 141 GB).
H200 = """
gpu_device_info {
  cuda_compute_capability { major: 9 }
  core_count: 132
  fpus_per_core: 128
  clock_rate_ghz: 1.98
  device_memory_size: 150754820096
  memory_bandwidth: 4800000000000
  l2_cache_size: 62914560
  threads_per_warp: 32
  threads_per_block_limit: 1024
  threads_per_core_limit: 2048
  registers_per_block_limit: 65536
  registers_per_core_limit: 65536
  shared_memory_per_block: 49152
  shared_memory_per_block_optin: 232448
  shared_memory_per_core: 233472
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
}
platform_name: "CUDA"
device_description_str: "NVIDIA H200"
runtime_version { major: 12 minor: 9 }
dnn_version_info { major: 9 minor: 10 }
"""


def main():
    if JSON.value:
        check_writable(JSON.value)
    run = published_run(describe(GPUS.value), 1, COMPUTE_DTYPE.value, tiny=TINY.value)
    started = time.perf_counter()
    lowered = lower(run, CLIPS_PER_GPU.value * GPUS.value, STEP.value)
    # Triton's products are tried out on the GPU before one is taken; without one the compiler can end in an error.
    compiled = lowered.compile(compiler_options={"xla_gpu_enable_triton_gemm": False})
    hlo = compiled.as_text()
    kernels = list(gpu_kernels(hlo))
    kinds = {kind: add_up([k for k in kernels if k.kind == kind]) for kind in {k.kind for k in kernels}}
    figures = {
        "benchmark": "gpu_compile",
        "versions": versions("jax", "jaxlib", *filter(find_spec, ("jax_cuda12_plugin", "jax_cuda13_plugin"))),
        "settings": {flag.name: flag.value for flag in (GPUS, CLIPS_PER_GPU, STEP, COMPUTE_DTYPE, TINY)},
        "memory_bytes": memory_of(compiled),
        "kernels": dict(sorted(kinds.items(), key=lambda entry: -entry[1]["perfect_seconds"])),
        "all": add_up(kernels),
        "collectives": collectives(hlo),
        "compile_seconds": time.perf_counter() - started,
    }
    print_report(figures)
    if JSON.value:
        write_text(JSON.value, json.dumps(figures, indent=1) + "\n")
    return 0


def describe(gpus: int) -> list:
    """H200s of one host. Raises `UserError` without JAX's compiler for CUDA."""
    try:
        return topologies.get_topology_desc("h200", "cuda", target_config=H200, topology=f"1x1x{gpus}").devices
    except (RuntimeError, NotImplementedError) as error:
        problem = f"JAX's compiler for CUDA is not there ({one_line(error)})"
        raise UserError(f"{problem}; the first lines of the script say what to install") from error


def perfect_seconds(kernel: Kernel) -> float:
    """Of a kernel that reaches the data sheet's rates."""
    return max(kernel.operations / RATES.get(kernel.dtype, RATES["f32"]), kernel.bytes / MEMORY_RATE)


def add_up(kernels: list[Kernel]) -> dict:
    """Count and sums; "short" ones would take less than `KERNEL_SECONDS`, and count as that in "…with_starts"."""
    seconds = [perfect_seconds(kernel) for kernel in kernels]
    return {
        "count": len(kernels),
        "short": sum(each < KERNEL_SECONDS for each in seconds),
        "operations": sum(kernel.operations for kernel in kernels),
        "bytes": sum(kernel.bytes for kernel in kernels),
        "perfect_seconds": sum(seconds),
        "seconds_with_starts": sum(max(each, KERNEL_SECONDS) for each in seconds),
    }


def print_report(figures: dict):
    settings = figures["settings"]
    what = f"{settings['step']} step, {settings['compute_dtype']}, {settings['clips_per_gpu']} pairs a GPU"
    table = Table("", "kernels", f"under {KERNEL_SECONDS * 1e6:.0f} µs", "TFLOP", "GB", "ms", title=what)
    for kind, sums in (figures["kernels"] | {"all": figures["all"]}).items():
        table.add_row(
            kind,
            f"{sums['count']:,}",
            f"{sums['short']:,}",
            f"{sums['operations'] / 1e12:.3f}",
            f"{sums['bytes'] / 1e9:.2f}",
            f"{sums['perfect_seconds'] * 1e3:.2f}",
        )
    Console(width=100).print(table)
    for name, size in figures["memory_bytes"].items():
        print(f"memory: {name} {size / 1e6:,.0f} MB")
    for kind, found in figures["collectives"].items():
        print(f"{kind}: {found['count']}, {found['bytes'] / 1e6:,.2f} MB in all")
    with_starts = figures["all"]["seconds_with_starts"]
    print(f"if no kernel took less than {KERNEL_SECONDS * 1e6:.0f} µs: {with_starts * 1e3:.2f} ms")
    print(f"compiled in {figures['compile_seconds']:.0f} s")


if __name__ == "__main__":
    run_benchmark(main)
