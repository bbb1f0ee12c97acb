"""What a channel says for a class, and where (method, section 7).

In come the compensated head and a clip's map; out come the channels' contributions to
a class and a channel's heatmap. Unbatched: callers `jax.vmap` them.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from apex_jax import classifier as classifier_lib
from apex_jax import disentangle, schemes


def contributions(
    head: classifier_lib.LinearHead,
    pooled: Float[Array, " chan"],
    target: Int[Array, ""],
) -> Float[Array, " chan"]:
    """What each channel adds to a class: `What[c, k] relu(mean(Zhat)_k)`. Unbatched.

    Args:
      head: the compensated head.
      pooled: `mean(Zhat)`, the transformed pooled vector.
      target: the class c.
    """
    return head.weight[target] * jax.nn.relu(pooled)


def heatmap(
    head: classifier_lib.LinearHead,
    transform: disentangle.Transform,
    feature_map: Float[Array, "freq time chan"],
    channel: Int[Array, ""],
    target: Int[Array, ""],
    *,
    grid: schemes.Grid,
) -> Float[Array, "rows frames"]:
    """Where a channel speaks for a class, in [0, 1], `[F_in, T_in]`. Unbatched.

    `relu(What[c, k] Zhat_k + b_c / C)`, divided by its maximum (zeros stay zeros) and
    upsampled bilinearly.

    Args:
      head: the compensated head.
      transform: U, mu.
      feature_map: the clip's folded map.
      channel: k.
      target: the class c.
      grid: how the map lies on the spectrogram.
    """
    centred = feature_map - transform.centre[None, None, :]
    row = transform.matrix[channel]
    cells = jnp.matmul(centred, row, precision=disentangle.HIGHEST)
    bias = head.bias[target] / row.size
    cells = jax.nn.relu(head.weight[target, channel] * cells + bias)
    largest = jnp.max(cells)
    return grid.upsample(cells / jnp.where(largest > 0, largest, 1.0))
