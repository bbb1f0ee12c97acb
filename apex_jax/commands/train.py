"""`apex-jax train`: a ConvNeXt for a folder of sounds.

    apex-jax train --data sounds --out runs/sounds

The front end is chosen from the data; the network of the best epoch is kept with all
that is needed to use it, and validation and test clips tell what it is worth.
"""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
from flax import nnx
from jax.sharding import Mesh

from apex_jax import (
    audio,
    checkpoint,
    data,
    dataset,
    hosts,
    metrics,
    objective,
    progress,
    runs,
    suggest,
)
from apex_jax import classifier as classifier_lib
from apex_jax import mesh as mesh_lib
from apex_jax import train as training
from apex_jax.commands import options
from apex_jax.models import convnext

LAYER_SCALE = 1.0  # the published 1e-6 is made for 300 epochs on ImageNet


def main(config: options.Train) -> dict[str, Any]:
    """Trains, writes the run's folder, and returns `results.json`."""
    config.train.check()
    runs.check_least(config, seed=0)
    stages, skip_log = progress.Stages(), data.SkipLog(strict=config.strict)
    mesh = mesh_lib.make()
    with stages("data"):
        found = dataset.read(config.data, shares=config.split, skip_log=skip_log)
        runs.report("data", str(found), *found.notes)
        _check(found, config.data)
        config = _resolved(config, found)
        made = {"command": "train", "clips": runs.digest_of(*found.clips)}
        runs.hold(config.out, config, **made)
        front_end = _front_end(config, found, skip_log)
    with stages("train"):
        begin = functools.partial(runs.begin, config.out, config, **made)
        model, epochs = _train(config, found, front_end, mesh, skip_log, begin)
    best = min(epochs, key=lambda epoch: epoch.validation_loss)
    with stages("evaluate"):
        scores = {
            name: _scores(name, model, found, clips, front_end, mesh, skip_log)
            for name, clips in found.clips._asdict().items()
            if name != "train" and clips
        }
    if hosts.is_primary():
        skip_log.write_csv(config.out / runs.SKIPPED)
    results = {
        "command": "train",
        "model": model.config.size,
        "class_names": list(found.class_names),
        "activation": found.activation,
        "clips": {name: len(part) for name, part in found.clips._asdict().items()},
        "skipped_files": len(skip_log),
        "best_epoch": best.epoch,
        "scores": scores,
        "front_end": front_end.to_dict(),
        **stages.to_dict(),
        "device": f"{mesh.size} x {mesh.devices.flat[0].device_kind}",
        "versions": dict(checkpoint.versions()),
    }
    runs.write_json(config.out / "results.json", results)
    runs.report(
        "best epoch",
        f"{best.epoch} of {len(epochs)}, validation loss {best.validation_loss:.3f}",
    )
    for name, values in scores.items():
        runs.report(name, ", ".join(f"{k} {v:.3f}" for k, v in values.items()))
    then = f"apex-jax fit --weights {config.out} --out NAME"
    runs.report_end(config.out, skip_log, stages, then)
    return results


def _check(found: dataset.Dataset, source: Path) -> None:
    """Raises for data that no classifier can be trained on."""
    if len(found.class_names) < 2:
        raise ValueError(
            f"{source} has one class, {found.class_names[0]}; a classifier needs two "
            "or more"
        )
    if not (found.clips.train and found.clips.validation):
        raise ValueError(
            f"{source}: {found}; training needs clips to train on and to validate on"
        )


def _resolved(config: options.Train, found: dataset.Dataset) -> options.Train:
    """What runs, wherever it is looked at from."""
    training_config = config.train
    if training_config.random_crop and any(c.offset_s for c in found.clips.train):
        runs.report("crops", "none at random: the manifest says where clips start")
        training_config = dataclasses.replace(training_config, random_crop=False)
    return dataclasses.replace(
        config,
        data=Path(os.path.realpath(config.data.expanduser())),
        train=training_config,
    )


def _front_end(
    config: options.Train, found: dataset.Dataset, skip_log: data.SkipLog
) -> audio.FrontEnd:
    """The front end asked for, what was left out chosen from the training clips."""
    total = min(suggest.MAX_CLIPS, len(found.clips.train))
    with progress.bar("measure", total, "clip") as on_progress:
        choice = suggest.front_end(
            found.clips.train,
            config.front_end.settings(),
            skip_log=skip_log,
            on_progress=on_progress,
        )
    rows, frames = choice.front_end.shape
    runs.report("spectrogram", f"{rows} x {frames} pixels a clip; chosen:")
    for name, reason in choice.reasons.items():
        value = f"{getattr(choice.front_end, name):g}"
        runs.report("", f"{name:12}{value:>8}  {reason}")
    return choice.front_end


def _train(
    config: options.Train,
    found: dataset.Dataset,
    front_end: audio.FrontEnd,
    mesh: Mesh,
    skip_log: data.SkipLog,
    begin: Callable[[], None],
) -> tuple[convnext.ConvNeXt, list[training.Epoch]]:
    shape = convnext.ConvNeXtConfig.named(
        config.model,
        num_classes=len(found.class_names),
        layer_scale_init=LAYER_SCALE,
    )
    if min(front_end.shape) < shape.stride:
        raise ValueError(
            f"the spectrogram has {front_end.num_rows} rows and "
            f"{front_end.num_frames} frames; a ConvNeXt needs {shape.stride} of each: "
            "more --front-end.n-mels, or a shorter --front-end.hop-length"
        )
    seed = config.seed
    clips = found.clips

    def fit(**options: Any) -> tuple[convnext.ConvNeXt, list[training.Epoch]]:
        # Compiled: one by one, the random draws would each compile by themselves.
        model = jax.jit(lambda: convnext.ConvNeXt(shape, rngs=nnx.Rngs(seed)))()
        return training.fit(
            model,
            clips.train,
            clips.validation,
            front_end,
            class_names=found.class_names,
            activation=found.activation,
            seed=seed,
            config=config.train,
            mesh=mesh,
            skip_log=skip_log,
            **options,
        )

    # Kept whatever comes after: training is what takes longest.
    return runs.trained(
        config.out / "classifier",
        fit,
        load=checkpoint.load_classifier,
        save=functools.partial(
            checkpoint.save_classifier,
            class_names=found.class_names,
            activation=found.activation,
            front_end=front_end.to_dict(),
            overwrite=True,
        ),
        clips=(clips.train, clips.validation),
        made_from={
            "settings": repr((shape, config.train, seed, found.activation)),
            "classes": repr(found.class_names),
            "front end": repr(front_end),
        },
        overwrite=config.overwrite,
        label="train",
        total=training.clips_in_all(config.train, len(clips.train), mesh),
        skip_log=skip_log,
        begin=begin,
    )


def _scores(
    name: str,
    model: convnext.ConvNeXt,
    found: dataset.Dataset,
    clips: list[data.Clip],
    front_end: audio.FrontEnd,
    mesh: Mesh,
    skip_log: data.SkipLog,
) -> dict[str, float]:
    read, _, logits = runs.predictions(
        name,
        convnext.as_classifier(model, found.class_names, found.activation),
        clips,
        front_end,
        mesh=mesh,
        skip_log=skip_log,
    )
    return metrics.summary(
        objective.targets(read, len(found.class_names)).astype(bool),
        classifier_lib.probabilities(logits, found.activation),
        found.activation,
    )
