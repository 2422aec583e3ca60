"""From a source of clips to batches: deterministic, resumable, sharded over processes, drawn ahead by grain.

A batch is a dict of NumPy arrays, B rows of the global batch per process, G windows each:
  frames uint8 (B, G, T, 48, 96, 3), audio int16 (B, G, T·640), labels float32 (B, G, G),
  skipped int32 (B,): clips found unusable in that draw.
Its content depends on the source, the pairing, the seed, the batch size and the number of the batch; not on the
number of processes, of workers, or on interruptions: row r of batch k is draw k·B + r.
"""

import dataclasses
import os
import shutil
import signal
from collections.abc import Iterator
from typing import Any

import grain
import numpy as np
from absl import flags, logging

from mtd_jax.data import augment
from mtd_jax.data.augment import Augmentation
from mtd_jax.data.clip import FACE_SIZE, SAMPLES_PER_FRAME, Clip, ClipSource, UnusableClip
from mtd_jax.data.sampling import Pairing
from mtd_jax.data.stored_scores import StoredScores
from mtd_jax.errors import UserError
from mtd_jax.workers import end_with_parent

# Draw number → example: the random part of the data side, as pure functions of (seed, number).
#
# Draw n of training takes a random clip with the generator of (seed, n), so a run is a numbered sequence of
# draws.
# Row r of global batch k is draw k·B + r; a process of several works out its own rows of it.

_BABBLE = 3  # voices
MAX_SKIPS = 16  # unusable clips in one draw, before the data set is called broken
Example = dict[str, np.ndarray | np.generic]  # a row; grain stacks rows to batches
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


@dataclasses.dataclass(frozen=True)
class Extra:
    """A second source that training also draws from.

    Attributes:
      source: its clips.
      share: of the draws that take a clip of this source.
      alone: so many draws at the beginning take clips of this source only.

    Raises:
      UserError: a share outside [0, 1], or fewer than 0 draws.
    """

    source: ClipSource
    share: float
    alone: int = 0

    def __post_init__(self):
        if not 0 <= self.share <= 1 or self.alone < 0:
            got = f"{self.share} and {self.alone}"
            raise UserError(f"extra clips: expected a share from 0 to 1 and 0 or more draws alone, got {got}")


