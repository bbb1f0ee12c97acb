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


def by_chance(
    bank: bank_lib.Bank,
    clips: Sequence[data.Clip],
    *,
    same_class: bool,
    seed: int = 0,
) -> bank_lib.Bank:
    """The bank with random clips in the place of its prototypes.

    What `measure` says of it is the level to beat: how alike any clips look under the
    same transform, or any clips of the same classes. The clips of a channel are
    different ones, as its prototypes are, wherever there are enough to draw from. A
    random clip shows the same profiles as a prototype would, the channel's along each
    axis; activation, location and purity, of which `measure` takes nothing, stay those
    of the prototypes.

    Args:
      bank: of prototypes, positions of `clips`.
      clips: with their classes.
      same_class: draw each among the clips that have a class in common with the
        prototype in whose place it stands, itself among them (of a clip without
        classes: among those without); else among all.
      seed: of the draws.
    """
    prototypes = np.asarray(bank.clip)
    top, rng = prototypes.shape[1], np.random.default_rng(seed)
    groups, group = np.zeros((1, 1)), np.zeros(len(clips), int)
    if same_class:
        groups, group = np.unique(_indicators(clips), axis=0, return_inverse=True)
        group = group.reshape(-1)
    # A group is like itself, even where it has no class.
    alike = (groups @ groups.T > 0) | np.eye(len(groups), dtype=bool)
    among = [np.flatnonzero(row[group]) for row in alike]
    drawn = np.empty_like(prototypes)
    for line, own in zip(drawn, prototypes, strict=True):
        taken: list[int] = []
        for of in group[own]:
            # One of as many as a channel has is still free, if any is.
            size = min(top, len(among[of]))
            few = among[of][rng.choice(len(among[of]), size=size, replace=False)]
            taken.append(next((i for i in few if i not in taken), few[0]))
        line[:] = taken
    return dataclasses.replace(bank, clip=drawn)


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
