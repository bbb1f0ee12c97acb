"""The classifier to be explained: a feature map, pooled, then one linear layer.

First step of the method (method of APEX, section "the classifier"): whatever the
network, the rest of the package sees a `Classifier`. In comes a spectrogram, out go
its feature map and the network's own logits; `LinearHead` is the only layer between
the pooled map and the logits.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

# How logits become probabilities: one class a clip, or each class for itself.
Activation = Literal["softmax", "sigmoid"]

# (params, spectrogram [batch, freq, time])
#   -> (feature map [batch, F, T, chan], the network's own logits [batch, classes])
ForwardFn = Callable[[Any, jax.Array], tuple[jax.Array, jax.Array]]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class LinearHead:
    """The linear layer after pooling, `y = W v + b`.

    Attributes:
      weight: `[classes, chan]`.
      bias: `[classes]`.
    """

    weight: jax.Array | np.ndarray
    bias: jax.Array | np.ndarray

    def __call__(self, pooled: Float[Array | np.ndarray, "*batch chan"]) -> jax.Array:
        """Logits `[*batch, classes]`, float32 at the highest matmul precision."""
        product = jnp.matmul(pooled, self.weight.T, precision=jax.lax.Precision.HIGHEST)
        return product + self.bias.reshape((1,) * (product.ndim - 1) + (-1,))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Network:
    """A network that can be run on spectrograms, of whatever shape inside.

    Attributes:
      params: what `forward_fn` needs, any pytree of arrays.
      forward_fn: `(params, spectrogram [batch, freq, time])` to
        `(map [batch, F, T, chan], logits [batch, classes])`.
    """

    params: Any
    forward_fn: ForwardFn = dataclasses.field(metadata={"static": True})

    def __call__(
        self, spectrogram: Float[Array, "batch freq time"]
    ) -> tuple[jax.Array, jax.Array]:
        """Feature map `[batch, F, T, chan]` and own logits `[batch, classes]`."""
        return self.forward_fn(self.params, spectrogram)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Classifier(Network):
    """A network seen as a feature map and a linear head.

    The contract, for every spectrogram: `head(mean over F, T of the map)` equals
    the logits. `forward_fn` gives the logits the way the untouched network computes
    them, not through `head`, so the contract can be checked and a norm that was not
    folded is found out.

    Attributes:
      head: the linear layer after pooling.
      class_names: one name a class, in the order of the logits.
      stride: spectrogram rows and frames a cell covers. None: the map's cells
        divide the spectrogram evenly.
      activation: "softmax" for one class a clip, "sigmoid" where a clip can have
        several (multi-label) or none.
    """

    head: LinearHead
    class_names: tuple[str, ...] = dataclasses.field(metadata={"static": True})
    stride: tuple[int, int] | None = dataclasses.field(
        default=None, metadata={"static": True}
    )
    activation: Activation = dataclasses.field(
        default="softmax", metadata={"static": True}
    )


def decisions(logits: np.ndarray, activation: Activation) -> np.ndarray:
    """What is decided of each clip, `[clip, decisions]`.

    The most likely class; each class's sign where a clip can have several classes, or
    where there is a single logit.
    """
    if activation == "sigmoid" or logits.shape[1] == 1:
        return logits > 0
    return np.argmax(logits, axis=1)[:, None]


def of_maps(
    head: LinearHead,
    class_names: Sequence[str],
    *,
    activation: Activation = "softmax",
    stride: tuple[int, int] | None = None,
) -> Classifier:
    """A classifier of another framework, known by its feature maps and its head.

    Args:
      head: its linear layer after pooling.
      class_names: one name a class, in the order of the logits.
      activation: how its logits become probabilities.
      stride: spectrogram rows and frames a cell covers; None for an even division.

    Raises:
      ValueError: not one name a class.
    """
    if len(class_names) != len(head.weight):
        raise ValueError(
            f"class_names needs one name for each of {len(head.weight)} classes; got "
            f"{len(class_names)}"
        )
    return Classifier(
        params=None,
        head=head,
        forward_fn=_elsewhere,
        class_names=tuple(class_names),
        stride=stride,
        activation=activation,
    )


def _elsewhere(params: None, spectrogram: jax.Array) -> tuple[jax.Array, jax.Array]:
    raise ValueError(
        "this classifier is known by feature maps that were computed elsewhere and "
        "cannot be run here; explain clips by their maps (`from_map`)"
    )


def probabilities(
    logits: Float[Array | np.ndarray, "*batch classes"], activation: Activation
) -> Float[np.ndarray, "*batch classes"]:
    """Probabilities of the classes, float64 on the host; softmax rows sum to 1.

    Raises:
      ValueError: there is no such activation.
    """
    values = np.asarray(logits, np.float64)
    match activation:
        case "softmax":
            powers = np.exp(values - values.max(axis=-1, keepdims=True))
            return powers / powers.sum(axis=-1, keepdims=True)
        case "sigmoid":
            return 0.5 * (1 + np.tanh(0.5 * values))  # cannot overflow
    raise ValueError(f"activation must be softmax or sigmoid; got {activation!r}")


def found(
    logits: Float[Array | np.ndarray, " classes"], activation: Activation
) -> tuple[int, ...]:
    """The classes that a classifier finds in a clip, most likely first.

    The most likely one under softmax; under sigmoid each with a probability above one
    half, which can be none.
    """
    order = np.argsort(-np.asarray(logits), kind="stable").tolist()
    if activation == "softmax":
        return (order[0],)
    return tuple(c for c in order if logits[c] > 0)


def pool(feature_map: Float[Array | np.ndarray, "*batch freq time chan"]) -> jax.Array:
    """Global average pooling, `[*batch, chan]`: the mean over rows and columns.

    In float32 whatever the map's dtype: the pooled vector is on the invariance path.
    """
    return jnp.mean(feature_map, axis=(-3, -2), dtype=jnp.float32)


def fold_layer_norm(
    feature_map: Float[Array | np.ndarray, "*batch freq time chan"],
    scale: Float[Array | np.ndarray, " chan"],
    bias: Float[Array | np.ndarray, " chan"],
    *,
    epsilon: float,
) -> Float[Array, "*batch freq time chan"]:
    """Moves a LayerNorm after pooling in front of it.

    The norm's mean and variance are two scalars a clip, taken over the channels of
    the pooled vector `v`; applied to every position,

      Z'[f, t] = scale * (Z[f, t] - mean(v)) / sqrt(var(v) + epsilon) + bias,

    so that `mean(Z') = LayerNorm(v)` and the head is linear after pooling.

    Args:
      feature_map: `[*batch, F, T, chan]` before pooling.
      scale: the norm's weight, `[chan]`.
      bias: the norm's bias, `[chan]`.
      epsilon: the norm's own epsilon; ConvNeXt's last norm often differs from the
        others.

    Returns:
      The folded map, same shape.
    """
    pooled = pool(feature_map)
    mean = jnp.mean(pooled, axis=-1)[..., None, None, None]
    variance = jnp.var(pooled, axis=-1)[..., None, None, None]
    scale, bias = (
        jnp.reshape(p, (1,) * (feature_map.ndim - 1) + (-1,)) for p in (scale, bias)
    )
    return scale * (feature_map - mean) / jnp.sqrt(variance + epsilon) + bias
