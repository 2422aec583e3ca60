"""From a source of clips to batches: deterministic, resumable, sharded over processes, drawn ahead by grain.

Draw number n is a pure function of (seed, n), so a training run is a numbered sequence of draws: row r of
global batch k is draw k·B + r, whatever the number of processes, worker processes and interruptions. `source`
is anything with `len(source)` and `source[i] -> Clip` that can be pickled.

A batch is a dict of NumPy arrays, B rows per process, G windows each:
  frames uint8 (B, G, T, 48, 96, 3), audio int16 (B, G, T·640), labels float32 (B, G, G),
  skipped int32 (B,): clips found unusable in that draw.
"""

import dataclasses
from collections.abc import Iterator
from typing import Any

import grain
import numpy as np
from absl import flags, logging

from mtd_jax.data.clip import FACE_SIZE, SAMPLES_PER_FRAME
from mtd_jax.data.sampling import Pairing
from mtd_jax.data.unusable import UnusableClip
from mtd_jax.errors import UserError

MAX_SKIPS = 16  # unusable clips in a row, in one draw, before the data set is called broken
_ENDLESS = 1 << 40  # batches
_reported: set[str] = set()  # unusable clips this process has logged


@dataclasses.dataclass(frozen=True)
class Loading:
    """How batches are prepared ahead; has no influence on their content.

    Attributes:
      workers: processes that draw; 0 draws in threads of this process.
      threads: per process that draws.
      prefetch: batches held ready per process that draws.
    """

    workers: int = 0
    threads: int = 2
    prefetch: int = 2


@dataclasses.dataclass(frozen=True)
class Shard:
    """The rows of each global batch that belong to one of several training processes."""

    index: int = 0
    count: int = 1

    def rows(self, batch_size: int) -> int:
        """Rows per process. Raises `UserError` when the global batch does not divide."""
        if batch_size < 1 or batch_size % self.count:
            raise UserError(f"batch size {batch_size} does not divide over {self.count} processes")
        return batch_size // self.count


IN_THREADS = Loading()
WHOLE = Shard()


def make_training_iterator(
    source,
    pairing: Pairing,
    *,
    seed: int,
    batch_size: int,
    start_batch: int = 0,
    shard: Shard = WHOLE,
    loading: Loading = IN_THREADS,
) -> "TrainingIterator":
    """An endless iterator over random training batches, clips drawn with replacement.

    Args:
      seed: 0 or more.
      batch_size: B of the global batch, over all processes.
      start_batch: number of the first batch.

    Raises:
      UserError: batch size or seed out of range; while iterating: 16 unusable clips in one draw.
    """
    return TrainingIterator(source, pairing, seed, batch_size, start_batch, shard, loading)


class TrainingIterator(grain.DatasetIterator):
    """Training batches in order; see `make_training_iterator`.

    The state is the number of the next batch and what the sequence depends on, so it restores under any
    number of processes and workers, and is refused where the following batches would differ.
    """

    def __init__(self, source, pairing, seed, batch_size, start_batch, shard, loading):
        super().__init__()
        self._rows = shard.rows(batch_size)
        self._draw = _TrainingDraw(source, pairing, seed, batch_size, shard)
        self._loading = loading
        self._sequence = {
            "seed": seed,
            "batch_size": batch_size,
            "clips": len(source),
            "pairing": dataclasses.asdict(pairing),
        }
        self._next_batch = start_batch
        self._batches = None

    def __next__(self) -> dict[str, np.ndarray]:
        self._assert_not_closed()
        self.start_prefetch()
        try:
            batch = next(self._batches)
        except BaseException:
            self._stop()  # what was drawn ahead is of no use any more
            raise
        self._next_batch += 1
        return batch

    def start_prefetch(self) -> None:
        """Begins to draw ahead, before the first batch is asked for."""
        if self._batches is None:
            numbers = grain.MapDataset.range(self._next_batch * self._rows, _ENDLESS * self._rows)
            self._batches = iter(_batches(numbers.map(self._draw), self._rows, self._loading))
            self._batches.start_prefetch()

    def get_state(self) -> dict[str, Any]:
        """What a checkpoint needs, as plain numbers and strings (JSON)."""
        return {"next_batch": self._next_batch, **self._sequence}

    def set_state(self, state: dict[str, Any]) -> None:
        """Continues after the batch at which `state` was taken. Raises `UserError` when the data differ."""
        for key, ours in self._sequence.items():
            if state[key] != ours:
                raise UserError(
                    f"the checkpoint's training data have {key} {state[key]}, this run has {ours}; "
                    "resume with the same data and configuration, or start in a new workdir"
                )
        self._stop()
        self._next_batch = int(state["next_batch"])

    def close(self) -> None:
        """Stops worker processes and threads."""
        self._stop()
        super().close()

    def _stop(self) -> None:
        if self._batches is not None:
            self._batches.close()
            self._batches = None


