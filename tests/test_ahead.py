"""The steps compile for a TPU slice, where only kernels, gradients and statistics travel between the chips, and
for GPUs, whose kernels are counted."""

import importlib.util
import json
import pathlib
import subprocess
import sys

import pytest

from benchmarks.hlo import Kernel, collectives, gpu_kernels

ROOT = pathlib.Path(__file__).parent.parent


def test_collectives_are_counted_with_their_bytes():
    hlo = """
  %all-reduce.5 = (f32[5,16]{1,0:T(8,128)S(1)}, bf16[3]{0}) all-reduce(%a, %b), channel_id=1
  ROOT %g = f32[8,4]{1,0} all-gather(%x), dimensions={0}
  %s = (bf16[4,4]{1,0}, bf16[8,4]{1,0}) all-gather-start(%y), dimensions={0}
  %d = bf16[8,4]{1,0} all-gather-done(%s)
  %f = f32[8]{0} fusion(%all-reduce.5), kind=kLoop
"""
    assert collectives(hlo) == {
        "all-reduce": {"count": 1, "bytes": 4 * 80 + 2 * 3, "largest": 320},
        "all-gather": {"count": 2, "bytes": 128 + 64, "largest": 128},
    }


GPU_HLO = """
%fused (p: f32[4]) -> f32[4] {
  ROOT %inner = f32[4]{0} add(%p, %p)
}

ENTRY %main.1 (x: bf16[8,24,48,64], w: bf16[64,3,3,32], g: bf16[8,24,48,32]) -> (f32[16]) {
  %x = bf16[8,24,48,64]{3,2,1,0} parameter(0)
  %w = bf16[32,3,3,64]{3,2,1,0} parameter(1)
  %bias = bf16[32]{0} constant({...})
  %conv.1 = (bf16[8,24,48,32]{3,2,1,0}, u8[0]{0}) custom-call(%x, %w, /*index=2*/%bias), window={size=3x3 pad=1_1x1_1}, dim_labels=b01f_o01i->b01f, custom_call_target="__cudnn$convBiasActivationForward"
  %y = bf16[8,24,48,32]{3,2,1,0} get-tuple-element(%conv.1), index=0
  %conv.2 = (bf16[32,3,3,64]{3,2,1,0}, u8[0]{0}) custom-call(%x, %y), window={size=3x3 pad=1_1x1_1}, dim_labels=b01f_o01i->b01f, custom_call_target="__cudnn$convBackwardFilter"
  %conv.3 = (bf16[8,24,48,64]{3,2,1,0}, u8[0]{0}) custom-call(%y, %w), window={size=3x3 pad=1_1x1_1}, dim_labels=b01f_o01i->b01f, custom_call_target="__cudnn$convBackwardInput"
  %a = f32[16,200]{1,0} parameter(2)
  %custom-call.4 = (f32[16,16]{1,0}, s8[4194304]{0}) custom-call(%a, %a), custom_call_target="__cublas$lt$matmul", backend_config={"gemm_backend_config":{"dot_dimension_numbers":{"lhs_contracting_dimensions":["1"],"rhs_contracting_dimensions":["1"]}}}
  %products = f32[16,16]{1,0} get-tuple-element(%custom-call.4), index=0
  %input_transpose_fusion = f32[16,16]{0,1} fusion(%products), kind=kInput, calls=%fused
  %all-reduce.5 = f32[16,16]{1,0} all-reduce(%input_transpose_fusion), to_apply=%add
  %input_reduce_fusion.6 = (f32[16]{0}, f32[]) fusion(%all-reduce.5, %a), kind=kInput, calls=%fused
  %sums = f32[16]{0} get-tuple-element(%input_reduce_fusion.6), index=0
  %more = f32[16]{0} parameter(3)
  ROOT %loop_add_fusion.7 = f32[16]{0} fusion(%sums, %more), kind=kLoop, calls=%fused
}
"""  # noqa: E501


def test_kernels_of_a_gpu_are_counted_with_their_operations_and_bytes():
    images, narrow, kernel = 8 * 24 * 48 * 64 * 2, 8 * 24 * 48 * 32 * 2, 32 * 9 * 64 * 2
    convolution = 2 * (8 * 24 * 48 * 32) * (9 * 64)  # every output pixel and channel sees 3 × 3 × 64 entries
    assert list(gpu_kernels(GPU_HLO)) == [
        Kernel("convolution", "bf16", convolution, images + kernel + 64 + narrow),
        Kernel("convolution", "bf16", convolution, images + narrow + kernel),
        Kernel("convolution", "bf16", convolution, narrow + kernel + images),
        Kernel("matrix product", "f32", 2 * 16 * 16 * 200, 4 * (16 * 200 + 16 * 16)),
        Kernel("transposition", "f32", 0, 4 * (256 + 256)),
        Kernel("reduction", "f32", 0, 4 * (256 + 3200 + 16 + 1)),
        Kernel("element-wise and other", "f32", 0, 4 * (16 + 16 + 16)),
    ]


def test_a_loop_is_not_counted_as_one_kernel():
    loop = GPU_HLO.replace("fusion(%sums, %more), kind=kLoop, calls", "while(%sums), condition=%less, body")
    with pytest.raises(ValueError, match=r"while loop_add_fusion\.7"):
        list(gpu_kernels(loop))


@pytest.mark.slow
@pytest.mark.skipif(
    not any(map(importlib.util.find_spec, ("jax_cuda12_plugin", "jax_cuda13_plugin"))),
    reason="JAX's compiler for CUDA is not installed",
)
def test_distillation_compiles_for_eight_gpus(tmp_path):
    figures = tmp_path / "figures.json"
    command = ["--tiny", "--gpus=8", "--clips_per_gpu=1", f"--json={figures}"]
    result = subprocess.run(
        [sys.executable, "-m", "benchmarks.gpu_compile", *command], cwd=ROOT, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stdout + result.stderr[-2000:]
    found = json.loads(figures.read_text())
    assert found["kernels"]["convolution"]["count"] > 31  # of the student's prenets alone
    assert set(found["collectives"]) == {"all-reduce"}


@pytest.mark.slow
def test_distillation_on_eight_chips_sends_what_the_design_says(tmp_path):
    """The compiler runs in a process of its own, whose signal handlers it takes."""
    figures = tmp_path / "figures.json"
    command = ["--tiny", "--slices=v5e:2x4", "--fsdp=2", "--clips_per_chip=1", f"--json={figures}"]
    result = subprocess.run(
        [sys.executable, "-m", "benchmarks.tpu_compile", *command], cwd=ROOT, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stdout + result.stderr[-2000:]
    train, validate = json.loads(figures.read_text())
    assert train["mesh"] == validate["mesh"] == {"data": 4, "fsdp": 2}
    # A gradient of every trained array is added up, and kernels are gathered: neither can be missing.
    assert train["collectives"]["all-reduce"]["bytes"] > train["trained_bytes"] / 2
    assert train["collectives"]["all-gather"]["bytes"] > train["trained_bytes"] / 2
    assert validate["collectives"]["all-reduce"]["bytes"] < 1000
