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
    checkpoint,
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
    settings,
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

SCORES = 6  # version of what is measured; raise it when a change alters a number
# As it is mostly used, and with what occlusion has in the place of what is left out.
LIME: dict[str, settings.Instead] = {
    "LIME": "silence",
    "LIME, usual sound": "usual",
}
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
    if "sound" in events:
        if config.sounds is None:
            runs.say("event sound is left out: it takes --sounds DIR, a copy of ESC-10")
            events.remove("sound")
        else:
            corpus_lib.folders_of(config.sounds)  # raises now, not after other events
    parts: dict[str, list[dict[str, Any]]] = {}
    left_out: list[dict[str, Any]] = []
    for event in events:
        for seed in range(config.seed, config.seed + config.seeds):
            runs.say(f"\n{event}, seed {seed}")
            folder = output / event / f"seed{seed}"
            with stages(f"{event} {seed}"):
                try:
                    part = _one(config, folder, event, seed, mesh)
                except disentangle.UntrainedError as error:
                    # Other seeds stand; who reads the tables is told of this one.
                    left_out.append(
                        {"event": event, "seed": seed, "reason": str(error)}
                    )
                    runs.say(f"{event}, seed {seed} is left out: {error}")
                else:
                    parts.setdefault(event, []).append(part)
    if not parts:
        raise ValueError("no network learned to tell clips with an event apart")
    results = {
        "experiment": "localisation",
        "least_overlap": pointing.LEAST_OVERLAP,
        "events": {event: summary.of(found) for event, found in parts.items()},
        "seeds": config.seeds,
        "left_out": left_out,
        **results_lib.how(config, mesh, stages),
    }
    if hosts.is_primary():
        for name, found in parts.items():
            pictures.of_seeds(output / name, found, results["events"][name])
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
    if of.accuracy < tables.LEAST_ACCURACY:
        runs.say(
            f"below {tables.LEAST_ACCURACY}: what follows explains a weak classifier"
        )
    result = {
        "made_from": key,
        "event": event,
        "seed": seed,
        "accuracy": of.accuracy,
        "clips": len(of.clips),
        "explained": [
            {
                "clip": clip.id,
                "recording": made.recordings.get(str(clip.path), clip.id),
                "box": _rounded(box),
                "probability": round(float(p), 6),
            }
            for clip, box, p in zip(of.clips, of.boxes, of.probabilities, strict=True)
        ],
        "grid": dataclasses.asdict(of.grid),
        "fits": list(plants.FITS[event]),
        **_score(of, stages),
        "skipped_files": len(skip_log),
        "settings": _settings(config),
        "device": f"{mesh.size} x {mesh.devices.flat[0].device_kind}",
        "versions": dict(checkpoint.versions()),
        **stages.to_dict(),
    }
    if hosts.is_primary():
        skip_log.write_csv(folder / "skipped.csv")
    runs.write_json(done, result)
    return result


def _of_one(config: options.Config) -> options.Config:
    """What one event and seed depend on: not on which others there are."""
    return dataclasses.replace(config, events=(), seeds=1)


def _settings(config: options.Config) -> dict[str, Any]:
    """What a reader of the scores may want to know; of folders only the names."""
    found = runs.plain(_of_one(config))
    for name in ("output_dir", "overwrite", "hosts"):
        del found[name]
    for name in ("speech", "sounds"):
        folder = getattr(config, name)
        found[name] = folder and folder.resolve().name
    return found


