"""Scores over clips and seeds as tables, with bootstrap intervals."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from typing import Any

import numpy as np

from apex_jax import schemes

# The scheme that an event is made for, and the axes along which it has a place.
FITS: dict[str, tuple[schemes.Scheme, str]] = {
    "burst": ("square", "both"),
    "band": ("frequency", "frequency"),
    "click": ("time", "time"),
    "sound": ("time", "time"),
}
DRAWS = 2000
Interval = tuple[float, float, float]


def interval(
    values: Sequence[Sequence[float]], *, draws: int = DRAWS, seed: int = 0
) -> Interval:
    """Mean over seeds of the mean over clips, and a 95 % bootstrap interval of it.

    Seeds are drawn with replacement, and of each the clips: with one seed the interval
    says what other test clips would change, with several also what other trainings.

    Args:
      values: of each seed one a clip.
      draws: of the bootstrap.
      seed: of the draws.
    """
    rng = np.random.default_rng(seed)
    arrays = [np.asarray(v, float) for v in values]
    # Of each draw and seed the mean of its clips, drawn anew.
    means = np.stack(
        [
            np.stack(
                [
                    a[rng.integers(len(a), size=(draws // 10, len(a)))].mean(axis=1)
                    for _ in range(10)
                ]
            ).ravel()
            for a in arrays
        ]
    )
    chosen = rng.integers(len(arrays), size=(len(arrays), means.shape[1]))
    drawn = np.take_along_axis(means, chosen, axis=0).mean(axis=0)
    low, high = np.percentile(drawn, [2.5, 97.5])
    return float(np.mean([a.mean() for a in arrays])), float(low), float(high)


def summary(parts: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """What the seeds of an event came to."""
    rows = []
    for index, row in enumerate(parts[0]["rows"]):
        same = [part["rows"][index] for part in parts]
        rows.append(
            {
                **{name: value for name, value in row.items() if name != "scores"},
                "scores": {
                    name: interval([one["scores"][name] for one in same])
                    for name in row["scores"]
                },
                "by_seed": {
                    name: [float(np.mean(one["scores"][name])) for one in same]
                    for name in row["scores"]
                },
            }
        )
    learned = []
    for index, row in enumerate(parts[0]["learned"]):
        same = [part["learned"][index] for part in parts]
        learned.append(
            {
                "variant": row["variant"],
                "scheme": row["scheme"],
                "purity": np.mean([one["purity"] for one in same], axis=0).tolist(),
                "condition_number": [one["condition_number"] for one in same],
                "max_abs_logit_error": max(one["max_abs_logit_error"] for one in same),
                "changed_predictions": sum(one["changed_predictions"] for one in same),
                "rank": [one["rank"] for one in same],
            }
        )
    return {
        "fits": parts[0]["fits"],
        "accuracy": [part["accuracy"] for part in parts],
        "clips": [part["clips"] for part in parts],
        "rows": rows,
        "learned": learned,
    }


def _name(row: dict[str, Any]) -> str:
    kind = row.get("evidence")
    return row["method"] + (f", {kind}" if kind else "")


def _cell(found: Interval | None) -> str:
    if found is None:
        return ""
    mean, low, high = found
    return f"{mean:.2f} [{low:.2f}, {high:.2f}]"


def markdown(results: dict[str, Any]) -> str:
    """A table an event: the scheme that fits it in full, the others in short."""
    parts = []
    for event, found in results["events"].items():
        scheme, axis = found["fits"]
        accuracy = ", ".join(f"{a:.3f}" for a in found["accuracy"])
        parts.append(
            f"### {event}: {_words(scheme)} scheme\n\nTest accuracy {accuracy}; "
            f"{sum(found['clips'])} clips with the event found.\n"
        )
        lines = [
            "| method | hit | best of 4 | overlap | evidence of the top | of 4 |",
            "| --- | --- | --- | --- | --- | --- |",
        ]
        for row in found["rows"]:
            if row["scheme"] != scheme:
                continue
            s = row["scores"]
            cells = [s.get(n) for n in (axis, f"{axis}, best", "iou")]
            cells += [s.get("share"), s.get("share, best")]
            lines.append(f"| {_name(row)} | " + " | ".join(map(_cell, cells)) + " |")
        parts.append("\n".join(lines) + "\n")
        lines = [
            "| method | " + " | ".join(_words(s) for s in schemes.SCHEMES) + " |",
            "| --- |" + " --- |" * len(schemes.SCHEMES),
        ]
        by_name: dict[str, dict[str, Any]] = {}
        for row in found["rows"]:
            by_name.setdefault(_name(row), {})[row["scheme"]] = row["scores"]
        for name, scores in by_name.items():
            cells = []
            for other in schemes.SCHEMES:
                own = _axis(other, axis)
                cells.append(f"{scores[other][own][0]:.2f}" if own else "")
            lines.append(f"| {name} | " + " | ".join(cells) + " |")
        parts.append("Hits by scheme, along the axes that both have:\n")
        parts.append("\n".join(lines) + "\n")
        lines = [
            "| U learned | scheme | purity | cond(U) | largest logit error | changed |",
            "| --- | --- | --- | --- | --- | --- |",
        ]
        for row in found["learned"]:
            before, after = row["purity"]
            condition = ", ".join(f"{c:.0f}" for c in row["condition_number"])
            lines.append(
                f"| {row['variant']} | {_words(row['scheme'])} | {before:.3f} to "
                f"{after:.3f} | {condition} | {row['max_abs_logit_error']:.1e} | "
                f"{row['changed_predictions']} |"
            )
        parts.append("\n".join(lines) + "\n")
    return "\n".join(parts)


def _axis(scheme: schemes.Scheme, axis: str) -> str | None:
    """The axis that a scheme and an event both have."""
    fixed = {"time": ("time",), "frequency": ("frequency",)}.get(
        scheme, ("time", "frequency", "both")
    )
    if axis in fixed:
        return axis
    return fixed[0] if axis == "both" else None


def comma_separated(results: dict[str, Any]) -> str:
    """Every score with its interval, a line each."""
    stream = io.StringIO()
    writer = csv.writer(stream)
    writer.writerow(
        [
            "event",
            "scheme",
            "method",
            "evidence",
            "score",
            "mean",
            "low",
            "high",
            "seeds",
        ]
    )
    for event, found in results["events"].items():
        for row in found["rows"]:
            for name, numbers in row["scores"].items():
                by_seed = " ".join(f"{v:.4f}" for v in row["by_seed"][name])
                writer.writerow(
                    [
                        event,
                        row["scheme"],
                        row["method"],
                        row.get("evidence", ""),
                        name,
                        *(f"{v:.4f}" for v in numbers),
                        by_seed,
                    ]
                )
    return stream.getvalue()


def terminal(results: dict[str, Any]) -> str:
    """Of each event the hits of the scheme that fits it."""
    lines = []
    for event, found in results["events"].items():
        scheme, axis = found["fits"]
        lines.append(f"\n{event}: pointing at it under {_words(scheme)}")
        for row in found["rows"]:
            if row["scheme"] == scheme:
                s = row["scores"]
                best = (
                    f"   best of 4 {s[f'{axis}, best'][0]:.2f}" if "share" in s else ""
                )
                lines.append(f"  {_name(row):28} {_cell(s[axis])}{best}")
    return "\n".join(lines)


def _words(scheme: str) -> str:
    return scheme.replace("_", "-")


FORMS = {"md": markdown, "csv": comma_separated}
