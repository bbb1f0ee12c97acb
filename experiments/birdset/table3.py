"""The paper's Table 3: ConvNeXt, AudioProtoPNet and APEX on BirdSet's test sets."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from apex_jax import (
    data,
    hosts,
    metrics,
    objective,
    progress,
    runs,
    schemes,
)
from apex_jax import mesh as mesh_lib
from experiments import methods
from experiments import results as results_lib
from experiments.birdset import labels, networks, options, tables


def main(config: options.Config) -> dict[str, Any]:
    """Fills the table, writes it in every form, and returns `results.json`."""
    config.check()
    output = config.output_dir or Path("runs") / "birdset-table3"
    config = networks.resolved(config, output)
    scheme = schemes.parse(config.scheme)
    tests = config.test_on or options.TESTS
    known = {name: labels.read(config.labels, name) for name in tests}
    stages, skip_log = progress.Stages(), data.SkipLog(strict=config.strict)
    mesh = mesh_lib.make()
    if runs.claim(output, config):
        skip_log.read_csv(output / "skipped.csv")
    with stages("train"):
        trained = networks.get(config, output, mesh, skip_log, with_other=True)
    for name, names in known.items():  # before hours of work
        trained.restricted(names, name)
    problem, small = networks.explained(config, trained, mesh, skip_log)
    learned = networks.learn(
        stages,
        config,
        jax.random.key(config.seed),
        output,
        problem,
        small,
        scheme,
        cache_dir=output / "cache",
    )
    found: dict[str, Any] = {}
    for name, names in known.items():
        file = output / name / "results.json"
        clips = networks.read(config, name, "test_5s", names, skip_log)
        settings = runs.settings_of(
            _of_one(config),
            runs.digest_of(clips),
            (trained.classifier, trained.other, learned.explainer.transform),
        )
        if runs.is_finished(file, settings):
            runs.say(f"{name}: finished before, in {file.parent}")
        else:
            with stages(name):
                row = _test(config, problem, trained, learned.explainer.transform,
                            name, names, clips)  # fmt: skip
            file.parent.mkdir(exist_ok=True)
            if hosts.is_primary():  # before what says that the part is finished
                skip_log.write_csv(output / "skipped.csv")
            runs.write_json(file, row | {"settings": settings})
            hosts.barrier(f"tested {name}")
        found[name] = runs.read_json(file)
    results = {
        "table": 3,
        "scheme": config.scheme,
        "train_on": config.train_on,
        "validate_on": config.validate_on,
        "explain_on": config.explain_on,
        "tests": found,
        **learned.to_dict(),
        "push": trained.push,
        "paper": tables.PAPER,
        "skipped_files": len(skip_log),
        **results_lib.how(config, mesh, stages),
    }
    if hosts.is_primary():
        skip_log.write_csv(output / "skipped.csv")
    results_lib.write(
        output,
        "table3",
        results,
        tables.SCORED,
        tables.scored_terminal(results),
    )
    return results


def _of_one(config: options.Config) -> options.Config:
    """What one set's scores depend on: not on the others, nor on what is hidden."""
    usual = options.Config(data_dir=config.data_dir, labels=config.labels)
    names = ("test_on", "mask_draws", "exclude_own", "evidence", "locate")
    return dataclasses.replace(config, **{name: getattr(usual, name) for name in names})


def _test(
    config: options.Config,
    problem: methods.Problem,
    trained: networks.Networks,
    transform: Any,
    name: str,
    names: tuple[str, ...],
    clips: Sequence[data.Clip],
) -> dict[str, Any]:
    """Scores of the three methods on one test set."""
    own = trained.restricted(names, name)
    assert own.other is not None  # asked for in `main`
    tested = methods.test(
        dataclasses.replace(problem, class_names=names),
        config,
        own.classifier,
        own.other,
        clips,
    ).with_apex(transform)
    target = objective.targets(tested.clips, len(names)).astype(bool)
    return {
        "clips": len(tested.clips),
        "without_birds": int((~target.any(axis=1)).sum()),
        "classes": len(names),
        "classes_without_positives": [
            name
            for name, there in zip(names, np.any(target, axis=0).tolist(), strict=True)
            if not there
        ],
        "scores": {
            method: scores(target, probabilities)
            for method, probabilities in tested.probabilities().items()
        },
        "invariance": dataclasses.asdict(tested.audit(transform)),
    }


def scores(target: np.ndarray, probability: np.ndarray) -> dict[str, float]:
    """BirdSet's metrics, with both rules for classes without positives.

    Args:
      target: 1 where a bird is, `[clip, classes]`.
      probability: `[clip, classes]`.

    Returns:
      cmap, which leaves such classes out; auroc, which does too; auroc_zero, which
      counts them as 0 as the reference does; t1, of the clips with a bird.
    """
    with warnings.catch_warnings():
        # Which classes they are is in the results.
        warnings.filterwarnings("ignore", message=".*classes have no positives")
        return {
            "cmap": metrics.mean_average_precision(target, probability),
            "auroc": metrics.auroc(target, probability),
            "auroc_zero": metrics.auroc(target, probability, absent="zero"),
            "t1": metrics.top1_accuracy(target, probability),
        }