@dataclasses.dataclass(frozen=True)
class TrainingDraw(_Draw):
    """Local row number → example, from a clip chosen at random (with replacement), and altered.

    An unusable clip is passed over by going on with the same generator, logged once per process and counted in the
    example's `skipped`.

    Raises:
      UserError: 16 unusable clips in one draw.
    """

    augmentation: Augmentation = augment.OFF
    extra: Extra | None = None
    scores: StoredScores | None = None

    def __post_init__(self):
        super().__post_init__()
        for source in [self.source, *([self.extra.source] if self.extra else [])]:
            if len(source) < self.pairing.clips:
                raise UserError(f"expected {self.pairing.clips} clips or more for a grid, got {len(source)}")

    def __call__(self, local: int) -> Example:
        number = self.number(local)
        example = self._example(number)
        return example if self.scores is None else example | {"teacher_logits": self.scores[number]}

    def _example(self, number: int) -> Example:
        rng = np.random.default_rng([self.seed, number])
        # A generator apart, so that the same windows are drawn whatever the transforms are.
        altering = np.random.default_rng(np.random.SeedSequence([self.seed, number], spawn_key=(2,)))
        source = self._source(rng, number)
        parts: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
        skipped, taken = 0, set[int]()
        while len(parts) < self.pairing.clips:
            index = int(rng.integers(len(source)))
            if index in taken:  # windows of one clip would be labelled as of two
                continue
            try:
                parts.append(self._drawn(rng, altering, source[index]))
                taken.add(index)
            except UnusableClip as error:
                _report_once(error)
                skipped += 1
                if skipped == MAX_SKIPS:
                    problem = f"{MAX_SKIPS} unusable clips in one draw, the last one {error}"
                    raise UserError(f"{problem}; check the data set") from error
        if len(parts) == 1:
            return _example(*parts[0], skipped)
        frames, audio = (np.concatenate([part[i] for part in parts]) for i in range(2))
        return _example(frames, audio, np.eye(len(frames), dtype=np.float32), skipped)

    def _source(self, rng: np.random.Generator, number: int) -> ClipSource:
        if self.extra is None:
            return self.source
        if number < self.extra.alone or rng.random() < self.extra.share:
            return self.extra.source
        return self.source

    def _drawn(
        self, rng: np.random.Generator, altering: np.random.Generator, clip: Clip
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        if self.augmentation.is_off:
            return self.pairing.draw(rng, clip)
        strengths = augment.draw(altering, self.augmentation)
        altered = augment.alter_clip(altering, strengths, clip, lambda: self._voices(altering))
        frames, audio, labels = self.pairing.draw(rng, clip, altered)
        return augment.alter_frames(altering, strengths, frames), audio, labels

    def _voices(self, rng: np.random.Generator) -> list[np.ndarray]:
        """The audio of a few clips."""
        clips = [self.source[int(number)] for number in rng.integers(len(self.source), size=_BABBLE)]
        return [clip.waveform[: len(clip.waveform)] for clip in clips]


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

    def __call__(self, local: int) -> Example:
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


def _example(frames: np.ndarray, audio: np.ndarray, labels: np.ndarray, skipped: int) -> Example:
    return {"frames": frames, "audio": audio, "labels": labels, "skipped": np.int32(skipped)}


def _report_once(error: UnusableClip) -> None:
    if error.name not in _reported:
        _reported.add(error.name)
        logging.warning("skipped %s", error)


_ENDLESS = 1 << 40  # batches
_SHARED_MEMORY = "/dev/shm"
_STARTS = 3  # of the workers, for one batch


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

    def __post_init__(self):
        if self.workers < 0 or self.threads < 1 or self.prefetch < 1:
            raise UserError(f"{self}: expected 0 or more workers, 1 or more threads and batches of prefetch")


IN_THREADS = Loading()
WHOLE_BATCH = Shard()


def make_training_iterator(
    source: ClipSource,
    pairing: Pairing,
    *,
    seed: int,
    batch_size: int,
    start_batch: int = 0,
    shard: Shard = WHOLE_BATCH,
    loading: Loading = IN_THREADS,
    augmentation: Augmentation = augment.OFF,
    extra: Extra | None = None,
    scores: StoredScores | None = None,
) -> "TrainingIterator":
    """An endless iterator over training batches of clips drawn at random, with replacement.

    Args:
      source: the clips; picklable where worker processes draw.
      pairing: how a clip becomes a row.
      seed: 0 or more.
      batch_size: of the global batch, over all processes.
      start_batch: number of the first batch.
      shard: which rows of it this process gets.
      loading: worker processes and prefetching.
      augmentation: how the clips are altered.
      extra: clips of another source among them.
      scores: of a teacher; each row then has its own as `teacher_logits`, float32 (B, G, G).

    Raises:
      UserError: an argument out of range; while iterating: 16 unusable clips in one draw.
    """
    draw = TrainingDraw(source, pairing, seed, batch_size, shard, augmentation, extra, scores)
    return TrainingIterator(draw, start_batch, loading)


class TrainingIterator(grain.DatasetIterator):
    """Training batches in order, from `make_training_iterator`. Close it to stop its worker processes.

    The state is the number of the next batch and what the sequence depends on: it restores under any number of
    processes and workers, and is refused where the following batches would be others.
    """

    def __init__(self, draw: TrainingDraw, start_batch: int, loading: Loading):
        super().__init__()
        self._draw = draw
        self._loading = loading
        self._next_batch = start_batch
        self._batches: grain.DatasetIterator | None = None
        self._sequence = {
            "seed": draw.seed,
            "batch_size": draw.batch_size,
            "clips": len(draw.source),
            "pairing": _listed_pairing(draw.pairing),
            "augmentation": _listed(draw.augmentation),
            "extra": _listed_extra(draw.extra),
        }

    def __next__(self) -> dict[str, np.ndarray]:
        self._assert_not_closed()
        for attempt in range(_STARTS):
            batches = self._started()
            try:
                batch = next(batches)
                break
            except BaseException as error:
                self._stop()  # what was drawn ahead is of no use any more
                if not _worker_died(error):
                    raise
                if attempt == _STARTS - 1:
                    raise UserError(
                        f"data workers died {_STARTS} times before batch {self._next_batch} was drawn ({error}); "
                        "often the system has killed them for want of memory: use fewer, config.data.workers"
                    ) from error
                logging.warning("a data worker died (%s); starting all of them again", error)
        self._next_batch += 1
        return batch

    def start_prefetch(self) -> None:
        """Begins to draw ahead, before the first batch is asked for."""
        self._started()

    def _started(self) -> grain.DatasetIterator:
        if self._batches is None:
            self._batches = iter(_batches(self._draw, self._next_batch, _ENDLESS, self._loading))
            self._batches.start_prefetch()
        return self._batches

    @property
    def sequence(self) -> dict[str, Any]:
        """What the draws depend on: all of the state but the number of the next batch and its size."""
        return {name: value for name, value in self._sequence.items() if name != "batch_size"}

    def get_state(self) -> dict[str, Any]:
        """What a checkpoint needs, as numbers and strings (JSON)."""
        return {"next_batch": self._next_batch, **self._sequence}

    def set_state(self, state: dict[str, Any]) -> None:
        """Goes on after the batch at which `state` was taken. Raises `UserError` when the data are others."""
        for key, ours in self._sequence.items():
            if (theirs := state.get(key)) != ours:  # what an earlier version did not know, it did not do
                problem = f"the checkpoint's training data have {key} {theirs}, this run has {ours}"
                raise UserError(f"{problem}; resume with the same data and configuration, or start afresh")
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
    source: ClipSource,
    *,
    seed: int,
    batch_size: int,
    window_frames: int,
    pairs_per_clip: int = 1,
    shard: Shard = WHOLE_BATCH,
    loading: Loading = IN_THREADS,
) -> Iterator[dict[str, np.ndarray]]:
    """One pass of `reference` pairs over all clips, the same at every call: for loss, accuracy and F1.

    Yields batches as in training, with `valid`, bool (B,): False on the rows that fill up the last batch and
    on those of unusable clips (counted in `skipped`); these rows hold zeros.

    Raises:
      UserError: an argument out of range; after the pass of the only process: every clip was unusable.
    """
    draw = EvaluationDraw(source, Pairing("reference", window_frames), seed, batch_size, shard, pairs_per_clip)
    return _evaluation_pass(draw, loading)