def _score(of: explained.Explained, stages: progress.Stages) -> dict[str, Any]:
    """Everything that is asked of the explanations, and how each U was learned."""
    scheme, _ = plants.FITS[of.event]
    rows, learned, fitting = _pointing(of, scheme)
    names = [n for n in variants.SHOWN if n in fitting] or list(fitting)[:1]
    in_full = {name: fitting[name] for name in names}
    if hosts.is_primary():
        transforms = {name: found.transform for name, found in in_full.items()}
        figures.save(
            pictures.regions(of, transforms, scheme), of.folder / "regions.png", dpi=120
        )
    config, some = of.config, of.clips[: of.config.lime_clips]
    heats: dict[str, list[np.ndarray]] = {}
    for name, instead in LIME.items() if some else ():
        with stages(name), progress.bar(name, len(some), "clip") as on_progress:
            heats[name] = scoring.lime(
                next(iter(fitting.values())),
                some,
                explained.PLANTED,
                seed=config.seed,
                num_samples=config.lime_samples,
                instead=instead,
                on_progress=on_progress,
            )
        rows += [
            _row(of, name, one, scoring.of_heat(of.grid, heats[name], one))
            for one in schemes.SCHEMES
        ]
    some = of.clips[: config.faithful_clips]
    with (
        stages("faithfulness"),
        progress.bar("faithfulness", len(some), "clip") as on_progress,
    ):
        faithful = trust.faithful(
            in_full,
            some,
            explained.PLANTED,
            seed=config.seed,
            steps=config.curve_steps,
            lime=heats.get("LIME", ()),
            on_progress=on_progress,
        )
    cached = methods.features(of.cache_dir, of.problem, config, of.model, scheme)
    again, other_seed = _again(of, scheme)
    return {
        "rows": rows,
        "learned": learned,
        "faithful": faithful,
        "masked": trust.masked(of, trust.with_raw(fitting), scheme),
        "consistent": trust.consistent(fitting, cached),
        "again": again,
        "stable": _stability(of, stages, in_full, other_seed),
    }


def _pointing(
    of: explained.Explained, best: schemes.Scheme
) -> tuple[list[dict], list[dict], dict[str, explain.Explainer]]:
    """Scores of each method, scheme and clip; every U; explainers of scheme `best`.

    Ways to learn U that nothing else is shown of are learned under `best` alone.
    """
    rows: list[dict[str, Any]] = []
    learned: list[dict[str, Any]] = []
    fitting: dict[str, explain.Explainer] = {}
    for scheme in schemes.SCHEMES:
        rows += _baselines(of, scheme)
        if scheme == best:
            rows += _without_learning(of, scheme)
        raw = disentangle.identity(of.maps.shape[-1])
        rows += _channels(of, variants.RAW, scheme, raw)
        for variant in of.config.variants:
            if scheme != best and variant not in variants.SHOWN:
                continue
            folder = of.folder / variant / scheme
            found, own = of.learn(variant, scheme, seed=of.config.seed, folder=folder)
            if scheme == best:
                fitting[variant] = found.explainer
            rows += _channels(of, variant, scheme, found.explainer.transform)
            learned.append(_learned(of, variant, scheme, found, own))
    return rows, learned, fitting


def _learned(
    of: explained.Explained,
    variant: variants.Name,
    scheme: schemes.Scheme,
    found: methods.Learned,
    own: progress.Stages,
) -> dict[str, Any]:
    """How one U came out: of the training clips, and audited on the test clips too."""
    audit = of.audit(found.explainer.transform)
    both = found.audit, audit
    return {
        "variant": variant,
        "scheme": scheme,
        "purity": [found.history.round_purity[i] for i in (0, -1)],
        "condition_number": audit.condition_number,
        "max_abs_logit_error": max(one.max_abs_logit_error for one in both),
        "changed_predictions": sum(one.changed_predictions for one in both),
        "audited_clips": sum(one.num_clips for one in both),
        "rank": dict(found.explainer.provenance.settings)["effective rank"],
        **own.to_dict(),
    }


def _again(
    of: explained.Explained, scheme: schemes.Scheme
) -> tuple[list[dict[str, Any]], dict[str, explain.Explainer]]:
    """The same with another seed of the optimisation alone: hits, how U came out.

    Of the ways to learn U that are shown in full.
    """
    found: list[dict[str, Any]] = []
    explainers: dict[str, explain.Explainer] = {}
    for variant in of.config.variants:
        if variant not in variants.SHOWN:
            continue
        folder = of.folder / "again" / variant
        seed = of.config.seed + OTHER_SEED
        learned, own = of.learn(variant, scheme, seed=seed, folder=folder)
        explainers[variant] = learned.explainer
        row = _learned(of, variant, scheme, learned, own)
        row["rows"] = _channels(of, variant, scheme, learned.explainer.transform)
        found.append(row)
    return found, explainers


