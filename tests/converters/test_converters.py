"""Conversion in both directions: exact cover, round trip, verification, and files that must be refused."""

import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from converters import flax_to_torch, torch_to_flax
from converters.torch_model import TorchSyncModel
from converters.verify import verify_conversion
from mtd_jax.checkpoint import (
    abstract_arrays,
    load_description,
    load_loss_weights,
    load_model,
    model_from_arrays,
    save_model,
)
from mtd_jax.errors import UserError
from mtd_jax.network.model import ModelConfig
from mtd_jax.released.key_table import Entry, key_table, to_flax, to_torch, torch_shapes
from mtd_jax.released.state_dict import read_checkpoint
from tests.helpers.recipe import recipe_weights, state_dict_shapes

CONFIGS = {"teacher": ModelConfig.vocalist(), "student": ModelConfig.mtd_vocalist()}
LOSS_WEIGHTS = np.linspace(0.5, 1.7, 13).astype(np.float32)
FIRST = "vid_prenet.0.conv_block.0.weight"


def tensors(arrays: dict) -> dict:
    return {name: torch.from_numpy(array) for name, array in arrays.items()}


def assert_same_entries(got: dict, want: dict):
    assert list(got) == list(want)
    for name in want:
        assert got[name].dtype == want[name].dtype and got[name].shape == want[name].shape, name
        np.testing.assert_array_equal(got[name], want[name], err_msg=name)


@pytest.fixture(scope="module")
def student():
    return recipe_weights(state_dict_shapes("student"), seed=11)


@pytest.fixture(scope="module")
def student_file(student, tmp_path_factory):
    path = tmp_path_factory.mktemp("released") / "student.pth"
    content = {"state_dict": tensors(student), "aw_loss": {"params": torch.from_numpy(LOSS_WEIGHTS)}}
    torch.save(content | {"optimizer": None, "lr": 5e-5, "global_step": 1234, "global_epoch": 7}, path)
    return path


# The table


@pytest.mark.parametrize("which", ["teacher", "student"])
def test_table_covers_both_sides_exactly(which):
    config = CONFIGS[which]
    shapes = {name: tuple(array.shape) for name, array in torch_shapes(config).items()}
    assert list(shapes.items()) == list(state_dict_shapes(which).items())
    flax_names = [entry.flax_name for entry in key_table(config.num_layers) if isinstance(entry, Entry)]
    assert len(flax_names) == len(set(flax_names))
    assert set(flax_names) == abstract_arrays(config).keys()


@pytest.mark.parametrize("which, seed", [("teacher", 2), ("student", 31)])
def test_round_trip_in_memory(which, seed):
    weights = recipe_weights(state_dict_shapes(which), seed)
    arrays = to_flax(CONFIGS[which], weights, "test")
    assert {n: a.shape for n, a in arrays.items()} == {
        n: a.shape for n, a in abstract_arrays(CONFIGS[which]).items()
    }
    assert_same_entries(to_torch(CONFIGS[which], arrays, "test"), weights)


def test_cover_names_everything_in_one_error(student):
    damaged = dict(student)
    del damaged["fc.bias"], damaged["va_transformer.version"]
    damaged["fc.scale"] = damaged["fc.weight"]
    damaged["classifier.weight"] = damaged["classifier.weight"].T
    with pytest.raises(UserError) as error:
        to_flax(CONFIGS["student"], damaged, "X.pth")
    for word in (
        "X.pth",
        "fc.bias",
        "va_transformer.version",
        "fc.scale",
        "classifier.weight",
        "(200, 1)",
        "(1, 200)",
    ):
        assert word in str(error.value)


# Files that are accepted


