"""What the folds came to, and the tables of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from apex_jax import metrics, significance
from experiments import layout, methods

SCORES = {"accuracy": "accuracy", "cmap": "cmAP", "auroc": "AUROC"}


def over_folds(scores: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Mean and spread (standard deviation) over folds, by method and score."""
    found: dict[str, Any] = {}
    for method in methods.TITLES:
        found[method] = {
            name: _mean_and_spread([fold[method][name] for fold in scores])
            for name in SCORES
        }
    return found


def masked(
    folds: Sequence[Mapping[str, np.ndarray]], own_share: float | None = None
) -> dict[str, Any]:
    """Accuracies with regions hidden: over folds, and tested over all their clips.

    Args:
      folds: of each fold `target [clip]` and the logits `none` and `apex` `[clip,
        classes]` and `random [draw, clip, classes]`.
      own_share: as `masking.Study` has it.
    """
    apex, random, target = (
        np.concatenate([fold[name] for fold in folds], axis=axis)
        for name, axis in (("apex", 0), ("random", 1), ("target", 0))
    )
    return {
        "none": _mean_and_spread([_accuracy(f["none"], f["target"]) for f in folds]),
        "apex": _mean_and_spread([_accuracy(f["apex"], f["target"]) for f in folds]),
        "random": _mean_and_spread(
            [
                float(np.mean([_accuracy(draw, f["target"]) for draw in f["random"]]))
                for f in folds
            ]
        ),
        # Over draws: how far chance alone moves the accuracy of all clips.
        "random_draws": float(
            metrics.spread([_accuracy(draw, target) for draw in random])
        ),
        "p_value": significance.p_value(
            lambda logits: -_accuracy(logits, target),
            apex,
            random,
            own_share=own_share,
        ),
    }


def rows(results: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """The table of scores."""
    head = ("method", *SCORES.values())
    return [
        head,
        *(
            (title, *(_spread(results["scores"][method][name]) for name in SCORES))
            for method, title in methods.TITLES.items()
        ),
    ]


def masked_rows(results: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """The table of accuracies with regions hidden.

    Beside the spread over folds, that of all clips' accuracy over the random draws.
    """
    head = (
        "hidden", "nothing", "random region", "draws", "APEX's region", "p", "purity"
    )  # fmt: skip
    return [
        head,
        *(
            (
                scheme.replace("_", "-"),
                _spread(found["none"]),
                _spread(found["random"]),
                f"±{found['random_draws']:.3f}",
                _spread(found["apex"]),
                f"{found['p_value']:.3f}",
                "{:.2f}→{:.2f}".format(*found["purity"]),
            )
            for scheme, found in results["masking"].items()
        ),
    ]


def terminal(results: Mapping[str, Any]) -> str:
    """For 80 columns."""
    lines = ["", f"mean ± spread over {len(results['folds'])} folds", ""]
    lines += [
        f"{first:16}" + "".join(f"{cell:>16}" for cell in others)
        for first, *others in rows(results)
    ]
    lines += ["", "accuracy with regions hidden"]
    widths = (14, 14, 7, 14, 6, 10)
    for first, *others in masked_rows(results):
        cells = zip(others, widths, strict=True)
        lines.append(f"{first:14}" + "".join(f"{c:>{w}}" for c, w in cells))
    draws = "draws: spread of all clips' accuracy over the random draws"
    return "\n".join([*lines, "", draws, *layout.note_on_p(results), ""])


def as_csv(results: Mapping[str, Any]) -> str:
    """Both tables, one below the other."""
    return layout.as_csv([*rows(results), (), *masked_rows(results)])


def markdown(results: Mapping[str, Any]) -> str:
    """Both tables."""
    return "\n".join(map(layout.markdown, (rows(results), masked_rows(results))))


def latex(results: Mapping[str, Any]) -> str:
    """Both tables, with booktabs."""
    return "\n".join(map(layout.latex, (rows(results), masked_rows(results))))


FORMS = {"csv": as_csv, "md": markdown, "tex": latex}


def _accuracy(logits: np.ndarray, target: np.ndarray) -> float:
    return float(np.mean(np.argmax(logits, axis=1) == target))


def _mean_and_spread(values: Sequence[float]) -> dict[str, float]:
    return {"mean": float(np.mean(values)), "spread": float(metrics.spread(values))}


def _spread(value: Mapping[str, float]) -> str:
    return f"{value['mean']:.3f} ± {value['spread']:.3f}"
