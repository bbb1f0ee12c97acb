"""The localisation experiment from sounds to tables; `__main__` is its command line."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import jax
import numpy as np

from apex_jax import (
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
from experiments.localisation import options, scoring, tables, trust, variants

PLANTED = corpus_lib.CLASSES.index("planted")
LEAST_ACCURACY = 0.95
EVIDENCE: tuple[settings.Evidence, ...] = ("plain", "contrastive")


def main(config: options.Config) -> dict[str, Any]:
    """Runs every event and seed, writes the tables, and returns `results.json`."""
    config.check()
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
            (output / f"localisation.{ending}").write_text(
                write(results), encoding="utf-8"
            )
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
    front_end = config.front_end_of(event)
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
        "corpus": corpus_lib.settings_of(folder / "corpus"),
    }
    if before.get("made_from") == key:
        runs.say(f"finished before, in {folder}")
        return before
    problem = methods.Problem(
        splits=made.splits,
        class_names=corpus_lib.CLASSES,
        front_end=front_end,
        mesh=mesh,
        skip_log=skip_log,
    )
    with stages("train"):
        model = methods.train_convnext(
            folder / "classifier", problem, config, patch_size=config.patch_size
        )
    with stages("test"):
        tested = runs.features(
            folder / "test-cache",
            problem.classifier(model),
            made.splits.test,
            front_end,
            content="maps",
            batch_size=config.batch_size,
            **problem.common,
        )
    logits = np.asarray(tested.features.logits)[: tested.features.num_clips]
    labels = np.array([clip.labels[0] for clip in tested.clips])
    predicted = logits.argmax(axis=1)
    accuracy = float((predicted == labels).mean())
    runs.report("accuracy", f"{accuracy:.3f} on {len(labels)} test clips")
    if accuracy < LEAST_ACCURACY:
        runs.say(f"below {LEAST_ACCURACY}: what follows explains a weak classifier")
    found = np.flatnonzero((labels == PLANTED) & (predicted == PLANTED))
    if not len(found):
        raise ValueError(
            f"{folder}: the classifier finds none of the planted events, so there is "
            "nothing to explain; train longer, --train.epochs"
        )
    clips = [tested.clips[i] for i in found]
    maps = np.asarray(tested.features.views.cells)[found]
    scored = _score(config, folder, stages, problem, model, made, clips, maps)
    result = {
        "made_from": key,
        "event": event,
        "seed": seed,
        "accuracy": accuracy,
        "clips": len(clips),
        "fits": list(tables.FITS[event]),
        **scored,
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


def _score(
    config: options.Config,
    folder: Path,
    stages: progress.Stages,
    problem: methods.Problem,
    model: convnext.ConvNeXt,
    made: corpus_lib.Corpus,
    clips: list[data.Clip],
    maps: np.ndarray,
) -> dict[str, Any]:
    """Scores of each method, scheme and clip, and how each U was learned."""
    classifier, front_end = problem.classifier(model), problem.front_end
    grid = schemes.Grid.of(maps.shape[1:3], front_end.shape, classifier.stride)
    boxes = np.array(
        [
            (*box.rows, *box.frames)
            for box in (e.box(front_end) for e in corpus_lib.of(made, clips))
        ]
    )
    rows: list[dict[str, Any]] = []
    learned: list[dict[str, Any]] = []

    def add(method: str, scheme: schemes.Scheme, scores: dict, **more: Any) -> None:
        plain = {name: np.round(v, 6).tolist() for name, v in scores.items()}
        rows.append({"method": method, "scheme": scheme, "scores": plain, **more})

    def point(name: str, scheme: schemes.Scheme, transform: disentangle.Transform):
        for kind in EVIDENCE:
            where = scoring.channels(
                transform, classifier, maps, PLANTED, scheme, kind=kind
            )
            scores = scoring.scored(grid, scheme, where.locations, boxes)
            scores |= {"share": where.share[:, 0], "share, best": where.share[:, 1]}
            add(name, scheme, scores, evidence=kind)

    fitting: dict[str, explain.Explainer] = {}
    best_scheme, _ = tables.FITS[folder.parent.name]
    for scheme in schemes.SCHEMES:
        add("random", scheme, scoring.random(grid, scheme, boxes))
        head = classifier.head
        for name, where in (
            ("CAM", scoring.cam(head, maps, PLANTED, scheme)),
            ("Grad-CAM", scoring.grad_cam(head, maps, PLANTED, scheme)),
        ):
            add(name, scheme, scoring.scored(grid, scheme, where, boxes))
        point("raw channels", scheme, disentangle.identity(maps.shape[-1]))
        for variant in config.variants:
            own = progress.Stages()
            fitted = methods.learn(
                own,
                folder / variant / scheme,
                jax.random.key(config.seed),
                problem,
                dataclasses.replace(
                    config, optimise=variants.of(variant, config.optimise)
                ),
                model,
                scheme,
                cache_dir=folder / "cache",
                trained_on=f"clips, half of them with a planted {folder.parent.name}",
            )
            explainer = fitted.explainer
            if scheme == best_scheme:
                fitting[variant] = explainer
            point(variant, scheme, explainer.transform)
            learned.append(
                {
                    "variant": variant,
                    "scheme": scheme,
                    "purity": [fitted.history.round_purity[i] for i in (0, -1)],
                    "condition_number": fitted.audit.condition_number,
                    "max_abs_logit_error": fitted.audit.max_abs_logit_error,
                    "changed_predictions": fitted.audit.changed_predictions,
                    "rank": dict(explainer.provenance.settings)["effective rank"],
                    **own.to_dict(),
                }
            )
    if config.lime_clips:
        some = clips[: config.lime_clips]
        with stages("LIME"), progress.bar("LIME", len(some), "clip") as on_progress:
            heats = scoring.lime(
                next(iter(fitting.values())),
                some,
                PLANTED,
                seed=config.seed,
                num_samples=config.lime_samples,
                on_progress=on_progress,
            )
        for scheme, where in heats.items():
            add(
                "LIME",
                scheme,
                scoring.scored(grid, scheme, where, boxes[: len(some)]),
            )
    some = clips[: config.faithful_clips]
    with (
        stages("faithfulness"),
        progress.bar("faithfulness", len(some), "clip") as on_progress,
    ):
        faithful = trust.faithful(
            fitting,
            some,
            PLANTED,
            seed=config.seed,
            steps=config.curve_steps,
            on_progress=on_progress,
        )
    cached = methods.features(folder / "cache", problem, config, model, best_scheme)
    return {
        "rows": rows,
        "learned": learned,
        "faithful": faithful,
        "consistent": trust.consistent(fitting, cached),
    }
