"""What is compared with what: every row of every table, as changes of one base config."""

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

from mtd_jax.config import NO_DROPOUT, Config, small_config
from mtd_jax.network.model import ENCODERS, ModelConfig

# Fixed before the first run that they are about.
START_STEPS, STEPS = 600, 300  # of what all students begin with, and of each of them after it
SCRATCH_STEPS, TEACHER_STEPS = 400, 1600  # without such a start
EPOCH = 100  # steps
LEARNING_RATES = (1e-3, 3e-3, 1e-2)
TEACHER_RATES = (3e-4, 1e-3, 3e-3)  # many more steps
START_RATE, GRID_RATE = 1e-3, 1e-3  # of all rows
TEACHER = "teacher"  # the one row of its table, and the teacher of all others


@dataclasses.dataclass(frozen=True)
class Row:
    """A training.

    Attributes:
      name: as shown; the same row may stand in several tables, and is run once.
      changes: of the base config, by dotted name.
      steps: of the training, after those of its start.
      start: the row whose weights, of the same seed, this one begins with; None: fresh weights.
      rate_of: the row whose tuned learning rate this one takes; None: it is tuned on its own.
      on_grid: with clips of GRID's speaker 1 instead of the corpus, and the included model as the teacher.
    """

    name: str
    changes: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    steps: int = STEPS
    start: "Row | None" = None
    rate_of: "Row | None" = None
    on_grid: bool = False

    @property
    def needs_teacher(self) -> bool:
        return self.changes.get("loss.name", "bce") != "bce"

    def run_name(self, seed: int, learning_rate: float) -> str:
        """Of one run: ROW/SEED-RATE, for its folder and its results."""
        folder = "".join(letter if letter.isalnum() else "_" for letter in self.name)
        return f"{folder}/{seed}-{learning_rate:g}"

    def config(self, seed: int, learning_rate: float, corpus: str, teacher: str = "", start: str = "") -> Config:
        """The config of one run. Args: corpus, teacher, start: folders of this row's."""
        config = base_config()
        config.update_from_flattened_dict(self.changes)
        config.seed = seed
        config.optimizer.learning_rate = learning_rate
        config.epochs = max(self.steps // EPOCH, 1)
        config.draws_per_epoch = EPOCH * config.batch_size
        config.data.root = corpus
        config.teacher = teacher if self.needs_teacher else ""
        config.init = start if self.start else ""
        return config


@dataclasses.dataclass(frozen=True)
class Table:
    """Rows that are compared.

    Attributes:
      rows: the first one is what the others are compared with, paired by seed.
      seeds: of every row.
      rates: the first seed of a row that is tuned runs with each of these learning rates, its other seeds with the
        one that is best on the validation list.
    """

    rows: tuple[Row, ...]
    seeds: tuple[int, ...] = (0, 1, 2)
    rates: tuple[float, ...] = LEARNING_RATES


def best_rate(tried: Iterable[Mapping[str, Any]]) -> float:
    """The learning rate of the run with the best K5 on the validation list. Args: tried: as in their files."""
    return max(tried, key=lambda run: run["validation"]["accuracy"]["5"])["learning_rate"]


def base_config() -> Config:
    """A plain student: what every row changes."""
    config = small_config(ModelConfig.tiny(num_layers=2, **NO_DROPOUT))
    config.data.workers = 0
    config.batch_size = 2
    return config


def _student(name: str, changes: Mapping[str, Any] | None = None) -> Row:
    return Row(name, changes or {}, start=_START)


def _towers(name: str, changes: Mapping[str, Any], start: Row) -> Row:
    return Row(name, {**start.changes, **changes}, start=start)


def _part(name: str, changes: Mapping[str, Any]) -> Row:
    return Row(name, changes, start=_START, rate_of=_MTD)


def _on_grid(row: Row) -> Row:
    return dataclasses.replace(row, name=f"{row.name} on GRID", steps=2 * row.steps, on_grid=True)


def _scratch(row: Row) -> Row:
    return Row(f"{row.name} from scratch", row.changes, SCRATCH_STEPS)


def _loss(name: str, **options: Any) -> dict[str, Any]:
    return {"loss.name": name} | {f"loss.{option}": value for option, value in options.items()}


def _layers(*chosen: int) -> dict[str, Any]:
    """MTD without uncertainty weights, on these layers of every encoder."""
    return {"loss.name": "mtd_layers"} | {f"loss.layers.{encoder}": chosen for encoder in ENCODERS}


def _longer(row: Row, times: int) -> Row:
    return dataclasses.replace(row, name=f"{row.name} {times}×", steps=times * row.steps, rate_of=row)


_TEACHER_WIDTHS = (8, 8, 16, 32, 64)
_START = Row("start", steps=START_STEPS)
_NONE = _student("none")
_KD = _student("KD", _loss("kd", temperature=5.0))
_FITNET = _student("FitNet", _loss("fitnet"))
_MTD = _student("MTD", _loss("mtd"))
_PLAIN_BCE = {"loss.balance_pairs": False, "loss.info_nce_weight": 0.0, "loss.token_info_nce_weight": 0.0}
# Published pairs: as many windows and about as many encodings as a grid has, so that a step costs the same.
_REFERENCE = {
    "data.pairing": "reference",
    "batch_size": 16,
    **_PLAIN_BCE,
}

_TOWERS_START = Row("start of two towers", {"model.fusion": "none"}, START_STEPS)
_WIDE_START = Row("start of wider towers", {**_TOWERS_START.changes, "model.widths": _TEACHER_WIDTHS}, START_STEPS)
_WIDE_TOWERS = _towers("wider towers", {}, _WIDE_START)

TABLES: dict[str, Table] = {
    TEACHER: Table(
        (Row(TEACHER, {"model.widths": _TEACHER_WIDTHS}, TEACHER_STEPS),), seeds=(0,), rates=TEACHER_RATES
    ),
    "losses": Table(
        (
            _NONE,
            _KD,
            _student("RKD", _loss("rkd")),
            _FITNET,
            _student("MiniLM", _loss("minilm")),
            _MTD,
            _student("features", _loss("features")),
            _student("list-wise KD", _loss("listwise")),
            _student("DIST", _loss("dist")),
            _student("interactive", _loss("interactive")),
            _student("contrastive", _loss("contrastive")),
        ),
    ),
    "parts": Table(
        (
            _MTD,
            _part("without CAD", _loss("mtd", use_attention=False)),
            _part("without VR", _loss("mtd", use_value=False)),
            _part("fixed weights", _layers(1, 2)),
            _part("last layers with fixed weights", _layers(2)),
            _part("without the clamp", _loss("mtd", clamp_va=False)),
            _part("temperature 5", _loss("mtd", temperature=5.0)),
            _part("temperature 10", _loss("mtd", temperature=10.0)),
        ),
    ),
    "pairs": Table((_NONE, _student("reference pairs", _REFERENCE), _student("grid with BCE alone", _PLAIN_BCE))),
    "length": Table(
        (
            *(_NONE, _longer(_NONE, 2), _longer(_NONE, 4)),
            *(_MTD, _longer(_MTD, 2), _longer(_MTD, 4)),
            *(_WIDE_TOWERS, _longer(_WIDE_TOWERS, 4)),
        ),
        seeds=(0, 1),  # of hours
    ),
    "towers": Table(
        (
            _NONE,
            _towers("two towers", {}, _TOWERS_START),
            _WIDE_TOWERS,
            _towers("two towers with list-wise KD", _loss("listwise"), _TOWERS_START),
            _towers("wider towers with list-wise KD", _loss("listwise"), _WIDE_START),
        ),
    ),
    # All clips that are kept back measure the result, so no rate is chosen.
    "grid": Table(tuple(map(_on_grid, (_NONE, _MTD, _WIDE_TOWERS))), rates=(GRID_RATE,)),
    # One rate for all, and no row to be compared with: what others begin with.
    "starts": Table((_START, _TOWERS_START, _WIDE_START), rates=(START_RATE,)),
    "scratch": Table((_scratch(_NONE), _scratch(_KD), _scratch(_FITNET), _scratch(_MTD))),
}
ROWS = {row.name: row for table in TABLES.values() for row in table.rows}
