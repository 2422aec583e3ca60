"""`mtd_jax.sync_loss` for generators in PyTorch: the same loss and gradients, from the PyTorch twin."""

import os
from typing import Self

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mtd_jax.data.clip import SAMPLES_PER_FRAME
from mtd_jax.errors import UserError
from mtd_jax.guidance import look_at
from mtd_jax.models import load_model
from mtd_jax.network.mel import HOP, N_FFT, NUM_MEL, mel_filterbank, periodic_hann
from mtd_jax.network.weights import model_arrays
from mtd_jax.released.key_table import to_torch
from mtd_jax.scoring import LARGEST_SAMPLE, mel_steps

from .verify import twin_of


class TorchSyncLoss(nn.Module):
    """How far windows are from being in sync in the eyes of a frozen model; lower is better.

    The mean of softplus(margin − logit). The model stays in eval mode, and nothing in it is trained.
    """

    window: Tensor
    filterbank: Tensor

    def __init__(self, checkpoint: str | os.PathLike | None = None):
        """Args: checkpoint: as for `mtd_jax.load_model`; None: the included model.

        Raises:
          UserError: there is no such model, or it has two towers, which the PyTorch twin does not have.
        """
        super().__init__()
        model = load_model(checkpoint)
        if model.config.fusion == "none":
            raise UserError(
                f"{checkpoint}: the PyTorch twin has no two towers; expected a model with transformers"
            )
        arrays = {name: np.asarray(array) for name, array in model_arrays(model).items()}
        self.model = twin_of(model.config)
        weights = to_torch(model.config, arrays, str(checkpoint))
        self.model.load_state_dict({name: torch.tensor(array) for name, array in weights.items()})
        self.register_buffer("window", torch.tensor(periodic_hann()), persistent=False)
        self.register_buffer("filterbank", torch.tensor(mel_filterbank()), persistent=False)
        self.requires_grad_(False)
        self.eval()
        self._looked = False

    def train(self, mode: bool = True) -> Self:
        """Does nothing: a generator that holds this loss may call it on all of its parts."""
        return super().train(False)

    def forward(self, frames: Tensor, sound: Tensor, offset: int = 0, margin: float = 0.0) -> Tensor:
        """The loss, differentiable in both.

        Args:
          frames: (batch, T, 96 or 48, 96, 3), RGB in [0, 255]; whole faces are cut to their lower halves.
          sound: 16 kHz in [−1, 1), (batch, 640·T), with |offset| frames more at both ends; or the log-mel
            spectrogram (batch, S, 80).
          offset: frames by which the audio is to be early (negative: late).
          margin: logit above which a window counts as good.

        Both may be of any dtype; int16 samples are scaled to [−1, 1). The first frames are looked at, and a
        warning says if they look like BGR, or like pixels in [0, 1].

        Raises:
          ValueError: no tensors, a shape that does not fit, or samples far beyond [−1, 1).
        """
        for name, given in (("frames", frames), ("sound", sound)):
            if not isinstance(given, Tensor):
                raise ValueError(f"{name}: expected a tensor, got {type(given).__name__}")
        if frames.ndim != 5 or frames.shape[2] not in (48, 96) or frames.shape[3:] != (96, 3):
            raise ValueError(f"frames: expected (batch, T, 96 or 48, 96, 3), got {tuple(frames.shape)}")
        if not self._looked:
            self._looked = True
            look_at(frames.detach().float().cpu().numpy())
        frames, sound = frames.to(self.window.dtype), self._samples(sound)
        mel = self._mel(sound, frames.shape[1], offset)
        if len(mel) != len(frames):
            raise ValueError(f"sound: expected as many windows as frames, {len(frames)}, got {len(mel)}")
        logits, _ = self.model(frames[:, :, -48:], mel)
        return F.softplus(margin - logits).mean()

    def _samples(self, sound: Tensor) -> Tensor:
        """Samples in [−1, 1) or a spectrogram, in the dtype of the model."""
        scale = 32768 if sound.dtype == torch.int16 else 1
        sound = sound.to(self.window.dtype) / scale
        if sound.ndim == 2 and not sound.detach().abs().max() < LARGEST_SAMPLE:
            raise ValueError("sound: expected finite samples in [−1, 1); divide those of int16 by 32768")
        return sound

    def _mel(self, sound: Tensor, window: int, offset: int) -> Tensor:
        steps = mel_steps(window)
        if sound.ndim == 3 and sound.shape[1:] == (steps, NUM_MEL):
            if offset:
                raise ValueError("sound: an offset needs a waveform, got a spectrogram")
            return sound
        needed = (window + 2 * abs(offset)) * SAMPLES_PER_FRAME
        if sound.ndim != 2 or sound.shape[1] != needed:
            expected = f"(batch, {needed})" + ("" if offset else f" or (batch, {steps}, {NUM_MEL})")
            raise ValueError(
                f"sound: expected {expected} for windows of {window} frames, got {tuple(sound.shape)}"
            )
        start = (abs(offset) - offset) * SAMPLES_PER_FRAME
        part = sound[:, start : start + window * SAMPLES_PER_FRAME]
        chunks = F.pad(part, (N_FFT // 2, N_FFT // 2), mode="reflect").unfold(-1, N_FFT, HOP)[:, :steps]
        mel = torch.fft.rfft(chunks * self.window).abs() @ self.filterbank.T
        decibel = 20 * torch.log10(mel.clamp(min=1e-5)) - 20
        return (8 * (decibel + 100) / 100 - 4).clamp(-4, 4)
