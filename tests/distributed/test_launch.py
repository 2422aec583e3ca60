"""Several processes against one: the same losses and tables, each other's checkpoints, and every way to end."""

import json
import os
import pathlib
import re
import signal
import socket
import subprocess
import sys
import textwrap

import numpy as np
import pytest

import mtd_jax
from mtd_jax.checkpoint import find_checkpoint, load_model, restore_arrays, save_model
from mtd_jax.distributed import launch
from mtd_jax.errors import UserError

ROOT = pathlib.Path(__file__).parents[2]
LIMIT = 600  # seconds for anything that could hang


def start(commands, devices=1):
    """Starts a process per command, each with its place among them: as flags for main.py, else as arguments."""
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
    """[(exit code, stdout, our lines of stderr)] of processes that end by themselves."""
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


@pytest.fixture(scope="module")
def folder(corpus, tmp_path_factory):
    """Float64 trainings of 12 steps: "one" on one device; "pod" in two processes with two devices each, kernels
    split in two; "relay", whose three epochs run as one, pod and one. One and pod also evaluate the teacher.
    """
    folder = tmp_path_factory.mktemp("processes")
    teacher = mtd_jax.ModelConfig.tiny(widths=(4, 4, 8, 8, 16), num_layers=1, num_heads=2)
    save_model(folder / "teacher", mtd_jax.SyncModel(teacher, seed=1))
    shared = {"batch_size": 8, "val_batch_size": 8, "draws_per_epoch": 32, "optimizer.learning_rate": 1e-3}
    # The loss that compares all clips of the global batch with each other.
    shared |= {"loss.name": "rkd", "teacher": str(folder / "teacher")}

    def train(name, epochs, fsdp):
        changes = shared | {"epochs": epochs, "mesh.fsdp": fsdp}
        return {"train": str(folder / name), "config": changes, "root": str(corpus)}

    def evaluate(name):
        where = {"evaluate": str(folder / "teacher"), "output": str(folder / f"{name}.json")}
        return where | {"config": {"evaluation.reference_edges": True}, "root": str(corpus)}

    def run(jobs, processes, devices):
        path = folder / "jobs.json"
        path.write_text(json.dumps(jobs))
        for code, out, err in outcomes(
            start([["-m", "tests.helpers.process_jobs", str(path)]] * processes, devices)
        ):
            assert code == 0, (out, err)

    run([train("one", 3, 1), train("relay", 1, 1), evaluate("one")], 1, 1)
    run([train("pod", 3, 2), train("relay", 2, 2), evaluate("pod")], 2, 2)
    run([train("relay", 3, 1)], 1, 1)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("name", ["pod", "relay"])
def test_losses_are_those_of_one_device(folder, name):
    one, other = (np.array(logged(folder / run, "total")) for run in ("one", name))
    assert len(one) == 12 and np.ptp(one) > 0.1
    np.testing.assert_allclose(other[:3], one[:3], rtol=1e-12)
    np.testing.assert_allclose(other, one, rtol=1e-6)
    one, other = (logged(folder / run, "val_loss") for run in ("one", name))
    np.testing.assert_allclose(other, one, rtol=1e-6)


@pytest.mark.slow
def test_evaluation_is_exactly_that_of_one_device(folder):
    one, pod = (json.loads((folder / f"{name}.json").read_text()) for name in ("one", "pod"))
    assert one.pop("seconds") and pod.pop("seconds")
    assert pod == one


def command(corpus, workdir, **changes):
    config = {"batch_size": 2, "val_batch_size": 2, "epochs": 1, "draws_per_epoch": 12, "log_every": 1}
    config |= {"data.root": corpus, "data.train_list": "train", "model.num_heads": 2, "model.num_layers": 1}
    config |= {"model.widths": "(4,4,8,8,8)", "data.workers": 0} | changes
    flags = [f"--config.{name}={value}" for name, value in config.items()]
    return ["main.py", "--mode=train", "--config=configs/teacher.py:tiny", f"--workdir={workdir}", *flags]


def wait_for(process, text):
    for line in process.stdout:
        if line.startswith(text):
            return
    raise AssertionError(process.stderr.read())


def final_arrays(workdir):
    arrays = {}
    for item in ("model", "training"):
        arrays |= restore_arrays(workdir / "checkpoints" / "6", item)
    return arrays


