"""The training step against the reference's four Adam steps, and on several devices against one."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import mtd_jax
from mtd_jax.config import default_config, model_config
from mtd_jax.distributed.sharding import make_mesh
from mtd_jax.network.model import ModelConfig, SyncModel
from mtd_jax.network.weights import bind, kernels_in, model_arrays
from mtd_jax.released.key_table import to_torch
from mtd_jax.training import step as step_module
from mtd_jax.training.objective import Objective
from mtd_jax.training.optimizer import make_optimizer, schedule_factor
from mtd_jax.training.step import (
    Run,
    TrainState,
    confusion_counts,
    eval_step,
    initial_state,
    score_grid,
    train_step,
)
from mtd_jax.training.train import validation_metrics
from tests.helpers.golden_models import TEACHER, golden, recipe_model
from tests.helpers.recipe import state_dict_shapes

NO_DROPOUT = {"embedding_dropout": 0.0, "relu_dropout": 0.0, "residual_dropout": 0.0}


def test_a_teacher_with_kernels_cast_once_computes_the_same():
    config = ModelConfig.tiny(num_layers=1, compute_dtype="bfloat16")
    arrays = model_arrays(SyncModel(config, seed=0))
    cast = kernels_in("bfloat16", arrays)
    kernels = {name for name in cast if cast[name].dtype == jnp.bfloat16}
    assert kernels == {name for name in arrays if name.endswith("/kernel")}
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 256, (2, 2, 5, 48, 96, 3), dtype=np.uint8)
    mel = rng.uniform(-4, 4, (2, 2, 16, 80)).astype(np.float32)
    score = jax.jit(lambda arrays: score_grid(bind(config, arrays), frames, mel))
    jax.tree.map(np.testing.assert_array_equal, score(cast), score(arrays))


@pytest.mark.usefixtures("no_rank_promotion")
def test_confusion_counts_and_metrics_by_hand():
    # Above both thresholds, between them, below both; the last two rows do not count.
    logits = np.array([2.0, 0.6, -1.0, 0.3, 0.2, -0.5, 5.0, -5.0], np.float32)
    labels = np.array([1.0, 0.0, 0.0, 1.0, 0.0, 1.0, 0.0, 1.0], np.float32)
    valid = np.array([1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 0.0, 0.0], np.float32)
    counts = np.asarray(confusion_counts(logits, labels, valid))
    np.testing.assert_array_equal(counts, [[[1, 2], [1, 2]], [[2, 1], [2, 1]]])
    metrics = validation_metrics(np.float32(3.0), counts)
    assert metrics == pytest.approx(
        {"val_loss": 0.5, "val_accuracy": 0.5, "val_f1": 4 / 7, "val_f1_reference": 2 / 5}
    )
    assert validation_metrics(np.float32(1.0), np.array([[[4, 0], [0, 0]]] * 2, np.float32))["val_f1"] == 0


def test_validation_adds_up_to_the_loss_of_all_pairs():
    """Batches with rows that are not valid against one batch of all valid rows."""
    config = default_config(ModelConfig.tiny(num_layers=1))
    model = SyncModel(model_config(config), seed=0)
    mesh = make_mesh(config.mesh, jax.devices()[:1])
    run = Run(model.config, None, Objective.from_config(config.loss), optax.sgd(1.0), seed=0, mesh=mesh)
    state, rng = initial_state(run, model), np.random.default_rng(0)
    batch = {
        "frames": rng.integers(0, 256, (4, 1, 5, 48, 96, 3), dtype=np.uint8),
        "audio": rng.integers(-9000, 9000, (4, 1, 3200)).astype(np.int16),
        "labels": np.array([1, 0, 0, 1], np.float32).reshape(4, 1, 1),
        "valid": np.array([True, True, True, False]),
    }
    sums = jax.jit(functools.partial(eval_step, run))(state, batch)
    mel = mtd_jax.log_mel(batch["audio"][:, 0])[:, :-1]
    logits = np.asarray(model(batch["frames"][:, 0], mel))
    signs = np.where(batch["labels"][:, 0, 0] > 0.5, 1, -1)
    np.testing.assert_allclose(sums["loss"], np.log1p(np.exp(-signs * logits))[:3].sum(), rtol=1e-4)
    assert np.asarray(sums["confusion"]).sum(axis=(1, 2)).tolist() == [3, 3]


@pytest.mark.slow
def test_four_adam_steps_follow_the_reference(monkeypatch):
    # The recipe gives mel spectrograms, not sound: let them pass through the step in the place of the audio.
    monkeypatch.setattr(step_module, "training_mel", lambda config, audio: audio)
    config = default_config(ModelConfig.mtd_vocalist(**NO_DROPOUT))
    config.loss.name = "mtd"
    student = recipe_model(ModelConfig.mtd_vocalist(**NO_DROPOUT), 1)
    run = Run(
        model=student.config,
        teacher=TEACHER,
        objective=Objective.from_config(config.loss),
        optimizer=make_optimizer(config.optimizer, schedule_factor(config.optimizer, 1, 4)),
        seed=0,
        mesh=make_mesh(config.mesh, jax.devices()[:1]),
    )
    state: TrainState = initial_state(run, student)
    teacher_arrays = model_arrays(recipe_model(TEACHER, 0))
    step = jax.jit(functools.partial(train_step, run))
    reference = golden("train_steps.npz")
    for i in range(4):
        frames = np.random.default_rng([101, 100 + i]).integers(0, 256, (4, 5, 6, 12, 3), dtype=np.uint8)
        frames = frames.repeat(8, axis=2).repeat(8, axis=3)
        mel = np.random.default_rng([303, 100 + i]).uniform(-4, 4, (4, 80, 16)).astype(np.float32)
        batch = {
            "frames": frames[:, None],
            "audio": np.swapaxes(mel, 1, 2)[:, None],
            "labels": np.array([1, 0, 1, 0], np.float32).reshape(4, 1, 1),
        }
        state, metrics = step(state, teacher_arrays, batch)
        np.testing.assert_allclose(metrics["total"], reference["total"][i], rtol=1e-5 if i == 0 else 1e-3)
        np.testing.assert_allclose(metrics["bce"], reference["bce"][i], rtol=1e-5 if i == 0 else 1e-3)
    np.testing.assert_allclose(state.learned["uncertainty"], reference["uncertainty"], rtol=1e-5)
    trained = to_torch(student.config, jax.device_get(state.params | state.statistics), "trained")
    checked = [name for name in reference if name in state_dict_shapes("student")]
    assert len(checked) == len(reference) - 3
    for name in checked:
        scale = np.abs(reference[name]).max()
        tolerance = 1e-2 if name.endswith("running_var") else 1e-3
        np.testing.assert_allclose(trained[name], reference[name], atol=tolerance * scale, err_msg=name)
