"""How sure an offset is. Pure NumPy.

The best offset is compared with every other one that is not its neighbour, window by window. The mean difference
of their scores, in units of its standard error, is z; the smallest z counts (the closest rival), and
confidence = erf(z / √2). So 1 means that no other offset comes close, and 0 that another one does just as well.
"""

import math

import numpy as np

from mtd_jax.data.clip import FPS

TOLERANCE = 1  # frames; people don't notice 40 ms, and the published protocol counts them as right


def best_offset(scores: np.ndarray) -> tuple[int, float]:
    """The offset with the best mean over the windows, and its lead over the closest rival in standard errors."""
    means = scores.mean(axis=0)
    best, middle = int(np.argmax(means)), scores.shape[1] // 2
    rivals = np.abs(np.arange(len(means)) - best) > TOLERANCE
    if not rivals.any() or len(scores) < 2:
        return middle - best, 0.0
    lead = scores[:, [best]] - scores[:, rivals]
    error = np.maximum(_standard_error(lead), 1e-9)
    return middle - best, float(min((lead.mean(axis=0) / error).min(), 1e6))


def _standard_error(values: np.ndarray) -> np.ndarray:
    """Of the mean over axis 0. Neighbouring windows share frames, and speech rhythm reaches further: the long-run
    variance (Newey and West 1987, lags up to 1 s), never less than if every fifth window were independent."""
    count = len(values)
    centred = values - values.mean(axis=0)
    lags = min(FPS, count // 4)
    total = (centred**2).sum(axis=0)
    floor = 5 * total
    for lag in range(1, lags + 1):
        total = total + 2 * (1 - lag / (lags + 1)) * (centred[lag:] * centred[:-lag]).sum(axis=0)
    return np.sqrt(np.maximum(total, floor)) / count


def confidence_of(z: float) -> float:
    """0 … 1; 0 where a rival is ahead."""
    return math.erf(max(z, 0.0) / math.sqrt(2))
