"""A documented sync score of generated videos: measures of a clip, and of a set with intervals. Pure NumPy.

Scores depend on the model and on this protocol, so both are named with them. Numbers of different models or
versions cannot be compared, nor can these with the LSE-D and LSE-C of SyncNet (Prajwal et al. 2020), in whose
manner `distance` and `contrast` are made. docs/deploy.md says how they stand up to crops, codecs and noise.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from mtd_jax.errors import UserError
from mtd_jax.scoring import MAX_SHIFT, context_scores
from mtd_jax.sync.evidence import TOLERANCE
from mtd_jax.sync.verdict import Result

VERSION = 1  # of the protocol; increment when the same video and model give other numbers
_CONTEXT = 15  # frames
_RESAMPLES = 2000
_SEED = 0
_INTERVAL = (2.5, 97.5)  # percentiles


@dataclasses.dataclass(frozen=True)
class ClipScore:
    """Of the face that speaks, with every window scored at every offset of ±15 frames.

    Attributes:
      logit: mean logit at offset 0; above 0 the model finds audio and video in sync more often than not.
      within_1: share of windows whose best offset, over 15 frames, is within ±1 frame of 0.
      offset_frames, confidence: as a verdict has them; positive = the audio is early.
      distance: minus the largest of the mean logits of all offsets; lower is better. In the manner of LSE-D.
      contrast: the largest of the mean logits less their median; higher is better. In the manner of LSE-C.
      windows: how many were scored.
    """

    logit: float
    within_1: float
    offset_frames: int
    confidence: float
    distance: float
    contrast: float
    windows: int


MEASURES = {  # of a set: how each is shown
    "logit": "mean logit at 0",
    "within_1": "windows within ±1 frame",
    "distance": "distance (this model's)",
    "contrast": "contrast (this model's)",
}


def clip_score(result: Result) -> ClipScore:
    """The score of one clip.

    Args: result: of `detect_offset` with `thorough` and a range of ±15 frames.

    Raises:
      UserError: there is no audio where the face is seen.
    """
    scores = result.speaker_track.scores
    table = scores.table[np.isfinite(scores.table[:, MAX_SHIFT])]
    if not len(table):
        raise UserError(f"{result.video}: there is no audio where the face is seen")
    means = np.nanmean(table[:, np.isfinite(table).any(axis=0)], axis=0)
    # Offsets beyond the ends of the audio cannot be the best one.
    filled = np.where(np.isfinite(table), table, np.nanmin(table, axis=1, keepdims=True))
    best = np.argmax(context_scores(filled, max(_CONTEXT, scores.memory), scores.memory), axis=1)
    return ClipScore(
        logit=float(table[:, MAX_SHIFT].mean()),
        within_1=float(np.mean(np.abs(MAX_SHIFT - best) <= TOLERANCE)),
        offset_frames=result.offset_frames,
        confidence=result.confidence,
        distance=-float(means.max()),
        contrast=float(means.max() - np.median(means)),
        windows=len(table),
    )


def set_score(clips: Mapping[str, ClipScore]) -> dict[str, Any]:
    """Means over clips with 95 % intervals, and how often each offset was measured. Args: clips: by name, ≥ 1."""
    values = {name: np.array([getattr(clip, name) for clip in clips.values()]) for name in MEASURES}
    offsets = [clip.offset_frames for clip in clips.values()]
    return {
        "clips": len(clips),
        **{name: _mean(of_clips) for name, of_clips in values.items()},
        "offsets": {str(offset): offsets.count(offset) for offset in sorted(set(offsets))},
    }


def compared(clips: Mapping[str, ClipScore], references: Mapping[str, ClipScore]) -> dict[str, Any]:
    """What generated clips have more than their references of the same names, with 95 % intervals of the pairs.

    Also how many pairs there are, and the names of those that have no partner.
    """
    pairs = [(clips[name], references[name]) for name in clips if name in references]
    return {
        "pairs": len(pairs),
        "alone": sorted(clips.keys() ^ references.keys()),
        **{name: _mean(np.array([getattr(a, name) - getattr(b, name) for a, b in pairs])) for name in MEASURES},
    }


def _mean(values: Float[np.ndarray, " clips"]) -> dict[str, float | Sequence[float]]:
    """With its bootstrap interval: clips are drawn with replacement, the same draws for every measure."""
    rng = np.random.default_rng(_SEED)
    means = values[rng.integers(0, len(values), (_RESAMPLES, len(values)))].mean(axis=1)
    low, high = np.percentile(means, _INTERVAL)
    return {"mean": float(values.mean()), "interval": [float(low), float(high)]}
