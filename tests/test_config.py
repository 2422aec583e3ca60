"""Configurations that cannot work, and the schedules of the learning rate."""

import jax
import numpy as np
import pytest

from mtd_jax.config import default_config, load_config, model_config, validate
from mtd_jax.errors import UserError
from mtd_jax.network.model import abstract_model, count_parameters
from mtd_jax.training.optimizer import schedule_factor
from tests.helpers.configs import STUDENT, small_config


@pytest.mark.parametrize(
    "field, value, message",
    [
        ("seed", -1, "0 or more"),
        ("data.workers", -1, "0 or more"),
        ("loss.layers.fusion", ("a",), "layers from 1 to 1"),
        ("loss.layers.fusion", (1, 1), "layers from 1 to 1"),
        ("optimizer.decay_rate", 0.0, r"\(0, 1\]"),
        ("batch_size", 0, "at least 1"),
        ("batch_size", 3, "a multiple of the 2 devices"),
        ("mesh.data", 3, "the 2 devices here"),
        ("mesh.fsdp", 3, "a divisor of the 2 devices"),
        ("mesh.fsdp", 0, "a divisor of the 2 devices"),
        ("loss.name", "mse", "one of bce"),
        ("loss.name", "mtd", "needs a teacher"),
        ("loss.temperature", 0.0, "more than 0"),
        ("optimizer.schedule", "linear", "one of constant"),
        ("loss.info_nce_weight", 1.0, "reference pairs"),
        ("loss.layers.va", (5,), "layers from 1 to 1"),
        ("data.root", "", "folder of the clips"),
        ("data.format", "zip", "one of lrs2, tfds, acappella"),
        ("model.pixels", "bgr", "rgb255"),
        ("teacher", "somewhere", "uses none"),
        ("data.extra.alone_epochs", 1.0, "data.extra.root: expected the folder"),
    ],
)
def test_impossible_configurations_are_one_clear_line(field, value, message):
    config = small_config("somewhere")
    section, *rest = field.split(".")
    target = config
    for name in field.split(".")[:-1]:
        target = target[name]
    target[field.split(".")[-1]] = value
    with pytest.raises(UserError, match=message) as error:
        validate(config, num_devices=2)
    assert "\n" not in str(error.value)


def test_a_mesh_may_leave_devices_unused():
    config = small_config("somewhere")
    config.mesh.data, config.mesh.fsdp = 1, 2
    validate(config, num_devices=3)
    config.mesh.data = 2
    with pytest.raises(UserError, match="mesh.data: expected -1 or 1 to 1 with fsdp 2, for the 3 devices"):
        validate(config, num_devices=3)


def test_stepwise_schedule_is_the_published_one():
    options = default_config(STUDENT).optimizer
    options.schedule, options.warmup_epochs = "stepwise", 10.0
    factor = schedule_factor(options, steps_per_epoch=7, total_steps=560)
    for epoch, expected in [
        (1, 0.1),
        (9, 0.9),
        (10, 1.0),
        (11, 1.0),
        (29, 1.0),
        (30, 0.8),
        (50, 0.64),
        (80, 0.512),
    ]:
        for step in (7 * (epoch - 1), 7 * epoch - 1):
            assert float(factor(np.int32(step))) == pytest.approx(expected, rel=1e-6)


def test_cosine_schedule_warms_up_and_ends_at_zero():
    options = default_config(STUDENT).optimizer
    options.schedule, options.warmup_epochs = "cosine", 1.0
    factor = jax.vmap(schedule_factor(options, steps_per_epoch=10, total_steps=100))(np.arange(100))
    np.testing.assert_allclose(factor[:10], np.arange(1, 11) / 10, rtol=1e-6)
    assert (np.diff(factor[10:]) < 0).all() and factor[-1] < 1e-3


@pytest.mark.parametrize("variant, parameters", [("", 704_754), ("large", 7_768_962)])
def test_the_recommended_recipe_is_two_towers_without_a_teacher(variant, parameters):
    config, recipe = load_config("best", variant), load_config("real", "teacher")
    config.data.root = config.data.extra.root = "somewhere"
    validate(config, num_devices=1)
    assert count_parameters(abstract_model(model_config(config))) == parameters
    assert config.model.fusion == "none" and config.loss.name == "bce" and not config.teacher
    for other in (config, recipe):
        other.model, other.data.root, other.data.extra.root = {}, "", ""
    assert config.to_dict() == recipe.to_dict()
