"""The published distillation as an abstract program: what a compiler needs of it, without an array or a device."""

import functools
import math
import re

import jax
import jax.numpy as jnp

from configs import distill
from mtd_jax.config import model_config
from mtd_jax.data.clip import SAMPLES_PER_FRAME
from mtd_jax.distributed.sharding import make_mesh
from mtd_jax.errors import UserError
from mtd_jax.network.model import FRAME_SHAPE, ModelConfig, abstract_model
from mtd_jax.network.weights import abstract_arrays, kernels_in, split_statistics
from mtd_jax.training.objective import Objective
from mtd_jax.training.optimizer import make_optimizer, schedule_factor
from mtd_jax.training.step import Run, compile_steps, state_of

_COLLECTIVES = (
    "all-reduce|all-gather|reduce-scatter|ragged-all-to-all|all-to-all|collective-permute|collective-broadcast"
)
_COLLECTIVE = re.compile(rf"^\s*(?:ROOT )?%?\S+ = (.*?) ({_COLLECTIVES})(-start)?\(", re.MULTILINE)
_ARRAY = re.compile(r"\b(pred|[a-z]+\d+[a-z0-9]*)\[([\d,]*)\]")
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


def abstract_teacher(run: Run) -> dict[str, jax.ShapeDtypeStruct]:
    """The frozen teacher's arrays as training places them."""
    return jax.eval_shape(functools.partial(kernels_in, run.teacher.compute_dtype), abstract_arrays(run.teacher))


def lower(run: Run, rows: int, step: str) -> jax.stages.Lowered:
    """The program of a step ("train" or "validate") on `rows` pairs, to be compiled for the mesh of `run`."""
    teacher = abstract_teacher(run)
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
    extra = {"skipped": shape((rows,), jnp.int32)} if step == "train" else {"valid": shape((rows,), jnp.bool_)}
    return batch | extra


def collectives(hlo: str) -> dict[str, dict]:
    """{kind: {"count", "bytes" of all results, "largest" result in bytes}}, per device and call of the program."""
    found: dict[str, dict] = {}
    for result, kind, start in _COLLECTIVE.findall(hlo):
        sizes = _sizes(result)
        if start and kind != "all-reduce":
            sizes = sizes[len(sizes) // 2 :]  # an asynchronous operation names operands, then results
        entry = found.setdefault(kind, {"count": 0, "bytes": 0, "largest": 0})
        entry["count"] += 1
        entry["bytes"] += sum(sizes)
        entry["largest"] = max(entry["largest"], *sizes)
    return found


def _sizes(text: str) -> list[int]:
    """Bytes of every array in an HLO type."""
    return [
        (8 if dtype == "pred" else int(re.search(r"\d+", dtype)[0]))
        * math.prod(int(n) for n in shape.split(",") if n)
        // 8
        for dtype, shape in _ARRAY.findall(text)
    ]
