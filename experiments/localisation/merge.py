"""One set of tables from seeds and events that were run apart.

    python -m experiments.localisation.merge docs/truth/scores/*.json.gz --output merged

Takes what `experiments.localisation` keeps of each event and seed, `scores.json`, also
gzipped: every score of every clip, and every place and box. So seeds can run on several
machines, and whoever doubts an interval can draw it anew.
"""

from __future__ import annotations

import dataclasses
import gzip
import json
from pathlib import Path
from typing import Annotated, Any

import tyro

from experiments import command


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """One set of tables from seeds and events that were run apart."""

    scores: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Files scores.json, or gzipped, of an event and a seed each."""
    output: Path
    """Folder for localisation.md and .csv, and a folder of pictures for each event."""


def main(config: Config) -> dict[str, Any]:
    """Writes the tables and returns what they show.

    Raises:
      ValueError: no files, files that are none of these, or two of one event and seed.
    """
    from experiments import results as results_lib
    from experiments.localisation import pictures, plants, summary, tables

    if not config.scores:
        raise ValueError("name at least one scores.json")
    parts = [_read(file) for file in config.scores]
    versions = {part["made_from"]["version"] for part in parts}
    if len(versions) > 1:
        raise ValueError(
            f"these scores were measured in different ways, versions {versions}"
        )
    _check_alike(parts)
    events: dict[str, list[dict[str, Any]]] = {}
    for event in plants.FITS:
        found = sorted(
            (part for part in parts if part["event"] == event),
            key=lambda part: part["seed"],
        )
        seeds = [part["seed"] for part in found]
        if len(seeds) != len(set(seeds)):
            raise ValueError(f"{event} has a seed twice: {seeds}")
        if found:
            events[event] = found
    results: dict[str, Any] = {
        "experiment": "localisation",
        "events": {event: summary.of(found) for event, found in events.items()},
        "seeds": {
            event: [part["seed"] for part in found] for event, found in events.items()
        },
    }
    config.output.mkdir(parents=True, exist_ok=True)
    for name, found in events.items():
        pictures.of_seeds(config.output / name, found, results["events"][name])
    results_lib.write(
        config.output,
        "localisation",
        results,
        tables.FORMS,
        tables.terminal(results),
    )
    return results


def _check_alike(parts: list[dict[str, Any]]) -> None:
    """Raises unless all were made with the same settings, but for the seed."""
    for part in parts[1:]:
        differing = [
            name
            for name, value in part["settings"].items()
            if name != "seed" and value != parts[0]["settings"].get(name)
        ]
        if differing:
            raise ValueError(
                "these scores were made with different settings: "
                f"{', '.join(differing)} of {part['event']}, seed {part['seed']}"
            )


def _read(file: Path) -> dict[str, Any]:
    """The scores of an event and a seed."""
    try:
        content = file.read_bytes()
        if file.suffix == ".gz":
            content = gzip.decompress(content)
        part = json.loads(content)
        if not {"made_from", "event", "seed", "rows"} <= part.keys():
            raise ValueError("it holds something else")
    except (ValueError, EOFError, AttributeError) as error:
        raise ValueError(
            f"{file} is no scores.json of experiments.localisation: {error}"
        ) from error
    return part


if __name__ == "__main__":
    asked = tyro.cli(
        Config, prog="python -m experiments.localisation.merge", description=__doc__
    )
    with command.ending():
        main(asked)
