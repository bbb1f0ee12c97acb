"""The curves of growth as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from benchmarks import growth

_AXES = {
    "clips": "clips",
    "chan": "channels",
    "devices": "devices",
}
_STAGES = {"scoring": "tab:blue", "step": "tab:orange", "features": "tab:green"}


def save(path: Path, points: Sequence[growth.Point], *, virtual: bool) -> None:
    """One panel an axis, milliseconds over the number of clips, channels, devices.

    Args:
      path: a PNG.
      points: of all curves.
      virtual: the devices share the cores of one CPU.
    """
    from matplotlib import figure, ticker

    axes = [axis for axis in _AXES if any(point.axis == axis for point in points)]
    fig = figure.Figure(figsize=(4 * len(axes), 3.4), layout="constrained")
    for axis, panel in zip(
        axes, fig.subplots(1, len(axes), squeeze=False)[0], strict=True
    ):
        for stage, colour in _STAGES.items():
            curve = [p for p in points if (p.axis, p.stage) == (axis, stage)]
            if not curve:
                continue
            x, y = zip(*((p.value, 1e3 * p.seconds) for p in curve), strict=True)
            at = f"\n{curve[0].at}" if curve[0].at else ""
            panel.plot(x, y, "o-", color=colour, label=stage + at)
            power = _exponent(stage, axis, virtual)
            should = [y[0] * (v / x[0]) ** power for v in x]
            panel.plot(x, should, ":", color=colour, linewidth=1)
        panel.set(xscale="log", yscale="log", ylabel="milliseconds")
        panel.set_xlabel(
            "virtual devices on the same cores"
            if axis == "devices" and virtual
            else _AXES[axis]
        )
        values = sorted({p.value for p in points if p.axis == axis})
        panel.set_xticks(values, [f"{v:,}" for v in values])
        panel.minorticks_off()
        # Ten times and more are rare: a decade has three numbers.
        panel.yaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
        panel.yaxis.set_major_formatter("{x:g}")
        panel.legend(frameon=False, fontsize="small")
        panel.spines[["top", "right"]].set_visible(False)
    fig.savefig(path, dpi=150)


def _exponent(stage: str, axis: str, virtual: bool) -> float:
    """The power of the number with which a stage should grow."""
    if axis == "devices":
        return 0.0 if virtual else -1.0
    return {
        ("scoring", "clips"): 1.0,
        ("step", "clips"): 0.0,
        ("scoring", "chan"): 2.0,
        ("step", "chan"): 3.0,
    }[stage, axis]
