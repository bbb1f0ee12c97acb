"""How the localisation experiment writes numbers, names and tables."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from experiments.localisation import summary, variants

# Whose evidence is also shown as published.
PLAIN = ("CAM", variants.RAW, "paper")


def name(row: dict[str, Any]) -> str:
    """A method with what its evidence counts towards and what finds its place."""
    return ", ".join(
        row[name] for name in ("method", "evidence", "locate") if row.get(name)
    )


def cell(found: summary.Interval | None) -> str:
    """A mean and its interval; nothing of None.

    In round brackets where all clips hit or none did: other clips of the same networks
    can be told of, other networks not (`summary.interval`).
    """
    if found is None:
        return ""
    mean, low, high = found
    if mean in (low, high) and low < high:
        return f"{mean:.2f} ({low:.2f}, {high:.2f})"
    return f"{mean:.2f} [{low:.2f}, {high:.2f}]"


def words(scheme: str) -> str:
    """A scheme as it is written out."""
    return scheme.replace("_", "-")


def p_values(by_seed: Sequence[float]) -> str:
    """Of each seed; what rounds to nothing is not called zero."""
    return ", ".join("< 0.001" if p < 0.001 else f"{p:.3f}" for p in by_seed)


def told(
    rows: Sequence[dict[str, Any]], scheme: str | None = None
) -> list[dict[str, Any]]:
    """Of a scheme; plain evidence only of what is published with it."""
    return [
        row
        for row in rows
        if (scheme is None or row["scheme"] == scheme)
        and (row.get("evidence") != "plain" or row["method"] in PLAIN)
    ]


def table(header: str, rows: Sequence[Sequence[str]]) -> str:
    """Markdown; columns of the header are separated by bars."""
    lines = [f"| {header} |", "| --- |" + " --- |" * header.count("|")]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows])
