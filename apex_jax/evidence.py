"""What a channel says for a class, and where (method, section 7).

In come the compensated head and a clip's map, or its averages; out come the channels'
contributions to a class and a channel's heatmap. Unbatched: callers `jax.vmap` them.
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

    Infinite where the product leaves float32, as the logits then are.

    Args:
      head: the compensated head.
      pooled: `mean(Zhat)`, the transformed pooled vector.
      target: the class c.
    """
    return head.weight[target] * jax.nn.relu(pooled)


def channel_map(
    transform: disentangle.Transform,
    views: schemes.Views,
    channel: Int[Array, ""],
) -> Float[Array, "map_freq map_time"]:
    """`Zhat_k` over the cells, `[F, T]`. Unbatched.

    Where only row and column averages were kept, their sum less the mean: the best
    approximation (least squares) that is a row's part plus a column's part.
    """
    row = transform.matrix[channel]

    def along(vectors: jax.Array) -> jax.Array:
        centre = transform.centre.reshape((1,) * (vectors.ndim - 1) + (-1,))
        return jnp.matmul(vectors - centre, row, precision=disentangle.HIGHEST)

    if views.cells is not None:
        return along(jnp.asarray(views.cells))
    rows, columns = along(jnp.asarray(views.rows)), along(jnp.asarray(views.columns))
    return rows[:, None] + columns[None, :] - jnp.mean(rows)


def heatmap(
    head: classifier_lib.LinearHead,
    transform: disentangle.Transform,
    views: schemes.Views,
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
      views: of the clip's folded map.
      channel: k.
      target: the class c.
      grid: how the map lies on the spectrogram.
    """
    cells = channel_map(transform, views, channel)
    bias = head.bias[target] / head.weight.shape[1]
    cells = jax.nn.relu(_scaled_sum(head.weight[target, channel], cells, bias))
    largest = jnp.max(cells)
    return grid.upsample(cells / jnp.where(largest > 0, largest, 1.0))


def _scaled_sum(
    weight: Float[Array, ""], cells: Float[Array, "*map"], bias: Float[Array, ""]
) -> Float[Array, "*map"]:
    """`weight * cells + bias` times a power of two: no overflow, no other rounding."""
    parts = (weight, cells, bias)
    of_weight, of_cells, of_bias = (
        jnp.frexp(jnp.max(jnp.abs(part)))[1] for part in parts
    )
    # A term that is nothing must not decide how large the other may be.
    nothing = -(2**20)
    product = jnp.where(
        (weight == 0) | jnp.all(cells == 0), nothing, of_weight + of_cells
    )
    common = jnp.maximum(product, jnp.where(bias == 0, nothing, of_bias))
    common = jnp.where(common == nothing, 0, common)
    scaled = jnp.ldexp(weight, -of_weight) * jnp.ldexp(cells, -of_cells)
    return jnp.ldexp(scaled, of_weight + of_cells - common) + jnp.ldexp(bias, -common)
