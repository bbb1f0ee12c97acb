"""The n best clips of every channel: exact, and in bounded memory.

Between the transform and the bank. Clips are scored in chunks, each chunk's best join
the best so far, and the best of those go on.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

# Clips scored at a time on a device. At 1,024 channels their scores take 256 MiB; up to
# this many clips there is a single product and a single top-n.
CHUNK_CLIPS = 65_536
# Clips in a product. A product's last bits depend on its shape: with one shape for all,
# a clip's score is the same however many clips, chunks and devices there are. A CPU
# wants small ones, which waste little on few clips; an accelerator wants large ones.
CPU_BLOCK_CLIPS = 1024
BLOCK_CLIPS = 4096

# Of scores `[chan, clip]` and a number.
TopK = Callable[[jax.Array, int], Sequence[jax.Array]]


def best(
    directions: Float[Array, "chan dim"],
    vectors: Float[Array, "clip dim"],
    counts: Int[Array, ""],
    num: int,
    *,
    centre: Float[Array, " dim"] | None = None,
    chunk: int = CHUNK_CLIPS,
) -> tuple[Float[Array, "chan top"], Int[Array, "chan top"]]:
    """The clips with the largest `directions @ (vector - centre)`, largest first.

    Args:
      directions: one a channel.
      vectors: one a clip.
      counts: how many of the clips count, from the first; the rest is padding.
      num: clips a channel, at most as many as there are.
      centre: taken from every vector; None for zero.
      chunk: clips scored at a time, about.

    Returns:
      Scores `[chan, num]` and positions `[chan, num]`. Equal scores go to the lowest
      position; where fewer than `num` clips count, scores of minus infinity follow.
    """
    clips = len(vectors)
    counts = jnp.minimum(counts, clips)
    centre = jnp.zeros(vectors.shape[1], vectors.dtype) if centre is None else centre
    num_chunks = -(-clips // chunk)
    # Of one size, which leaves little of the last one empty.
    chunk = -(-clips // num_chunks)

    def of_chunk(number):
        # The last one begins earlier, so that it is as long as the others; what it
        # shares with the one before counts there.
        first = jnp.minimum(number * chunk, clips - chunk)
        part = jax.lax.dynamic_slice_in_dim(vectors, first, chunk)
        few = min(num, chunk)
        values, local = jax.lax.platform_dependent(
            directions,
            part,
            centre,
            number * chunk - first,
            counts - first,
            cpu=functools.partial(
                _best, num=few, block=CPU_BLOCK_CLIPS, top_k=jax.lax.top_k
            ),
            default=functools.partial(
                _best, num=few, block=BLOCK_CLIPS, top_k=top_by_groups
            ),
        )
        return values, local + first

    if num_chunks == 1:
        return of_chunk(jnp.int32(0))

    def join(held, number):
        # What is held comes from clips before this chunk: ties go to it.
        values, positions = (
            jnp.concatenate(both, axis=1)
            for both in zip(held, of_chunk(number), strict=True)
        )
        values, slot = jax.lax.top_k(values, num)
        return (values, jnp.take_along_axis(positions, slot, axis=1)), None

    # Made of a score, so that it is spread over devices as scores are.
    nothing = 0.0 * (vectors[0, 0] == 0) + jnp.zeros((len(directions), num))
    start = (nothing - jnp.inf, nothing.astype(jnp.int32))
    return jax.lax.scan(join, start, jnp.arange(num_chunks))[0]


def _best(
    directions: jax.Array,
    vectors: jax.Array,
    centre: jax.Array,
    begin: jax.Array,
    end: jax.Array,
    *,
    num: int,
    block: int,
    top_k: TopK,
) -> tuple[jax.Array, jax.Array]:
    """The best of a chunk by `_scores`, and where they are in it."""
    scores = _scores(directions, vectors, centre, begin, end, block=block)
    values, local = top_k(scores, num)
    return values, local


def top_by_groups(
    scores: Float[Array, "chan clip"], num: int
) -> tuple[Float[Array, "chan top"], Int[Array, "chan top"]]:
    """`jax.lax.top_k` of long rows for accelerators, ties to the lowest as there.

    They sort a whole row, which takes longer than the product that made it. But the
    `num` largest lie in those `num` groups of neighbours whose largest
    numbers are the largest: each group that comes before another, by its largest or,
    where these are equal, by its place, holds a number that comes before all of the
    other's. So groups are chosen first, and few numbers are left to sort.

    Args:
      scores: a row a channel.
      num: how many, at most as many as a row has.
    """
    chan, clips = scores.shape
    # Where as many groups are looked through as numbers are left after it.
    size = math.isqrt(clips // num)
    if size < 2:
        values, positions = jax.lax.top_k(scores, num)
        return values, positions
    groups = jnp.pad(
        scores, ((0, 0), (0, -clips % size)), constant_values=-jnp.inf
    ).reshape(chan, -1, size)
    _, chosen = jax.lax.top_k(groups.max(axis=2), num)
    # In the order of their clips again, so that ties go to the lowest.
    chosen = jnp.sort(chosen, axis=1)
    among = jnp.take_along_axis(groups, chosen[:, :, None], axis=1).reshape(chan, -1)
    values, slot = jax.lax.top_k(among, num)
    group = jnp.take_along_axis(chosen, slot // size, axis=1)
    return values, group * size + slot % size


def _scores(
    directions: Float[Array, "chan dim"],
    vectors: Float[Array, "clip dim"],
    centre: Float[Array, " dim"],
    begin: Int[Array, ""],
    end: Int[Array, ""],
    *,
    block: int,
) -> Float[Array, "chan clip"]:
    """`directions @ (vectors - centre).T`, block by block.

    Clips before `begin` and from `end` on score minus infinity.
    """
    clips = len(vectors)
    # Few clips are filled up to a block.
    vectors = jnp.pad(vectors, ((0, max(0, block - clips)), (0, 0)))
    length = len(vectors)

    def put(number, scores):
        # Like the chunks: the last block begins earlier, and writes the same again.
        first = jnp.minimum(number * block, length - block)
        part = jax.lax.dynamic_slice_in_dim(vectors, first, block)
        # Channels in rows, as top_k reads them: turning the scores round afterwards
        # takes as long as the product on a CPU.
        product = jnp.matmul(
            directions,
            (part - centre[None, :]).T,
            precision=jax.lax.Precision.HIGHEST,
        )
        # top_k puts 0 before -0: without the sign they tie as equals.
        product = jnp.where(product == 0, 0.0, product)
        position = first + jnp.arange(block)
        counts = (position >= begin) & (position < end)
        product = jnp.where(counts[None, :], product, -jnp.inf)
        return jax.lax.dynamic_update_slice(scores, product, (0, first))

    # Spread over devices as the vectors are: made of one of their numbers.
    nothing = 0.0 * (vectors[0, 0] == 0)
    start = nothing + jnp.zeros((len(directions), length))
    scores = jax.lax.fori_loop(0, -(-length // block), put, start)
    return scores[:, :clips]
