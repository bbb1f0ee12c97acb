"""Ways to learn U that the experiment compares, by name; known without JAX."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

from apex_jax import settings

Name = Literal[
    "paper",
    "few-prototypes",
    "centred",
    "whitened",
    "orthogonal",
    "concentrated",
    "concentrated-few",
    "concentrated-whitened",
]

# The network's own, in the place of those under a U.
RAW = "raw channels"

_FEW = {"prototypes_start": 5, "epochs": 120}
_CONCENTRATED = {"concentration": 0.03}
_WHITENED = {"precondition": "whiten", "precondition_eps": 0.1}
# What differs from the paper's settings.
CHANGES: dict[Name, dict[str, Any]] = {
    "paper": {},
    "few-prototypes": _FEW,
    "centred": {"precondition": "centre"},
    "whitened": _WHITENED,
    "orthogonal": {**_WHITENED, "transform": "orthogonal"},
    "concentrated": _CONCENTRATED,
    "concentrated-few": {**_CONCENTRATED, **_FEW},
    "concentrated-whitened": {**_CONCENTRATED, **_WHITENED},
}

# What evidence counts towards, and what finds its place: as published, then one change
# after the other.
Way = tuple[settings.Evidence, settings.Location]
WAYS: tuple[Way, ...] = (
    ("plain", "map"),
    ("contrastive", "map"),
    ("contrastive", "occlusion"),
)

# Shown in full: under all schemes, in the picture of regions, and by every measure. The
# others are learned under the scheme that fits the event, and asked where they point.
SHOWN: tuple[Name, ...] = ("paper", "few-prototypes", "concentrated-few")


def ways_of(name: str) -> tuple[Way, ...]:
    """Of a way to learn U the last of them; of the paper's also the first."""
    return (WAYS[0], WAYS[-1]) if name == "paper" else (WAYS[-1],)


def of(name: Name, config: settings.Optimisation) -> settings.Optimisation:
    """The settings under a name, the others as given."""
    return dataclasses.replace(config, **CHANGES[name])
