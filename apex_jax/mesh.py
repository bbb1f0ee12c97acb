"""One mesh axis over all devices: the data axis.

Clips are spread over it, everything else (weights, U, optimiser state) is a copy on
each device. The same code runs on one device and on many.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

AXIS = "data"
CLIPS = PartitionSpec(AXIS)
COPY = PartitionSpec()

Tree = TypeVar("Tree")


def make(devices: Sequence[jax.Device] | None = None) -> Mesh:
    """The mesh over `devices`, by default all of them."""
    devices = jax.devices() if devices is None else devices
    # Auto, not the default Explicit: `lax.top_k` refuses explicitly sharded operands.
    return jax.make_mesh(
        (len(devices),), (AXIS,), axis_types=(AxisType.Auto,), devices=devices
    )


def replicate(tree: Tree, mesh: Mesh) -> Tree:
    """A copy of every array on every device."""
    return jax.device_put(tree, NamedSharding(mesh, COPY))


def shard(tree: Tree, mesh: Mesh) -> Tree:
    """Spreads axis 0 of every array over the devices.

    Args:
      tree: arrays whose axis 0 counts clips; it is padded with zeros to a multiple
        of the number of devices, so who reads the result must know the true count.
      mesh: from `make`.
    """
    sharding = NamedSharding(mesh, CLIPS)

    def place(array):
        missing = -len(array) % mesh.size
        if missing:
            zeros = np.zeros((missing, *array.shape[1:]), array.dtype)
            array = np.concatenate([array, zeros])
        return jax.device_put(array, sharding)

    return jax.tree.map(place, tree)


def round_up(count: int, mesh: Mesh) -> int:
    """The smallest multiple of the number of devices that is at least `count`."""
    return -(-count // mesh.size) * mesh.size


def map_clips(
    function: Callable[..., Any], mesh: Mesh, *, out_specs: Any = CLIPS
) -> Callable[..., Any]:
    """`function(copied, spread)` run by each device on its own clips.

    Clips must not depend on each other: nothing is exchanged. Left to itself, XLA
    gathers the whole batch on every device for a Fourier transform.

    Args:
      function: of a pytree that every device has, and of a pytree of this device's
        clips, axis 0.
      mesh: from `make`.
      out_specs: how the result is spread; by default, axis 0 counts clips.
    """
    return jax.shard_map(
        function, mesh=mesh, in_specs=(COPY, CLIPS), out_specs=out_specs
    )
