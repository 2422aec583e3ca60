"""Checksums of arrays, to notice a checkpoint whose bytes have changed on disk: orbax keeps none."""

import zlib

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax


def checksums(tree) -> dict[str, int]:
    """{path: sum of the array's 32-bit words, each times its own odd number, modulo 2³²}.

    The same for every sharding and number of processes, all of which have to call it. Every changed word changes
    the sum, and so do two words that are swapped (but for a difference of 2³¹).

    Args: tree: of arrays with entries of four bytes.
    """
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    arrays = {jax.tree_util.keystr(path, simple=True, separator="/"): array for path, array in leaves}
    split = {name: array for name, array in arrays.items() if not array.is_fully_replicated}
    sums = jax.device_get(_on_devices(split)) if split else {}
    for name in arrays.keys() - split.keys():  # here there is nothing to compile
        sums[name] = _weighted_sum(np.asarray(arrays[name].addressable_data(0)).view(np.uint32), np)
    return {name: int(sums[name]) for name in arrays}


def checksum_of_all(arrays: dict) -> int:
    """One number for a model's arrays: tells whether two models are the same."""
    return zlib.crc32(repr(sorted(checksums(arrays).items())).encode())


def check(tree, expected: dict[str, int]):
    """Raises a `ValueError` that names the arrays whose checksum is not the expected one."""
    found = checksums(tree)
    wrong = sorted(name for name in expected if found[name] != expected[name])
    if wrong:
        raise ValueError(f"{len(wrong)} arrays are not as they were written, first {wrong[0]}")


@jax.jit
def _on_devices(arrays):
    return {name: _weighted_sum(lax.bitcast_convert_type(x, jnp.uint32), jnp) for name, x in arrays.items()}


def _weighted_sum(words, xp):
    numbers = xp.arange(words.size, dtype=xp.uint32).reshape(words.shape)
    return (words * (2 * numbers + 1)).sum(dtype=xp.uint32)
