"""Compares a converted checkpoint with the PyTorch twin, stage by stage, on the same random input."""

import os
from collections.abc import Mapping

import jax
import numpy as np
import torch

from mtd_jax.checkpoint import load_model
from mtd_jax.errors import UserError
from mtd_jax.network.model import ENCODERS, ModelConfig, SyncModel

from .torch_model import TorchSyncModel

TOLERANCE = 1e-4  # of a stage's largest magnitude
BATCH = 2  # a bright, loud window and a dark, quiet one


def twin_of(config: ModelConfig) -> TorchSyncModel:
    """The PyTorch twin of a config, with random weights, in eval mode."""
    return TorchSyncModel(
        widths=config.widths,
        pixels=config.pixels,
        num_heads=config.num_heads,
        num_layers=config.num_layers,
        stem_stride=config.stem_stride,
        last_stride=config.last_stride,
        embedding_dropout=config.embedding_dropout,
        relu_dropout=config.relu_dropout,
        residual_dropout=config.residual_dropout,
    ).eval()


def compare_stages(twin: TorchSyncModel, model: SyncModel, seed: int = 0) -> dict[str, tuple[float, float]]:
    """Compares both networks on one random batch.

    Returns:
      {stage: (largest absolute difference, that difference relative to the stage's largest magnitude)}. Both are
      inf if −inf (masked attention logits) is not in the same places.
    """
    rng = np.random.default_rng(seed)
    num_frames = model.config.window_frames
    frames = rng.integers(0, 256, (BATCH, num_frames, 48, 96, 3), dtype=np.uint8)
    mel = rng.uniform(-4, 4, (BATCH, num_frames * 16 // 5, 80)).astype(np.float32)
    # What the encoders add disappears next to large tokens; the dark, quiet window makes tokens small, so that an
    # error in an encoder shows.
    frames[1] //= 255
    mel[1] /= 16
    with torch.no_grad():
        expected_logits, expected = twin(torch.from_numpy(frames), torch.from_numpy(mel))
    logits, features = model(frames, mel, return_features=True)
    tokens = ("video_tokens", "audio_tokens", "av_tokens", "va_tokens", "fusion_tokens")
    stages = {name.replace("_", " "): [(getattr(expected, name), getattr(features, name))] for name in tokens}
    for name in ("attention_logits", "value_logits"):
        stages[name.replace("_", " ")] = [
            (getattr(expected, name)[encoder], getattr(features, name)[encoder]) for encoder in ENCODERS
        ]
    stages["logits"] = [(expected_logits, logits)]
    return {stage: _worst(pairs) for stage, pairs in stages.items()}


def _worst(pairs: list[tuple[torch.Tensor, jax.Array]]) -> tuple[float, float]:
    differences = [_difference(want.numpy(), np.asarray(got)) for want, got in pairs]
    return max(d[0] for d in differences), max(d[1] for d in differences)


def _difference(want: np.ndarray, got: np.ndarray) -> tuple[float, float]:
    masked = np.isneginf(want)
    if want.shape != got.shape or (masked != np.isneginf(got)).any():
        return np.inf, np.inf
    want, got = want[~masked], got[~masked]
    largest = float(np.abs(got - want).max())
    if not np.isfinite(largest):
        return np.inf, np.inf
    return largest, largest / max(float(np.abs(want).max()), float(np.finfo(np.float32).tiny))


def verify_conversion(
    config: ModelConfig, state_dict: Mapping[str, np.ndarray], directory: str | os.PathLike
) -> None:
    """Compares the checkpoint in `directory` with the twin of `state_dict`, and prints one line per stage.

    Raises:
      UserError: a stage differs by more than `TOLERANCE` of its largest magnitude.
    """
    twin = twin_of(config)
    twin.load_state_dict({name: torch.from_numpy(np.array(array)) for name, array in state_dict.items()})
    stages = compare_stages(twin, load_model(directory))
    print(f"{'stage':<18} {'max. abs. diff.':>15} {'max. rel. diff.':>15}")
    for stage, (absolute, relative) in stages.items():
        print(f"{stage:<18} {absolute:>15.2e} {relative:>15.2e}")
    worst = max(stages, key=lambda stage: stages[stage][1])
    if not stages[worst][1] <= TOLERANCE:
        raise UserError(
            f"verification failed: {worst} differ by {stages[worst][1]:.2e} of their largest magnitude, "
            f"expected at most {TOLERANCE:.0e}; nothing was written"
        )
    print(f"verified: the largest relative difference is {stages[worst][1]:.2e} ({worst}), under {TOLERANCE:.0e}")
