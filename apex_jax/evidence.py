"""What a channel says for a class, and where (method, section 7).

In come the compensated head and a clip's map, or its averages; out come the channels'
contributions to a class and a channel's heatmap. Unbatched: callers `jax.vmap` them.

Under softmax one vector can be added to every class's weights, and no probability
changes, but every contribution does: what speaks for a class is only defined against
the other classes. `contrastive` takes that freedom away.
"""

from __future__ import annotations

from typing import NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from apex_jax import classifier as classifier_lib
from apex_jax import disentangle, schemes, settings


def contrastive(
    head: classifier_lib.LinearHead, activation: classifier_lib.Activation
) -> classifier_lib.LinearHead:
    """The head whose logits say how far a class is above the mean of the others.

      W'[c] = W[c] - mean over d != c of W[d],   b' likewise

    Its logits are the head's own, less their mean and times `classes / (classes - 1)`:
    the same decisions. A vector added to every row of W changes nothing.

    Args:
      head: `W`, `b`; the compensated head gives the compensated contrastive head.
      activation: of the classifier.

    Raises:
      ValueError: each class stands for itself, so that there is nothing to set it
        against.
    """
    classes = len(head.bias)
    if activation != "softmax" or classes < 2:
        raise ValueError(
            "contrastive evidence sets a class against the others of a softmax; this "
            f"classifier has {classes} classes under {activation}, where the plain "
            "evidence says all there is"
        )
    scale = classes / (classes - 1)
    weight, bias = jnp.asarray(head.weight), jnp.asarray(head.bias)
    return classifier_lib.LinearHead(
        weight=scale * (weight - jnp.mean(weight, axis=0, keepdims=True)),
        bias=scale * (bias - jnp.mean(bias)),
    )


def head_of(
    head: classifier_lib.LinearHead,
    activation: classifier_lib.Activation,
    kind: settings.Evidence,
) -> classifier_lib.LinearHead:
    """The head whose contributions count: itself, or the contrastive one.

    Raises:
      ValueError: see `contrastive`, or there is no such kind.
    """
    if kind not in get_args(settings.Evidence):
        raise ValueError(
            f"evidence must be one of {', '.join(get_args(settings.Evidence))}; got "
            f"{kind!r}"
        )
    return head if kind == "plain" else contrastive(head, activation)


def best(
    head: classifier_lib.LinearHead, activation: classifier_lib.Activation
) -> settings.Evidence:
    """Contrastive where classes exclude each other, else plain."""
    several = len(head.bias) > 1
    return "contrastive" if activation == "softmax" and several else "plain"


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


class Parts(NamedTuple):
    """What moves a class's logit in a clip, each at least 0.

    Attributes:
      first: the largest contribution.
      top: the largest ones together, as many as were asked for.
      positive: all contributions above 0.
      absent: what speaks for the class where contributions do not look: channels below
        0 that the head weighs negatively.
      against: what speaks against it.
    """

    first: jax.Array | np.ndarray
    top: jax.Array | np.ndarray
    positive: jax.Array | np.ndarray
    absent: jax.Array | np.ndarray
    against: jax.Array | np.ndarray

    @property
    def every(self) -> jax.Array | np.ndarray:
        """All that moves the logit, `sum_k |What[c, k] mean(Zhat)_k|`."""
        return self.positive + self.absent + self.against

    def shares(self) -> dict[str, np.ndarray]:
        """What the first channel carries, and with "best" all top ones, on the host.

        Of the positive evidence, "share", and of all that moves the logit, "share of
        all"; 0 where there is nothing to share.
        """
        least = np.finfo(np.float32).tiny
        return {
            f"{name}{of}": np.asarray(carried) / np.maximum(np.asarray(total), least)
            for name, total in (("share", self.positive), ("share of all", self.every))
            for of, carried in (("", self.first), (", best", self.top))
        }


def parts(
    head: classifier_lib.LinearHead,
    pooled: Float[Array, " chan"],
    target: Int[Array, ""],
    *,
    top: int = 4,
) -> Parts:
    """What moves a class's logit, by who carries it and by its sign. Unbatched.

    Args:
      head: the compensated head.
      pooled: `mean(Zhat)`, the transformed pooled vector.
      target: the class c.
      top: how many of the largest contributions count as such, at most all.
    """
    positive = jax.nn.relu(contributions(head, pooled, target))
    moves = head.weight[target] * pooled
    largest, _ = jax.lax.top_k(positive, min(top, len(positive)))
    return Parts(
        first=largest[0],
        top=jnp.sum(largest),
        positive=jnp.sum(positive),
        absent=jnp.sum(jnp.where(pooled < 0, jax.nn.relu(moves), 0)),
        against=jnp.sum(jax.nn.relu(-moves)),
    )


def needed(
    head: classifier_lib.LinearHead,
    pooled: Float[Array, " chan"],
    target: Int[Array, ""],
    *,
    share: float = 0.9,
) -> Int[Array, ""]:
    """The fewest channels whose contributions make up a share of the positive ones.

    Unbatched; 0 where nothing speaks for the class.

    Args:
      head: the compensated head.
      pooled: `mean(Zhat)`, the transformed pooled vector.
      target: the class c.
      share: between 0 and 1.
    """
    positive = jax.nn.relu(contributions(head, pooled, target))
    gathered = jnp.cumsum(jnp.sort(positive, descending=True))
    missing = gathered < share * gathered[-1]
    return jnp.where(gathered[-1] > 0, jnp.sum(missing) + 1, 0)


def concentration(
    head: classifier_lib.LinearHead,
    pooled: Float[Array, " chan"],
    target: Int[Array, ""],
) -> Float[Array, ""]:
    """How few channels carry what moves a class's logit. Unbatched.

    `|e| / sum_k |What[c, k] mean(Zhat)_k|`, with `e` what speaks for the class, the
    positive `contributions`. They do not see a channel that is below zero, which speaks
    for a class by its absence, nor what speaks against it; U can move evidence there
    and take it back elsewhere. The sum sees all of it.

    Args:
      head: the compensated head.
      pooled: `mean(Zhat)`, the transformed pooled vector.
      target: the class c.

    Returns:
      Between 0 and 1, where one channel carries all and nothing speaks against; 0, with
      a zero gradient, where nothing speaks for the class.
    """
    positive = jax.nn.relu(contributions(head, pooled, target))
    every = jnp.abs(head.weight[target] * pooled)
    largest = jax.lax.stop_gradient(jnp.max(positive))
    nothing = largest == 0
    scale = jnp.where(nothing, 1.0, largest)
    square, total = jnp.sum((positive / scale) ** 2), jnp.sum(every / scale)
    return jnp.where(
        nothing,
        0.0,
        jnp.sqrt(jnp.where(nothing, 1.0, square)) / jnp.where(nothing, 1.0, total),
    )


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


def placed(
    head: classifier_lib.LinearHead,
    transform: disentangle.Transform,
    views: schemes.Views,
    channel: Int[Array, ""],
    target: Int[Array, ""],
    *,
    scheme: schemes.Scheme,
    grid: schemes.Grid,
) -> tuple[Int[Array, "2"], Float[Array, "rows frames"], Float[Array, ""]]:
    """A channel's location by a scheme, its heatmap, its largest value. Unbatched."""
    return (
        schemes.locate(scheme, views, transform.matrix[channel]),
        heatmap(head, transform, views, channel, target, grid=grid),
        jnp.max(channel_map(transform, views, channel)),
    )


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
