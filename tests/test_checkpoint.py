"""Checkpoints that cannot be read, or not as they were written: one line, and what to do."""

import collections
import dataclasses
import resource
import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mtd_jax
from mtd_jax import checkpoint
from mtd_jax.checkpoint import check_checksums, checksums, open_manager, save_model
from mtd_jax.config import default_config
from mtd_jax.distributed.sharding import make_mesh, place
from mtd_jax.errors import UserError
from mtd_jax.network.model import SyncModel
from mtd_jax.network.weights import model_arrays
from mtd_jax.training.objective import Objective
from mtd_jax.training.optimizer import make_optimizer, schedule_factor
from mtd_jax.training.resume import restore_run, save_run
from mtd_jax.training.step import Run, initial_state
from mtd_jax.training.train import train
from tests.helpers.configs import STUDENT, small_config

# After a failure orbax closes its event loop, while TensorStore still has results for it.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


def flip_bits(folder):
    """In the largest file of an item's arrays (in some that nobody reads, too)."""
    file = max(folder.rglob("d/*"), key=lambda path: path.stat().st_size)
    data = np.frombuffer(file.read_bytes(), np.uint8).copy()
    data[::1000] ^= 1
    file.write_bytes(data.tobytes())


def overwrite(file):
    file.write_text("{")


@pytest.mark.parametrize("change", [lambda x: x.at[7].add(1e-6), lambda x: x.at[7].set(x[8]).at[8].set(x[7])])
def test_checksums_notice_changed_and_swapped_entries(change):
    array = jnp.asarray(np.random.default_rng(0).standard_normal(100), jnp.float32)
    expected = checksums({"a/b": array, "c": jnp.int32(3)})
    assert expected == checksums({"a/b": np.asarray(array), "c": np.int32(3)})
    check_checksums({"a/b": array + 0, "c": jnp.int32(3)}, expected)
    with pytest.raises(ValueError, match="1 arrays .* first a/b"):
        check_checksums({"a/b": change(array), "c": jnp.int32(3)}, expected)


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved") / "good"
    save_model(folder, SyncModel(STUDENT, seed=0))
    return folder


@pytest.mark.parametrize(
    "damage, item, message",
    [
        (shutil.rmtree, "model", "bad: incomplete, its item 'model' is missing; copy the checkpoint again$"),
        (shutil.rmtree, "config", "bad: expected a checkpoint directory, found none"),
        (flip_bits, "model", "bad: damaged, its item 'model' does not decode .*; copy or convert the checkpoint"),
        (overwrite, "config/metadata", "bad: damaged, its item 'config' does not decode"),
    ],
)
def test_damaged_models_are_one_line(damage, item, message, good, tmp_path):
    shutil.copytree(good, tmp_path / "bad")
    damage(tmp_path / "bad" / item)
    with pytest.raises(UserError, match=message) as error:
        mtd_jax.load_model(tmp_path / "bad")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("error", [KeyError("a bug"), MemoryError(), PermissionError(13, "Permission denied")])
def test_only_bad_bytes_are_called_damage(error, good, monkeypatch):
    """A bug, a full memory and a refused read keep their own exceptions."""

    def fail(*_):
        raise error

    monkeypatch.setattr(checkpoint, "check_checksums", fail)
    with pytest.raises(type(error)):
        mtd_jax.load_model(good)


