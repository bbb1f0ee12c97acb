"""The paper's Tables 1 and 2 as text: terminal, CSV, Markdown and LaTeX."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from experiments import layout, methods

# Mean EER over the seven vocoders, in %, as the paper reports it (arXiv 2605.10153,
# Table 1), by the vocoder trained on.
PAPER = {
    "melgan": {"classifier": 18.1, "audioprotopnet": 20.6, "apex": 18.1},
    "melgan_large": {"classifier": 20.1, "audioprotopnet": 20.5, "apex": 20.1},
    "multi_band_melgan": {"classifier": 6.0, "audioprotopnet": 2.4, "apex": 6.0},
    "full_band_melgan": {"classifier": 3.2, "audioprotopnet": 1.9, "apex": 3.2},
    "hifiGAN": {"classifier": 1.8, "audioprotopnet": 0.6, "apex": 1.8},
    "parallel_wavegan": {"classifier": 26.5, "audioprotopnet": 14.9, "apex": 26.5},
    "waveglow": {"classifier": 15.9, "audioprotopnet": 12.9, "apex": 15.9},
}

# By method, then vocoder tested on, with their mean `aeer`; None where there is none.
# A network that learned nothing has no APEX.
Eers = Mapping[str, Mapping[str, float | None]]
# By vocoder trained on; None where nothing could be trained.
Table = Mapping[str, Eers | None]


def terminal(table: Table) -> str:
    """A block a method, for 80 columns; vocoders are numbered."""
    names = list(table)
    lines = ["", "EER in %; rows: trained on, columns: tested on", ""]
    for method, title in methods.TITLES.items():
        numbers = "".join(f"{n:>6}" for n in range(1, len(names) + 1))
        lines.append(f"{title:22}{numbers}{'aEER':>7}{'paper':>7}")
        for n, trained in enumerate(names, start=1):
            cells = [cell(table, method, trained, tested) for tested in names]
            mean = cell(table, method, trained, "aeer")
            lines.append(
                f"{n:>2} {trained[:18]:19}"
                + "".join(f"{_percent(value):>6}" for value in cells)
                + f"{_percent(mean):>7}{_percent(paper(trained, method)):>7}"
            )
        lines.append("")
    return "\n".join(lines)


def as_csv(table: Table) -> str:
    """A line for each vocoder trained on, method and vocoder tested on."""
    lines: list[tuple[object, ...]] = [
        ("trained_on", "method", "tested_on", "eer_percent", "paper")
    ]
    for trained in table:
        for method in methods.TITLES:
            for tested in (*table, "aeer"):
                known = paper(trained, method) if tested == "aeer" else None
                values = (cell(table, method, trained, tested), known)
                cells = ("" if v is None else v for v in values)
                lines.append((trained, method, tested, *cells))
    return layout.as_csv(lines)


def markdown(table: Table) -> str:
    """The whole table, cells of ConvNeXt / AudioProtoPNet / APEX."""
    titles = " / ".join(methods.TITLES.values())
    return f"EER in %, {titles}; columns: tested on.\n\n" + layout.markdown(
        _rows(table)
    )


def latex(table: Table) -> str:
    """The whole table for a paper, with booktabs."""
    titles = " / ".join(methods.TITLES.values())
    return layout.latex(_rows(table)) + f"% EER in percent: {titles}\n"


# Of what `table1` saves.
FORMS: dict[str, Callable[[dict[str, Any]], str]] = {
    "csv": lambda results: as_csv(results["eer"]),
    "md": lambda results: markdown(results["eer"]),
    "tex": lambda results: latex(results["eer"]),
}


def _rows(table: Table) -> list[list[str]]:
    head = ["trained on", *table, "aEER", "aEER, paper"]
    return [head, *([trained, *_cells(table, trained)] for trained in table)]


def cell(table: Table, method: str, trained: str, tested: str) -> float | None:
    """An EER in %, None where there is none."""
    row = table[trained]
    return None if row is None else row.get(method, {}).get(tested)


def paper(trained: str, method: str) -> float | None:
    """The paper's mean EER in %, None for what the paper does not have."""
    return PAPER.get(trained, {}).get(method)


def _cells(table: Table, trained: str) -> list[str]:
    """The row's cells, its mean, and the paper's."""
    tested = [*table, "aeer"]
    own = [
        " / ".join(
            _percent(cell(table, method, trained, name)) for method in methods.TITLES
        )
        for name in tested
    ]
    return [*own, " / ".join(_percent(paper(trained, m)) for m in methods.TITLES)]


def _percent(value: float | None) -> str:
    return layout.NONE if value is None else f"{value:.1f}"


# Table 2: mean EER in %, trained on HiFi-GAN, regions hidden; random ones left blank.
PAPER_MASKED_ON = "hifiGAN"
PAPER_MASKED = {
    "none": 1.8,
    "square": 1.9,
    "time": 1.9,
    "frequency": 3.4,
    "time_frequency": 3.5,
}
_MASKED_HEAD = ("hidden", "aEER", "± over draws", "p", "aEER, paper")


def masked_rows(results: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """What is hidden, mean EER, its spread over draws, p, and the paper's."""
    known = PAPER_MASKED if results["train_on"] == PAPER_MASKED_ON else {}
    rows: list[tuple[str, ...]] = [
        ("nothing", _percent(results["none"]), "", "", _percent(known.get("none")))
    ]
    for scheme, found in results["aeer"].items():
        title, random = scheme.replace("_", "-"), found["random"]
        rows += [
            (
                f"{title}, random",
                _percent(random["mean"]),
                _percent(random["std"]),
                "",
                layout.NONE,
            ),
            (
                f"{title}, APEX",
                _percent(found["apex"]),
                "",
                layout.NONE if found["p"] is None else f"{found['p']:.3f}",
                _percent(known.get(scheme)),
            ),
        ]
    return rows


def masked_terminal(results: Mapping[str, Any]) -> str:
    """For 80 columns."""
    lines = ["", f"aEER in %, trained on {results['train_on']}"]
    for first, *others in [_MASKED_HEAD, *masked_rows(results)]:
        lines.append(f"{first:26}" + "".join(f"{other:>13}" for other in others))
    return "\n".join([*lines, "", *layout.note_on_p(results)])


def masked_csv(results: Mapping[str, Any]) -> str:
    """As shown."""
    return layout.as_csv([_MASKED_HEAD, *masked_rows(results)])


def masked_markdown(results: Mapping[str, Any]) -> str:
    """As shown."""
    return layout.markdown([_MASKED_HEAD, *masked_rows(results)])


def masked_latex(results: Mapping[str, Any]) -> str:
    """As shown, with booktabs."""
    return layout.latex([_MASKED_HEAD, *masked_rows(results)])


MASKED = {"csv": masked_csv, "md": masked_markdown, "tex": masked_latex}
