"""What the seeds of an event came to, as tables."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from typing import Any

from apex_jax import schemes
from experiments.localisation import cells, glance, plants, stable, summary

LEAST_ACCURACY = 0.95
# What stays of an explanation, by the words for it.
STAYS = {
    "same class": "same_class",
    "same channel": "same_channel",
    "of the top four": "top_channels",
    "rank": "rank",
    "region": "region",
    "prototypes": "prototypes",
}


def markdown(results: dict[str, Any]) -> str:
    """All events at a glance, then each, the scheme that fits it in full."""
    parts = [part for part in glance.markdown(results["events"]).values() if part]
    parts += [
        f"**{one['event']}, seed {one['seed']}, is left out:** {one['reason']}"
        for one in results.get("left_out", ())
    ]
    for event, found in results["events"].items():
        scheme, axis = found["fits"]
        accuracy = ", ".join(f"{a:.3f}" for a in found["accuracy"])
        parts += [
            f"### {event}: {cells.words(scheme)} scheme",
            f"{_seeds(found['seeds'])}: test accuracy {accuracy}"
            f"{_weak(found['accuracy'])}; {sum(found['clips'])} clips with the event "
            f"found{_shared(found)}. Means over seeds, in brackets 95 % bootstrap "
            "intervals over seeds and clips, and each seed's own.",
            _hits(found["rows"], scheme, axis),
            "Hits under each scheme, along each axis that scheme and event both have, "
            "top channel / best of 4, and overlap:",
            _by_scheme(found["rows"], event),
            "How U was learned:",
            _learned(found["learned"]),
            *_areas(found["faithful"], event),
            *_hidden(found["masked"]),
            *_twice(found["again"]),
            f"Prototypes of a channel, {cells.words(scheme)} scheme, mean over "
            "channels; in brackets any clips in their place, and any clips of their "
            "class:",
            _alike(found["consistent"]),
            f"![Each channel's prototypes, {event}]({event}/consistency.png)",
            *_stays(found["stable"]),
        ]
    return "\n\n".join(parts) + "\n"


def _seeds(seeds: Sequence[int]) -> str:
    return "Seed" + "s" * (len(seeds) > 1) + f" {', '.join(map(str, seeds))}"


def _hits(rows: Sequence[dict[str, Any]], scheme: str, axis: str) -> str:
    names = (
        f"{axis}, best", "iou", "share", "share of all", "share of all, best"
    )  # fmt: skip

    def on_some(row: dict[str, Any]) -> str:
        value = row["on LIME's clips"].get(axis)
        return "" if value is None else f"{value:.2f}"

    return cells.table(
        f"method | hit | of each seed | {summary.REFERENCE['method']} by occlusion has "
        "more | on LIME's clips | best of 4 | overlap | top's share of the positive "
        "evidence | of all that moves the logit | of 4",
        [
            [
                cells.name(row),
                cells.cell(row["scores"][axis]),
                ", ".join(f"{v:.2f}" for v in row["by_seed"][axis]),
                cells.cell(row["ahead"]),
                on_some(row),
                *(cells.cell(row["scores"].get(name)) for name in names),
            ]
            for row in cells.told(rows, scheme)
        ],
    )


def _by_scheme(rows: Sequence[dict[str, Any]], event: plants.Name) -> str:
    """Top channel and best of four along each axis that scheme and event both have."""
    columns: list[tuple[str, str]] = []
    for scheme in schemes.SCHEMES:
        axes = plants.axes_of(event, scheme)
        columns += [(scheme, axis) for axis in (*axes, "iou") if axes]
    by_name: dict[str, dict[str, Any]] = {}
    for row in cells.told(rows):
        by_name.setdefault(cells.name(row), {})[row["scheme"]] = row["scores"]

    def means(scores: dict[str, Any] | None, axis: str) -> str:
        if scores is None:
            return ""
        found = [scores[n][0] for n in (axis, f"{axis}, best") if n in scores]
        return " / ".join(f"{value:.2f}" for value in found)

    words = {"both": "joint", "iou": "overlap"}
    return cells.table(
        " | ".join(
            ["method", *(f"{cells.words(s)}: {words.get(a, a)}" for s, a in columns)]
        ),
        [
            [name, *(means(scores.get(scheme), axis) for scheme, axis in columns)]
            for name, scores in by_name.items()
        ],
    )


def _learned(rows: Sequence[dict[str, Any]]) -> str:
    return cells.table(
        "U learned | scheme | purity | seconds | cond(U) | effective rank of the "
        "features, eigenvalues above 1 % | largest logit error | changed | of clips",
        [
            [
                row["variant"],
                cells.words(row["scheme"]),
                ", ".join(f"{p:.3f}" for _, p in row["purity"]),
                ", ".join(f"{s:.0f}" for s in row["seconds"]),
                ", ".join(f"{c:.0f}" for c in row["condition_number"]),
                "; ".join(_short(r) for r in row["rank"]),
                f"{row['max_abs_logit_error']:.1e}",
                str(row["changed_predictions"]),
                f"{row['audited_clips']:,}",
            ]
            for row in rows
        ],
    )


def _short(rank: str) -> str:
    """Of "2.1, 4 eigenvalues above 1 % of the largest" the two numbers."""
    ratio, _, large = rank.partition(", ")
    return f"{ratio}, {large.split()[0]}" if large else ratio


def _areas(rows: Sequence[dict[str, Any]], event: str) -> list[str]:
    """With a picture of `pictures.of_seeds`; nothing where no clip was silenced."""
    if not rows:
        return []
    lines = []
    for row in rows:
        line = [cells.name(row), row["heat"]]
        for name in ("deletion", "insertion"):
            p = row.get(f"{name} p")
            line += [cells.cell(row[name]), "" if p is None else cells.p_values(p)]
        lines.append(line)
    return [
        "Areas below the probability while the hottest is silenced first (small is "
        "good) and heard first (large is good); p of each seed against random order, "
        "of cells for heatmaps and of regions for regions:",
        cells.table("heat of | kind | deletion | p | insertion | p", lines),
        f"![What is left of the class's probability, {event}]({event}/curves.png)",
    ]


def _hidden(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Nothing where no clip had its region hidden."""
    if not rows:
        return []
    lines = [
        [
            cells.name(row),
            cells.cell(row["own"]),
            cells.cell(row["random"]),
            cells.p_values(row["p"]),
        ]
        for row in cells.told(rows)
    ]
    return [
        "Probability lost by silencing the top channel's region, and the mean over all "
        "other regions; p of a permutation test of each seed, not corrected for their "
        "number:",
        cells.table("region of | lost | by others | p", lines),
    ]


