"""What a training run minimises: the task loss, and the chosen distillation loss around it."""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from mtd_jax.network.model import ENCODERS, Features, ModelConfig
from mtd_jax.training import losses

Loss = tuple[Array, dict[str, Array]]  # total, and its parts by name
Grid = losses.Grid

# What the maps of each loss with maps are of.
_MAPPED = {"features": ("video", "audio", "av", "va", "fusion"), "interactive": ("video", "audio")}
_MAPS_STREAM = 2**32 - 1  # to fold into the seed's key; the dropout of step n folds in n, and no step is so large


@dataclasses.dataclass(frozen=True)
class Objective:
    """The `loss` section of a training config, frozen; calling it is pure.

    Attributes: as in `config.default_config`.
    """

    name: str
    temperature: float
    clamp_va: bool
    use_attention: bool
    use_value: bool
    layers: tuple[tuple[str, tuple[int, ...]], ...]
    layer_weight: float
    distill_weight: float
    balance_pairs: bool
    info_nce_weight: float
    token_info_nce_weight: float

    @classmethod
    def from_config(cls, options) -> "Objective":
        fields = options.to_dict()
        layers = tuple((encoder, tuple(fields["layers"][encoder])) for encoder in ENCODERS)
        return cls(**(fields | {"layers": layers}))

    def initial_learned(self, teacher: ModelConfig | None, student: ModelConfig, seed: int) -> dict:
        """What is learned with the model: {"uncertainty": ones} for MTD, linear maps, else {}."""
        if self.name == "mtd":
            return {"uncertainty": jnp.ones(1 + len(ENCODERS) * student.num_layers)}
        if teacher is None:
            return {}
        key = jax.random.fold_in(jax.random.key(seed), _MAPS_STREAM)
        if self.name == "fitnet":
            return losses.linear_maps(key, ENCODERS, teacher.width, student.width)
        if self.name in _MAPPED:
            names = _MAPPED[self.name] if teacher.fusion == student.fusion else ("video", "audio")
            return losses.linear_maps(key, names, student.width, teacher.width)
        return {}

    def __call__(self, student: "Scored", teacher: "Scored | None", labels: Grid, learned: dict) -> Loss:
        """Total loss and its parts.

        Args:
          teacher: None without one.
          labels: 1 in sync, 0 not.
          learned: as from `initial_learned`.

        Returns:
          Scalar total, {name of the part: scalar}.
        """
        task, parts = self._task(student, labels)
        if teacher is None:
            return task, parts
        total, more = DISTILLATION[self.name](self, task, student, teacher, learned)
        return total, parts | more

    def _task(self, student: "Scored", labels: Grid) -> Loss:
        """What the student would learn without a teacher: BCE over all pairs, and InfoNCE where asked for."""
        logits = student.logits
        positive_weight = max(logits.shape[-1] - 1, 1) if self.balance_pairs else 1
        task = losses.bce(logits.reshape(-1), labels.reshape(-1), positive_weight)
        parts = {"bce": task}
        if self.info_nce_weight:
            parts["info_nce"] = losses.info_nce(logits)
            task = task + self.info_nce_weight * parts["info_nce"]
        if self.token_info_nce_weight:
            parts["token_info_nce"] = losses.token_info_nce(*student.tokens)
            task = task + self.token_info_nce_weight * parts["token_info_nce"]
        return task, parts


class Scored(NamedTuple):
    """What a model makes of all pairs of a batch: the grid of logits, and `Features` of the B·G·G pairs."""

    logits: Grid
    features: Features

    @property
    def tokens(self) -> tuple[losses.Video, losses.Audio]:
        """The prenets' tokens of each window, once."""
        video, audio, grid = self.features.video_tokens, self.features.audio_tokens, self.logits.shape
        return (
            jnp.take(video.reshape(*grid, *video.shape[1:]), 0, axis=2),
            jnp.take(audio.reshape(*grid, *audio.shape[1:]), 0, axis=1),
        )


# Of a teacher whose logits were stored: there are none, and whoever looks for relations or tokens fails at once.
NO_FEATURES = Features(*[np.zeros((0, 0, 0), np.float32)] * 5, attention_logits={}, value_logits={})  # pyright: ignore[reportArgumentType]


