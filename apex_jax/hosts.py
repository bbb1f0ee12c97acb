"""Many hosts: joining them, this process's share, and what all of them know.

JAX runs the same program in one process a host, and the devices of all of them make
one mesh. Whatever works clip by clip each process does on its own devices, for its
share of the clips; here is who takes which share and how the answers meet.

In a single process every function here does nothing but give back what it was given.
"""

from __future__ import annotations

import dataclasses
import json
from typing import Any, TypeVar

import jax
import numpy as np

Tree = TypeVar("Tree")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """How the processes find each other.

    All three, or none: then the cluster's own environment is asked (SLURM, Open MPI,
    Kubernetes, Cloud TPU, as `jax.distributed` knows them).

    Attributes:
      coordinator: HOST:PORT of process 0, where all can reach it.
      num_processes: how many there are.
      process_id: which one this is, from 0.
    """

    coordinator: str | None = None
    num_processes: int | None = None
    process_id: int | None = None

    def check(self) -> None:
        """Raises ValueError for settings that cannot work."""
        given = dataclasses.asdict(self)
        missing = [name for name, value in given.items() if value is None]
        if len(missing) == len(given):
            return
        if missing:
            raise ValueError(
                f"hosts: {', '.join(missing)} not given; name coordinator, "
                "num_processes and process_id, or none of them to ask the cluster"
            )
        host, _, port = (self.coordinator or "").rpartition(":")
        if not host or not port.isdigit():
            raise ValueError(
                f"hosts: coordinator={self.coordinator!r}; it must be HOST:PORT"
            )
        if not 0 <= (self.process_id or 0) < (self.num_processes or 0):
            raise ValueError(
                f"hosts: process_id={self.process_id}, num_processes="
                f"{self.num_processes}; ids count from 0 and stay below their number"
            )


def connect(config: Config | None) -> None:
    """Joins the other processes; waits until all are there.

    To be called once, before anything asks JAX for a device.

    Args:
      config: how they find each other; None for a single process.

    Raises:
      ValueError: settings that cannot work, or no cluster that JAX knows.
    """
    if config is None:
        return
    config.check()
    # On CPU devices; accelerators bring collectives of their own.
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(
        config.coordinator, config.num_processes, config.process_id
    )


def is_primary() -> bool:
    """Whether this process writes what is written once."""
    return jax.process_index() == 0


def share(count: int) -> range:
    """This process's part of `count` things: consecutive, in process order."""
    number, processes = jax.process_index(), jax.process_count()
    return range(count * number // processes, count * (number + 1) // processes)


def barrier(name: str) -> None:
    """Waits for all processes; `name` must be the same in all of them."""
    if jax.process_count() > 1:
        from jax.experimental import multihost_utils

        multihost_utils.sync_global_devices(name)


def concatenate(tree: Tree) -> Tree:
    """The rows of all processes, in process order, on every host.

    Args:
      tree: NumPy arrays that agree among processes in all but their length, of types
        that JAX has (float64 would come back as float32).
    """
    if jax.process_count() == 1:
        return tree
    from jax.experimental import multihost_utils

    def one(array: np.ndarray) -> np.ndarray:
        counts = multihost_utils.process_allgather(np.array([len(array)]), tiled=True)
        # What is exchanged has one shape.
        missing = int(counts.max()) - len(array)
        padded = np.pad(array, [(0, missing)] + [(0, 0)] * (array.ndim - 1))
        gathered = multihost_utils.process_allgather(padded)
        return np.concatenate(
            [part[:count] for part, count in zip(gathered, counts, strict=True)]
        )

    return jax.tree.map(one, tree)


def collect(value: Any) -> list[Any]:
    """The JSON value of each process, in process order, on every host."""
    line = np.frombuffer(json.dumps(value).encode() + b"\n", np.uint8)
    return [json.loads(line) for line in concatenate(line).tobytes().splitlines()]
