"""`apex-jax evaluate`: what a classifier is worth, and what its regions are.

    apex-jax evaluate --run runs/apex

Scores of the classifier and of APEX, which have to agree; the invariance audit; and
the masking study: does hiding the region APEX points at hurt more than hiding a random
one of the same shape? And how much of what decides the channels carry that are shown.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from apex_jax import (
    audio,
    checkpoint,
    data,
    disentangle,
    evidence,
    explain,
    masking,
    metrics,
    objective,
    progress,
    runs,
    settings,
    significance,
)
from apex_jax import classifier as classifier_lib
from apex_jax import mesh as mesh_lib
from apex_jax.commands import clips, options

Scores = dict[str, float]
NAMES = {
    "accuracy": "accuracy",
    "top1_accuracy": "top-1 accuracy",
    "cmap": "cmAP",
    "auroc": "macro AUROC",
    "eer": "equal error rate",
}


def main(config: options.Evaluate) -> dict[str, Any]:
    """Evaluates, writes `evaluation.json`, and returns what it holds."""
    runs.check_least(config, draws=1, batch_size=1, seed=0)
    stages, skip_log = progress.Stages(), data.SkipLog(strict=config.strict)
    options: dict[str, Any] = {
        "batch_size": config.batch_size,
        "mesh": mesh_lib.make(),
        "skip_log": skip_log,
    }
    with stages("data"):
        explainer = runs.load([config.run])[config.run]
        classifier, front_end = explainer.classifier, runs.front_end_of(explainer)
        kind = config.evidence or explainer.evidence
        locate = config.locate or "occlusion"
        tested = _clips(config, classifier, front_end, skip_log)
    with stages("classify"):
        read, pooled, logits = runs.predictions(
            "classify", classifier, tested, front_end, **options
        )
        audit = disentangle.audit(
            explainer.transform,
            classifier.head,
            pooled,
            logits,
            activation=classifier.activation,
        ).check()
        apex = np.asarray(explainer.head(explainer.transform(pooled)))
    with stages("masking"), progress.bar("mask", len(read), "clip") as on_progress:
        study = masking.study(
            jax.random.key(config.seed),
            classifier,
            explainer.transform,
            read,
            front_end,
            scheme=explainer.scheme,
            draws=config.draws,
            exclude_own=config.exclude_own,
            evidence=kind,
            locate=locate,
            on_progress=on_progress,
            **options,
        )
    masked = [read[i] for i in study.index]
    random = [_scores(masked, drawn, classifier) for drawn in study.random]
    results = {
        "command": "evaluate",
        "scheme": explainer.scheme,
        "split": config.split,
        "clips": len(read),
        "skipped_files": len(skip_log),
        "class_names": list(classifier.class_names),
        "scores": {
            "classifier": _scores(read, logits, classifier),
            "apex": _scores(read, apex, classifier),
        },
        "invariance": dataclasses.asdict(audit),
        "evidence": _carried(explainer, pooled, logits, kind),
        "masking": {
            "p_value": _p_value(masked, study, classifier),
            "none": _scores(masked, study.none, classifier),
            "apex": _scores(masked, study.apex, classifier),
            "random": {
                "draws": config.draws,
                "exclude_own": config.exclude_own,
                "evidence": kind,
                "locate": locate,
                **{
                    name: {
                        key: float(statistic([draw[key] for draw in random]))
                        for key in random[0]
                    }
                    for name, statistic in (("mean", np.mean), ("std", metrics.spread))
                },
            },
        },
        **stages.to_dict(),
        "versions": dict(checkpoint.versions()),
    }
    out = config.out or config.run.expanduser() / "evaluation.json"
    listed = runs.write_skipped(out, skip_log)
    runs.write_json(out, results)
    runs.say(table(results))
    runs.report_audits({config.split: audit})
    for note in notes(results):
        runs.report("note", note)
    if listed is not None:
        runs.report("skipped", f"{len(skip_log)} files, listed in {listed}")
    runs.say(f"{'written to':{runs.INDENT}}{out}")
    return results


def table(results: dict[str, Any]) -> str:
    """The scores, for a terminal of 80 columns."""
    scores, masked = results["scores"], results["masking"]
    random = masked["random"]
    lines = [
        "",
        f"{results['clips']} clips ({results['split']}), "
        f"{len(results['class_names'])} classes, scheme "
        f"{results['scheme'].replace('_', '-')}",
        f"{'':20}{'nothing hidden':>22}{'region hidden':>30}",
        f"{'':20}{'classifier':>12}{'APEX':>10}{'random':>18}{'APEX':>12}",
    ]
    for key, value in scores["classifier"].items():
        spread = f"{random['mean'][key]:.3f} ± {random['std'][key]:.3f}"
        lines.append(
            f"{NAMES[key]:20}{value:12.3f}{scores['apex'][key]:10.3f}{spread:>18}"
            f"{masked['apex'][key]:12.3f}"
        )
    if masked["p_value"] is not None:
        lines.append(f"{'p, permutation test':60}{masked['p_value']:12.3f}")
    carried = results["evidence"]
    lines += [
        "",
        f"evidence for the predicted class ({carried['kind']}), mean over clips",
        f"{'':20}{'of what speaks for it':>24}{'of all that moves it':>24}",
        *(
            f"{name:20}{carried['share'][key]:24.2f}{carried['share_of_all'][key]:24.2f}"
            for name, key in (("top channel", "first"), ("top four", "top_four"))
        ),
        "channels that make up nine tenths of what speaks for it: "
        f"{carried['channels_for_nine_tenths']:.0f}",
        f"channels that are on top in some clip: {carried['different_top_channels']}",
    ]
    return "\n".join([*lines, ""])


def notes(results: dict[str, Any]) -> list[str]:
    """What a reader of the numbers should know before trusting an explanation."""
    masked, found = results["masking"], []
    if masked["random"]["locate"] == "occlusion":
        found.append(
            "regions are those that add most to the top channel, and so have an "
            "advantage when they are hidden; --locate map is the paper's way"
        )
    key = next(iter(results["scores"]["classifier"]), None)
    if key is None:
        return [*found, "no clip has a class, so nothing can be scored"]
    apex, random = masked["apex"][key], masked["random"]["mean"][key]
    if apex >= random:
        found.append(
            "hiding APEX's regions hurts no more than hiding random ones "
            f"({NAMES[key]} {apex:.3f} against {random:.3f})"
        )
    return found


def _carried(
    explainer: explain.Explainer,
    pooled: np.ndarray,
    logits: np.ndarray,
    kind: settings.Evidence,
) -> dict[str, Any]:
    """How much of the evidence for the predicted class the top channels carry."""
    head = evidence.head_of(explainer.head, explainer.classifier.activation, kind)
    moved = explainer.transform(pooled), jnp.asarray(logits.argmax(axis=1))

    def one(clip):
        share = evidence.contributions(head, *clip)
        found = evidence.parts(head, *clip)
        return found, evidence.needed(head, *clip), jnp.argmax(share)

    found, needed, top = jax.tree.map(np.asarray, jax.lax.map(one, moved))
    shares = found.shares()

    def means(name: str) -> dict[str, float]:
        carried = {"first": shares[name], "top_four": shares[f"{name}, best"]}
        return {which: float(np.mean(each)) for which, each in carried.items()}

    return {
        "kind": kind,
        "share": means("share"),
        "share_of_all": means("share of all"),
        "channels_for_nine_tenths": float(np.mean(needed)),
        "different_top_channels": len(np.unique(top)),
    }


def _clips(
    config: options.Evaluate,
    classifier: classifier_lib.Classifier,
    front_end: audio.FrontEnd,
    skip_log: data.SkipLog,
) -> Sequence[data.Clip]:
    """The clips to test on, cut as the run's were."""
    made = clips.settings_of(config.run)
    source = config.data or made.get("data")
    if source is None:
        raise ValueError(
            f"--data must name a folder or a manifest: {config.run} does not say what "
            "it was made from"
        )
    return clips.of_run(source, made, classifier, front_end, config.split, skip_log)


def _p_value(
    clips: Sequence[data.Clip],
    study: masking.Study,
    classifier: classifier_lib.Classifier,
) -> float | None:
    """Of "the regions hurt no more than random ones"; None of clips without a class.

    By the accuracy, or by cmAP where clips have several classes.
    """
    target = objective.targets(clips, len(classifier.class_names)).astype(bool)
    if not target.any():
        return None
    score = metrics.quick_cmap
    if classifier.activation == "softmax":
        score = metrics.top1_accuracy
    return significance.p_value(
        lambda logits: -score(target, logits),
        study.apex,
        study.random,
        own_share=study.own_share,
    )


def _scores(
    clips: Sequence[data.Clip],
    logits: np.ndarray,
    classifier: classifier_lib.Classifier,
) -> Scores:
    return metrics.summary(
        objective.targets(clips, len(classifier.class_names)).astype(bool),
        classifier_lib.probabilities(logits, classifier.activation),
        classifier.activation,
    )