def evaluation_pairs(
    source,
    *,
    seed: int,
    batch_size: int,
    window_frames: int,
    pairs_per_clip: int = 1,
    shard: Shard = WHOLE,
    loading: Loading = IN_THREADS,
) -> Iterator[dict[str, np.ndarray]]:
    """One pass of `reference` pairs over all clips, the same at every call: for loss, accuracy and F1.

    Yields batches as in training, with `valid`, bool (B,): False on the rows that fill up the last batch and
    on those of unusable clips (counted in `skipped`); these rows hold zeros.

    Raises:
      UserError: after the pass, when every clip of this process was unusable.
    """
    rows = shard.rows(batch_size)
    pairing = Pairing("reference", window_frames)
    draw = _EvaluationDraw(source, pairing, seed, batch_size, shard, pairs_per_clip)
    num_batches = -(-len(source) * pairs_per_clip // batch_size)
    batches = iter(_batches(grain.MapDataset.range(num_batches * rows).map(draw), rows, loading))
    valid = skipped = 0
    try:
        for batch in batches:
            valid += int(batch["valid"].sum())
            skipped += int(batch["skipped"].sum())
            yield batch
    finally:
        batches.close()
    if skipped and not valid:
        raise UserError(f"none of the {skipped} clips for evaluation can be read; see the warnings above")


def _batches(draws: grain.MapDataset, rows: int, loading: Loading) -> grain.IterDataset:
    batches = draws.batch(rows, drop_remainder=True).to_iter_dataset(
        grain.ReadOptions(num_threads=loading.threads, prefetch_buffer_size=loading.prefetch)
    )
    if loading.workers == 0:
        return batches
    if not flags.FLAGS.is_parsed():  # outside absl's app.run: grain reads its own flags to start workers
        flags.FLAGS.mark_as_parsed()
    workers = grain.MultiprocessingOptions(loading.workers, per_worker_buffer_size=loading.prefetch)
    # Copied at once, so that the shared memory of the workers is free again whatever becomes of the batch.
    return batches.mp_prefetch(workers).map(_to_own_memory)


def _to_own_memory(batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name: np.array(array) for name, array in batch.items()}


@dataclasses.dataclass(frozen=True)
class _Draw:
    source: Any
    pairing: Pairing
    seed: int
    batch_size: int
    shard: Shard

    def __post_init__(self):
        if self.seed < 0:
            raise UserError(f"seed is {self.seed}; expected 0 or more")
        if len(self.source) == 0:
            raise UserError("the data set has no clips to draw from")

    def _global_number(self, local: int) -> int:
        rows = self.shard.rows(self.batch_size)
        batch, row = divmod(int(local), rows)
        return batch * self.batch_size + self.shard.index * rows + row


class _TrainingDraw(_Draw):
    """Local row number → example, from a random clip."""

    def __call__(self, local: int) -> dict[str, np.ndarray]:
        rng = np.random.default_rng([self.seed, self._global_number(local)])
        for skipped in range(MAX_SKIPS):
            clip = self.source[int(rng.integers(len(self.source)))]
            try:
                frames, audio, labels = self.pairing.draw(rng, clip)
            except UnusableClip as error:
                last = error
                _report_once(error)
                continue
            return _example(frames, audio, labels, skipped)
        raise UserError(f"{MAX_SKIPS} unusable clips in a row, the last one {last}; check the data set")


@dataclasses.dataclass(frozen=True)
class _EvaluationDraw(_Draw):
    """Local row number → example, from the clip whose turn it is."""

    pairs_per_clip: int

    def __call__(self, local: int) -> dict[str, np.ndarray]:
        number = self._global_number(local)
        skipped = 0
        if number < len(self.source) * self.pairs_per_clip:
            # The spawn key keeps these draws apart from the training draws of the same seed and number.
            rng = np.random.default_rng(np.random.SeedSequence([self.seed, number], spawn_key=(1,)))
            try:
                drawn = self.pairing.draw(rng, self.source[number // self.pairs_per_clip])
                return _example(*drawn, skipped) | {"valid": np.bool_(True)}
            except UnusableClip as error:
                _report_once(error)
                skipped = 1
        window = self.pairing.window_frames
        frames = np.zeros((1, window, FACE_SIZE // 2, FACE_SIZE, 3), np.uint8)
        audio = np.zeros((1, window * SAMPLES_PER_FRAME), np.int16)
        labels = np.zeros((1, 1), np.float32)
        return _example(frames, audio, labels, skipped) | {"valid": np.bool_(False)}


def _example(frames, audio, labels, skipped: int) -> dict[str, np.ndarray]:
    return {"frames": frames, "audio": audio, "labels": labels, "skipped": np.int32(skipped)}


def _report_once(error: UnusableClip) -> None:
    if error.name not in _reported:
        _reported.add(error.name)
        logging.warning("skipped %s", error)
