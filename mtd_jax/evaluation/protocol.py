"""Evaluation protocols: contexts and tolerances, as published for each data set (docs/method.md, section 5)."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mtd_jax.errors import UserError
from mtd_jax.scoring import context_accuracy, window_offsets


@dataclasses.dataclass(frozen=True)
class Protocol:
    """Contexts K to average scores over, and how far from 0 an offset may be to count as right, both in frames.

    Attributes:
      contexts: in ascending order, each at least a window long.
      tolerances: the first is that of the results named "accuracy".
      window_frames: T of the model.
    """

    contexts: tuple[int, ...]
    tolerances: tuple[int, ...]
    window_frames: int

    def measure(self, scores: np.ndarray) -> dict[str, Any]:
        """Scores (N, shifts) of a clip → {"accuracy": {"5": …}, "offset_frames": median at the longest K}."""
        accuracies = {
            self.key(tolerance): {
                str(k): context_accuracy(scores, k, tolerance, window_frames=self.window_frames)
                for k in self.contexts
            }
            for tolerance in self.tolerances
        }
        offsets = window_offsets(scores, self.contexts[-1], self.window_frames)
        return accuracies | {"offset_frames": float(np.median(offsets))}

    def means(self, clips: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, float]]:
        """Means over clips of the accuracies from `measure`: {"accuracy": {"5": …}, …}."""
        keys = [self.key(tolerance) for tolerance in self.tolerances]
        return {
            key: {str(k): float(np.mean([clip[key][str(k)] for clip in clips])) for k in self.contexts}
            for key in keys
        }

    def key(self, tolerance: int) -> str:
        """The name of the results at a tolerance."""
        return "accuracy" if tolerance == self.tolerances[0] else f"accuracy_within_{tolerance}_frames"


def lrs2(window_frames: int) -> Protocol:
    """K = T, T + 2, … T + 10, within ±1 frame. For T = 5 these are the published 5, 7, … 15."""
    return Protocol(tuple(range(window_frames, window_frames + 11, 2)), (1,), window_frames)


def acappella(window_frames: int) -> Protocol:
    """K = 5, 10, … 25, within ±1 and ±5 frames. K cannot be shorter than a window, so T = 25 leaves K = 25.

    Raises:
      UserError: the window is longer than 25 frames.
    """
    contexts = tuple(k for k in range(5, 26, 5) if k >= window_frames)
    if not contexts:
        raise UserError(
            f"expected a model with windows of at most 25 frames for the acappella protocol, got {window_frames}"
        )
    return Protocol(contexts, (1, 5), window_frames)


PROTOCOLS = {"lrs2": lrs2, "acappella": acappella}


def protocol_named(name: str, window_frames: int) -> Protocol:
    """The protocol of config.evaluation.protocol; raises `UserError` for an unknown name."""
    if name not in PROTOCOLS:
        raise UserError(f"config.evaluation.protocol: expected one of {', '.join(PROTOCOLS)}, got {name}")
    return PROTOCOLS[name](window_frames)
