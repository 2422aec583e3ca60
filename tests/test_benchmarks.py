"""The benchmarks' PyTorch step is this package's; their constants are the networks'; the evaluation runs."""

import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import step_ways
from benchmarks.common import to_json
from benchmarks.step_ways import NO_DROPOUT, Sizes, largest_difference, our_way, torch_way
from benchmarks.trace import named_operations, self_milliseconds
from configs import distill
from converters.torch_model import STUDENT_WIDTHS, TEACHER_WIDTHS, TorchSyncModel
from mtd_jax.checkpoint import save_model
from mtd_jax.network.model import SyncModel

ROOT = pathlib.Path(__file__).parent.parent
SIZES = Sizes(batch_size=4, tiny=True, changes=NO_DROPOUT)


@pytest.fixture(scope="module")
def quick_learning():
    """A rate at which three updates change the losses, so that a wrong update would show."""
    config = distill.get_config()
    config.optimizer.schedule = "constant"
    config.optimizer.learning_rate = config.optimizer.loss_learning_rate = 1e-4
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(step_ways.distill, "get_config", lambda: config)
        yield


def three_steps(way) -> list[dict]:
    """Losses of three steps on the same batch."""
    return [{part: float(loss) for part, loss in way.step(0).items()} for _ in range(3)]


@pytest.fixture(scope="module")
def ours(quick_learning):
    return three_steps(our_way(SIZES, "float32"))


@pytest.mark.parametrize("form", [{}, {"channels_last": True, "fused": True}])
def test_pytorch_takes_the_same_steps(form, ours, quick_learning):
    assert ours[0]["bce"] - ours[2]["bce"] > 0.01 * ours[0]["bce"]  # a hundred times the tolerance
    peer = three_steps(torch_way(SIZES, form))
    for mine, theirs in zip(ours, peer, strict=True):
        assert mine == pytest.approx(theirs, rel=1e-4)
    assert largest_difference(peer, ours) < 1e-4


def test_autocast_is_near_and_not_the_same(ours, quick_learning):
    difference = largest_difference(three_steps(torch_way(SIZES, {"bfloat16": True})), ours)
    assert 1e-4 < difference < 0.1


def test_a_loss_that_is_not_finite_is_no_match(ours):
    broken = [ours[0], ours[1] | {"value": float("nan")}, ours[2]]
    assert largest_difference(broken, ours) == float("inf")
    other = [step | {"attention": step["attention"] + 0.1} for step in ours]
    assert largest_difference(other, ours) == pytest.approx(
        max(0.1 / (step["bce"] + step["attention"] + step["value"]) for step in ours)
    )


def test_operations_of_a_sample_are_those_of_the_networks():
    counts = []
    for widths in (TEACHER_WIDTHS, STUDENT_WIDTHS):
        with torch.device("meta"), torch.no_grad(), FlopCounterMode(display=False) as counter:
            twin = TorchSyncModel(widths, "rgb255").eval()
            twin(torch.zeros(1, 5, 48, 96, 3, dtype=torch.uint8), torch.zeros(1, 16, 80))
        counts.append(counter.get_total_flops() / 1e9)
    assert pytest.approx(counts[0] + 3 * counts[1], rel=0.01) == step_ways.GFLOP_PER_SAMPLE


@pytest.mark.slow
def test_evaluation_runs_from_files(tmp_path):
    command = ["--tiny", "--clips=3", "--distinct=2", "--repeats=1", f"--corpus={tmp_path}"]
    result = subprocess.run(
        [sys.executable, "-m", "benchmarks.evaluate", *command], cwd=ROOT, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr[-2000:]
    figures = json.loads(result.stdout.splitlines()[-1])
    assert (figures["clips"], figures["frames"]) == (3, 3 * 36)
    assert 0 < figures["index_seconds"]["median"] < figures["seconds"]["median"]
    assert figures["machine"]["device"] and np.isfinite(figures["compile_seconds"])


@pytest.mark.slow
def test_infer_is_timed_in_new_processes(tmp_path):
    student, _ = step_ways.configs_of(SIZES, "float32")
    save_model(tmp_path / "student", SyncModel(student, seed=0))
    command = [f"--checkpoint={tmp_path / 'student'}", "--film_seconds=1.2,2", "--film_height=240", "--repeats=1"]
    # The project's own cache, which keeps every program.
    environment = {name: value for name, value in os.environ.items() if name != "JAX_COMPILATION_CACHE_DIR"}
    result = subprocess.run(
        [sys.executable, "-m", "benchmarks.infer", *command],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr[-2000:]
    figures = json.loads(result.stdout.splitlines()[-1])
    runs = [run for (run,) in figures["runs"].values()]
    assert [run["windows"] for run in runs] == [25, 45]  # all, as random weights leave doubt
    assert runs[0]["programs"] == runs[1]["programs"] > 0  # another length compiles nothing more
    for run in runs:
        assert (run["programs_from_cache"], run["programs_put_into_cache"]) == (run["programs"], 0)
        stages = dict(run["seconds"])
        assert sum(stages.values()) < 2 * stages.pop("the whole process")
        assert min(stages.values()) > 0
        assert run["program_seconds"] > 0


def test_operations_are_named_and_timed_without_those_inside_them():
    hlo = """HloModule jit_f, is_scheduled=true
  %while.1 = (f32[2]{0}) while(%t), metadata={op_name="jit(f)/while" stack_frame_id=1}
  ROOT %ynn_fusion.3 = f32[2]{0} fusion(%a), metadata={op_name="jit(f)/while/body/closed_call/dot_general"}
"""
    # Programs use the same names: the one that an operation is of belongs to it.
    assert named_operations(hlo) == {("jit_f", "while.1"): "while", ("jit_f", "ynn_fusion.3"): "dot_general"}
    events = [
        ("while.1", 0, 10e6),
        ("dot", 1e6, 4e6),
        ("max", 2e6, 1e6),
        ("dot", 6e6, 3e6),
        ("while.1", 20e6, 1e6),
    ]
    assert self_milliseconds(events) == {"while.1": 4, "dot": 6, "max": 1}


def test_json_is_proper_whatever_the_losses():
    found = json.loads(to_json({"losses": [{"bce": float("nan")}, (np.float64("inf"), 1.5)], "passed": False}))
    assert found == {"losses": [{"bce": None}, [None, 1.5]], "passed": False}


def test_a_script_refuses_an_unknown_flag_in_one_line():
    """One script for all: they share `run_benchmark`, and the type checker imports the others."""
    command = [sys.executable, "-m", "benchmarks.data", "--no_such_flag"]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert found.returncode == 1 and len(found.stderr.splitlines()) == 1
    assert "Unknown command line flag 'no_such_flag'" in found.stderr
