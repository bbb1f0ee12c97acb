"""The results as a table: in the terminal, and as Markdown from the JSON."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from benchmarks import growth, rows

WIDTH = 80

_UNITS = {"clips": "clips", "chan": "channels", "devices": "devices"}
_TO = {
    "scoring": "its product alone",
    "step": "product",
    "features": "one device",
}


def seconds(value: float) -> str:
    """A time in three digits and the unit that suits it."""
    for limit, factor, unit in ((1e-3, 1e6, "us"), (1.0, 1e3, "ms"), (300, 1, "s")):
        if value < limit:
            return f"{value * factor:.3g} {unit}"
    if value < 7200:
        return f"{value / 60:.3g} min"
    return f"{value / 3600:.4g} h" if value < 1e6 else f"{value / 86400:.3g} days"


def compiling(value: float) -> str:
    """Time of compilation; a dash where an earlier row had compiled the same."""
    return seconds(value) if value >= 1e-3 else "-"


def verdict(row: rows.Row) -> str:
    """Whether the goal is met, in a word."""
    return {None: "", True: "met", False: "missed"}[row.met]


def goal(row: rows.Row) -> str:
    """The goal in a few letters."""
    if row.goal is None:
        return ""
    if row.goal.of == "seconds":
        return f"{seconds(row.goal.at_most)}"
    return f"{row.goal.at_most:g} x"


def number(value: float) -> str:
    """A ratio in three digits."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def heading() -> str:
    """The terminal table's first lines."""
    titles = f"{'':30}{'time':>16}{'compile':>10}{'ratio':>8}{'goal':>9}"
    return f"{titles}\n{'-' * WIDTH}"


def terminal(row: rows.Row) -> str:
    """Lines of the terminal's table, at most 80 columns wide."""
    time = f"{seconds(row.seconds)}/{row.unit}"
    first = (
        f"{row.what:30}{time:>16}{compiling(row.compile_s):>10}"
        f"{number(row.ratio.median):>8}{goal(row):>9} {verdict(row)}"
    )
    spread = f"{number(row.ratio.low)} to {number(row.ratio.high)}"
    lines = [first.rstrip(), f"  x {row.floor} ({spread})"]
    if row.note:
        lines.append(f"  {row.note}")
    return "\n".join(lines)


def terminal_growth(points: Sequence[growth.Point]) -> str:
    """The curves as lines of the terminal's table."""
    lines = []
    for (axis, stage), curve in _curves(points):
        at = f" ({curve[0].at})" if curve[0].at else ""
        lines.append(f"{stage} with {_UNITS[axis]}{at}, x {_to(stage, axis)}")
        lines += [
            f"  {point.value:>9,}{seconds(point.seconds):>12}{number(point.ratio):>8}"
            for point in curve
        ]
    return "\n".join(lines)


def markdown(results: dict[str, Any]) -> str:
    """The results of a JSON file as Markdown, for docs/performance.md."""
    machine, found = results["machine"], [rows.from_dict(r) for r in results["rows"]]
    parts = [_measured_on(machine, results["size"])]
    if found:
        parts.append(
            _markdown_table(
                ("stage", "time", "a second", "compile", "ratio", "to", "goal", ""),
                (
                    (
                        row.what.strip(),
                        f"{seconds(row.seconds)} a {row.unit}",
                        number(1 / row.seconds),
                        compiling(row.compile_s),
                        f"{number(row.ratio.median)} "
                        f"({number(row.ratio.low)} to {number(row.ratio.high)})",
                        row.floor,
                        goal(row),
                        verdict(row),
                    )
                    for row in found
                ),
            )
        )
    notes = [f"- {row.what.strip()}: {row.note}." for row in found if row.note]
    if notes:
        parts.append("\n".join(notes))
    points = [growth.Point(**point) for point in results["growth"]]
    if points:
        parts.append(
            _markdown_table(
                ("what", "grows with", "", "at", "time", "ratio", "to"),
                (
                    (
                        point.stage,
                        _UNITS[point.axis],
                        f"{point.value:,}",
                        point.at,
                        seconds(point.seconds),
                        number(point.ratio),
                        _to(point.stage, point.axis),
                    )
                    for _, curve in _curves(points)
                    for point in curve
                ),
            )
        )
    return "\n\n".join(parts) + "\n"


def _measured_on(machine: dict[str, Any], size: str) -> str:
    versions = ", ".join(f"{k} {v}" for k, v in machine["versions"].items())
    lines = [
        f"Measured on {machine['devices']} x {machine['device']}, {machine['cores']} "
        f"cores, {machine['system']}, {machine['date'][:10]}, commit "
        f"{machine['commit'] or 'unknown'}; load average before the run "
        f"{machine['load_average']}. Versions: {versions}."
    ]
    if machine["platform"] == "cpu":
        lines.append("No accelerator was available: every figure is the CPU's.")
    if size != "paper":
        lines.append("Small sizes, to see that everything runs: no time counts.")
    return "\n".join(lines)


def _curves(
    points: Sequence[growth.Point],
) -> list[tuple[tuple[str, str], list[growth.Point]]]:
    """Points of one stage along one axis, in order of appearance."""
    curves: dict[tuple[str, str], list[growth.Point]] = {}
    for point in points:
        curves.setdefault((point.axis, point.stage), []).append(point)
    return list(curves.items())


def _to(stage: str, axis: str) -> str:
    return "one device" if axis == "devices" else _TO[stage]


def _markdown_table(titles: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    rule = ["---"] * len(titles)
    return "\n".join(f"| {' | '.join(line)} |" for line in (titles, rule, *lines))
