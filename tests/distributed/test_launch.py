"""Several processes against one: the same losses and tables, each other's checkpoints, and every way to end."""

import contextlib
import itertools
import json
import os
import pathlib
import re
import signal
import socket
import subprocess
import sys
import types

import jax
import numpy as np
import pytest

import mtd_jax
from mtd_jax.checkpoint import restore_arrays, save_model
from mtd_jax.cli import CommandLine
from mtd_jax.distributed import launch
from mtd_jax.errors import UserError
from mtd_jax.training.train import train
from tests.helpers.compiling import quick_environment

ROOT = pathlib.Path(__file__).parents[2]
LIMIT = 600  # seconds for anything that could hang


# Below those that the system gives to outgoing connections, and elsewhere in every test process: a port that was
# free a moment ago, given by the system, may be anybody's when the coordinator opens it.
ports = itertools.count(20_000 + 61 * (os.getpid() % 200))


def free_port():
    for port in ports:
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port


def start(commands, devices=1, **variables):
    """Starts a process per command, each with its place among them: as flags for main.py, else as arguments."""
    coordinator = f"127.0.0.1:{free_port()}"
    env = quick_environment() | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"} | variables
    env["XLA_FLAGS"] += f" --xla_force_host_platform_device_count={devices}"
    env.pop("PYTHONUNBUFFERED", None)  # a user's log file shows progress without it
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


def command(corpus, workdir, **changes):
    config = {"batch_size": 4, "val_batch_size": 4, "epochs": 1, "draws_per_epoch": 4 * STEPS, "log_every": 1}
    config |= {"data.root": corpus, "data.train_list": "train", "model.num_heads": 2, "model.num_layers": 1}
    config |= {"model.widths": "(4,4,4,4,8)", "model.window_frames": 1, "data.workers": 0} | changes
    flags = [f"--config.{name}={value}" for name, value in config.items()]
    return ["main.py", "--mode=train", "--config=configs/teacher.py:tiny", f"--workdir={workdir}", *flags]


def config_of(argv):
    values = CommandLine(argv)
    values.parse(argv)
    return values.config


def lines_until(process, text):
    said = []
    for line in process.stdout:
        said.append(line)
        if line.startswith(text):
            return said
    raise AssertionError(process.stderr.read())


def logged(workdir, name):
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return {row["step"]: row[name] for row in rows if name in row}


STEPS = 4  # of an epoch
ENDLESS = 1000  # epochs of a run that is to be ended


@pytest.fixture(scope="module")
def relay(corpus, tmp_path_factory):
    """A float64 training in legs: two processes of two devices each until one dies, two until SIGTERM to one, and
    this process for the rest. And "one", the same training by this process alone; in the end both ways of
    evaluating the result.

    Float64, as what is left between one process and several is then not hidden by rounding that flips a ReLU.
    """
    folder = tmp_path_factory.mktemp("relay")
    teacher = mtd_jax.ModelConfig.tiny(widths=(4, 4, 4, 4, 8), num_layers=1, num_heads=2, window_frames=1)
    save_model(folder / "teacher", mtd_jax.SyncModel(teacher, seed=1))
    # The loss that compares all clips of the global batch with each other.
    changes = {"loss.name": "rkd", "teacher": folder / "teacher", "optimizer.learning_rate": 1e-3}
    changes["model.compute_dtype"] = "float64"
    found = types.SimpleNamespace(one=folder / "one", run=folder / "run")

    def pod():
        endless = command(corpus, found.run, **changes, **{"mesh.fsdp": 2}, epochs=ENDLESS)
        return start([endless] * 2, devices=2, JAX_ENABLE_X64="1")

    def alone(workdir, epochs):
        said = []
        train(config_of(command(corpus, workdir, **changes, epochs=epochs)), workdir, report=said.append)
        return said[0]

    jax.config.update("jax_enable_x64", True)
    try:
        started = pod()
        lines_until(started[0], f"step {STEPS + 2}/")
        started[1].kill()
        found.killed = outcomes(started)
        found.before_death = logged(found.run, "total")

        started = pod()
        found.resumed = lines_until(started[0], f"step {STEPS + 3}/")
        started[1].send_signal(signal.SIGTERM)
        found.stopped = outcomes(started)
        found.after_death = logged(found.run, "total")
        found.saved = int(re.search(r"saved step (\d+)", found.stopped[0][2][0])[1])

        epochs = found.saved // STEPS + 1
        found.alone_from, found.alone_to = alone(found.run, epochs), epochs * STEPS
        alone(found.one, epochs)

        evaluation = ["main.py", "--mode=evaluate", "--config=configs/teacher.py:tiny"]
        evaluation += [f"--config.data.root={corpus}", f"--checkpoint={found.run}"]
        found.evaluated = []
        for name, count in (("one", 1), ("pod", 2)):
            both = [*evaluation, f"--output={folder / name}.json"]
            found.evaluated += outcomes(start([both] * count, devices=count, JAX_ENABLE_X64="1"))
        found.tables = [json.loads((folder / f"{name}.json").read_text()) for name in ("one", "pod")]
    finally:
        jax.config.update("jax_enable_x64", False)
    return found


