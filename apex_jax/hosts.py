"""Many hosts: joining them, this process's share, and what all of them know.

JAX runs the same program in one process a host, and the devices of all of them make
one mesh. Whatever works clip by clip each process does on its own devices, for its
share of the clips; here is who takes which share and how the answers meet.

In a single process every function here does nothing but give back what it was given.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import numpy as np

from apex_jax import settings

Tree = TypeVar("Tree")

# How long a process that ends waits for the others, before JAX ends them as well.
_PARTING_S = 15

Config = settings.Hosts


def connect(config: Config) -> None:
    """Joins the other processes, if there are others; waits until all are there.

    To be called once, before anything asks JAX for a device. A process that ends more
    than 15 s before the others takes them with it, so let all meet at a `barrier` at
    the end.

    Args:
      config: how they find each other.

    Raises:
      ValueError: settings that cannot work, or no cluster that JAX knows.
    """
    config.check()
    if config.alone:
        return
    # On CPU devices; accelerators bring collectives of their own.
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(
        config.coordinator,
        config.num_processes,
        config.process_id,
        shutdown_timeout_seconds=_PARTING_S,
    )


def cores() -> int:
    """Processor cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def is_primary() -> bool:
    """Whether this process writes what is written once."""
    return jax.process_index() == 0


def share(count: int) -> range:
    """This process's part of `count` things: consecutive, in process order."""
    number, processes = jax.process_index(), jax.process_count()
    return range(count * number // processes, count * (number + 1) // processes)


def agree(decide: Callable[[], None]) -> None:
    """Runs `decide` in the primary process; what it refuses, all of them refuse."""
    error: ValueError | OSError | None = None
    if is_primary():
        try:
            decide()
        except (ValueError, OSError) as raised:
            error = raised
    verdict = collect(None if error is None else str(error))[0]
    if error is not None:
        raise error
    if verdict is not None:
        raise ValueError(verdict)


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
