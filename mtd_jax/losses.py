"""Training losses as pure functions: nothing here holds state, reads a config or knows about sharding.

A distillation loss takes what the student and the frozen teacher computed on the same batch. Anything learned
with it (uncertainty weights, FitNet's maps) is an argument. Every function returns float32 scalars.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from mtd_jax.model import ENCODERS

CLAMP_FLOOR = 1e-5


def bce(logits, labels, positive_weight=1.0):
    """Mean binary cross-entropy of logits (batch,) against labels (batch,) in {0, 1}.

    With `positive_weight` w each positive counts w times and the mean is the weighted one: in a grid of G windows,
    w = G − 1 balances the G positives with the G·(G − 1) negatives.
    """
    weights = jnp.where(labels > 0.5, positive_weight, 1.0)
    losses = optax.sigmoid_binary_cross_entropy(logits, labels)
    return jnp.sum(weights * losses) / jnp.sum(weights)


def info_nce(logits):
    """Symmetric InfoNCE (van den Oord et al. 2018) of a grid of scores, mean over rows and columns.

    Args: logits (clips, windows, windows); entry [b, i, j] scores frames i with audio j; the diagonal is true.
    """
    rows = jnp.diagonal(jax.nn.log_softmax(logits, axis=2), axis1=1, axis2=2)
    columns = jnp.diagonal(jax.nn.log_softmax(logits, axis=1), axis1=1, axis2=2)
    return -0.5 * (jnp.mean(rows) + jnp.mean(columns))


def token_info_nce(video_tokens, audio_tokens, temperature=0.1):
    """InfoNCE of the prenets' tokens, by cosine: they learn to see and hear before the rest compares.

    The idea is SyncNet's (Chung & Zisserman 2016). It has no parameters.

    Args:
      video_tokens: (clips, windows, T, width). audio_tokens: (clips, windows, S, width), averaged over time to T.
    """
    time, steps = video_tokens.shape[2], audio_tokens.shape[2]
    frame_of_step = np.arange(steps) * time // steps == np.arange(time)[:, None]  # (T, S)
    average = frame_of_step / frame_of_step.sum(axis=1, keepdims=True)
    audio_tokens = jnp.einsum("ts,bgsd->bgtd", average.astype(np.float32), audio_tokens, precision="highest")
    video, audio = (_centred_unit(x.reshape(*x.shape[:2], -1)) for x in (video_tokens, audio_tokens))
    return info_nce(jnp.einsum("bid,bjd->bij", video, audio, precision="highest") / temperature)


def relation_kl(teacher_logits, student_logits, temperature=1.0, clamp=False):
    """τ²·KL(softmax(teacher/τ) ‖ softmax(student/τ)) per layer (MTD; Chen et al. 2024, after Wang et al. 2020).

    Args:
      teacher_logits, student_logits: (layers, batch, heads, query, key); −inf marks a masked position.
      temperature: τ.
      clamp: raise both logits to at least 1e-5 first, as the released code does for V→A attention. Masked and
        negative entries then all count as 1e-5. Without it, masked positions take part in neither softmax and add
        nothing to the sum.

    Returns:
      (layers,): mean over every element (batch, head, query, key) — masked ones counted in the denominator.
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


def mtd_terms(student_features, teacher_features, temperature=1.0, clamp_va=True):
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


def uncertainty_total(task_loss, layer_losses, weights):
    """½/w₀²·task + ln(1+w₀²) + Σᵢ [½/wᵢ²·layerᵢ + ln(1+wᵢ²)] (Kendall et al. 2018; Liebel & Körner 2018).

    Args: task_loss scalar; layer_losses (layers,); weights (1 + layers,), none of them 0.
    """
    losses = jnp.concatenate([jnp.reshape(task_loss, 1), layer_losses])
    return jnp.sum(0.5 / weights**2 * losses + jnp.log1p(weights**2))


def mtd_loss(
    student_logits,
    labels,
    student_features,
    teacher_features,
    weights,
    temperature=1.0,
    clamp_va=True,
    *,
    use_attention=True,
    use_value=True,
    task_loss=None,
):
    """The MTD loss (Chen et al. 2024): BCE plus the teacher's relations in all layers, weighted by uncertainty.

    Args:
      student_logits, labels: (batch,).
      student_features, teacher_features: `Features` of the same batch and the same number of layers and heads.
      weights: (1 + 3·layers,) learned uncertainties: BCE, fusion 1–4, A→V 1–4, V→A 1–4; all 1 at the start.
      temperature: τ.
      clamp_va: the released code's clamp of the V→A attention logits, see `relation_kl`.
      use_attention, use_value: ablations without CAD or without VR (the parts still report them).
      task_loss: scalar that replaces the BCE in the total, for example with InfoNCE added.

    Returns:
      total, and parts: "bce" scalar; "attention" and "value": {"fusion" | "av" | "va": (layers,)}.
    """
    parts = {"bce": bce(student_logits, labels)}
    parts |= mtd_terms(student_features, teacher_features, temperature, clamp_va)
    layer_losses = use_attention * _in_order(parts["attention"]) + use_value * _in_order(parts["value"])
    total = uncertainty_total(parts["bce"] if task_loss is None else task_loss, layer_losses, weights)
    return total, parts


