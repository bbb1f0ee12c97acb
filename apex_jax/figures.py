"""Figures of one result: an explained clip, AudioProtoPNet's, purity over the epochs.

In come results on the host, out come matplotlib figures. `comparisons` has those that
set several side by side.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from apex_jax import atomic, boxes, explanation, frontend, optimize, plot

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, SubFigure

BLUE, RED = "#3b6ea5", "#d1495b"


def save(figure: Figure, path: Path, *, dpi: int) -> None:
    """Writes a figure, whole or not at all, in the format that its name ends with."""
    kind = path.suffix[1:].lower()
    atomic.write(path, lambda file: figure.savefig(file, format=kind, dpi=dpi))


def explained(result: explanation.Explanation, *, num_prototypes: int = 4) -> Figure:
    """The clip, its channels, their regions, heatmaps and prototypes.

    One row a channel: the region in the clip, the heatmap, then the training clips
    that excite the channel most, and least if they were asked for, each with its own
    region. Where no spectrogram is known the heatmaps stand alone.

    Args:
      result: what to draw.
      num_prototypes: of each kind, drawn beside a channel, at most.
    """
    rows = len(result.channels)
    # Heading, columns, and for each channel the training clips, in the clip none.
    blocks: list[tuple[str, int, list[tuple[explanation.Prototype, ...]]]] = [
        ("in this clip", 1 + (result.spectrogram is not None), [])
    ]
    for kind, prototypes in (
        ("most", [c.prototypes[:num_prototypes] for c in result.channels]),
        ("least", [c.negatives[:num_prototypes] for c in result.channels]),
    ):
        if columns := max(map(len, prototypes), default=0):
            heading = f"training clips that excite the channel {kind}"
            blocks.append((heading, columns, prototypes))
    widths = [columns for _, columns, _ in blocks]
    size = (max(10.0, plot.WIDTH * sum(widths)), 3.4 + plot.HEIGHT * rows)
    figure = plot.figure(size)
    ratios = [3.0, size[1] - 3.0]
    head, body = figure.subfigures(2, 1, height_ratios=ratios, squeeze=False)[:, 0]
    _summary(head, result)

    parts = body.subfigures(1, len(blocks), width_ratios=widths, squeeze=False)[0]
    for part, (heading, columns, prototypes) in zip(parts, blocks, strict=True):
        part.suptitle(heading, fontsize=plot.TITLE - 1)
        grid = part.subplots(rows, columns, squeeze=False)
        plot.name_axes(grid, result.front_end, up=not prototypes)
        for i, line in enumerate(grid):
            if not prototypes:
                _channel(line, result, result.channels[i])
                continue
            for axes, one in zip(line, prototypes[i], strict=False):
                plot.prototype(axes, result.front_end, result.scheme, one)
            for axes in line[len(prototypes[i]) :]:
                axes.set_axis_off()
    return figure


def _summary(part: SubFigure, result: explanation.Explanation) -> None:
    """What the classifier says, and the contributions of the channels shown."""
    source = plot.name(result.source, 60, result.offset_s)
    part.suptitle(f"{source}\n{plot.verdict(result)}", fontsize=plot.TITLE)
    if result.spectrogram is None:
        right = part.subplots()
    else:
        left, right = part.subplots(1, 2, width_ratios=[3, 2])
        image = plot.spectrogram(left, result.front_end, result.spectrogram)
        plot.name_axes(np.array([[left]]), result.front_end)
        unit = "dB" if result.front_end is not None else "value"
        plot.colour_bar(image, left, unit)
    labels = [plot.channel_name(result, c) for c in result.channels]
    values = [c.contribution for c in result.channels]
    colours = [BLUE if value >= 0 else RED for value in values]
    right.barh(np.arange(len(labels)), values, color=colours)
    right.set_yticks(np.arange(len(labels)), labels)
    right.set_ylim(len(labels) - 0.4, -0.6)
    right.axvline(0, color="0.3", linewidth=0.8)
    right.tick_params(labelsize=plot.CAPTION)
    unit = "probability" if result.method == "lime" else "logit"
    unit = "lead" if result.evidence == "contrastive" else unit
    right.set_xlabel(
        f"contribution to the {unit} of {plot.shortened(result.class_name, 24)}",
        fontsize=plot.CAPTION,
    )
    if result.method == "apex":
        share = f"{100 * result.evidence_share:.0f} % of all positive evidence"
        share += " against the other classes" * (result.evidence == "contrastive")
        share += "\nregions by occlusion" * (result.locate == "occlusion")
        right.set_title(f"channels shown: {share}", fontsize=plot.CAPTION + 1)


def _channel(
    line: Sequence[Axes],
    result: explanation.Explanation,
    channel: explanation.Channel,
) -> None:
    """The region in the clip, if its spectrogram is known, and the heatmap."""
    *clip, heat = line
    where = plot.where(result.scheme, channel.areas)
    if result.spectrogram is not None:
        plot.spectrogram(clip[0], result.front_end, result.spectrogram)
        plot.areas(clip[0], channel.areas)
        clip[0].set_title(
            f"\n{plot.channel_name(result, channel)}\n{where}", fontsize=plot.CAPTION
        )
        where = "heatmap"
    plot.heatmap(heat, result.front_end, channel.heatmap)
    plot.areas(heat, channel.areas)
    title = "" if clip else plot.channel_name(result, channel)
    heat.set_title(f"\n{title}\n{where}", fontsize=plot.CAPTION)


def purity(history: optimize.History) -> Figure:
    """Purity over the epochs of the optimisation."""
    from matplotlib.ticker import MaxNLocator

    figure = plot.figure((7.0, 4.0))
    axes = figure.subplots()
    axes.plot(
        history.round_epochs,
        history.round_purity,
        "o-",
        color=BLUE,
        label=f"strongest {history.round_prototypes} clips a channel",
    )
    epochs = np.arange(1, 1 + len(history.epoch_purity))
    axes.plot(
        epochs,
        history.epoch_purity,
        "s--",
        markersize=3,
        color=RED,
        label="pairs trained on, during the epoch",
    )
    axes.set_xlabel("epoch")
    axes.set_ylabel("mean purity")
    axes.set_ylim(bottom=min(0.0, *history.round_purity))
    axes.set_xlim(0, 1.02 * len(history.epoch_purity))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right", frameon=False)
    axes.set_title("Purity of the prototypes during the optimisation")
    return figure


def prototypes(
    spectrogram: np.ndarray,
    found: Sequence[boxes.Match],
    *,
    front_end: frontend.FrontEnd | None = None,
    nearest: Sequence[tuple[str, np.ndarray, boxes.Match]] = (),
    title: str = "",
) -> Figure:
    """What AudioProtoPNet's prototypes found in a clip, and what they stand for.

    One row a prototype: its box in the clip, its similarity map, and the training clip
    that comes closest to it with the box there.

    Args:
      spectrogram: of the clip, `[F_in, T_in]`, in the front end's units.
      found: from `boxes.matches`.
      front_end: tells seconds, hertz and decibel.
      nearest: for each of `found` a training clip: name, spectrogram, and the same
        prototype there.
      title: above all.

    Raises:
      ValueError: not one training clip for each prototype.
    """
    if nearest and len(nearest) != len(found):
        raise ValueError(
            f"nearest has one training clip for each of {len(found)} matches; got "
            f"{len(nearest)}"
        )
    columns = 2 + bool(nearest)
    figure = plot.figure((plot.WIDTH * columns * 1.3, 0.6 + plot.HEIGHT * len(found)))
    figure.suptitle(title, fontsize=plot.TITLE)
    grid = figure.subplots(len(found), columns, squeeze=False)
    for number, (line, match) in enumerate(zip(grid, found, strict=True)):
        plot.spectrogram(line[0], front_end, spectrogram)
        plot.areas(line[0], [match.area])
        line[0].set_title(
            f"prototype {match.prototype} of {plot.shortened(match.class_name, 20)}\n"
            f"{match.similarity:.2f} similar, adds {match.contribution:+.2f}",
            fontsize=plot.CAPTION,
        )
        plot.heatmap(line[1], front_end, match.heatmap)
        plot.areas(line[1], [match.area])
        line[1].set_title(
            f"similarity map\n{plot.where('square', [match.area])}",
            fontsize=plot.CAPTION,
        )
        if nearest:
            name, other, there = nearest[number]
            plot.spectrogram(line[2], front_end, other)
            plot.areas(line[2], [there.area])
            line[2].set_title(
                f"{plot.name(name, 34)}\n{there.similarity:.2f} similar",
                fontsize=plot.CAPTION,
            )
    plot.name_axes(grid, front_end)
    return figure
