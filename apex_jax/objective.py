"""What training minimises, where a clip has one class and where it has several.

Before `train`: in come clips and logits, out come targets and the loss. One class a
clip is learned by cross entropy; where a clip can have several classes or none, each
class is learned for itself.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float

from apex_jax import classifier as classifier_lib
from apex_jax import data


def check_labels(
    clips: Sequence[data.Clip],
    num_classes: int,
    activation: classifier_lib.Activation,
) -> None:
    """Raises ValueError for a clip whose labels the activation cannot have."""
    for clip in clips:
        if activation == "softmax" and len(clip.labels) != 1:
            raise ValueError(
                f"{clip.id} has {len(clip.labels)} classes; with activation 'softmax' "
                "each clip has one, 'sigmoid' takes any number"
            )
        if not all(0 <= label < num_classes for label in clip.labels):
            raise ValueError(
                f"{clip.id} has label {clip.label}; labels count from 0 to "
                f"{num_classes - 1}, one for each of the class_names"
            )


def targets(clips: Sequence[data.Clip], num_classes: int) -> np.ndarray:
    """1 where a clip has a class, `[clip, classes]`, float32."""
    target = np.zeros((len(clips), num_classes), np.float32)
    for row, clip in zip(target, clips, strict=True):
        row[list(clip.labels)] = 1
    return target


def cross_entropy(
    logits: Float[Array, "batch classes"],
    target: Float[Array, "batch classes"],
    valid: Bool[Array, " batch"],
    activation: classifier_lib.Activation = "softmax",
) -> Float[Array, ""]:
    """Mean over the valid examples, 0 where there are none.

    Args:
      logits: the network's.
      target: from `targets`: one 1 a row for "softmax", any number for "sigmoid".
      valid: which examples count.
      activation: "sigmoid" for the mean over classes of binary cross entropies.
    """
    if activation == "softmax":
        losses = optax.softmax_cross_entropy_with_integer_labels(
            logits, jnp.argmax(target, axis=1)
        )
    else:
        losses = optax.sigmoid_binary_cross_entropy(logits, target).mean(axis=1)
    return jnp.sum(jnp.where(valid, losses, 0.0)) / jnp.maximum(1, jnp.sum(valid))