@pytest.mark.slow
def test_sigterm_to_one_process_stops_all_at_the_same_saved_step(relay):
    first, second = relay.stopped
    assert (first[0], second[0]) == (75, 75)
    assert first[2] == second[2]
    assert re.fullmatch(rf"SIGTERM: saved step \d+ of {ENDLESS * STEPS} in .*; rerun to resume", *first[2])
    assert relay.alone_from.startswith(f"resumed from step {relay.saved} of {relay.alone_to} ")


@pytest.mark.slow
def test_the_death_of_one_process_ends_the_other(relay):
    code = relay.killed[0][0]
    assert code not in (0, 75)  # JAX ends it, or the collective operation it is in fails


@pytest.mark.slow
def test_the_first_process_alone_reports(relay):
    assert len(relay.resumed) > 1 and "step" not in relay.stopped[1][1]


@pytest.mark.slow
def test_two_processes_repeat_the_steps_after_the_last_checkpoint_bit_for_bit(relay):
    resumed = int(re.search(r"resumed from step (\d+)", "".join(relay.resumed))[1])
    assert resumed == STEPS
    repeated = {step: total for step, total in relay.before_death.items() if step > resumed}
    assert repeated and repeated.items() <= relay.after_death.items()


@pytest.mark.slow
def test_the_relay_is_the_training_of_one_process(relay):
    one, run = logged(relay.one, "total"), logged(relay.run, "total")
    assert one.keys() == run.keys() and len(one) >= 2 * STEPS
    one, run = (np.array(list(losses.values())) for losses in (one, run))
    assert np.ptp(one) > 0.1
    np.testing.assert_allclose(run[:3], one[:3], rtol=1e-12)
    np.testing.assert_allclose(run, one, rtol=1e-9)
    validations = [logged(workdir, "val_loss") for workdir in (relay.one, relay.run)]
    assert len(validations[0]) >= 2 and validations[1] == pytest.approx(validations[0], rel=1e-6)
    for item in ("model", "training"):
        paths = [workdir / "checkpoints" / str(len(one)) for workdir in (relay.one, relay.run)]
        expected, ours = (restore_arrays(path, item) for path in paths)
        assert ours.keys() == expected.keys()
        for name in expected:
            # A bias before BatchNorm has a gradient of rounding alone, which Adam enlarges, and moves the mean.
            atol = 1e-5 if name.endswith(("conv/bias", "norm/mean")) else 1e-7
            np.testing.assert_allclose(ours[name], expected[name], rtol=1e-6, atol=atol, err_msg=name)


@pytest.mark.slow
def test_evaluation_is_exactly_that_of_one_process(relay):
    assert [code for code, _, _ in relay.evaluated] == [0, 0, 0]
    one, pod = relay.tables
    assert one.pop("seconds") and pod.pop("seconds")
    assert pod == one and len(pod["clips"]) == 3


def test_all_processes_refuse_different_settings(corpus, tmp_path):
    started = start([command(corpus, tmp_path / "run", seed=seed) for seed in (0, 1)])
    for code, _, said in outcomes(started):
        assert code == 1 and len(said) == 1 and "differ in seed" in said[0]


JOINED = """
import itertools, os, pathlib, signal, sys, time
from mtd_jax.distributed import launch
from mtd_jax.distributed.preemption import Preemption
from mtd_jax.errors import UserError, exit_code
index = int(sys.argv[3])
launch.start(sys.argv[1], int(sys.argv[2]), index)
"""
FAIL = """
with launch.abort_on_failure():
    if index == {author}:
        raise UserError("config.x: expected 1, got 2")
    launch.exchange("waits for the other one")
"""
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
SCRIPTS = {
    "error of 0": FAIL.format(author=0),
    "error of 1": FAIL.format(author=1),
    # Ctrl-C in the loop, and SIGTERM so long before that JAX agrees on a step that a resumed run has done.
    "SIGINT": STOP.format(name="SIGINT", head_start=0),
    "SIGTERM": STOP.format(name="SIGTERM", head_start=3),
}


@pytest.fixture(scope="module")
def scripts():
    """{name: outcomes} of two processes each that join and run a script. All at once, as most of it is waiting."""
    started = {name: start([["-c", JOINED + code]] * 2) for name, code in SCRIPTS.items()}
    return {name: outcomes(processes) for name, processes in started.items()}


@pytest.mark.parametrize("author", [0, 1])
def test_the_error_of_one_process_ends_the_other(scripts, author):
    codes, _, lines = zip(*scripts[f"error of {author}"], strict=True)
    assert codes[author] == 1 and lines[author] == ["error: config.x: expected 1, got 2"]
    assert codes[1 - author] != 0


@pytest.mark.parametrize("name, code", [("SIGINT", 130), ("SIGTERM", 75)])
def test_a_notice_stops_all_processes_at_the_same_step(scripts, name, code):
    first, second = scripts[name]
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
