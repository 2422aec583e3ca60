"""Checkpoints that cannot be read, or not as they were written: one line, and what to do."""

import errno
import os
import resource
import shutil
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest

import mtd_jax
from mtd_jax import checkpoint
from mtd_jax.arrays import model_arrays
from mtd_jax.checkpoint import save_model
from mtd_jax.checkpoint_faults import cannot_write, silence_unfinished_work
from mtd_jax.checksums import check, checksums
from mtd_jax.errors import UserError
from mtd_jax.train import train
from tests.test_train import STUDENT, small_config


def flip_bits(folder):
    """In the largest file of an item: in the numbers (and in some that nobody reads)."""
    file = max((path for path in folder.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)
    data = np.frombuffer(file.read_bytes(), np.uint8).copy()
    data[::1000] ^= 1
    file.write_bytes(data.tobytes())


@pytest.mark.parametrize("change", [lambda x: x.at[7].add(1e-6), lambda x: x.at[7].set(x[8]).at[8].set(x[7])])
def test_checksums_notice_changed_and_swapped_entries(change):
    array = jnp.asarray(np.random.default_rng(0).standard_normal(100), jnp.float32)
    expected = checksums({"a": {"b": array}, "c": jnp.int32(3)})
    assert expected.keys() == {"a/b", "c"}
    check({"a": {"b": array + 0}, "c": jnp.int32(3)}, expected)
    with pytest.raises(ValueError, match="1 arrays .* first a/b"):
        check({"a": {"b": change(array)}, "c": jnp.int32(3)}, expected)


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved") / "good"
    save_model(folder, mtd_jax.create_model(STUDENT, 0))
    return folder


@pytest.mark.parametrize(
    "damage, item", [(shutil.rmtree, "model"), (shutil.rmtree, "config"), (flip_bits, "model")]
)
def test_damaged_models_are_one_line(damage, item, good, tmp_path):
    shutil.copytree(good, tmp_path / "bad")
    damage(tmp_path / "bad" / item)
    with pytest.raises(UserError, match="bad") as error:
        mtd_jax.load_model(tmp_path / "bad")
    assert "\n" not in str(error.value)


def test_what_a_failed_read_leaves_behind_is_not_reported(good, tmp_path):
    """By a process of its own, as a user meets it: threads report after the event loop has ended."""
    shutil.copytree(good, tmp_path / "bad")
    for file in (tmp_path / "bad/model").rglob("d/*"):
        data = bytearray(file.read_bytes())
        third = len(data) // 3
        data[third : third + 40] = bytes(byte ^ 255 for byte in data[third : third + 40])
        file.write_bytes(data)
    load = f"mtd_jax.load_model({str(tmp_path / 'bad')!r})"
    code = f"import mtd_jax\ntry: {load}\nexcept mtd_jax.UserError: print('refused')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "refused\n" and "Traceback" not in done.stderr, done.stderr[-2000:]


def test_a_checkpoint_of_another_version_says_so(good, monkeypatch):
    monkeypatch.setattr(checkpoint, "FORMAT", checkpoint.FORMAT + 1)
    with pytest.raises(UserError, match="expected checkpoint format .* again with this version"):
        mtd_jax.load_model(good)


@pytest.fixture(scope="module")
def run(corpus, tmp_path_factory):
    """(config, work directory) of a training that kept its last checkpoint and an earlier one."""
    config = small_config(corpus)
    config.checkpoint_every = 1
    workdir = tmp_path_factory.mktemp("run")
    train(config, workdir, report=lambda line: None)
    return config, workdir


def overwrite(file):
    file.write_text("{")


def move_position(file):
    """Still JSON, but of another place in the data."""
    text = file.read_text()
    assert '"next_batch": ' in text
    file.write_text(text.replace('"next_batch": ', '"next_batch": 7'))


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # orbax's, after its failure
@pytest.mark.parametrize(
    "damage, item",
    [
        (shutil.rmtree, "training"),
        (overwrite, "config/metadata"),
        (move_position, "config/metadata"),
        (overwrite, "metrics/metrics"),
        (overwrite, "model/manifest.ocdbt"),
        (flip_bits, "model"),
        (flip_bits, "training"),
    ],
)
def test_a_damaged_run_is_one_line_that_says_what_to_do(damage, item, run, tmp_path):
    config, workdir = run
    shutil.copytree(workdir, tmp_path / "bad")
    checkpoints = tmp_path / "bad" / "checkpoints"
    steps = sorted(int(path.name) for path in checkpoints.iterdir() if path.name.isdigit())
    damage(checkpoints / str(steps[-1]) / item)
    rest = f"go on from (step {steps[-2]}|the one before)" if len(steps) > 1 else "start afresh"
    with pytest.raises(UserError, match=f"checkpoints/{steps[-1]}: damaged.*remove this folder to {rest}"):
        train(config, tmp_path / "bad", report=lambda line: None)


def last_step(workdir):
    return max(
        (path for path in (workdir / "checkpoints").iterdir() if path.name.isdigit()), key=lambda p: int(p.name)
    )


def test_a_damaged_model_of_a_run_names_the_one_beside_it(run, tmp_path):
    for step in ("3", "5"):
        shutil.copytree(last_step(run[1]), tmp_path / step)
    flip_bits(tmp_path / "3" / "model")
    with pytest.raises(UserError, match=f"/3: cannot read its item 'model' .*; use {tmp_path}/5$"):
        mtd_jax.load_model(tmp_path / "3")
    assert mtd_jax.load_model(tmp_path / "5").config == STUDENT


def test_a_model_needs_nothing_of_the_optimiser(run, tmp_path):
    shutil.copytree(last_step(run[1]), tmp_path / "step")
    flip_bits(tmp_path / "step" / "training")
    (tmp_path / "step" / "training" / "_METADATA").unlink()
    assert mtd_jax.load_model(tmp_path / "step").config == STUDENT


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_checkpoint_that_cannot_be_written_costs_nothing_but_itself(run, tmp_path, caplog):
    config, workdir = run
    shutil.copytree(workdir, tmp_path / "run")
    config = config.copy_and_resolve_references()
    config.epochs += 1
    before, limit = mtd_jax.load_model(tmp_path / "run"), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(
        resource.RLIMIT_FSIZE, (10_000, limit[1])
    )  # no file may grow beyond that: a disk that is full
    try:
        with pytest.raises(UserError, match=r"cannot write a checkpoint .*\(File too large\).* is intact$"):
            train(config, tmp_path / "run", report=lambda line: None)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert not caplog.records
    after = mtd_jax.load_model(tmp_path / "run")
    assert checksums(model_arrays(after)) == checksums(model_arrays(before))
    told = []
    assert train(config, tmp_path / "run", report=told.append)["steps"] == 6
    assert told[0].startswith("resumed from step 4 of 6")


@pytest.mark.parametrize(
    "error, line",
    [
        (OSError(errno.ENOSPC, "x"), f"({os.strerror(errno.ENOSPC)}); make room, then"),
        (
            ValueError("A: \"b\": Failed: c [os_error_code='13']"),
            f"({os.strerror(errno.EACCES)}); mend that, then",
        ),
        (ValueError("something\nelse"), "(something); mend that, then"),
    ],
)
def test_the_reason_is_given_in_the_systems_words(error, line):
    assert line in cannot_write(error, "there")


def test_what_a_failed_write_leaves_behind_is_not_reported(capsys, monkeypatch):
    for hook in ("excepthook", "unraisablehook"):
        monkeypatch.setattr(sys, hook, getattr(sys, f"__{hook}__"))
    silence_unfinished_work.__wrapped__()
    sys.excepthook(RuntimeError, RuntimeError("Event loop is closed"), None)
    assert capsys.readouterr().err == ""
    sys.excepthook(RuntimeError, RuntimeError("another"), None)
    assert "RuntimeError: another" in capsys.readouterr().err
