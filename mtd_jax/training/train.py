"""Training, of a teacher or a student: one loop, read from top to bottom."""

import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from mtd_jax.checkpoint import open_manager, writing
from mtd_jax.config import OF_RELATIONS, Config, model_config, validate
from mtd_jax.data.clip import ClipSource
from mtd_jax.data.pipeline import Shard, evaluation_pairs
from mtd_jax.data.sources import open_source
from mtd_jax.data.stored_scores import StoredScores
from mtd_jax.distributed.launch import abort_on_failure, check_same_everywhere, compiled_together
from mtd_jax.distributed.preemption import Preemption
from mtd_jax.distributed.sharding import make_mesh, place, put_batch
from mtd_jax.errors import UserError
from mtd_jax.models import load_model
from mtd_jax.network.model import ModelConfig, SyncModel
from mtd_jax.network.weights import bind, computing_in, kernels_in, model_arrays
from mtd_jax.storage import path_of
from mtd_jax.training.input import batches_of, check_scores, open_input
from mtd_jax.training.metrics import MetricWriter, NoWriter, Progress
from mtd_jax.training.objective import Objective
from mtd_jax.training.optimizer import make_optimizer, schedule_factor
from mtd_jax.training.resume import restore_run, save_run, with_fingerprints
from mtd_jax.training.step import Run, TrainState, compile_steps, initial_state
from mtd_jax.training.workdir import taken

IN_THE_BOX = "box"  # as config.init and config.teacher


