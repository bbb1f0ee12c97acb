"""Where in the sound is what a channel answers to? Occlusion of a scheme's regions.

The paper looks for the cell, column or row of the feature map where a channel is
largest. A deep network sees far around each cell, and its map need not answer where
the sound is. Here each region of the scheme is taken from the sound, and each is left
as all there is of it; what the pooled vector loses and gains, halved, is the region's
*effect*: the last and the first term of its Shapley value (Shapley, 1953), of which the
last alone is plain occlusion (Zeiler & Fergus, 2014). U is linear, so the same passes
give the effects on all channels, and they take the map's place in whatever finds a
location or draws heat.

In a region's place comes what is usual in the clip, not silence: a hole in rain is
news.
"""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from apex_jax import classifier as classifier_lib
from apex_jax import disentangle, look, schemes

# An effect smaller than this share of the pooled vector is rounding, and none.
NOTHING = 1e-5


def usual(
    spectrogram: Float[Array | np.ndarray, "*batch freq time"], scheme: schemes.Scheme
) -> Float[Array, "*batch freq time"]:
    """What takes a region's place: what the clip sounds like elsewhere.

    Each row's median over time; where regions are bands all the time, that would be the
    band itself, and it is each frame's median over frequency.

    Args:
      spectrogram: from `audio.spectrogram`.
      scheme: of the region.
    """
    spectrogram = jnp.asarray(spectrogram)
    axis = -2 if scheme == "frequency" else -1
    level = jnp.median(spectrogram, axis=axis, keepdims=True)
    return jnp.broadcast_to(level, spectrogram.shape)


def effects(
    classifier: classifier_lib.Network,
    spectrogram: Float[Array, "batch freq time"],
    pooled: Float[Array, "batch chan"],
    *,
    grid: schemes.Grid,
    scheme: schemes.Scheme,
) -> schemes.Views:
    """What each region adds to the pooled vectors of a batch, region by region.

    To be compiled; memory does not grow with the number of regions but for masks and
    the result.

    Args:
      classifier: the untouched network.
      spectrogram: of the clips.
      pooled: their pooled vectors, with nothing taken away.
      grid: how maps lie on spectrograms.
      scheme: decides the regions.

    Returns:
      The mean of what the pooled vector loses without the region and of what it gains
      by the region where all else is `usual`, zeros where that is within rounding; as
      views with cells in the map's shape: constant along an axis that the scheme leaves
      open, of time-frequency the row's effect plus the column's.
    """
    parts: dict[schemes.Scheme, jax.Array | np.ndarray] = {}
    for part in _parts(scheme):
        instead = usual(spectrogram, part)

        def pool(kept, instead=instead):
            left = jnp.where(kept, spectrogram, instead)
            return classifier_lib.pool(classifier(left)[0])

        found = jax.lax.map(pool, jnp.asarray(_kept(grid, part)))
        parts[part] = jax.vmap(_effects, in_axes=(0, 1))(pooled, found)
    return _views(grid, parts)


def effects_of_clip(
    classifier: classifier_lib.Network,
    spectrogram: Float[np.ndarray, "freq time"],
    pooled: Float[Array | np.ndarray, " chan"],
    *,
    grid: schemes.Grid,
    scheme: schemes.Scheme,
    chunk_size: int = 8,
) -> schemes.Views:
    """`effects` of one clip, several regions in the network at a time, on the host."""
    parts: dict[schemes.Scheme, jax.Array | np.ndarray] = {}
    for part in _parts(scheme):
        instead = np.asarray(usual(spectrogram, part))
        found = []
        kept = _kept(grid, part)
        for first in range(0, len(kept), chunk_size):
            chunk = kept[first : first + chunk_size]
            left = np.where(chunk, spectrogram, instead)
            views, _ = look.run(classifier, list(left), chunk_size)
            found.append(views.rows[: len(chunk)].mean(axis=1))
        parts[part] = _effects(jnp.asarray(pooled), jnp.concatenate(found))
    return jax.tree.map(np.asarray, _views(grid, parts))


def of_differences(
    transform: disentangle.Transform, head: classifier_lib.LinearHead
) -> tuple[disentangle.Transform, classifier_lib.LinearHead]:
    """Transform and head for effects: of differences there is no mean and no bias."""
    centre, bias = jnp.zeros_like(transform.centre), jnp.zeros_like(head.bias)
    return (
        dataclasses.replace(transform, centre=centre),
        dataclasses.replace(head, bias=bias),
    )


@functools.lru_cache(maxsize=8)
def _kept(
    grid: schemes.Grid, part: schemes.Scheme
) -> Bool[np.ndarray, "copy freq time"]:
    """What copies of a clip keep: all but each region, each region alone, nothing."""
    with jax.ensure_compile_time_eval():
        mask = jax.vmap(functools.partial(grid.mask, part))
        region = np.asarray(mask(jnp.asarray(grid.locations(part)))) > 0
    return np.concatenate([~region, region, np.zeros_like(region[:1])])


def _effects(
    whole: Float[Array, " chan"], copies: Float[Array, "copy chan"]
) -> Float[Array, "region chan"]:
    """Of the pooled vectors of a clip and of its copies, in the order of `_kept`."""
    num = len(copies) // 2
    without, alone, nothing = copies[:num], copies[num:-1], copies[-1]
    most = jnp.max(jnp.abs(whole))

    def beyond_rounding(difference):
        size = jnp.max(jnp.abs(difference), axis=1, keepdims=True)
        return jnp.where(size > NOTHING * most, difference, 0.0)

    lost, gained = whole[None] - without, alone - nothing[None]
    return (beyond_rounding(lost) + beyond_rounding(gained)) / 2


def _parts(scheme: schemes.Scheme) -> tuple[schemes.Scheme, ...]:
    """What is taken away: a scheme's regions; of time-frequency rows and columns."""
    return ("frequency", "time") if scheme == "time_frequency" else (scheme,)


def _views(
    grid: schemes.Grid, parts: dict[schemes.Scheme, jax.Array | np.ndarray]
) -> schemes.Views:
    """Effects of regions, `[*batch, region, chan]`, laid out as a map."""
    laid = [
        jnp.reshape(effect, (*effect.shape[:-2], *grid.regions(part), -1))
        for part, effect in parts.items()
    ]
    cells = functools.reduce(jnp.add, laid)  # rows and columns spread over each other
    shape = (*cells.shape[:-3], *grid.map_shape, cells.shape[-1])
    return schemes.views(jnp.broadcast_to(cells, shape), keep_cells=True)
