"""What experiments write: plain files that people and other programs read."""

from __future__ import annotations

import csv
import dataclasses
import importlib.metadata
import json
import platform
from pathlib import Path
from typing import Any

import numpy as np

from apex_jax import explain

HEADER = (
    "channel",
    "sign",
    "rank",
    "file",
    "offset_s",
    "class",
    "activation",
    "purity",
    "regions",
)


def write_bank(file: Path, explainer: explain.Explainer) -> None:
    """The prototypes of every channel as a table that a person can read."""
    grid = explainer.grid()
    with file.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(HEADER)
        for one in (explainer.positive, explainer.negative):
            clip, activation, purity, location = (
                np.asarray(a)
                for a in (one.clip, one.activation, one.purity, one.location)
            )
            for channel, rank in np.ndindex(clip.shape):
                at = channel, rank
                source = explainer.clips[int(clip[at])]
                areas = explainer.areas(grid, location[at])
                writer.writerow(
                    [
                        channel,
                        one.sign,
                        rank + 1,
                        source.path,
                        f"{source.offset_s:.3f}",
                        ", ".join(explainer.classifier.class_names[c] for c in source.labels),
                        f"{activation[at]:.6g}",
                        f"{purity[at]:.4f}",
                        "; ".join(str(area) for area in areas),
                    ]
                )


def plain(value: Any) -> Any:
    """A config as JSON knows it."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {
            f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)
        }
    return str(value) if isinstance(value, Path) else value


def versions() -> dict[str, str]:
    """Of Python and of the packages that decide the numbers."""
    packages = ("apex-jax", "jax", "flax", "optax", "numpy", "librosa", "scikit-learn")
    found = {name: importlib.metadata.version(name) for name in packages}
    return {"python": platform.python_version(), **found}


def read_json(file: Path) -> Any:
    """The content, or None where there is no such file."""
    return json.loads(file.read_text(encoding="utf-8")) if file.exists() else None


def write_json(file: Path, content: Any) -> None:
    """Indented, with a newline at the end."""
    file.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
