"""Purity of a prototype vector and the loss built on it (Eq. 12)."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int


def score(
    prototype: Float[Array, " chan"], channel: Int[Array, ""] | int
) -> Float[Array, ""]:
    """The share of a prototype vector that lies on its own channel. Unbatched.

      purity = p[k] / ||p||_2

    Args:
      prototype: `p_k`, `[chan]`, of any scale from 1e-37 to 1e37.
      channel: `k`.

    Returns:
      A number in [-1, 1]; 1 for a vector on its channel alone. A zero vector has
      purity 0 and a zero gradient.
    """
    # Scaled by its largest entry the sum of squares can neither over- nor underflow.
    largest = jax.lax.stop_gradient(jnp.max(jnp.abs(prototype)))
    is_zero = largest == 0
    scaled = prototype / jnp.where(is_zero, 1.0, largest)
    square = jnp.sum(scaled**2)
    # The inner where keeps the gradient of sqrt finite at zero.
    norm = jnp.sqrt(jnp.where(is_zero, 1.0, square))
    return jnp.where(is_zero, 0.0, scaled[channel] / norm)


def loss(
    prototypes: Float[Array, "pair chan"],
    channels: Int[Array, " pair"],
    weights: Float[Array, " pair"],
) -> Float[Array, ""]:
    """Minus the mean purity over (channel, clip) pairs (Eq. 12).

    Args:
      prototypes: `p` of each pair, `[pair, chan]`.
      channels: `k` of each pair.
      weights: 1 for a pair that counts, 0 for padding; at least one is 1.
    """
    purities = jax.vmap(score)(prototypes, channels)
    return -jnp.sum(weights * purities) / jnp.sum(weights)
