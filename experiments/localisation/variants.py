"""Ways to learn U that the experiment compares, by name; known without JAX."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

from apex_jax import settings

Name = Literal[
    "paper",
    "centred",
    "whitened",
    "whitened-0.01",
    "orthogonal",
    "concentrated",
    "concentrated-0.02",
    "concentrated-paper",
]

# What differs from the paper's settings.
CHANGES: dict[Name, dict[str, Any]] = {
    "paper": {},
    "centred": {"precondition": "centre"},
    "whitened": {"precondition": "whiten", "precondition_eps": 0.1},
    "whitened-0.01": {"precondition": "whiten", "precondition_eps": 0.01},
    "orthogonal": {
        "precondition": "whiten",
        "precondition_eps": 0.1,
        "transform": "orthogonal",
    },
    "concentrated": {
        "precondition": "whiten",
        "precondition_eps": 0.1,
        "concentration": 0.1,
    },
    "concentrated-0.02": {
        "precondition": "whiten",
        "precondition_eps": 0.1,
        "concentration": 0.02,
    },
    "concentrated-paper": {"concentration": 0.1},
}


def of(name: Name, config: settings.Optimisation) -> settings.Optimisation:
    """The settings under a name, the others as given."""
    return dataclasses.replace(config, **CHANGES[name])