def test_round_trip_on_disk(student, student_file, tmp_path, capsys):
    directory, back = tmp_path / "new" / "flax", tmp_path / "back.pth"
    command = [f"--checkpoint={student_file}", "--model=mtd_vocalist", f"--output={directory}", "--verify"]
    assert torch_to_flax.main(["", *command]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "pixels: rgb255" in lines[0]
    stages = [
        line for line in lines[2:] if line.startswith(("video", "audio", "av", "va", "fusion", "att", "log"))
    ]
    assert len(stages) == 8 and max(float(line.split()[-1]) for line in stages) < 1e-4
    assert "verified" in "\n".join(lines) and "13,280,961 parameters, step 1234" in lines[-1]
    assert load_model(directory).config == CONFIGS["student"]
    np.testing.assert_array_equal(load_loss_weights(directory), LOSS_WEIGHTS)
    assert os.listdir(directory.parent) == ["flax"]

    assert flax_to_torch.main(["", f"--checkpoint={directory}", f"--output={back}"]) == 0
    written = torch.load(back, weights_only=True)
    assert written.keys() == {"state_dict", "aw_loss", "global_step"} and written["global_step"] == 1234
    np.testing.assert_array_equal(written["aw_loss"]["params"], LOSS_WEIGHTS)
    assert_same_entries({name: tensor.numpy() for name, tensor in written["state_dict"].items()}, student)
    TorchSyncModel(CONFIGS["student"].widths, "rgb255").load_state_dict(written["state_dict"], strict=True)
    assert sorted(os.listdir(tmp_path)) == ["back.pth", "new"]


def test_pixels_and_window_are_stored_with_the_weights(student_file, tmp_path, capsys):
    for pixels in ("bgr01", "rgb01"):
        torch_to_flax.convert(student_file, "mtd_vocalist", tmp_path / pixels, pixels, window_frames=25)
        stored = load_description(tmp_path / pixels)
        assert stored["model"]["pixels"] == pixels and stored["model"]["window_frames"] == 25
        assert stored["step"] == 1234
        assert f"pixels: {pixels} (as requested)" in capsys.readouterr().out


def _optimiser_objects():
    """What a training file of the public code holds besides arrays: a scheduler object that holds an optimiser."""
    layer = torch.nn.Linear(2, 1)
    optimizer = torch.optim.Adam(layer.parameters(), lr=5e-5)
    layer(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 20, 0.8)
    return {"optimizer": optimizer.state_dict(), "scheduler": {"total_epoch": 10, "after_scheduler": scheduler}}


@pytest.mark.parametrize("old_format", [False, True])
@pytest.mark.parametrize(
    "form",
    [
        lambda weights: weights,
        lambda weights: {"state_dict": weights},
        lambda weights: {f"module.{name}": tensor for name, tensor in weights.items()},
        lambda weights: {
            "state_dict": {f"{'module.' * (i % 3)}{name}": w for i, (name, w) in enumerate(weights.items())}
        },
        lambda weights: {"state_dict": weights} | _optimiser_objects(),
    ],
    ids=["bare", "outer", "module", "mixed", "training"],
)
def test_accepted_forms(student, tmp_path, form, old_format):
    torch.save(form(tensors(student)), tmp_path / "x.pth", _use_new_zipfile_serialization=not old_format)
    found = read_checkpoint(tmp_path / "x.pth")
    assert_same_entries(found.state_dict, student)
    assert found.loss_weights is None and found.step == 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_float_types_are_cast_with_a_note(student, tmp_path, dtype):
    weights = {n: t.to(dtype) if t.is_floating_point() else t for n, t in tensors(student).items()}
    torch.save(weights, tmp_path / "x.pth")
    found = read_checkpoint(tmp_path / "x.pth")
    assert any(str(dtype).removeprefix("torch.") in note and "float32" in note for note in found.notes)
    assert found.state_dict[FIRST].dtype == np.float32
    np.testing.assert_array_equal(found.state_dict[FIRST], weights[FIRST].float().numpy())


def test_uninitialised_entry_is_not_taken_for_damage(student, tmp_path):
    name = "av_transformer.embed_positions._float_tensor"
    torch.save(tensors(student | {name: np.full(1, np.nan, np.float32)}), tmp_path / "x.pth")
    assert np.isnan(read_checkpoint(tmp_path / "x.pth").state_dict[name])


# Files that are refused


class RunsCode:
    def __reduce__(self):
        return (os.mkdir, ("code-was-run",))


def _changed(name, change):
    def write(path, student):
        torch.save({"state_dict": tensors(student | {name: change(student[name])})}, path)

    return write


def _saved(make):
    return lambda path, student: torch.save(make(tensors(student)), path)


def _truncated(share, **options):
    def write(path, student):
        torch.save(tensors(student), path, **options)
        content = path.read_bytes()
        path.write_bytes(content[: int(len(content) * share)])

    return write


def _with(entry, value):
    def change(array):
        array = array.copy()
        array.flat[entry] = value
        return array

    return change


OLD = {"_use_new_zipfile_serialization": False}
BAD_FILES = {
    "missing file": (lambda path, student: None, "cannot read"),
    "directory": (lambda path, student: path.mkdir(), "is a directory"),
    "empty": (lambda path, student: path.touch(), "damaged"),
    "text": (lambda path, student: path.write_text("<!DOCTYPE html> not found"), "not a PyTorch checkpoint"),
    "code": (_saved(lambda w: {"state_dict": w, "extra": RunsCode()}), "would run code"),
    "code, old format": (lambda path, student: torch.save({"x": RunsCode()}, path, **OLD), "would run code"),
    "code, plain pickle": (lambda path, student: path.write_bytes(pickle.dumps(RunsCode())), "would run code"),
    "whole module": (_saved(lambda w: torch.nn.Linear(2, 2)), "would run code"),
    "truncated": (_truncated(0.6), "truncated"),
    "truncated at the end": (_truncated(0.999), "truncated"),
    "truncated, old format": (_truncated(0.6, **OLD), "truncated"),
    "NaN": (_changed("fc.weight", _with(77, np.nan)), "NaN or infinite values in fc.weight"),
    "infinite": (_changed("aud_prenet.3.conv_block.1.running_var", _with(0, np.inf)), "aud_prenet.3.conv_block.1"),
    "too large for float32": (_changed("fc.bias", lambda a: np.full(a.shape, 1e300)), "fc.bias"),
    "integers": (_changed("fc.bias", lambda a: a.astype(np.int32)), "fc.bias is int32"),
    "complex": (_changed("fc.bias", lambda a: a.astype(np.complex64)), "fc.bias is complex64"),
    "misshaped": (_changed("fc.bias", lambda a: a[1:]), "fc.bias is (199,), expected (200,)"),
    "sparse": (_saved(lambda w: w | {"fc.weight": w["fc.weight"].to_sparse()}), "fc.weight"),
    "not an array": (_saved(lambda w: w | {"fc.weight": 3}), "fc.weight is 3"),
    "name twice": (_saved(lambda w: w | {"module.fc.weight": w["fc.weight"]}), "with and without the prefix"),
    "number as a name": (_saved(lambda w: w | {3: w["fc.weight"]}), "names to be text"),
    "bare array": (_saved(lambda w: w["fc.weight"]), "expected a checkpoint"),
    "empty dict": (_saved(lambda w: {}), "expected a checkpoint"),
    "state_dict is no dict": (_saved(lambda w: {"state_dict": [w]}), "state_dict to be a dict"),
    "other network": (_saved(lambda w: {"conv1.weight": torch.ones(3)}), "none of its 1 entries"),
    "loss weights misshaped": (_saved(lambda w: {"state_dict": w, "aw_loss": {"params": torch.ones(2)}}), "(13,)"),
    "loss weights NaN": (
        _saved(lambda w: {"state_dict": w, "aw_loss": {"params": torch.full((13,), torch.nan)}}),
        "aw_loss",
    ),
    "negative step": (_saved(lambda w: {"state_dict": w, "global_step": -1}), "global_step"),
}


def refused(capsys, folder: Path, main, *flags) -> str:
    """Runs a command that must fail: exit status, one line on stderr, nothing printed, nothing left."""
    before = sorted(folder.rglob("*"))
    assert main(["", *flags]) == 1
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("error: ") and err.count("\n") == 1 and err.endswith("\n")
    assert sorted(folder.rglob("*")) == before
    return err


@pytest.mark.parametrize("kind", BAD_FILES)
def test_bad_file_is_refused_in_one_line(kind, student, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write, expected = BAD_FILES[kind]
    write(tmp_path / "bad.pth", student)
    flags = ("--checkpoint=bad.pth", "--model=mtd_vocalist", "--output=deep/out", "--verify")
    assert expected in refused(capsys, tmp_path, torch_to_flax.main, *flags)


def test_file_of_the_other_model_says_which_it_looks_like(student_file, tmp_path, capsys):
    flags = (f"--checkpoint={student_file}", "--model=vocalist", f"--output={tmp_path}/out")
    message = refused(capsys, tmp_path, torch_to_flax.main, *flags)
    assert "looks like mtd_vocalist" in message and "--model=mtd_vocalist" in message


def test_existing_output_is_kept(student_file, tmp_path, capsys):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("precious")
    flags = (f"--checkpoint={student_file}", "--model=mtd_vocalist", f"--output={tmp_path}/out")
    assert "exists already" in refused(capsys, tmp_path, torch_to_flax.main, *flags)
    flags = (f"--checkpoint={tmp_path}/nowhere", f"--output={tmp_path}/out/mine")
    assert "exists already" in refused(capsys, tmp_path, flax_to_torch.main, *flags)
    assert (tmp_path / "out" / "mine").read_text() == "precious"


def test_output_that_cannot_be_made(student_file, tmp_path, capsys):
    (tmp_path / "file").write_text("in the way")
    flags = [f"--checkpoint={student_file}", "--model=mtd_vocalist", f"--output={tmp_path}/file/out"]
    assert torch_to_flax.main(["", *flags]) == 1
    assert "cannot write" in capsys.readouterr().err


def test_no_flax_checkpoint(tmp_path, capsys):
    flags = (f"--checkpoint={tmp_path}/nowhere", f"--output={tmp_path}/x.pth")
    assert "expected a checkpoint directory" in refused(capsys, tmp_path, flax_to_torch.main, *flags)


@pytest.mark.parametrize(
    "flags, expected",
    [
        ([], "--checkpoint"),
        (["--checkpoint=x", "--model=resnet", "--output=y"], "vocalist|mtd_vocalist"),
        (["--checkpoint=x", "--model=vocalist", "--output=y", "--pixels=bgr255"], "rgb255|rgb01|bgr01"),
        (["--checkpoint=x", "--model=vocalist", "--output=y", "--colour=1"], "colour"),
        (["x.pth", "--checkpoint=x", "--model=vocalist", "--output=y"], "x.pth"),
    ],
)
def test_wrong_flags(flags, expected, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert expected in refused(capsys, tmp_path, torch_to_flax.main, *flags)


def test_as_a_program_nothing_is_run_and_nothing_is_left(student, tmp_path):
    torch.save({"state_dict": tensors(student), "extra": RunsCode()}, tmp_path / "bad.pth")
    flags = [f"--checkpoint={tmp_path}/bad.pth", "--model=mtd_vocalist", f"--output={tmp_path}/out"]
    done = subprocess.run(
        [sys.executable, "-m", "converters.torch_to_flax", *flags],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])},
    )
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr.count("\n") == 1 and "mkdir" in done.stderr and "Traceback" not in done.stderr
    assert os.listdir(tmp_path) == ["bad.pth"]


# Verification


def test_verification_notices_one_wrong_entry(student, tmp_path, capsys):
    config = CONFIGS["student"]
    save_model(tmp_path / "flax", model_from_arrays(config, to_flax(config, student, "test"), "test"))
    wrong = {
        "va_transformer.layers.1.self_attn.out_proj.weight": lambda a: a.T,
        "va_transformer.layers.2.fc2.bias": lambda a: a[::-1],
        "vid_prenet.5.conv_block.0.weight": lambda a: a.swapaxes(2, 3),
        "classifier.bias": lambda a: a * np.nan,
    }
    for name, change in wrong.items():
        with pytest.raises(UserError, match="verification failed"):
            verify_conversion(config, student | {name: change(student[name])}, tmp_path / "flax")
    out = capsys.readouterr().out
    assert "verified" not in out and out.count("logits") == 3 * len(wrong)


def test_failed_verification_leaves_nothing(student, student_file, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("converters.verify.TOLERANCE", 0.0)
    flags = [f"--checkpoint={student_file}", "--model=mtd_vocalist", f"--output={tmp_path}/out", "--verify"]
    assert torch_to_flax.main(["", *flags]) == 1
    assert "verification failed" in capsys.readouterr().err
    assert os.listdir(tmp_path) == []
