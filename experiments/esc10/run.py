"""The ESC-10 experiment from sounds to tables; `__main__` is its command line."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import jax
import numpy as np

from apex_jax import (
    atomic,
    data,
    dataset,
    explain,
    figures,
    hosts,
    masking,
    metrics,
    objective,
    progress,
    runs,
    schemes,
)
from apex_jax import mesh as mesh_lib
from experiments import methods
from experiments import results as results_lib
from experiments.esc10 import options, tables

VALIDATION = 1 / 8  # of the clips of the other folds; it chooses the epoch


def main(config: options.Config) -> dict[str, Any]:
    """Runs all folds, writes the tables, and returns `results.json`."""
    config.check()
    output = config.output_dir or Path("runs") / "esc10"
    scheme = schemes.parse(config.scheme)
    config = dataclasses.replace(config, output_dir=output, scheme=scheme)
    mesh, stages = mesh_lib.make(), progress.Stages()
    clips, names = data.class_folder(config.data_dir)
    folds = [fold_of(clip) for clip in clips]
    if absent := sorted(set(config.folds) - set(folds)):
        raise ValueError(
            f"--folds: no file of {config.data_dir} is of fold {absent[0]}; there are "
            f"{', '.join(map(str, sorted(set(folds))))}"
        )
    clips = [of_source(clip) for clip in clips]
    runs.claim(output, config, clips=runs.digest_of(clips))
    for fold in config.folds:
        folder = output / f"fold{fold}"
        runs.say(f"\nfold {fold}")
        settings = runs.settings_of(_of_fold(config), runs.digest_of(clips))
        if runs.is_finished(folder / "results.json", settings):
            runs.say(f"finished before, in {folder}")
            continue
        with stages(f"fold {fold}"):
            held = [clip for clip, own in zip(clips, folds, strict=True) if own == fold]
            rest = [clip for clip, own in zip(clips, folds, strict=True) if own != fold]
            splits = split(rest, held, len(names), config.seed)
            _fold(config, folder, fold, splits, names, mesh, settings)
    results = _summary(config, output, names)
    parts = [output / f"fold{fold}" for fold in config.folds]
    results |= {
        "skipped_files": runs.gather_skipped(output, parts),
        **results_lib.how(config, mesh, stages),
    }
    results_lib.write(output, "esc10", results, tables.FORMS, tables.terminal(results))
    return results


def fold_of(clip: data.Clip) -> int:
    """The fold that a file's name begins with.

    Raises:
      ValueError: it begins with none.
    """
    first = Path(clip.path).name.partition("-")[0]
    if not first.isdigit():
        raise ValueError(
            f"{clip.path}: names are FOLD-SOURCE-TAKE, as 1-26806-A.ogg; this one does "
            "not begin with a fold"
        )
    return int(first)


def of_source(clip: data.Clip) -> data.Clip:
    """The clip in the group of its source recording: all takes, as 1-26806-A and B."""
    return dataclasses.replace(clip, group=Path(clip.path).stem.rpartition("-")[0])


def split(
    rest: Sequence[data.Clip], held: Sequence[data.Clip], num_classes: int, seed: int
) -> data.Splits:
    """The other folds, less some clips of each class to validate on, and the fold.

    Clips of one source recording stay together.
    """
    train, validation = dataset.split(
        rest, (1 - VALIDATION, VALIDATION), num_classes=num_classes, seed=seed
    )
    return data.Splits(train=train, validation=validation, test=list(held))


def _fold(
    config: options.Config,
    folder: Path,
    fold: int,
    splits: data.Splits,
    names: tuple[str, ...],
    mesh: jax.sharding.Mesh,
    settings: str,
) -> None:
    """Trains, explains and tests on one fold, and writes its folder."""
    folder.mkdir(exist_ok=True)
    stages, skip_log = progress.Stages(), data.SkipLog(strict=config.strict)
    problem = methods.Problem(
        splits=splits,
        class_names=names,
        front_end=config.front_end,
        mesh=mesh,
        skip_log=skip_log,
    )
    fit_key, mask_key = jax.random.split(jax.random.key(config.seed))
    with stages("train"):
        model = methods.train_convnext(folder / "classifier", problem, config)
    with stages("audioprotopnet"):
        other, push = methods.train_prototypes(
            folder / "audioprotopnet", problem, config, model
        )
    with stages("test"):
        tested = methods.test(problem, config, model, other, splits.test)
    found: dict[str, Any] = {}
    for scheme in get_args(schemes.Scheme):
        runs.say(f"scheme {scheme.replace('_', '-')}")
        learned = methods.learn(
            stages,
            folder / scheme,
            fit_key,
            problem,
            config,
            model,
            scheme,
            # The first scheme's are whole maps, of which the others read averages.
            cache_dir=folder / "cache",
            trained_on=f"ESC-10 without fold {fold}",
        )
        transform = learned.explainer.transform
        with stages("masking"):
            masked, own_share = _study(mask_key, config, problem, learned.explainer)
        _keep(folder / f"masked-{scheme}.npz", masked)
        found[scheme] = learned.to_dict() | {
            "invariance": dataclasses.asdict(tested.audit(transform)),
            "own_share": own_share,
        }
        if scheme == config.scheme:
            tested = tested.with_apex(transform)
            with stages("figures"):
                _draw(config, folder, learned.explainer, tested.clips)
    target = objective.targets(tested.clips, len(names)).astype(bool)
    if hosts.is_primary():
        skip_log.write_csv(folder / "skipped.csv")
    runs.write_json(
        folder / "results.json",
        {
            "fold": fold,
            "settings": settings,
            "clips": {"train": learned.num_clips, "test": len(tested.clips)},
            "scores": {
                method: metrics.summary(target, probabilities)
                for method, probabilities in tested.probabilities().items()
            },
            "schemes": found,
            "push": push,
            "skipped_files": len(skip_log),
            **stages.to_dict(),
        },
    )


def _of_fold(config: options.Config) -> options.Config:
    """What a fold depends on: not on which others there are."""
    return dataclasses.replace(config, folds=())


def _study(
    key: jax.Array,
    config: options.Config,
    problem: methods.Problem,
    explainer: explain.Explainer,
) -> tuple[dict[str, np.ndarray], float | None]:
    """Logits with nothing, APEX's and random regions hidden, and the true classes.

    And how often a region drawn from all is APEX's, as `masking.Study` has it.
    """
    clips = problem.splits.test
    with progress.bar("masking study", len(clips), "clip") as on_progress:
        study = masking.study(
            key,
            explainer.classifier,
            explainer.transform,
            clips,
            problem.front_end,
            scheme=explainer.scheme,
            **config.masks,
            batch_size=config.batch_size,
            on_progress=on_progress,
            **problem.common,
        )
    return {
        "target": np.array([clips[i].labels[0] for i in study.index]),
        "none": study.none,
        "apex": study.apex,
        "random": study.random,
    }, study.own_share


def _keep(file: Path, arrays: dict[str, np.ndarray]) -> None:
    if hosts.is_primary():
        atomic.write(file, lambda to: np.savez(to, allow_pickle=False, **arrays))


def _draw(
    config: options.Config,
    folder: Path,
    explainer: explain.Explainer,
    clips: Sequence[data.Clip],
) -> None:
    """Explanations of the first test clip of some classes."""
    if not hosts.is_primary():
        return
    first: dict[int, data.Clip] = {}
    for clip in clips:
        first.setdefault(clip.labels[0], clip)
    (folder / "explanations").mkdir(exist_ok=True)
    for clip in list(first.values())[: config.examples]:
        figure = figures.explained(explainer(clip.path, **config.shown))
        name = f"{Path(clip.path).parent.name}-{Path(clip.path).stem}.png"
        figures.save(figure, folder / "explanations" / name, dpi=100)


def _summary(
    config: options.Config, output: Path, names: tuple[str, ...]
) -> dict[str, Any]:
    """What all folds came to."""
    folds = [runs.read_json(output / f"fold{n}" / "results.json") for n in config.folds]
    masked = {}
    for scheme in get_args(schemes.Scheme):
        arrays = [
            dict(np.load(output / f"fold{n}" / f"masked-{scheme}.npz"))
            for n in config.folds
        ]
        # Of the map, so of every fold.
        own_share = folds[0]["schemes"][scheme]["own_share"]
        masked[scheme] = tables.masked(arrays, own_share) | {
            "purity": [
                float(np.mean([f["schemes"][scheme]["purity"]["round_purity"][i]
                               for f in folds]))
                for i in (0, -1)
            ]
        }  # fmt: skip
    return {
        "experiment": "esc10",
        "class_names": list(names),
        "folds": {str(fold["fold"]): fold for fold in folds},
        "scores": tables.over_folds([fold["scores"] for fold in folds]),
        "masking": masked,
        **config.masks,
    }
