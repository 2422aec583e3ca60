"""Training, of a teacher or a student: one loop, read from top to bottom."""

import dataclasses
import fcntl
import time
import zlib

import jax
import numpy as np
from etils import epath

from mtd_jax.arrays import create_model, model_arrays
from mtd_jax.checkpoint import load_model, open_manager
from mtd_jax.config import model_config, validate
from mtd_jax.data.pipeline import Loading, evaluation_pairs, make_training_iterator
from mtd_jax.data.sampling import Pairing
from mtd_jax.data.source import open_source
from mtd_jax.errors import UserError
from mtd_jax.metrics import MetricWriter
from mtd_jax.model import ModelConfig
from mtd_jax.objective import Objective
from mtd_jax.optimizer import make_optimizer, schedule_factor
from mtd_jax.progress import Progress
from mtd_jax.resume import restore_run, save_run, writing
from mtd_jax.sharding import make_mesh, place, put_batch
from mtd_jax.step import Run, compile_steps, initial_state

MIN_TRAINING_FRAMES = 26  # the published code draws from clips of more than 25 frames


def train(config, workdir, report=print) -> dict:
    """Trains until the configured number of epochs; run again after an interruption, it goes on where it was.

    Args:
      config: as from `config.default_config`.
      workdir: gets checkpoints/, metrics.jsonl and tensorboard/.
      report: takes one line of progress at a time.

    Returns:
      {"steps", "train_seconds" (over all calls, compilation included), "validation": the last epoch's metrics}.

    Raises:
      UserError: for a configuration that cannot work (before anything is compiled), unusable data, a checkpoint of
        another configuration, or a loss that is not finite.
    """
    started = time.monotonic()
    validate(config, jax.device_count())
    pairing = Pairing(config.data.pairing, config.model.window_frames, config.data.windows, config.data.min_gap)
    data, enough = config.data, max(MIN_TRAINING_FRAMES, pairing.min_frames)
    clips = open_source(data.format, data.root, data.train_list, min_frames=enough)
    val_clips = open_source(data.format, data.root, data.val_list, min_frames=config.model.window_frames + 1)
    steps_per_epoch = max((config.draws_per_epoch or len(clips)) // config.batch_size, 1)
    total_steps = config.epochs * steps_per_epoch

    teacher = load_teacher(config) if config.teacher else None
    config = with_fingerprints(config, clips, teacher)
    factor = schedule_factor(config.optimizer, steps_per_epoch, total_steps)
    run = Run(
        model=model_config(config),
        teacher=teacher.config if teacher else None,
        objective=Objective.from_config(config.loss),
        optimizer=make_optimizer(config.optimizer, factor),
        seed=config.seed,
        mesh=make_mesh(config.mesh),
    )
    state = place(initial_state(run, create_model(run.model, config.seed)), run.mesh)
    teacher_arrays = place(model_arrays(teacher) if teacher else {}, run.mesh)
    step_fn, eval_fn = compile_steps(run, state, teacher_arrays)

    workdir = epath.Path(workdir)
    lock = lock_workdir(workdir)  # held until the process or this function ends  # noqa: F841
    batches = make_training_iterator(
        clips,
        pairing,
        seed=config.seed,
        batch_size=config.batch_size,
        loading=Loading(workers=config.data.workers),
    )
    with open_manager(workdir / "checkpoints") as manager:
        if manager.latest_step() is not None:
            state, description = restore_run(manager, state, config)
            batches.set_state(description["data"])
            started -= description["train_seconds"]
            report(f"resumed from step {int(state.step)} of {total_steps} in {workdir}")
        first = int(state.step)
        writer = MetricWriter(workdir, first)
        progress = Progress(config, writer, report, factor, first, total_steps, manager)
        validation = None
        try:
            for step in range(first + 1, total_steps + 1):
                batch = next(batches) | {"signal": np.zeros(config.batch_size, np.int32)}
                state, metrics = step_fn(state, teacher_arrays, put_batch(batch, run.mesh))
                progress.after_dispatch(step, metrics)
                epoch_ends = step % steps_per_epoch == 0
                if not epoch_ends and not (config.checkpoint_every and step % config.checkpoint_every == 0):
                    continue
                progress.catch_up()  # never save what came of a loss that is not finite
                if epoch_ends:
                    validation = validate_epoch(config, val_clips, eval_fn, state, run.mesh)
                    progress.epoch(step, step // steps_per_epoch, validation)
                seconds = time.monotonic() - started
                metrics = validation if epoch_ends else None
                save_run(manager, run, state, config, batches.get_state(), seconds, metrics)
            progress.catch_up()
            with writing(manager):
                manager.wait_until_finished()
        finally:
            batches.close()
            writer.close()
        if first >= total_steps:
            started = time.monotonic() - description["train_seconds"]
            report(f"nothing to do: {workdir} has {first} of {total_steps} steps")
            validation = dict(manager.metrics(manager.latest_step()) or {})
    return {"steps": total_steps, "train_seconds": time.monotonic() - started, "validation": validation}


def with_fingerprints(config, clips, teacher):
    """The config with checksums of the clips' names and of the teacher: a run goes on with the same ones."""
    config = config.copy_and_resolve_references()
    names = clips.encoding + "\n".join(clips[i].name for i in range(len(clips)))
    arrays = model_arrays(teacher) if teacher else {}
    with config.unlocked():
        config.data.clips_checksum = zlib.crc32(names.encode())
        config.teacher_checksum = zlib.crc32(
            b"".join(np.asarray(arrays[name]).tobytes() for name in sorted(arrays))
        )
    return config


def lock_workdir(workdir):
    """Makes the work directory, and takes it for this process: two runs in one would destroy each other.

    The lock goes with the process, however that ends. Remote file systems have none.
    """
    if "://" in str(workdir):
        return None
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        lock = open(workdir / ".lock", "w")  # noqa: SIM115 (closing it would give up the lock)
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise UserError(f"another run is writing to {workdir}; wait for it, or name another --workdir") from error
    except OSError as error:
        raise UserError(f"cannot write to --workdir {workdir}: {error.strerror}") from error
    return lock


def load_teacher(config):
    """The frozen teacher, computing in the student's dtype; UserError if its relations have other shapes."""
    teacher = load_model(config.teacher)
    student: ModelConfig = model_config(config)
    for name in ("num_layers", "num_heads", "window_frames"):
        theirs, ours = getattr(teacher.config, name), getattr(student, name)
        if theirs != ours:
            raise UserError(
                f"config.model.{name}: expected {theirs} as in the teacher {config.teacher}, got {ours}"
            )
    teacher.config = dataclasses.replace(teacher.config, compute_dtype=student.compute_dtype)
    return teacher


def validate_epoch(config, clips, eval_fn, state, mesh) -> dict[str, float]:
    """Loss, accuracy and F1 over one fixed set of in-sync and out-of-sync pairs of the validation list."""
    batches = evaluation_pairs(
        clips,
        seed=config.seed,
        batch_size=config.val_batch_size,
        window_frames=config.model.window_frames,
        pairs_per_clip=config.val_pairs_per_clip,
    )
    sums: dict[str, float] = {}
    for batch in batches:
        del batch["skipped"]
        for name, value in jax.device_get(eval_fn(state, put_batch(batch, mesh))).items():
            sums[name] = sums.get(name, 0.0) + float(value)
    metrics = {"val_loss": sums["loss"] / sums["pairs"], "val_accuracy": sums["right"] / sums["pairs"]}
    for name in ("f1", "f1_reference"):
        right, wrong, missed = (
            sums[f"{name}_{kind}"] for kind in ("true_positive", "false_positive", "false_negative")
        )
        metrics[f"val_{name}"] = 2 * right / max(2 * right + wrong + missed, 1.0)
    return metrics
