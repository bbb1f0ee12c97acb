"""Grad-CAM and LIME of the same classifier, to set beside APEX.

In comes a clip, out comes an `explanation.Explanation` with one channel, which has no
index and no prototypes: its heatmap, and the region of a scheme at the heat's maximum.
The region is found by the code that finds APEX's, so only the heat differs.
"""

from __future__ import annotations

import functools
import importlib.metadata
from typing import get_args

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from apex_jax import classifier as classifier_lib
from apex_jax import explainer as explainer_lib
from apex_jax import explanation, look, occlusion, schemes, settings, superpixels


def grad_cam(
    explainer: explainer_lib.Explainer,
    sound: look.Sound,
    *,
    sample_rate: int | None = None,
    offset_s: float = 0.0,
    target: str | int | np.integer | None = None,
    scheme: schemes.Scheme | None = None,
) -> explanation.Explanation:
    """Grad-CAM of an explainer's classifier, on its last feature map.

    The channel's `contribution` is what the cells that speak for the class add to its
    logit. `contributions` are the network's own channels', `[chan]`, signed; with the
    bias they sum to the logit. Where no cell speaks for the class the heatmap is zero
    and has no region.

    Args:
      explainer: for its classifier and front end; its transform plays no part.
      sound: a file, a waveform or a spectrogram, as `Explainer.__call__` takes them.
      sample_rate: of a waveform, Hz.
      offset_s: where in the sound the clip starts.
      target: name or index of the class to explain; None for the predicted one.
      scheme: where the region lies; None for the explainer's.

    Raises:
      AudioError: the sound cannot be used.
      ValueError: no such class or scheme.
    """
    seen = explainer.look(sound, sample_rate=sample_rate, offset_s=offset_s)
    wanted = _target(explainer, seen, target)
    cells, contributions = _grad_cam_cells(
        explainer.classifier.head, seen.views.cells, wanted
    )
    heat = explainer.grid().upsample(_over_maximum(cells))
    return _explanation(
        explainer,
        seen,
        wanted,
        scheme,
        method="grad-cam",
        heat=heat,
        cells=cells,
        contribution=float(jnp.sum(cells)),
        contributions=np.asarray(contributions),
    )


def lime(
    explainer: explainer_lib.Explainer,
    sound: look.Sound,
    *,
    sample_rate: int | None = None,
    offset_s: float = 0.0,
    target: str | int | np.integer | None = None,
    scheme: schemes.Scheme | None = None,
    seed: int = 0,
    num_samples: int = 1000,
    num_segments: int = 50,
    instead: settings.Instead = "silence",
) -> explanation.Explanation:
    """LIME of an explainer's classifier, on superpixels of the spectrogram.

    The heatmap shows the superpixels that speak for the class; the region is where
    its mean over a cell, column or row is largest. `contributions` are all
    superpixels', `[segment]`, signed and in units of probability, where APEX's are in
    units of the logit; the channel's `contribution` is the sum of the positive ones.

    Args:
      explainer: for its classifier and front end; its transform plays no part.
      sound: a file, a waveform or a spectrogram, as `Explainer.__call__` takes them.
      sample_rate: of a waveform, Hz.
      offset_s: where in the sound the clip starts.
      target: name or index of the class to explain; None for the predicted one.
      scheme: where the region lies; None for the explainer's.
      seed: of the samples; the same seed gives the same explanation.
      num_samples: copies of the clip with some superpixels left out, which the
        classifier is asked about.
      num_segments: superpixels, about.
      instead: what is heard in the place of those, silence or what is usual in the
        clip (`occlusion.usual`).

    Raises:
      AudioError: the sound cannot be used.
      ImportError: lime or scikit-image is not installed.
      ValueError: no such class, scheme or `instead`, or a number out of range.
    """
    if instead not in get_args(settings.Instead):
        known = ", ".join(get_args(settings.Instead))
        raise ValueError(f"instead must be one of {known}; got {instead!r}")
    seen = explainer.look(sound, sample_rate=sample_rate, offset_s=offset_s)
    wanted = _target(explainer, seen, target)
    # `look` refuses an explainer that cannot be given sound.
    assert explainer.front_end is not None
    assert seen.spectrogram is not None
    usual = None
    if instead == "usual":
        usual = np.asarray(occlusion.usual(seen.spectrogram))
    segments, weights = superpixels.lime(
        explainer.classifier,
        explainer.front_end,
        seen.spectrogram,
        wanted,
        seed=seed,
        num_samples=num_samples,
        num_segments=num_segments,
        instead=usual,
        chunk_size=explainer.chunk_size,
    )
    positive = np.maximum(weights, 0)
    heat = _over_maximum(jnp.asarray(positive[segments], jnp.float32))
    asked = {
        "LIME seed": seed,
        "LIME samples": num_samples,
        "LIME superpixels": len(weights),
        "LIME instead of a superpixel": instead,
    }
    return _explanation(
        explainer,
        seen,
        wanted,
        scheme,
        method="lime",
        heat=heat,
        cells=cell_means(heat, explainer.grid()),
        contribution=float(positive.sum()),
        contributions=weights.astype(np.float32),
        provenance=explanation.Provenance(
            settings=tuple((name, str(value)) for name, value in asked.items()),
            versions=tuple(
                (name, importlib.metadata.version(name))
                for name in ("lime", "scikit-image")
            ),
        ),
    )


