"""Training losses as pure functions: nothing here holds state, reads a config or knows about sharding.

A distillation loss takes what the student and the frozen teacher computed on the same batch. Anything learned
with it (uncertainty weights, FitNet's maps) is an argument. Every function returns float32 scalars.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Key

from mtd_jax.network.layers import normalised
from mtd_jax.network.model import ENCODERS, Features
from mtd_jax.network.towers import per_frame

# Scalars and stacks of what the layers of an encoder contribute. `layers` is 4 in the published models.
Scalar = Float[Array, ""]
Relations = Float[Array, "layers batch heads query key"]
PerLayer = dict[str, Float[Array, " layers"]]  # by encoder: "fusion", "av", "va"
# Entry [b, i, j] is about frames i and audio j of clip b; the diagonal is in sync.
Grid = Float[Array, "clips windows windows"]
Video = Float[Array, "clips windows T width"]
Audio = Float[Array, "clips windows S width"]
Maps = dict[str, dict[str, Array]]  # {tokens: {"kernel": (from, to), "bias": (to,)}}, learned with the loss

CLAMP_FLOOR = 1e-5


def bce(logits: Float[Array, " batch"], labels: Float[Array, " batch"], positive_weight: float = 1.0) -> Scalar:
    """Mean binary cross-entropy of logits against labels in {0, 1}.

    With `positive_weight` w each positive counts w times and the mean is the weighted one: in a grid of G windows,
    w = G − 1 balances the G positives with the G·(G − 1) negatives.
    """
    weights = jnp.where(labels > 0.5, positive_weight, 1.0)
    losses = optax.sigmoid_binary_cross_entropy(logits, labels)
    return jnp.sum(weights * losses) / jnp.sum(weights)


def info_nce(logits: Grid) -> Scalar:
    """Symmetric InfoNCE (van den Oord et al. 2018) of a grid of scores, mean over rows and columns."""
    rows = jnp.diagonal(jax.nn.log_softmax(logits, axis=2), axis1=1, axis2=2)
    columns = jnp.diagonal(jax.nn.log_softmax(logits, axis=1), axis1=1, axis2=2)
    return -0.5 * (jnp.mean(rows) + jnp.mean(columns))


def token_info_nce(video_tokens: Video, audio_tokens: Audio, temperature: float = 0.1) -> Scalar:
    """InfoNCE of the prenets' tokens by cosine, so that the prenets learn before the transformers compare.

    The idea is SyncNet's (Chung & Zisserman 2016). It has no parameters.
    """
    return info_nce(token_similarity(video_tokens, audio_tokens) / temperature)


def token_similarity(video_tokens: Video, audio_tokens: Audio) -> Grid:
    """Cosines of windows, by all their tokens less the mean window. Audio tokens are averaged over time to T."""
    audio_tokens = per_frame(audio_tokens, video_tokens.shape[2])
    video, audio = (_centred_unit(x.reshape(*x.shape[:2], -1)) for x in (video_tokens, audio_tokens))
    return jnp.einsum("bid,bjd->bij", video, audio, precision="highest")


def relation_kl(
    teacher_logits: Relations, student_logits: Relations, temperature: float = 1.0, clamp: bool = False
) -> Float[Array, " layers"]:
    """τ²·KL(softmax(teacher/τ) ‖ softmax(student/τ)) per layer (MTD; Chen et al. 2024, after Wang et al. 2020).

    Args:
      teacher_logits, student_logits: −inf marks a masked position.
      temperature: τ.
      clamp: raise both logits to at least 1e-5 first, as the released code does for V→A attention. Masked and
        negative entries then all count as 1e-5. Without it, masked positions take part in neither softmax and add
        nothing to the sum.

    Returns:
      The mean over every element (batch, head, query, key) of a layer; masked ones count in the denominator.
    """
    if clamp:
        teacher_logits = jnp.maximum(teacher_logits, CLAMP_FLOOR)
        student_logits = jnp.maximum(student_logits, CLAMP_FLOOR)
    visible = jnp.isfinite(student_logits) & jnp.isfinite(teacher_logits)
    # −inf would become 0·(−inf) below and NaN in the gradient; the weight of −1e30 is exactly 0.
    teacher = jax.nn.log_softmax(jnp.where(visible, teacher_logits, -1e30) / temperature)
    student = jax.nn.log_softmax(jnp.where(visible, student_logits, -1e30) / temperature)
    terms = jnp.where(visible, jnp.exp(teacher) * (teacher - student), 0.0)
    return temperature**2 * jnp.mean(terms, axis=(1, 2, 3, 4))


def mtd_terms(
    student_features: Features, teacher_features: Features, temperature: float = 1.0, clamp_va: bool = True
) -> dict[str, PerLayer]:
    """The KL terms of MTD before weighting.

    Returns:
      {"attention": {"fusion" | "av" | "va": (layers,)}, "value": {…}}: cross-attention distribution (CAD) and
      value relation (VR), each already times τ².
    """
    return {
        "attention": {
            name: relation_kl(
                teacher_features.attention_logits[name],
                student_features.attention_logits[name],
                temperature,
                clamp=clamp_va and name == "va",
            )
            for name in ENCODERS
        },
        "value": {
            name: relation_kl(
                teacher_features.value_logits[name], student_features.value_logits[name], temperature
            )
            for name in ENCODERS
        },
    }


def uncertainty_total(
    task_loss: Scalar, layer_losses: Float[Array, " layers"], weights: Float[Array, " 1+layers"]
) -> Scalar:
    """½/w₀²·task + ln(1+w₀²) + Σᵢ [½/wᵢ²·layerᵢ + ln(1+wᵢ²)] (Kendall et al. 2018; Liebel & Körner 2018).

    Args: layer_losses: of all encoders; weights: the task's, then each layer's; none of them 0.
    """
    losses = jnp.concatenate([jnp.reshape(task_loss, 1), layer_losses])
    return jnp.sum(0.5 / weights**2 * losses + jnp.log1p(weights**2))


def layer_losses(
    terms: dict[str, PerLayer], *, use_attention: bool = True, use_value: bool = True
) -> Float[Array, " all_layers"]:
    """CAD + VR of every layer, in the order fusion 1–4, A→V 1–4, V→A 1–4. Args: terms: from `mtd_terms`."""
    kinds = [kind for kind, used in (("attention", use_attention), ("value", use_value)) if used]
    every = [jnp.concatenate([terms[kind][name] for name in ENCODERS]) for kind in kinds]
    return sum(every, start=jnp.zeros(sum(len(terms["value"][name]) for name in ENCODERS)))


def mtd_loss(
    student_logits: Float[Array, " batch"],
    labels: Float[Array, " batch"],
    student_features: Features,
    teacher_features: Features,
    weights: Float[Array, " 1+all_layers"],
    temperature: float = 1.0,
    clamp_va: bool = True,
    *,
    use_attention: bool = True,
    use_value: bool = True,
) -> tuple[Scalar, dict[str, Any]]:
    """The MTD loss (Chen et al. 2024): BCE plus the teacher's relations in all layers, weighted by uncertainty.

    Args:
      student_features, teacher_features: `Features` of the same batch and the same number of layers and heads.
      weights: learned uncertainties, 1 + 3·layers: BCE, fusion 1–4, A→V 1–4, V→A 1–4; all 1 at the start.
      temperature: τ.
      clamp_va: the released code's clamp of the V→A attention logits, see `relation_kl`.
      use_attention, use_value: ablations without CAD or without VR (the parts still report them).

    Returns:
      total, and parts: "bce" scalar; "attention" and "value": {"fusion" | "av" | "va": (layers,)}.
    """
    task = bce(student_logits, labels)
    terms = mtd_terms(student_features, teacher_features, temperature, clamp_va)
    of_layers = layer_losses(terms, use_attention=use_attention, use_value=use_value)
    return uncertainty_total(task, of_layers, weights), {"bce": task, **terms}


def fixed_weight_mtd(
    terms: dict[str, PerLayer],
    layers: dict[str, tuple[int, ...]],
    weight: float = 1.0,
    *,
    use_attention: bool = True,
    use_value: bool = True,
) -> Scalar:
    """weight·Σ (CAD + VR) over chosen layers, without uncertainty weighting: the paper's layer ablations.

    Args:
      terms: from `mtd_terms`.
      layers: which layers of which encoders, counted from 1, for example {"fusion": (4,)} (MiniLM's choice).
    """
    total = jnp.zeros(())
    for name, chosen in layers.items():
        index = jnp.asarray(chosen, jnp.int32) - 1
        total += use_attention * jnp.sum(terms["attention"][name][index])
        total += use_value * jnp.sum(terms["value"][name][index])
    return weight * total


def minilm(student_features: Features, teacher_features: Features, temperature: float = 1.0) -> Scalar:
    """CAD + VR of the last fusion layer only (Wang et al. 2020)."""
    terms = mtd_terms(student_features, teacher_features, temperature, clamp_va=False)
    return terms["attention"]["fusion"][-1] + terms["value"]["fusion"][-1]


def kd(
    student_logits: Float[Array, " batch"], teacher_logits: Float[Array, " batch"], temperature: float = 5.0
) -> Scalar:
    """τ²·KL(softmax(teacher/τ) ‖ softmax(student/τ)) over the batch, divided by its size (Hinton et al. 2015).

    The model has one logit, so the published code takes the batch for the classes.
    """
    teacher = jax.nn.log_softmax(teacher_logits / temperature)
    student = jax.nn.log_softmax(student_logits / temperature)
    return temperature**2 * jnp.sum(jnp.exp(teacher) * (teacher - student)) / student_logits.shape[0]


def rkd(
    student_vectors: Float[Array, "batch width_s"],
    teacher_vectors: Float[Array, "batch width_t"],
    distance_weight: float = 25.0,
    angle_weight: float = 50.0,
) -> Scalar:
    """Relational distillation: smooth-L1 of pairwise distances and of triplet angles (Park et al. 2019).

    Equal examples have no angle, which counts as 0; of those that differ by rounding alone, rounding decides it.

    Args: one vector per example.
    """
    distance = _smooth_l1(_pairwise_distance(student_vectors), _pairwise_distance(teacher_vectors))
    angle = _smooth_l1(_triplet_cosine(student_vectors), _triplet_cosine(teacher_vectors))
    return distance_weight * distance + angle_weight * angle


def fitnet(
    student_features: Features,
    teacher_features: Features,
    maps: Maps,
    weight: float = 100.0,
) -> Scalar:
    """weight·Σ MSE(student tokens, teacher tokens · map) over the three encoders (Romero et al. 2015).

    Args: maps {"fusion" | "av" | "va": {"kernel": (d_teacher, d_student), "bias": (d_student,)}}, learned.
    """
    total = jnp.zeros(())
    for name in ENCODERS:
        teacher, student = (getattr(f, f"{name}_tokens") for f in (teacher_features, student_features))
        total += jnp.mean((student - _mapped(teacher, maps[name])) ** 2)
    return weight * total


def feature_distance(student_features: Features, teacher_features: Features, maps: Maps) -> Scalar:
    """Mean squared distance of normalised tokens, mapped from the student's width to the teacher's.

    FitNet's idea (Romero et al. 2015) with what made it strong in CLIP-KD (FD; Yang et al. 2024, 2307.12732):
    the student is mapped, and both sides are normalised, here by LayerNorm without scale and bias, token by token,
    where FD normalises one embedding per modality to unit length. So nothing depends on the teacher's scale, and a
    token that has nothing to do with the teacher's costs 2.

    Args: maps: of some of "video", "audio", "av", "va", "fusion".

    Returns:
      The mean over the tokens that have maps.
    """
    distances = []
    for name, linear in maps.items():
        teacher, student = (getattr(f, f"{name}_tokens") for f in (teacher_features, student_features))
        distances.append(jnp.mean((_standardised(_mapped(student, linear)) - _standardised(teacher)) ** 2))
    return jnp.mean(jnp.stack(distances))


def listwise_kd(student: Grid, teacher: Grid, temperature: float = 1.0) -> Scalar:
    """τ²·KL of the teacher's choice among the audio of a clip for each window, and among its video, mean of both.

    Each row and each column of a grid is a list of candidates. Its logits are z-scored, so that the student copies
    the order and the relative gaps, not the scale (Sun et al. 2024, arXiv 2403.01427).
    """
    both = [
        _row_kl(*(_standardised(grid) / temperature for grid in grids))
        for grids in ((student, teacher), (_turned(student), _turned(teacher)))
    ]
    return temperature**2 * (both[0] + both[1]) / 2


def dist(student: Grid, teacher: Grid) -> Scalar:
    """1 − Pearson's correlation of the rows, and of the columns, mean of both: DIST (Huang et al. 2022).

    arXiv 2205.10536, on the logits of a grid instead of class probabilities.
    """
    rows = jnp.mean(_standardised(student) * _standardised(teacher))
    columns = jnp.mean(_standardised(_turned(student)) * _standardised(_turned(teacher)))
    return 1 - (rows + columns) / 2


def interactive_contrastive(
    student: tuple[Video, Audio], teacher: tuple[Video, Audio], maps: Maps, temperature: float = 0.1
) -> Scalar:
    """InfoNCE between the student's video and the teacher's audio, and the other way round: CLIP-KD's ICL.

    Yang et al. 2024, arXiv 2307.12732, with the fixed temperature and centred tokens of `token_similarity`, and
    InfoNCE over rows and columns, where ICL learns its temperature and takes the student alone as the anchor. The
    teacher's tokens must be comparable across modalities themselves, as `token_info_nce` makes them.

    Args:
      student, teacher: tokens of the prenets.
      maps: "video" and "audio", from the student's width to the teacher's.
    """
    video, audio = (_mapped(x, maps[name]) for x, name in zip(student, ("video", "audio"), strict=True))
    grids = token_similarity(video, teacher[1]), token_similarity(teacher[0], audio)
    return (info_nce(grids[0] / temperature) + info_nce(grids[1] / temperature)) / 2


def contrastive_relation(
    student: tuple[Video, Audio], teacher: tuple[Video, Audio], temperature: float = 0.1
) -> Scalar:
    """KL of the teacher's contrastive distribution from the student's, rows and columns: CLIP-KD's CRD.

    Yang et al. 2024, arXiv 2307.12732, with one fixed temperature instead of two learned ones. The student copies
    how similar the teacher finds all windows, not only which one is right. As in `interactive_contrastive` the
    teacher's tokens must be comparable. No parameters.
    """
    grids = [token_similarity(*tokens) / temperature for tokens in (student, teacher)]
    return (_row_kl(*grids) + _row_kl(*map(_turned, grids))) / 2


def linear_maps(key: Key[Array, ""], names: Sequence[str], width_in: int, width_out: int) -> Maps:
    """A freshly initialised map for each name."""
    init = jax.nn.initializers.lecun_normal()
    return {
        name: {"kernel": init(k, (width_in, width_out)), "bias": jnp.zeros(width_out)}
        for name, k in zip(names, jax.random.split(key, len(names)), strict=True)
    }


def _mapped(tokens: Float[Array, "*batch width"], linear: dict[str, Array]) -> Float[Array, "*batch to"]:
    bias = jnp.expand_dims(linear["bias"], range(tokens.ndim - 1))
    return jnp.dot(tokens, linear["kernel"], precision="highest") + bias


def _standardised(x: Float[Array, "*rows width"]) -> Float[Array, "*rows width"]:
    """Rows of mean 0 and variance 1. Grids of a student may have small ones, hence the small epsilon."""
    return normalised(x, epsilon=1e-6)


def _turned(grid: Grid) -> Grid:
    """Its columns as rows."""
    return jnp.swapaxes(grid, 1, 2)


def _row_kl(student: Grid, teacher: Grid) -> Scalar:
    """KL(softmax(teacher) ‖ softmax(student)) of rows, mean of all."""
    student, teacher = jax.nn.log_softmax(student), jax.nn.log_softmax(teacher)
    return jnp.mean(jnp.sum(jnp.exp(teacher) * (teacher - student), axis=-1))


def _centred_unit(x: Float[Array, "clips windows width"]) -> Float[Array, "clips windows width"]:
    """Unit vectors around the mean of all."""
    x = x - jnp.mean(x, axis=(0, 1), keepdims=True)
    return x * jax.lax.rsqrt(jnp.sum(x**2, axis=-1, keepdims=True) + 1e-12)


def _smooth_l1(a: Float[Array, "*shape"], b: Float[Array, "*shape"]) -> Scalar:
    return jnp.mean(optax.huber_loss(a, b, delta=1.0))


def _pairwise_distance(x: Float[Array, "batch width"]) -> Float[Array, "batch batch"]:
    """Euclidean distances, divided by the mean of the positive ones; 0 on the diagonal."""
    squared = jnp.sum((x[:, None] - x[None]) ** 2, axis=-1)
    positive = squared > 1e-12
    distance = jnp.where(positive, jnp.sqrt(jnp.where(positive, squared, 1.0)), 0.0)
    count = jnp.sum(positive)
    mean = jnp.sum(distance) / jnp.maximum(count, 1)
    return distance / jnp.where(count > 0, mean, 1.0)


def _triplet_cosine(x: Float[Array, "batch width"]) -> Float[Array, "batch batch batch"]:
    """[i, j, k]: cosine of the angle at i between j and k."""
    difference = x[None] - x[:, None]
    squared = jnp.sum(difference**2, axis=-1, keepdims=True)
    positive = squared > 1e-24
    unit = jnp.where(positive, difference / jnp.sqrt(jnp.where(positive, squared, 1.0)), 0.0)
    return jnp.einsum("ijd,ikd->ijk", unit, unit, precision="highest")
