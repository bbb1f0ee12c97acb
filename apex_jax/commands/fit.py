"""`apex-jax fit`: learn what the channels of a trained classifier stand for.

    apex-jax fit --data sounds --weights runs/classifier --out runs/apex

The classifier runs once over every clip, U is learned on the training clips and
audited there and on the clips held out, and the run's folder takes all that
`apex-jax explain` needs.
"""

from __future__ import annotations

import dataclasses
import os
import shutil
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from apex_jax import (
    audio,
    cache,
    checkpoint,
    convert,
    data,
    dataset,
    disentangle,
    explain,
    figures,
    fit,
    hosts,
    inference,
    progress,
    rounding,
    runs,
    schemes,
    suggest,
)
from apex_jax import classifier as classifier_lib
from apex_jax import mesh as mesh_lib
from apex_jax.commands import options
from apex_jax.models import convnext

STATE = "optimise-state"  # of U while it is learned


def main(config: options.Fit) -> dict[str, Any]:
    """Fits, writes the run's folder, and returns `results.json`."""
    config.optimise.check()
    runs.check_least(config, windows_per_file=1, batch_size=1, seed=0)
    stages, skip_log = progress.Stages(), data.SkipLog(strict=config.strict)
    mesh = mesh_lib.make()
    with stages("data"):
        weights = _weights(config)
        model, metadata = _network(weights)
        front_end = _front_end(weights, metadata["front_end"], config.front_end)
        origin = _origin(weights)
        source = _data(config, origin)
        # What runs, wherever it is looked at from.
        config = dataclasses.replace(config, weights=weights, data=source)
        shares = dataset.Shares(**origin.get("split", {}))
        runs.report(
            "weights",
            str(weights),
            f"ConvNeXt {model.config.size}, {model.config.num_classes} classes, "
            f"clips of {front_end.clip_s:g} s at {front_end.sample_rate} Hz",
        )
        found = dataset.read(
            source,
            class_names=metadata["class_names"],
            activation=metadata["activation"],
            shares=shares,
            skip_log=skip_log,
        )
        runs.report("data", str(found), *found.notes)
        if metadata["class_names"] is None:
            _check_classes(weights, model, found)
        classifier = convnext.as_classifier(model, found.class_names, found.activation)
        if "split" not in origin and not found.given_splits:
            runs.report(
                "note",
                "nothing says which of these clips the classifier was trained on; a "
                "manifest with a column split would",
            )
        if not found.clips.train:
            raise ValueError(f"{source}: {found}; fitting needs training clips")
        made = {
            "command": "fit",
            "split": dataclasses.asdict(shares),
            "clips": runs.digest_of(*found.clips),
            "network": cache.weights_digest(classifier),
        }
        runs.hold(config.out, config, **made)
    with stages("features"):
        # To learn from; what is tested are the network's own answers.
        learner = convnext.as_classifier(
            convnext.with_matmul_dtype(model, config.matmul_dtype),
            found.class_names,
            found.activation,
        )
        cached = {
            name: runs.features(
                config.out / "cache" / name,
                learner if name == "train" else classifier,
                _cut(clips, front_end, config, skip_log),
                front_end,
                content=inference.content_for(schemes.parse(config.scheme)),
                batch_size=config.batch_size,
                mesh=mesh,
                skip_log=skip_log,
            )
            for name, clips in found.clips._asdict().items()
            if clips
        }
    with stages("optimise"):
        fitted = _fit(config, classifier, cached["train"], front_end, mesh)
        # Clips that U was not learned on have to keep their predictions too.
        invariance = {
            name: disentangle.audit(
                fitted.explainer.transform,
                classifier.head,
                part.features.pooled,
                part.features.logits,
                activation=classifier.activation,
            ).check()
            for name, part in cached.items()
        }
    rounded = None
    if config.matmul_dtype != "float32":
        with stages("check rounding"):
            fitted, rounded = fit.audited_exactly(
                fitted,
                cached["train"],
                batch_size=config.batch_size,
                mesh=mesh,
                skip_log=skip_log,
            )
            invariance["train"] = fitted.audit
    with stages("write"):
        runs.begin(config.out, config, **made)
        explain.save(config.out, fitted.explainer, overwrite=True)
        runs.write_bank(config.out / "bank.csv", fitted.explainer)
        if hosts.is_primary():
            figures.save(
                figures.purity(fitted.history), config.out / "purity.png", dpi=120
            )
            skip_log.write_csv(config.out / runs.SKIPPED)
            shutil.rmtree(config.out / STATE, ignore_errors=True)
    before, after = fitted.history.round_purity[0], fitted.history.round_purity[-1]
    results = {
        "command": "fit",
        "scheme": fitted.explainer.scheme,
        "model": model.config.size,
        "class_names": list(classifier.class_names),
        "activation": classifier.activation,
        "clips": {name: len(part.clips) for name, part in cached.items()},
        "skipped_files": len(skip_log),
        "invariance": {
            name: dataclasses.asdict(audit) for name, audit in invariance.items()
        },
        "rounding": rounded and dataclasses.asdict(rounded),
        "purity": {
            "before": before,
            "after": after,
            **dataclasses.asdict(fitted.history),
        },
        **stages.to_dict(),
        "device": f"{mesh.size} x {mesh.devices.flat[0].device_kind}",
        "versions": dict(checkpoint.versions()),
    }
    runs.write_json(config.out / "results.json", results)
    runs.report("purity", f"{before:.3f} before, {after:.3f} after")
    runs.report_audits(invariance)
    if rounded is not None:
        runs.report("rounding", rounding.in_words(rounded))
    then = f"apex-jax explain CLIP --run {config.out}"
    runs.report_end(config.out, skip_log, stages, then)
    return results


