"""The gradient of the MTD loss against PyTorch's automatic differentiation of the twin, in float64."""

import functools

import jax
import numpy as np
import torch
import torch.nn.functional as F

from converters import torch_model
from converters.key_table import key_table
from mtd_jax.network import layers
from mtd_jax.network.model import ENCODERS, ModelConfig
from mtd_jax.network.weights import bind, model_arrays
from mtd_jax.training import losses
from tests.helpers.golden_models import golden, mel_from_torch, recipe_model
from tests.helpers.recipe import recipe_weights, state_dict_shapes

CONFIG = ModelConfig.mtd_vocalist()
UNCERTAINTY = np.linspace(0.6, 1.4, 13).astype(np.float32)


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
    def twin(seed):
        model = torch_model.TorchSyncModel(torch_model.STUDENT_WIDTHS, pixels="rgb255").double().eval()
        weights = recipe_weights(state_dict_shapes("student"), seed)
        model.load_state_dict({name: torch.from_numpy(np.array(array)) for name, array in weights.items()})
        pixels = model.scale_pixels
        model.scale_pixels = lambda frames: pixels(frames).double()
        return model

    teacher, student = twin(2), twin(1)
    inputs = torch.from_numpy(batch["frames"]), torch.from_numpy(mel_from_torch(batch["mel"]).copy()).double()
    with torch.no_grad():
        _, teacher_features = teacher(*inputs)
    logits, features = student(*inputs)
    w = torch.from_numpy(UNCERTAINTY).double()
    labels = torch.from_numpy(batch["labels"]).double()
    total = 0.5 / w[0] ** 2 * F.binary_cross_entropy_with_logits(logits, labels)
    kl = functools.partial(F.kl_div, reduction="none", log_target=True)
    for i, (name, layer) in enumerate(((n, k) for n in ENCODERS for k in range(4)), start=1):
        for relations in ("attention_logits", "value_logits"):
            t, s = (getattr(f, relations)[name][layer] for f in (teacher_features, features))
            if relations == "attention_logits" and name == "va":
                t, s = t.clamp(min=1e-5), s.clamp(min=1e-5)
            t, s = ((x / temperature).log_softmax(-1) for x in (t, s))
            total = total + 0.5 / w[i] ** 2 * temperature**2 * kl(s, t).mean()
    total.backward()
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
