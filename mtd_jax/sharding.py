"""Where arrays live on a mesh of devices with the axes `data` and `fsdp`.

The rows of a batch are split over all devices, over both axes. Kernels, and what the optimiser keeps beside them,
are split over `fsdp` by `kernel_spec`; a step gathers each where its layer is computed (`gathered`), so that
activations stay split by rows and nothing else does.
"""

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

DATA, FSDP = "data", "fsdp"
ROWS = PartitionSpec((DATA, FSDP))


def make_mesh(options, devices=None) -> Mesh:
    """A (data, fsdp) mesh.

    Args:
      options: the section `mesh` of a config: data, or −1 for as many as there are, and fsdp.
      devices: those to use, of all processes; `jax.devices()` by default.

    The devices of a process lie side by side, process after process: so the rows of a batch are in the order of
    the processes, which is that of the draws, and the devices that share kernels are on one host if it has enough.
    """
    devices = sorted(jax.devices() if devices is None else devices, key=lambda d: (d.process_index, d.id))
    data, fsdp = mesh_shape(options, len(devices))
    grid = np.array(devices[: data * fsdp]).reshape(data, fsdp)
    return Mesh(grid, (DATA, FSDP), axis_types=(AxisType.Auto, AxisType.Auto))


def mesh_shape(options, num_devices: int) -> tuple[int, int]:
    """(data, fsdp) for so many devices; data = −1 takes what fsdp leaves."""
    return num_devices // options.fsdp if options.data == -1 else options.data, options.fsdp


def kernel_spec(shape: tuple[int, ...], fsdp: int) -> PartitionSpec:
    """The rule: an array of two or more dimensions is split along its largest one that `fsdp` divides, the last of
    equals. Vectors, scalars and what cannot be divided stay whole on every device."""
    fitting = [axis for axis, size in enumerate(shape) if size % fsdp == 0]
    if len(shape) < 2 or not fitting or fsdp == 1:
        return PartitionSpec()
    chosen = max(fitting, key=lambda axis: (shape[axis], axis))
    return PartitionSpec(*(FSDP if axis == chosen else None for axis in range(chosen + 1)))


def shardings(tree, mesh: Mesh):
    """`kernel_spec` for every array (or anything else with a shape) of a tree."""
    return jax.tree.map(lambda x: NamedSharding(mesh, kernel_spec(np.shape(x), mesh.shape[FSDP])), tree)


def split_rows(mesh: Mesh) -> NamedSharding:
    """The leading axis over all devices."""
    return NamedSharding(mesh, ROWS)


def replicate(mesh: Mesh) -> NamedSharding:
    """The whole array on every device."""
    return NamedSharding(mesh, PartitionSpec())


def place(tree, mesh: Mesh):
    """A tree of arrays that every process has whole → global arrays, split by `kernel_spec`."""

    def one(array, sharding):
        array = np.asarray(array)
        return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])

    return jax.tree.map(one, tree, shardings(tree, mesh))


def put_batch(batch: dict, mesh: Mesh) -> dict:
    """This process's rows of a batch → global arrays."""
    sharding = split_rows(mesh)
    return {name: jax.make_array_from_process_local_data(sharding, array) for name, array in batch.items()}


def gathered(tree, mesh: Mesh | None):
    """Inside a step: every array whole on every device, each gathered on its own where it is used."""
    return tree if mesh is None else jax.lax.with_sharding_constraint(tree, replicate(mesh))


def scattered(tree, mesh: Mesh | None):
    """Inside a step: back to `kernel_spec`, so that the optimiser works on each device's part alone."""
    return tree if mesh is None else jax.lax.with_sharding_constraint(tree, shardings(tree, mesh))


def by_rows(function, mesh: Mesh | None):
    """`function` of rows, each device with its own alone: where XLA would gather all of them, as for an FFT."""
    return function if mesh is None else jax.shard_map(function, mesh=mesh, in_specs=ROWS, out_specs=ROWS)
