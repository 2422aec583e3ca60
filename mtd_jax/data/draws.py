"""Draw number → example: the random part of the data side, as pure functions of (seed, number).

Draw n of training takes a random clip with the generator of (seed, n), so a run is a numbered sequence of draws.
Row r of global batch k is draw k·B + r; a process of several works out its own rows of it.
"""

import dataclasses

import numpy as np
from absl import logging

from mtd_jax.data.clip import FACE_SIZE, SAMPLES_PER_FRAME, ClipSource
from mtd_jax.data.sampling import Pairing
from mtd_jax.data.unusable import UnusableClip
from mtd_jax.errors import UserError

MAX_SKIPS = 16  # unusable clips in a row, in one draw, before the data set is called broken
_reported: set[str] = set()  # unusable clips this process has logged


@dataclasses.dataclass(frozen=True)
class Shard:
    """The part of every global batch that belongs to training process `index` of `count`."""

    index: int = 0
    count: int = 1

    def __post_init__(self):
        if not 0 <= self.index < self.count:
            raise UserError(f"process {self.index} of {self.count}; expected 0 to {self.count - 1}")


@dataclasses.dataclass(frozen=True)
class _Draw:
    """What both kinds of draw know.

    Attributes:
      source: the clips.
      pairing: how a clip becomes an example.
      seed: 0 or more.
      batch_size: B of the global batch, over all processes.
      shard: whose rows are drawn.
    """

    source: ClipSource
    pairing: Pairing
    seed: int
    batch_size: int
    shard: Shard

    def __post_init__(self):
        if self.seed < 0:
            raise UserError(f"data seed is {self.seed}; expected 0 or more")
        if self.batch_size < 1 or self.batch_size % self.shard.count:
            raise UserError(f"batch size {self.batch_size} does not divide over {self.shard.count} processes")
        if len(self.source) == 0:
            raise UserError("the data set has no clips to draw from")

    @property
    def rows(self) -> int:
        """Rows of a batch in this process."""
        return self.batch_size // self.shard.count

    def number(self, local: int) -> int:
        """The draw number of this process's row `local`, counted from its first batch on."""
        batch, row = divmod(int(local), self.rows)
        return batch * self.batch_size + self.shard.index * self.rows + row


class TrainingDraw(_Draw):
    """Local row number → example, from a clip chosen at random (with replacement).

    An unusable clip is passed over by going on with the same generator, logged once per process and counted in the
    example's `skipped`.

    Raises:
      UserError: 16 unusable clips in a row.
    """

    def __call__(self, local: int) -> dict[str, np.ndarray]:
        rng = np.random.default_rng([self.seed, self.number(local)])
        for skipped in range(MAX_SKIPS):
            clip = self.source[int(rng.integers(len(self.source)))]
            try:
                return _example(*self.pairing.draw(rng, clip), skipped)
            except UnusableClip as error:
                _report_once(error)
                last = error
        raise UserError(f"{MAX_SKIPS} unusable clips in a row, the last one {last}; check the data set")


@dataclasses.dataclass(frozen=True)
class EvaluationDraw(_Draw):
    """Local row number → example with `valid`, from the clips in turn.

    Rows past the last clip, and those of unusable clips, hold zeros and are not valid.
    """

    pairs_per_clip: int

    @property
    def total(self) -> int:
        """Draws in one pass over the source."""
        return len(self.source) * self.pairs_per_clip

    def __call__(self, local: int) -> dict[str, np.ndarray]:
        number = self.number(local)
        skipped = 0
        if number < self.total:
            # The spawn key keeps these generators apart from those of training with the same seed.
            rng = np.random.default_rng(np.random.SeedSequence([self.seed, number], spawn_key=(1,)))
            clip = self.source[number // self.pairs_per_clip]
            try:
                return _example(*self.pairing.draw(rng, clip), skipped) | {"valid": np.bool_(True)}
            except UnusableClip as error:
                _report_once(error)
                skipped = 1
        windows, length = self.pairing.windows_per_example, self.pairing.window_frames
        frames = np.zeros((windows, length, FACE_SIZE // 2, FACE_SIZE, 3), np.uint8)
        audio = np.zeros((windows, length * SAMPLES_PER_FRAME), np.int16)
        labels = np.zeros((windows, windows), np.float32)
        return _example(frames, audio, labels, skipped) | {"valid": np.bool_(False)}


def _example(frames, audio, labels, skipped: int) -> dict[str, np.ndarray]:
    return {"frames": frames, "audio": audio, "labels": labels, "skipped": np.int32(skipped)}


def _report_once(error: UnusableClip) -> None:
    if error.name not in _reported:
        _reported.add(error.name)
        logging.warning("skipped %s", error)
