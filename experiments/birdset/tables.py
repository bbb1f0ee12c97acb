"""The paper's Tables 3 and 4 as text: terminal, CSV, Markdown and LaTeX."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from experiments import layout, methods
from experiments.birdset import options

SCORES = {
    "cmap": "cmAP",
    "auroc_zero": "AUROC, absent classes 0",
    "auroc": "AUROC, absent classes left out",
    "t1": "T1-Acc",
}

# As the paper reports them (arXiv 2605.10153, Table 3), in the order of `TESTS`;
# APEX equals ConvNeXt. Its AUROC does not say what absent classes count.
_CONVNEXT = {
    "cmap": (0.43, 0.23, 0.38, 0.24, 0.52, 0.68, 0.41, 0.32),
    "auroc_zero": (0.85, 0.72, 0.89, 0.70, 0.89, 0.92, 0.93, 0.82),
    "t1": (0.84, 0.46, 0.53, 0.56, 0.70, 0.71, 0.55, 0.71),
}
_AUDIOPROTOPNET = {
    "cmap": (0.52, 0.30, 0.34, 0.32, 0.55, 0.70, 0.43, 0.33),
    "auroc_zero": (0.90, 0.78, 0.94, 0.86, 0.93, 0.93, 0.97, 0.86),
    "t1": (0.88, 0.60, 0.52, 0.49, 0.67, 0.73, 0.66, 0.76),
}
PAPER = {
    method: {
        score: dict(zip(options.TESTS, values, strict=True))
        for score, values in of.items()
    }
    for method, of in (
        ("classifier", _CONVNEXT),
        ("audioprotopnet", _AUDIOPROTOPNET),
        ("apex", _CONVNEXT),
    )
}

# Table 4, cmAP on SNE: nothing hidden; random region hidden, APEX's hidden.
PAPER_NONE = 0.32
PAPER_MASKED = {
    "square": (0.31, 0.29),
    "time": (0.31, 0.28),
    "frequency": (0.27, 0.20),
    "time_frequency": (0.27, 0.17),
}

Rows = list[tuple[str, ...]]


def scored(results: Mapping[str, Any], score: str) -> Rows:
    """One score of the table: ours and the paper's, a line a method.

    The mean leaves out the test set that chose the epoch, as BirdSet's authors do.
    """
    tests, validation = results["tests"], results["validate_on"]
    counted = [name for name in tests if name != validation] or list(tests)
    titles = [f"{name}*" if name == validation else name for name in tests]
    rows: Rows = [("", *titles, "mean")]
    for method, title in methods.TITLES.items():
        own = {name: tests[name]["scores"][method][score] for name in tests}
        mean = sum(own[name] for name in counted) / len(counted)
        rows.append((title, *map(layout.number, [*own.values(), mean])))
        known = {name: PAPER[method].get(score, {}).get(name) for name in tests}
        if any(value is not None for value in known.values()):
            theirs = [v for v in map(known.get, counted) if v is not None]
            whole = sum(theirs) / len(theirs) if len(theirs) == len(counted) else None
            rows.append(
                (f"{title}, paper", *map(layout.number, [*known.values(), whole]))
            )
    return rows


def scored_terminal(results: Mapping[str, Any]) -> str:
    """A block a score, for 80 columns."""
    lines = []
    for score, title in SCORES.items():
        lines += ["", title]
        for first, *others in scored(results, score):
            lines.append(f"{first:22}" + "".join(f"{cell:>6}" for cell in others))
    if results["validate_on"] in results["tests"]:
        lines += ["", "* chose the epoch; not in the mean"]
    return "\n".join([*lines, ""])


def scored_csv(results: Mapping[str, Any]) -> str:
    """A line for each test set, method and score."""
    return layout.as_csv(
        [
            ("test_set", "method", "score", "value", "paper"),
            *(
                (
                    name,
                    method,
                    score,
                    test["scores"][method][score],
                    PAPER[method].get(score, {}).get(name, ""),
                )
                for name, test in results["tests"].items()
                for method in methods.TITLES
                for score in SCORES
            ),
        ]
    )


def scored_markdown(results: Mapping[str, Any]) -> str:
    """A table a score."""
    return "\n".join(
        f"{title}\n\n{layout.markdown(scored(results, score))}"
        for score, title in SCORES.items()
    )


def scored_latex(results: Mapping[str, Any]) -> str:
    """A table a score, with booktabs."""
    return "\n".join(
        f"% {title}\n{layout.latex(scored(results, score))}"
        for score, title in SCORES.items()
    )


def masked(results: Mapping[str, Any]) -> Rows:
    """What is hidden, and cmAP."""
    found = results["schemes"]
    first = next(iter(found.values()))
    rows: Rows = [("hidden", "cmAP", "± over draws", "p", "paper")]
    rows.append(
        ("nothing", layout.number(first["none"], 3), "", "", layout.number(PAPER_NONE))
    )
    on_paper = results["test_on"] == "SNE"
    for scheme, row in found.items():
        title, known = scheme.replace("_", "-"), PAPER_MASKED[scheme]
        random = row["random"]
        rows += [
            (
                f"{title}, random",
                layout.number(random["mean"], 3),
                layout.number(random["std"], 3),
                "",
                layout.number(known[0] if on_paper else None),
            ),
            (
                f"{title}, APEX",
                layout.number(row["apex"], 3),
                "",
                layout.number(row["p_value"], 3),
                layout.number(known[1] if on_paper else None),
            ),
        ]
    return rows


def masked_terminal(results: Mapping[str, Any]) -> str:
    """For 80 columns."""
    lines = ["", f"cmAP on {results['test_on']}"]
    for first, *others in masked(results):
        lines.append(f"{first:26}" + "".join(f"{cell:>13}" for cell in others))
    return "\n".join([*lines, "", *layout.note_on_p(results), ""])


def masked_csv(results: Mapping[str, Any]) -> str:
    """As shown."""
    return layout.as_csv(masked(results))


def masked_markdown(results: Mapping[str, Any]) -> str:
    """As shown."""
    return layout.markdown(masked(results))


def masked_latex(results: Mapping[str, Any]) -> str:
    """As shown, with booktabs."""
    return layout.latex(masked(results))


SCORED = {"csv": scored_csv, "md": scored_markdown, "tex": scored_latex}
MASKED = {"csv": masked_csv, "md": masked_markdown, "tex": masked_latex}
