"""The sync loss in PyTorch equals that in JAX, with its gradients."""

import jax
import numpy as np
import pytest
import torch

import mtd_jax
from converters.torch_loss import TorchSyncLoss
from mtd_jax.checkpoint import save_model
from mtd_jax.errors import UserError
from mtd_jax.network.model import ModelConfig, SyncModel
from mtd_jax.synthetic.clips import synthetic_clip


@pytest.fixture(scope="module")
def windows():
    """Two windows of a synthetic face, with two frames more of sound at both ends."""
    clip = synthetic_clip(0, 1, 0, seconds=1.6)
    frames = np.stack([clip.frames[start : start + 5] for start in (5, 14)]).astype(np.float32)
    sound = np.stack([clip.waveform[640 * (start - 2) : 640 * (start + 7)] for start in (5, 14)])
    return frames, sound.astype(np.float32) / 32768


@pytest.mark.parametrize("offset, margin", [(0, 0.0), (2, 1.5)])
def test_loss_and_gradients_are_those_of_jax(windows, offset, margin):
    frames, sound = windows
    sound = sound[:, (2 - offset) * 640 : sound.shape[1] - (2 - offset) * 640]
    model = mtd_jax.load_model()

    def loss(frames, sound):
        return mtd_jax.sync_loss(model, frames, sound, offset=offset, margin=margin)

    expected, gradients = jax.value_and_grad(loss, argnums=(0, 1))(frames, sound)
    inputs = [torch.tensor(x, requires_grad=True) for x in (frames, sound)]
    found = TorchSyncLoss()(*inputs, offset=offset, margin=margin)
    found.backward()
    assert found.item() == pytest.approx(float(expected), rel=1e-5)
    for want, x in zip(gradients, inputs, strict=True):
        assert x.grad is not None
        np.testing.assert_allclose(x.grad, want, atol=1e-4 * float(np.abs(want).max()))


def test_it_is_frozen_and_says_what_does_not_fit(windows, tmp_path):
    frames, sound = map(torch.tensor, windows)
    loss = TorchSyncLoss().train()
    assert not loss.training and not loss.model.training and not any(p.requires_grad for p in loss.parameters())
    with pytest.raises(
        ValueError, match=r"sound: expected \(batch, 3200\) or \(batch, 16, 80\) .*got \(2, 5760\)"
    ):
        loss(frames, sound)
    with pytest.raises(ValueError, match=r"frames: expected \(batch, T, 96 or 48, 96, 3\)"):
        loss(frames.permute(0, 1, 4, 2, 3), sound)
    with pytest.raises(ValueError, match="as many windows as frames, 1, got 2"):
        loss(frames[:1], sound, offset=2)
    mel = np.asarray(mtd_jax.log_mel(windows[1][:, 1280:-1280]))[:, :-1]
    heard = loss(frames, sound[:, 1280:-1280]).item()
    assert loss(frames, torch.tensor(mel)).item() == pytest.approx(heard, rel=1e-4)
    with pytest.raises(ValueError, match="an offset needs a waveform, got a spectrogram"):
        loss(frames, torch.tensor(mel), offset=1)
    with pytest.raises(ValueError, match="frames: expected a tensor, got ndarray"):
        loss(windows[0], sound)
    samples = (sound[:, 1280:-1280] * 32768).round()
    with pytest.raises(ValueError, match=r"expected finite samples in \[−1, 1\)"):
        loss(frames, samples)
    assert loss(frames, samples.to(torch.int16)).item() == pytest.approx(heard, rel=1e-3)
    assert loss.double()(frames, sound[:, 1280:-1280]).item() == pytest.approx(heard, rel=1e-4)
    with pytest.warns(UserWarning, match="expected 0 to 255"):
        TorchSyncLoss()(frames / 255, sound[:, 1280:-1280])
    save_model(tmp_path / "towers", SyncModel(ModelConfig.tiny(fusion="none")))
    with pytest.raises(UserError, match="the PyTorch twin has no two towers"):
        TorchSyncLoss(tmp_path / "towers")