def fixed_weight_mtd(terms, layers: dict[str, tuple[int, ...]], weight=1.0, *, use_attention=True, use_value=True):
    """weight·Σ (CAD + VR) over chosen layers, without uncertainty weighting: the paper's layer ablations.

    Args:
      terms: from `mtd_terms`.
      layers: which layers of which encoders, counted from 1, for example {"fusion": (4,)} (MiniLM's choice).
    """
    total = 0.0
    for name, chosen in layers.items():
        index = jnp.asarray(chosen, jnp.int32) - 1
        total += use_attention * jnp.sum(terms["attention"][name][index])
        total += use_value * jnp.sum(terms["value"][name][index])
    return weight * total


def minilm(student_features, teacher_features, temperature=1.0):
    """CAD + VR of the last fusion layer only (Wang et al. 2020)."""
    terms = mtd_terms(student_features, teacher_features, temperature, clamp_va=False)
    return terms["attention"]["fusion"][-1] + terms["value"]["fusion"][-1]


def kd(student_logits, teacher_logits, temperature=5.0):
    """τ²·KL(softmax(teacher/τ) ‖ softmax(student/τ)) over the batch, divided by its size (Hinton et al. 2015).

    Args: both logits (batch,). The model has one logit, so the reference takes the batch for the classes.
    """
    teacher = jax.nn.log_softmax(teacher_logits / temperature)
    student = jax.nn.log_softmax(student_logits / temperature)
    return temperature**2 * jnp.sum(jnp.exp(teacher) * (teacher - student)) / student_logits.shape[0]


def rkd(student_features, teacher_features, distance_weight=25.0, angle_weight=50.0):
    """Relational distillation: smooth-L1 of pairwise distances and of triplet angles (Park et al. 2019).

    Equal examples have no angle, which counts as 0; of those that differ by rounding alone, rounding decides it.

    Args: features (batch, anything): one vector per example; the widths may differ.
    """
    distance = _smooth_l1(_pairwise_distance(student_features), _pairwise_distance(teacher_features))
    angle = _smooth_l1(_triplet_cosine(student_features), _triplet_cosine(teacher_features))
    return distance_weight * distance + angle_weight * angle


def fitnet(student_features, teacher_features, maps, weight=100.0):
    """weight·Σ MSE(student tokens, teacher tokens · map) over the three encoders (Romero et al. 2015).

    Args: maps {"fusion" | "av" | "va": {"kernel": (d_teacher, d_student), "bias": (d_student,)}}, learned.
    """
    total = 0.0
    for name in ENCODERS:
        teacher, student = (getattr(f, f"{name}_tokens") for f in (teacher_features, student_features))
        mapped = jnp.dot(teacher, maps[name]["kernel"], precision="highest") + maps[name]["bias"]
        total += jnp.mean((student - mapped) ** 2)
    return weight * total


def fitnet_maps(key, teacher_width: int, student_width: int):
    """Freshly initialised maps for `fitnet`."""
    init = jax.nn.initializers.lecun_normal()
    return {
        name: {"kernel": init(k, (teacher_width, student_width)), "bias": jnp.zeros(student_width)}
        for name, k in zip(ENCODERS, jax.random.split(key, len(ENCODERS)), strict=True)
    }


def _centred_unit(x):
    """(clips, windows, width) → unit vectors around the mean of all."""
    x = x - jnp.mean(x, axis=(0, 1))
    return x * jax.lax.rsqrt(jnp.sum(x**2, axis=-1, keepdims=True) + 1e-12)


def _in_order(terms):
    return jnp.concatenate([terms[name] for name in ENCODERS])


def _smooth_l1(a, b):
    return jnp.mean(optax.huber_loss(a, b, delta=1.0))


def _pairwise_distance(x):
    """(batch, width) → (batch, batch) Euclidean distances over their mean positive one; 0 on the diagonal."""
    squared = jnp.sum((x[:, None] - x[None]) ** 2, axis=-1)
    positive = squared > 1e-12
    distance = jnp.where(positive, jnp.sqrt(jnp.where(positive, squared, 1.0)), 0.0)
    count = jnp.sum(positive)
    mean = jnp.sum(distance) / jnp.maximum(count, 1)
    return distance / jnp.where(count > 0, mean, 1.0)


def _triplet_cosine(x):
    """(batch, width) → (batch, batch, batch): cosine of the angle at i between j and k."""
    difference = x[None] - x[:, None]
    squared = jnp.sum(difference**2, axis=-1, keepdims=True)
    positive = squared > 1e-24
    unit = jnp.where(positive, difference / jnp.sqrt(jnp.where(positive, squared, 1.0)), 0.0)
    return jnp.einsum("ijd,ikd->ijk", unit, unit, precision="highest")
