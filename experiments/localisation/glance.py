"""All events side by side, each under the scheme that fits it, a table a question."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from experiments.localisation import cells, stable, summary, variants

# By event what the seeds came to, `summary.of`.
Events = dict[str, dict[str, Any]]
# A line of a table: what it is of, and by event what is said.
Lines = dict[str, dict[str, str]]
# Of what is silenced, and of what stays, the rows that are told here.
SILENCED = ("random", "CAM", "LIME", summary.CLASS, *variants.SHOWN)
CHANGES = ("noise at 20 dB", stable.SEED, stable.RANDOM, stable.ANOTHER)


def markdown(events: Events) -> dict[str, str]:
    """By question words and a table; nothing of what was not measured."""
    heads = [f"{e}, {cells.words(found['fits'][0])}" for e, found in events.items()]
    parts = {}
    for question, of in QUESTIONS.items():
        about, first, lines = of(events)
        rows = [
            [name, *(said.get(event, "") for event in events)]
            for name, said in lines.items()
        ]
        table = cells.table(" | ".join([first, *heads]), rows)
        parts[question] = f"{about}\n\n{table}" if rows else ""
    return parts


def _without_channels(events: Events) -> tuple[str, str, Lines]:
    lines: Lines = {}
    for event, found in events.items():
        for row in _pointing(found):
            if "share" not in row["scores"]:
                # LIME explains the first clips only.
                fewer = row["clips"] < sum(found["clips"])
                said = _hit(found, row) + f" of {row['clips']} clips" * fewer
                lines.setdefault(cells.name(row), {})[event] = said
    about = (
        "Hits of what has no channels, under the scheme that fits the event, means "
        "over seeds and 95 % bootstrap intervals over seeds and clips:"
    )
    return about, "method", lines


def _channels(events: Events) -> tuple[str, str, Lines]:
    """By either way to find their place, and of U learned again."""
    lines: Lines = {}

    def add(name: str, event: str, locate: str, said: str) -> None:
        there = lines.setdefault(name, {})
        by_map = there.get(event, "–")
        there[event] = said if locate == "map" else f"{by_map} / {said}"

    for event, found in events.items():
        for row in _pointing(found):
            if "share" in row["scores"]:
                add(_of_channels(row), event, row["locate"], _hit(found, row))
        for one in found["again"]:
            for row in one["rows"]:
                if row["evidence"] == "contrastive":
                    _, again = row["hits"]
                    said = f"{sum(again) / len(again):.2f}"
                    add(f"{one['method']}, {stable.SEED}", event, row["locate"], said)
    about = (
        "Hits of the top channel, by map / by occlusion; evidence is contrastive "
        f"unless it is called plain. {stable.SEED.capitalize()}: U learned again for "
        "the same networks, the mean over these:"
    )
    return about, "channels", lines


def _agreeing(events: Events) -> tuple[str, str, Lines]:
    """Under the scheme that fits, and where that is another under square."""
    lines: Lines = {}
    for under in (None, "square"):
        for event, found in events.items():
            fits, _ = found["fits"]
            for row in cells.told(found["rows"], under or fits):
                both = row["agreeing"]
                if under == fits or both is None or row["method"] not in variants.SHOWN:
                    continue
                hit, other = (
                    "–" if both[name] is None else f"{both[name]:.2f}"
                    for name in ("hit", "else")
                )
                said = f"{both['share']:.2f}: {hit} / {other} of {both['clips']}"
                name = row["method"] + f", {under}" * (under is not None)
                lines.setdefault(name, {})[event] = said
    about = (
        "How often the top channel and all channels together point at the same region, "
        "by occlusion: hits where they do / where they do not, and of how many clips:"
    )
    return about, "channels", lines


def _shares(events: Events) -> tuple[str, str, Lines]:
    lines: Lines = {}
    for event, found in events.items():
        for row in _pointing(found):
            if "share" in row["scores"]:
                both = [row["scores"][name][0] for name in ("share", "share of all")]
                said = ", ".join(f"{share:.2f}" for share in both)
                lines.setdefault(_of_channels(row), {})[event] = said
    about = (
        "The top channel's share of the positive evidence, and of all that moves the "
        "logit, for the class or against it:"
    )
    return about, "channels", lines


def _curves(events: Events) -> tuple[str, str, Lines]:
    """By map only what is published so."""
    lines: Lines = {}
    for event, found in events.items():
        for row in found["faithful"]:
            by_map = row["locate"] == "map" and row["method"] in variants.SHOWN[1:]
            if row["method"] in SILENCED and not by_map:
                both = [row[name][0] for name in ("deletion", "insertion")]
                said = ", ".join(f"{area:.2f}" for area in both)
                lines.setdefault(f"{cells.name(row)}: {row['heat']}", {})[event] = said
    about = (
        "Areas below the probability of the class while the hottest is silenced first "
        "(deletion, small is good), and heard first (insertion, large is good):"
    )
    return about, "heat of", lines


def _hidden(events: Events) -> tuple[str, str, Lines]:
    lines: Lines = {}
    for event, found in events.items():
        for row in cells.told(found["masked"]):
            if row["method"] in SILENCED:
                # 0 where it rounds to -0.00.
                own, others = (round(row[of][0], 2) + 0.0 for of in ("own", "random"))
                said = f"{own:.2f} ({others:.2f}), p {cells.p_values(row['p'])}"
                lines.setdefault(cells.name(row), {})[event] = said
    about = (
        "Probability that is lost when the region is silenced (when another one is, "
        "the mean over these), and p of a permutation test of each seed, not corrected "
        "for their number:"
    )
    return about, "region of", lines


def _stays(events: Events) -> tuple[str, str, Lines]:
    lines: Lines = {}
    for change in CHANGES:
        known = stable.SAID.get(change, ("same_channel", "region"))
        for event, found in events.items():
            for row in found["stable"]:
                if row["change"] == change:
                    both = [
                        f"{row[name][0]:.2f}" if name in known and row[name] else "–"
                        for name in ("same_channel", "region")
                    ]
                    name = f"{change}: {cells.name(row)}"
                    lines.setdefault(name, {})[event] = ", ".join(both)
    about = (
        "What stays of an explanation: how often the top channel is the same, and how "
        "much of its region is (intersection over union). Of another U channels have "
        "other numbers. What two different clips share is the level to compare with:"
    )
    return about, "after", lines


def _pointing(found: dict[str, Any]) -> Sequence[dict[str, Any]]:
    scheme, _ = found["fits"]
    return cells.told(found["rows"], scheme)


def _hit(found: dict[str, Any], row: dict[str, Any]) -> str:
    _, axis = found["fits"]
    return cells.cell(row["scores"][axis])


def _of_channels(row: dict[str, Any]) -> str:
    return row["method"] + ", plain" * (row["evidence"] == "plain")


# What is asked, in the order in which it is told.
QUESTIONS = {
    "without channels": _without_channels,
    "channels": _channels,
    "agreeing": _agreeing,
    "shares": _shares,
    "curves": _curves,
    "hidden": _hidden,
    "stays": _stays,
}
