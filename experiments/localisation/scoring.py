"""Where each method points, and whether the planted event is there.

In come what the network makes of test clips with an event, the transform of each way
to learn U, and the events' boxes; out come `pointing.Scores`, one a clip, by method and
scheme. Everything that has a map is scored on it in one go, only LIME clip by clip.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import scipy.special
from jaxtyping import Array, Bool, Float, Int

from apex_jax import (
    attribution,
    data,
    disentangle,
    evidence,
    occlusion,
    pointing,
    progress,
    schemes,
    settings,
)
from apex_jax import classifier as classifier_lib
from apex_jax import explainer as explainer_lib

NUM_CHANNELS = 4  # and regions of what has no channels
# Locations `[clip, top, 2]`, the first choice first, and whether each is one,
# `[clip, top]`: heat of nothing has no place.
Where = tuple[np.ndarray, np.ndarray]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pointing:
    """Where a method's top channels lie, and what they carry of the evidence.

    Attributes:
      where: of each of them, the largest contribution first. One that contributes
        nothing, or to which no part of the sound adds anything, is nowhere.
      top: which they are, `[clip, top]`.
      parts: of the evidence, `[clip]` each.
    """

    where: Where
    top: np.ndarray
    parts: evidence.Parts


@functools.partial(jax.jit, static_argnames=("scheme", "locate", "num"))
def _channels(
    transform: disentangle.Transform,
    head: classifier_lib.LinearHead,
    pooled: Float[Array, "clip chan"],
    views: schemes.Views,
    target: Int[Array, ""],
    *,
    scheme: schemes.Scheme,
    locate: settings.Location,
    num: int,
) -> tuple[
    Int[Array, "clip top 2"],
    Bool[Array, "clip top"],
    evidence.Parts,
    Int[Array, "clip top"],
]:
    def one(clip):
        pooled, views = clip
        transformed = transform(pooled)
        share = jax.nn.relu(evidence.contributions(head, transformed, target))
        largest, top = jax.lax.top_k(share, num)
        locations, somewhere = jax.vmap(
            lambda k: _place(scheme, views, transform.matrix[k])
        )(top)
        parts = evidence.parts(head, transformed, target, top=num)
        # A channel whose mean is above zero is so somewhere on its map.
        there = largest > 0
        if locate == "occlusion":
            there &= somewhere
        return locations, there, parts, top

    return jax.lax.map(one, (pooled, views), batch_size=16)


def channels(
    transform: disentangle.Transform,
    classifier: classifier_lib.Classifier,
    pooled: Float[np.ndarray, "clip chan"],
    views: schemes.Views,
    target: int,
    scheme: schemes.Scheme,
    *,
    kind: settings.Evidence,
    locate: settings.Location = "map",
    num: int = NUM_CHANNELS,
) -> Pointing:
    """Of the channels under U that contribute most; under the identity the raw ones.

    Args:
      transform: U, mu.
      classifier: the network.
      pooled: the clips' pooled vectors.
      views: of their maps, or of their regions' effects.
      target: the class.
      scheme: where regions lie.
      kind: what contributions count towards.
      locate: what the views are of.
      num: channels a clip.
    """
    head = evidence.head_of(
        transform.compensate(classifier.head), classifier.activation, kind
    )
    found = _channels(
        transform,
        head,
        pooled,
        views,
        jnp.int32(target),
        scheme=scheme,
        locate=locate,
        num=num,
    )
    locations, there, parts, top = jax.tree.map(np.asarray, found)
    return Pointing(where=(locations, there), parts=parts, top=top)


def _place(
    scheme: schemes.Scheme, views: schemes.Views, direction: Float[Array, " chan"]
) -> tuple[Int[Array, "2"], Bool[Array, ""]]:
    """Where a direction is largest, and whether it is above zero anywhere."""
    location = schemes.locate(scheme, views, direction)
    assert views.cells is not None
    most = jnp.max(jnp.matmul(views.cells, direction, precision="highest"))
    return location, most > 0


@functools.partial(jax.jit, static_argnames=("scheme",))
def _located(
    views: schemes.Views,
    direction: Float[Array, "clip chan"],
    *,
    scheme: schemes.Scheme,
) -> tuple[Int[Array, "clip top 2"], Bool[Array, "clip top"]]:
    """The hottest regions, and of a clip whether there is any heat."""

    def along(table: Any, direction: jax.Array) -> jax.Array:
        return jnp.matmul(table, direction, precision="highest")

    def one(views: schemes.Views, direction: jax.Array):
        rows, columns = along(views.rows, direction), along(views.columns, direction)
        cells = along(views.cells, direction)
        everywhere = jnp.full(NUM_CHANNELS, schemes.ALL)
        match scheme:
            case "time":
                heat = columns
            case "frequency":
                heat = rows
            case "square":
                heat = cells.ravel()
            case _:
                heat = (rows[:, None] + columns[None]).ravel()
        top = jax.lax.top_k(heat, min(NUM_CHANNELS, len(heat)))[1]
        row, column = jnp.divmod(top, len(columns))
        if scheme == "time":
            row, column = everywhere[: len(top)], top
        elif scheme == "frequency":
            row, column = top, everywhere[: len(top)]
        there = jnp.full(len(top), jnp.max(cells) > 0)
        return jnp.stack([row, column], axis=-1).astype(jnp.int32), there

    return jax.vmap(one)(views, direction)


def whole(
    classifier: classifier_lib.Classifier,
    views: schemes.Views,
    target: int | Int[np.ndarray, " clip"],
    scheme: schemes.Scheme,
    *,
    kind: settings.Evidence,
) -> Where:
    """Where all channels together speak for a class, `W[c]` of the views.

    Of maps this is CAM (Zhou et al., 2016), of regions' effects occlusion of the
    class (Zeiler & Fergus, 2014). The class is one, or one a clip.
    """
    head = evidence.head_of(classifier.head, classifier.activation, kind)
    num_clips = jnp.asarray(views.rows).shape[0]
    targets = jnp.broadcast_to(jnp.asarray(target), num_clips)
    direction = jnp.asarray(head.weight)[targets]
    return _on_host(_located(views, direction, scheme=scheme))


def grad_cam(
    classifier: classifier_lib.Classifier,
    views: schemes.Views,
    target: int,
    scheme: schemes.Scheme,
    *,
    kind: settings.Evidence,
) -> Where:
    """Of Grad-CAM's heat, which leaves out what speaks against."""
    head = evidence.head_of(classifier.head, classifier.activation, kind)
    cells, _ = jax.jit(jax.vmap(attribution.grad_cam_cells, in_axes=(None, 0, None)))(
        head, jnp.asarray(views.cells), jnp.int32(target)
    )
    return _hottest(cells, scheme)


