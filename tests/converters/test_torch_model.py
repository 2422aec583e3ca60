"""The PyTorch twin against the released names, the reference values and, on random networks, our own."""

import functools

import jax
import numpy as np
import pytest
import torch

from converters.torch_model import STUDENT_WIDTHS, TEACHER_WIDTHS, TorchSyncModel
from mtd_jax.network.model import ENCODERS
from mtd_jax.network.weights import bind, model_arrays
from mtd_jax.released.key_table import to_flax, to_torch
from tests.helpers.compiling import QUICK
from tests.helpers.random_models import (
    RANDOM_SEEDS,
    random_config,
    random_inputs,
    twin_and_weights,
)
from tests.helpers.recipe import GOLDEN, recipe_weights, state_dict_shapes

WIDTHS = {"teacher": TEACHER_WIDTHS, "student": STUDENT_WIDTHS}


def _twin(which: str, pixels: str, seed: int) -> TorchSyncModel:
    twin = TorchSyncModel(WIDTHS[which], pixels)
    weights = recipe_weights(state_dict_shapes(which), seed)
    twin.load_state_dict({name: torch.from_numpy(array) for name, array in weights.items()}, strict=True)
    return twin.eval()


@pytest.mark.parametrize("which, parameters", [("teacher", 80_106_561), ("student", 13_280_961)])
def test_state_dict_is_the_released_one(which, parameters):
    twin = TorchSyncModel(WIDTHS[which], "rgb255")
    ours = [(name, tuple(tensor.shape)) for name, tensor in twin.state_dict().items()]
    assert sorted(ours) == sorted(state_dict_shapes(which).items())
    assert sum(p.numel() for p in twin.parameters()) == parameters


def _check(got, want, name, tolerance=1e-4):
    assert got.shape == want.shape, name
    finite = np.isfinite(want)
    np.testing.assert_array_equal(np.isfinite(got), finite, err_msg=name)
    np.testing.assert_array_equal(got[~finite], want[~finite], err_msg=name)
    assert np.abs(got[finite] - want[finite]).max() <= tolerance * np.abs(want[finite]).max(), name


@pytest.mark.parametrize(
    "file, which, pixels, seed",
    [
        ("teacher_forward", "teacher", "rgb01", 0),
        ("student_forward", "student", "rgb255", 1),
        ("student_forward_25f", "student", "rgb255", 1),
    ],
)
def test_forward_reproduces_reference(file, which, pixels, seed):
    golden = np.load(GOLDEN / f"{file}.npz")
    with torch.no_grad():
        logits, features = _twin(which, pixels, seed)(
            torch.from_numpy(golden["frames"]), torch.from_numpy(golden["mel"]).mT
        )
    np.testing.assert_allclose(logits.numpy(), golden["logits"], atol=1e-4)
    for stage in ("video", "audio", "av", "va", "fusion"):
        _check(getattr(features, f"{stage}_tokens").numpy(), golden[f"{stage}_tokens"], f"{stage}_tokens")
    for encoder in ("fusion", "av", "va"):
        for kind, logits_of in (("attn", features.attention_logits), ("value", features.value_logits)):
            name = f"{encoder}_{kind}_logits"
            if name in golden:
                _check(logits_of[encoder].numpy(), golden[name], name)


@pytest.mark.parametrize("seed", RANDOM_SEEDS)
def test_random_networks_compute_the_same(seed):
    """Logits and all features in float64, with stored and batch statistics, and the statistics left behind."""
    with jax.enable_x64(True):
        config = random_config(seed, compute_dtype="float64")
        twin, weights = twin_and_weights(config, seed)
        arrays = {n: a.astype(np.float64) for n, a in to_flax(config, weights, "random").items()}
        inputs = random_inputs(config, 2, seed)

        @functools.partial(jax.jit, compiler_options=QUICK)
        def both_modes(arrays, frames, mel):
            model = bind(config, arrays)
            modes = [model(frames, mel, train=train, return_features=True) for train in (False, True)]
            return modes, model_arrays(model)

        ours, after = both_modes(arrays, *inputs)
        with torch.no_grad():
            theirs = [twin.train(train)(*map(torch.from_numpy, inputs)) for train in (False, True)]
    for (logits, features), (expected_logits, expected) in zip(ours, theirs, strict=True):
        _check(np.asarray(logits), expected_logits.numpy(), "logits", 1e-5)
        for stage in ("video", "audio", "av", "va", "fusion"):
            name = f"{stage}_tokens"
            _check(np.asarray(getattr(features, name)), getattr(expected, name).numpy(), name, 1e-5)
        for kind in ("attention_logits", "value_logits"):
            for encoder in ENCODERS:
                found, wanted = (getattr(f, kind)[encoder] for f in (features, expected))
                _check(np.asarray(found), wanted.numpy(), f"{encoder} {kind}", 1e-5)
    assert not np.allclose(ours[0][0], ours[1][0])
    left = to_torch(config, jax.device_get(after), "random")
    for name, tensor in twin.state_dict().items():
        if not name.endswith("num_batches_tracked"):
            np.testing.assert_allclose(left[name], tensor.numpy(), rtol=1e-6, atol=1e-9, err_msg=name)


def test_bgr01_equals_rgb01_on_swapped_channels():
    frames = torch.from_numpy(np.load(GOLDEN / "student_forward.npz")["frames"])
    rgb, bgr = TorchSyncModel(STUDENT_WIDTHS, "rgb01"), TorchSyncModel(STUDENT_WIDTHS, "bgr01")
    torch.testing.assert_close(bgr.scale_pixels(frames), rgb.scale_pixels(frames.flip(-1)), rtol=0, atol=0)
    assert not torch.equal(bgr.scale_pixels(frames), rgb.scale_pixels(frames))
    assert rgb.scale_pixels(frames).max() <= 1


def test_dropout_only_in_training_mode():
    torch.manual_seed(0)
    golden = np.load(GOLDEN / "student_forward.npz")
    frames, mel = torch.from_numpy(golden["frames"]), torch.from_numpy(golden["mel"]).mT
    twin = _twin("student", "rgb255", 1).train()
    with torch.no_grad():
        assert not torch.equal(twin(frames, mel)[0], twin(frames, mel)[0])
        twin.eval()
        assert torch.equal(twin(frames, mel)[0], twin(frames, mel)[0])


def test_unknown_pixel_convention_is_refused():
    with pytest.raises(ValueError, match="rgb255, rgb01 or bgr01"):
        TorchSyncModel(STUDENT_WIDTHS, "bgr255")
