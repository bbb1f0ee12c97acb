"""The localisation experiment from sounds to tables; `__main__` is its command line."""

from __future__ import annotations

import dataclasses
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
from apex_jax import classifier as classifier_lib
from apex_jax import mesh as mesh_lib
from apex_jax.models import convnext
from experiments import methods
from experiments.localisation import corpus as corpus_lib
from experiments.localisation import (
    options,
    scoring,
    stable,
    tables,
    trust,
    variants,
)

PLANTED = corpus_lib.CLASSES.index("planted")
LEAST_ACCURACY = 0.95
OTHER_SEED = 1000  # what is added to a seed where another one is wanted
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
    places = [one.box(front_end) for one in corpus_lib.of(made, clips)]
    explained = Explained(
        config=config,
        folder=folder,
        event=event,
        problem=problem,
        model=model,
        clips=clips,
        maps=np.asarray(tested.features.views.cells)[found],
        boxes=np.array([(*box.rows, *box.frames) for box in places]),
    )
    result = {
        "made_from": key,
        "event": event,
        "seed": seed,
        "accuracy": accuracy,
        "clips": len(clips),
        "fits": list(tables.FITS[event]),
        **_score(explained, stages),
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


@dataclasses.dataclass(frozen=True, kw_only=True)
class Explained:
    """A trained classifier, its test clips, and what learns U for it.

    Attributes:
      config: of the experiment, with this seed.
      folder: of this event and seed.
      event: what is planted.
      problem: what the network was trained on.
      model: the network.
      clips: test clips with the event in which it was found.
      maps: their feature maps, `[clip, F, T, chan]`.
      boxes: of their events in pixels, `[clip, 4]`.
    """

    config: options.Config
    folder: Path
    event: options.Event
    problem: methods.Problem
    model: convnext.ConvNeXt
    clips: list[data.Clip]
    maps: np.ndarray
    boxes: np.ndarray

    @property
    def cache_dir(self) -> Path:
        """Where the training clips' features are."""
        return self.folder / "cache"

    @property
    def classifier(self) -> classifier_lib.Classifier:
        """The network as what is explained."""
        return self.problem.classifier(self.model)

    @property
    def grid(self) -> schemes.Grid:
        """How its map lies on the spectrogram."""
        return schemes.Grid.of(
            self.maps.shape[1:3], self.problem.front_end.shape, self.classifier.stride
        )

    def learn(
        self, variant: variants.Name, scheme: schemes.Scheme, *, seed: int, folder: Path
    ) -> tuple[methods.Learned, progress.Stages]:
        """U in one of the ways, from disk where it is there, and the time it took."""
        stages = progress.Stages()
        optimise = variants.of(variant, self.config.optimise)
        found = methods.learn(
            stages,
            folder,
            jax.random.key(seed),
            self.problem,
            dataclasses.replace(self.config, optimise=optimise),
            self.model,
            scheme,
            cache_dir=self.cache_dir,
            trained_on=f"clips, half of them with a planted {self.event}",
        )
        return found, stages


def _score(of: Explained, stages: progress.Stages) -> dict[str, Any]:
    """Everything that is asked of the explanations, and how each U was learned."""
    scheme, _ = tables.FITS[of.event]
    rows, learned, fitting = _pointing(of, scheme)
    config, some = of.config, of.clips[: of.config.lime_clips]
    if some:
        with stages("LIME"), progress.bar("LIME", len(some), "clip") as on_progress:
            heats = scoring.lime(
                next(iter(fitting.values())),
                some,
                PLANTED,
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
            PLANTED,
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
    of: Explained, best: schemes.Scheme
) -> tuple[list[dict], list[dict], dict[str, explain.Explainer]]:
    """Scores of each method, scheme and clip; every U; explainers of scheme `best`."""
    rows: list[dict[str, Any]] = []
    learned: list[dict[str, Any]] = []
    fitting: dict[str, explain.Explainer] = {}
    grid, boxes, maps, head = of.grid, of.boxes, of.maps, of.classifier.head

    def channels(name: str, scheme: schemes.Scheme, transform: disentangle.Transform):
        for kind in EVIDENCE:
            where = scoring.channels(
                transform, of.classifier, maps, PLANTED, scheme, kind=kind
            )
            scores = scoring.scored(grid, scheme, where.locations, boxes)
            scores |= {"share": where.share[:, 0], "share, best": where.share[:, 1]}
            rows.append(_row(name, scheme, scores, evidence=kind))

    for scheme in schemes.SCHEMES:
        rows.append(_row("random", scheme, scoring.random(grid, scheme, boxes)))
        for name, point in (("CAM", scoring.cam), ("Grad-CAM", scoring.grad_cam)):
            where = point(head, maps, PLANTED, scheme)
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
    of: Explained,
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
            PLANTED,
            untrained=of.problem.classifier(untrained),
            on_progress=on_progress,
        )
