"""A training's state on disk, so that one that was interrupted goes on where it was.

Beside `train` and `optimize`. A state is a checkpoint in a folder of its own, named by
the step after which it was saved; it appears whole or not at all, and only then are
older ones removed. It names what it depends on, and a training of anything else is
refused.
"""

from __future__ import annotations

import hashlib
import shutil
import time
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from apex_jax import checkpoint, hosts

KIND = "training"
SECONDS = 60.0  # between two saved states, at least


class Saver:
    """Where the state of one training is kept.

    Attributes:
      directory: a folder of its own; None keeps nothing.
      depends_on: what the training depends on, digests by name.
    """

    def __init__(
        self, directory: Path | None, depends_on: Callable[[], Mapping[str, str]]
    ):
        self.directory = directory
        self.depends_on = {} if directory is None else dict(depends_on())
        self._last = time.monotonic()

    def load(self, like: Any) -> tuple[int, Any, dict[str, Any]] | None:
        """The last state: steps done, the tree, and what `save` was told.

        Args:
          like: a tree of the same structure.

        A damaged state is set aside with a warning: the training begins anew.

        Raises:
          ValueError: the folder holds a state of another training.
        """
        found = hosts.collect(self._newest())[0]
        if found is None or self.directory is None:
            return None
        try:
            saved, metadata = checkpoint.load(self.directory / found, kind=KIND)
        except checkpoint.DamagedError as error:
            self._set_aside(found, error)
            return self.load(like)
        differs = [
            name
            for name, digest in self.depends_on.items()
            if metadata["depends_on"].get(name) != digest
        ]
        if differs:
            raise ValueError(
                f"{self.directory} holds an interrupted training with other "
                f"{' and '.join(differs)} than asked for now; delete it to begin anew"
            )
        tree = jax.tree.unflatten(
            jax.tree.structure(like), [saved[name] for name in sorted(saved)]
        )
        return int(found), tree, metadata["told"]

    def due(self) -> bool:
        """Whether it is time to save; every process has to ask, and hears the same."""
        if self.directory is None:
            return False
        return hosts.collect(time.monotonic() - self._last >= SECONDS)[0]

    def save(self, step: int, tree: Any, told: dict[str, Any]) -> None:
        """Keeps the state after `step`, and then no other.

        Args:
          step: steps done.
          tree: arrays, the same in every process.
          told: anything else, as JSON knows it.
        """
        if self.directory is None:
            return
        leaves = jax.tree.leaves(tree)
        checkpoint.save(
            self.directory / f"{step:08d}",
            {_name(i): np.asarray(leaf) for i, leaf in enumerate(leaves)},
            {"depends_on": self.depends_on, "told": told},
            kind=KIND,
        )
        if hosts.is_primary():
            for old in self._steps():
                if int(old) != step:
                    shutil.rmtree(self.directory / old)
        self._last = time.monotonic()

    def _set_aside(self, found: str, error: ValueError) -> None:
        assert self.directory is not None
        aside = self.directory / f"{found}.damaged"
        warnings.warn(f"{error}; set aside as {aside.name}", stacklevel=4)
        hosts.barrier("state looked at")
        if hosts.is_primary():
            shutil.rmtree(aside, ignore_errors=True)
            (self.directory / found).rename(aside)
        hosts.barrier("state set aside")

    def _newest(self) -> str | None:
        return max(self._steps(), default=None)

    def _steps(self) -> list[str]:
        if self.directory is None or not self.directory.is_dir():
            return []
        # Unfinished ones have Orbax's ending.
        return [p.name for p in self.directory.iterdir() if p.name.isdigit()]


def digest(*parts: Any) -> str:
    """SHA-256 of arrays and of what `repr` tells, in the order of a pytree."""
    found = hashlib.sha256()
    for leaf in jax.tree.leaves(parts):
        if hasattr(leaf, "dtype"):
            found.update(np.ascontiguousarray(leaf).tobytes())
        else:
            found.update(repr(leaf).encode(errors="surrogateescape"))
    return found.hexdigest()


def _name(number: int) -> str:
    return f"{number:06d}"
