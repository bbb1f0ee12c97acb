"""Drawing on matplotlib axes in seconds and kilohertz, and what captions say.

In come arrays `[F_in, T_in]` on the host and regions; out come artists on the axes that
were given. `figures` puts them together. Where no front end tells seconds and hertz,
axes count frames and rows. Figures are made without pyplot, so nothing is shown and
nothing stays in memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from apex_jax import explanation, frontend, schemes, ticks

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.image import AxesImage

REGION = "#39ff14"  # the paper's green, readable on every colour of the map below
OUTLINE = "#0b3d02"  # around it, so that it is seen on white too
COLOURS = "magma"
SPAN_DB = 80.0  # a clip padded with silence would spend most colours below its noise

WIDTH, HEIGHT = 2.7, 2.1  # of a panel with its captions, inches
TITLE, CAPTION, TICKS = 11, 8, 7  # points


def figure(size: tuple[float, float]) -> Figure:
    """An empty figure of `size` inches, in which nothing overlaps."""
    from matplotlib.figure import Figure

    return Figure(figsize=size, layout="constrained")


def spectrogram(
    axes: Axes,
    front_end: frontend.FrontEnd | None,
    values: np.ndarray,
    *,
    like: np.ndarray | None = None,
) -> AxesImage:
    """Draws a spectrogram in decibel, as far as `SPAN_DB` below its maximum.

    Args:
      axes: where to draw.
      front_end: its settings; without them the values are drawn as they are.
      values: `[F_in, T_in]`, in the front end's units.
      like: a spectrogram whose colours are taken over, to compare with.
    """
    scale = values if like is None else like
    if front_end is not None:
        values, scale = front_end.to_db(values), front_end.to_db(scale)
    low, high = float(scale.min()), float(scale.max())
    if front_end is not None:
        low = max(low, high - SPAN_DB)
    return _image(axes, front_end, values, COLOURS, low, high)


def heatmap(
    axes: Axes, front_end: frontend.FrontEnd | None, values: np.ndarray
) -> AxesImage:
    """Draws a heatmap or a mask `[F_in, T_in]` in [0, 1]; grey, for the green on it."""
    return _image(axes, front_end, values, "gray", 0.0, 1.0)


def difference(
    axes: Axes, front_end: frontend.FrontEnd | None, decibel: np.ndarray
) -> AxesImage:
    """Draws a difference `[F_in, T_in]`: 0 is white, NaN grey, outliers saturate."""
    known = np.abs(decibel[~np.isnan(decibel)])
    largest = float(np.percentile(known, 98)) if known.any() else 1.0
    image = _image(axes, front_end, decibel, "RdBu_r", -largest, largest)
    axes.set_facecolor("0.6")
    return image


def _image(
    axes: Axes,
    front_end: frontend.FrontEnd | None,
    values: np.ndarray,
    colours: str,
    low: float,
    high: float,
) -> AxesImage:
    rows, frames = values.shape
    image = axes.imshow(
        values,
        origin="lower",
        aspect="auto",
        interpolation="nearest",
        cmap=colours,
        vmin=low,
        vmax=high,
        extent=(-0.5, frames - 0.5, -0.5, rows - 0.5),
    )
    if front_end is None:
        across = ticks.pixels(frames, gap=0.2)
        up = ticks.pixels(rows)
    else:
        across = ticks.time(front_end, frames, gap=0.2)
        up = ticks.frequency(front_end, rows)
    axes.set_xticks([t.position for t in across], [t.label for t in across])
    axes.set_yticks([t.position for t in up], [t.label for t in up])
    return image


def name_axes(
    grid: np.ndarray, front_end: frontend.FrontEnd | None, *, up: bool = True
) -> None:
    """Names the axes of panels `[row, column]` along the left and lower edge.

    Args:
      grid: of axes that show spectrograms or heatmaps.
      front_end: whether they are in seconds and kilohertz.
      up: name the vertical axis too.
    """
    for axes in grid.flat:
        axes.tick_params(labelsize=TICKS)
    for axes in grid[-1]:
        axes.set_xlabel("frame" if front_end is None else "time (s)", fontsize=CAPTION)
    for axes in grid[:, 0] if up else ():
        label = "row" if front_end is None else "frequency (kHz)"
        axes.set_ylabel(label, fontsize=CAPTION)


def prototype(
    axes: Axes,
    front_end: frontend.FrontEnd | None,
    scheme: schemes.Scheme,
    one: explanation.Prototype,
    *,
    purity: bool = False,
) -> None:
    """A training clip with its region: which file and class, and where."""
    if one.spectrogram is None:
        heatmap(axes, front_end, one.heatmap)
    else:
        spectrogram(axes, front_end, one.spectrogram)
    areas(axes, one.areas)
    lines = [name(str(one.clip.path), 34, one.clip.offset_s)]
    said = shortened(one.class_name, 20)
    if purity and one.purity is not None:
        said += f", purity {one.purity:.2f}"
    lines += [said, where(scheme, one.areas)]
    axes.set_title("\n".join(lines), fontsize=CAPTION)


def colour_bar(image: AxesImage, axes: Axes | Sequence[Axes], label: str) -> None:
    """What the colours of an image stand for, beside the axes that share them."""
    figure = image.get_figure()
    assert figure is not None
    bar = figure.colorbar(image, ax=axes, pad=0.01, aspect=18)
    bar.set_label(label, fontsize=CAPTION)
    bar.ax.tick_params(labelsize=TICKS)


def areas(axes: Axes, regions: Sequence[explanation.Area]) -> None:
    """Draws the outline of a region: square, column, row, or cross.

    Column and row of the time-frequency scheme become one cross, the outline of their
    union.
    """
    from matplotlib import patheffects
    from matplotlib.patches import Polygon

    if not regions:
        return
    # On the very edge of the axes a line would be cut in half and hidden by the frame.
    left, right = axes.get_xlim()
    bottom, top = axes.get_ylim()
    dx, dy = 0.012 * (right - left), 0.018 * (top - bottom)

    def inside(box: schemes.Box) -> tuple[float, float, float, float]:
        (low, high), (start, end) = box.rows, box.frames
        return (
            max(start - 0.5, left + dx),
            max(low - 0.5, bottom + dy),
            min(end - 0.5, right - dx),
            min(high - 0.5, top - dy),
        )

    corners = [inside(area.box) for area in regions]
    x0, y0, x1, y1 = corners[0]
    points = [(x0, y0), (x1, y0), (x1, y1), (x0, y1)]
    if len(corners) == 2:
        a0, b0, a1, b1 = corners[1]
        points = [
            (x0, y0), (x1, y0), (x1, b0), (a1, b0), (a1, b1), (x1, b1),
            (x1, y1), (x0, y1), (x0, b1), (a0, b1), (a0, b0), (x0, b0),
        ]  # fmt: skip
    outline = Polygon(points, closed=True, fill=False, edgecolor=REGION, linewidth=1.5)
    outline.set_path_effects(
        [patheffects.withStroke(linewidth=2.7, foreground=OUTLINE)]
    )
    axes.add_patch(outline)


def where(scheme: schemes.Scheme, regions: Sequence[explanation.Area]) -> str:
    """A region in words, without the axis along which it is everywhere."""
    if not regions:
        return "no region"
    column, row = regions[0], regions[-1]
    if column.start_s is None or row.low_hz is None or row.high_hz is None:
        time = "frames {:g}-{:g}".format(*column.box.frames)
        band = "rows {:g}-{:g}".format(*row.box.rows)
    else:
        time = f"{column.start_s:.2f}-{column.end_s:.2f} s"
        band = f"{row.low_hz / 1000:.2f}-{row.high_hz / 1000:.2f} kHz"
    match scheme:
        case "time":
            return time
        case "frequency":
            return band
        case _:
            return f"{time}, {band}"


def name(source: str, length: int, offset_s: frontend.Real = 0.0) -> str:
    """A file's folder and name, cut on the left to fit, and where in it a clip starts.

    Args:
      source: path of a file, or what stands for it.
      length: of the result in characters, at most.
      offset_s: where in the file the clip starts, in seconds.
    """
    start = f" at {offset_s:.1f} s" if offset_s else ""
    parts = source.replace("\\", "/").rsplit("/", 2)[-2:]
    return shortened("/".join(parts), length - len(start)) + start


def shortened(text: str, length: int) -> str:
    """`text`, its start replaced by an ellipsis where it is longer than `length`."""
    return text if len(text) <= length else "…" + text[len(text) + 1 - length :]


def scheme_name(scheme: schemes.Scheme) -> str:
    """As people write it."""
    return scheme.replace("_", "-")


def class_name(result: explanation.Explanation, index: int | None = None) -> str:
    """Of the class explained, or of another, and its probability."""
    index = result.target if index is None else index
    name = shortened(result.class_names[index], 40)
    return f"{name} ({100 * result.probabilities[index]:.1f} %)"


def verdict(result: explanation.Explanation) -> str:
    """What the classifier predicts, and the class explained if it is another."""
    said = f"predicted {class_name(result, result.predicted)}"
    if result.target != result.predicted:
        said += f", explained {class_name(result)}"
    return said


def channel_name(result: explanation.Explanation, channel: explanation.Channel) -> str:
    """The channel's number; the method's name where it has none."""
    if channel.index is not None:
        word = "prototype" if result.method == "audioprotopnet" else "channel"
        return f"{word} {channel.index}"
    return {"grad-cam": "Grad-CAM", "lime": "LIME"}[result.method]
