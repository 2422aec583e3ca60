"""One training step on eight (forced host) devices against one: same loss, same gradients.

With softplus in the place of ReLU: sums in another order round differently, and a ReLU near 0 turns that into a
jump of the gradient (7e-5 of its norm here), which would hide what is tested.
"""

import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest

ROOT = pathlib.Path(__file__).parent.parent
SCRIPT = """
import dataclasses, functools, json, sys
import jax, jax.numpy as jnp, numpy as np, optax
from flax import nnx
nnx.relu = jax.nn.softplus
from mtd_jax.arrays import create_model, model_arrays
from mtd_jax.config import default_config
from mtd_jax.model import ModelConfig
from mtd_jax.objective import Objective
from mtd_jax.sharding import make_mesh, put_batch, replicate, split_rows
from mtd_jax.step import Run, initial_state, train_step

assert jax.device_count() == 8
small = dict(widths=(4, 4, 8, 8, 8), num_heads=2, num_layers=1, stem_stride=(2, 2), last_stride=(1, 1))
student, teacher = ModelConfig(**small), ModelConfig(**(small | {"widths": (4, 4, 8, 8, 16)}))
config = default_config(student)
config.loss.name, config.loss.info_nce_weight, config.loss.balance_pairs = "mtd", 1.0, True
# Plain SGD of rate 1: the change of the parameters is the gradient itself.
run = Run(student, teacher, Objective.from_config(config.loss), optax.sgd(1.0), seed=0)
rng = np.random.default_rng(0)
batch = {
    "frames": rng.integers(0, 256, (8, 2, 5, 48, 96, 3), dtype=np.uint8),
    "audio": rng.integers(-9000, 9000, (8, 2, 3200)).astype(np.int16),
    "labels": np.broadcast_to(np.eye(2, dtype=np.float32), (8, 2, 2)).copy(),
}
out = {}
for devices in (1, 8):
    mesh = make_mesh(devices)
    whole = replicate(mesh)
    state = jax.device_put(initial_state(run, create_model(student, 0)), whole)
    teacher_arrays = jax.device_put(model_arrays(create_model(teacher, 1)), whole)
    step = jax.jit(functools.partial(train_step, run), in_shardings=(whole, whole, split_rows(mesh)),
                   out_shardings=(whole, whole))
    after, metrics = step(state, teacher_arrays, put_batch(batch, mesh))
    assert len(after.params["head/kernel"].sharding.device_set) == devices
    gradient = {n: state.params[n] - after.params[n] for n in state.params}
    gradient |= {"learned": state.learned["uncertainty"] - after.learned["uncertainty"]}
    gradient |= {n: after.statistics[n] for n in after.statistics}
    out[str(devices)] = {"total": float(metrics["total"]),
                         "arrays": {n: np.asarray(g).ravel().tolist() for n, g in gradient.items()}}
json.dump(out, open(sys.argv[1], "w"))
"""


@pytest.fixture(scope="module")
def outcome(tmp_path_factory):
    path = tmp_path_factory.mktemp("sharding") / "out.json"
    env = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=8", "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", SCRIPT, str(path)], check=True, env=env, cwd=ROOT)
    return json.loads(path.read_text())


def test_loss_is_the_same_on_eight_devices(outcome):
    assert outcome["8"]["total"] == pytest.approx(outcome["1"]["total"], rel=1e-5)


def test_gradients_and_batch_statistics_are_the_same_on_eight_devices(outcome):
    one, eight = outcome["1"]["arrays"], outcome["8"]["arrays"]
    assert one.keys() == eight.keys() and len(one) > 200
    # A gradient that is 0 but for rounding (a bias before BatchNorm) is compared with the largest of all.
    largest = max(np.abs(values).max() for values in one.values())
    for name, values in one.items():
        scale = max(np.abs(values).max(), 1e-2 * largest)
        np.testing.assert_allclose(eight[name], values, atol=1e-5 * scale, err_msg=name)
