"""The distillation step in plain PyTorch: what `train_step.py` measures this package against.

The networks are `converters.torch_model`; the MTD loss (Chen et al. 2024, arXiv 2210.15563) and the step are
written here as one would without JAX at hand; tests/test_benchmarks.py compares their losses with this package's.
"""

import dataclasses
import functools
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from converters.torch_model import TorchFeatures, TorchSyncModel
from converters.verify import twin_of
from mtd_jax.network.model import ENCODERS, ModelConfig
from mtd_jax.released.key_table import to_torch
from mtd_jax.training.losses import CLAMP_FLOOR


@dataclasses.dataclass(frozen=True)
class Form:
    """How PyTorch runs the step.

    Attributes:
      bfloat16: autocast; else float32, with TF32 where the GPU has it (for convolutions PyTorch's own default).
      channels_last: the prenets' memory format, channels_last_3d for video.
      compile_mode: of torch.compile, for both networks and the loss; None: eager.
      fused: one kernel for Adam's update.
    """

    bfloat16: bool = False
    channels_last: bool = False
    compile_mode: str | None = None
    fused: bool = False


def torch_model(config: ModelConfig, arrays: dict, device: str, channels_last: bool) -> TorchSyncModel:
    """The PyTorch twin with the weights of `arrays` (names of `mtd_jax.network.weights`), in eval mode."""
    twin = twin_of(config)
    entries = to_torch(config, {name: np.asarray(array) for name, array in arrays.items()}, "model")
    twin.load_state_dict({name: torch.from_numpy(np.array(array)) for name, array in entries.items()})
    twin.to(device)
    if channels_last:
        for prenet, form in ((twin.vid_prenet, torch.channels_last_3d), (twin.aud_prenet, torch.channels_last)):
            prenet.to(memory_format=form)
            prenet.register_forward_pre_hook(lambda _, inputs, form=form: inputs[0].contiguous(memory_format=form))
    return twin


def relation_kl(teacher: Tensor, student: Tensor, clamp: bool) -> Tensor:
    """KL(softmax(teacher) ‖ softmax(student)) per layer, mean over every element; temperature 1.

    Args: logits (layers, batch, heads, query, key), −inf where masked;
      clamp: see `mtd_jax.training.losses.relation_kl`.
    """
    teacher, student = teacher.float(), student.float()
    if clamp:
        teacher, student = teacher.clamp(min=CLAMP_FLOOR), student.clamp(min=CLAMP_FLOOR)
    hidden = torch.isinf(teacher)
    # −inf − (−inf) would be NaN, in the gradient too; the weight of −1e30 is exactly 0.
    teacher, student = (x.masked_fill(hidden, -1e30).log_softmax(-1) for x in (teacher, student))
    return (teacher.exp() * (teacher - student)).masked_fill(hidden, 0).mean(dim=(1, 2, 3, 4))


def mtd_loss(logits: Tensor, labels: Tensor, student: TorchFeatures, teacher: TorchFeatures, weights: Tensor):
    """The loss as published: BCE and 12 layers of CAD + VR by learned uncertainty, with the V→A clamp.

    Args: logits, labels (batch,); weights (13,).

    Returns: total; {"bce", "attention", "value"}: scalars, the last two summed over layers.
    """
    bce = F.binary_cross_entropy_with_logits(logits.float(), labels)
    attention, value = [], []
    for name in ENCODERS:
        clamp = name == "va"
        attention.append(relation_kl(teacher.attention_logits[name], student.attention_logits[name], clamp))
        value.append(relation_kl(teacher.value_logits[name], student.value_logits[name], False))
    attention, value = torch.cat(attention), torch.cat(value)
    losses = torch.cat([bce[None], attention + value])
    total = (0.5 / weights**2 * losses + torch.log1p(weights**2)).sum()
    return total, {"bce": bce, "attention": attention.sum(), "value": value.sum()}


def make_step(
    student: TorchSyncModel, teacher: TorchSyncModel, form: Form, learning_rate: float, loss_learning_rate: float
) -> Callable[[dict[str, Tensor]], dict[str, Tensor]]:
    """The step of batch → losses, which trains `student`.

    The batch: frames uint8 (B, T, 48, 96, 3), mel float32 (B, S, 80), labels float32 (B,), on the device.
    """
    device = next(student.parameters()).device.type
    student.train()
    teacher.eval().requires_grad_(False)
    weights = torch.nn.Parameter(torch.ones(1 + len(ENCODERS) * len(student.av_transformer.layers), device=device))
    groups = [
        {"params": list(student.parameters()), "lr": learning_rate},
        {"params": [weights], "lr": loss_learning_rate},
    ]
    optimizer = torch.optim.Adam(groups, fused=form.fused)
    autocast = functools.partial(torch.autocast, device, torch.bfloat16, enabled=form.bfloat16)

    def forward(frames, mel, labels):
        with autocast():
            with torch.no_grad():
                taught = teacher(frames, mel)[1]
            logits, features = student(frames, mel)
        return mtd_loss(logits, labels, features, taught, weights)

    if form.compile_mode is not None:
        forward = torch.compile(forward, mode=form.compile_mode, dynamic=False)

    def step(batch):
        if form.compile_mode is not None:
            torch.compiler.cudagraph_mark_step_begin()  # a step's results may be overwritten by the next
        optimizer.zero_grad(set_to_none=True)
        total, parts = forward(batch["frames"], batch["mel"], batch["labels"])
        total.backward()
        optimizer.step()
        return {"total": total.detach(), **{name: part.detach() for name, part in parts.items()}}

    step.weights = weights
    return step


def use_tf32():
    """TF32 for products and convolutions in float32, and the fastest algorithms by trial: both favour PyTorch."""
    torch.set_float32_matmul_precision("high")
    torch.backends.cudnn.allow_tf32 = True
    torch.backends.cudnn.benchmark = True
