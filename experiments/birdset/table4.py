"""The paper's Table 4: regions hidden on SNE under each of the four schemes."""

from __future__ import annotations

import dataclasses
import functools
import warnings
from pathlib import Path
from typing import Any, get_args

import jax
import numpy as np

from apex_jax import classifier as classifier_lib
from apex_jax import (
    data,
    disentangle,
    explain,
    hosts,
    masking,
    metrics,
    objective,
    progress,
    runs,
    schemes,
    significance,
)
from apex_jax import mesh as mesh_lib
from apex_jax.models import convnext
from experiments import methods
from experiments import results as results_lib
from experiments.birdset import labels, networks, options, tables

TEST = "SNE"
PERMUTATIONS = 1000


def main(config: options.Config) -> dict[str, Any]:
    """Fills the table, writes it in every form, and returns `results.json`."""
    config.check()
    output = config.output_dir or Path("runs") / "birdset-table4"
    config = networks.resolved(config, output)
    (name, *others) = config.test_on or (TEST,)
    if others:
        raise ValueError(
            f"--table 4 is of one test set; --test-on names {1 + len(others)}"
        )
    names = labels.read(config.labels, name)
    stages, skip_log = progress.Stages(), data.SkipLog(strict=config.strict)
    mesh = mesh_lib.make()
    if runs.claim(output, config):
        skip_log.read_csv(output / "skipped.csv")
    with stages("train"):
        trained = networks.get(config, output, mesh, skip_log, with_other=False)
    own = trained.restricted(names, name)
    clips = networks.read(config, name, "test_5s", names, skip_log)
    problem, small = networks.explained(config, trained, mesh, skip_log)
    fit_key, mask_key = jax.random.split(jax.random.key(config.seed))

    @functools.cache
    def tested() -> tuple[classifier_lib.LinearHead, np.ndarray, np.ndarray]:
        """Of the test clips, once for all schemes that are still to be done."""
        classifier = convnext.as_classifier(own.classifier, own.class_names, "sigmoid")
        _, pooled, logits = runs.predictions(
            "audit",
            classifier,
            clips,
            problem.front_end,
            batch_size=config.batch_size,
            **problem.common,
        )
        return classifier.head, pooled, logits

    found: dict[str, Any] = {}
    for scheme in get_args(schemes.Scheme):
        file = output / scheme / "results.json"
        settings = runs.settings_of(
            config, runs.digest_of(clips, problem.splits.train), trained.classifier
        )
        if runs.is_finished(file, settings):
            runs.say(f"{scheme}: finished before, in {file.parent}")
        else:
            learned = networks.learn(
                stages,
                config,
                fit_key,
                output / scheme,
                problem,
                small,
                scheme,
                # The first scheme's are whole maps, of which the others read averages.
                cache_dir=output / "cache",
            )
            with stages(f"hide {scheme}"):
                row = learned.to_dict() | _masked(
                    mask_key, config, problem, own, learned.explainer, clips
                )
                # Clips that U was not learned on have to keep their predictions too.
                audit = _audit(learned.explainer, *tested())
                row["test_invariance"] = dataclasses.asdict(audit)
            if hosts.is_primary():  # before what says that the part is finished
                skip_log.write_csv(output / "skipped.csv")
            runs.write_json(file, row | {"settings": settings})
            hosts.barrier(f"hidden {scheme}")
        found[scheme] = runs.read_json(file)
    results = {
        "table": 4,
        "test_on": name,
        "train_on": config.train_on,
        "explain_on": config.explain_on,
        "schemes": found,
        **config.masks,
        "paper": tables.PAPER_MASKED,
        "skipped_files": len(skip_log),
        **results_lib.how(config, mesh, stages),
    }
    if hosts.is_primary():
        skip_log.write_csv(output / "skipped.csv")
    results_lib.write(
        output,
        "table4",
        results,
        tables.MASKED,
        tables.masked_terminal(results),
    )
    return results


def _audit(
    explainer: explain.Explainer,
    head: classifier_lib.LinearHead,
    pooled: np.ndarray,
    logits: np.ndarray,
) -> disentangle.Audit:
    """APEX against the untouched network on the test clips.

    Raises:
      InvarianceError: APEX changes a prediction.
    """
    return disentangle.audit(
        explainer.transform, head, pooled, logits, activation="sigmoid"
    ).check()


def _masked(
    key: jax.Array,
    config: options.Config,
    problem: methods.Problem,
    own: networks.Networks,
    explainer: explain.Explainer,
    clips: tuple[data.Clip, ...],
) -> dict[str, Any]:
    """CmAP with nothing hidden, APEX's regions hidden, random regions hidden."""
    with progress.bar("masking study", len(clips), "clip") as on_progress:
        study = masking.study(
            key,
            convnext.as_classifier(own.classifier, own.class_names, "sigmoid"),
            explainer.transform,
            clips,
            problem.front_end,
            scheme=explainer.scheme,
            **config.masks,
            batch_size=config.batch_size,
            on_progress=on_progress,
            **problem.common,
        )
    read = [clips[i] for i in study.index]
    target = objective.targets(read, len(own.class_names)).astype(bool)

    none, apex, random = (
        classifier_lib.probabilities(logits, "sigmoid")
        for logits in (study.none, study.apex, study.random)
    )

    def cmap(probability: np.ndarray) -> float:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*classes have no positives")
            return metrics.mean_average_precision(target, probability)

    drawn = [cmap(probability) for probability in random]
    return {
        "clips": len(read),
        "none": cmap(none),
        "apex": cmap(apex),
        "random": {
            "mean": float(np.mean(drawn)),
            "std": float(metrics.spread(drawn)),
        },
        "p_value": significance.p_value(
            lambda probability: -metrics.quick_cmap(target, probability),
            apex,
            random,
            own_share=study.own_share,
            permutations=PERMUTATIONS,
        ),
    }
