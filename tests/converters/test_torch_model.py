"""The PyTorch twin against the released names and the reference values."""

import numpy as np
import pytest
import torch

from converters.torch_model import STUDENT_WIDTHS, TEACHER_WIDTHS, TorchSyncModel
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


def _check(got, want, name):
    got = got.numpy()
    assert got.shape == want.shape, name
    finite = np.isfinite(want)
    np.testing.assert_array_equal(np.isfinite(got), finite, err_msg=name)
    np.testing.assert_array_equal(got[~finite], want[~finite], err_msg=name)
    assert np.abs(got[finite] - want[finite]).max() <= 1e-4 * np.abs(want[finite]).max(), name


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
        _check(getattr(features, f"{stage}_tokens"), golden[f"{stage}_tokens"], f"{stage}_tokens")
    for encoder in ("fusion", "av", "va"):
        for kind, logits_of in (("attn", features.attention_logits), ("value", features.value_logits)):
            name = f"{encoder}_{kind}_logits"
            if name in golden:
                _check(logits_of[encoder], golden[name], name)


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
