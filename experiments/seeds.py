"""Several runs of an experiment that differ by their seed: mean and spread.

    python -m experiments.esc10 --data-dir ESC-10 --seed 0 --output-dir runs/esc10-0
    python -m experiments.esc10 --data-dir ESC-10 --seed 1 --output-dir runs/esc10-1
    python -m experiments.seeds runs/esc10-0 runs/esc10-1 --output runs/esc10-seeds

Any experiment and any table: of every number in their `results.json` a line, as CSV
and Markdown. The seed decides first weights, order of clips, the optimisation, random
masks, and splits where they are drawn. Runs with other differences are refused.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tyro

from experiments import command

HEAD = ("what", "mean", "spread", "runs")
# What is no result, or one that cannot differ.
LEFT_OUT = ("seed", "table", "seconds", "compile_seconds", "versions", "paper", "draws")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Mean and spread of finished runs that differ by their seed."""

    runs: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Folders of the runs."""
    output: Path
    """Folder to write seeds.csv and seeds.md to."""


def main(config: Config) -> dict[str, dict[str, float]]:
    """Writes the table; returns mean, spread and number of runs of each number."""
    from apex_jax import metrics, runs
    from experiments import layout

    if len(config.runs) < 2:
        raise ValueError(f"name two runs or more; got {len(config.runs)}")
    found = [dict(_numbers(results)) for results in _read(config.runs)]
    table = {
        name: {
            "mean": float(np.mean(values)),
            "spread": float(metrics.spread(values)),
            "runs": len(values),
        }
        for name in dict.fromkeys(name for one in found for name in one)
        if len(values := [one[name] for one in found if name in one]) > 1
    }
    rows = [
        (name, *(f"{one[part]:.6g}" for part in HEAD[1:]))
        for name, one in table.items()
    ]
    config.output.mkdir(parents=True, exist_ok=True)
    for ending, write in (("csv", layout.as_csv), ("md", layout.markdown)):
        text = write([HEAD, *rows])
        (config.output / f"seeds.{ending}").write_text(text, encoding="utf-8")
    runs.say(f"{len(table)} numbers of {len(found)} runs")
    runs.say(f"written to  {config.output}, seeds.csv and .md")
    return table


def _read(folders: tuple[Path, ...]) -> list[Mapping[str, Any]]:
    """The results, of runs that differ by their seed alone."""
    from apex_jax import runs

    settings: list[dict[str, Any]] = []
    for folder in folders:
        made = runs.read_json(folder / "config.json")
        if made is None or not (folder / "results.json").exists():
            raise ValueError(f"{folder} is no finished run: it has no results.json")
        settings.append({k: v for k, v in made.items() if k not in runs.IRRELEVANT})
        first = settings[0]
        differs = sorted(
            name
            for name in (first | settings[-1]).keys() - {"seed"}
            if first.get(name) != settings[-1].get(name)
        )
        if differs:
            raise ValueError(
                f"{folder} differs from {folders[0]} by more than its seed: "
                f"{', '.join(differs)}"
            )
    seeds = [made.get("seed") for made in settings]
    if len(set(seeds)) < len(seeds):
        raise ValueError(f"each run has its own seed; got {seeds}")
    return [runs.read_json(folder / "results.json") for folder in folders]


def _numbers(
    results: Mapping[str, Any], above: tuple[str, ...] = ()
) -> Iterator[tuple[str, float]]:
    """Each number with its place, joined by points; lists are histories, left out."""
    for name, value in results.items():
        place = (*above, name)
        if name in LEFT_OUT:
            continue
        if isinstance(value, Mapping):
            yield from _numbers(value, place)
        elif isinstance(value, int | float) and not isinstance(value, bool):
            yield ".".join(place), float(value)


if __name__ == "__main__":
    asked = tyro.cli(Config, prog="python -m experiments.seeds", description=__doc__)
    with command.ending():
        main(asked)
