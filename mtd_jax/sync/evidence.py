"""From the scores of all faces of a film to one offset, and how sure it is. Pure NumPy.

Every window votes for the offsets that fit it. Where several faces are seen at once, each offset gets the votes of
the face that fits it best, second by second (`pool`): so whoever speaks is heard, and listeners outvote nobody. As
every offset may choose its own speaker, none is favoured.

Confidence compares the best offset with its rivals, all others but its neighbours, on the windows that see both.
The mean lead over a rival in units of its standard error is t. For the rival that comes closest, doubt is the part
of Student's t distribution outside ±t, and confidence is 1 − doubt^1.5: near 1 if no rival comes close, 0 if one
is as good. (The exponent is a calibration: docs/video.md has the films that it rests on.)
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int, Shaped
from scipy import special

from mtd_jax.data.clip import FPS

TOLERANCE = 1  # frames; viewers do not notice 40 ms, and the published protocol counts it as in sync
MEMORY = 5  # frames after which windows say something new; longer windows have a longer one
_BLOCK = FPS  # frames in which nobody else begins to speak
_CALIBRATION = 1.5  # exponent of the doubt
_FEWEST = 4  # independent windows that two offsets must share to be compared


@dataclasses.dataclass(frozen=True)
class Scores:
    """The scores of one face, or of all faces of a film once they are pooled.

    Attributes:
      starts: first frame of every window, in frames of the film, increasing.
      table: (windows, 2·max_shift + 1) logits; column c is audio shifted by c − max_shift frames; NaN where there
        is no audio.
      every: frames from one window to the next within a stretch.
      memory: frames after which windows are independent of each other.
    """

    starts: Int[np.ndarray, " windows"]
    table: Shaped[np.ndarray, "windows shifts"]
    every: int
    memory: int = MEMORY

    @property
    def max_shift(self) -> int:
        return self.table.shape[1] // 2

    @property
    def share(self) -> float:
        """Of the windows, those that are independent of each other."""
        return min(self.every / self.memory, 1.0)

    def only(self, chosen: Int[np.ndarray, " chosen"]) -> "Scores":
        """The windows with these indices."""
        return dataclasses.replace(self, starts=self.starts[chosen], table=self.table[chosen])

    def moved(self, frames_per_second: float) -> "Scores":
        """As if the offset grew by so much with time: what is then found is the offset at the first frame."""
        moves = np.rint(frames_per_second * self.starts / FPS).astype(int)
        columns = np.arange(self.table.shape[1])[None] - moves[:, None]
        inside = (columns >= 0) & (columns < self.table.shape[1])
        table = np.take_along_axis(self.table, np.clip(columns, 0, self.table.shape[1] - 1), axis=1)
        return dataclasses.replace(self, table=np.where(inside, table, np.nan))


@dataclasses.dataclass(frozen=True)
class Estimate:
    """The best offset of some windows.

    Attributes:
      offset_frames: in frames of 40 ms; positive = the audio is early, so delay it to fix the video.
      confidence: 0 … 1, see above.
      t: smallest lead over a rival, in standard errors; at most 1e6.
      score: mean logit at the offset; above 0 the model considers audio and video in sync.
      windows: how many independent ones there were.
      compared: the smallest number of them that a rival was compared on.
    """

    offset_frames: int
    confidence: float
    t: float
    score: float
    windows: float
    compared: float


def pool(faces: Sequence[Scores]) -> Scores:
    """The scores of a film: in every second each offset has those of the face that fits it best.

    Args:
      faces: at least one; all of the same shifts, spacing and memory. They may overlap in time.

    Returns:
      One row for each moment at which some face was scored. Rows keep their logits, not only their differences.
    """
    starts = np.unique(np.concatenate([face.starts for face in faces]))
    first = faces[0]
    table = np.full((len(starts), first.table.shape[1]), np.nan)
    best = np.full((starts.max() // _BLOCK + 1 if len(starts) else 0, first.table.shape[1]), -np.inf)
    for face in sorted(faces, key=lambda face: len(face.starts)):
        rows, blocks = np.searchsorted(starts, face.starts), face.starts // _BLOCK
        sums = np.zeros_like(best)
        np.add.at(sums, blocks, np.nan_to_num(centred(face)))
        seen = np.zeros(len(best), bool)
        seen[blocks] = True
        better = seen[:, None] & (sums > best)
        best = np.where(better, sums, best)
        table[rows] = np.where(better[blocks] | np.isnan(table[rows]), face.table, table[rows])
    return Scores(starts, table, first.every, first.memory)


def estimate(scores: Scores, everywhere: bool = True) -> Estimate:
    """The best offset of these windows, and the confidence in it.

    Args:
      everywhere: a rival that was seen in too few windows leaves doubt; else only those that were seen count.
    """
    scores = scores.only(np.flatnonzero(np.isfinite(scores.table).any(axis=1)))
    table = scores.table
    if not len(table):
        return Estimate(0, 0.0, 0.0, 0.0, 0.0, 0.0)
    share = scores.share
    counts = np.isfinite(table).sum(axis=0) * share
    leading = centred(scores)
    means = np.where(counts >= min(_FEWEST, counts.max()), _mean(leading, axis=0), -np.inf)
    best = int(np.argmax(means))
    leads = {
        rival: leading[:, best] - leading[:, rival] for rival in range(len(means)) if abs(rival - best) > TOLERANCE
    }
    compared, t, confidence, rivals = np.inf, 1e6, 1.0, 0
    for lead in leads.values():
        lead = lead[np.isfinite(lead)]
        count = len(lead) * share
        compared = min(compared, count)
        if count < _FEWEST:
            if everywhere:
                t, confidence = 0.0, 0.0
            continue
        rivals += 1
        error = max(_standard_error(lead, scores.every, share), 1e-9)
        here = float(np.clip(lead.mean() / error, 0, 1e6))
        t = min(t, here)
        doubt = float(2 * special.stdtr(count - 1, -here))
        confidence = min(confidence, 1 - doubt**_CALIBRATION)
    if not rivals:
        t, confidence = 0.0, 0.0
    score = float(np.nanmean(table[:, best]))
    return Estimate(scores.max_shift - best, confidence, t, score, len(table) * share, compared)


def centred(scores: Scores, of: Scores | None = None) -> Float[np.ndarray, "windows shifts"]:
    """Scores less the mean of their window, or of the same window of `of`: what tells offsets apart."""
    table = np.asarray(scores.table, np.float64)
    return table - _mean(np.asarray((of or scores).table, np.float64), axis=1)[:, None]


def _standard_error(lead: Float[np.ndarray, " windows"], every: int, share: float) -> float:
    """Standard error of the mean.

    Windows are not independent: neighbours share frames, and the rhythm of speech reaches further. So this takes
    the long-run variance (Newey and West 1987, lags up to 1 s), and at least that of the independent windows.
    """
    count = len(lead)
    rest = lead - lead.mean()
    lags = min(FPS // every, count // 4)
    total = square = float(rest @ rest)
    for lag in range(1, lags + 1):
        total += 2 * (1 - lag / (lags + 1)) * float(rest[lag:] @ rest[:-lag])
    return float(np.sqrt(max(total, square / share)) / count)


def _mean(table: np.ndarray, axis: int) -> np.ndarray:
    """Mean of the finite entries; NaN where there is none, without a warning."""
    finite = np.isfinite(table)
    counts = finite.sum(axis=axis)
    return np.where(counts, np.where(finite, table, 0).sum(axis=axis) / np.maximum(counts, 1), np.nan)
