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
    data,
    disentangle,
    explain,
    figures,
    hosts,
    look,
    pointing,
    progress,
    runs,
    schemes,
)
from apex_jax import mesh as mesh_lib
from apex_jax.models import convnext
from experiments import methods
from experiments import results as results_lib
from experiments.localisation import corpus as corpus_lib
from experiments.localisation import (
    explained,
    options,
    pictures,
    plants,
    scoring,
    stable,
    summary,
    tables,
    trust,
    variants,
)

LEAST_ACCURACY = 0.95
SCORES = 2  # version of what is measured; raise it when a change alters a number
OTHER_SEED = 1000  # what is added to a seed where another one is wanted


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
        "events": {event: summary.of(found) for event, found in parts.items()},
        "seeds": config.seeds,
        **results_lib.how(config, mesh, stages),
    }
    if hosts.is_primary():
        for name, found in parts.items():
            figure = pictures.consistency(found)
            figures.save(figure, output / name / "consistency.png", dpi=120)
    results_lib.write(
        output, "localisation", results, tables.FORMS, tables.terminal(results)
    )
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
        "version": SCORES,
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
        "fits": list(plants.FITS[event]),
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
    scheme, _ = plants.FITS[of.event]
    rows, learned, fitting = _pointing(of, scheme)
    if hosts.is_primary():
        shown = [n for n in variants.SHOWN if n in fitting] or list(fitting)[:1]
        transforms = {name: fitting[name].transform for name in shown}
        figures.save(
            pictures.regions(of, transforms, scheme), of.folder / "regions.png", dpi=120
        )
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
        "masked": trust.masked(of, trust.with_raw(fitting), scheme),
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

    def channels(name: str, scheme: schemes.Scheme, transform: disentangle.Transform):
        for way in variants.WAYS:
            scores = of.pointing(transform, scheme, *way)
            rows.append(_row(name, scheme, scores, way))

    for scheme in schemes.SCHEMES:
        rows += _baselines(of, scheme)
        if scheme == best:
            rows += _without_learning(of, scheme)
        channels(trust.RAW, scheme, disentangle.identity(of.maps.shape[-1]))
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


def _baselines(of: explained.Explained, scheme: schemes.Scheme) -> list[dict]:
    """What has no channels: chance, CAM, Grad-CAM, occlusion of the class."""
    chance = scoring.random(of.grid, scheme, of.boxes)
    always = scoring.constant(of.grid, scheme, of.known, len(of.clips))
    rows = [
        _row("random", scheme, chance),
        _row(
            "always the same",
            scheme,
            scoring.scored(of.grid, scheme, always, of.boxes),
        ),
    ]
    for kind, locate in variants.WAYS:
        options = (of.classifier, of.views(scheme, locate), explained.PLANTED, scheme)
        name = "CAM" if locate == "map" else trust.CLASS
        where = {name: scoring.whole(*options, kind=kind)}
        if locate == "map":
            where["Grad-CAM"] = scoring.grad_cam(*options, kind=kind)
        for name, found in where.items():
            scores = scoring.scored(of.grid, scheme, found, of.boxes)
            rows.append(_row(name, scheme, scores, (kind, locate)))
    return rows


def _without_learning(of: explained.Explained, scheme: schemes.Scheme) -> list[dict]:
    """What points where something is loud, whatever the classifier has learned."""
    front_end, clips = of.problem.front_end, of.clips
    heard = np.stack([explained.spectrogram_of(front_end, clip) for clip in clips])
    network = of.problem.classifier(_untrained(of))
    maps = np.concatenate([look.run(network, [one], 1)[0].cells for one in heard])
    effects = explained.effects_of(network, front_end, clips, maps, (scheme,))[scheme]
    where = {
        "loudest region": scoring.loudest(of.grid, heard, scheme),
        f"{trust.CLASS}, {stable.RANDOM}": scoring.whole(
            network, effects, explained.PLANTED, scheme, kind="contrastive"
        ),
    }
    return [
        _row(name, scheme, scoring.scored(of.grid, scheme, found, of.boxes))
        for name, found in where.items()
    ]


def _untrained(of: explained.Explained) -> convnext.ConvNeXt:
    """The network with random weights."""
    return convnext.ConvNeXt(
        of.model.config, rngs=nnx.Rngs(of.config.seed + OTHER_SEED)
    )


def _row(
    method: str,
    scheme: schemes.Scheme,
    scores: dict[str, np.ndarray],
    way: variants.Way | None = None,
) -> dict[str, Any]:
    plain = {name: np.round(values, 6).tolist() for name, values in scores.items()}
    how = dict(zip(("evidence", "locate"), way, strict=True)) if way else {}
    return {"method": method, "scheme": scheme, "scores": plain, **how}


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
    with (
        stages("stability"),
        progress.bar("stability", len(some), "clip") as on_progress,
    ):
        return stable.measured(
            fitting,
            again,
            some,
            explained.PLANTED,
            untrained=of.problem.classifier(_untrained(of)),
            on_progress=on_progress,
        )
