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

from apex_jax import audio, disentangle, schemes
from apex_jax import classifier as classifier_lib

BLUR = 0.25  # sigma of a mask's soft edge, in cells


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
    grid: schemes.Grid, scheme: schemes.Scheme, locations: Int[Array, "region 2"]
) -> Float[Array, "region freq time"]:
    """What silences the regions at some locations, soft at the edges."""
    return jax.vmap(functools.partial(grid.mask, scheme, blur=BLUR))(locations)


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
      `pooled` less the pooled vector without the region, as views with cells in the
      map's shape: constant along an axis that the scheme leaves open, of time-frequency
      the effect of the row plus that of the column.
    """
    parts: dict[schemes.Scheme, jax.Array | np.ndarray] = {}
    for part, locations in _parts(grid, scheme).items():

        def effect(location, part=part):
            hidden = masks(grid, part, jnp.stack([location] * len(spectrogram)))
            left = attenuate(front_end, spectrogram, hidden)
            return pooled - classifier_lib.pool(classifier(left)[0])

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
            # Filled up with its first, so that every batch has one shape.
            filled = np.concatenate(
                [chunk, np.repeat(chunk[:1], chunk_size - len(chunk), axis=0)]
            )
            effect = _effects_of_some(
                classifier,
                spectrogram,
                pooled,
                filled,
                front_end=front_end,
                grid=grid,
                part=part,
            )
            found.append(np.asarray(effect)[: len(chunk)])
        parts[part] = np.concatenate(found)
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


@functools.partial(jax.jit, static_argnames=("front_end", "grid", "part"))
def _effects_of_some(
    classifier: classifier_lib.Network,
    spectrogram: Float[Array, "freq time"],
    pooled: Float[Array, " chan"],
    locations: Int[Array, "region 2"],
    *,
    front_end: audio.FrontEnd,
    grid: schemes.Grid,
    part: schemes.Scheme,
) -> Float[Array, "region chan"]:
    hidden = masks(grid, part, locations)
    copies = jnp.broadcast_to(spectrogram, hidden.shape)
    feature_map, _ = classifier(attenuate(front_end, copies, hidden))
    return pooled[None] - classifier_lib.pool(feature_map)


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
