"""The ways to do the distillation step that `train_step.py` compares: the same weights and batches for all."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.ahead import published_schedule
from configs import distill
from mtd_jax.data.clip import SAMPLES_PER_FRAME
from mtd_jax.distributed.sharding import make_mesh, place, put_batch
from mtd_jax.network.model import FRAME_SHAPE, ModelConfig, SyncModel
from mtd_jax.network.weights import kernels_in, model_arrays
from mtd_jax.training.objective import Objective
from mtd_jax.training.optimizer import make_optimizer
from mtd_jax.training.step import Run, compile_steps, initial_state, training_mel

GFLOP_PER_SAMPLE = 34.7 + 3 * 8.44  # teacher forward, student forward and twice that backward
PARTS = ("total", "bce", "attention", "value")  # losses; the last two are summed over layers
BATCHES = 4  # different ones, in turn
PRODUCTS = 20  # matrix products per step of `matrix_product`
NO_DROPOUT = (("embedding_dropout", 0.0), ("relu_dropout", 0.0), ("residual_dropout", 0.0))
_TINY = {"num_layers": 1, "num_heads": 2, "stem_stride": (2, 2), "last_stride": (1, 1), "pixels": "rgb01"}


@dataclasses.dataclass(frozen=True)
class Sizes:
    """What is computed: pairs a step, tiny or published networks, and changes of their `ModelConfig`s."""

    batch_size: int
    tiny: bool
    changes: tuple[tuple[str, Any], ...] = ()


@dataclasses.dataclass(frozen=True)
class Way:
    """A way to do the step.

    Attributes:
      step: batch number → losses on the device, with the `items()` of {part: scalar}; no waiting.
      wait: until everything dispatched is done.
      figures: what the compiler says of the step.
    """

    step: Callable[[int], Any]
    wait: Callable[[], Any]
    figures: dict = dataclasses.field(default_factory=dict)


def configs_of(sizes: Sizes, dtype: str) -> tuple[ModelConfig, ModelConfig]:
    """(student, teacher), of the published sizes or tiny."""
    options = {"compute_dtype": dtype} | dict(sizes.changes)
    if sizes.tiny:
        widths = ((4, 4, 8, 8, 8), (4, 4, 8, 8, 16))
        return tuple(ModelConfig(widths=w, **(_TINY | options)) for w in widths)
    return ModelConfig.mtd_vocalist(**options), ModelConfig.vocalist(pixels="rgb255", **options)


@functools.cache
def weights(sizes: Sizes) -> tuple[dict, dict]:
    """NumPy arrays of student and teacher, the same for every way."""
    return tuple(
        {name: np.asarray(array) for name, array in model_arrays(SyncModel(config, seed=seed)).items()}
        for seed, config in enumerate(configs_of(sizes, "float32"))
    )


@functools.cache
def host_batches(sizes: Sizes) -> list[dict]:
    """Random batches: what `pipeline` gives, one pair a draw, half of them in sync."""
    rng, count, frames = np.random.default_rng(0), sizes.batch_size, 5
    return [
        {
            "frames": rng.integers(0, 256, (count, 1, frames, *FRAME_SHAPE), dtype=np.uint8),
            "audio": rng.integers(-9000, 9000, (count, 1, frames * SAMPLES_PER_FRAME)).astype(np.int16),
            "labels": (np.arange(count) % 2).astype(np.float32).reshape(count, 1, 1),
            "skipped": np.zeros(count, np.int32),
        }
        for _ in range(BATCHES)
    ]


def our_way(sizes: Sizes, dtype: str) -> Way:
    """This package's step, compiled for one device as `train` compiles it."""
    config, (student, teacher) = distill.get_config(), configs_of(sizes, dtype)
    optimizer = make_optimizer(config.optimizer, published_schedule(config))
    mesh = make_mesh(config.mesh, jax.devices()[:1])
    run = Run(student, teacher, Objective.from_config(config.loss), optimizer, config.seed, mesh)
    state = place(initial_state(run, SyncModel(student, seed=0)), mesh)
    teacher_arrays = place(kernels_in(dtype, weights(sizes)[1]), mesh)
    batches = [put_batch(batch, mesh) for batch in host_batches(sizes)]
    step_fn, _ = compile_steps(run, state, teacher_arrays)
    compiled = step_fn.lower(state, teacher_arrays, batches[0]).compile()
    cost, memory = compiled.cost_analysis() or {}, compiled.memory_analysis()
    figures = {
        "flops": cost.get("flops"),
        "bytes_accessed": cost.get("bytes accessed"),
        "temporary_bytes": memory.temp_size_in_bytes if memory else None,
    }

    def step(number):
        nonlocal state
        state, metrics = compiled(state, teacher_arrays, batches[number % BATCHES])
        return OurLosses(metrics)

    return Way(step, lambda: jax.block_until_ready(state), figures)


