"""What training minimises, where a clip has one class and where it has several.

Before `train`: in come clips and logits, out come targets and the loss. One class a
clip is learned by cross entropy; where a clip can have several classes or none, each
class is learned for itself. AudioProtoPNet has losses of its own.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
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
      target: from `targets`: one 1 a row for "softmax", or a distribution; any number
        for "sigmoid".
      valid: which examples count.
      activation: "sigmoid" for the mean over classes of binary cross entropies.
    """
    if activation == "softmax":
        losses = optax.softmax_cross_entropy(logits, target)
    else:
        losses = optax.sigmoid_binary_cross_entropy(logits, target).mean(axis=1)
    return jnp.sum(jnp.where(valid, losses, 0.0)) / jnp.maximum(1, jnp.sum(valid))


def asymmetric(
    logits: Float[Array, "batch classes"],
    target: Float[Array, "batch classes"],
    valid: Bool[Array, " batch"],
) -> Float[Array, ""]:
    """AudioProtoPNet's loss: what a class is not hardly counts once that is clear.

      -(y (1 - p) log p + (1 - y) (1 - q)^4 log q),  q = min(1 - p + 0.05, 1),

    `p` the class's probability under sigmoid; the mean over the valid examples and the
    classes, 0 without examples. Ridnik et al., "Asymmetric loss", 2021, with gamma 1
    and 4 and margin 0.05.

    Args:
      logits: the network's.
      target: from `targets`.
      valid: which examples count.
    """
    probability = jax.nn.sigmoid(logits)
    absence = jnp.minimum(1 - probability + 0.05, 1)
    present = (1 - probability) * jnp.log(jnp.maximum(probability, 1e-8))
    absent = (1 - absence) ** 4 * jnp.log(jnp.maximum(absence, 1e-8))
    losses = -jnp.mean(target * present + (1 - target) * absent, axis=1)
    return jnp.sum(jnp.where(valid, losses, 0.0)) / jnp.maximum(1, jnp.sum(valid))


def orthogonality(
    prototypes: Float[Array, "classes prototypes chan"], *, epsilon: float
) -> Float[Array, ""]:
    """How far the prototypes of a class are from pointing different ways.

      |G - I| / (classes * prototypes^2),

    `G` the Gram matrices of the normalised prototypes, class by class, and the norm
    that of all their entries together.

    Args:
      prototypes: of every class.
      epsilon: added to the squared length and to the length of each.
    """
    squares = jnp.sum(prototypes**2, axis=-1, keepdims=True)
    unit = prototypes / (jnp.sqrt(squares + epsilon) + epsilon)
    gram = jnp.einsum("cid,cjd->cij", unit, unit, precision=jax.lax.Precision.HIGHEST)
    # Where nothing is off the norm would have no gradient.
    off = jnp.sum((gram - jnp.eye(gram.shape[-1])[None]) ** 2)
    return jnp.sqrt(off + jnp.finfo(off.dtype).tiny) / gram.size
