"""What the seeds of an event came to: means over clips and seeds, intervals, p."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from apex_jax import faithfulness, stability
from experiments.localisation import plants

AGREEMENTS = [field.name for field in dataclasses.fields(stability.Agreement)]
CLASS = "all channels"  # occlusion for the class as a whole
DRAWS = 2000
# What tells a row from the others.
IDENTITY = ("method", "variant", "scheme", "evidence", "locate", "heat", "change")
Interval = tuple[float, float, float]
Part = dict[str, Any]  # of an event and a seed, what `scores.json` keeps
# The others are compared with it, clip by clip: what `fit` and `explain` do.
REFERENCE = {
    "method": "concentrated-few",
    "evidence": "contrastive",
    "locate": "occlusion",
}


def interval(
    values: Sequence[Sequence[float]],
    groups: Sequence[Sequence[Any]] | None = None,
    *,
    least: float = 0.0,
    draws: int = DRAWS,
    seed: int = 0,
) -> Interval:
    """Mean over seeds of the mean over clips, and a 95 % bootstrap interval of it.

    Seeds are drawn with replacement, and of each what is independent, clips or the
    recordings that they share: with one seed the interval says what other test clips
    would change, with several also what other trainings. Where all values are 0, or all
    1, drawing them anew says nothing, and the interval is that of Clopper and Pearson:
    of other clips of the same networks, since of other networks nothing is known then.

    Args:
      values: of each seed one a clip.
      groups: of each seed which recording each value is of; those of one are drawn
        together. None where each stands for itself.
      least: that a value can be: 0, or -1 of differences; the most is 1.
      draws: of the bootstrap.
      seed: of the draws.
    """
    rng = np.random.default_rng(seed)
    arrays = [np.asarray(v, float) for v in values]
    codes = [
        np.unique(np.asarray(g), return_inverse=True)[1]
        for g in (groups or [range(len(a)) for a in arrays])
    ]
    mean = float(np.mean([a.mean() for a in arrays]))
    if mean in (0.0, 1.0) and all(np.all(a == mean) for a in arrays):
        width = 1 - 0.025 ** (1 / sum(int(c.max()) + 1 for c in codes))
        return mean, max(mean - width, least), min(mean + width, 1.0)
    # Of each draw and seed the mean of its recordings, drawn anew.
    means = []
    for array, code in zip(arrays, codes, strict=True):
        sizes, sums = np.bincount(code), np.bincount(code, weights=array)
        some = rng.integers(len(sizes), size=(draws, len(sizes)))
        means.append(sums[some].sum(axis=1) / sizes[some].sum(axis=1))
    chosen = rng.integers(len(arrays), size=(len(arrays), draws))
    drawn = np.take_along_axis(np.stack(means), chosen, axis=0).mean(axis=0)
    low, high = np.percentile(drawn, [2.5, 97.5])
    return mean, float(low), float(high)


def of(parts: Sequence[Part]) -> dict[str, Any]:
    """What the seeds of an event came to, each part a seed's `scores.json`."""
    return {
        "seeds": [part["seed"] for part in parts],
        "fits": parts[0]["fits"],
        "accuracy": [part["accuracy"] for part in parts],
        "clips": [part["clips"] for part in parts],
        "recordings": [len(set(_recordings(part))) for part in parts],
        "rows": _pointing(parts),
        "learned": _learned(parts),
        "faithful": _faithful(parts),
        "masked": _masked(parts),
        "consistent": _consistent(parts),
        "again": _again(parts),
        "stable": _stable(parts),
    }


def _recordings(part: Part) -> list[str]:
    """Of each clip what was planted in it, its own name where that was made for it."""
    return [clip["recording"] for clip in part["explained"]]


def _over_clips(
    parts: Sequence[Part], values: Sequence[Sequence[float]], *, least: float = 0.0
) -> Interval:
    """The interval of what is of the first clips of each seed, as many as there are."""
    groups = [
        _recordings(part)[: len(v)] for part, v in zip(parts, values, strict=True)
    ]
    return interval(values, groups, least=least)


def _same(row: Part, parts: Sequence[Sequence[Part]]) -> list[Part]:
    """The row of each seed that is of the same as this one."""
    # What was changed (`stable`) has a share called heat, which is no name.
    names = [name for name in IDENTITY if isinstance(row.get(name), str)]
    return [
        next(o for o in part if all(o.get(name) == row[name] for name in names))
        for part in parts
    ]


def _pointing(parts: Sequence[Part]) -> list[dict[str, Any]]:
    """Scores of every row, of each seed and over all, also on the clips of LIME."""
    scheme, axis = parts[0]["fits"]
    # LIME is slow, and explains the first clips only.
    asked = [
        max(
            (len(r["scores"]["both"]) for r in p["rows"] if r["method"] == "LIME"),
            default=0,
        )
        for p in parts
    ]
    found = []
    for row in parts[0]["rows"]:
        same = _same(row, [part["rows"] for part in parts])
        by_name = {
            name: [one["scores"][name] for one in same] for name in row["scores"]
        }
        own: dict[str, Any] = {k: v for k, v in row.items() if k != "scores"}
        own["scores"] = {
            name: _over_clips(parts, values) for name, values in by_name.items()
        }
        own["clips"] = sum(len(one["scores"][axis]) for one in same)
        own["by_seed"] = {
            name: [float(np.mean(v)) for v in values]
            for name, values in by_name.items()
        }
        own["on LIME's clips"] = {}
        if all(asked):
            own["on LIME's clips"] = {
                name: _mean_of_first(values, asked) for name, values in by_name.items()
            }
        own["agreeing"] = _agreeing(same, parts)
        best = row["scheme"] == scheme
        own["ahead"] = _ahead(same, parts, axis) if best else None
        found.append(own)
    return found


