"""What a training run minimises: the task loss, and the chosen distillation loss around it."""

import dataclasses

import jax
import jax.numpy as jnp

from mtd_jax import losses
from mtd_jax.model import ENCODERS, ModelConfig

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
    balance_pairs: bool
    info_nce_weight: float
    token_info_nce_weight: float

    @classmethod
    def from_config(cls, options) -> "Objective":
        fields = options.to_dict()
        layers = tuple((encoder, tuple(fields["layers"][encoder])) for encoder in ENCODERS)
        return cls(**(fields | {"layers": layers}))

    def initial_learned(self, teacher: ModelConfig | None, student: ModelConfig, seed: int) -> dict:
        """What is learned beside the model: {"uncertainty": ones} for MTD, FitNet's maps, else {}."""
        if self.name == "mtd":
            return {"uncertainty": jnp.ones(1 + len(ENCODERS) * student.num_layers)}
        if self.name == "fitnet":
            key = jax.random.fold_in(jax.random.key(seed), _MAPS_STREAM)
            return losses.fitnet_maps(key, teacher.width, student.width)
        return {}

    def __call__(self, student, teacher, labels, learned):
        """Total loss and its parts.

        Args:
          student, teacher: (logits (clips, windows, windows), `Features` of all pairs); teacher None without one.
          labels: (clips, windows, windows).
          learned: as from `initial_learned`.

        Returns:
          Scalar total, {name of the part: scalar}.
        """
        logits, features = student
        windows = logits.shape[-1]
        flat_logits, flat_labels = logits.reshape(-1), labels.reshape(-1)
        bce = losses.bce(flat_logits, flat_labels, max(windows - 1, 1) if self.balance_pairs else 1)
        parts = {"bce": bce}
        task = bce
        if self.info_nce_weight:
            parts["info_nce"] = losses.info_nce(logits)
            task = task + self.info_nce_weight * parts["info_nce"]
        if self.token_info_nce_weight:
            tokens = (
                _first_of_each(features.video_tokens, logits.shape, 2),
                _first_of_each(features.audio_tokens, logits.shape, 1),
            )
            parts["token_info_nce"] = losses.token_info_nce(*tokens)
            task = task + self.token_info_nce_weight * parts["token_info_nce"]
        if self.name == "bce":
            return task, parts
        teacher_logits, teacher_features = teacher
        if self.name == "mtd":
            total, mtd_parts = losses.mtd_loss(
                flat_logits,
                flat_labels,
                features,
                teacher_features,
                learned["uncertainty"],
                self.temperature,
                self.clamp_va,
                use_attention=self.use_attention,
                use_value=self.use_value,
                task_loss=task,
            )
            weights = {f"uncertainty_{i}": w for i, w in enumerate(learned["uncertainty"])}
            return total, parts | _per_layer(mtd_parts) | weights
        if self.name == "mtd_layers":
            terms = losses.mtd_terms(features, teacher_features, self.temperature, self.clamp_va)
            options = {"use_attention": self.use_attention, "use_value": self.use_value}
            extra = losses.fixed_weight_mtd(terms, dict(self.layers), self.layer_weight, **options)
            parts |= _per_layer(terms)
        elif self.name == "kd":
            extra = losses.kd(flat_logits, teacher_logits.reshape(-1), self.temperature)
        elif self.name == "rkd":
            vectors = [f.fusion_tokens.reshape(flat_logits.size, -1) for f in (features, teacher_features)]
            extra = losses.rkd(*vectors)
        elif self.name == "fitnet":
            extra = losses.fitnet(features, teacher_features, learned)
        else:
            extra = losses.minilm(features, teacher_features, self.temperature)
        return task + extra, parts | {self.name: extra}


def _first_of_each(tokens, grid, repeated_axis):
    """Tokens of all pairs (clips·windows·windows, time, width) → of the windows (clips, windows, time, width)."""
    return jnp.take(tokens.reshape(*grid, *tokens.shape[1:]), 0, axis=repeated_axis)


def _per_layer(terms) -> dict:
    """{"attention": {"fusion": (layers,)}} → {"attention_fusion_1": scalar, …}."""
    return {
        f"{kind}_{encoder}_{i + 1}": term
        for kind in ("attention", "value")
        for encoder in ENCODERS
        for i, term in enumerate(terms[kind][encoder])
    }
