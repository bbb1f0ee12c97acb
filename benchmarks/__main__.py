"""Speed of every stage beside a floor measured in the same run.

    python -m benchmarks --output benchmarks/results/cpu.json
    python -m benchmarks --smoke
    python -m benchmarks --table benchmarks/results/cpu.json

How to read it: docs/performance.md.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import jax
import tyro

from apex_jax import atomic
from benchmarks import (
    compare_torch,
    frontend,
    growth,
    growth_plot,
    machine,
    method,
    naive,
    rows,
    sizes,
    table,
    training,
    usage,
    whole,
)

Stage = Literal[
    "log-mel",
    "backbone",
    "train-step",
    "feature-pass",
    "expm",
    "step",
    "round",
    "whole",
    "scoring",
    "explain",
    "masking",
    "naive",
    "compare-torch",
    "growth",
]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Measures every stage, prints a table, and writes JSON and a plot."""

    smoke: bool = False
    """Small sizes, under a minute: to see that everything runs."""
    full: bool = False
    """Run the whole optimisation step by step instead of scaling a tenth of it."""
    only: tuple[Stage, ...] = ()
    """Only these; without it all but naive and compare-torch."""
    naive: bool = False
    """Also the whole optimisation the obvious way, scaled from a small share."""
    compare_torch: bool = False
    """Also the backbone against PyTorch."""
    output: Path | None = None
    """Where the JSON goes, NAME.json; the plot goes beside it, NAME.png."""
    table: Path | None = None
    """Measure nothing; print this JSON as Markdown."""


def stages(config: Config) -> dict[str, Callable[[sizes.Sizes], list[rows.Row]]]:
    """What gives rows, in the order of the flow."""
    known: dict[str, Callable[[sizes.Sizes], list[rows.Row]]] = {
        "log-mel": frontend.log_mel,
        "backbone": frontend.backbone,
        "train-step": training.step,
        "feature-pass": frontend.feature_pass,
        "expm": method.expm,
        "step": method.step,
        "round": method.one_round,
        "whole": functools.partial(whole.optimisation, full=config.full),
        "scoring": method.scoring,
        "explain": usage.explain,
        "masking": usage.mask,
        "naive": naive.naive,
        "compare-torch": compare_torch.backbone,
    }
    extra = {"naive": config.naive, "compare-torch": config.compare_torch}
    return {
        name: measure
        for name, measure in known.items()
        if extra.get(name)
        or (name in config.only if config.only else name not in extra)
    }


def main(config: Config, size: sizes.Sizes | None = None) -> dict[str, Any]:
    """Runs the stages, prints the table, returns what is written.

    Args:
      config: what to run.
      size: how large; None for what `config` says.
    """
    measures = stages(config)
    if "compare-torch" in measures:
        compare_torch.check_torch()  # before minutes of work, not after
    if size is None:
        size = (
            sizes.smoke()
            if config.smoke
            else sizes.paper(accelerator=jax.default_backend() != "cpu")
        )
    start, described = time.perf_counter(), machine.describe()
    print(
        f"{described['devices']} x {described['device']}, {described['cores']} cores, "
        f"load {described['load_average']}\n\n{table.heading()}"
    )
    if config.output is not None:
        config.output.parent.mkdir(parents=True, exist_ok=True)
    results: dict[str, Any] = {
        "machine": described,
        "size": "paper" if size.judged else "smoke",
        "seconds": 0.0,
        "rows": [],
        "growth": [],
    }

    def save() -> None:
        results["seconds"] = time.perf_counter() - start
        if config.output is not None:
            text = json.dumps(results, indent=2) + "\n"
            atomic.write(config.output, lambda file: file.write(text.encode()))

    for measure in measures.values():
        for row in measure(size):
            print(table.terminal(row), flush=True)
            results["rows"].append(row.to_dict())
        save()  # minutes of measuring, should a later stage fail
    if not config.only or "growth" in config.only:
        points = growth.growth(size)
        print(f"{'-' * table.WIDTH}\n{table.terminal_growth(points)}")
        results["growth"] = [dataclasses.asdict(point) for point in points]
        save()
        if config.output is not None:
            virtual = described["devices"] < max(size.growth_devices)
            growth_plot.save(config.output.with_suffix(".png"), points, virtual=virtual)
    print(f"\n{table.seconds(results['seconds'])} in all")
    return results


if __name__ == "__main__":
    asked = tyro.cli(Config, description=__doc__)
    if asked.smoke:
        jax.config.update("jax_disable_most_optimizations", True)
    if asked.table is not None:
        print(table.markdown(json.loads(asked.table.read_text())), end="")
    else:
        try:
            main(asked)
        except ModuleNotFoundError as error:
            raise SystemExit(str(error)) from error
