"""Fixed coordinates in which U is learned: centred, or centred and whitened.

Before `optimize`: in come the features of the training clips, out come their moments
and a `disentangle.Transform` that `expm(A)` is then composed with. It is affine and
invertible like U itself, so no prediction changes.

Feature maps share a large mean and have very unequal variances. Purity of an average
over a row or column is then mostly about that mean, which sits in every clip of every
class. Taken away, what is left is what sets the clip apart.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int

from apex_jax import disentangle, schemes, settings
from apex_jax import features as features_lib
from apex_jax import mesh as mesh_lib

Kind = settings.Precondition

# An eigenvalue of the covariance counts as large above this share of the largest.
LARGE = 0.01
# Clips whose vectors are centred at a time on a device: of 152 cells and 1,024 channels
# 0.6 GB.
CHUNK_CLIPS = 1024


@dataclasses.dataclass(frozen=True, kw_only=True)
class Moments:
    """Mean and covariance of the vectors that a scheme chooses among.

    Attributes:
      mean: `[chan]`, float64.
      values: eigenvalues of the covariance, ascending, `[chan]`.
      vectors: its eigenvectors, one a column, `[chan, chan]`.
    """

    mean: np.ndarray
    values: np.ndarray
    vectors: np.ndarray

    @property
    def participation_ratio(self) -> float:
        """Effective rank, `(sum of eigenvalues)^2 / sum of their squares`; 0 to chan.

        How many directions the features vary in, which bounds how many channels can
        become pure together.
        """
        square = float(np.sum(self.values**2))
        return float(np.sum(self.values)) ** 2 / square if square > 0 else 0.0

    @property
    def num_large(self) -> int:
        """Eigenvalues above 1 % of the largest; 0 where nothing varies."""
        return int((self.values > LARGE * self.values[-1]).sum())


@functools.partial(jax.jit, static_argnames=("num_clips", "scheme", "mesh", "chunk"))
def _mean_and_covariance(
    views: schemes.Views,
    *,
    num_clips: int,
    scheme: schemes.Scheme,
    mesh: Mesh,
    chunk: int = CHUNK_CLIPS,
) -> tuple[Float[Array, " chan"], Float[Array, "chan chan"]]:
    tables = schemes.candidates(scheme, views)
    clips = tuple(jnp.reshape(t, (len(t), -1, t.shape[-1])) for t in tables)
    total = num_clips * sum(t.shape[1] for t in clips)

    def of_device(*own: jax.Array) -> tuple[jax.Array, jax.Array]:
        first = jax.lax.axis_index(mesh_lib.AXIS) * len(own[0])
        counts = jnp.clip(num_clips - first, 0, len(own[0]))
        mean = sum(_over(table, counts, chunk, _sum) for table in own) / total
        mean = jax.lax.psum(mean, mesh_lib.AXIS)
        # Centred first: of a mean far larger than what varies, squares would cancel.
        squares = functools.partial(_squares, mean=mean)
        covariance = sum(_over(table, counts, chunk, squares) for table in own) / total
        return mean, jax.lax.psum(covariance, mesh_lib.AXIS)

    spread = (mesh_lib.CLIPS,) * len(clips)
    whole = (mesh_lib.COPY, mesh_lib.COPY)
    return jax.shard_map(of_device, mesh=mesh, in_specs=spread, out_specs=whole)(*clips)


def _over(
    table: Float[Array, "clip cell chan"],
    counts: Int[Array, ""],
    chunk: int,
    function: Callable[[jax.Array, jax.Array], jax.Array],
) -> jax.Array:
    """The sum of a function over chunks of a device's clips, the first `counts`.

    Whole maps can fill most of a device; what is made of them must not be as large.
    """
    chunk = min(chunk, len(table))

    def add(number, found):
        # The last one begins earlier; what it shares with the one before counts there.
        first = jnp.minimum(number * chunk, len(table) - chunk)
        part = jax.lax.dynamic_slice_in_dim(table, first, chunk)
        place = first + jnp.arange(chunk)
        own = (place >= number * chunk) & (place < counts)
        return found + function(part, own[:, None, None])

    shape = jax.eval_shape(function, table[:1], jnp.ones((1, 1, 1), bool)).shape
    # Made of the table, so that it differs between devices as what is added does.
    nothing = 0.0 * (table[0, 0, 0] == 0) + jnp.zeros(shape)
    return jax.lax.fori_loop(0, -(-len(table) // chunk), add, nothing)


def _sum(part: jax.Array, own: jax.Array) -> jax.Array:
    return jnp.sum(jnp.where(own, part, 0), axis=(0, 1))


def _squares(part: jax.Array, own: jax.Array, *, mean: jax.Array) -> jax.Array:
    centred = jnp.where(own, part - mean[None, None], 0)
    return jnp.einsum("nic,nid->cd", centred, centred, precision=disentangle.HIGHEST)


def moments(
    features: features_lib.Features, scheme: schemes.Scheme, *, mesh: Mesh
) -> Moments:
    """Moments of the cells, columns or rows that a scheme chooses among.

    Args:
      features: of the training clips, on `mesh` (`Features.to_mesh`).
      scheme: where prototypes lie; time-frequency chooses among columns and rows.
      mesh: where the features live.

    Returns:
      The moments, the same on every host.

    Raises:
      ValueError: features without the cells that the square scheme needs, or with
        values whose squares overflow float32.
    """
    mean, covariance = mesh_lib.to_host(
        _mean_and_covariance(
            features.views, num_clips=features.num_clips, scheme=scheme, mesh=mesh
        )
    )
    if not (np.isfinite(mean).all() and np.isfinite(covariance).all()):
        raise ValueError(
            "features must have a finite covariance in float32; got values up to "
            f"{float(jnp.max(jnp.abs(features.pooled))):.3g}"
        )
    values, vectors = np.linalg.eigh(np.asarray(covariance, np.float64))
    return Moments(
        mean=np.asarray(mean, np.float64),
        values=np.maximum(values, 0),
        vectors=vectors,
    )


def coordinates(
    found: Moments, kind: Kind, *, eps: float = 0.1
) -> disentangle.Transform:
    """`P (Z - mu)`: the coordinates that A is learned in.

      P = scale (S + eps lambda_max I)^(-1/2),   |P|_2 = 1

    with `mu` the mean, `S` the covariance and `lambda_max` its largest eigenvalue. The
    condition number is at most `sqrt(1 + 1 / eps)`: 3.3 at 0.1 and 10 at 0.01.

    Args:
      found: of the training clips.
      kind: "none" for the identity, "centre" for `P = I`, "whiten" for both.
      eps: how far directions in which little varies are kept from being blown up.

    Raises:
      ValueError: `eps` is not positive, or there is no such kind.
    """
    chan = len(found.mean)
    if kind == "none":
        return disentangle.identity(chan)
    mean = jnp.asarray(found.mean, jnp.float32)
    if kind == "centre":
        return dataclasses.replace(disentangle.identity(chan), centre=mean)
    if kind != "whiten":
        raise ValueError(f"kind must be none, centre or whiten; got {kind!r}")
    if not eps > 0:
        raise ValueError(f"eps must be positive; got {eps}")
    largest = found.values[-1]
    if largest == 0:  # nothing varies, so nothing is uneven
        return coordinates(found, "centre")
    # In shares of the largest, so that no scale of the features can under- or overflow.
    lengths = np.sqrt(found.values / largest + eps)
    shortest = lengths.min()

    def times(factors: np.ndarray) -> jax.Array:
        return jnp.asarray((found.vectors * factors) @ found.vectors.T, jnp.float32)

    return disentangle.Transform(
        matrix=times(shortest / lengths),
        inverse=times(lengths / shortest),
        centre=mean,
    )
