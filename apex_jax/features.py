"""What the optimisation and the bank see of a set of clips.

The backbone runs once a clip; from then on `Features` stands for the clip. Held on
the host as NumPy arrays, or spread over the devices of a mesh by `to_mesh`.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float

from apex_jax import disentangle, schemes
from apex_jax import mesh as mesh_lib


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Features:
    """The feature maps of N clips, reduced to what the method needs.

    Attributes:
      pooled: `[clip, chan]`, the mean over rows and columns.
      logits: `[clip, classes]`, the untouched network's own.
      views: rows `[clip, F, chan]`, columns `[clip, T, chan]` and, where the square
        scheme is wanted, cells `[clip, F, T, chan]`.
      num_clips: N; on a mesh the arrays are padded beyond it.
    """

    pooled: jax.Array | np.ndarray
    logits: jax.Array | np.ndarray
    views: schemes.Views
    num_clips: int = dataclasses.field(metadata={"static": True})

    @property
    def map_shape(self) -> tuple[int, int]:
        """`(F, T)` of the feature maps."""
        return (self.views.rows.shape[1], self.views.columns.shape[1])

    def moved(self, base: disentangle.Transform) -> Features:
        """The features in other coordinates, `P (Z - mu)`: averages move alike."""
        return dataclasses.replace(
            self, pooled=base(self.pooled), views=jax.tree.map(base, self.views)
        )

    def to_mesh(self, mesh: Mesh) -> Features:
        """Spread over the devices, padded to a multiple of their number.

        What is spread already stays where it is. With several processes each must
        have what is not, whole. The logits stay as they are: nothing that runs on the
        devices asks for them, and of thousands of classes they are large.
        """
        pooled, views = mesh_lib.shard((self.pooled, self.views), mesh)
        return dataclasses.replace(self, pooled=pooled, views=views)


def from_maps(
    maps: Float[Array | np.ndarray, "clip freq time chan"] | schemes.Views,
    logits: Float[Array | np.ndarray, "clip classes"],
    *,
    keep_cells: bool = True,
) -> Features:
    """Features of maps that were computed elsewhere, by any framework.

    Args:
      maps: folded feature maps, or only their row and column averages: their mean
        over F and T, through the linear head, must give `logits`.
      logits: the network's own.
      keep_cells: keep the maps, as the square scheme needs.

    Raises:
      ValueError: the shapes do not fit together, a value is not finite, or row and
        column averages are not of the same maps.
    """
    given: dict[str, Any] = {"maps": maps}
    if isinstance(maps, schemes.Views):
        given = {"rows": maps.rows, "columns": maps.columns}
        given |= {} if maps.cells is None else {"cells": maps.cells}
    for name, array in given.items():
        wanted = 3 if name in ("rows", "columns") else 4
        if array.ndim != wanted or len(array) != len(logits) or logits.ndim != 2:
            axes = {"rows": "F", "columns": "T"}.get(name, "F, T")
            raise ValueError(
                f"{name} must be [clip, {axes}, chan] and logits [clip, classes] with "
                f"the same number of clips; got {array.shape} and {logits.shape}"
            )
    if not all(np.isfinite(array).all() for array in (*given.values(), logits)):
        raise ValueError("maps and logits must be finite; got NaN or infinity")
    if isinstance(maps, schemes.Views):
        views = jax.tree.map(lambda a: jnp.asarray(a, jnp.float32), maps)
    else:
        views = schemes.views(jnp.asarray(maps), keep_cells=keep_cells)
    pooled = jnp.mean(views.rows, axis=1)
    differ = np.abs(pooled - jnp.mean(views.columns, axis=1)).max(initial=0.0)
    # Where values cancel, their rounding is all that is left of a mean.
    largest = max(np.abs(a).max(initial=0.0) for a in jax.tree.leaves(views))
    if differ > max(1e-3 * np.abs(pooled).max(initial=0.0), 1e-6 * largest):
        raise ValueError(
            "rows and columns must be averages of the same maps, so that both have the "
            f"same mean; they differ by up to {differ:.3g}"
        )
    return Features(
        pooled=pooled, logits=jnp.asarray(logits), views=views, num_clips=len(logits)
    )
