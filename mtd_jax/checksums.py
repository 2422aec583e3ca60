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
    arrays = [leaf for _, leaf in leaves]
    if all(array.is_fully_addressable and len(array.sharding.device_set) == 1 for array in arrays):
        sums = [_weighted_sum(np.asarray(array).view(np.uint32), np) for array in arrays]  # nothing to compile
    else:
        sums = jax.device_get(_on_devices(arrays))
    names = [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in leaves]
    return {name: int(total) for name, total in zip(names, sums, strict=True)}


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
    return [_weighted_sum(lax.bitcast_convert_type(array, jnp.uint32), jnp) for array in arrays]


def _weighted_sum(words, xp):
    numbers = xp.arange(words.size, dtype=xp.uint32).reshape(words.shape)
    return (words * (2 * numbers + 1)).sum(dtype=xp.uint32)
