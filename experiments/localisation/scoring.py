"""Where each method points, and whether the planted event is there.

In come what the network makes of test clips with an event, the transform of each way
to learn U, and the events' boxes; out come `pointing.Scores`, one a clip, by method and
scheme. Everything that has a map is scored on it in one go, only LIME clip by clip.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from apex_jax import (
    attribution,
    data,
    disentangle,
    evidence,
    pointing,
    progress,
    schemes,
    settings,
)
from apex_jax import classifier as classifier_lib
from apex_jax import explainer as explainer_lib

NUM_CHANNELS = 4


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pointing:
    """Where a method's top channels lie, and what share of the evidence they carry.

    Attributes:
      locations: `[clip, top, 2]`, the largest contribution first.
      share: of the positive evidence that the first channel and that all `top` carry,
        `[clip, 2]`.
      lead: what the first channel adds over the logit that it adds to, `[clip]`: 1
        where it alone decides, far above 1 where the others take back what it gives.
    """

    locations: np.ndarray
    share: np.ndarray
    lead: np.ndarray


@functools.partial(jax.jit, static_argnames=("scheme", "num"))
def _channels(
    transform: disentangle.Transform,
    head: classifier_lib.LinearHead,
    pooled: Float[Array, "clip chan"],
    views: schemes.Views,
    target: Int[Array, ""],
    *,
    scheme: schemes.Scheme,
    num: int,
) -> tuple[Int[Array, "clip top 2"], Float[Array, "clip 2"], Float[Array, " clip"]]:
    def one(clip):
        pooled, views = clip
        transformed = transform(pooled)
        share = jax.nn.relu(evidence.contributions(head, transformed, target))
        largest, top = jax.lax.top_k(share, num)
        locations = jax.vmap(
            lambda k: schemes.locate(scheme, views, transform.matrix[k])
        )(top)
        total = jnp.maximum(jnp.sum(share), jnp.finfo(share.dtype).tiny)
        carried = jnp.stack([largest[0], jnp.sum(largest)]) / total
        return locations, carried, largest[0] / head(transformed)[target]

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
      num: channels a clip.
    """
    head = evidence.head_of(
        transform.compensate(classifier.head), classifier.activation, kind
    )
    found = _channels(
        transform, head, pooled, views, jnp.int32(target), scheme=scheme, num=num
    )
    locations, share, lead = (np.asarray(a) for a in found)
    return Pointing(locations=locations, share=share, lead=lead)


@functools.partial(jax.jit, static_argnames=("scheme",))
def _located(
    views: schemes.Views, direction: Float[Array, " chan"], *, scheme: schemes.Scheme
) -> Int[Array, "clip 2"]:
    return jax.vmap(lambda one: schemes.locate(scheme, one, direction))(views)


def whole(
    classifier: classifier_lib.Classifier,
    views: schemes.Views,
    target: int,
    scheme: schemes.Scheme,
    *,
    kind: settings.Evidence,
) -> np.ndarray:
    """Where all channels together speak for a class, `W[c]` of the views, `[clip, 2]`.

    Of maps this is CAM (Zhou et al., 2016), of regions' effects plain occlusion of the
    class (Zeiler & Fergus, 2014).
    """
    head = evidence.head_of(classifier.head, classifier.activation, kind)
    direction = jnp.asarray(head.weight)[target]
    return np.asarray(_located(views, direction, scheme=scheme))


def grad_cam(
    classifier: classifier_lib.Classifier,
    views: schemes.Views,
    target: int,
    scheme: schemes.Scheme,
    *,
    kind: settings.Evidence,
) -> np.ndarray:
    """Of Grad-CAM's heat, which leaves out what speaks against, `[clip, 2]`."""
    head = evidence.head_of(classifier.head, classifier.activation, kind)
    cells, _ = jax.jit(jax.vmap(attribution.grad_cam_cells, in_axes=(None, 0, None)))(
        head, jnp.asarray(views.cells), jnp.int32(target)
    )
    return _hottest(cells, scheme)


def loudest(
    grid: schemes.Grid,
    spectrogram: Float[np.ndarray, "clip freq time"],
    scheme: schemes.Scheme,
) -> np.ndarray:
    """The loudest region, which takes no network to find, `[clip, 2]`.

    By the mean of its pixels, which are decibels.
    """
    cells = jax.vmap(lambda pixels: attribution.cell_means(pixels, grid))
    return _hottest(cells(jnp.asarray(spectrogram)), scheme)


def _hottest(
    cells: Float[Array, "clip freq time"], scheme: schemes.Scheme
) -> Int[np.ndarray, "clip 2"]:
    views = schemes.views(cells[..., None], keep_cells=True)
    return np.asarray(_located(views, jnp.ones(1), scheme=scheme))


def lime(
    explainer: explainer_lib.Explainer,
    clips: Sequence[data.Clip],
    target: int,
    *,
    seed: int,
    num_samples: int,
    on_progress: progress.OnProgress,
) -> dict[schemes.Scheme, np.ndarray]:
    """Of LIME's heat, from one heatmap a clip for all schemes, `[clip, 2]` each."""
    grid, heats = explainer.grid(), []
    for clip in clips:
        found = attribution.lime(
            explainer,
            clip.path,
            offset_s=clip.offset_s,
            target=target,
            seed=seed,
            num_samples=num_samples,
        )
        heats.append(
            attribution.cell_means(jnp.asarray(found.channels[0].heatmap), grid)
        )
        on_progress(1)
    cells = jnp.stack(heats)
    return {s: _hottest(cells, s) for s in schemes.SCHEMES}


def random(
    grid: schemes.Grid, scheme: schemes.Scheme, boxes: Float[np.ndarray, "clip 4"]
) -> dict[str, np.ndarray]:
    """What a region drawn among all of a scheme scores on average, exactly."""
    locations = grid.locations(scheme)
    found = pointing.score(
        grid,
        scheme,
        np.broadcast_to(locations[:, None], (len(locations), len(boxes), 2)),
        np.broadcast_to(boxes, (len(locations), *boxes.shape)),
    )
    return {name: values.mean(axis=0) for name, values in _plain(found).items()}


def scored(
    grid: schemes.Grid,
    scheme: schemes.Scheme,
    locations: Int[np.ndarray, "clip *top 2"],
    boxes: Float[np.ndarray, "clip 4"],
) -> dict[str, np.ndarray]:
    """Hits and overlap of each clip, `[clip]`; of several channels also of the best.

    The best of the top channels is, axis by axis, whether any of them hits, and the
    largest overlap.
    """
    if locations.ndim == 2:
        return _plain(pointing.score(grid, scheme, locations, boxes))
    several = np.broadcast_to(boxes[:, None], (*locations.shape[:2], boxes.shape[-1]))
    found = _plain(pointing.score(grid, scheme, locations, several))
    first = {name: values[:, 0] for name, values in found.items()}
    best = {f"{name}, best": values.max(axis=1) for name, values in found.items()}
    return first | best


def _plain(found: pointing.Scores) -> dict[str, np.ndarray]:
    return {
        "frequency": found.frequency.astype(float),
        "time": found.time.astype(float),
        "both": found.both.astype(float),
        "iou": found.iou,
    }