def _agreeing(
    same: Sequence[dict[str, Any]], parts: Sequence[Part]
) -> dict[str, Any] | None:
    """Of the top channel's regions those that occlusion finds for the class as well.

    Returns:
      `share` of the clips in which they are the same; `hit` of these, and `else` of the
      other `clips`, along what scheme and event both have, over the clips of all seeds;
      either is None of no clip. None of what is no channel by occlusion, and where no
      axis is both's.
    """
    first = same[0]
    if "share" not in first["scores"] or first["locate"] != "occlusion":
        return None
    axes = plants.axes_of(parts[0]["event"], first["scheme"])
    if not axes:
        return None
    wanted = {name: first[name] for name in ("scheme", "evidence", "locate")} | {
        "method": CLASS
    }
    agree, hits = [], []
    for one, part in zip(same, parts, strict=True):
        found = [r for r in part["rows"] if wanted.items() <= r.items()]
        if not found:
            return None
        places = (np.array(r["locations"])[:, 0] for r in (one, found[0]))
        agree.append(np.all(np.equal(*places), axis=-1))
        hits.append(np.array(one["scores"][axes[-1]]))
    together, hit = np.concatenate(agree), np.concatenate(hits)
    return {
        "share": float(together.mean()),
        "hit": float(hit[together].mean()) if together.any() else None,
        "else": float(hit[~together].mean()) if not together.all() else None,
        "clips": int((~together).sum()),
    }


def _mean_of_first(values: Sequence[Sequence[float]], counts: Sequence[int]) -> float:
    return float(np.mean([np.mean(v[:n]) for v, n in zip(values, counts, strict=True)]))


def _ahead(
    same: Sequence[dict[str, Any]], parts: Sequence[Part], axis: str
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
    more = [
        np.array(best["scores"][axis][: len(one["scores"][axis])])
        - np.array(one["scores"][axis])
        for (best,), one in zip(found, same, strict=True)
    ]
    return _over_clips(parts, more, least=-1.0)


def _learned(parts: Sequence[Part]) -> list[dict[str, Any]]:
    """How each U came out, each seed's and over all."""
    found = []
    for row in parts[0]["learned"]:
        same = _same(row, [part["learned"] for part in parts])
        found.append(
            {
                "variant": row["variant"],
                "scheme": row["scheme"],
                "purity": [one["purity"] for one in same],
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
    return found


def _faithful(parts: Sequence[Part]) -> list[dict[str, Any]]:
    """Areas over all clips, and whether they beat those of random heat of the kind."""
    found = []
    for row in parts[0]["faithful"]:
        of_all = [part["faithful"] for part in parts]
        same = _same(row, of_all)
        chance = _same({"method": "random", "heat": row["heat"]}, of_all)
        own = {name: row[name] for name in ("method", "locate", "heat")}
        own["curves"] = {
            name: np.mean([one["curves"][name] for one in same], axis=0).tolist()
            for name in row["curves"]
        }
        for name, sign in (("deletion", -1), ("insertion", 1)):
            own[name] = _over_clips(parts, [one[name] for one in same])
            several = all(len(one[name]) > 1 for one in same)
            if row["method"] != "random" and several:
                own[f"{name} p"] = [
                    faithfulness.paired_p(
                        sign * np.array(one[name]), sign * np.array(other[name])
                    )
                    for one, other in zip(same, chance, strict=True)
                ]
        found.append(own)
    return found


def _masked(parts: Sequence[Part]) -> list[dict[str, Any]]:
    """Probability lost over all clips, and whether more than to random regions."""
    found = []
    for row in parts[0]["masked"]:
        same = _same(row, [part["masked"] for part in parts])
        own = {name: row[name] for name in ("method", "evidence", "locate")}
        for name in ("own", "random"):
            # A probability may rise as well.
            lost = [one[name] for one in same]
            own[name] = _over_clips(parts, lost, least=-1.0)
        own["p"] = [one["p"] for one in same]
        found.append(own)
    return found


def _again(parts: Sequence[Part]) -> list[dict[str, Any]]:
    """Hits, purity and conditioning of two optimisations of one network each."""
    _, axis = parts[0]["fits"]
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


def _stable(parts: Sequence[Part]) -> list[dict[str, Any]]:
    """Of each agreement the interval; None where it can be said of no clip."""
    found = []
    for row in parts[0]["stable"]:
        names = ("method", "evidence", "locate", "change")
        own: dict[str, Any] = {name: row[name] for name in names}
        same = _same(row, [part["stable"] for part in parts])
        for name in AGREEMENTS:
            known = []
            for part, one in zip(parts, same, strict=True):
                said = zip(one[name], _recordings(part), strict=False)
                pairs = [pair for pair in said if pair[0] is not None]
                known += [list(zip(*pairs, strict=True))] if pairs else []
            least = -1.0 if name == "rank" else 0.0
            own[name] = (
                interval(*zip(*known, strict=True), least=least) if known else None
            )
        found.append(own)
    return found


def _consistent(parts: Sequence[Part]) -> list[dict[str, Any]]:
    """Of each seed the mean over channels, where any can say.

    No interval: with few directions in the features, channels are near copies.
    """
    found = []
    for row in parts[0]["consistent"]:
        same = _same(row, [part["consistent"] for part in parts])
        own: dict[str, Any] = {"method": row["method"]}
        for kind in row.keys() - {"method"}:
            several = [np.atleast_1d(np.array(one[kind], float)) for one in same]
            known = [v[~np.isnan(v)] for v in several if not np.all(np.isnan(v))]
            own[kind] = [float(one.mean()) for one in known]
        found.append(own)
    return found
