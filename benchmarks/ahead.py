"""The published distillation as an abstract program: what a compiler needs of it, without an array or a device."""

import functools

import jax
import jax.numpy as jnp

from configs import distill
from mtd_jax.arrays import abstract_arrays, split_statistics
from mtd_jax.config import model_config
from mtd_jax.data.clip import SAMPLES_PER_FRAME
from mtd_jax.errors import UserError
from mtd_jax.model import FRAME_SHAPE, ModelConfig, abstract_model
from mtd_jax.objective import Objective
from mtd_jax.optimizer import make_optimizer, schedule_factor
from mtd_jax.sharding import make_mesh
from mtd_jax.step import Run, compile_steps, state_of

LRS2_PRETRAIN_STEPS = 752  # an epoch: 96,318 clips in batches of 128


def published_schedule(config):
    """step → factor of the learning rate, with epochs of LRS2's pre-training list."""
    return schedule_factor(config.optimizer, LRS2_PRETRAIN_STEPS, config.epochs * LRS2_PRETRAIN_STEPS)


def published_run(devices, fsdp: int, compute_dtype: str, *, tiny: bool = False) -> Run:
    """The published distillation on a mesh of these devices.

    Args:
      devices: real or described ones.
      fsdp: how many of them lie along the fsdp axis, the others being along data.
      compute_dtype: of student and teacher.
      tiny: models of one layer per encoder, to try things on.

    Raises:
      UserError: fsdp does not divide the number of devices.
    """
    if fsdp < 1 or len(devices) % fsdp:
        raise UserError(f"fsdp {fsdp}: expected a divisor of the {len(devices)} devices")
    config = distill.get_config("tiny" if tiny else "")
    config.model.compute_dtype = compute_dtype
    config.mesh.fsdp = fsdp
    sizes = {}
    if tiny:
        config.model.update(num_layers=1, num_heads=2)
        sizes = {"widths": (8, 8, 16, 16, 32), "num_layers": 1, "num_heads": 2}
    named = ModelConfig.tiny if tiny else ModelConfig.vocalist
    return Run(
        model=model_config(config),
        teacher=named(compute_dtype=compute_dtype, **sizes),
        objective=Objective.from_config(config.loss),
        optimizer=make_optimizer(config.optimizer, published_schedule(config)),
        seed=config.seed,
        mesh=make_mesh(config.mesh, devices),
    )


def lower(run: Run, rows: int, step: str) -> jax.stages.Lowered:
    """The program of a step ("train" or "validate") on `rows` pairs, to be compiled for the mesh of `run`."""
    teacher = abstract_arrays(run.teacher)
    state = jax.eval_shape(functools.partial(state_of, run), *split_statistics(abstract_model(run.model)))
    train_fn, validate_fn = compile_steps(run, state, teacher)
    batch = abstract_batch(rows, run.model.window_frames, step)
    return train_fn.lower(state, teacher, batch) if step == "train" else validate_fn.lower(state, batch)


def memory_of(compiled: jax.stages.Compiled) -> dict[str, int]:
    """What a call of the program needs beside itself, in bytes per device."""
    memory = compiled.memory_analysis()
    return {
        "arguments": memory.argument_size_in_bytes,
        "outputs beside them": memory.output_size_in_bytes - memory.alias_size_in_bytes,
        "temporary": memory.temp_size_in_bytes,
    }


def abstract_batch(rows: int, window_frames: int, step: str) -> dict:
    """A batch of one pair per row, as shapes; see `pipeline` and `step.logged_step`."""
    shape = jax.ShapeDtypeStruct
    batch = {
        "frames": shape((rows, 1, window_frames, *FRAME_SHAPE), jnp.uint8),
        "audio": shape((rows, 1, window_frames * SAMPLES_PER_FRAME), jnp.int16),
        "labels": shape((rows, 1, 1), jnp.float32),
    }
    counts = {"skipped": shape((rows,), jnp.int32), "signal": shape((rows,), jnp.int32)}
    return batch | (counts if step == "train" else {"valid": shape((rows,), jnp.bool_)})
