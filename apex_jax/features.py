"""What the optimisation and the bank see of a set of clips.

The backbone runs once a clip; from then on `Features` stands for the clip. Held on
the host as NumPy arrays, or spread over the devices of a mesh by `to_mesh`.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float

from apex_jax import classifier as classifier_lib
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
        """Spread over the devices, padded to a multiple of their number."""
        return mesh_lib.shard(self, mesh)


def from_maps(
    maps: Float[Array | np.ndarray, "clip freq time chan"],
    logits: Float[Array | np.ndarray, "clip classes"],
    *,
    keep_cells: bool = True,
) -> Features:
    """Features of maps that were computed elsewhere, by any framework.

    Args:
      maps: folded feature maps: their mean over F and T, through the linear head,
        must give `logits`.
      logits: the network's own.
      keep_cells: keep the maps, as the square scheme needs.

    Raises:
      ValueError: the shapes do not fit together or a value is not finite.
    """
    if maps.ndim != 4 or logits.ndim != 2 or len(maps) != len(logits):
        raise ValueError(
            "maps must be [clip, F, T, chan] and logits [clip, classes] with the same "
            f"number of clips; got {maps.shape} and {logits.shape}"
        )
    if not (np.isfinite(maps).all() and np.isfinite(logits).all()):
        raise ValueError("maps and logits must be finite; got NaN or infinity")
    maps = jnp.asarray(maps)
    return Features(
        pooled=classifier_lib.pool(maps),
        logits=jnp.asarray(logits),
        views=schemes.views(maps, keep_cells=keep_cells),
        num_clips=len(maps),
    )
