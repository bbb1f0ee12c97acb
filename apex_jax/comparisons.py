"""Figures that set explanations side by side: the paper's Figures 3 to 7.

In come explanations of the same clip, or prototypes of the same channels, on the host;
out come matplotlib figures. `commands.figure` makes them from a run.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from apex_jax import explanation, frontend, plot, schemes
from apex_jax import masking as masking_lib

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def before_after(
    channels: Sequence[int],
    before: Sequence[Sequence[explanation.Prototype]],
    after: Sequence[Sequence[explanation.Prototype]],
    front_end: frontend.FrontEnd | None,
    scheme: schemes.Scheme,
    *,
    mean_purity: tuple[float, float] | None = None,
) -> Figure:
    """Prototypes of channels before and after the optimisation (Fig. 3).

    Args:
      channels: which.
      before: prototypes of these channels of the untouched network.
      after: prototypes of the channels of the same index under U.
      front_end: of the spectrograms.
      scheme: where regions lie.
      mean_purity: over all channels, before and after.
    """
    columns = [max(map(len, side)) for side in (before, after)]
    rows = len(channels)
    figure = plot.figure((plot.WIDTH * sum(columns) + 0.8, 1.0 + plot.HEIGHT * rows))
    figure.suptitle(
        "Prototypes before and after the optimisation, "
        f"{plot.scheme_name(scheme)} scheme",
        fontsize=plot.TITLE + 1,
    )
    sides = figure.subfigures(1, 2, width_ratios=columns, squeeze=False)[0]
    headings = ["before: the network's own channels", "after: the channels under U"]
    if mean_purity is not None:
        headings = [
            f"{heading} (mean purity of all {purity:.2f})"
            for heading, purity in zip(headings, mean_purity, strict=True)
        ]
    sides[0].set_facecolor("0.94")  # tells the sides apart
    for side, heading, num, prototypes in zip(
        sides, headings, columns, (before, after), strict=True
    ):
        side.suptitle(heading, fontsize=plot.TITLE)
        grid = side.subplots(rows, num, squeeze=False)
        plot.name_axes(grid, front_end)
        for line, channel, ones in zip(grid, channels, prototypes, strict=True):
            for axes, one in zip(line, ones, strict=False):
                plot.prototype(axes, front_end, scheme, one, purity=True)
            for axes in line[len(ones) :]:
                axes.set_axis_off()
            mean = np.mean([one.purity or 0.0 for one in ones])
            line[0].set_ylabel(
                f"channel {channel}: purity {mean:.2f}\n{line[0].get_ylabel()}",
                fontsize=plot.CAPTION,
            )
    return figure


def methods(results: Sequence[explanation.Explanation]) -> Figure:
    """One clip explained by several methods, side by side (Fig. 4).

    Args:
      results: of the same clip and class; of each the first channel is shown.
    """
    first = results[0]
    figure = plot.figure((plot.WIDTH * len(results) + 0.8, 2 * plot.HEIGHT + 1.4))
    figure.suptitle(_says(first), fontsize=plot.TITLE + 1)
    grid = figure.subplots(2, len(results), squeeze=False)
    for (clip, heat), result in zip(grid.T, results, strict=True):
        channel = result.channels[0]
        scheme = plot.scheme_name(result.scheme)
        title = f"{plot.channel_name(result, channel)}\nregion by the {scheme} scheme"
        if result.method == "apex":
            positive = float(np.maximum(result.contributions, 0).sum())
            share = 100 * max(channel.contribution, 0) / max(positive, 1e-12)
            title = (
                f"APEX, {scheme} scheme\nchannel {channel.index}: {share:.0f} % of "
                "the evidence"
            )
        image = plot.spectrogram(clip, result.front_end, _pixels(result))
        clip.set_title(title, fontsize=plot.CAPTION + 1)
        heated = plot.heatmap(heat, result.front_end, channel.heatmap)
        where = plot.where(result.scheme, channel.areas)
        heat.set_title(f"heatmap; {where}", fontsize=plot.CAPTION)
        for axes in (clip, heat):
            plot.areas(axes, channel.areas)
    plot.colour_bar(image, list(grid[0]), "dB")
    plot.colour_bar(heated, list(grid[1]), "heat, share of its maximum")
    plot.name_axes(grid, first.front_end)
    return figure


def beside(results: Sequence[explanation.Explanation], *, num: int = 3) -> Figure:
    """One clip explained by APEX and by AudioProtoPNet, each with examples (Fig. 7).

    Each has a row: what its network says, the region of its strongest channel or
    prototype, the heatmap, and the training clips that stand for it.

    Args:
      results: of the same clip; of each the first channel is shown.
      num: training clips shown of each.
    """
    columns = 2 + num
    height = plot.HEIGHT + 0.75
    figure = plot.figure((plot.WIDTH * columns + 0.8, 0.4 + height * len(results)))
    parts = figure.subfigures(len(results), 1, squeeze=False)[:, 0]
    for part, result in zip(parts, results, strict=True):
        channel, front_end = result.channels[0], result.front_end
        title = {"audioprotopnet": "AudioProtoPNet", "apex": "APEX"}[result.method]
        if result.method == "apex":
            title += f", {plot.scheme_name(result.scheme)} scheme"
        part.suptitle(f"{title}: {_says(result)}", fontsize=plot.TITLE)
        grid = part.subplots(1, columns, squeeze=False)
        clip, heat, *examples = grid[0]
        image = plot.spectrogram(clip, front_end, _pixels(result))
        clip.set_title(
            f"{plot.channel_name(result, channel)}, adds "
            f"{channel.contribution:+.2f}\n{plot.where(result.scheme, channel.areas)}",
            fontsize=plot.CAPTION,
        )
        plot.heatmap(heat, front_end, channel.heatmap)
        kind = "similarity map" if result.method == "audioprotopnet" else "heatmap"
        heat.set_title(f"\n{kind}", fontsize=plot.CAPTION)
        for axes in (clip, heat):
            plot.areas(axes, channel.areas)
        for axes, one in zip(examples, channel.prototypes, strict=False):
            plot.prototype(axes, front_end, result.scheme, one)
        for axes in examples[len(channel.prototypes) :]:
            axes.set_axis_off()
        plot.colour_bar(image, clip, "dB")
        plot.name_axes(grid, front_end)
    return figure


def masking(
    result: explanation.Explanation, hidden: Sequence[masking_lib.Hidden]
) -> Figure:
    """A clip with the region of each scheme silenced, and with random ones (Fig. 5).

    Args:
      result: the clip and the class whose probability is watched.
      hidden: what each scheme hides.
    """
    front_end, clip = result.front_end, _pixels(result)
    name = plot.shortened(result.class_name, 12)
    before = 100 * result.probabilities[result.target]
    figure = plot.figure((plot.WIDTH * 4 + 1.2, 0.8 + 1.1 * plot.HEIGHT * len(hidden)))
    figure.suptitle(_says(result), fontsize=plot.TITLE + 1)
    grid = figure.subplots(len(hidden), 4, squeeze=False)
    for (region, mask, masked, random), one in zip(grid, hidden, strict=True):
        image = plot.spectrogram(region, front_end, clip)
        plot.areas(region, one.areas)
        title = f"{plot.scheme_name(one.scheme)} scheme"
        if one.learned != one.scheme:
            title += f", U learned by {plot.scheme_name(one.learned)}"
        where = plot.where(one.scheme, one.areas)
        region.set_title(f"{title}\n{where}", fontsize=plot.CAPTION)
        covered = plot.heatmap(mask, front_end, one.mask)
        mask.set_title("\nsoft mask", fontsize=plot.CAPTION)
        plot.spectrogram(masked, front_end, one.spectrogram, like=clip)
        masked.set_title(
            f"region silenced\n{name} {before:.1f} % → {100 * one.probability:.1f} %",
            fontsize=plot.CAPTION,
        )
        plot.spectrogram(random, front_end, one.random_spectrogram, like=clip)
        random.set_title(
            "random region silenced\n"
            f"→ {100 * one.random_probability:.1f} %, "
            f"mean of {one.draws}: {100 * one.random_mean:.1f} %",
            fontsize=plot.CAPTION,
        )
        plot.colour_bar(image, region, "dB")
        plot.colour_bar(covered, mask, "share hidden")
    plot.name_axes(grid, front_end)
    return figure


def twin(real: explanation.Explanation, fake: explanation.Explanation) -> Figure:
    """A real clip, its vocoded twin, and APEX's regions on their difference (Fig. 6).

    Args:
      real: the real clip, from the same offset as its twin.
      fake: the vocoded clip; its channels are drawn.
    """
    decibel = difference(real, fake)
    front_end, channels = fake.front_end, fake.channels
    columns = max(3, len(channels))
    figure = plot.figure((plot.WIDTH * columns + 0.8, 1.0 + 2 * (plot.HEIGHT + 0.4)))
    top, bottom = figure.subfigures(2, 1, squeeze=False)[:, 0]
    top.suptitle("A real clip and its vocoded twin", fontsize=plot.TITLE + 1)
    grid = top.subplots(1, 3, squeeze=False)
    for axes, one in zip(grid[0], (real, fake), strict=False):
        image = plot.spectrogram(axes, front_end, _pixels(one))
        source = plot.name(one.source, 38, one.offset_s)
        axes.set_title(f"{source}\n{plot.class_name(one)}", fontsize=plot.CAPTION)
        plot.colour_bar(image, axes, "dB")
    image = plot.difference(grid[0, 2], front_end, decibel)
    ended = ", grey where one has ended" * bool(np.isnan(decibel).any())
    grid[0, 2].set_title(f"difference{ended}\nvocoded less real", fontsize=plot.CAPTION)
    plot.colour_bar(image, grid[0, 2], "dB")
    plot.name_axes(grid, front_end)
    bottom.suptitle(
        f"Regions that speak for {plot.shortened(fake.class_name, 24)} in the vocoded "
        f"clip (APEX, {plot.scheme_name(fake.scheme)} scheme), on the difference",
        fontsize=plot.TITLE,
    )
    grid = bottom.subplots(1, columns, squeeze=False)
    for axes, channel in zip(grid[0], channels, strict=False):
        plot.difference(axes, front_end, decibel)
        plot.areas(axes, channel.areas)
        inside, elsewhere = contrast(decibel, channel.areas)
        axes.set_title(
            f"channel {channel.index}: {plot.where(fake.scheme, channel.areas)}\n"
            f"mean |difference| {inside:.1f} dB, elsewhere {elsewhere:.1f} dB",
            fontsize=plot.CAPTION,
        )
    for axes in grid[0, len(channels) :]:
        axes.set_axis_off()
    plot.name_axes(grid, front_end)
    return figure


def difference(
    real: explanation.Explanation, fake: explanation.Explanation
) -> np.ndarray:
    """The vocoded clip's spectrogram less the real one's in dB, `[F_in, T_in]`.

    Both start together. Vocoders make a clip some milliseconds longer or shorter: where
    one of the two has ended there is nothing to compare, and NaN.

    Raises:
      ValueError: a spectrogram or the front end is missing, or front ends differ.
    """
    front_end = fake.front_end
    if front_end is None or real.front_end != front_end:
        raise ValueError("real and vocoded clip must have the same front end")
    decibel = front_end.to_db(_pixels(fake)) - front_end.to_db(_pixels(real))
    ends = [one.sound_s for one in (real, fake) if one.sound_s is not None]
    centres = front_end.frame_to_s(np.arange(decibel.shape[1]))
    return np.where(centres <= min(ends, default=np.inf), decibel, np.nan)


def contrast(
    decibel: np.ndarray, areas: Sequence[explanation.Area]
) -> tuple[float, float]:
    """Mean magnitude inside a region and elsewhere; a pixel is where its centre is."""
    inside = np.zeros(decibel.shape, bool)
    rows, frames = (np.arange(size) + 0.5 for size in decibel.shape)
    for area in areas:
        (low, high), (start, end) = area.box.rows, area.box.frames
        up, across = (rows >= low) & (rows < high), (frames >= start) & (frames < end)
        inside |= up[:, None] & across[None, :]
    heard = ~np.isnan(decibel)

    def mean(part: np.ndarray) -> float:
        return (
            float(np.abs(decibel[part & heard]).mean()) if (part & heard).any() else 0.0
        )

    return mean(inside), mean(~inside)


def _pixels(result: explanation.Explanation) -> np.ndarray:
    if result.spectrogram is None:
        raise ValueError(
            f"{result.source} was explained without its spectrogram; this figure "
            "draws on one"
        )
    return result.spectrogram


def _says(result: explanation.Explanation) -> str:
    source = plot.name(result.source, 60, result.offset_s)
    return f"{source}: {plot.verdict(result)}"
