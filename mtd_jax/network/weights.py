"""A model as a flat dictionary of named arrays, and back.

Training, scoring, checkpoints and converters handle weights as {"video_prenet/blocks/0/conv/kernel": array, …};
`bind` puts such a dictionary back into a `SyncModel`, inside or outside jit.
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax
from flax import nnx, traverse_util

from mtd_jax.errors import UserError
from mtd_jax.network.model import ModelConfig, SyncModel, abstract_model


def model_arrays(model: SyncModel) -> dict[str, jax.Array]:
    """Parameters and BatchNorm statistics by name; nothing else is in a model."""
    return {_name(path): leaf.get_value() for path, leaf in nnx.to_flat_state(nnx.state(model))}


def split_statistics(model: SyncModel) -> tuple[dict[str, jax.Array], dict[str, jax.Array]]:
    """(parameters, BatchNorm statistics) by name: what the optimiser changes and what it does not."""
    _, *states = nnx.split(model, nnx.Param, nnx.BatchStat)
    params, statistics = (
        {_name(path): leaf.get_value() for path, leaf in nnx.to_flat_state(state)} for state in states
    )
    return params, statistics


def abstract_arrays(config: ModelConfig) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes and dtypes of `model_arrays` for a config, without building the model."""
    _, leaves = _skeleton(config)
    return {_name(path): jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for path, leaf in leaves}


def bind(config: ModelConfig, arrays: Mapping[str, Any]) -> SyncModel:
    """The model around exactly these arrays. Pure, and cheap enough to be called inside a jitted step."""
    graphdef, leaves = _skeleton(config)
    state = nnx.from_flat_state([(path, leaf.replace(arrays[_name(path)])) for path, leaf in leaves])
    return nnx.merge(graphdef, state)


def computing_in(dtype: str, model: SyncModel) -> SyncModel:
    """The same weights in a model of another compute_dtype, "float32" or "bfloat16"."""
    return bind(dataclasses.replace(model.config, compute_dtype=dtype), model_arrays(model))


def kernels_in(dtype: str, arrays: dict[str, jax.Array]) -> dict[str, jax.Array]:
    """The arrays of a frozen model, with its kernels in the dtype that it computes in.

    Layers cast their kernels at every use. Cast once, results are the same, and in bfloat16 half as much memory is
    held and read in every step. Normalisation needs the other arrays as they are.
    """
    return {name: array.astype(dtype) if array.ndim > 1 else array for name, array in arrays.items()}


def check_cover(expected: Mapping[str, Any], found: Mapping[str, Any], source: str) -> None:
    """Raises one UserError that names every missing, extra and misshaped entry of `found`.

    Args: both {name: anything with a .shape}; source: what `found` is, for the message.
    """
    missing = sorted(expected.keys() - found.keys())
    extra = sorted(found.keys() - expected.keys())
    misshaped = [
        f"{name} is {tuple(found[name].shape)}, expected {tuple(expected[name].shape)}"
        for name in sorted(expected.keys() & found.keys())
        if tuple(found[name].shape) != tuple(expected[name].shape)
    ]
    problems = [("missing", missing), ("extra", extra), ("of another shape", misshaped)]
    if any(names for _, names in problems):
        listed = "; ".join(f"{len(names)} {kind}: {', '.join(names)}" for kind, names in problems if names)
        raise UserError(f"{source} does not fit the model. {listed}")


def flat(tree: dict[str, Any]) -> dict[str, Any]:
    """{"a": {"b": leaf}} → {"a/b": leaf}."""
    return traverse_util.flatten_dict(tree, sep="/")


def nested(leaves: dict[str, Any]) -> dict[str, Any]:
    """{"a/b": leaf} → {"a": {"b": leaf}}."""
    return traverse_util.unflatten_dict(leaves, sep="/")


@functools.lru_cache(maxsize=16)
def _skeleton(config: ModelConfig):
    """The structure of a model without its numbers: graph definition and [(path, abstract variable)]."""
    graphdef, state = nnx.split(abstract_model(config))
    return graphdef, nnx.to_flat_state(state)


def _name(path) -> str:
    return "/".join(map(str, path))
