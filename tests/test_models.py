"""Which model a name means: directories, .pth files, addresses, and the included model."""

import json
import os
import sys
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
import torch

import mtd_jax
from mtd_jax import box, cli
from mtd_jax.checkpoint import load_description, save_model
from mtd_jax.errors import UserError
from mtd_jax.models import load_model, local, shown
from mtd_jax.network.model import ModelConfig, SyncModel, count_parameters
from mtd_jax.network.weights import model_arrays
from mtd_jax.released.key_table import to_flax
from tests.helpers.recipe import recipe_weights, state_dict_shapes

STUDENT = ModelConfig.mtd_vocalist()


@pytest.fixture(scope="module")
def weights():
    return recipe_weights(state_dict_shapes("student"), seed=4)


@pytest.fixture
def released(weights, tmp_path, monkeypatch):
    """A released file, in a folder of its own, and an empty cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "files").mkdir()
    path = tmp_path / "files" / "student.pth"
    torch.save({"state_dict": {n: torch.from_numpy(a) for n, a in weights.items()}, "global_step": 7}, path)
    return path


def assert_is(model, weights):
    assert model.config == STUDENT
    arrays = to_flax(STUDENT, weights, "test")
    for name, array in model_arrays(model).items():
        np.testing.assert_array_equal(array, arrays[name], err_msg=name)


def test_a_released_file_is_converted_once_without_pytorch(released, weights, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    assert_is(load_model(released), weights)
    said = capsys.readouterr().err
    assert (
        "student.pth: taken for mtd_vocalist with windows of 5 frames, pixels rgb255" in said and "terms" in said
    )
    directory = local(str(released))
    assert os.listdir(directory.parent) == [directory.name] and capsys.readouterr().err.count("\n") == 1
    described = load_description(directory)
    assert "LRS2" in described["licence"] and described["step"] == 7
    assert_is(load_model(released), weights)
    released.write_bytes(b"\x80 something else")
    with pytest.raises(UserError, match="pip install torch"):
        load_model(released)


def test_an_address_is_downloaded_and_converted_once(released, weights, tmp_path, capsys):
    class Quiet(SimpleHTTPRequestHandler):
        def __init__(self, *args):
            super().__init__(*args, directory=str(tmp_path / "files"))

        def log_message(self, *_):
            asked.append(self.path)

    asked = []
    (tmp_path / "files" / "page.pth").write_text("<!DOCTYPE html> sign in first")
    torch.save({"state_dict": {"a": torch.zeros(1)}}, tmp_path / "files" / "other.pth")
    with ThreadingHTTPServer(("127.0.0.1", 0), Quiet) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_address[1]}"
        assert_is(mtd_jax.load_model(f"{address}/student.pth"), weights)
        assert_is(mtd_jax.load_model(f"{address}/student.pth"), weights)
        assert asked == ["/student.pth"] and "SHA-256" in capsys.readouterr().err
        for _ in range(2):  # the page is not kept
            with pytest.raises(UserError, match="a web page, not a PyTorch checkpoint"):
                load_model(f"{address}/page.pth")
        for _ in range(2):  # nor is the checkpoint of something else
            with pytest.raises(UserError, match=f"^{address}/other.pth: none of its 1 entries belongs to"):
                load_model(f"{address}/other.pth")
        server.shutdown()
    assert asked == ["/student.pth", *2 * ["/page.pth"], *2 * ["/other.pth"]]
    assert len(list((tmp_path / "cache" / "mtd_jax" / "downloads").glob("*.pth"))) == 1


@pytest.mark.parametrize(
    "name, message",
    [
        ("nowhere/student.pth", "nowhere/student.pth: no such file$"),
        ("nowhere", "nowhere: no such file or directory"),
        (5, "expected a checkpoint directory, a .pth file or its address, got 5"),
        ("", "expected a checkpoint directory, a .pth file or its address, got ''"),
        ("ftp://host/student.pth", "expected a path, or an address of the kind gs://.*, got ftp://"),
    ],
)
def test_a_name_that_means_nothing_is_one_line(name, message):
    with pytest.raises(UserError, match=message):
        load_model(name)


def test_a_cache_that_cannot_be_written_is_one_line(released, tmp_path):
    (tmp_path / "cache").write_text("in the way")
    with pytest.raises(UserError, match="cannot write"):
        load_model(released)


def test_without_a_name_it_is_the_model_in_the_box():
    model = mtd_jax.load_model()
    assert count_parameters(model) <= 3_000_000 and box.FILE.stat().st_size <= 6_000_000
    assert shown(None) == f"the included model ({box.box_name()})" and shown("a/b") == "a/b"
    card = (box.FILE.parent / "MODEL_CARD.md").read_text()
    assert box.box_name() in card and f"{count_parameters(model):,}" in card and "CC BY 4.0" in card


def test_packing_keeps_what_float16_can_hold(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(box, "FILE", tmp_path / "model.npz")
    model = SyncModel(ModelConfig.tiny(), seed=3)
    save_model(tmp_path / "small", model, step=5, source="a test")
    assert box.main(["", f"--checkpoint={tmp_path}/small", "--name=mine", "--licence=free"]) == 0
    assert "mine" in capsys.readouterr().out
    packed = model_arrays(box.load_box())
    for name, array in model_arrays(model).items():
        np.testing.assert_allclose(packed[name], array, rtol=1e-3, atol=1e-7)
    with np.load(box.FILE) as file:
        described = json.loads(str(file["description"]))
    assert described["licence"] == "free" and described["step"] == 5 and "checksums" not in described
    save_model(tmp_path / "large", SyncModel(ModelConfig.mtd_vocalist()))
    with pytest.raises(UserError, match="expected at most 6000000 bytes"):
        box.pack(str(tmp_path / "large"), "large", "")
    box.FILE.write_bytes(box.FILE.read_bytes()[:1000])
    with pytest.raises(UserError, match="install the package again"):
        box.load_box()


def test_an_empty_name_is_a_mistake(capsys):
    assert cli.run(["", "--mode=infer", "--video=x.mp4", "--checkpoint="]) == 1
    assert "--checkpoint: expected a directory" in capsys.readouterr().err
