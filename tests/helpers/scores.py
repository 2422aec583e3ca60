"""Scores whose offset is known."""

import numpy as np

from mtd_jax.sync.evidence import Scores


def made_up(offsets, max_shift=15, lead=3.0, seed=0, every=1, start=0):
    """Scores of windows whose audio is early by the given offsets, with noise; NaN beyond the audio's ends."""
    offsets = np.asarray(offsets)
    table = np.random.default_rng(seed).normal(size=(len(offsets), 2 * max_shift + 1)).astype(np.float32)
    table[np.arange(len(offsets)), max_shift - offsets] += lead
    starts = start + every * np.arange(len(offsets))
    audio = starts[:, None] + np.arange(-max_shift, max_shift + 1)
    table[(audio < 0) | (audio > starts[-1])] = np.nan
    return Scores(starts, table, every)