class OurLosses:
    """The step's metrics as PyTorch's step has them; nothing is read, or added up, before `items` is called."""

    def __init__(self, metrics):
        self.metrics = metrics

    def items(self):
        metrics = jax.device_get(self.metrics)
        sums = {kind: sum(v for k, v in metrics.items() if k.startswith(f"{kind}_")) for kind in PARTS[2:]}
        return ({part: metrics[part] for part in PARTS[:2]} | sums).items()


def torch_way(sizes: Sizes, form: dict) -> Way:
    """PyTorch's step on the device that JAX uses."""
    import torch

    from benchmarks import torch_step

    backend = jax.default_backend()
    if backend not in ("cpu", "gpu") or (backend == "gpu" and not torch.cuda.is_available()):
        raise RuntimeError(f"PyTorch has no device here like JAX's {backend}")
    device = "cuda" if backend == "gpu" else "cpu"
    torch_step.use_tf32()
    torch.manual_seed(0)
    config, form = distill.get_config(), torch_step.Form(**form)
    # The benchmark stays within the first epoch, where the rate is constant.
    factor, rates = float(published_schedule(config)(np.int32(0))), config.optimizer
    student, teacher = configs_of(sizes, "float32")
    models = [
        torch_step.torch_model(model_config, arrays, device, form.channels_last)
        for model_config, arrays in zip((student, teacher), weights(sizes), strict=True)
    ]
    update = torch_step.make_step(*models, form, rates.learning_rate * factor, rates.loss_learning_rate * factor)
    batches = [
        {
            "frames": torch.from_numpy(batch["frames"][:, 0]).to(device),
            "mel": torch.from_numpy(np.array(training_mel(student, batch["audio"])[:, 0])).to(device),
            "labels": torch.from_numpy(batch["labels"].ravel()).to(device),
        }
        for batch in host_batches(sizes)
    ]

    def step(number):
        losses = update(batches[number % BATCHES])
        return {part: losses[part] for part in PARTS}

    return Way(step, torch.cuda.synchronize if device == "cuda" else lambda: None)


def largest_difference(losses: list[dict], reference: list[dict]) -> float:
    """Of any loss in any step, as a share of BCE + CAD + VR of that step; inf if something is not finite.

    Not of the total: 13·ln 2 of that depends on nothing that is compared.
    """
    ours, theirs = (np.array([[step[part] for part in PARTS] for step in steps]) for steps in (losses, reference))
    worst = np.max(np.abs(ours - theirs) / theirs[:, 1:].sum(axis=1, keepdims=True))
    return float(worst) if np.isfinite(worst) else float("inf")


def matrix_product(size: int) -> Way:
    """Products of square bfloat16 matrices in turn: `PRODUCTS` a step."""
    matrix = jax.random.normal(jax.random.key(0), (size, size), jnp.bfloat16) * size**-0.5

    @jax.jit
    def multiply(x):
        return jax.lax.fori_loop(0, PRODUCTS, lambda _, x: jnp.dot(x, matrix), x)

    state = multiply(matrix)

    def step(_):
        nonlocal state
        state = multiply(matrix)

    return Way(step, lambda: jax.block_until_ready(state))
