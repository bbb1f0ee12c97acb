"""The localisation experiment from sounds to tables; `__main__` is its command line."""

from __future__ import annotations

import dataclasses
import importlib.util
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx

from apex_jax import (
    atomic,
    checkpoint,
    data,
    disentangle,
    explain,
    hosts,
    pointing,
    progress,
    runs,
    schemes,
    settings,
)
from apex_jax import mesh as mesh_lib
from apex_jax.models import convnext
from experiments import methods
from experiments.localisation import corpus as corpus_lib
from experiments.localisation import (
    explained,
    options,
    scoring,
    stable,
    tables,
    trust,
)

LEAST_ACCURACY = 0.95
OTHER_SEED = 1000  # what is added to a seed where another one is wanted
EVIDENCE: tuple[settings.Evidence, ...] = ("plain", "contrastive")


def main(config: options.Config) -> dict[str, Any]:
    """Runs every event and seed, writes the tables, and returns `results.json`."""
    config.check()
    if config.lime_clips and any(
        importlib.util.find_spec(name) is None for name in ("lime", "skimage")
    ):
        raise ValueError(
            "LIME is not installed: pip install 'apex-jax[baselines]'; or ask for "
            "--lime-clips 0"
        )
    output = config.output_dir or Path("runs") / "localisation"
    config = dataclasses.replace(config, output_dir=output)
    mesh, stages = mesh_lib.make(), progress.Stages()
    runs.claim(output, config)
    events = list(config.events)
    if "sound" in events and config.sounds is None:
        runs.say("event sound is left out: it takes --sounds DIR, a copy of ESC-10")
        events.remove("sound")
    parts: dict[str, list[dict[str, Any]]] = {event: [] for event in events}
    for event in events:
        for seed in range(config.seed, config.seed + config.seeds):
            runs.say(f"\n{event}, seed {seed}")
            folder = output / event / f"seed{seed}"
            with stages(f"{event} {seed}"):
                parts[event].append(_one(config, folder, event, seed, mesh))
    results = {
        "experiment": "localisation",
        "least_overlap": pointing.LEAST_OVERLAP,
        "events": {event: tables.summary(found) for event, found in parts.items()},
        **stages.to_dict(),
        "seed": config.seed,
        "seeds": config.seeds,
        "device": f"{mesh.size} x {mesh.devices.flat[0].device_kind}",
        "versions": dict(checkpoint.versions()),
    }
    if hosts.is_primary():
        for ending, write in tables.FORMS.items():
            atomic.write_text(output / f"localisation.{ending}", write(results))
    runs.write_json(output / "results.json", results)
    runs.say(tables.terminal(results))
    runs.say(f"written to  {output}, localisation.csv and .md")
    return results


def _one(
    config: options.Config,
    folder: Path,
    event: options.Event,
    seed: int,
    mesh: jax.sharding.Mesh,
) -> dict[str, Any]:
    """One corpus, one classifier, every way to explain it; `scores.json` keeps it."""
    stages, skip_log = progress.Stages(), data.SkipLog(strict=config.strict)
    config = dataclasses.replace(config, seed=seed)
    with progress.bar("corpus", sum(config.clips), "clip") as on_progress:
        made = corpus_lib.make(
            folder / "corpus",
            config,
            event,
            seed,
            skip_log=skip_log,
            on_progress=on_progress,
        )
    done = folder / "scores.json"
    before = hosts.collect(runs.read_json(done))[0] or {}
    key = {
        "settings": runs.settings_of(_of_one(config)),
        "corpus": corpus_lib.about(folder),
    }
    if before.get("made_from") == key:
        runs.say(f"finished before, in {folder}")
        return before
    problem = explained.problem_of(made, config, event, mesh, skip_log)
    with stages("train"):
        model = methods.train_convnext(
            folder / "classifier", problem, config, patch_size=config.patch_size
        )
    with stages("test"):
        of = explained.made(config, folder, event, problem, model, made)
    runs.report("accuracy", f"{of.accuracy:.3f} on {len(made.splits.test)} test clips")
    if of.accuracy < LEAST_ACCURACY:
        runs.say(f"below {LEAST_ACCURACY}: what follows explains a weak classifier")
    result = {
        "made_from": key,
        "event": event,
        "seed": seed,
        "accuracy": of.accuracy,
        "clips": len(of.clips),
        "fits": list(tables.FITS[event]),
        **_score(of, stages),
        "skipped_files": len(skip_log),
        **stages.to_dict(),
    }
    if hosts.is_primary():
        skip_log.write_csv(folder / "skipped.csv")
    runs.write_json(done, result)
    return result


def _of_one(config: options.Config) -> options.Config:
    """What one event and seed depend on: not on which others there are."""
    return dataclasses.replace(config, events=(), seeds=1, scheme="frequency")


