"""Does a channel stand for one thing? How alike its prototypes are.

In come a bank and the features of its clips; out come, for each channel, how often two
of its prototypes share a class, and how alike their patterns in time and over
frequency are. Purity says that a channel stands alone; this says whether it stands for
something.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from apex_jax import bank as bank_lib
from apex_jax import data, disentangle, schemes


@dataclasses.dataclass(frozen=True, kw_only=True)
class Consistency:
    """How alike the prototypes of each channel are, `[chan]` each.

    NaN where a channel has fewer than two prototypes.

    Attributes:
      same_class: share of the pairs of prototypes whose clips have a class in common.
      time: mean correlation over the pairs of the channel's profile over time, each
        shifted so that its maximum is in the middle: a pattern, wherever it happens.
      frequency: mean correlation of the channel's profile over frequency, unshifted: a
        band.
      chance: share of pairs of clips of the whole set that have a class in common.
    """

    same_class: np.ndarray
    time: np.ndarray
    frequency: np.ndarray
    chance: float


def measure(
    transform: disentangle.Transform,
    bank: bank_lib.Bank,
    views: schemes.Views,
    clips: Sequence[data.Clip],
) -> Consistency:
    """The consistency of every channel of a bank.

    Args:
      transform: that the bank was built with; the identity for the raw one.
      bank: of prototypes, positions of `clips`.
      views: rows and columns of the clips' maps, `[clip, ...]`.
      clips: with their classes; at least two.

    Raises:
      ValueError: not one map a clip, or fewer than two clips.
    """
    if len(views.rows) < len(clips) or len(clips) < 2:
        raise ValueError(
            "views and clips must be of the same clips, at least 2; got "
            f"{len(views.rows)} and {len(clips)}"
        )
    classes = _indicators(clips)
    return Consistency(
        same_class=_same_class(classes, np.asarray(bank.clip)),
        time=np.asarray(
            _profiles_agree(
                transform, jnp.asarray(views.columns), jnp.asarray(bank.clip), True
            )
        ),
        frequency=np.asarray(
            _profiles_agree(
                transform, jnp.asarray(views.rows), jnp.asarray(bank.clip), False
            )
        ),
        chance=_pairs_share(classes),
    )


def _indicators(clips: Sequence[data.Clip]) -> np.ndarray:
    """1 where a clip has a class, `[clip, classes]`."""
    found = np.zeros((len(clips), 1 + max(max(c.labels, default=0) for c in clips)))
    for row, clip in zip(found, clips, strict=True):
        row[list(clip.labels)] = 1
    return found


def _pairs_share(classes: Float[np.ndarray, "clip classes"]) -> float:
    """Share of the pairs of different clips with a class in common."""
    groups, counts = np.unique(classes, axis=0, return_counts=True)
    alike = (groups @ groups.T) > 0
    pairs = counts[:, None] * counts[None] - np.diag(counts)
    return float((pairs * alike).sum() / pairs.sum())


def _same_class(
    classes: Float[np.ndarray, "clip classes"], prototypes: np.ndarray
) -> np.ndarray:
    top = prototypes.shape[1]
    if top < 2:
        return np.full(len(prototypes), np.nan)
    of = classes[prototypes]  # [chan, top, classes]
    alike = np.einsum("kic,kjc->kij", of, of) > 0
    first, second = np.triu_indices(top, 1)
    return alike[:, first, second].mean(axis=1)


@functools.partial(jax.jit, static_argnames=("centred",))
def _profiles_agree(
    transform: disentangle.Transform,
    profiles: Float[Array, "clip position chan"],
    prototypes: Float[Array, "chan top"] | jax.Array,
    centred: bool,
) -> Float[Array, " chan"]:
    """Mean correlation of pairs of profiles `U[k] z` over positions."""
    top, positions = prototypes.shape[1], profiles.shape[1]
    if top < 2:
        return jnp.full(len(prototypes), jnp.nan)

    def of_channel(channel):
        row, which = channel
        lines = jnp.matmul(profiles[which], row, precision="highest")
        if centred:
            shift = positions // 2 - jnp.argmax(lines, axis=1)
            lines = jax.vmap(jnp.roll)(lines, shift)
        lines = lines - jnp.mean(lines, axis=1, keepdims=True)
        length = jnp.linalg.norm(lines, axis=1, keepdims=True)
        # A flat profile is like no other.
        unit = jnp.where(length > 0, lines / jnp.where(length > 0, length, 1), 0)
        alike = jnp.matmul(unit, unit.T, precision="highest")
        first, second = np.triu_indices(top, 1)
        return jnp.mean(alike[first, second])

    return jax.lax.map(of_channel, (transform.matrix, prototypes))
