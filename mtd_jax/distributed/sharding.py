"""Which device holds which part of an array, on a mesh with the axes `data` and `fsdp`.

The rows of a batch are split over all devices, over both axes. Kernels and their optimiser state are split over
`fsdp` by `kernel_spec`; a step gathers each kernel where its layer is computed (`gathered`), so that activations
are split by rows alone.
"""

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

DATA, FSDP = "data", "fsdp"
ROWS = PartitionSpec((DATA, FSDP))


class MeshOptions(Protocol):
    """Section `mesh` of a config. data = -1: as many as there are."""

    data: int
    fsdp: int


def make_mesh(options: MeshOptions, devices: Sequence[jax.Device] | None = None) -> Mesh:  # pyright: ignore[reportInvalidTypeForm]
    """A (data, fsdp) mesh.

    Args:
      devices: the devices to use, of all processes; `jax.devices()` by default.
    """
    # Not `jax.make_mesh`, which follows the torus of a TPU. Process after process, the rows of a batch keep the
    # order in which they are drawn: one process and several compute the same (dropout goes by row). The devices
    # that share a kernel are on one host if it has enough. The price (rings across the torus) is unmeasured.
    devices = sorted(jax.devices() if devices is None else devices, key=lambda d: (d.process_index, d.id))
    data, fsdp = mesh_shape(options, len(devices))
    grid = np.array(devices[: data * fsdp]).reshape(data, fsdp)
    return Mesh(grid, (DATA, FSDP), axis_types=(AxisType.Auto, AxisType.Auto))


def mesh_shape(options: MeshOptions, num_devices: int) -> tuple[int, int]:
    """(data, fsdp) for this many devices; data = -1 takes all that fsdp leaves."""
    return num_devices // options.fsdp if options.data == -1 else options.data, options.fsdp


def kernel_spec(shape: tuple[int, ...], fsdp: int) -> PartitionSpec:
    """How to split an array: along the largest dimension that `fsdp` divides, the last one among equals.

    Vectors, scalars and arrays without such a dimension stay whole on every device.
    """
    fitting = [axis for axis, size in enumerate(shape) if size % fsdp == 0]
    if len(shape) < 2 or not fitting or fsdp == 1:
        return PartitionSpec()
    chosen = max(fitting, key=lambda axis: (shape[axis], axis))
    return PartitionSpec(*(FSDP if axis == chosen else None for axis in range(chosen + 1)))


def shardings(tree: Any, mesh: Mesh) -> Any:
    """The `kernel_spec` of every array (or anything else with a shape) of a tree."""
    return jax.tree.map(lambda x: NamedSharding(mesh, kernel_spec(np.shape(x), mesh.shape[FSDP])), tree)


def split_rows(mesh: Mesh) -> NamedSharding:
    """The leading axis over all devices."""
    return NamedSharding(mesh, ROWS)


def replicate(mesh: Mesh) -> NamedSharding:
    """The whole array on every device."""
    return NamedSharding(mesh, PartitionSpec())


def place(tree: Any, mesh: Mesh) -> Any:
    """A tree of arrays that every process has whole → global arrays, split by `kernel_spec`."""

    def one(array: jax.Array | np.ndarray, sharding: NamedSharding) -> jax.Array:
        array = np.asarray(array)
        return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])

    return jax.tree.map(one, tree, shardings(tree, mesh))


def put_batch(batch: dict[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """This process's rows of a batch → global arrays."""
    sharding = split_rows(mesh)
    return {name: jax.make_array_from_process_local_data(sharding, array) for name, array in batch.items()}


def gathered(tree: Any, mesh: Mesh) -> Any:
    """Inside a step: every array whole on every device, each gathered separately where it is used."""
    return jax.lax.with_sharding_constraint(tree, replicate(mesh))


def scattered(tree: Any, mesh: Mesh) -> Any:
    """Inside a step: back to `kernel_spec`, so that the optimiser updates only the part of each device."""
    return jax.lax.with_sharding_constraint(tree, shardings(tree, mesh))


def by_rows(function: Callable[..., Any], mesh: Mesh) -> Callable[..., Any]:
    """`function` applied on each device to its own rows, where XLA would gather them all, as for an FFT."""
    return jax.shard_map(function, mesh=mesh, in_specs=ROWS, out_specs=ROWS)
