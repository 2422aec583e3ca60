"""One training step and one evaluation step, as pure functions of (run, state, batch), and compiled for a mesh."""

import dataclasses
import functools
from typing import Any, cast

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jaxtyping import Array, Float, Int16, Int32, UInt8

from mtd_jax.compilation import compiler_options
from mtd_jax.distributed.sharding import by_rows, gathered, replicate, scattered, shardings, split_rows
from mtd_jax.network.layers import Rngs
from mtd_jax.network.mel import log_mel
from mtd_jax.network.model import ModelConfig, SyncModel
from mtd_jax.network.weights import bind, split_statistics
from mtd_jax.training.objective import NO_FEATURES, Objective, Scored

Arrays = dict[str, Array]  # by name
Frames = UInt8[Array, "B G T 48 96 3"]
Mel = Float[Array, "B G S 80"]
PerPair = Float[Array, " pairs"]

# Of the logit: for accuracy and F1; for F1 as in the published code, which compares the logit with 0.5.
THRESHOLDS = (0.0, 0.5)


@dataclasses.dataclass(frozen=True)
class Run:
    """What stays fixed during a run: the static argument of the steps."""

    model: ModelConfig
    teacher: ModelConfig | None
    objective: Objective
    optimizer: optax.GradientTransformation
    seed: int
    mesh: jax.sharding.Mesh


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class TrainState:
    """What a step changes.

    Attributes:
      step: steps done.
      params, statistics: float32, see `network.weights`.
      learned: what is learned with the loss, see `Objective.initial_learned`.
      optimizer: optax state over {"model": params, "loss": learned}.
    """

    step: Int32[Array, ""]
    params: Arrays
    statistics: Arrays
    learned: dict[str, Any]
    optimizer: Any


def initial_state(run: Run, model: SyncModel) -> TrainState:
    """The state before the first step."""
    return state_of(run, *split_statistics(model))


def state_of(run: Run, params: Arrays, statistics: Arrays) -> TrainState:
    """The state before the first step, from the arrays of the model. Pure: `jax.eval_shape` gives its shapes."""
    learned = run.objective.initial_learned(run.teacher, run.model, run.seed)
    optimizer = run.optimizer.init({"model": params, "loss": learned})
    return TrainState(jnp.zeros((), jnp.int32), params, statistics, learned, optimizer)


def train_step(run: Run, state: TrainState, teacher_arrays: Arrays, batch: Arrays) -> tuple[TrainState, Arrays]:
    """One update.

    Args:
      teacher_arrays: weights of the frozen teacher, {} without one.
      batch: frames uint8 (B, G, T, 48, 96, 3), audio int16 (B, G, T·640), labels float32 (B, G, G), and with
        stored scores teacher_logits float32 (B, G, G).

    Returns:
      The next state, and {name: float32 scalar}: total, its parts, gradient norm.
    """
    mel = by_rows(functools.partial(training_mel, run.model), run.mesh)(batch["audio"])
    teacher = None
    if "teacher_logits" in batch:
        teacher = Scored(batch["teacher_logits"], NO_FEATURES)
    elif run.teacher is not None:
        teacher = score_grid(bind(run.teacher, gathered(teacher_arrays, run.mesh)), batch["frames"], mel)
    # Folding in the step makes a resumed run draw the dropout masks of an uninterrupted one.
    key = jax.random.fold_in(jax.random.key(run.seed), state.step)

    def loss(trained):
        trained = gathered(trained, run.mesh)
        model = bind(run.model, trained["model"] | state.statistics)
        student = score_grid(model, batch["frames"], mel, train=True, rngs=nnx.Rngs(dropout=key))
        total, parts = run.objective(student, teacher, batch["labels"], trained["loss"])
        return total, (parts, split_statistics(model)[1])

    trained = {"model": state.params, "loss": state.learned}
    (total, (parts, statistics)), gradients = jax.value_and_grad(loss, has_aux=True)(trained)
    gradients = scattered(gradients, run.mesh)
    updates, optimizer = run.optimizer.update(gradients, state.optimizer, trained)
    trained = cast(dict[str, Any], optax.apply_updates(trained, updates))
    metrics = {"total": total, **parts, "gradient_norm": optax.tree.norm(gradients["model"])}
    return TrainState(state.step + 1, trained["model"], statistics, trained["loss"], optimizer), metrics