def loudest(
    grid: schemes.Grid,
    spectrogram: Float[np.ndarray, "clip freq time"],
    scheme: schemes.Scheme,
) -> Where:
    """The loudest region, which takes no network to find.

    By the mean of its pixels, decibels above the least of the clip.
    """
    cells = jax.vmap(lambda pixels: attribution.cell_means(pixels, grid))
    quietest = spectrogram.min(axis=(1, 2), keepdims=True)
    return _hottest(cells(jnp.asarray(spectrogram - quietest)), scheme)


def unusual(
    grid: schemes.Grid,
    spectrogram: Float[np.ndarray, "clip freq time"],
    scheme: schemes.Scheme,
) -> Where:
    """The region that occlusion changes most, whatever a network makes of that.

    By the mean square of what lies between its pixels and `occlusion.usual`.
    """
    cells = jax.vmap(lambda pixels: attribution.cell_means(pixels, grid))
    changed = jnp.asarray(spectrogram) - occlusion.usual(spectrogram)
    return _hottest(cells(changed**2), scheme)


def constant(
    grid: schemes.Grid,
    scheme: schemes.Scheme,
    known: Float[np.ndarray, "event 4"],
    num_clips: int,
) -> Where:
    """The one region that hits most of the events known, for every clip.

    What somebody scores who has seen where events usually are, and does not listen.
    """
    locations, hits = _of_every_region(grid, scheme, known)
    best = locations[np.argmax(hits.both.sum(axis=1))]
    return np.tile(best, (num_clips, 1, 1)), np.ones((num_clips, 1), bool)