def train(config, workdir, report=print) -> dict:
    """Trains for the configured number of epochs; call it again after an interruption to resume.

    Several processes (see `distributed`) call it with the same arguments; the first reports and writes metrics.

    Args:
      config: as from `config.default_config`.
      workdir: gets checkpoints/, metrics.jsonl and tensorboard/.
      report: takes one line of progress at a time.

    Returns:
      {"steps", "train_seconds" (over all calls, compilation included), "validation": the last epoch's metrics}.

    Raises:
      UserError: for a configuration that cannot work (before anything is compiled), unusable data, a checkpoint of
        another configuration, or a loss that is not finite.
      Interrupted: after SIGTERM or Ctrl-C to any of the processes; all have saved the same step.
    """
    started = time.monotonic()
    shard = Shard(jax.process_index(), jax.process_count())
    if shard.index:
        report = _say_nothing
    validate(config, jax.device_count(), shard.count)
    given = open_input(config)
    val_clips = open_source(
        config.data.format, config.data.root, config.data.val_list, min_frames=config.model.window_frames + 1
    )
    total_steps = config.epochs * given.steps_per_epoch
    scores = StoredScores(config.teacher_scores) if config.teacher_scores else None

    teacher = load_teacher(config) if config.teacher else None
    initial = load_initial(config) if config.init else None
    config = with_fingerprints(config, given.clips, given.more, teacher, initial, scores)
    check_same_everywhere(config.to_dict())
    factor = schedule_factor(config.optimizer, given.steps_per_epoch, total_steps)
    run = Run(
        model=model_config(config),
        teacher=teacher.config if teacher else None,
        objective=Objective.from_config(config.loss),
        optimizer=make_optimizer(config.optimizer, factor),
        seed=config.seed,
        mesh=make_mesh(config.mesh),
    )
    state = place(initial_state(run, initial or SyncModel(run.model, seed=config.seed)), run.mesh)
    frozen = kernels_in(teacher.config.compute_dtype, model_arrays(teacher)) if teacher else {}
    teacher_arrays = place(frozen, run.mesh)
    step_fn, eval_fn = map(compiled_together, compile_steps(run, state, teacher_arrays))

    workdir = path_of(workdir)
    batches = batches_of(config, given, shard, scores)
    if scores is not None:
        check_scores(scores, config, batches, total_steps * config.batch_size)
    with (
        taken(workdir),
        open_manager(workdir / "checkpoints") as manager,
        abort_on_failure(),
        Preemption() as preemption,
    ):
        if manager.latest_step() is not None:
            state, description = restore_run(manager, run, state, config)
            batches.set_state(description["data"])
            started -= description["train_seconds"]
            report(f"resumed from step {int(state.step)} of {total_steps} in {workdir}")
        first = int(state.step)
        if preemption.reached_before(first):
            raise preemption.interrupted(first, total_steps, workdir)
        writer = NoWriter() if shard.index else MetricWriter(workdir, first)
        progress = Progress(
            config=config,
            writer=writer,
            report=report,
            factor=factor,
            first=first,
            total_steps=total_steps,
            manager=manager,
        )
        validation, stop = None, False
        try:
            for step in range(first + 1, total_steps + 1):
                state, metrics = step_fn(state, teacher_arrays, put_batch(next(batches), run.mesh))
                if step == first + 1:  # until here a signal loses nothing
                    preemption.listen()
                progress.after_dispatch(step, metrics)
                epoch_ends = step % given.steps_per_epoch == 0
                due = config.checkpoint_every and step % config.checkpoint_every == 0
                stop = preemption.reached(step) and step < total_steps
                if not (epoch_ends or due or stop):
                    continue
                progress.catch_up()  # never save what came of a loss that is not finite
                if epoch_ends:
                    validation = validate_epoch(config, val_clips, eval_fn, state, run.mesh, shard)
                    progress.epoch(step, step // given.steps_per_epoch, validation)
                seconds = time.monotonic() - started
                metrics = validation if epoch_ends else None
                save_run(manager, run, state, config, batches.get_state(), seconds, metrics)
                writer.flush()
                if stop:
                    break
            progress.catch_up()
            with writing(manager.directory):
                manager.wait_until_finished()
            if stop:
                raise preemption.interrupted(step, total_steps, workdir)
        finally:
            batches.close()
            writer.close()
        if first >= total_steps:
            started = time.monotonic() - description["train_seconds"]
            report(f"nothing to do: {workdir} has {first} of {total_steps} steps")
            validation = dict(manager.metrics(manager.latest_step()) or {})
    return {"steps": total_steps, "train_seconds": time.monotonic() - started, "validation": validation}


def load_teacher(config):
    """The frozen teacher, computing in the student's dtype; UserError if the loss cannot compare the two."""
    teacher = load_model(_named(config.teacher))
    student: ModelConfig = model_config(config)
    same = ["window_frames"]
    if config.loss.name in (*OF_RELATIONS, "fitnet"):
        same.append("fusion")
    if config.loss.name in OF_RELATIONS:
        same += ["num_layers", "num_heads"]
    for name in same:
        theirs, ours = getattr(teacher.config, name), getattr(student, name)
        if theirs != ours:
            raise UserError(
                f"config.model.{name}: expected {theirs} as in the teacher {config.teacher}, got {ours}"
            )
    return computing_in(student.compute_dtype, teacher)


def _named(name: str) -> str | None:
    return None if name == IN_THE_BOX else name


def load_initial(config: Config) -> SyncModel:
    """The model that the training starts from; UserError if its weights are of another network."""
    initial = load_model(_named(config.init))
    model: ModelConfig = model_config(config)
    of_transformers = () if model.fusion == "none" else ("num_heads", "num_layers")
    for name in ("fusion", "widths", *of_transformers, "stem_stride", "last_stride", "pixels"):
        theirs, ours = getattr(initial.config, name), getattr(model, name)
        if theirs != ours:
            raise UserError(f"config.model.{name}: expected {theirs} as in config.init={config.init}, got {ours}")
    return bind(model, model_arrays(initial))


def _say_nothing(line):
    pass


def validate_epoch(
    config: Config, clips: ClipSource, eval_fn: Callable, state: TrainState, mesh: jax.sharding.Mesh, shard: Shard
) -> dict[str, float]:
    """Loss, accuracy and F1 over one fixed set of in-sync and out-of-sync pairs, the same in every epoch.

    Args:
      clips: of the validation list.
      eval_fn: from `step.compile_steps`.
      shard: the part of every batch that this process reads; the metrics are those of all processes.

    Raises:
      UserError: no clip of the list gave a pair.
    """
    batches = evaluation_pairs(
        clips,
        seed=config.seed,
        batch_size=config.val_batch_size,
        window_frames=config.model.window_frames,
        pairs_per_clip=config.val_pairs_per_clip,
        shard=shard,
    )
    sums = None
    for batch in batches:
        del batch["skipped"]
        found = eval_fn(state, put_batch(batch, mesh))
        sums = found if sums is None else jax.tree.map(jnp.add, sums, found)
    sums = jax.device_get(sums)  # once: the device is never waited for between batches
    if sums is None or not sums["confusion"].any():
        raise UserError(f"no pair of config.data.val_list={config.data.val_list} could be drawn; check the clips")
    return validation_metrics(**sums)


def validation_metrics(loss: np.ndarray, confusion: np.ndarray) -> dict[str, float]:
    """Mean loss, accuracy and F1 at both thresholds. Args: sums over all pairs, as from `step.eval_step`."""
    pairs = float(confusion[0].sum())
    metrics = {"val_loss": float(loss) / pairs, "val_accuracy": float(np.trace(confusion[0])) / pairs}
    for name, ((_, false_positive), (false_negative, true_positive)) in zip(
        ("val_f1", "val_f1_reference"), confusion, strict=True
    ):
        both = 2 * true_positive
        metrics[name] = float(both / max(both + false_positive + false_negative, 1))
    return metrics