def test_arrays_that_do_not_decode_are_damage_only_if_their_files_can_be_read(good, tmp_path, monkeypatch):
    """TensorStore raises the same exception for bad bytes and for bytes that are out of reach."""
    shutil.copytree(good, tmp_path / "bad")
    overwrite(tmp_path / "bad/model/manifest.ocdbt")
    with pytest.raises(UserError, match="damaged"):
        mtd_jax.load_model(tmp_path / "bad")
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "is_remote", lambda path: True)
        with pytest.raises(UserError, match=r"bad: cannot read its item 'model' \([^;]*\)$"):
            mtd_jax.load_model(tmp_path / "bad")

    def refuse(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(checkpoint.pathlib.Path, "read_bytes", refuse)
    with pytest.raises(PermissionError):
        mtd_jax.load_model(tmp_path / "bad")


HOOKS = """
import gc, logging, signal, sys, threading, warnings
import absl.logging, jax, orbax.checkpoint as ocp, flax.nnx, grain, optax, tensorboardX

def hooks():
    loggers = [logging.getLogger(), *(logging.getLogger(name) for name in ("absl", "asyncio", "jax", "orbax"))]
    return {
        "hooks": (sys.excepthook, sys.unraisablehook, threading.excepthook),
        "warnings": list(warnings.filters),
        "logging": [(list(x.filters), list(x.handlers), x.level) for x in loggers],
        "signals": [signal.getsignal(number) for number in signal.valid_signals()],
        "orbax": ocp.type_handlers.get_type_handler(jax.Array),
    }

before = hooks()
import mtd_jax, mtd_jax.training.train
mtd_jax.load_model(sys.argv[1])
try:
    mtd_jax.load_model(sys.argv[2])
except mtd_jax.UserError:
    print("refused")
after = hooks()
assert before == after, [name for name in before if before[name] != after[name]]
"""


def test_importing_and_loading_leave_the_interpreter_alone(good, tmp_path):
    """In a new process: neither hooks nor log filters nor signal handlers nor orbax's own registry change."""
    shutil.copytree(good, tmp_path / "bad")
    flip_bits(tmp_path / "bad" / "model")
    command = [sys.executable, "-c", HOOKS, str(good), str(tmp_path / "bad")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "refused\n"), done.stderr[-2000:]


def test_a_checkpoint_of_another_version_says_so(good, monkeypatch):
    monkeypatch.setattr(checkpoint, "FORMAT", checkpoint.FORMAT + 1)
    with pytest.raises(UserError, match="expected checkpoint format .* again with this version"):
        mtd_jax.load_model(good)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """(checkpoints with an earlier and a last step, their state, restores the last one of such a folder)."""
    config = default_config(STUDENT)
    run = Run(
        model=STUDENT,
        teacher=None,
        objective=Objective.from_config(config.loss),
        optimizer=make_optimizer(config.optimizer, schedule_factor(config.optimizer, 1, 4)),
        seed=0,
        mesh=make_mesh(config.mesh, jax.devices()[:1]),
    )
    start = initial_state(run, SyncModel(STUDENT, seed=0))
    # Adam starts from zeros, which would compress to next to nothing.
    rng = np.random.default_rng(0)
    moments = jax.tree.map(lambda x: rng.random(x.shape, np.float32) if x.ndim else x, start.optimizer)
    start = place(dataclasses.replace(start, optimizer=moments), run.mesh)
    folder = tmp_path_factory.mktemp("saved") / "checkpoints"
    with open_manager(folder) as manager:
        for step, metrics in ((2, {"val_loss": 0.5}), (3, None), (4, {"val_loss": 0.6})):
            state = dataclasses.replace(start, step=start.step + step)
            save_run(manager, run, state, config, {"next_batch": step}, 1.5, metrics)

    def restore(folder):
        with open_manager(folder) as manager:
            return restore_run(manager, run, start, config)

    return folder, start, restore


def test_a_run_is_restored_as_it_was_saved(saved):
    folder, start, restore = saved
    assert sorted(path.name for path in folder.iterdir()) == ["2", "4"]  # the best one and the last one
    state, description = restore(folder)
    assert int(state.step) == description["step"] == description["data"]["next_batch"] == 4
    assert description["train_seconds"] == 1.5
    state = dataclasses.replace(state, step=start.step)
    jax.tree.map(np.testing.assert_array_equal, state, start)
    assert jax.tree.map(lambda x: x.sharding, state) == jax.tree.map(lambda x: x.sharding, start)


@pytest.mark.parametrize(
    "damage, item",
    [
        (overwrite, "config/metadata"),
        (overwrite, "metrics/metrics"),
        (overwrite, "model/manifest.ocdbt"),
        (overwrite, "training/_METADATA"),
        (flip_bits, "model"),
        (flip_bits, "training"),
    ],
)
@pytest.mark.parametrize("alone", [False, True])
def test_a_damaged_run_is_one_line_that_says_what_to_do(damage, item, alone, saved, tmp_path):
    folder, _, restore = saved
    bad = shutil.copytree(folder, tmp_path / "checkpoints")
    if alone:
        shutil.rmtree(bad / "2")
    damage(bad / "4" / item)
    rest = "start the run again" if alone else f"resume from {bad}/2"
    name = item.partition("/")[0]
    line = rf"^{bad}/4: damaged, its item '{name}' does not decode \(.*\); remove this folder to {rest}$"
    with pytest.raises(UserError, match=line):
        restore(bad)


@pytest.mark.parametrize("item", ["config", "training"])
def test_a_run_that_lacks_an_item_is_incomplete(item, saved, tmp_path):
    folder, _, restore = saved
    bad = shutil.copytree(folder, tmp_path / "checkpoints")
    shutil.rmtree(bad / "4" / item)
    with pytest.raises(
        UserError, match=f"^{bad}/4: incomplete, its item '{item}' is missing; copy the checkpoint"
    ):
        restore(bad)


def test_the_model_of_a_run_needs_nothing_of_the_optimiser(saved, tmp_path):
    step = shutil.copytree(saved[0] / "4", tmp_path / "step")
    flip_bits(step / "training")
    (step / "training" / "_METADATA").unlink()
    assert mtd_jax.load_model(step).config == STUDENT


def test_a_disk_without_room_is_noticed_before_anything_is_written(tmp_path, monkeypatch):
    usage = collections.namedtuple("usage", "free")
    monkeypatch.setattr(checkpoint.shutil, "disk_usage", lambda path: usage(free=1000))
    with pytest.raises(
        UserError, match=r"cannot write a checkpoint to .*new/model: it takes up to 0\.\d MiB, 0\.0 MiB"
    ):
        save_model(tmp_path / "new" / "model", SyncModel(STUDENT, seed=0))
    assert not list(tmp_path.iterdir())


def test_a_checkpoint_that_cannot_be_written_costs_nothing_but_itself(corpus, tmp_path):
    config = small_config(corpus)
    train(config, tmp_path / "run", report=lambda line: None)
    config.epochs += 1
    before, limit = mtd_jax.load_model(tmp_path / "run"), resource.getrlimit(resource.RLIMIT_FSIZE)
    # No file may grow beyond that, which is what a quota does.
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limit[1]))
    try:
        with pytest.raises(UserError, match=r"^cannot write a checkpoint .*File too large.* are intact$"):
            train(config, tmp_path / "run", report=lambda line: None)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    after = mtd_jax.load_model(tmp_path / "run")
    assert checksums(model_arrays(after)) == checksums(model_arrays(before))
    reported = []
    assert train(config, tmp_path / "run", report=reported.append)["steps"] == 6
    assert reported[0].startswith("resumed from step 4 of 6")
