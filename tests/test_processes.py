"""Several processes and devices against one: the same losses and tables, each other's checkpoints, and every end.

Trainings are compared in float64, and in float32 with softplus for ReLU: rounding flips ReLUs, and a training
drifts apart from itself with another order of additions.
"""

import json
import os
import pathlib
import re
import signal
import socket
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
from flax import nnx

import mtd_jax
from mtd_jax import processes
from mtd_jax.checkpoint import find_checkpoint, restore_arrays, save_model
from mtd_jax.errors import UserError
from tests.process_jobs import do, small_config

ROOT = pathlib.Path(__file__).parent.parent
LIMIT = 900  # seconds for anything that could hang
_NO_PAIR_TWICE = 2  # a seed with which none of 20 batches of 8 holds a pair of windows twice; with 0 two do


def launch(commands, devices=1):
    """Starts a process per command on this machine, each told where it belongs: `main.py` by its flags."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        coordinator = f"127.0.0.1:{probe.getsockname()[1]}"
    flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count={devices}"
    env = os.environ | {"XLA_FLAGS": flags, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    started = []
    for index, command in enumerate(commands):
        place = [coordinator, str(len(commands)), str(index)]
        if command[0] == "main.py":
            names = "coordinator", "num_processes", "process_id"
            place = [f"--{name}={value}" for name, value in zip(names, place, strict=True)]
        started.append(
            subprocess.Popen(
                [sys.executable, *command, *(place if len(commands) > 1 else [])],
                cwd=ROOT,
                env=env,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
    return started


def outcomes(started):
    """[(exit code, stdout, stderr without what libraries log)] of processes that end by themselves."""
    found = []
    for process in started:
        try:
            out, err = process.communicate(timeout=LIMIT)
        finally:
            process.kill()
        ours = [line for line in err.splitlines() if re.match(r"error:|SIG|Traceback", line)]
        found.append((process.returncode, out, ours))
    return found


def logged(workdir, name):
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [row[name] for row in rows if name in row]


def table(path):
    """What an evaluation found, without the time it took."""
    return {name: value for name, value in json.loads(path.read_text()).items() if name != "seconds"}


@pytest.fixture(scope="module")
def smooth():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nnx, "relu", jax.nn.softplus)
        yield


@pytest.fixture(scope="module")
def folder(corpus, tmp_path_factory, smooth):
    """Trainings of 20 steps as "one" device, "eight" in a process and "pod" of two processes with four each, which
    split kernels in two; "relay" goes from one to eight to pod to one. All evaluate one model, into NAME.json.
    "one64" and "pod64" are as "one" and "pod" in float64, with ReLU and seed 0.
    """
    folder = tmp_path_factory.mktemp("processes")
    config = small_config(str(corpus), {"model.widths": (4, 4, 8, 8, 16)})
    save_model(folder / "teacher", mtd_jax.SyncModel(mtd_jax.ModelConfig(**config.model.to_dict()), seed=1))
    shared = {"batch_size": 8, "val_batch_size": 8, "draws_per_epoch": 40, "optimizer.learning_rate": 1e-3}
    # The loss that compares all clips of the global batch with each other. Not with the same pair twice in it: one
    # device may compute different bits for the two, and rounding is all that their angle then consists of.
    shared |= {"loss.name": "rkd", "teacher": str(folder / "teacher"), "seed": _NO_PAIR_TWICE}

    def train(name, epochs, fsdp, **other):
        changes = shared | {"epochs": epochs, "mesh.fsdp": fsdp} | other
        return {"train": str(folder / name), "config": changes, "root": str(corpus)}

    def evaluate(name):
        where = {"evaluate": str(folder / "teacher"), "output": str(folder / f"{name}.json")}
        return where | {"config": {"evaluation.reference_edges": True}, "root": str(corpus)}

    def elsewhere(name, jobs, count, devices, float64=False):
        path = folder / f"{name}_jobs.json"
        path.write_text(json.dumps({"float64": float64, "jobs": jobs}))
        for code, out, _err in outcomes(launch([["-m", "tests.process_jobs", str(path)]] * count, devices)):
            assert code == 0, out

    do([train("one", 4, 1), train("relay", 1, 1), evaluate("one")])
    elsewhere("eight", [train("eight", 4, 1), train("relay", 2, 1), evaluate("eight")], 1, 8)
    elsewhere("pod", [train("pod", 4, 2), train("relay", 3, 2), evaluate("pod")], 2, 4)
    do([train("relay", 4, 1)])
    elsewhere("one64", [train("one64", 4, 1, seed=0)], 1, 1, float64=True)
    elsewhere("pod64", [train("pod64", 4, 2, seed=0)], 2, 4, float64=True)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("name", ["eight", "pod", "relay"])
def test_losses_are_those_of_one_device(folder, name):
    one = logged(folder / "one", "total")
    assert len(one) == 20
    np.testing.assert_allclose(logged(folder / name, "total"), one, rtol=1e-5)
    # Closer only in float64: a convolution's bias before BatchNorm has rounding for a gradient, of which Adam
    # makes full steps. BatchNorm takes that bias away in training; in validation its averages lag behind.
    first, others = logged(folder / "one", "val_loss")[0], logged(folder / name, "val_loss")[0]
    np.testing.assert_allclose(others, first, rtol=1e-3)


@pytest.mark.slow
def test_in_float64_losses_differ_by_rounding_alone(folder):
    one, pod = (np.array(logged(folder / name, "total")) for name in ("one64", "pod64"))
    assert len(one) == 20 and np.ptp(one) > 0.1
    np.testing.assert_allclose(pod[:3], one[:3], rtol=1e-12)
    np.testing.assert_allclose(pod, one, rtol=1e-6)
    one, pod = (logged(folder / name, "val_loss") for name in ("one64", "pod64"))
    np.testing.assert_allclose(pod, one, rtol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["eight", "pod"])
def test_evaluation_is_exactly_that_of_one_device(folder, name):
    assert table(folder / f"{name}.json") == table(folder / "one.json")


@pytest.mark.slow
def test_checkpoints_of_a_pod_load_anywhere(folder):
    pod, relay = (mtd_jax.load_model(folder / name) for name in ("pod", "relay"))
    assert pod.config == relay.config
    kernel = restore_arrays(find_checkpoint(folder / "pod"), "model")["head/kernel"]
    assert np.isfinite(kernel).all()


def final_arrays(workdir):
    arrays = {}
    for item in ("model", "training"):
        arrays |= restore_arrays(workdir / "checkpoints" / "6", item)
    return arrays


def command(corpus, workdir, **changes):
    config = {"batch_size": 2, "val_batch_size": 2, "epochs": 1, "draws_per_epoch": 12, "log_every": 1}
    config |= {"data.root": corpus, "data.train_list": "train", "model.num_heads": 2, "model.num_layers": 1}
    config |= {"model.widths": "(4,4,8,8,8)", "data.workers": 1} | changes
    flags = [f"--config.{name}={value}" for name, value in config.items()]
    return ["main.py", "--mode=train", "--config=configs/teacher.py:tiny", f"--workdir={workdir}", *flags]


def wait_for(process, text):
    for line in process.stdout:
        if line.startswith(text):
            return
    raise AssertionError(process.stderr.read())


@pytest.mark.slow
def test_a_pod_survives_signals_and_deaths(corpus, tmp_path):
    """SIGTERM to one of two processes, then SIGKILL to each in turn: all end at once, and nothing is lost."""
    whole = outcomes(launch([command(corpus, tmp_path / "whole")] * 2))
    assert [code for code, _, _ in whole] == [0, 0]
    assert "step 6/6" in whole[0][1] and "step" not in whole[1][1]  # the first process alone reports

    again = command(corpus, tmp_path / "broken", checkpoint_every=1)
    started = launch([again] * 2)
    wait_for(started[0], "step 1/6")
    started[1].send_signal(signal.SIGTERM)
    first, second = outcomes(started)
    assert (first[0], second[0]) == (75, 75)
    assert re.fullmatch(r"SIGTERM: step \d of 6 is saved in .*; the same command goes on from there", *first[2])
    assert second[2] == []

    for victim, other in ((1, 0), (0, 1)):
        started = launch([again] * 2)
        wait_for(started[0], "step")
        started[victim].kill()
        since = time.monotonic()
        code, _, said = outcomes(started)[other]
        assert time.monotonic() - since < 60  # JAX itself would take its 100 seconds
        advice = "start all of them again, a training goes on from its last checkpoint"
        if (victim, code) != (0, -signal.SIGABRT):  # without its coordinator JAX may be faster, see README
            assert code == 75 and said == [f"error: process {victim} went away; {advice}"]

    last = outcomes(launch([again] * 2))
    assert [code for code, _, _ in last] == [0, 0]
    ours, expected = final_arrays(tmp_path / "broken"), final_arrays(tmp_path / "whole")
    assert ours.keys() == expected.keys()
    for name in expected:
        np.testing.assert_array_equal(ours[name], expected[name], err_msg=name)


def test_the_mistake_of_one_process_ends_all(corpus, tmp_path):
    started = launch([command(corpus, tmp_path / "run", seed=seed) for seed in (0, 1)])
    for code, _, said in outcomes(started):
        assert code == 1 and len(said) == 1 and "differ in seed" in said[0]


@pytest.mark.parametrize(
    "flags, message",
    [
        (("host:1", 2, None), "missing: --process_id"),
        ((None, 2, 0), "missing: --coordinator"),
        (("host", 2, 0), "expected HOST:PORT"),
        (("host:99999", 2, 0), "port 1 to 65535"),
        (("host:1", 2, 2), "--process_id: expected 0 to 1"),
        (("host:1", 0, 0), "--num_processes: expected at least 1"),
    ],
)
def test_flags_that_do_not_fit_together(flags, message):
    with pytest.raises(UserError, match=message):
        processes.start(*flags)


def test_only_a_start_as_one_of_several_is_taken_for_one(monkeypatch):
    monkeypatch.setattr(pathlib.Path, "glob", lambda self, pattern: [])
    alone = {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "8", "SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "1"}
    assert not processes.announced({}) and not processes.announced(alone)
    assert processes.announced(alone | {"SLURM_STEP_NUM_TASKS": "8"})
    assert processes.announced({"OMPI_COMM_WORLD_SIZE": "2"})


@pytest.mark.parametrize(
    "visible, tasks_of_the_node, gpus",
    [
        (None, "8(x2)", None),  # no GPUs, or all in view: JAX takes that of the task's number on its node
        ("0,1,2,3", "4(x2)", None),
        ("0", "8(x2)", [0]),  # each its own
        ("3", "8,4", [0]),
        ("0,1,2,3", "1(x2)", [0, 1, 2, 3]),  # one task for all
        ("2,5", "1", [0, 1]),
    ],
)
def test_a_task_of_slurm_takes_the_gpus_that_are_its_own(visible, tasks_of_the_node, gpus):
    step = {"SLURM_STEP_NUM_TASKS": "16", "SLURM_STEP_TASKS_PER_NODE": tasks_of_the_node}
    seen = {} if visible is None else {"CUDA_VISIBLE_DEVICES": visible}
    assert processes.slurm_gpus(step | seen) == gpus
    assert processes.slurm_gpus(seen) is None


def test_processes_of_unequal_devices_are_refused():
    processes._check_equal_devices({0: 4, 1: 4})
    with pytest.raises(UserError, match="process 0 has 2, process 1 has 1; start each"):
        processes._check_equal_devices({1: 1, 0: 2})
