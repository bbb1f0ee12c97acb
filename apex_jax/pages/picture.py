"""A spectrogram for a web page: image, axes, and the outline of a region.

In come arrays `[F_in, T_in]` whose row 0 is the lowest frequency; out come PNG files
of one pixel a value, and what is drawn over them in the same pixels: an SVG path and
the places of the ticks. Text and lines thus stay sharp at every size of the page.
"""

from __future__ import annotations

import dataclasses
import io
from collections import defaultdict
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from apex_jax import frontend, schemes, ticks

COLOURS = "magma"
# A clip padded with silence would otherwise spend most colours below its noise.
SPAN_DB = 80.0
# Green and blue are the region's and the playhead's; the spectrogram turns grey below.
HEAT = (255, 106, 0)
# Steps of a spectrogram, less than a decibel each, and of a heatmap. Finer ones cannot
# be told apart, and the files would be half as large again.
LEVELS = 96
HEAT_LEVELS = 32


@dataclasses.dataclass(frozen=True, kw_only=True)
class Axes:
    """What the edges of a picture say.

    Attributes:
      shape: `(rows, frames)`.
      across: `(percent from the left, label)` of the ticks in time.
      up: `(percent from the top, label)` of the ticks in frequency.
      units: of time and frequency.
      edges_s: seconds at the left and right edge; None where no front end tells.
    """

    shape: tuple[int, int]
    across: tuple[tuple[float, str], ...]
    up: tuple[tuple[float, str], ...]
    units: tuple[str, str]
    edges_s: tuple[float, float] | None


def axes(
    front_end: frontend.FrontEnd | None, shape: tuple[int, int], *, small: bool = False
) -> Axes:
    """Ticks in seconds and kilohertz, or in frames and rows without a front end.

    Args:
      front_end: tells seconds and hertz.
      shape: `(rows, frames)`.
      small: fewer ticks, for a picture about as wide as a hand's breadth of text.
    """
    rows, frames = shape
    apart = {"gap": 0.3} if small else {}
    if front_end is None:
        across, up = ticks.pixels(frames, **apart), ticks.pixels(rows)
        units, edges_s = ("frame", "row"), None
    else:
        across = ticks.time(front_end, frames, **apart)
        up = ticks.frequency(front_end, rows, gap=0.15 if small else 0.1)
        units = ("s", "kHz")
        left, right = (front_end.frame_to_s(x) for x in (-0.5, frames - 0.5))
        edges_s = (float(left), float(right))
    return Axes(
        shape=shape,
        across=tuple((100 * (t.position + 0.5) / frames, t.label) for t in across),
        up=tuple((100 - 100 * (t.position + 0.5) / rows, t.label) for t in up),
        units=units,
        edges_s=edges_s,
    )


def limits(spectrograms: Sequence[np.ndarray]) -> tuple[float, float]:
    """What gets the darkest and the brightest colour, at most 80 dB apart."""
    high = max(float(values.max()) for values in spectrograms)
    low = min(float(values.min()) for values in spectrograms)
    return max(low, high - SPAN_DB), high


def spectrogram(
    values: Float[np.ndarray, "freq time"], limits: tuple[float, float]
) -> bytes:
    """A PNG file of the values between `limits`, lowest row at the bottom."""
    import matplotlib

    low, high = limits
    share = (values - low) / (high - low) if high > low else np.zeros_like(values)
    colours = matplotlib.colormaps[COLOURS](np.linspace(0, 1, LEVELS), bytes=True)
    return _png(share, colours[:, :3])


def colour_bar() -> bytes:
    """A PNG file of the colours of `spectrogram`, one pixel wide."""
    import matplotlib

    colours = matplotlib.colormaps[COLOURS](np.linspace(0, 1, LEVELS), bytes=True)
    return _png(np.linspace(0, 1, LEVELS)[:, None], colours[:, :3])