def _channels(
    of: explained.Explained,
    name: str,
    scheme: schemes.Scheme,
    transform: disentangle.Transform,
) -> list[dict[str, Any]]:
    """Of the channels under U, in every way to place them."""
    rows = []
    for way in variants.WAYS:
        found = of.channels(transform, scheme, *way)
        row = _row(of, name, scheme, found.where, way, more=found.parts.shares())
        row["top"] = found.top.tolist()
        if way[1] == "map":  # what is carried does not hang on where it is
            row["parts"] = {
                name: _rounded(values) for name, values in found.parts._asdict().items()
            }
        rows.append(row)
    return rows


def _baselines(of: explained.Explained, scheme: schemes.Scheme) -> list[dict]:
    """What has no channels: chance, CAM, Grad-CAM, occlusion of the class."""
    chance = scoring.random(of.grid, scheme, of.boxes)
    always = scoring.constant(of.grid, scheme, of.known, len(of.clips))
    rows = [
        {
            "method": "random",
            "scheme": scheme,
            "scores": {name: _rounded(values) for name, values in chance.items()},
        },
        _row(of, "always the same", scheme, always),
    ]
    for kind, locate in variants.WAYS:
        asked = (of.classifier, of.views(scheme, locate), explained.PLANTED, scheme)
        name = "CAM" if locate == "map" else trust.CLASS
        where = {name: scoring.whole(*asked, kind=kind)}
        if locate == "map":
            where["Grad-CAM"] = scoring.grad_cam(*asked, kind=kind)
        rows += [
            _row(of, name, scheme, found, (kind, locate))
            for name, found in where.items()
        ]
    return rows


def _without_learning(of: explained.Explained, scheme: schemes.Scheme) -> list[dict]:
    """What points where something is loud, whatever the classifier has learned."""
    front_end, clips = of.problem.front_end, of.clips
    heard = np.stack([explained.spectrogram_of(front_end, clip) for clip in clips])
    network = of.problem.classifier(_untrained(of))
    seen = [look.run(network, [one], 1) for one in heard]
    maps = np.concatenate([np.asarray(views.cells) for views, _ in seen])
    # The class that it takes the clip for: the sign of a random head's is random, and
    # of the planted class it might be what speaks against it.
    said = np.concatenate([logits for _, logits in seen]).argmax(axis=1)
    effects = explained.effects_of(network, front_end, clips, maps, (scheme,))[scheme]
    where = {
        "loudest region": scoring.loudest(of.grid, heard, scheme),
        "most unusual region": scoring.unusual(of.grid, heard, scheme),
        f"{trust.CLASS}, {stable.RANDOM}": scoring.whole(
            network, effects, said, scheme, kind="contrastive"
        ),
    }
    return [_row(of, name, scheme, found) for name, found in where.items()]


def _untrained(of: explained.Explained) -> convnext.ConvNeXt:
    """The network with random weights."""
    return convnext.ConvNeXt(
        of.model.config, rngs=nnx.Rngs(of.config.seed + OTHER_SEED)
    )


def _row(
    of: explained.Explained,
    method: str,
    scheme: schemes.Scheme,
    where: scoring.Where,
    way: variants.Way | None = None,
    *,
    more: dict[str, np.ndarray] | None = None,
) -> dict[str, Any]:
    """Scores of the first clips, as many as there are places; and the places."""
    locations, there = where
    scores = scoring.scored(of.grid, scheme, where, of.boxes[: len(locations)])
    return {
        "method": method,
        "scheme": scheme,
        "scores": {name: _rounded(v) for name, v in {**scores, **(more or {})}.items()},
        "locations": locations.tolist(),
        "there": there.tolist(),
        **(dict(zip(("evidence", "locate"), way, strict=True)) if way else {}),
    }


def _rounded(values: np.ndarray) -> list[Any]:
    return np.round(np.asarray(values, np.float64), 6).tolist()


def _stability(
    of: explained.Explained,
    stages: progress.Stages,
    fitting: dict[str, explain.Explainer],
    again: dict[str, explain.Explainer],
) -> list[dict[str, Any]]:
    """What is left of explanations after a change; nothing where no clips are asked."""
    some = of.clips[: of.config.stable_clips]
    if not some:
        return []
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