def _score(of: explained.Explained, stages: progress.Stages) -> dict[str, Any]:
    """Everything that is asked of the explanations, and how each U was learned."""
    scheme, _ = tables.FITS[of.event]
    rows, learned, fitting = _pointing(of, scheme)
    config, some = of.config, of.clips[: of.config.lime_clips]
    if some:
        with stages("LIME"), progress.bar("LIME", len(some), "clip") as on_progress:
            heats = scoring.lime(
                next(iter(fitting.values())),
                some,
                explained.PLANTED,
                seed=config.seed,
                num_samples=config.lime_samples,
                on_progress=on_progress,
            )
        boxes = of.boxes[: len(some)]
        rows += [
            _row("LIME", s, scoring.scored(of.grid, s, where, boxes))
            for s, where in heats.items()
        ]
    some = of.clips[: config.faithful_clips]
    with (
        stages("faithfulness"),
        progress.bar("faithfulness", len(some), "clip") as on_progress,
    ):
        faithful = trust.faithful(
            fitting,
            some,
            explained.PLANTED,
            seed=config.seed,
            steps=config.curve_steps,
            on_progress=on_progress,
        )
    cached = methods.features(of.cache_dir, of.problem, config, of.model, scheme)
    return {
        "rows": rows,
        "learned": learned,
        "faithful": faithful,
        "consistent": trust.consistent(fitting, cached),
        "stable": _stability(of, stages, scheme, fitting),
    }


def _pointing(
    of: explained.Explained, best: schemes.Scheme
) -> tuple[list[dict], list[dict], dict[str, explain.Explainer]]:
    """Scores of each method, scheme and clip; every U; explainers of scheme `best`."""
    rows: list[dict[str, Any]] = []
    learned: list[dict[str, Any]] = []
    fitting: dict[str, explain.Explainer] = {}
    grid, boxes, maps, head = of.grid, of.boxes, of.maps, of.classifier.head

    def channels(name: str, scheme: schemes.Scheme, transform: disentangle.Transform):
        for kind in EVIDENCE:
            where = scoring.channels(
                transform, of.classifier, maps, explained.PLANTED, scheme, kind=kind
            )
            scores = scoring.scored(grid, scheme, where.locations, boxes)
            scores |= {"share": where.share[:, 0], "share, best": where.share[:, 1]}
            scores["lead"] = where.lead
            rows.append(_row(name, scheme, scores, evidence=kind))

    for scheme in schemes.SCHEMES:
        rows.append(_row("random", scheme, scoring.random(grid, scheme, boxes)))
        for name, point in (("CAM", scoring.cam), ("Grad-CAM", scoring.grad_cam)):
            where = point(head, maps, explained.PLANTED, scheme)
            rows.append(_row(name, scheme, scoring.scored(grid, scheme, where, boxes)))
        channels(trust.RAW, scheme, disentangle.identity(maps.shape[-1]))
        for variant in of.config.variants:
            folder = of.folder / variant / scheme
            found, own = of.learn(variant, scheme, seed=of.config.seed, folder=folder)
            if scheme == best:
                fitting[variant] = found.explainer
            channels(variant, scheme, found.explainer.transform)
            learned.append(
                {
                    "variant": variant,
                    "scheme": scheme,
                    "purity": [found.history.round_purity[i] for i in (0, -1)],
                    "condition_number": found.audit.condition_number,
                    "max_abs_logit_error": found.audit.max_abs_logit_error,
                    "changed_predictions": found.audit.changed_predictions,
                    "rank": dict(found.explainer.provenance.settings)["effective rank"],
                    **own.to_dict(),
                }
            )
    return rows, learned, fitting


def _row(method: str, scheme: schemes.Scheme, scores: dict, **more: Any) -> dict:
    plain = {name: np.round(values, 6).tolist() for name, values in scores.items()}
    return {"method": method, "scheme": scheme, "scores": plain, **more}


def _stability(
    of: explained.Explained,
    stages: progress.Stages,
    scheme: schemes.Scheme,
    fitting: dict[str, explain.Explainer],
) -> list[dict[str, Any]]:
    """What is left of explanations after a change; nothing where no clips are asked."""
    some = of.clips[: of.config.stable_clips]
    if not some:
        return []
    seed = of.config.seed + OTHER_SEED
    again: dict[str, explain.Explainer] = {}
    for variant in of.config.variants:
        folder = of.folder / "again" / variant
        again[variant] = of.learn(variant, scheme, seed=seed, folder=folder)[
            0
        ].explainer
    untrained = convnext.ConvNeXt(of.model.config, rngs=nnx.Rngs(seed))
    with (
        stages("stability"),
        progress.bar("stability", len(some), "clip") as on_progress,
    ):
        return stable.measured(
            fitting,
            again,
            some,
            explained.PLANTED,
            untrained=of.problem.classifier(untrained),
            on_progress=on_progress,
        )
