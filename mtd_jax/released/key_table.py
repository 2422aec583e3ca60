"""One table of the released state-dict names and their Flax names, which drives the conversion in both directions.

Every transform is a transposition, given as the order in which the torch axes appear in the Flax array. The table
contains no shapes. They follow from the `ModelConfig`, so it serves any width and depth.
"""

from collections.abc import Iterable, Mapping
from typing import NamedTuple

import jax
import numpy as np

from mtd_jax.errors import UserError
from mtd_jax.network.model import ModelConfig
from mtd_jax.network.weights import abstract_arrays, check_cover

SAME = (0,)
LINEAR = (1, 0)  # (out, in) → (in, out)
CONV_2D = (2, 3, 1, 0)  # (out, in, H, W) → (H, W, in, out)
CONV_3D = (2, 3, 4, 1, 0)  # (out, in, H, W, T) → (H, W, T, in, out)

VIDEO_BLOCKS, AUDIO_BLOCKS = 17, 14
# Entries of the released files that no computation reads, with the values of a fresh PyTorch model.
_BATCH_COUNT = np.zeros((), np.int64)
_VERSION, _FLOAT_TENSOR = np.full(1, 2, np.float32), np.zeros(1, np.float32)


class Entry(NamedTuple):
    """One state-dict entry with a counterpart in Flax: both names, and the order of the torch axes in Flax."""

    torch_name: str
    flax_name: str
    axes: tuple[int, ...] = SAME


class Constant(NamedTuple):
    """One state-dict entry without a counterpart in Flax, and its value."""

    torch_name: str
    value: np.ndarray


# Each row: torch ending, Flax ending, axes.
_CONV_BLOCK = (  # after the kernel, whose axes depend on the prenet
    ("conv_block.0.bias", "conv/bias", SAME),
    ("conv_block.1.weight", "norm/scale", SAME),
    ("conv_block.1.bias", "norm/bias", SAME),
    ("conv_block.1.running_mean", "norm/mean", SAME),
    ("conv_block.1.running_var", "norm/var", SAME),
)
_ENCODER_LAYER = (
    ("self_attn.in_proj_weight", "attention/in_proj/kernel", LINEAR),
    ("self_attn.in_proj_bias", "attention/in_proj/bias", SAME),
    ("self_attn.out_proj.weight", "attention/out_proj/kernel", LINEAR),
    ("self_attn.out_proj.bias", "attention/out_proj/bias", SAME),
    ("fc1.weight", "fc1/kernel", LINEAR),
    ("fc1.bias", "fc1/bias", SAME),
    ("fc2.weight", "fc2/kernel", LINEAR),
    ("fc2.bias", "fc2/bias", SAME),
    ("layer_norms.0.weight", "attention_norm/scale", SAME),
    ("layer_norms.0.bias", "attention_norm/bias", SAME),
    ("layer_norms.1.weight", "feedforward_norm/scale", SAME),
    ("layer_norms.1.bias", "feedforward_norm/bias", SAME),
)
_FINAL_NORM = (("weight", "scale", SAME), ("bias", "bias", SAME))
_HEAD = (
    ("fc.weight", "head/kernel", LINEAR),
    ("fc.bias", "head/bias", SAME),
    ("classifier.weight", "classifier/kernel", LINEAR),
    ("classifier.bias", "classifier/bias", SAME),
)
_PRENETS = (
    ("vid_prenet", "video_prenet", VIDEO_BLOCKS, CONV_3D),
    ("aud_prenet", "audio_prenet", AUDIO_BLOCKS, CONV_2D),
)
_ENCODERS = (
    ("av_transformer", "av_encoder"),
    ("va_transformer", "va_encoder"),
    ("mem_transformer", "fusion_encoder"),
)


def key_table(num_layers: int) -> list[Entry | Constant]:
    """Every entry of a state dict with `num_layers` layers per encoder, in the released order."""
    table: list[Entry | Constant] = []

    def add(torch_place: str, flax_place: str, rows: Iterable[tuple[str, str, tuple[int, ...]]]) -> None:
        table.extend(Entry(torch_place + ending, flax_place + flax_end, axes) for ending, flax_end, axes in rows)

    for torch_net, flax_net, blocks, kernel_axes in _PRENETS:
        for i in range(blocks):
            kernel = ("conv_block.0.weight", "conv/kernel", kernel_axes)
            add(f"{torch_net}.{i}.", f"{flax_net}/blocks/{i}/", (kernel, *_CONV_BLOCK))
            table.append(Constant(f"{torch_net}.{i}.conv_block.1.num_batches_tracked", _BATCH_COUNT))
    for torch_net, flax_net in _ENCODERS:
        table.append(Constant(f"{torch_net}.version", _VERSION))
        table.append(Constant(f"{torch_net}.embed_positions._float_tensor", _FLOAT_TENSOR))
        for i in range(num_layers):
            add(f"{torch_net}.layers.{i}.", f"{flax_net}/layers/{i}/", _ENCODER_LAYER)
        add(f"{torch_net}.layer_norm.", f"{flax_net}/final_norm/", _FINAL_NORM)
    add("", "", _HEAD)
    return table


def torch_shapes(config: ModelConfig) -> dict[str, jax.ShapeDtypeStruct]:
    """The state dict of a model with this config: names, shapes and dtypes, in the released order."""
    flax_arrays = abstract_arrays(config)
    shapes = {}
    for entry in key_table(config.num_layers):
        if isinstance(entry, Constant):
            shapes[entry.torch_name] = jax.ShapeDtypeStruct(entry.value.shape, entry.value.dtype)
        else:
            array = flax_arrays[entry.flax_name]
            shape = tuple(array.shape[axis] for axis in np.argsort(entry.axes))
            shapes[entry.torch_name] = jax.ShapeDtypeStruct(shape, array.dtype)
    return shapes


def to_flax(config: ModelConfig, state_dict: Mapping[str, np.ndarray], source: str) -> dict[str, np.ndarray]:
    """Converts a state dict into arrays under the model's flat names ("video_prenet/blocks/0/conv/kernel", …).

    Args:
      source: where the state dict came from, for the message.

    Raises:
      UserError: there are missing, extra or misshaped entries; it names each of them.
    """
    check_cover(torch_shapes(config), dict(state_dict), source)
    return {
        entry.flax_name: np.transpose(state_dict[entry.torch_name], entry.axes)
        for entry in key_table(config.num_layers)
        if isinstance(entry, Entry)
    }


def to_torch(config: ModelConfig, arrays: Mapping[str, np.ndarray], source: str) -> dict[str, np.ndarray]:
    """The inverse of `to_flax`; entries without a counterpart in Flax get their initial values. Same errors."""
    if config.fusion == "none":
        raise UserError(f"{source}: two towers (model.fusion=none) have no counterpart in the released format")
    check_cover(abstract_arrays(config), dict(arrays), source)
    state_dict = {}
    for entry in key_table(config.num_layers):
        if isinstance(entry, Constant):
            state_dict[entry.torch_name] = entry.value.copy()
        else:
            array = np.transpose(arrays[entry.flax_name], np.argsort(entry.axes))
            state_dict[entry.torch_name] = np.ascontiguousarray(array)
    return state_dict
