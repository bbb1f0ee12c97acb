"""What the seeds of an event came to: means over clips and seeds, intervals, p."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import scipy.stats

from apex_jax import faithfulness

AGREEMENTS = (
    "same_class",
    "same_channel",
    "rank",
    "region",
    "region by chance",
    "heat",
    "prototypes",
)
DRAWS = 2000
# What tells a row from the others.
IDENTITY = ("method", "variant", "scheme", "evidence", "locate", "heat", "change")
Interval = tuple[float, float, float]
# The others are compared with it, clip by clip.
REFERENCE = {
    "method": "concentrated-few",
    "evidence": "contrastive",
    "locate": "occlusion",
}


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


def of(parts: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """What the seeds of an event came to, each part a seed's `scores.json`."""
    scheme, axis = parts[0]["fits"]
    rows = []
    # LIME is slow, and explains the first clips only.
    asked = [
        max((len(r["scores"]["both"]) for r in p["rows"] if r["method"] == "LIME"),
            default=0)
        for p in parts
    ]  # fmt: skip
    for row in parts[0]["rows"]:
        same = _same(row, [part["rows"] for part in parts])
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
                "on LIME's clips": {
                    name: float(
                        np.mean(
                            [
                                np.mean(one["scores"][name][:n])
                                for one, n in zip(same, asked, strict=True)
                            ]
                        )
                    )
                    for name in row["scores"]
                }
                if all(asked)
                else {},
                "ahead": _ahead(same, parts, axis) if row["scheme"] == scheme else None,
            }
        )
    learned = []
    for row in parts[0]["learned"]:
        same = _same(row, [part["learned"] for part in parts])
        learned.append(
            {
                "variant": row["variant"],
                "scheme": row["scheme"],
                "purity": np.mean([one["purity"] for one in same], axis=0).tolist(),
                "seconds": [
                    one["seconds"]["optimise"] - one["compile_seconds"]["optimise"]
                    for one in same
                    if "optimise" in one["seconds"]
                ],
                "condition_number": [one["condition_number"] for one in same],
                "max_abs_logit_error": max(one["max_abs_logit_error"] for one in same),
                "changed_predictions": sum(one["changed_predictions"] for one in same),
                "audited_clips": sum(one["audited_clips"] for one in same),
                "rank": [one["rank"] for one in same],
            }
        )
    return {
        "seeds": [part["seed"] for part in parts],
        "fits": parts[0]["fits"],
        "accuracy": [part["accuracy"] for part in parts],
        "clips": [part["clips"] for part in parts],
        "rows": rows,
        "learned": learned,
        "faithful": _faithful([part["faithful"] for part in parts]),
        "masked": _masked([part["masked"] for part in parts]),
        "consistent": _consistent([part["consistent"] for part in parts]),
        "again": _again(parts, scheme, axis),
        "stable": _stable([part["stable"] for part in parts]),
    }


def _same(
    row: dict[str, Any], parts: Sequence[Sequence[dict[str, Any]]]
) -> list[dict[str, Any]]:
    """The row of each seed that is of the same as this one."""
    names = [name for name in IDENTITY if name in row]
    return [
        next(o for o in part if all(o.get(name) == row[name] for name in names))
        for part in parts
    ]


def _ahead(
    same: Sequence[dict[str, Any]], parts: Sequence[dict[str, Any]], axis: str
) -> Interval | None:
    """How many more hits `REFERENCE` has than a row, on the clips that the row is of.

    Clip by clip, so that clips which all methods miss widen no interval. None where the
    reference was not run.
    """
    reference = {**REFERENCE, "scheme": same[0]["scheme"]}
    found = [
        [r for r in part["rows"] if reference.items() <= r.items()] for part in parts
    ]
    if not all(found):
        return None
    return interval(
        [
            np.array(best["scores"][axis][: len(one["scores"][axis])])
            - np.array(one["scores"][axis])
            for (best,), one in zip(found, same, strict=True)
        ]
    )


def _faithful(parts: Sequence[Sequence[dict[str, Any]]]) -> list[dict[str, Any]]:
    """Areas over all clips, and whether they beat those of random heat of the kind."""
    found = []
    for row in parts[0]:
        same = _same(row, parts)
        chance = _same({"method": "random", "heat": row["heat"]}, parts)
        own = {name: row[name] for name in ("method", "locate", "heat")}
        for name, sign in (("deletion", -1), ("insertion", 1)):
            own[name] = interval([one[name] for one in same])
            several = all(len(one[name]) > 1 for one in same)
            if row["method"] != "random" and several:
                own[f"{name} p"] = combined(
                    [
                        faithfulness.paired_p(
                            sign * np.array(one[name]), sign * np.array(other[name])
                        )
                        for one, other in zip(same, chance, strict=True)
                    ]
                )
        found.append(own)
    return found


def combined(p_values: Sequence[float]) -> float:
    """One p of several seeds', by Fisher's method."""
    return float(scipy.stats.combine_pvalues(p_values, method="fisher").pvalue)


def _masked(parts: Sequence[Sequence[dict[str, Any]]]) -> list[dict[str, Any]]:
    """Probability lost over all clips, and whether more than to random regions."""
    found = []
    for row in parts[0]:
        same = _same(row, parts)
        found.append(
            {
                **{name: row[name] for name in ("method", "evidence", "locate")},
                "own": interval([one["own"] for one in same]),
                "random": interval([one["random"] for one in same]),
                "p": combined([one["p"] for one in same]),
            }
        )
    return found


def _again(
    parts: Sequence[dict[str, Any]], scheme: str, axis: str
) -> list[dict[str, Any]]:
    """Hits, purity and conditioning of two optimisations of one network each."""
    found = []
    for row in parts[0]["again"]:
        both = [_same(row, [part[of] for part in parts]) for of in ("learned", "again")]
        hits = []
        for one in row["rows"]:
            wanted = [_same(one, [part["rows"] for part in parts])]
            wanted.append(_same(one, [other["rows"] for other in both[1]]))
            hits.append(
                {
                    "evidence": one["evidence"],
                    "locate": one["locate"],
                    "hits": [
                        [float(np.mean(w["scores"][axis])) for w in same]
                        for same in wanted
                    ],
                }
            )
        found.append(
            {
                "method": row["variant"],
                "purity": [[o["purity"][1] for o in of] for of in both],
                "condition_number": [
                    [o["condition_number"] for o in of] for of in both
                ],
                "rows": hits,
            }
        )
    return found


def _stable(parts: Sequence[Sequence[dict[str, Any]]]) -> list[dict[str, Any]]:
    """Of each agreement the interval; None where it can be said of no clip."""
    found = []
    for row in parts[0]:
        names = ("method", "evidence", "locate", "change")
        own: dict[str, Any] = {name: row[name] for name in names}
        for name in AGREEMENTS:
            known = [
                [v for v in one[name] if v is not None] for one in _same(row, parts)
            ]
            known = [values for values in known if values]
            own[name] = interval(known) if known else None
        found.append(own)
    return found


def _known_mean(values: Sequence[Any]) -> float | None:
    """The mean of what is not NaN; None of nothing."""
    known = np.concatenate([np.atleast_1d(v) for v in values])
    known = known[~np.isnan(known)]
    return float(known.mean()) if known.size else None


def _consistent(parts: Sequence[Sequence[dict[str, Any]]]) -> list[dict[str, Any]]:
    """Mean over channels and seeds."""
    return [
        {
            "method": row["method"],
            **{
                kind: _known_mean([one[kind] for one in _same(row, parts)])
                for kind in row
                if kind != "method"
            },
        }
        for row in parts[0]
    ]