def _weights(config: options.Fit) -> Path:
    """The checkpoint of the classifier, also where its run was named."""
    if config.weights is None:
        raise ValueError(
            "--weights must name a trained classifier; apex-jax train makes one, or "
            "name torch's weights of a ConvNeXt"
        )
    weights = _place(config.weights)
    if _place(config.out) in (weights, weights.parent):
        raise ValueError(
            f"--out {config.out} is where the classifier of --weights lies; name "
            "another folder"
        )
    return weights / "classifier" if (weights / "classifier").is_dir() else weights


def _place(path: Path) -> Path:
    # Not `resolve`, which has no answer to links in a circle.
    return Path(os.path.realpath(os.path.expanduser(path)))


def _network(weights: Path) -> tuple[convnext.ConvNeXt, dict[str, Any]]:
    """The network, and what is known of it: names, activation and front end."""
    if not convert.is_source(weights):
        return checkpoint.load_classifier(weights)
    model, class_names = convert.load(weights)
    # How its logits become probabilities, the data say: one class a clip or several.
    return model, {
        "class_names": class_names,
        "activation": None,
        "front_end": None,
    }


def _check_classes(
    weights: Path, model: convnext.ConvNeXt, found: dataset.Dataset
) -> None:
    """Says which logit is taken for which class, or raises if that cannot be."""
    names, count = found.class_names, model.config.num_classes
    if len(names) != count:
        raise ValueError(
            f"{weights} has {count} classes without names, the data have {len(names)}: "
            f"{dataset.listed(names)}; apex-jax convert --class-names names them"
        )
    runs.report(
        "classes",
        f"{weights.name} names none; its logits are taken to be, in this order: "
        f"{dataset.listed(names)}",
    )


def _origin(weights: Path) -> dict[str, Any]:
    """The settings of the run that the classifier lies in; empty if in none."""
    if convert.is_source(weights):
        return {}  # what lies beside torch's weights is none of ours
    found = runs.read_json(weights.parent / "config.json") or {}
    return found if found.get("command") in ("train", "fit") else {}


def _data(config: options.Fit, origin: dict[str, Any]) -> Path:
    """The data asked for, or what the classifier was trained on."""
    if config.data is not None:
        return _place(config.data)
    if "data" not in origin:
        raise ValueError(
            "--data must name a folder or a manifest: the classifier does not say "
            "what it was trained on"
        )
    return Path(origin["data"])


def _front_end(
    weights: Path, brought: dict[str, Any] | None, wanted: suggest.Wanted
) -> audio.FrontEnd:
    """The classifier's own front end, or the one that the options describe."""
    asked = wanted.settings()
    if brought is not None:
        if asked:
            raise ValueError(
                f"{weights} brings its own front end; leave out --front-end for "
                f"{', '.join(asked)}"
            )
        return audio.FrontEnd.from_dict(brought)
    if not asked:
        raise ValueError(
            f"{weights} does not say how its spectrograms are made; say it by "
            "--front-end.sample-rate, --front-end.clip-s and so on, or by "
            "--front-end.file FILE.json"
        )
    return audio.FrontEnd.from_dict(asked)


def _cut(
    clips: list[data.Clip],
    front_end: audio.FrontEnd,
    config: options.Fit,
    skip_log: data.SkipLog,
) -> list[data.Clip]:
    """One clip a file, or several of long ones."""
    if config.windows_per_file == 1:
        return clips
    return data.windows(
        clips, front_end, max_windows=config.windows_per_file, skip_log=skip_log
    )


def _fit(
    config: options.Fit,
    classifier: classifier_lib.Classifier,
    cached: cache.Cached,
    front_end: audio.FrontEnd,
    mesh: Mesh,
) -> fit.Fit:
    with progress.bar("optimise U", config.optimise.epochs, "epoch") as on_progress:
        return fit.explainer(
            jax.random.key(config.seed),
            classifier,
            cached,
            front_end,
            schemes.parse(config.scheme),
            config=config.optimise,
            mesh=mesh,
            state_dir=config.out / STATE,
            on_epoch=lambda epoch, purity: on_progress(1),
        )
