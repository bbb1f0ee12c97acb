"""Why the transformed classifier does not give the network's logits.

Beside the invariance audit, which asks only when it fails. Everything between pooled
vectors and logits is done again in float64, where rounding and conditioning play no
part, so what is left of an error has a place: between pooling and the network's logits,
in U and its inverse, or in the products of the way through U.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

# A product of float32 factors errs by about 2^-24 of the root of its terms' squares,
# of TF32 ones by 2^-12, of bf16 ones by 2^-9; a wrong head by as much as there is.
FLOAT32, ROUNDED = 2.0**-18, 2.0**-5
CONDITION = 1e3  # of U, up to which float32 carries its way there and back
NORM_EPSILONS = (1e-6, 1e-5, 1e-12)  # of the networks that are about


class Path(NamedTuple):
    """From pooled vectors to logits, NumPy arrays.

    Attributes:
      matrix: U, `[chan, chan]`.
      inverse: U^-1.
      centre: mu, `[chan]`.
      weight: of the original head, `[classes, chan]`.
      bias: `[classes]`.
    """

    matrix: np.ndarray
    inverse: np.ndarray
    centre: np.ndarray
    weight: np.ndarray
    bias: np.ndarray


def find(path: Path, pooled: np.ndarray, logits: np.ndarray, after: np.ndarray) -> str:
    """The cause and the remedy in words.

    Args:
      path: U and the head.
      pooled: pooled feature maps, `[clip, chan]`.
      logits: the untouched network's own, `[clip, classes]`.
      after: those of the way through U, `[clip, classes]`.

    Returns:
      Sentences; empty where the arithmetic is as exact as float32 can be, so that the
      cause lies in the values: an ill-conditioned U, or logits that hardly differ.
    """
    named = {
        "the network's logits": logits,
        "the features": pooled,
        "the head": np.concatenate([path.weight.ravel(), path.bias.ravel()]),
        "U": np.concatenate([path.matrix.ravel(), path.inverse.ravel(), path.centre]),
    }
    if broken := [name for name, a in named.items() if not np.isfinite(a).all()]:
        return (
            f"NaN or infinity stands in {' and '.join(broken)}: look for silent or "
            "broken clips and for a checkpoint that did not load."
        )
    if not np.isfinite(after).all():
        return (
            "The way through U leaves the range of float32: features up to "
            f"{np.abs(pooled).max():.3g} and U up to {np.abs(path.matrix).max():.3g} "
            "are too large for it."
        )
    exact = Path(*(np.asarray(a, np.float64) for a in path))
    v, y, yhat = (np.asarray(a, np.float64) for a in (pooled, logits, after))
    condition = float(np.linalg.cond(exact.matrix))

    # What is added up: of the head alone, and on the way through U.
    wanted, size = _head(exact, v)
    moved = v - exact.centre
    weight = exact.weight @ exact.inverse
    through = moved @ exact.matrix.T
    terms = (moved**2 @ (exact.matrix**2).T + through**2) @ (weight**2).T
    terms += through**2 @ (exact.weight**2 @ exact.inverse**2).T
    terms = np.sqrt(terms)
    restored = through @ weight.T + exact.weight @ exact.centre + exact.bias
    errors = {
        "network": (wanted - y, size),
        "inverse": (restored - wanted, np.maximum(terms, size)),
        "products": (yhat - restored, np.maximum(terms, size)),
    }
    where = max(errors, key=lambda name: float(np.abs(errors[name][0]).max()))
    share = _share(*errors[where])
    if share <= FLOAT32:
        return ""
    match where:
        case "network":
            return _of_the_network(exact, v, y)
        case "inverse":
            return _of_the_inverse(path, condition)
    kind = _kind(*errors[where])
    return (
        f"Products on the way through U are rounded to about {kind}: keep "
        "the features, U, its inverse and the head in float32, and their products at "
        "jax.lax.Precision.HIGHEST."
    )


def _of_the_network(path: Path, v: np.ndarray, y: np.ndarray) -> str:
    for epsilon in NORM_EPSILONS:
        logits, size = _head(path, _norm(v, epsilon))
        if _share(logits - y, size) < ROUNDED / 16:
            return _unfolded("with a layer norm between, the head gives these logits")
    logits, size = _head(path, v)
    own = _share(logits - y, size)
    if len(v) > 2 * (v.shape[1] + 1):
        # Enough clips to tell whether any linear head gives these logits.
        linear, normed = (_unexplained(a, y) for a in (v, _norm(v, NORM_EPSILONS[0])))
        if linear > 1e-3 and normed < 0.1 * linear:
            return _unfolded("of normed vectors the logits are linear, of these not")
        if linear < 1e-3 and own > ROUNDED:
            return (
                "The head does not match: the logits are linear in these features, but "
                "with other weights. Take the head of the network that made them, with "
                "its classes in the same order."
            )
    if own <= ROUNDED:
        return (
            "The network's own logits differ from its head's of the pooled map by a "
            f"rounding to about {_kind(logits - y, size)}: make map and logits in "
            "float32, with products at jax.lax.Precision.HIGHEST."
        )
    return (
        "The head does not give the network's logits of the pooled map even without U: "
        "either a norm between pooling and head was not folded into the feature map "
        "(classifier.fold_layer_norm), or the head is another network's."
    )


def _of_the_inverse(path: Path, condition: float) -> str:
    if all(_is_bfloat16(a) for a in (path.matrix, path.inverse)):
        return (
            "U and its inverse were rounded to bfloat16, so that they do not undo one "
            "another: keep them in float32, or learn U again."
        )
    if condition > CONDITION:
        return ""
    return (
        "U and its inverse do not undo one another, although U is well conditioned "
        f"({condition:.3g}): they were rounded, or are of two fits. Take both from one "
        "call of disentangle.from_generator."
    )


def _unfolded(evidence: str) -> str:
    return (
        "A norm between pooling and head was not folded into the feature map "
        f"({evidence}): fold it with classifier.fold_layer_norm."
    )


def _head(path: Path, v: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Logits of pooled vectors, and the root of the squares of what they add up."""
    size = np.sqrt(v**2 @ (path.weight**2).T + path.bias**2)
    return v @ path.weight.T + path.bias, size


def _share(error: np.ndarray, size: np.ndarray) -> float:
    """The largest error as a share of what was added up."""
    return float((np.abs(error) / np.maximum(size, 1e-30)).max())


def _norm(v: np.ndarray, epsilon: float) -> np.ndarray:
    variance = v.var(axis=1, keepdims=True)
    return (v - v.mean(axis=1, keepdims=True)) / np.sqrt(variance + epsilon)


def _unexplained(v: np.ndarray, y: np.ndarray) -> float:
    """What the best linear head leaves of the logits' spread."""
    full = np.concatenate([v, np.ones((len(v), 1))], axis=1)
    left = y - full @ np.linalg.lstsq(full, y, rcond=None)[0]
    return float(np.sqrt((left**2).mean() / max(y.var(axis=0).mean(), 1e-30)))


def _is_bfloat16(array: np.ndarray) -> bool:
    """Whether every number has the last sixteen bits of a float32 empty."""
    bits = np.ascontiguousarray(array, np.float32).view(np.uint32)
    return not (bits & 0xFFFF).any()


def _kind(error: np.ndarray, size: np.ndarray) -> str:
    """The type that rounds by so much, on the average."""
    share = float(np.sqrt(np.mean((error / np.maximum(size, 1e-30)) ** 2)))
    name = "bfloat16" if share > 2.0**-11 else "TF32"
    return f"{name}'s precision (2^{math.log2(share):.0f} of the terms)"
