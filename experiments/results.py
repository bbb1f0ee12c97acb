"""What an experiment ends with: results.json, its tables beside it, its last lines."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax

from apex_jax import atomic, checkpoint, hosts, progress, runs
from experiments import options

# By the ending of the file.
Forms = Mapping[str, Callable[[dict[str, Any]], str]]


def how(
    config: options.Common, mesh: jax.sharding.Mesh, stages: progress.Stages
) -> dict[str, Any]:
    """What all results tell of the run: times, seed, device, versions."""
    return {
        **stages.to_dict(),
        "seed": config.seed,
        "device": f"{mesh.size} x {mesh.devices.flat[0].device_kind}",
        "versions": dict(checkpoint.versions()),
    }


def write(
    output: Path, name: str, results: dict[str, Any], forms: Forms, terminal: str
) -> None:
    """Writes the tables, then results.json, which says that all is there.

    Args:
      output: the run's folder.
      name: of the tables' files.
      results: what the experiment found.
      forms: writers of tables.
      terminal: what is said of them.
    """
    if hosts.is_primary():
        for ending, form in forms.items():
            atomic.write_text(output / f"{name}.{ending}", form(results))
    runs.write_json(output / "results.json", results)
    runs.say(terminal)
    *first, last = [f".{ending}" for ending in forms]
    listed = f"{', '.join(first)} and {last}" if first else last
    runs.say(f"written to  {output}, {name}{listed}")
