"""One table between the released state-dict names and the Flax tree, driving the conversion in both directions.

Every transform is a transposition, given as the order in which the torch axes appear in the Flax array. Shapes
are never written down here: they follow from the `ModelConfig`, so the table serves any width and depth.
"""

from collections.abc import Mapping
from typing import NamedTuple

import jax
import numpy as np

from mtd_jax.network.model import ModelConfig
from mtd_jax.network.weights import abstract_arrays, check_cover

SAME = (0,)
LINEAR = (1, 0)  # (out, in) → (in, out)
CONV_2D = (2, 3, 1, 0)  # (out, in, H, W) → (H, W, in, out)
CONV_3D = (2, 3, 4, 1, 0)  # (out, in, H, W, T) → (H, W, T, in, out)

VIDEO_BLOCKS, AUDIO_BLOCKS = 17, 14
# Entries of the released files that no computation reads, with the values a fresh PyTorch model has.
_BATCH_COUNT = np.zeros((), np.int64)
_VERSION, _FLOAT_TENSOR = np.full(1, 2, np.float32), np.zeros(1, np.float32)


class Entry(NamedTuple):
    """One state-dict entry: its Flax name and axes, or the constant to write where Flax has none."""

    torch_name: str
    flax_name: str | None
    axes: tuple[int, ...] = SAME
    constant: np.ndarray | None = None


_CONV_BLOCK = (  # (torch ending, Flax ending or None, axes or constant); KERNEL is 2-D or 3-D
    ("conv_block.0.weight", "conv/kernel", "KERNEL"),
    ("conv_block.0.bias", "conv/bias", SAME),
    ("conv_block.1.weight", "norm/scale", SAME),
    ("conv_block.1.bias", "norm/bias", SAME),
    ("conv_block.1.running_mean", "norm/mean", SAME),
    ("conv_block.1.running_var", "norm/var", SAME),
    ("conv_block.1.num_batches_tracked", None, _BATCH_COUNT),
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


def key_table(num_layers: int) -> list[Entry]:
    """Every entry of a state dict with `num_layers` layers per encoder, in the released order."""
    table = []
    for torch_net, flax_net, blocks, kernel_axes in _PRENETS:
        for i in range(blocks):
            for ending, flax_ending, rule in _CONV_BLOCK:
                torch_name = f"{torch_net}.{i}.{ending}"
                if flax_ending is None:
                    table.append(Entry(torch_name, None, constant=rule))
                else:
                    axes = kernel_axes if rule == "KERNEL" else rule
                    table.append(Entry(torch_name, f"{flax_net}/blocks/{i}/{flax_ending}", axes))
    for torch_net, flax_net in _ENCODERS:
        table.append(Entry(f"{torch_net}.version", None, constant=_VERSION))
        table.append(Entry(f"{torch_net}.embed_positions._float_tensor", None, constant=_FLOAT_TENSOR))
        for i in range(num_layers):
            for ending, flax_ending, axes in _ENCODER_LAYER:
                table.append(
                    Entry(f"{torch_net}.layers.{i}.{ending}", f"{flax_net}/layers/{i}/{flax_ending}", axes)
                )
        for ending, flax_ending in (("weight", "scale"), ("bias", "bias")):
            table.append(Entry(f"{torch_net}.layer_norm.{ending}", f"{flax_net}/final_norm/{flax_ending}"))
    return table + [Entry(*row) for row in _HEAD]


def torch_shapes(config: ModelConfig) -> dict[str, jax.ShapeDtypeStruct]:
    """The state dict that a config calls for: names, shapes and dtypes, in the released order."""
    flax_arrays = abstract_arrays(config)
    shapes = {}
    for entry in key_table(config.num_layers):
        if entry.flax_name is None:
            shapes[entry.torch_name] = jax.ShapeDtypeStruct(entry.constant.shape, entry.constant.dtype)
        else:
            array = flax_arrays[entry.flax_name]
            shape = tuple(array.shape[axis] for axis in np.argsort(entry.axes))
            shapes[entry.torch_name] = jax.ShapeDtypeStruct(shape, array.dtype)
    return shapes


def to_flax(config: ModelConfig, state_dict: Mapping[str, np.ndarray], source: str) -> dict[str, np.ndarray]:
    """State dict → arrays under the Flax model's flat names ("video_prenet/blocks/0/conv/kernel", …).

    Raises:
      UserError: naming every missing, extra and misshaped entry; `source` says where they came from.
    """
    check_cover(torch_shapes(config), dict(state_dict), source)
    return {
        entry.flax_name: np.transpose(state_dict[entry.torch_name], entry.axes)
        for entry in key_table(config.num_layers)
        if entry.flax_name is not None
    }


def to_torch(config: ModelConfig, arrays: Mapping[str, np.ndarray], source: str) -> dict[str, np.ndarray]:
    """The inverse of `to_flax`, with the entries that carry nothing at their initial values; same errors."""
    check_cover(abstract_arrays(config), dict(arrays), source)
    return {
        entry.torch_name: entry.constant.copy()
        if entry.flax_name is None
        else np.ascontiguousarray(np.transpose(arrays[entry.flax_name], np.argsort(entry.axes)))
        for entry in key_table(config.num_layers)
    }
