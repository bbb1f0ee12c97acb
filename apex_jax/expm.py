r"""The matrix exponential from matrix products alone, with its own gradient (Eq. 2).

Scaling and squaring of `E = e^X - I` instead of `e^X`: with `X = A / 2^s`,

  E <- 2 E + E E, s times;  e^A = I + E.

Near the identity, where a scaled matrix always is, `e^X` rounds away what `E` keeps,
so `E` may be squared more often at no loss, and a short Taylor polynomial is enough:
degree 8 in three products (Bader, Blanes, Casas, "Computing the matrix exponential
with an optimized Taylor polynomial approximation", Mathematics 7 (2019), 1174). The
mean of the diagonal is taken out first where that makes the matrix smaller, so that
decaying matrices do not cancel against `I`.

A matrix of 1-norm 18 takes 8 products, its gradient 16 more: each product's factors
are kept and met once. There is no solve, which accelerators do slowly.
"""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

HIGHEST = jax.lax.Precision.HIGHEST

# The 1-norm up to which degree 8 is as good as float32 (Bader et al., Table 3).
THETA = 0.58
MAX_SQUARINGS = 10
LARGEST_NORM = THETA * 2**MAX_SQUARINGS

# Their coefficients of degree 8, section 3.1.
_R = math.sqrt(177)
_X3 = 2 / 3
_X1, _X2 = _X3 * (1 + _R) / 88, _X3 * (1 + _R) / 352
_X4 = (-271 + 29 * _R) / (315 * _X3)
_X5 = 11 * (-1 + _R) / (1260 * _X3)
_X6 = 11 * (-9 + _R) / (5040 * _X3)
_X7 = (89 - _R) / (5040 * _X3**2)
_Y2 = (857 - 58 * _R) / 630


def _product(left: jax.Array, right: jax.Array) -> jax.Array:
    return jnp.matmul(left, right, precision=HIGHEST)


@jax.custom_vjp
def expm(generator: Float[Array, "chan chan"]) -> Float[Array, "chan chan"]:
    """`e^A` in float32 at the highest matmul precision. Unbatched.

    Up to a 1-norm of 50 the error is usually below that of `jax.scipy.linalg.expm`, and
    else within a factor of 3 of it or 5e-6 of the largest entry. The gradient is that
    of the computation.

    Args:
      generator: A. Its 1-norm may be up to `LARGEST_NORM`, about 590; if that is
        smaller, the 1-norm of A less the mean of its diagonal.

    Returns:
      `e^A`; all NaN beyond that norm and where A is not finite, and not finite where
      `e^A` itself leaves float32.
    """
    return _forward(generator)[0]


def _forward(generator: jax.Array) -> tuple[jax.Array, tuple[Any, ...]]:
    chan = len(generator)
    eye = jnp.eye(chan, dtype=generator.dtype)
    mean = jnp.trace(generator) / chan
    norm, without = (_norm(generator), _norm(generator - mean * eye))
    # Else one large entry among many small ones would overflow before it is scaled.
    smaller = without < norm
    mean = jnp.where(smaller, mean, 0.0)
    norm = jnp.where(smaller, without, norm)
    shifted = generator - mean * eye
    squarings = _squarings(norm)
    x = shifted * jnp.exp2(-squarings).astype(generator.dtype)
    small, residual = _taylor(x, eye)

    def square(number, carry):
        e, kept = carry
        kept = jax.lax.dynamic_update_index_in_dim(kept, e, number, axis=0)
        return 2 * e + _product(e, e), kept

    # How many there are depends on A: what the gradient needs of them is kept in an
    # array for the most there can be.
    kept = jnp.zeros((MAX_SQUARINGS, chan, chan), generator.dtype)
    e, kept = jax.lax.fori_loop(0, squarings, square, (small, kept))
    result = jnp.exp(mean) * (eye + e)
    result = jnp.where(norm <= LARGEST_NORM, result, jnp.nan)  # NaN norms included
    return result, (result, mean, smaller, squarings, kept, residual)


def _norm(matrix: Float[Array, "chan chan"]) -> Float[Array, ""]:
    return jnp.max(jnp.sum(jnp.abs(matrix), axis=0))


def _squarings(norm: Float[Array, ""]) -> Int[Array, ""]:
    # NaN and what is out of range give some number; the result is NaN all the same.
    exact = jnp.ceil(jnp.log2(jnp.maximum(norm, THETA) / THETA))
    return jnp.clip(jnp.nan_to_num(exact), 0, MAX_SQUARINGS).astype(jnp.int32)


def _taylor(x: jax.Array, eye: jax.Array) -> tuple[jax.Array, tuple[Any, ...]]:
    """`e^X - I` to degree 8, and the factors of its three products."""
    x2 = _product(x, x)
    a = _X1 * x + _X2 * x2
    x4 = _product(x2, a)
    b = _X3 * x2 + x4
    c = _X4 * eye + _X5 * x + _X6 * x2 + _X7 * x4
    return x + _Y2 * x2 + _product(b, c), (x, x2, a, b, c)


def _backward(
    saved: tuple[Any, ...], cotangent: jax.Array
) -> tuple[Float[Array, "chan chan"]]:
    result, mean, smaller, squarings, kept, (x, x2, a, b, c) = saved
    chan = len(x)

    def square(number, g):
        e = kept[squarings - 1 - number]
        return 2 * g + _product(g, e.T) + _product(e.T, g)

    g = jax.lax.fori_loop(0, squarings, square, jnp.exp(mean) * cotangent)
    # The Taylor polynomial, last product first.
    g_b, g_c = _product(g, c.T), _product(b.T, g)
    g_x4 = g_b + _X7 * g_c
    g_x2 = _Y2 * g + _X3 * g_b + _X6 * g_c + _product(g_x4, a.T)
    g_a = _product(x2.T, g_x4)
    g_x2 = g_x2 + _X2 * g_a
    g_x = g + _X1 * g_a + _X5 * g_c + _product(g_x2, x.T) + _product(x.T, g_x2)
    gradient = g_x * jnp.exp2(-squarings).astype(x.dtype)
    # The mean, where it was taken out: of the polynomial, and a factor of the result.
    eye = jnp.eye(chan, dtype=x.dtype)
    of_mean = jnp.sum(cotangent * result) - jnp.trace(gradient)
    return (gradient + eye * jnp.where(smaller, of_mean, 0.0) / chan,)


expm.defvjp(_forward, _backward)