def _over_maximum(heat: jax.Array) -> jax.Array:
    """In [0, 1]; zeros stay zeros."""
    largest = jnp.max(heat)
    return heat / jnp.where(largest > 0, largest, 1.0)


def _target(
    explainer: explainer_lib.Explainer,
    seen: look.Look,
    target: str | int | np.integer | None,
) -> int:
    if target is None:
        return int(np.argmax(seen.logits))
    return explainer.class_index(target)


def _explanation(
    explainer: explainer_lib.Explainer,
    seen: look.Look,
    target: int,
    scheme: schemes.Scheme | None,
    *,
    method: explanation.Method,
    heat: Float[Array, "freq time"],
    cells: Float[Array, "map_freq map_time"],
    contribution: float,
    contributions: np.ndarray,
    provenance: explanation.Provenance = explanation.Provenance(),
) -> explanation.Explanation:
    """One channel: the heat, and the region where it is largest."""
    scheme = explainer.scheme if scheme is None else schemes.parse(scheme)
    found_any = bool(jnp.max(heat) > 0)
    location = (schemes.ALL, schemes.ALL)
    areas: tuple[explanation.Area, ...] = ()
    if found_any:
        views = schemes.views(cells[:, :, None], keep_cells=True)
        found = np.asarray(schemes.locate(scheme, views, jnp.ones(1)))
        location = (int(found[0]), int(found[1]))
        areas = explanation.areas(explainer.grid(), scheme, found, explainer.front_end)
    return explanation.Explanation(
        source=seen.source,
        offset_s=seen.offset_s,
        sound_s=seen.sound_s,
        waveform=seen.waveform,
        sample_rate=seen.sample_rate,
        class_names=explainer.classifier.class_names,
        activation=explainer.classifier.activation,
        logits=seen.logits,
        predicted=int(np.argmax(seen.logits)),
        target=target,
        method=method,
        scheme=scheme,
        front_end=explainer.front_end,
        spectrogram=seen.spectrogram,
        channels=(
            explanation.Channel(
                index=None,
                contribution=contribution,
                location=location,
                areas=areas,
                heatmap=np.asarray(heat),
            ),
        ),
        contributions=contributions,
        evidence_share=float(found_any),
        provenance=provenance,
    )


def grad_cam_cells(
    head: classifier_lib.LinearHead,
    feature_map: Float[Array, "freq time chan"],
    target: Int[Array, ""],
) -> tuple[Float[Array, "freq time"], Float[Array, " chan"]]:
    """The class activation map by gradients, on the cells. Unbatched.

    `relu(sum over k of alpha_k Z_k)`, `alpha_k` the mean over cells of the logit's
    gradient (Selvaraju et al., 2017). Behind mean pooling and a linear head the
    gradient is `W[c, k] / (F T)` everywhere, and this is CAM (Zhou et al., 2016) to
    scale. The map is the one in which a norm after pooling is folded: what the norm
    does is in the map, not in the gradient.

    Args:
      head: the linear layer after pooling.
      feature_map: Z.
      target: the class c.

    Returns:
      The cells' evidence in units of the logit, not normalised; and what each channel
      adds to the logit, `alpha_k * (sum of Z_k)`, which sums to it but for the bias.
    """

    def logit(feature_map):
        return head(classifier_lib.pool(feature_map))[target]

    gradient = jax.grad(logit)(feature_map.astype(jnp.float32))
    weights = jnp.mean(gradient, axis=(0, 1))
    cells = jnp.matmul(feature_map, weights, precision=jax.lax.Precision.HIGHEST)
    return jax.nn.relu(cells), weights * jnp.sum(feature_map, axis=(0, 1))


_grad_cam_cells = jax.jit(grad_cam_cells)


def cell_means(
    heat: Float[Array, "freq time"], grid: schemes.Grid
) -> Float[Array, "map_freq map_time"]:
    """The mean of a heatmap's pixels in each cell, `[F, T]`. Unbatched.

    A pixel belongs to the cell in whose hard region its centre lies.
    """

    def members(scheme: schemes.Scheme, axis: int) -> jax.Array:
        index = jnp.arange(grid.map_shape[axis])
        location = jnp.stack([index, index], axis=1)
        mask = jax.vmap(functools.partial(grid.mask, scheme))(location)
        along = mask[:, :, 0] if axis == 0 else mask[:, 0, :]
        return along / jnp.maximum(jnp.sum(along, axis=1, keepdims=True), 1)

    rows, columns = members("frequency", 0), members("time", 1)
    return jnp.einsum("fr,rt,ct->fc", rows, heat, columns, precision="highest")
