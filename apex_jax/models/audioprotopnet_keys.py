"""Which array of a published AudioProtoPNet is which of ours.

Beside `convnext_keys`, which knows the network below. The published checkpoints are in
the format of transformers: a ConvNeXt without classifier, and beside it

    head.prototype_vectors   [classes * prototypes, chan, 1, 1], class by class
    head.last_layer.weight   [classes, prototypes]
    head.last_layer.bias     [classes]
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import numpy as np

from apex_jax.models import audioprotopnet, convnext, convnext_keys

_PROTOTYPES = re.compile(r"(?:^|.*\.)prototype_vectors$")
_BACKBONE = re.compile(r"^(.*?)(?:embeddings|encoder)\.")
_HEAD = ("prototype_vectors", "last_layer.weight", "last_layer.bias")


def recognised(state: Mapping[str, np.ndarray]) -> bool:
    """Whether these are the arrays of an AudioProtoPNet."""
    return any(map(_PROTOTYPES.match, state))


def from_state_dict(
    state: Mapping[str, np.ndarray], *, head_norm_epsilon: float | None = None
) -> audioprotopnet.AudioProtoPNet:
    """A network from torch's arrays.

    Args:
      state: NumPy arrays by torch's keys, under any prefixes.
      head_norm_epsilon: of the norm after pooling, which is not used.

    Raises:
      ValueError: no AudioProtoPNet, one with parts that none of the published has, or
        an array is missing, left over, of another shape or not finite.
    """
    key = next(filter(_PROTOTYPES.match, state), None)
    if key is None:
        raise ValueError(
            "no AudioProtoPNet has these keys, none ends in prototype_vectors: "
            f"{', '.join(sorted(state)[:5])}"
        )
    prefix = key.removesuffix("prototype_vectors")
    # Under a prefix of its own all belongs to the head. A bare prefix, or one of the
    # whole network, is that of the backbone too: then the head are its arrays by name.
    shared = any(k.startswith(prefix) for k in state if _BACKBONE.match(k))
    own = {prefix + name for name in _HEAD}
    own = {k for k in state if (k in own if shared else k.startswith(prefix))}
    head = {k.removeprefix(prefix): state[k] for k in own}
    rest = {k: a for k, a in state.items() if k not in own}
    prototypes, weight, bias = _parts(head)
    backbone, _ = convnext_keys.from_state_dict(
        _as_transformers(rest), head_norm_epsilon=head_norm_epsilon, headless=True
    )
    classes, each = weight.shape
    config = audioprotopnet.AudioProtoPNetConfig(
        backbone=backbone.config, num_classes=classes, num_prototypes=each
    )
    arrays = {f"backbone.{k}": a for k, a in convnext.named_arrays(backbone).items()}
    arrays["head.prototypes"] = prototypes.reshape(classes, each, -1)
    arrays["head.weight"], arrays["head.bias"] = weight, bias
    return audioprotopnet.from_named_arrays(config, arrays)


def _parts(head: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    """The three arrays of the head, checked against one another."""
    if set(head) != set(_HEAD):
        odd = sorted(set(head) ^ set(_HEAD))
        raise ValueError(
            f"the head of an AudioProtoPNet is {', '.join(_HEAD)}; missing or left "
            f"over: {', '.join(odd)}"
        )
    prototypes, weight, bias = (np.asarray(head[name], np.float32) for name in _HEAD)
    fits = (
        prototypes.ndim == 4
        and prototypes.shape[2:] == (1, 1)
        and weight.ndim == 2
        and prototypes.shape[0] == weight.size
        and bias.shape == weight.shape[:1]
    )
    if not fits:
        shapes = ", ".join(f"{name} {head[name].shape}" for name in _HEAD)
        raise ValueError(
            "the head's shapes do not fit; expected [classes * prototypes, chan, 1, "
            f"1], [classes, prototypes] and [classes], got {shapes}"
        )
    if not all(np.isfinite(a).all() for a in (prototypes, weight, bias)):
        raise ValueError("the head holds numbers that are not finite")
    return [prototypes, weight, bias]


def _as_transformers(state: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The keys as a whole ConvNeXt classifier of transformers has them."""
    prefixes = {m[1] for m in map(_BACKBONE.match, state) if m}
    if len(prefixes) != 1:
        raise ValueError(
            "an AudioProtoPNet's keys beside its head are those of one ConvNeXt of "
            f"transformers; got {', '.join(sorted(state)[:5])}"
        )
    (prefix,) = prefixes
    return {
        f"convnext.{key.removeprefix(prefix)}" if key.startswith(prefix) else key: array
        for key, array in state.items()
    }
