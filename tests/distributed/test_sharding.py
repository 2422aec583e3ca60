"""One training step on eight (forced host) devices, as 8×1 and as 4×2, against one: same loss, same gradients.

With softplus in the place of ReLU: sums in another order round differently, and a ReLU near 0 turns that into a
jump of the gradient (7e-5 of its norm here), which would hide what is tested.
"""

import collections
import json
import pathlib
import re
import subprocess
import sys

import numpy as np
import pytest
from jax.sharding import PartitionSpec

from mtd_jax.distributed.sharding import kernel_spec
from tests.helpers.compiling import quick_environment

ROOT = pathlib.Path(__file__).parents[2]
SCRIPT = """
import dataclasses, json, sys
import jax, jax.numpy as jnp, numpy as np, optax
from flax import nnx
nnx.relu = jax.nn.softplus
from mtd_jax.network.weights import model_arrays
from mtd_jax.checkpoint import checksums
from mtd_jax.config import default_config
from mtd_jax import compilation as platform
from mtd_jax.network.model import ModelConfig, SyncModel
from mtd_jax.training.objective import Objective
from mtd_jax.distributed.sharding import make_mesh, place, put_batch
from mtd_jax.training.step import Run, compile_steps, initial_state

platform.prepare()
assert jax.device_count() == 8
small = dict(widths=(4, 4, 8, 8, 8), num_heads=2, num_layers=1, stem_stride=(2, 2), last_stride=(1, 1))
student, teacher = ModelConfig(**small), ModelConfig(**(small | {"widths": (4, 4, 8, 8, 16)}))
config = default_config(student)
config.loss.name, config.loss.info_nce_weight, config.loss.balance_pairs = "mtd", 1.0, True
# Plain SGD of rate 1: the change of the parameters is the gradient itself.
run = Run(student, teacher, Objective.from_config(config.loss), optax.sgd(1.0), 0, make_mesh(config.mesh))
rng = np.random.default_rng(0)
batch = {
    "frames": rng.integers(0, 256, (8, 2, 5, 48, 96, 3), dtype=np.uint8),
    "audio": rng.integers(-9000, 9000, (8, 2, 3200)).astype(np.int16),
    "labels": np.broadcast_to(np.eye(2, dtype=np.float32), (8, 2, 2)).copy(),
}
batch["skipped"] = np.ones(8, np.int32)
out = {}
for data, fsdp in ((1, 1), (8, 1), (4, 2)):
    config.mesh.data, config.mesh.fsdp = data, fsdp
    run = dataclasses.replace(run, mesh=make_mesh(config.mesh))
    start = initial_state(run, SyncModel(student, seed=0))
    teacher_arrays = place(model_arrays(SyncModel(teacher, seed=1)), run.mesh)
    state = place(start, run.mesh)
    step, _ = compile_steps(run, state, teacher_arrays)
    arguments = state, teacher_arrays, put_batch(batch, run.mesh)
    step = step.lower(*arguments).compile()
    sums = checksums(state.params), checksums(start.params)
    after, metrics = step(*arguments)
    assert int(metrics["skipped_clips"]) == 8
    kernel = after.params["va_encoder/layers/0/fc1/kernel"]
    assert len(kernel.sharding.device_set) == data * fsdp
    assert kernel.addressable_shards[0].data.shape == (8, 32 // fsdp)
    state = start  # the placed one was given away
    gradient = {n: state.params[n] - after.params[n] for n in state.params}
    gradient |= {n: state.learned[n] - after.learned[n] for n in state.learned}
    gradient |= {n: after.statistics[n] for n in after.statistics}
    out[f"{data}x{fsdp}"] = {"hlo": step.as_text(), "checksums": sums,
                         "split": [[x.shape for x in arrays.values() if not x.is_fully_replicated]
                                   for arrays in (after.params, teacher_arrays)],
                         "total": float(metrics["total"]),
                         "arrays": {n: np.asarray(g).ravel().tolist() for n, g in gradient.items()}}
json.dump(out, open(sys.argv[1], "w"))
"""


@pytest.fixture(scope="module")
def outcome(tmp_path_factory):
    path = tmp_path_factory.mktemp("sharding") / "out.json"
    env = quick_environment() | {"PYTHONPATH": str(ROOT)}
    env["XLA_FLAGS"] += " --xla_force_host_platform_device_count=8"
    subprocess.run([sys.executable, "-c", SCRIPT, str(path)], check=True, env=env, cwd=ROOT)
    return json.loads(path.read_text())


@pytest.fixture(params=["8x1", "4x2"])
def arrangement(request):
    return request.param


@pytest.mark.slow
def test_loss_is_the_same_on_eight_devices(outcome, arrangement):
    assert outcome[arrangement]["total"] == pytest.approx(outcome["1x1"]["total"], rel=1e-5)


def test_gradients_and_batch_statistics_are_the_same_on_eight_devices(outcome, arrangement):
    one, eight = outcome["1x1"]["arrays"], outcome[arrangement]["arrays"]
    assert one.keys() == eight.keys() and len(one) > 200
    # A gradient that is 0 but for rounding (a bias before BatchNorm) is compared with the largest of all.
    largest = max(np.abs(values).max() for values in one.values())
    for name, values in one.items():
        scale = max(np.abs(values).max(), 1e-2 * largest)
        np.testing.assert_allclose(eight[name], values, atol=1e-5 * scale, err_msg=name)


def test_checksums_are_the_same_on_eight_devices(outcome, arrangement):
    placed, whole = outcome[arrangement]["checksums"]
    assert placed == whole and len(set(placed.values())) > 40


def gathered_shapes(hlo):
    found = re.findall(r"= f32\[([\d,]+)\]\S* all-gather(?:-start)?\(", hlo)
    return collections.Counter(tuple(map(int, shape.split(","))) for shape in found)


def test_only_kernels_are_gathered_each_on_its_own(outcome):
    student, teacher = (collections.Counter(map(tuple, shapes)) for shapes in outcome["4x2"]["split"])
    gathered = gathered_shapes(outcome["4x2"]["hlo"])
    assert student.total() > 40
    assert student <= gathered <= student + teacher  # the loss does not need all of the teacher
    assert not gathered_shapes(outcome["8x1"]["hlo"])
    for arrangement in ("8x1", "4x2"):
        assert not re.search(r"(all-to-all|collective-permute)(-start)?\(", outcome[arrangement]["hlo"])


@pytest.mark.parametrize(
    "shape, fsdp, spec",
    [
        ((), 4, ()),
        ((512,), 4, ()),
        ((512, 1536), 4, (None, "fsdp")),
        ((2048, 512), 4, ("fsdp",)),
        ((512, 512), 4, (None, "fsdp")),
        ((3, 3, 3, 64, 32), 4, (None, None, None, "fsdp")),
        ((7, 7, 7, 3, 33), 4, ()),
        ((512, 1), 512, ("fsdp",)),
        ((512, 512), 1, ()),
    ],
)
def test_the_rule_for_kernels(shape, fsdp, spec):
    assert kernel_spec(shape, fsdp) == PartitionSpec(*spec)
