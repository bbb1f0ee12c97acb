"""Features of a network whose products are rounded: what that did to its answers.

`models.convnext.with_matmul_dtype` rounds; here the same clips go through the network
as it is, and the answers are compared. Whatever has to hold exactly, the audit above
all, is then checked on the exact ones.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
from jaxtyping import Array, Float

from apex_jax import audio, cache, inference
from apex_jax import classifier as classifier_lib

NUM_CLIPS = 256


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rounding:
    """How far logits moved.

    Attributes:
      num_clips: clips compared.
      max_abs_logit_difference: largest difference of a logit.
      logit_spread: standard deviation of the exact logits within a class over clips,
        root mean square over classes: what to hold the difference against.
      changed_predictions: clips whose most likely class changed; where a clip can have
        several classes, clips of which a class came or went.
    """

    num_clips: int
    max_abs_logit_difference: float
    logit_spread: float
    changed_predictions: int


def compare(
    exact: Float[Array | np.ndarray, "clip classes"],
    rounded: Float[Array | np.ndarray, "clip classes"],
    activation: classifier_lib.Activation,
) -> Rounding:
    """Two logits of each clip, `[clip, classes]`.

    Raises:
      ValueError: they are not of the same clips, of none, or not finite.
    """
    exact, rounded = np.asarray(exact, np.float64), np.asarray(rounded, np.float64)
    if exact.shape != rounded.shape or exact.ndim != 2 or not exact.size:
        raise ValueError(
            "exact and rounded must be [clip, classes] of the same clips; got "
            f"{exact.shape} and {rounded.shape}"
        )
    for name, logits in (("exact", exact), ("rounded", rounded)):
        if not np.isfinite(logits).all():
            raise ValueError(f"{name} logits must be finite; got NaN or infinity")
    before, after = (
        classifier_lib.decisions(logits, activation) for logits in (exact, rounded)
    )
    return Rounding(
        num_clips=len(exact),
        max_abs_logit_difference=float(np.abs(rounded - exact).max()),
        logit_spread=float(np.sqrt(np.var(exact, axis=0).mean())),
        changed_predictions=int((before != after).any(axis=1).sum()),
    )


def measure(
    classifier: classifier_lib.Classifier,
    cached: cache.Cached,
    front_end: audio.FrontEnd,
    **options: Any,
) -> tuple[Rounding, np.ndarray, np.ndarray]:
    """Runs the exact network on up to `NUM_CLIPS` of the clips, evenly spread.

    Args:
      classifier: the network as it is.
      cached: features of the rounded one.
      front_end: settings of the spectrogram.
      **options: of `inference.predict`.

    Returns:
      The comparison, and the exact pooled vectors `[n, chan]` and logits
      `[n, classes]`.
    """
    step = -(-len(cached.clips) // NUM_CLIPS)
    positions, pooled, logits = inference.predict(
        classifier, cached.clips[::step], front_end, **options
    )
    rounded = np.asarray(cached.features.logits)[positions * step]
    return compare(logits, rounded, classifier.activation), pooled, logits


def in_words(found: Rounding) -> str:
    """A line of a report."""
    return (
        f"logits moved by up to {found.max_abs_logit_difference:.2g} (from clip to "
        f"clip they vary by {found.logit_spread:.2g}), {found.changed_predictions} of "
        f"{found.num_clips} predictions changed: while learning, not in explanations"
    )
