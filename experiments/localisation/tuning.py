"""Which settings get to pure channels soonest, and do they point at the event?

    python -m experiments.localisation.tuning --run runs/localisation/burst/seed0

On the features that a localisation run has kept: learning rate, batch, algorithm and
schedule of prototypes, or with `--vary coordinates` how far variances are evened and
how much concentration counts, one change at a time, each with its purity over time, the
conditioning of U and the hits of its top channel. Times leave compiling out.
"""

from __future__ import annotations

import dataclasses
import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from apex_jax import settings
from experiments import command

if TYPE_CHECKING:
    from apex_jax import cache, schemes
    from experiments.localisation import explained

_FEW: dict[str, Any] = {"prototypes_start": 5, "epochs": 120}
# What differs from the paper's settings, by name.
OPTIMISER: dict[str, dict[str, Any]] = {
    "paper: Adam, rate 1e-3, 512 pairs, 100 to 5": {},
    "rate 3e-4": {"learning_rate": 3e-4},
    "rate 3e-3": {"learning_rate": 3e-3},
    "rate 1e-2": {"learning_rate": 1e-2},
    "128 pairs a step": {"batch_size": 128},
    "2048 pairs a step": {"batch_size": 2048},
    "5 prototypes from the start": {"prototypes_start": 5},
    "20 falling to 5": {"prototypes_start": 20},
    "5 prototypes, 120 epochs": _FEW,
    "5 prototypes, 200 epochs": {"prototypes_start": 5, "epochs": 200},
    "fit's own: 120, concentrated": {**_FEW, "concentration": 0.03},
    "60 epochs": {"epochs": 60},
    "Muon, rate 1e-3": {"algorithm": "muon"},
    "Muon, rate 3e-3": {"algorithm": "muon", "learning_rate": 3e-3},
    "L-BFGS, all pairs": {
        "algorithm": "lbfgs",
        "prototypes_start": 5,
        "batch_size": 2**30,
        "epochs": 40,
    },
}
_WHITENED: dict[str, Any] = {"precondition": "whiten", "precondition_eps": 0.1}
_TURNED: dict[str, Any] = {"transform": "orthogonal"}
COORDINATES: dict[str, dict[str, Any]] = {
    "paper: as they are": {},
    "centred": {"precondition": "centre"},
    "whitened, eps 1": {"precondition": "whiten", "precondition_eps": 1.0},
    "whitened, eps 0.1": _WHITENED,
    "whitened, eps 0.01": {"precondition": "whiten", "precondition_eps": 0.01},
    "5 prototypes, 120 epochs": _FEW,
    "orthogonal": _TURNED,
    "whitened, orthogonal": {**_WHITENED, **_TURNED},
    **{
        f"{name}, conc. {weight:g}": {**common, "concentration": weight}
        for name, common in (
            ("as they are", {}),
            ("5 prototypes", _FEW),
            ("whitened", _WHITENED),
            ("orthogonal", _TURNED),
        )
        for weight in (0.01, 0.03, 0.1, 0.3)
    },
}
CHANGES = {"optimiser": OPTIMISER, "coordinates": COORDINATES}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Which settings get to pure channels soonest, and do they point at the event.

    Attributes:
      run: of experiments.localisation, the folder of an event and a seed.
      vary: how U is searched for, or in which coordinates and by which loss.
      out: where results go; by default in that folder.
      optimise: what all have in common: coordinates, family, concentration.
    """

    run: Annotated[Path, tyro.conf.arg(metavar="DIR")]
    vary: Literal["optimiser", "coordinates"] = "optimiser"
    out: Path | None = None
    optimise: settings.Optimisation = settings.Optimisation()


def main(config: Config) -> dict[str, Any]:
    """Learns U in every way, writes optimiser.json, .md and .png, returns results.

    Or coordinates.json, and so on.

    Raises:
      ValueError: `run` is no finished folder of an event and a seed.
    """
    from apex_jax import atomic, cache, runs
    from apex_jax import mesh as mesh_lib
    from experiments.localisation import explained, plants

    if not (config.run / "scores.json").exists():
        raise ValueError(
            f"--run {config.run} is no finished folder of an event and a seed, such as "
            "runs/localisation/burst/seed0"
        )
    mesh = mesh_lib.make()
    of = explained.reopened(config.run, mesh)
    scheme, axis = plants.FITS[of.event]
    cached = cache.load(
        of.cache_dir,
        of.classifier,
        of.problem.splits.train,
        of.problem.front_end,
        content="maps",
        mesh=mesh,
    )
    results: list[dict[str, Any]] = []
    for name, change in CHANGES[config.vary].items():
        optimise = dataclasses.replace(config.optimise, **change)
        row = {"name": name, **_learned(of, cached, optimise, scheme, axis)}
        results.append(row)
        runs.say(_line(row))
    out = config.out or config.run
    out.mkdir(parents=True, exist_ok=True)
    summary = {
        "event": of.event,
        "scheme": scheme,
        "common": runs.plain(config.optimise),
        "settings": results,
        "device": f"{mesh.size} x {mesh.devices.flat[0].device_kind}",
    }
    atomic.write_text(out / f"{config.vary}.json", json.dumps(summary, indent=1) + "\n")
    atomic.write_text(out / f"{config.vary}.md", markdown(summary))
    draw(summary, out / f"{config.vary}.png")
    runs.say(f"written to  {out}, {config.vary}.json, .md and .png")
    return summary


def _learned(
    of: explained.Explained,
    cached: cache.Cached,
    optimise: settings.Optimisation,
    scheme: schemes.Scheme,
    axis: str,
) -> dict[str, Any]:
    """Purity over time, conditioning and hits; or why it led nowhere."""
    import jax
    import numpy as np

    from apex_jax import compilation, disentangle, fit
    from experiments.localisation import scoring, variants

    seconds: list[float] = []
    start, compiled = time.perf_counter(), compilation.clock.seconds

    def note(epoch: int, purity: float) -> None:
        spent = compilation.clock.seconds - compiled
        seconds.append(round(time.perf_counter() - start - spent, 3))

    try:
        found = fit.explainer(
            jax.random.key(of.config.seed),
            of.classifier,
            cached,
            of.problem.front_end,
            scheme,
            config=optimise,
            mesh=of.problem.mesh,
            on_epoch=note,
        )
    except disentangle.InvarianceError as error:
        return {"failed": str(error)}
    transform, way = found.explainer.transform, variants.WAYS[-1]
    pointing = of.channels(transform, scheme, *way)
    scores = scoring.scored(of.grid, scheme, pointing.where, of.boxes)
    scores |= pointing.parts.shares()
    return {
        "seconds": seconds,
        "round_epochs": found.history.round_epochs,
        "round_purity": found.history.round_purity,
        "condition_number": found.audit.condition_number,
        "hit": float(np.mean(scores[axis])),
        "best of 4": float(np.mean(scores[f"{axis}, best"])),
        "share": float(np.mean(scores["share"])),
        "share of all": float(np.mean(scores["share of all"])),
        "share of all of 4": float(np.mean(scores["share of all, best"])),
        "top channels": len(np.unique(pointing.top[:, 0])),
    }


def _line(row: dict[str, Any]) -> str:
    """For the terminal."""
    if "failed" in row:
        return f"{row['name'][:33]:33} failed: {row['failed'][:38]}"
    return (
        f"{row['name'][:33]:33} {row['seconds'][-1]:6.1f} s  purity "
        f"{row['round_purity'][-1]:.3f}  cond {row['condition_number']:5.0f}  "
        f"hit {row['hit']:.2f}"
    )


def markdown(summary: dict[str, Any]) -> str:
    """A line a setting."""
    lines = [
        "| setting | seconds | purity | cond(U) | hit | best of 4 | top's share of the "
        "positive evidence | of all that moves the logit | of 4 | different top "
        "channels |",
        "|" + " --- |" * 10,
    ]
    for row in summary["settings"]:
        if "failed" in row:
            lines.append(f"| {row['name']} | failed |" + " |" * 8)
            continue
        purity = f"{row['round_purity'][0]:.3f} to {row['round_purity'][-1]:.3f}"
        condition = f"{row['condition_number']:.0f}"
        lines.append(
            f"| {row['name']} | {row['seconds'][-1]:.1f} | {purity} | {condition} | "
            f"{row['hit']:.2f} | {row['best of 4']:.2f} | {row['share']:.2f} | "
            f"{row['share of all']:.2f} | {row['share of all of 4']:.2f} | "
            f"{row['top channels']} |"
        )
    return "\n".join(lines) + "\n"


def draw(summary: dict[str, Any], file: Path) -> None:
    """Purity over time, and what each setting ends with."""
    import numpy as np

    from apex_jax import figures, plot

    figure = plot.figure((13.0, 4.6))
    over_time, conditioning, pointing = figure.subplots(1, 3, sharex=True)
    for number, row in enumerate(r for r in summary["settings"] if "failed" not in r):
        colour, mark = f"C{number % 10}", "osD^v"[number // 10 % 5]
        seconds = [0.0, *row["seconds"]]
        at = [seconds[epoch] for epoch in row["round_epochs"]]
        over_time.plot(
            at, row["round_purity"], color=colour, marker=mark, ms=3, lw=1,
            label=row["name"],
        )  # fmt: skip
        for axes, value in (
            (conditioning, row["condition_number"]),
            (pointing, row["hit"]),
        ):
            axes.plot(at[-1], value, color=colour, marker=mark)
    for axes, title in (
        (over_time, "mean purity of 5 prototypes"),
        (conditioning, "condition number of U"),
        (pointing, "hits of the top channel"),
    ):
        axes.set_title(title, fontsize=plot.TITLE)
        axes.set_xlabel("seconds, without compiling")
        # Some take ten times as long as others, and all begin at zero.
        axes.set_xscale("function", functions=(np.sqrt, np.square))
        axes.set_xlim(left=0)
        axes.grid(alpha=0.3)
    conditioning.set_yscale("log")
    pointing.set_ylim(-0.02, 1.02)
    figure.legend(*over_time.get_legend_handles_labels(), loc="outside right center",
                  fontsize=plot.CAPTION)  # fmt: skip
    figures.save(figure, file, dpi=120)


if __name__ == "__main__":
    asked = tyro.cli(
        Config, prog="python -m experiments.localisation.tuning", description=__doc__
    )
    with command.ending():
        main(asked)
