"""Score tables whose offset is known."""

import numpy as np

from mtd_jax.scoring import OUT_OF_CLIP


def made_up(offsets, max_shift=15, lead=3.0, seed=0):
    """Scores of windows whose audio is early by the given offsets, with noise; masked as `score_clip` does."""
    offsets = np.asarray(offsets)
    scores = np.random.default_rng(seed).normal(size=(len(offsets), 2 * max_shift + 1)).astype(np.float32)
    scores[np.arange(len(offsets)), max_shift - offsets] += lead
    audio = np.arange(len(offsets))[:, None] + np.arange(-max_shift, max_shift + 1)
    scores[(audio < 0) | (audio >= len(offsets))] = OUT_OF_CLIP
    return scores
