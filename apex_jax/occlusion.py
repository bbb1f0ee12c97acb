"""Where in the sound is what a channel answers to? Occlusion of a scheme's regions.

The paper looks for the cell, column or row of the feature map where a channel is
largest. A deep network sees far around each cell, and its map need not answer where
the sound is. Here the sound itself is changed, and a region's *effect* is the mean of
two answers:

- what the pooled vector loses when what is *usual* in the clip takes the region's
  place: is it needed? (Zeiler & Fergus, 2014; not with silence, as a hole in rain is
  news to a network, too.)
- what it gains over silence when the region is all there is to hear: is it enough?
  What happens twice is not needed, and what goes on all the time is usual.

U is linear, so the same passes give the effects on all channels, and they take the
map's place in whatever finds a location or draws heat.
"""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from apex_jax import audio, disentangle, look, schemes
from apex_jax import classifier as classifier_lib

# An effect smaller than this share of the pooled vector is rounding, and none.
NOTHING = 1e-5


def usual(
    spectrogram: Float[Array | np.ndarray, "*batch freq time"],
) -> Float[Array, "*batch freq time"]:
    """What a clip sounds like without what is special at a moment or in a band.

    The smaller of each row's median over time and each frame's over frequency. Silence
    that was appended to a clip counts as any other sound.

    Args:
      spectrogram: from `audio.spectrogram`.
    """
    spectrogram = jnp.asarray(spectrogram)
    of_row, of_frame = (
        jnp.median(spectrogram, axis=axis, keepdims=True) for axis in (-1, -2)
    )
    return jnp.minimum(of_row, of_frame)


def effects(
    classifier: classifier_lib.Network,
    front_end: audio.FrontEnd,
    spectrogram: Float[Array, "batch freq time"],
    pooled: Float[Array, "batch chan"],
    *,
    grid: schemes.Grid,
    scheme: schemes.Scheme,
) -> schemes.Views:
    """What each region adds to the pooled vectors of a batch, region by region.

    To be compiled; memory does not grow with the number of regions but for the result.

    Args:
      classifier: the untouched network.
      front_end: tells what silence is.
      spectrogram: of the clips.
      pooled: their pooled vectors, with nothing taken away.
      grid: how maps lie on spectrograms.
      scheme: decides the regions.

    Returns:
      The mean of what the pooled vector loses without the region and of what it gains
      by the region alone, zeros where that is within rounding; as views with cells in
      the map's shape: constant along an axis that the scheme leaves open, of
      time-frequency the row's effect plus the column's.
    """

    def pool(heard):
        return classifier_lib.pool(classifier(heard)[0])

    instead, silence = usual(spectrogram), _silence(front_end, spectrogram)
    nothing = pool(silence)
    parts = {}
    for part in _parts(scheme):

        def effect(location, part=part):
            region = grid.mask(part, location)[None] > 0
            without = pool(jnp.where(region, instead, spectrogram))
            alone = pool(jnp.where(region, spectrogram, silence))
            return _effect(pooled, without, alone, nothing)

        found = jax.lax.map(effect, jnp.asarray(grid.locations(part)))
        parts[part] = jnp.swapaxes(found, 0, 1)
    return _views(grid, parts)


def effects_of_clip(
    classifier: classifier_lib.Network,
    front_end: audio.FrontEnd,
    spectrogram: Float[np.ndarray, "freq time"],
    pooled: Float[Array | np.ndarray, " chan"],
    *,
    grid: schemes.Grid,
    scheme: schemes.Scheme,
    chunk_size: int = 8,
) -> schemes.Views:
    """`effects` of one clip, several regions in the network at a time, on the host."""
    found = {}
    for part in _parts(scheme):
        copies = _copies(spectrogram, front_end=front_end, grid=grid, part=part)
        found[part] = look.pooled(classifier, np.asarray(copies), chunk_size)
    return jax.tree.map(np.asarray, _compared(pooled, found, grid=grid))


def of_differences(
    transform: disentangle.Transform, head: classifier_lib.LinearHead
) -> tuple[disentangle.Transform, classifier_lib.LinearHead]:
    """Transform and head for effects: of differences there is no mean and no bias."""
    centre, bias = jnp.zeros_like(transform.centre), jnp.zeros_like(head.bias)
    return (
        dataclasses.replace(transform, centre=centre),
        dataclasses.replace(head, bias=bias),
    )


def _silence(
    front_end: audio.FrontEnd, spectrogram: Float[Array, "batch freq time"]
) -> Float[Array, "batch freq time"]:
    level = audio.silence_level(front_end, spectrogram)
    return jnp.broadcast_to(level[:, None, None], spectrogram.shape)


@functools.partial(jax.jit, static_argnames=("front_end", "grid", "part"))
def _copies(
    spectrogram: Float[Array, "freq time"],
    *,
    front_end: audio.FrontEnd,
    grid: schemes.Grid,
    part: schemes.Scheme,
) -> Float[Array, "copy freq time"]:
    """A clip without each region, then each region alone, and silence."""
    locations = jnp.asarray(grid.locations(part))
    region = jax.vmap(functools.partial(grid.mask, part))(locations) > 0
    silence = _silence(front_end, spectrogram[None])
    without = jnp.where(region, usual(spectrogram)[None], spectrogram[None])
    alone = jnp.where(region, spectrogram[None], silence)
    return jnp.concatenate([without, alone, silence])


@functools.partial(jax.jit, static_argnames="grid")
def _compared(
    pooled: Float[Array, " chan"],
    found: dict[schemes.Scheme, Float[Array, "_ chan"]],
    *,
    grid: schemes.Grid,
) -> schemes.Views:
    """Effects from the pooled vectors of a clip, and of `_copies` of it."""
    parts = {}
    for part, of_copies in found.items():
        without, alone = jnp.split(of_copies[:-1], 2)
        parts[part] = _effect(pooled[None], without, alone, of_copies[-1:])
    return _views(grid, parts)


def _effect(
    whole: Float[Array, "#n chan"],
    without: Float[Array, "n chan"],
    alone: Float[Array, "n chan"],
    nothing: Float[Array, "#n chan"],
) -> Float[Array, "n chan"]:
    """Of pooled vectors; exactly nothing where that is rounding, as of silence."""

    def beyond_rounding(more, less):
        difference = more - less
        most = jnp.maximum(jnp.abs(more), jnp.abs(less)).max(axis=1, keepdims=True)
        size = jnp.abs(difference).max(axis=1, keepdims=True)
        return jnp.where(size > NOTHING * most, difference, 0.0)

    return (beyond_rounding(whole, without) + beyond_rounding(alone, nothing)) / 2


def _parts(scheme: schemes.Scheme) -> tuple[schemes.Scheme, ...]:
    """What is taken away: a scheme's regions; of time-frequency rows and columns."""
    return ("frequency", "time") if scheme == "time_frequency" else (scheme,)


def _views(grid: schemes.Grid, parts: dict[schemes.Scheme, jax.Array]) -> schemes.Views:
    """Effects of regions, `[*batch, region, chan]`, laid out as a map."""
    laid = [
        jnp.reshape(effect, (*effect.shape[:-2], *grid.regions(part), -1))
        for part, effect in parts.items()
    ]
    cells = functools.reduce(jnp.add, laid)  # rows and columns spread over each other
    shape = (*cells.shape[:-3], *grid.map_shape, cells.shape[-1])
    return schemes.views(jnp.broadcast_to(cells, shape), keep_cells=True)