def _mtd(options: Objective, task: Array, student: Scored, teacher: Scored, learned: dict) -> Loss:
    terms = losses.mtd_terms(student.features, teacher.features, options.temperature, options.clamp_va)
    used = {"use_attention": options.use_attention, "use_value": options.use_value}
    total = losses.uncertainty_total(task, losses.layer_losses(terms, **used), learned["uncertainty"])
    weights = {f"uncertainty_{i}": w for i, w in enumerate(learned["uncertainty"])}
    return total, _per_layer(terms) | weights


def _mtd_layers(options: Objective, task: Array, student: Scored, teacher: Scored, learned: dict) -> Loss:
    terms = losses.mtd_terms(student.features, teacher.features, options.temperature, options.clamp_va)
    used = {"use_attention": options.use_attention, "use_value": options.use_value}
    extra = losses.fixed_weight_mtd(terms, dict(options.layers), options.layer_weight, **used)
    return task + extra, _per_layer(terms) | {"mtd_layers": extra}


def _kd(options: Objective, task: Array, student: Scored, teacher: Scored, learned: dict) -> Loss:
    extra = losses.kd(student.logits.reshape(-1), teacher.logits.reshape(-1), options.temperature)
    return task + extra, {"kd": extra}


def _rkd(options: Objective, task: Array, student: Scored, teacher: Scored, learned: dict) -> Loss:
    vectors, taught = (s.features.fusion_tokens.reshape(s.logits.size, -1) for s in (student, teacher))
    extra = losses.rkd(vectors, taught)
    return task + extra, {"rkd": extra}


def _fitnet(options: Objective, task: Array, student: Scored, teacher: Scored, learned: dict) -> Loss:
    extra = losses.fitnet(student.features, teacher.features, learned)
    return task + extra, {"fitnet": extra}


def _minilm(options: Objective, task: Array, student: Scored, teacher: Scored, learned: dict) -> Loss:
    extra = losses.minilm(student.features, teacher.features, options.temperature)
    return task + extra, {"minilm": extra}


def _features(options: Objective, task: Array, student: Scored, teacher: Scored, learned: dict) -> Loss:
    extra = losses.feature_distance(student.features, teacher.features, learned)
    return task + options.distill_weight * extra, {"features": extra}


def _listwise(options: Objective, task: Array, student: Scored, teacher: Scored, learned: dict) -> Loss:
    extra = losses.listwise_kd(student.logits, teacher.logits, options.temperature)
    return task + options.distill_weight * extra, {"listwise": extra}


def _dist(options: Objective, task: Array, student: Scored, teacher: Scored, learned: dict) -> Loss:
    extra = losses.dist(student.logits, teacher.logits)
    return task + options.distill_weight * extra, {"dist": extra}


def _interactive(options: Objective, task: Array, student: Scored, teacher: Scored, learned: dict) -> Loss:
    extra = losses.interactive_contrastive(student.tokens, teacher.tokens, learned)
    return task + options.distill_weight * extra, {"interactive": extra}


def _contrastive(options: Objective, task: Array, student: Scored, teacher: Scored, learned: dict) -> Loss:
    extra = losses.contrastive_relation(student.tokens, teacher.tokens)
    return task + options.distill_weight * extra, {"contrastive": extra}


# A new distillation loss is a pure function in losses.py, one of this signature here, and a name in config.LOSSES.
# What a loss does not read of the teacher (kd needs no relations) XLA drops from the compiled step.
DISTILLATION: dict[str, Callable[[Objective, Array, Scored, Scored, dict], Loss]] = {
    "mtd": _mtd,
    "mtd_layers": _mtd_layers,
    "kd": _kd,
    "rkd": _rkd,
    "fitnet": _fitnet,
    "minilm": _minilm,
    "features": _features,
    "listwise": _listwise,
    "dist": _dist,
    "interactive": _interactive,
    "contrastive": _contrastive,
}


def _per_layer(terms: dict[str, losses.PerLayer]) -> dict[str, Array]:
    """{"attention": {"fusion": (layers,)}} → {"attention_fusion_1": scalar, …}."""
    return {
        f"{kind}_{encoder}_{i + 1}": term
        for kind in ("attention", "value")
        for encoder in ENCODERS
        for i, term in enumerate(terms[kind][encoder])
    }
