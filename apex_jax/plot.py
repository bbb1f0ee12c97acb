"""Figures with axes in seconds and hertz: an explanation, purity over training.

In come results on the host, out come matplotlib figures. They are made without
pyplot, so nothing is shown and nothing stays in memory.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from apex_jax import audio, explanation, optimize, schemes

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.image import AxesImage

REGION = "#39ff14"  # the paper's green, readable on every colour of the map below
COLOURS = "magma"


def spectrogram(
    axes: Axes, front_end: audio.FrontEnd, values: np.ndarray, *, labels: bool = True
) -> AxesImage:
    """Draws values on a spectrogram `[F_in, T_in]` over seconds and kilohertz.

    Args:
      axes: where to draw.
      front_end: tells the axes.
      values: decibel, or any other value a pixel.
      labels: name the axes.
    """
    rows, frames = values.shape
    image = axes.imshow(
        values,
        origin="lower",
        aspect="auto",
        interpolation="nearest",
        cmap=COLOURS,
        extent=(-0.5, frames - 0.5, -0.5, rows - 0.5),
    )
    _label_time(axes, front_end, frames)
    _label_frequency(axes, front_end, rows)
    if labels:
        axes.set_xlabel("time (s)")
        axes.set_ylabel("frequency (kHz)")
    return image


def _label_time(axes: Axes, front_end: audio.FrontEnd, frames: int) -> None:
    from matplotlib.ticker import MaxNLocator

    last = float(front_end.frame_to_s(frames - 1))
    seconds = [t for t in MaxNLocator(4).tick_values(0, last) if 0 <= t <= last]
    per_second = front_end.sample_rate / front_end.hop_length
    axes.set_xticks([t * per_second for t in seconds], [f"{t:g}" for t in seconds])


def _label_frequency(axes: Axes, front_end: audio.FrontEnd, rows: int) -> None:
    hertz = np.asarray(front_end.row_to_hz(np.arange(rows)))
    nice = np.array([125, 250, 500, 1000, 2000, 4000, 8000, 16000, 32000])
    nice = nice[(nice >= hertz[0]) & (nice <= hertz[-1])]
    at = np.interp(nice, hertz, np.arange(rows))
    # On a linear axis the low octaves crowd: keep ticks a tenth of the height apart.
    kept: list[int] = []
    for i in reversed(range(len(nice))):
        if not kept or at[kept[-1]] - at[i] >= rows / 10:
            kept.append(i)
    axes.set_yticks(at[kept], [f"{nice[i] / 1000:g}" for i in kept])


def areas(axes: Axes, boxes: tuple[explanation.Area, ...]) -> None:
    """Draws a region's outline: square, column, row, or cross."""
    from matplotlib.patches import Rectangle

    # On the very edge of the axes a line would be cut in half and hidden by the frame.
    left, right = axes.get_xlim()
    bottom, top = axes.get_ylim()
    dx, dy = 0.01 * (right - left), 0.016 * (top - bottom)
    for area in boxes:
        (low, high), (start, end) = area.box.rows, area.box.frames
        x0, x1 = max(start - 0.5, left + dx), min(end - 0.5, right - dx)
        y0, y1 = max(low - 0.5, bottom + dy), min(high - 0.5, top - dy)
        outline = Rectangle(
            (x0, y0), x1 - x0, y1 - y0, fill=False, edgecolor=REGION, linewidth=1.4
        )
        axes.add_patch(outline)


