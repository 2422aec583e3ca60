"""The steps compile for a TPU slice, where only kernels, gradients and statistics travel between the chips."""

import json
import pathlib
import subprocess
import sys

import pytest

from benchmarks.ahead import collectives

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
