"""The gradient of the MTD loss against PyTorch's automatic differentiation of the twin, in float64."""

import jax
import numpy as np
import torch
import torch.nn.functional as F

from mtd_jax.network import layers
from mtd_jax.network.model import ModelConfig
from mtd_jax.network.weights import bind, model_arrays
from mtd_jax.released.key_table import key_table
from mtd_jax.training import losses
from tests.helpers import torch_losses
from tests.helpers.golden_models import golden, mel_from_torch, recipe_model
from tests.helpers.random_models import twin_and_weights

CONFIG = ModelConfig(widths=(8, 8, 16, 16, 32), num_heads=2, num_layers=2)
UNCERTAINTY = np.linspace(0.6, 1.4, 1 + 3 * CONFIG.num_layers).astype(np.float32)


def jax_gradient(batch, teacher, student, temperature):
    @jax.jit
    def gradient(arrays, teacher_arrays, frames, mel):
        _, teacher_features = bind(CONFIG, teacher_arrays)(frames, mel, return_features=True)

        def total(arrays):
            logits, features = bind(CONFIG, arrays)(frames, mel, return_features=True)
            return losses.mtd_loss(logits, batch["labels"], features, teacher_features, UNCERTAINTY, temperature)[
                0
            ]

        return jax.grad(total)(arrays)

    return gradient(model_arrays(student), model_arrays(teacher), batch["frames"], mel_from_torch(batch["mel"]))


def torch_gradient(batch, temperature):
    (teacher, _), (student, _) = twin_and_weights(CONFIG, 2), twin_and_weights(CONFIG, 1)
    inputs = torch.from_numpy(batch["frames"]), torch.from_numpy(mel_from_torch(batch["mel"]).copy()).double()
    with torch.no_grad():
        _, expected = teacher(*inputs)
    labels, weights = (torch.from_numpy(x).double() for x in (batch["labels"], UNCERTAINTY))
    logits, features = student(*inputs)
    torch_losses.mtd_loss(logits, labels, features, expected, weights, temperature)[0].backward()
    return {name: parameter.grad.numpy() for name, parameter in student.named_parameters()}


def test_gradients_match_the_float64_twin(monkeypatch):
    """Every entry of every parameter, with softplus for ReLU on both sides, which rounding cannot flip."""
    monkeypatch.setattr(layers.nnx, "relu", jax.nn.softplus)
    monkeypatch.setattr(F, "relu", F.softplus)
    batch = {name: array[:2] for name, array in golden("mtd_loss_T1.npz").items() if array.ndim}
    actual = jax_gradient(batch, recipe_model(CONFIG, 2), recipe_model(CONFIG, 1), 2.0)
    expected = torch_gradient(batch, 2.0)
    checked = 0
    for entry in key_table(CONFIG.num_layers):
        if entry.torch_name in expected:
            ours, theirs = (
                np.asarray(actual[entry.flax_name]),
                np.transpose(expected[entry.torch_name], entry.axes),
            )
            np.testing.assert_allclose(ours, theirs, atol=1e-3 * np.abs(theirs).max(), err_msg=entry.torch_name)
            checked += 1
    assert checked == len(expected)