@pytest.mark.slow
def test_a_pod_survives_a_signal_and_a_death(corpus, tmp_path):
    """SIGTERM to one of two processes, then SIGKILL: both end each time, and nothing is lost."""
    whole = outcomes(start([command(corpus, tmp_path / "whole")] * 2))
    assert [code for code, _, _ in whole] == [0, 0]
    assert "step 6/6" in whole[0][1] and "step" not in whole[1][1]  # the first process alone reports

    again = command(corpus, tmp_path / "broken", checkpoint_every=1)
    started = start([again] * 2)
    wait_for(started[0], "step 1/6")
    started[1].send_signal(signal.SIGTERM)
    first, second = outcomes(started)
    assert (first[0], second[0]) == (75, 75)
    assert first[2] == second[2]
    assert re.fullmatch(r"SIGTERM: saved step \d of 6 in .*; rerun to resume", *first[2])

    started = start([again] * 2)
    wait_for(started[0], "resumed from step")
    started[1].kill()
    code, _, _ = outcomes(started)[0]
    assert code not in (0, 75)  # JAX ends it, or the collective operation it is in fails

    last = outcomes(start([again] * 2))
    assert [code for code, _, _ in last] == [0, 0]
    ours, expected = final_arrays(tmp_path / "broken"), final_arrays(tmp_path / "whole")
    assert ours.keys() == expected.keys()
    for name in expected:
        np.testing.assert_array_equal(ours[name], expected[name], err_msg=name)
    kernel = restore_arrays(find_checkpoint(tmp_path / "broken"), "model")["head/kernel"]
    assert np.isfinite(kernel).all() and load_model(tmp_path / "broken").config.num_layers == 1


def test_all_processes_refuse_different_settings(corpus, tmp_path):
    started = start([command(corpus, tmp_path / "run", seed=seed) for seed in (0, 1)])
    for code, _, said in outcomes(started):
        assert code == 1 and len(said) == 1 and "differ in seed" in said[0]


def scripts(code):
    """Two processes that join and run the code, which knows `index` and the modules of `mtd_jax.distributed`."""
    joined = """
        import itertools, os, pathlib, signal, sys, time
        from mtd_jax.distributed import launch
        from mtd_jax.distributed.preemption import Preemption
        from mtd_jax.errors import UserError, exit_code
        index = int(sys.argv[3])
        launch.start(sys.argv[1], int(sys.argv[2]), index)
    """
    return outcomes(start([["-c", textwrap.dedent(joined) + textwrap.dedent(code)]] * 2))


@pytest.mark.parametrize("author", [0, 1])
def test_the_error_of_one_process_ends_the_other(author):
    codes, lines = [], []
    found = scripts(
        f"""
        with launch.abort_on_failure():
            if index == {author}:
                raise UserError("config.x: expected 1, got 2")
            launch.exchange("waits for the other one")
        """
    )
    codes, lines = [code for code, _, _ in found], [said for _, _, said in found]
    assert codes[author] == 1 and lines[author] == ["error: config.x: expected 1, got 2"]
    assert codes[1 - author] != 0


STOP = """
def loop():
    with Preemption() as preemption:
        preemption.listen()
        if index == 1:
            os.kill(os.getpid(), signal.{name})
        time.sleep({head_start})
        if preemption.reached_before(3):
            raise preemption.interrupted(3, 9, pathlib.Path("W"))
        for step in itertools.count(4):
            time.sleep(0.01)
            if preemption.reached(step):
                raise preemption.interrupted(step, 9, pathlib.Path("W"))

sys.exit(exit_code(loop))
"""


@pytest.mark.parametrize("name, head_start, code", [("SIGINT", 0, 130), ("SIGTERM", 3, 75)])
def test_a_notice_stops_all_processes_at_the_same_step(name, head_start, code):
    """Ctrl-C in the loop, and SIGTERM so long before that JAX agrees on a step that a resumed run has done."""
    first, second = scripts(STOP.format(name=name, head_start=head_start))
    assert (first[0], second[0]) == (code, code)
    assert first[2] == second[2] and re.match(rf"{name}: saved step \d+ of 9", first[2][0])


@pytest.mark.parametrize(
    "flags, message",
    [
        (("host:1", 2, None), "go together"),
        ((None, 2, 0), "go together"),
        (("host", 2, 0), "expected HOST:PORT"),
        (("host:99999", 2, 0), "port 1 to 65535"),
        (("host:1", 2, 2), "--process_id: expected 0 to 1"),
        (("host:1", 0, 0), "--num_processes: expected at least 1"),
        (("auto", 2, None), "omit them"),
    ],
)
def test_flags_that_do_not_fit_together(flags, message):
    with pytest.raises(UserError, match=message):
        launch.start(*flags)


def test_without_a_cluster_auto_is_an_error(corpus, tmp_path):
    ((code, _, said),) = outcomes(start([[*command(corpus, tmp_path), "--coordinator=auto"]]))
    assert code == 1 and len(said) == 1 and said[0].startswith("error: --coordinator=auto: JAX cannot join")


def test_processes_of_unequal_devices_are_refused():
    launch._check_equal_devices({0: 4, 1: 4})
    with pytest.raises(UserError, match="process 0 has 2, process 1 has 1"):
        launch._check_equal_devices({1: 1, 0: 2})