def _hottest(cells: Float[Array, "clip freq time"], scheme: schemes.Scheme) -> Where:
    views = schemes.views(cells[..., None], keep_cells=True)
    return _on_host(_located(views, jnp.ones((len(cells), 1)), scheme=scheme))


def _on_host(found: tuple[jax.Array, jax.Array]) -> Where:
    return np.asarray(found[0]), np.asarray(found[1])


def lime(
    explainer: explainer_lib.Explainer,
    clips: Sequence[data.Clip],
    target: int,
    *,
    seed: int,
    num_samples: int,
    instead: settings.Instead,
    on_progress: progress.OnProgress,
) -> list[np.ndarray]:
    """LIME's heat of each clip, `[F_in, T_in]`."""
    heats = []
    for clip in clips:
        found = attribution.lime(
            explainer,
            clip.path,
            offset_s=clip.offset_s,
            target=target,
            seed=seed,
            num_samples=num_samples,
            instead=instead,
        )
        heats.append(found.channels[0].heatmap)
        on_progress(1)
    return heats


def of_heat(
    grid: schemes.Grid, heats: Sequence[np.ndarray], scheme: schemes.Scheme
) -> Where:
    """Of heat a pixel."""
    cells = [attribution.cell_means(jnp.asarray(heat), grid) for heat in heats]
    return _hottest(jnp.stack(cells), scheme)


def random(
    grid: schemes.Grid, scheme: schemes.Scheme, boxes: Float[np.ndarray, "clip 4"]
) -> dict[str, np.ndarray]:
    """What regions drawn among all of a scheme score on average, exactly.

    Also the best of so many different ones as there are top channels, but for the
    overlap.
    """
    locations, found = _of_every_region(grid, scheme, boxes)
    plain = _plain(found)
    count, drawn = len(locations), min(NUM_CHANNELS, len(locations))
    chance = {name: values.mean(axis=0) for name, values in plain.items()}
    for name in ("frequency", "time", "both"):
        misses = count - plain[name].sum(axis=0)
        none = scipy.special.comb(misses, drawn) / math.comb(count, drawn)
        chance[f"{name}, best"] = 1 - none
    return chance


def scored(
    grid: schemes.Grid,
    scheme: schemes.Scheme,
    where: Where,
    boxes: Float[np.ndarray, "clip 4"],
) -> dict[str, np.ndarray]:
    """Hits and overlap of each clip, `[clip]`; of several regions also of the best.

    The best of the top channels, or of the hottest regions, is, axis by axis, whether
    any of them hits, and the largest overlap. What points nowhere misses.
    """
    locations, there = where
    several = np.broadcast_to(boxes[:, None], (*locations.shape[:2], boxes.shape[-1]))
    found = _plain(pointing.score(grid, scheme, locations, several))
    found = {name: values * there for name, values in found.items()}
    first = {name: values[:, 0] for name, values in found.items()}
    if locations.shape[1] == 1:
        return first
    best = {f"{name}, best": values.max(axis=1) for name, values in found.items()}
    return first | best


def _of_every_region(
    grid: schemes.Grid, scheme: schemes.Scheme, boxes: Float[np.ndarray, "event 4"]
) -> tuple[np.ndarray, pointing.Scores]:
    """The locations of a scheme, and what each scores on each event."""
    locations = grid.locations(scheme)
    pairs = len(locations), len(boxes)
    return locations, pointing.score(
        grid,
        scheme,
        np.broadcast_to(locations[:, None], (*pairs, 2)),
        np.broadcast_to(boxes, (*pairs, boxes.shape[-1])),
    )


def _plain(found: pointing.Scores) -> dict[str, np.ndarray]:
    return {
        "frequency": found.frequency.astype(float),
        "time": found.time.astype(float),
        "both": found.both.astype(float),
        "iou": found.iou,
    }
