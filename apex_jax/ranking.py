"""The n best clips of every channel: exact, and in bounded memory.

Between the transform and the bank. Clips are scored in chunks, each chunk's best join
the best so far, and the best of those go on.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

# Clips scored at a time on a device. At 1,024 channels their scores take 256 MiB; up to
# this many clips there is a single product and a single top-n.
CHUNK_CLIPS = 65_536
# Clips in a product. A product's last bits depend on its shape: with one shape for all,
# a clip's score is the same however many clips, chunks and devices there are.
BLOCK_CLIPS = 1024


def best(
    directions: Float[Array, "chan dim"],
    vectors: Float[Array, "clip dim"],
    counts: Int[Array, ""],
    num: int,
    *,
    chunk: int = CHUNK_CLIPS,
) -> tuple[Float[Array, "chan top"], Int[Array, "chan top"]]:
    """The clips with the largest `directions @ vector`, largest first.

    Args:
      directions: one a channel.
      vectors: one a clip.
      counts: how many of the clips count, from the first; the rest is padding.
      num: clips a channel, at most as many as there are.
      chunk: clips scored at a time.

    Returns:
      Scores `[chan, num]` and positions `[chan, num]`. Equal scores go to the lowest
      position; where fewer than `num` clips count, scores of minus infinity follow.
    """
    clips, chunk = len(vectors), min(chunk, len(vectors))
    counts = jnp.minimum(counts, clips)

    def of_chunk(first, vectors):
        scores = _scores(directions, vectors, jnp.minimum(counts - first, chunk))
        # Of equal values top_k gives the first.
        values, local = jax.lax.top_k(scores, min(num, chunk))
        return values, local + first

    if chunk == clips:
        return of_chunk(jnp.int32(0), vectors)

    def join(held, one):
        found = of_chunk(*one)
        # What is held comes from clips before this chunk: ties go to it.
        values, positions = (
            jnp.concatenate(both, axis=1) for both in zip(held, found, strict=True)
        )
        values, slot = jax.lax.top_k(values, num)
        return (values, jnp.take_along_axis(positions, slot, axis=1)), None

    vectors = jnp.pad(vectors, ((0, -clips % chunk), (0, 0)))
    chunks = vectors.reshape(-1, chunk, vectors.shape[1])
    # Made of a score, so that it is spread over devices as scores are.
    nothing = 0.0 * (chunks[0, 0, 0] == 0) + jnp.zeros((len(directions), num))
    start = (nothing - jnp.inf, nothing.astype(jnp.int32))
    return jax.lax.scan(join, start, (chunk * jnp.arange(len(chunks)), chunks))[0]


def _scores(
    directions: Float[Array, "chan dim"],
    vectors: Float[Array, "clip dim"],
    counts: Int[Array, ""],
) -> Float[Array, "chan padded"]:
    """`directions @ vectors.T`, a block of clips at a time; padding scores -inf."""
    clips, dim = vectors.shape
    blocks = jnp.pad(vectors, ((0, -clips % BLOCK_CLIPS), (0, 0)))
    blocks = blocks.reshape(-1, BLOCK_CLIPS, dim)

    def put(number, scores):
        first = number * BLOCK_CLIPS
        # Channels in rows, as top_k reads them: turning the scores round afterwards
        # takes as long as the product on a CPU.
        product = jnp.matmul(
            directions, blocks[number].T, precision=jax.lax.Precision.HIGHEST
        )
        # top_k puts 0 before -0: without the sign they tie as equals.
        product = jnp.where(product == 0, 0.0, product)
        padding = first + jnp.arange(BLOCK_CLIPS) >= counts
        product = jnp.where(padding[None, :], -jnp.inf, product)
        return jax.lax.dynamic_update_slice(scores, product, (0, first))

    # Spread over devices as the vectors are: made of one of their numbers.
    nothing = 0.0 * (blocks[0, 0, 0] == 0)
    start = nothing + jnp.zeros((len(directions), len(blocks) * BLOCK_CLIPS))
    return jax.lax.fori_loop(0, len(blocks), put, start)
