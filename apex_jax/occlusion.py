"""Where in the sound is what a channel answers to? Occlusion of a scheme's regions.

The paper looks for the cell, column or row of the feature map where a channel is
largest. A deep network sees far around each cell, and its map need not answer where
the sound is. Here each region of the scheme is silenced in turn; what that takes from
the pooled vector is the region's *effect* (Zeiler & Fergus, 2014). U is linear, so one
pass a region gives the effects on all channels, and they take the map's place in
whatever finds a location or draws heat.
"""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from apex_jax import audio, disentangle, look, schemes
from apex_jax import classifier as classifier_lib

# An effect smaller than this share of the pooled vector is rounding, and none.
NOTHING = 1e-5


def attenuate(
    front_end: audio.FrontEnd,
    spectrogram: Float[Array, "batch freq time"],
    mask: Float[Array, "batch freq time"],
) -> Float[Array, "batch freq time"]:
    """Silences what the mask covers: `S' = S (1 - M) + silence M`.

    Args:
      front_end: tells what silence is in the spectrogram's units.
      spectrogram: from `audio.spectrogram`.
      mask: in [0, 1], 1 hides.
    """
    silence = audio.silence_level(front_end, spectrogram)[:, None, None]
    return spectrogram * (1 - mask) + silence * mask


def masks(
    grid: schemes.Grid,
    scheme: schemes.Scheme,
    locations: Int[Array, "region 2"],
    *,
    blur: float = 0.0,
) -> Float[Array, "region freq time"]:
    """What silences the regions at some locations.

    Args:
      grid: how maps lie on spectrograms.
      scheme: decides the regions.
      locations: from `schemes.locate`.
      blur: sigma of their edges, in cells. Where regions are compared it has to be 0:
        spectrograms are in decibels, so a fifth of the way to silence is gone for the
        ear, and a soft mask silences what lies beside it too.
    """
    return jax.vmap(functools.partial(grid.mask, scheme, blur=blur))(locations)


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
      pooled: their pooled vectors, with nothing silenced.
      grid: how maps lie on spectrograms.
      scheme: decides the regions.

    Returns:
      `pooled` less the pooled vector without the region, zeros where that is within
      rounding, as views with cells in the map's shape: constant along an axis that the
      scheme leaves open, of time-frequency the row's effect plus the column's.
    """
    parts: dict[schemes.Scheme, jax.Array | np.ndarray] = {}
    for part, locations in _parts(grid, scheme).items():

        def effect(location, part=part):
            hidden = masks(grid, part, location[None])
            left = attenuate(
                front_end, spectrogram, jnp.broadcast_to(hidden, spectrogram.shape)
            )
            return _effect(pooled, classifier_lib.pool(classifier(left)[0]))

        parts[part] = jnp.swapaxes(jax.lax.map(effect, jnp.asarray(locations)), 0, 1)
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
    parts: dict[schemes.Scheme, jax.Array | np.ndarray] = {}
    for part, locations in _parts(grid, scheme).items():
        found = []
        for first in range(0, len(locations), chunk_size):
            chunk = locations[first : first + chunk_size]
            left = np.asarray(
                _without(spectrogram, chunk, front_end=front_end, grid=grid, part=part)
            )
            views, _ = look.run(classifier, list(left), chunk_size)
            found.append(views.rows[: len(chunk)].mean(axis=1))
        without = np.concatenate(found)
        whole = np.broadcast_to(np.asarray(pooled), without.shape)
        parts[part] = np.asarray(_effect(whole, without))
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


def _effect(
    whole: Float[Array | np.ndarray, "n chan"],
    without: Float[Array | np.ndarray, "n chan"],
) -> Float[Array, "n chan"]:
    """What is lost, exactly nothing where that is rounding: silencing silence."""
    lost = jnp.asarray(whole) - without
    size, most = (jnp.max(jnp.abs(a), axis=1, keepdims=True) for a in (lost, whole))
    return jnp.where(size > NOTHING * most, lost, 0.0)


@functools.partial(jax.jit, static_argnames=("front_end", "grid", "part"))
def _without(
    spectrogram: Float[Array, "freq time"],
    locations: Int[Array, "region 2"],
    *,
    front_end: audio.FrontEnd,
    grid: schemes.Grid,
    part: schemes.Scheme,
) -> Float[Array, "region freq time"]:
    """A clip with each of some regions silenced."""
    hidden = masks(grid, part, locations)
    return attenuate(front_end, jnp.broadcast_to(spectrogram, hidden.shape), hidden)


def _parts(
    grid: schemes.Grid, scheme: schemes.Scheme
) -> dict[schemes.Scheme, Int[np.ndarray, "region 2"]]:
    """What is silenced: a scheme's regions; of time-frequency rows and columns."""
    parts: tuple[schemes.Scheme, ...] = (scheme,)
    if scheme == "time_frequency":
        parts = ("frequency", "time")
    return {part: grid.locations(part) for part in parts}


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