def logged_step(run: Run, state: TrainState, teacher_arrays: Arrays, batch: Arrays) -> tuple[TrainState, Arrays]:
    """`train_step`, and the sum of batch["skipped"], int32 (B,): how many clips were skipped to draw each row."""
    state, metrics = train_step(run, state, teacher_arrays, batch)
    return state, metrics | {"skipped_clips": jnp.sum(batch["skipped"])}


def compile_steps(
    run: Run, state: TrainState, teacher_arrays: Arrays
) -> tuple[jax.stages.Wrapped, jax.stages.Wrapped]:
    """(`logged_step`, `eval_step`) compiled for run.mesh, without their first argument.

    Args: state, teacher_arrays: with the shapes to come; `jax.eval_shape` will do.
    """
    placed, teacher = (shardings(tree, run.mesh) for tree in (state, teacher_arrays))
    rows, whole = split_rows(run.mesh), replicate(run.mesh)
    train_fn = jax.jit(
        functools.partial(logged_step, run),
        in_shardings=(placed, teacher, rows),
        out_shardings=(placed, whole),
        donate_argnums=0,
        compiler_options=compiler_options(run.mesh.devices.flat[0].platform),
    )
    eval_fn = jax.jit(functools.partial(eval_step, run), in_shardings=(placed, rows), out_shardings=whole)
    return train_fn, eval_fn


def eval_step(run: Run, state: TrainState, batch: Arrays) -> Arrays:
    """Sums over the valid rows of a batch of pairs (G = 1), to be added up over batches.

    Returns:
      {"loss": scalar, "confusion": (thresholds, 2, 2)}; confusion[t, label, guess] counts pairs by their label and
      by whether their logit exceeds THRESHOLDS[t].
    """
    model = bind(run.model, gathered(state.params, run.mesh) | state.statistics)
    mel = by_rows(functools.partial(training_mel, run.model), run.mesh)(batch["audio"])
    logits, _ = score_grid(model, batch["frames"], mel)
    logits, labels, valid = logits[:, 0, 0], batch["labels"][:, 0, 0], batch["valid"].astype(jnp.float32)
    losses = optax.sigmoid_binary_cross_entropy(logits, labels)
    return {"loss": jnp.sum(valid * losses), "confusion": confusion_counts(logits, labels, valid)}


def confusion_counts(logits: PerPair, labels: PerPair, valid: PerPair) -> Float[Array, "thresholds 2 2"]:
    """Pairs by label and by guess, each counted with the weight `valid`."""
    positive, guessed = labels > 0.5, logits[None] > jnp.array(THRESHOLDS)[:, None]
    label, guess = (jnp.stack([~x, x], axis=-1).astype(valid.dtype) for x in (positive, guessed))
    return jnp.einsum("b,bl,tbg->tlg", valid, label, guess, precision="highest")


def training_mel(config: ModelConfig, audio: Int16[Array, "B G samples"]) -> Mel:
    """Each chunk separately, last column dropped."""
    if config.compute_dtype == "float64":
        audio = audio.astype(jnp.float64) / 32768
    return log_mel(audio)[..., :-1, :]


def score_grid(model: SyncModel, frames: Frames, mel: Mel, *, train: bool = False, rngs: Rngs = None) -> Scored:
    """Scores every window of frames with every window of audio of the same clip; each is encoded once."""
    clips, windows = frames.shape[:2]
    video = model.encode_video(frames.reshape(clips * windows, *frames.shape[2:]), train=train)
    audio = model.encode_audio(mel.reshape(clips * windows, *mel.shape[2:]), train=train)
    grid = (clips, windows, windows)
    video = jnp.broadcast_to(video.reshape(clips, windows, 1, *video.shape[1:]), (*grid, *video.shape[1:]))
    audio = jnp.broadcast_to(audio.reshape(clips, 1, windows, *audio.shape[1:]), (*grid, *audio.shape[1:]))
    video, audio = (x.reshape(-1, *x.shape[3:]) for x in (video, audio))
    logits, features = model.compare(video, audio, train=train, rngs=rngs)
    return Scored(logits.reshape(grid), features)
