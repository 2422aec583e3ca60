"""Where arrays live: batches are split over the mesh's `data` axis, state is replicated."""

import jax
from jax.sharding import AxisType, NamedSharding, PartitionSpec


def make_mesh(data: int) -> jax.sharding.Mesh:
    """A mesh of `data` devices along the axis "data"; −1 takes all."""
    devices = jax.devices() if data == -1 else jax.devices()[:data]
    return jax.make_mesh((len(devices),), ("data",), axis_types=(AxisType.Auto,), devices=devices)


def split_rows(mesh) -> NamedSharding:
    """The leading axis over the devices."""
    return NamedSharding(mesh, PartitionSpec("data"))


def replicate(mesh) -> NamedSharding:
    """The whole array on every device."""
    return NamedSharding(mesh, PartitionSpec())


def put_batch(batch: dict, mesh) -> dict:
    """This process's rows of a batch → global arrays."""
    sharding = split_rows(mesh)
    return {name: jax.make_array_from_process_local_data(sharding, array) for name, array in batch.items()}
