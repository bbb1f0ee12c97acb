"""Rows of cells as Markdown, LaTeX and CSV; the first row is the head."""

from __future__ import annotations

import csv
import io
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

NONE = "–"  # in the place of a number that is not there
Rows = Sequence[Sequence[str]]


def number(value: float | None, digits: int = 2) -> str:
    """With so many digits after the point, or a dash."""
    return NONE if value is None else f"{value:.{digits}f}"


def markdown(rows: Rows) -> str:
    """A table of Markdown."""
    head, *body = rows
    lines = [head, ["---"] * len(head), *body]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def latex(rows: Rows) -> str:
    """A table of LaTeX with booktabs."""
    head, *body = [[_escaped(cell) for cell in row] for row in rows]
    lines = [
        rf"\begin{{tabular}}{{l{'c' * (len(head) - 1)}}}",
        r"\toprule",
        " & ".join(head) + r" \\",
        r"\midrule",
        *(" & ".join(row) + r" \\" for row in body),
        r"\bottomrule",
        r"\end{tabular}",
    ]
    return "\n".join(lines) + "\n"


def note_on_p(results: Mapping[str, Any]) -> list[str]:
    """What a table of masks says below it, for 80 columns."""
    draws = f"{results['draws']} draws a clip"
    draws += ", never of APEX's own region" * results["exclude_own"]
    draws += ", against the other classes" * (results["evidence"] == "contrastive")
    draws += ", found by occlusion" * (results["locate"] == "occlusion")
    return textwrap.wrap(
        "p: how often as much would be lost if APEX's regions were like random ones "
        f"({draws})",
        80,
    )


def as_csv(rows: Iterable[Sequence[object]]) -> str:
    """Lines of comma-separated values."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()


def _escaped(cell: str) -> str:
    for sign, command in (("±", r"$\pm$"), (NONE, "--"), ("_", r"\_"), ("%", r"\%")):
        cell = cell.replace(sign, command)
    return cell