def _listed_pairing(pairing: Pairing) -> dict[str, str | int]:
    """Without the number of clips where it is one, as earlier versions wrote it."""
    return {name: value for name, value in dataclasses.asdict(pairing).items() if (name, value) != ("clips", 1)}


def _listed_extra(extra: Extra | None) -> dict[str, float] | None:
    return extra and {"clips": len(extra.source), "share": extra.share, "alone": extra.alone}


def _listed(augmentation: Augmentation) -> dict[str, list[float]] | None:
    """As JSON gives it back; None if nothing is altered."""
    if augmentation.is_off:
        return None
    return {name: list(value) for name, value in dataclasses.asdict(augmentation).items()}


def _worker_died(error: BaseException) -> bool:
    """Whether grain reports the end of a worker process, for which it has no exception of its own."""
    return isinstance(error, RuntimeError) and "terminated unexpectedly" in str(error)


def _evaluation_pass(draw: EvaluationDraw, loading: Loading) -> Iterator[dict[str, np.ndarray]]:
    batches = iter(_batches(draw, 0, -(-draw.total // draw.batch_size), loading))
    valid = skipped = 0
    try:
        for batch in batches:
            valid += int(batch["valid"].sum())
            skipped += int(batch["skipped"].sum())
            yield batch
    finally:
        batches.close()
    if skipped and not valid and draw.shard.count == 1:
        raise UserError(f"none of the {skipped} evaluation pairs could be drawn; see the warnings above")


def _batches(draw, first: int, end: int, loading: Loading) -> grain.IterDataset:
    """Batches number `first` to `end` - 1 of this process."""
    rows = grain.MapDataset.range(first * draw.rows, end * draw.rows).map(draw)
    reading = grain.ReadOptions(num_threads=loading.threads, prefetch_buffer_size=loading.prefetch)
    batches = rows.batch(draw.rows, drop_remainder=True).to_iter_dataset(reading)
    if loading.workers == 0:
        return batches
    return _in_workers(batches, draw, loading)


def _in_workers(batches: grain.IterDataset, draw: TrainingDraw | EvaluationDraw, loading: Loading):
    """The same batches, drawn by worker processes."""
    _check_shared_memory(draw, loading)
    # To start workers, grain reads its own flags on absl's global FLAGS, and absl refuses that until somebody has
    # parsed a command line with them. Nobody does where training is called as a library or from a command that has
    # its own flag values. Marked as parsed, grain's flags have their defaults.
    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()
    workers = grain.MultiprocessingOptions(loading.workers, per_worker_buffer_size=loading.prefetch)
    # Copied at once, so that the shared memory of the workers is free again whatever becomes of the batch.
    return batches.mp_prefetch(workers, worker_init_fn=_depend_on_parent).map(_to_own_memory)


def _depend_on_parent(*_) -> None:
    """In a worker: it ends with the process that started it, however that ends, and with nothing else.

    Ctrl-C and a scheduler's SIGTERM reach the workers, too, while the trainer needs batches for its last step.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    end_with_parent()


def _to_own_memory(batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name: np.array(array) for name, array in batch.items()}


def _check_shared_memory(draw, loading: Loading) -> None:
    """Without enough of it workers die of a bus error that names no cause; containers often have 64 MB."""
    if not os.path.isdir(_SHARED_MEMORY):
        return
    frame_bytes = FACE_SIZE // 2 * FACE_SIZE * 3 + SAMPLES_PER_FRAME * 2
    batch_bytes = draw.rows * draw.pairing.windows_per_example * draw.pairing.window_frames * frame_bytes
    # In flight per worker: one queue in the worker, one buffer here, one batch at either end.
    needed = loading.workers * (2 * loading.prefetch + 2) * batch_bytes
    free = shutil.disk_usage(_SHARED_MEMORY).free
    if needed > free:
        problem = f"{loading.workers} data workers need about {needed >> 20} MiB of {_SHARED_MEMORY}"
        raise UserError(f"{problem}, {free >> 20} MiB are free; use fewer workers, or docker run --shm-size")
