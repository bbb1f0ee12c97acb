"""One mesh axis over all devices of all hosts: the data axis.

Clips are spread over it, everything else (weights, U, optimiser state) is a copy on
each device. The same code runs on one device and on many, in one process or several:
a process only ever holds the rows of its own devices.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

AXIS = "data"
CLIPS = PartitionSpec(AXIS)
COPY = PartitionSpec()

Tree = TypeVar("Tree")

# Of so many clips a CPU's caches hold what passes between a network's layers. Batches
# of 32 take 1.2 to 1.4 times as long a clip for ConvNeXt atto and tiny, and three times
# for the spectrogram alone.
CPU_CLIPS = 4


def make(devices: Sequence[jax.Device] | None = None) -> Mesh:
    """The mesh over `devices`, by default all of them, of all processes."""
    devices = jax.devices() if devices is None else devices
    # Auto, not the default Explicit: `lax.top_k` refuses explicitly sharded operands.
    return jax.make_mesh(
        (len(devices),), (AXIS,), axis_types=(AxisType.Auto,), devices=devices
    )


def local(mesh: Mesh) -> Mesh:
    """The part of the mesh that is this process's own."""
    own = list(mesh.local_devices)
    return mesh if len(own) == mesh.size else make(own)


def replicate(tree: Tree, mesh: Mesh) -> Tree:
    """A copy of every array on every device.

    Args:
      tree: the same in every process.
      mesh: from `make`.
    """
    sharding = NamedSharding(mesh, COPY)

    def place(array):
        if isinstance(array, jax.Array) and not array.is_fully_addressable:
            # A copy on all hosts' devices, wanted on other ones: take our own.
            if array.sharding.is_equivalent_to(sharding, array.ndim):
                return array
            array = array.addressable_data(0)
        return jax.device_put(array, sharding)

    return jax.tree.map(place, tree)


def to_host(tree: Tree) -> Tree:
    """Arrays of which every device has a copy, as this process's own.

    What every host computes on by itself must not be bound to the mesh, where all
    hosts have to take part.
    """
    return jax.tree.map(lambda array: jnp.asarray(np.asarray(array)), tree)


def shard(tree: Tree, mesh: Mesh) -> Tree:
    """Spreads axis 0 of every array over the devices.

    Args:
      tree: arrays whose axis 0 counts clips; it is padded with zeros to a multiple
        of the number of devices, so who reads the result must know the true count.
        With several processes each must have all rows, but only those of its own
        devices are looked at; an array that is spread already stays as it is.
      mesh: from `make`.
    """
    sharding = NamedSharding(mesh, CLIPS)

    def place(array):
        if isinstance(array, jax.Array) and not array.is_fully_addressable:
            if len(array) % mesh.size:
                raise ValueError(
                    f"{len(array)} rows on several hosts cannot be padded to a "
                    f"multiple of {mesh.size} devices"
                )
            return jax.device_put(array, sharding)
        missing = -len(array) % mesh.size
        if missing:
            zeros = np.zeros((missing, *array.shape[1:]), array.dtype)
            array = np.concatenate([array, zeros])
        if sharding.is_fully_addressable:
            return jax.device_put(array, sharding)
        # `device_put` would first compare the whole array among the hosts.
        array = np.asarray(array)
        return jax.make_array_from_callback(array.shape, sharding, array.__getitem__)

    return jax.tree.map(place, tree)


def shard_own(tree: Tree, mesh: Mesh) -> Tree:
    """Like `shard`, of rows of which each process has only its own consecutive part.

    Args:
      tree: as many rows in every process, a multiple of its devices.
      mesh: from `make`, with as many devices in every process.
    """
    sharding = NamedSharding(mesh, CLIPS)
    return jax.tree.map(
        lambda array: jax.make_array_from_process_local_data(sharding, array), tree
    )


def round_up(count: int, mesh: Mesh) -> int:
    """The smallest multiple of the number of devices that is at least `count`."""
    return -(-count // mesh.size) * mesh.size


@functools.partial(jax.jit, donate_argnames="block")
def _write(block: jax.Array, piece: jax.Array, first: jax.Array) -> jax.Array:
    """`block` with `piece` from row `first` on, in the same memory."""
    return jax.lax.dynamic_update_slice_in_dim(block, piece, first, axis=0)


def assemble(
    read: Callable[[range], Iterable[dict[str, np.ndarray]]],
    row: dict[str, jax.ShapeDtypeStruct],
    count: int,
    mesh: Mesh,
) -> dict[str, jax.Array]:
    """Rows read piece by piece into arrays spread like those of `shard`.

    The host holds one piece at a time, and a process reads only what its devices hold.

    Args:
      read: gives the rows of a range in consecutive pieces, arrays by name.
      row: what a single row is, by name.
      count: rows; padding with zeros follows.
      mesh: from `make`.
    """
    sharding = NamedSharding(mesh, CLIPS)
    padded = round_up(count, mesh)
    blocks: dict[str, list[jax.Array]] = {name: [] for name in row}
    for device, index in sharding.addressable_devices_indices_map((padded,)).items():
        first, end, _ = index[0].indices(padded)  # type: ignore[index]
        # `jnp.zeros(device=...)` would make them on the first device and send them.
        with jax.default_device(device):
            held = {
                name: jnp.zeros((end - first, *one.shape), one.dtype)
                for name, one in row.items()
            }
            at = 0
            for piece in read(range(min(first, count), min(end, count))):
                for name in row:
                    held[name] = _write(held[name], piece[name], jnp.int32(at))
                at += len(piece[name])
                # Or pieces pile up on the host while the device copies.
                jax.block_until_ready(held)
        for name, block in held.items():
            blocks[name].append(block)
    return {
        name: jax.make_array_from_single_device_arrays(
            (padded, *one.shape), sharding, blocks[name], dtype=one.dtype
        )
        for name, one in row.items()
    }


def map_clips(
    function: Callable[..., Any], mesh: Mesh, *, together: bool = False
) -> Callable[..., Any]:
    """`function(copied, spread)` run by each device on its own clips.

    Nothing is exchanged between devices. Left to itself, XLA gathers the whole batch
    on every device for a Fourier transform.

    Args:
      function: of a pytree that every device has, and of a pytree of this device's
        clips; axis 0 of what it takes and gives counts clips.
      mesh: from `make`.
      together: clips of a device depend on each other. If not, a CPU gets a few at a
        time, whatever the batch.
    """
    if not together and mesh.devices.flat[0].platform == "cpu":
        function = _few_at_a_time(function)
    return jax.shard_map(function, mesh=mesh, in_specs=(COPY, CLIPS), out_specs=CLIPS)


def _few_at_a_time(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function` on `CPU_CLIPS` clips after another, where they divide the batch."""

    def on_device(copied, spread):
        count = len(jax.tree.leaves(spread)[0])
        if count <= CPU_CLIPS or count % CPU_CLIPS:
            return function(copied, spread)
        groups = jax.tree.map(lambda a: a.reshape(-1, CPU_CLIPS, *a.shape[1:]), spread)
        results = jax.lax.map(lambda group: function(copied, group), groups)
        return jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:]), results)

    return on_device