def heatmap(values: Float[np.ndarray, "freq time"]) -> bytes:
    """A PNG file of one colour, the more opaque the larger the value in [0, 1]."""
    colours = np.tile(np.array([*HEAT, 0], np.uint8), (HEAT_LEVELS, 1))
    colours[:, 3] = np.round(np.linspace(0, 225, HEAT_LEVELS))
    return _png(values, colours)


def bar_ticks(low: float, high: float) -> tuple[tuple[float, str], ...]:
    """Round values on the colour bar of `spectrogram`, percent from the top, label."""
    if not high > low:
        return ((50.0, f"{low:.3g}"),)
    round_values = ticks.values(low, high, apart=0.15 * (high - low))
    return tuple(
        (100 * (high - v) / (high - low), f"{v:g}".replace("-", "−"))
        for v in round_values
    )


def _png(share: np.ndarray, colours: np.ndarray) -> bytes:
    """Values in [0, 1] as indices into a palette: a byte a pixel, less once packed."""
    from PIL import Image

    index = np.round(np.clip(share, 0, 1) * (len(colours) - 1)).astype(np.uint8)
    image = Image.fromarray(np.ascontiguousarray(index[::-1]))
    image.putpalette(np.ascontiguousarray(colours[:, :3]).tobytes())
    opacity = {"transparency": colours[:, 3].tobytes()} if colours.shape[1] > 3 else {}
    file = io.BytesIO()
    image.save(file, format="PNG", **opacity)
    return file.getvalue()


def outline(boxes: Sequence[schemes.Box], num_rows: int) -> str:
    """The SVG path around the union of rectangles; row 0 is at the bottom.

    A column and a row thus become one cross. Corners are at most one subpath each:
    every loop is closed, inner edges are not drawn.
    """
    loops = _loops(boxes)
    return "".join(
        "M" + "L".join(f"{x:g} {num_rows - y:g}" for x, y in loop) + "Z"
        for loop in loops
    )


def _loops(boxes: Sequence[schemes.Box]) -> list[list[tuple[float, float]]]:
    """The union's boundary as closed loops of corners `(frame, row)`."""
    x = np.unique([edge for box in boxes for edge in box.frames])
    y = np.unique([edge for box in boxes for edge in box.rows])
    # Between neighbouring edges a rectangle holds all or nothing.
    inside = np.zeros((len(y) + 1, len(x) + 1), bool)
    for box in boxes:
        rows, columns = np.searchsorted(y, box.rows), np.searchsorted(x, box.frames)
        inside[rows[0] + 1 : rows[1] + 1, columns[0] + 1 : columns[1] + 1] = True
    # Directed so that the inside lies to the left.
    onward: dict[tuple[int, int], list[tuple[int, int]]] = defaultdict(list)
    for i, j in np.argwhere(
        inside[1:] != inside[:-1]
    ).tolist():  # along a horizontal edge
        ends = [(i, j - 1), (i, j)]
        start, end = ends if inside[i + 1, j] else ends[::-1]
        onward[start].append(end)
    for i, j in np.argwhere(
        inside[:, 1:] != inside[:, :-1]
    ).tolist():  # along a vertical one
        ends = [(i - 1, j), (i, j)]
        start, end = ends if inside[i, j] else ends[::-1]
        onward[start].append(end)
    loops = []
    while onward:
        corner = first = next(iter(onward))
        loop = []
        while True:
            following = onward[corner].pop()
            if not onward[corner]:
                del onward[corner]
            loop.append(corner)
            corner = following
            if corner == first:
                break
        loops.append([(float(x[j]), float(y[i])) for i, j in _corners(loop)])
    return loops


def _corners(loop: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Without the points in the middle of a straight side."""
    ring = [loop[-1], *loop, loop[0]]
    return [
        b
        for a, b, c in zip(ring, ring[1:], ring[2:], strict=False)
        if not (a[0] == b[0] == c[0] or a[1] == b[1] == c[1])
    ]
