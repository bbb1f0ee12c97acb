"""The clips that excite a channel most, and least (Eqs. 13 and 14).

In come the features of the training clips and a transform; out comes a `Bank`: for
each channel its positive or negative prototypes, where they lie and how pure they
are. Clips stay on the device that holds them: each device ranks its own and only
candidates travel.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int

from apex_jax import disentangle, purity, ranking, schemes
from apex_jax import features as features_lib
from apex_jax import mesh as mesh_lib

Sign = Literal["positive", "negative"]

# Pairs whose candidate tables are in memory at a time while a bank is built.
CHUNK_PAIRS = 512


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Bank:
    """Prototype clips of every channel, strongest first.

    Attributes:
      clip: position of the clip among the features, `[chan, top]`.
      activation: `a_k`, the sum of the channel's map, `[chan, top]`.
      location: `(row, column)` by the scheme, `[chan, top, 2]`.
      purity: of each prototype vector, `[chan, top]`.
      scheme: where the prototypes lie.
      sign: whether `activation` is largest or smallest.
    """

    clip: jax.Array | np.ndarray
    activation: jax.Array
    location: jax.Array
    purity: jax.Array
    scheme: schemes.Scheme = dataclasses.field(metadata={"static": True})
    sign: Sign = dataclasses.field(metadata={"static": True})


def packed(banks: Sequence[Bank]) -> tuple[np.ndarray, list[Bank]]:
    """The clips that banks point to, and the banks counting only those.

    Returns:
      Positions of the clips, ascending, and a bank for each of `banks`.
    """
    used = np.unique(np.concatenate([np.asarray(one.clip).ravel() for one in banks]))
    return used, [
        dataclasses.replace(
            one, clip=np.searchsorted(used, np.asarray(one.clip)).astype(np.int32)
        )
        for one in banks
    ]


@functools.partial(jax.jit, static_argnames=("num", "num_clips", "sign", "mesh"))
def top_clips(
    transform: disentangle.Transform,
    pooled: Float[Array, "clip chan"],
    *,
    num: int,
    num_clips: int,
    sign: Sign = "positive",
    mesh: Mesh,
) -> tuple[Int[Array, "chan top"], Float[Array, "chan top"]]:
    """The clips with the largest (or smallest) mean activation of each channel.

    The sum of a channel's map over its cells is `F T (U (v - mu))_k`, so ranking
    needs the pooled vectors alone: one product and a top-k on each device, then the
    best of the devices' candidates.

    Args:
      transform: U, mu.
      pooled: `[clip, chan]`, spread over `mesh` and padded.
      num: prototypes a channel, at most `num_clips`.
      num_clips: clips that are not padding.
      sign: "positive" for the largest.
      mesh: where `pooled` lives.

    Returns:
      Clip positions `[chan, num]`, best first, ties to the lowest position whatever
      the number of devices; and their channel means `(U (v - mu))_k`.
    """
    if not 1 <= num <= num_clips:
        raise ValueError(f"num must be between 1 and {num_clips} clips; got {num}")
    if sign not in get_args(Sign):
        raise ValueError(f"sign must be positive or negative; got {sign!r}")
    direction = 1.0 if sign == "positive" else -1.0

    def candidates(transform, pooled):
        first = jax.lax.axis_index(mesh_lib.AXIS) * len(pooled)
        # Equal scores go to the lowest position, and devices hold consecutive clips:
        # joined in device order, ties still go to the lowest.
        values, local = ranking.best(
            direction * transform.matrix,
            pooled,
            num_clips - first,
            min(num, len(pooled)),
            centre=transform.centre,
        )
        return values, local + first

    values, positions = jax.shard_map(
        candidates,
        mesh=mesh,
        in_specs=(mesh_lib.COPY, mesh_lib.CLIPS),
        out_specs=jax.sharding.PartitionSpec(None, mesh_lib.AXIS),
    )(transform, pooled)
    values, positions = jax.lax.with_sharding_constraint(
        (values, positions), jax.sharding.NamedSharding(mesh, mesh_lib.COPY)
    )
    best, slot = jax.lax.top_k(values, num)
    return jnp.take_along_axis(positions, slot, axis=1), direction * best


def prototype_vectors(
    scheme: schemes.Scheme,
    views: schemes.Views,
    directions: Float[Array, "pair chan"],
    clips: Int[Array, " pair"],
) -> tuple[Int[Array, "pair 2"], Float[Array, "pair chan"]]:
    """Location and vector, before U, of each (direction, clip) pair.

    For use inside `jax.shard_map`: `views` are this device's clips, `clips` count
    over all devices. The device that owns a clip answers for it and the answers are
    summed, one of them not zero: exact, and only vectors travel, not maps.
    """
    num_local = len(views.rows)
    local = clips - jax.lax.axis_index(mesh_lib.AXIS) * num_local
    owned = (local >= 0) & (local < num_local)
    mine = jax.tree.map(lambda a: a[jnp.clip(local, 0, num_local - 1)], views)
    location = jax.vmap(functools.partial(schemes.locate, scheme))(mine, directions)
    vector = jax.vmap(functools.partial(schemes.vector, scheme))(mine, location)
    answer = (
        jnp.where(owned[:, None], location, 0),
        jnp.where(owned[:, None], vector, 0.0),
    )
    return jax.lax.psum(answer, mesh_lib.AXIS)


@functools.partial(jax.jit, static_argnames=("scheme", "mesh"))
def measure(
    transform: disentangle.Transform,
    views: schemes.Views,
    clips: Int[Array, "chan top"],
    *,
    scheme: schemes.Scheme,
    mesh: Mesh,
) -> tuple[Int[Array, "chan top 2"], Float[Array, "chan top"]]:
    """Location and purity of the prototypes of every channel.

    Args:
      transform: U, mu.
      views: of the clips, spread over `mesh`.
      clips: prototype clips of each channel.
      scheme: where prototypes lie.
      mesh: where `views` live.
    """
    chan, top = clips.shape
    channels = jnp.repeat(jnp.arange(chan), top)
    missing = -channels.size % CHUNK_PAIRS
    chunked = jax.tree.map(
        lambda a: jnp.pad(a.reshape(-1), (0, missing)).reshape(-1, CHUNK_PAIRS),
        (channels, clips),
    )

    def on_device(transform, views, chunked):
        def chunk(pairs):
            channel, clip = pairs
            location, vector = prototype_vectors(
                scheme, views, transform.matrix[channel], clip
            )
            return location, jax.vmap(purity.score)(transform(vector), channel)

        return jax.lax.map(chunk, chunked)

    location, score = jax.shard_map(
        on_device,
        mesh=mesh,
        in_specs=(mesh_lib.COPY, mesh_lib.CLIPS, mesh_lib.COPY),
        out_specs=mesh_lib.COPY,
    )(transform, views, chunked)
    pairs = chan * top
    return (
        location.reshape(-1, 2)[:pairs].reshape(chan, top, 2),
        score.reshape(-1)[:pairs].reshape(chan, top),
    )


def build(
    transform: disentangle.Transform,
    features: features_lib.Features,
    *,
    scheme: schemes.Scheme,
    num_prototypes: int = 5,
    sign: Sign = "positive",
    mesh: Mesh,
) -> Bank:
    """The bank of a transform over the training clips.

    Args:
      transform: U, mu.
      features: of the training clips, on `mesh` (`Features.to_mesh`).
      scheme: where prototypes lie.
      num_prototypes: a channel's; all clips where there are fewer.
      sign: "positive" for the clips that excite a channel most.
      mesh: where the features live.

    Returns:
      The bank, whole on every host.
    """
    clip, mean = top_clips(
        transform,
        features.pooled,
        num=min(num_prototypes, features.num_clips),
        num_clips=features.num_clips,
        sign=sign,
        mesh=mesh,
    )
    location, score = measure(transform, features.views, clip, scheme=scheme, mesh=mesh)
    num_freq, num_time = features.map_shape
    return mesh_lib.to_host(
        Bank(
            clip=clip,
            activation=mean * (num_freq * num_time),
            location=location,
            purity=score,
            scheme=scheme,
            sign=sign,
        )
    )