def _alike(rows: Sequence[dict[str, Any]]) -> str:
    def word(by_seed: Sequence[float]) -> str:
        return f"{sum(by_seed) / len(by_seed):.2f}" if by_seed else "–"

    def own(by_seed: Sequence[float]) -> str:
        several = ", ".join(f"{one:.2f}" for one in by_seed)
        return word(by_seed) + f" ({several})" * (len(by_seed) > 1)

    def beside(row: dict[str, Any], kind: str) -> str:
        chance = (row[f"{kind}, any clips"], row[f"{kind}, same class"])
        return f"{own(row[kind])} / {' / '.join(map(word, chance))}"

    return cells.table(
        "prototypes of | pairs of one class / any clips | alike in time / any clips / "
        "of the class | in frequency / any clips / of the class",
        [
            [
                row["method"],
                f"{own(row['same_class'])} / {word(row['chance'])}",
                beside(row, "time"),
                beside(row, "frequency"),
            ]
            for row in rows
        ],
    )


def _twice(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Nothing where U was learned once."""
    if not rows:
        return []

    def both(values: Sequence[Sequence[float]], form: str) -> str:
        return ", ".join(
            f"{one:{form}} / {other:{form}}" for one, other in zip(*values, strict=True)
        )

    lines = [
        [
            f"{row['method']}, {one['evidence']}, {one['locate']}",
            both(one["hits"], ".2f"),
            both(row["purity"], ".3f"),
            both(row["condition_number"], ".0f"),
        ]
        for row in rows
        for one in row["rows"]
    ]
    return [
        "The same network and clips, U learned with one seed and with another, a pair "
        "for each network:",
        cells.table("U learned | hit | purity | cond(U)", lines),
    ]


def _shared(found: dict[str, Any]) -> str:
    """Of how many recordings, where several clips share one."""
    recordings = sum(found["recordings"])
    if recordings == sum(found["clips"]):
        return ""
    return f", of {recordings} recordings"


def _weak(accuracy: Sequence[float]) -> str:
    weak = sum(one < LEAST_ACCURACY for one in accuracy)
    few = f", **{weak} of {len(accuracy)} below {LEAST_ACCURACY}**: what follows "
    return few + "explains a weak classifier there" if weak else ""


def _stays(rows: Sequence[dict[str, Any]]) -> list[str]:
    """A line a change and a way to learn U; nothing without clips."""
    if not rows:
        return []
    changes = list(dict.fromkeys(row["change"] for row in rows))
    return [
        "An explanation after a change: how often the class is the same, and the top "
        "channel; how many of the four largest channels stay among them; rank "
        "correlation of all channels' contributions; of the top channel's region and "
        "of its prototypes the intersection over union with those before. What "
        "explanations of different clips share is the level to compare with. Of random "
        "weights the region counts alone, since U and prototypes stay those of the "
        "trained network:",
        cells.table(
            " | ".join(["change", "U", *STAYS]),
            [
                [change, cells.name(row), *_agreement(row)]
                for change in changes
                for row in rows
                if row["change"] == change
            ],
        ),
    ]


def _agreement(row: dict[str, Any]) -> list[str]:
    said = stable.SAID.get(row["change"], STAYS.values())
    return [
        cells.cell(row[name]) or "–" if name in said else "–" for name in STAYS.values()
    ]


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
            "locate",
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
                        row.get("locate", ""),
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
        lines.append(
            f"\n{event}: pointing at it under {cells.words(scheme)}, top and best of 4"
        )
        for row in cells.told(found["rows"], scheme):
            s = row["scores"]
            best = f"   of 4 {s[f'{axis}, best'][0]:.2f}" if "share" in s else ""
            lines.append(f"  {cells.name(row):46} {cells.cell(s[axis])}{best}")
    return "\n".join(lines)


FORMS = {"md": markdown, "csv": comma_separated}
