"""What a training draws from, opened as its config says."""

from typing import Any, NamedTuple

from mtd_jax.config import Config, augmentation
from mtd_jax.data.clip import ClipSource
from mtd_jax.data.pipeline import Extra, Loading, Shard, TrainingIterator, make_training_iterator
from mtd_jax.data.sampling import Pairing
from mtd_jax.data.sources import open_source
from mtd_jax.data.stored_scores import StoredScores
from mtd_jax.errors import UserError

MIN_TRAINING_FRAMES = 26  # the published code draws from clips of more than 25 frames


class Input(NamedTuple):
    """Clips, those of the second source, and how many steps make an epoch."""

    clips: ClipSource
    extra: Extra | None
    steps_per_epoch: int

    @property
    def more(self) -> ClipSource | None:
        """The clips of the second source."""
        return self.extra.source if self.extra else None


def open_input(config: Config) -> Input:
    """Raises `UserError` as `open_source`."""
    data = config.data
    enough = max(MIN_TRAINING_FRAMES, pairing_of(config).min_frames)
    clips = open_source(data.format, data.root, data.train_list, min_frames=enough)
    steps_per_epoch = max((config.draws_per_epoch or len(clips)) // config.batch_size, 1)
    extra = None
    if data.extra.root:
        more = open_source(data.format, data.extra.root, data.extra.train_list, min_frames=enough)
        alone = round(data.extra.alone_epochs * steps_per_epoch) * config.batch_size
        extra = Extra(more, data.extra.share, alone)
    return Input(clips, extra, steps_per_epoch)


def batches_of(config: Config, given: Input, shard: Shard, scores: StoredScores | None = None) -> TrainingIterator:
    """The training batches, from the first one on. Args: scores: of the teacher, to go with every row."""
    return make_training_iterator(
        given.clips,
        pairing_of(config),
        seed=config.seed,
        batch_size=config.batch_size,
        shard=shard,
        loading=Loading(workers=config.data.workers),
        augmentation=augmentation(config),
        extra=given.extra,
        scores=scores,
    )


def about_draws(config: Config, batches: TrainingIterator) -> dict[str, Any]:
    """What the sequence of draws depends on. Args: config: with fingerprints, see `resume.with_fingerprints`."""
    return batches.sequence | {
        "clips_checksum": config.data.clips_checksum,
        "extra_checksum": config.data.extra.clips_checksum,
    }


def check_scores(scores: StoredScores, config: Config, batches: TrainingIterator, draws: int) -> None:
    """Raises `UserError` if stored scores are of other draws than those to come, or too few."""
    wanted = about_draws(config, batches)
    if different := [key for key in wanted if scores.about["draws"].get(key) != wanted[key]]:
        name = different[0]
        raise UserError(
            f"config.teacher_scores={config.teacher_scores}: expected scores of this run's draws, with {name} "
            f"{wanted[name]}, got {scores.about['draws'].get(name)}; store them again with this config"
        )
    if len(scores) < draws:
        raise UserError(
            f"config.teacher_scores={config.teacher_scores}: expected {draws} draws, got {len(scores)}; store "
            "them again with as many epochs"
        )


def pairing_of(config: Config) -> Pairing:
    """How clips become rows."""
    data = config.data
    return Pairing(data.pairing, config.model.window_frames, data.windows, data.min_gap, data.clips_per_grid)