def explained(
    result: explanation.Explanation,
    front_end: audio.FrontEnd,
    *,
    num_prototypes: int = 4,
) -> Figure:
    """The clip, its top channels, their regions, heatmaps and prototypes.

    One row a channel: the region in the clip, the heatmap, then the training clips
    that excite the channel most, each with its own region.

    Args:
      result: what to draw.
      front_end: the settings of its spectrograms.
      num_prototypes: drawn beside each channel, at most.
    """
    from matplotlib.figure import Figure

    num_prototypes = min(num_prototypes, len(result.channels[0].prototypes))
    columns, rows = 2 + num_prototypes, len(result.channels)
    figure = Figure(figsize=(2.6 * columns, 2.7 + 1.9 * rows), layout="constrained")
    parts = figure.subfigures(2, 1, squeeze=False, height_ratios=[2.7, 1.9 * rows])
    head, body = parts[:, 0]

    left, right = head.subplots(1, 2, width_ratios=[3, 2])
    image = spectrogram(left, front_end, front_end.to_db(result.spectrogram))
    head.colorbar(image, ax=left, label="dB", pad=0.01)
    probability = np.exp(result.logits - result.logits.max())
    probability /= probability.sum()
    left.set_title(
        f"{_name(result.source, result.offset_s, 44)}: predicted "
        f"{result.class_names[result.predicted]} "
        f"({100 * probability[result.predicted]:.1f} %)",
        fontsize=10,
    )
    labels = [f"channel {c.index}" for c in result.channels]
    right.barh(labels, [c.contribution for c in result.channels], color="#3b6ea5")
    right.invert_yaxis()
    right.set_xlabel("contribution to the logit")
    right.set_title(
        f"top channels for {result.class_name}: "
        f"{100 * result.evidence_share:.0f} % of the positive evidence",
        fontsize=10,
    )

    grid = body.subplots(rows, columns, squeeze=False)
    for line, channel in zip(grid, result.channels, strict=True):
        clip, heat, *others = line
        spectrogram(clip, front_end, front_end.to_db(result.spectrogram), labels=False)
        areas(clip, channel.areas)
        clip.set_ylabel(f"channel {channel.index}\n(kHz)", fontsize=9)
        spectrogram(heat, front_end, channel.heatmap, labels=False)
        heat.images[0].set(cmap="gray", clim=(0, 1))  # REGION stays readable
        areas(heat, channel.areas)
        clip.set_title(_where(result.scheme, channel.areas), fontsize=8)
        heat.set_title("heatmap", fontsize=8)
        shown = channel.prototypes[:num_prototypes]
        for axes, prototype in zip(others, shown, strict=True):
            spectrogram(
                axes, front_end, front_end.to_db(prototype.spectrogram), labels=False
            )
            areas(axes, prototype.areas)
            name = _name(str(prototype.clip.path), prototype.clip.offset_s, 28)
            axes.set_title(
                f"{name} ({prototype.class_name})\n"
                f"{_where(result.scheme, prototype.areas)}",
                fontsize=7,
            )
        for axes in line:
            axes.tick_params(labelsize=7)
    for axes in grid[-1]:
        axes.set_xlabel("time (s)", fontsize=8)
    scheme = result.scheme.replace("_", "-")
    body.suptitle(
        f"{scheme} scheme: region in the clip, heatmap, and the training clips that "
        f"excite each channel {'most' if result.sign == 'positive' else 'least'}",
        fontsize=10,
    )
    return figure


def purity(history: optimize.History) -> Figure:
    """Purity over the epochs of the optimisation."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    axes.plot(
        history.round_epochs,
        history.round_purity,
        "o-",
        color="#3b6ea5",
        label=f"strongest {history.round_prototypes} clips a channel",
    )
    epochs = np.arange(1, 1 + len(history.epoch_purity))
    axes.plot(
        epochs,
        history.epoch_purity,
        "s--",
        markersize=3,
        color="#d1495b",
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


def _where(scheme: schemes.Scheme, boxes: tuple[explanation.Area, ...]) -> str:
    """The region in words, without the axis along which it is everywhere."""
    time = f"{boxes[0].start_s:.2f}-{boxes[0].end_s:.2f} s"
    band = f"{boxes[-1].low_hz:.0f}-{boxes[-1].high_hz:.0f} Hz"
    match scheme:
        case "time":
            return time
        case "frequency":
            return band
        case _:
            return f"{time}, {band}"


def _name(path: str, offset_s: float, length: int) -> str:
    """Folder and file, cut on the left to fit, and where in the file a clip starts."""
    name = "/".join(path.replace("\\", "/").rsplit("/", 2)[-2:])
    start = f" at {offset_s:.1f} s" if offset_s else ""
    room = length - len(start)
    return (name if len(name) <= room else "…" + name[1 - room :]) + start
