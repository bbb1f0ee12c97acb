"""Does a region lie where the event is? Pointing game and intersection over union.

In come locations on the feature map and the box of an event that is known, from a
listener's annotation or because it was planted; out come hits and overlaps, one a
clip. For whoever has such boxes: nothing here knows how a location was found.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from jaxtyping import Bool, Float, Int

from apex_jax import frontend, schemes

# A region that shares less with the event, of the shorter of the two along an axis,
# only grazes it.
LEAST_OVERLAP = 0.25


@dataclasses.dataclass(frozen=True, kw_only=True)
class Event:
    """Where something is to be heard.

    Attributes:
      start_s: seconds from the start of the clip; 0 for an event without a beginning.
      end_s: seconds; infinity for one without an end.
      low_hz: lower edge; 0 for one without.
      high_hz: upper edge; infinity for one without.
    """

    start_s: frontend.Real = 0.0
    end_s: frontend.Real = np.inf
    low_hz: frontend.Real = 0.0
    high_hz: frontend.Real = np.inf

    def __post_init__(self) -> None:
        for low, high, unit in (
            (self.start_s, self.end_s, "s"),
            (self.low_hz, self.high_hz, "Hz"),
        ):
            if not 0 <= low < high:
                raise ValueError(
                    "an event must begin before it ends; got "
                    f"{low:g} to {high:g} {unit}"
                )

    def box(self, front_end: frontend.FrontEnd) -> schemes.Box:
        """In pixels of the spectrogram, as far as it lies inside.

        Raises:
          ValueError: it lies outside of the spectrogram.
        """
        found = np.stack(
            [
                front_end.hz_to_row(np.array([self.low_hz, self.high_hz])),
                front_end.s_to_frame(np.array([self.start_s, self.end_s])),
            ]
        )
        edges = []
        for (low, high), start, size in zip(
            found, (self.low_hz, self.start_s), front_end.shape, strict=True
        ):
            # A row's or frame's edge is half of one from its centre; what has no
            # beginning begins at the spectrogram's.
            begin = low + 0.5 if start else 0.0
            inside = np.clip([begin, high + 0.5], 0, size)
            edges.append((float(inside[0]), float(inside[1])))
        if any(low >= high for low, high in edges):
            raise ValueError(f"{self} lies outside of a spectrogram of {front_end}")
        rows, frames = edges
        return schemes.Box(rows=rows, frames=frames)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scores:
    """How well locations point at events, `[*batch]` each.

    Attributes:
      frequency: whether the region's row overlaps the event's band; True where the
        scheme leaves rows open.
      time: likewise, its column and the event's time.
      iou: area of what region and event share over that of what either covers, in
        pixels.
    """

    frequency: Bool[np.ndarray, "*batch"]
    time: Bool[np.ndarray, "*batch"]
    iou: Float[np.ndarray, "*batch"]

    @property
    def both(self) -> Bool[np.ndarray, "*batch"]:
        """Hits along both axes."""
        return self.frequency & self.time


def score(
    grid: schemes.Grid,
    scheme: schemes.Scheme,
    locations: Int[np.ndarray, "*batch 2"],
    boxes: Float[np.ndarray, "*batch 4"],
) -> Scores:
    """Whether regions lie on events.

    A hit along an axis is an overlap of at least a quarter of the shorter of the two,
    of the cell and of the event. The region of time-frequency is a column and a row,
    and its hits are the column's in time and the row's in frequency.

    Args:
      grid: how the map's cells lie on the spectrogram.
      scheme: what a location stands for.
      locations: `(row, column)`, `schemes.ALL` along an axis the scheme leaves open.
      boxes: of the events, low and high row, first and last frame, in pixels.
    """
    axes = []
    for axis, scheme_fixes in enumerate(
        (scheme != "time", scheme != "frequency"),
    ):
        size, cell = float(grid.input_shape[axis]), grid.cell[axis]
        start = locations[..., axis] * cell
        end = np.minimum(start + cell, size)
        if not scheme_fixes:
            start, end = np.zeros_like(start), np.full_like(end, size)
        low, high = boxes[..., 2 * axis], boxes[..., 2 * axis + 1]
        shared = np.maximum(np.minimum(end, high) - np.maximum(start, low), 0)
        axes.append((end - start, high - low, shared, size))
    (row, band, in_band, rows), (column, span, in_span, frames) = axes
    if scheme == "time_frequency":
        area = row * frames + column * rows - row * column
        shared = in_band * span + in_span * band - in_band * in_span
    else:
        area, shared = row * column, in_band * in_span
    return Scores(
        frequency=in_band >= LEAST_OVERLAP * np.minimum(row, band),
        time=in_span >= LEAST_OVERLAP * np.minimum(column, span),
        iou=shared / (area + band * span - shared),
    )
