"""What localisation looks like: regions on events, consistency of channels.

In come classifiers with their explainers, or the results of all seeds; out come
figures.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from apex_jax import disentangle, explanation, figures, plot, pointing, schemes
from experiments.localisation import explained, scoring, variants

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

NUM_CLIPS = 3
EVENT = "#4cc9f0"  # on the dark of a spectrogram, beside the green of a region
MARKS = {"any clips": "x", "same class": "|"}
KINDS = {
    "same_class": "pairs of one class",
    "time": "alike in time",
    "frequency": "alike over frequency",
}


def regions(
    of: explained.Explained,
    transforms: Mapping[str, disentangle.Transform],
    scheme: schemes.Scheme,
) -> Figure:
    """Test clips with their event, and where each way to explain them points.

    Args:
      of: the classifier and its clips.
      transforms: by the name of the way to learn them; the paper's as published and
        then as every other, by occlusion.
      scheme: where regions lie.
    """
    ways = [(name, way) for name in transforms for way in variants.ways_of(name)]
    places = {
        f"{name}\n{', '.join(way)}": of.located(transforms[name], scheme, *way)
        for name, way in ways
    }
    places["CAM\ncontrastive"] = scoring.whole(
        of.classifier,
        of.views(scheme, "map"),
        explained.PLANTED,
        scheme,
        kind="contrastive",
    )
    # Evenly over the clips, not the best ones.
    num = min(NUM_CLIPS, len(of.clips))
    chosen = np.round(np.linspace(0, len(of.clips) - 1, num)).astype(int)
    front_end = of.problem.front_end
    figure = plot.figure((2.3 * len(places) + 0.8, 1.9 * num + 0.9))
    panels = figure.subplots(num, len(places), squeeze=False, sharex=True, sharey=True)
    for line, index in zip(panels, chosen, strict=True):
        clip = of.clips[index]
        pixels = explained.spectrogram_of(front_end, clip)
        for axes, (found, there) in zip(line, places.values(), strict=True):
            plot.spectrogram(axes, front_end, pixels)
            _event(axes, of.boxes[index])
            place, somewhere = found[index, 0], there[index, 0]
            if somewhere:
                plot.areas(axes, explanation.areas(of.grid, scheme, place, front_end))
            hit = pointing.score(of.grid, scheme, place[None], of.boxes[[index]])
            said = "hit" if hit.both[0] and somewhere else "missed"
            axes.set_title(said, fontsize=plot.CAPTION)
    for axes, name in zip(panels[0], places, strict=True):
        axes.set_title(f"{name}\n{axes.get_title()}", fontsize=plot.CAPTION)
    plot.name_axes(panels, front_end)
    return figure


def _event(axes: Axes, box: np.ndarray) -> None:
    """The event's outline, as far as it is inside."""
    from matplotlib.patches import Rectangle

    low, high, start, end = (float(edge) - 0.5 for edge in box)
    axes.add_patch(
        Rectangle(
            (start, low),
            end - start,
            high - low,
            fill=False,
            edgecolor=EVENT,
            linewidth=1.6,
            linestyle=(0, (3, 1.5)),
        )
    )


def of_seeds(
    folder: Path, parts: Sequence[Mapping[str, Any]], found: Mapping[str, Any]
) -> None:
    """Writes an event's pictures of all seeds, consistency.png and curves.png.

    Args:
      folder: made where it is not there.
      parts: of each seed its `scores.json`.
      found: what `summary.of` made of them; without curves there is no picture of any.
    """
    folder.mkdir(parents=True, exist_ok=True)
    figures.save(consistency(parts), folder / "consistency.png", dpi=120)
    if found["faithful"]:
        figures.save(curves(found["faithful"]), folder / "curves.png", dpi=120)


def curves(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """Probability while the hottest is silenced, and while it comes back; all seeds.

    Args:
      rows: what `summary.of` found to be `faithful`.
    """
    figure = plot.figure((10.0, 7.0))
    panels = figure.subplots(2, 2, sharex=True, sharey=True)
    methods = list(dict.fromkeys(row["method"] for row in rows))
    for line, kind in enumerate(("regions", "heatmap")):
        for column, name in enumerate(("deletion", "insertion")):
            axes = panels[line, column]
            for row in rows:
                if row["heat"] != kind:
                    continue
                number = methods.index(row["method"])
                axes.plot(
                    row["curves"]["share"],
                    row["curves"][name],
                    color="0.3" if row["method"] == "random" else f"C{number % 10}",
                    # By map, as published, or not: the eye has to tell them apart.
                    linestyle=":" if row["locate"] == "map" else "-",
                    label=", ".join(filter(None, (row["method"], row["locate"]))),
                )
            axes.set_title(f"{name}, {kind}", fontsize=plot.TITLE)
            axes.grid(alpha=0.3)
    for axes in panels[:, 0]:
        axes.set_ylabel("probability of the class")
    for axes, how in zip(panels[1], ("silenced", "heard"), strict=True):
        axes.set_xlabel(f"share {how}, hottest first")
    panels[0, 0].set_xlim(0, 1)
    panels[0, 0].set_ylim(-0.02, 1.02)
    handles, names = panels[0, 0].get_legend_handles_labels()
    figure.legend(
        handles, names, loc="outside right center", fontsize=plot.CAPTION, frameon=False
    )
    return figure


def consistency(parts: Sequence[Mapping[str, Any]]) -> Figure:
    """How alike a channel's prototypes are: all channels, before and after each U.

    Args:
      parts: of each seed what `trust.consistent` found, in one order.
    """
    from matplotlib.lines import Line2D

    names = [row["method"] for row in parts[0]["consistent"]]
    figure = plot.figure((12.0, 0.42 * len(names) + 1.7))
    panels = figure.subplots(1, len(KINDS), sharey=True)
    for axes, (kind, title) in zip(panels, KINDS.items(), strict=True):
        for place in range(len(names)):
            of_all = np.concatenate(
                [np.asarray(part["consistent"][place][kind], float) for part in parts]
            )
            known = of_all[~np.isnan(of_all)]
            if not known.size:
                continue
            # Grey for what U has no part in.
            colour = "0.45" if names[place] == variants.RAW else "C0"
            if np.ptp(known) > 0:
                drawn = axes.violinplot(
                    known, [place], orientation="horizontal", widths=0.85,
                    showextrema=False,
                )  # fmt: skip
                for body in drawn["bodies"]:
                    body.set_facecolor(colour)
                    body.set_alpha(0.45)
            low, middle, high = np.percentile(known, [25, 50, 75])
            axes.hlines(place, low, high, color=colour, linewidth=3)
            axes.plot(middle, place, "o", color="white", mec=colour, ms=5)
            for level, mark in MARKS.items():
                rows = [part["consistent"][place] for part in parts]
                if f"{kind}, {level}" in rows[0]:
                    chance = np.concatenate(
                        [np.asarray(row[f"{kind}, {level}"], float) for row in rows]
                    )
                    axes.plot(np.nanmean(chance), place, mark, color="0.2", ms=6)
        if kind == "same_class":
            chance = np.mean([part["consistent"][0]["chance"] for part in parts])
            axes.axvline(float(chance), color="0.3", linestyle=":", linewidth=1)
        axes.set_title(title, fontsize=plot.TITLE)
        least = 0 if kind == "same_class" else -1
        axes.set_xlim(least - 0.02, 1.02)
        axes.set_xticks(np.linspace(least, 1, 5))
        axes.tick_params(labelsize=plot.CAPTION)
        axes.grid(axis="x", alpha=0.3)
    panels[0].set_yticks(range(len(names)), names)
    panels[0].set_ylim(len(names) - 0.4, -0.6)
    legend = {
        "middle half and median of the channels": Line2D(
            [], [], color="C0", linewidth=3, marker="o", mfc="white", ms=5
        ),
        **{
            text: Line2D([], [], color="0.2", linestyle="", marker=mark, ms=6)
            for text, mark in zip(
                ("any clips in their place", "clips of their class"),
                MARKS.values(),
                strict=True,
            )
        },
        "pairs of one class by chance": Line2D([], [], color="0.3", linestyle=":"),
    }
    figure.legend(
        list(legend.values()),
        list(legend),
        loc="outside lower center",
        ncols=4,
        fontsize=plot.CAPTION,
        frameon=False,
    )
    return figure
