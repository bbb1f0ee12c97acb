"""Which seconds and hertz an axis names: round numbers that do not crowd.

In comes the front end and the size of a spectrogram; out come positions in its
pixels and labels. Pixel centres lie at integers, as in `FrontEnd.row_to_hz` and
`FrontEnd.frame_to_s`. Figures and the report name the same places.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np

from apex_jax import frontend

# Equally far apart on the logarithmic part of a mel axis. From 125 Hz: below that a
# mel axis is linear, and the names would be long.
_OCTAVES = 1000.0 * 2.0 ** np.arange(-3, 10)


class Tick(NamedTuple):
    """A named place on an axis.

    Attributes:
      position: in pixels of the spectrogram, their centres at integers.
      label: the value without its unit.
    """

    position: float
    label: str


def time(
    front_end: frontend.FrontEnd, num_frames: int, *, gap: float = 0.15
) -> list[Tick]:
    """Round seconds from 0 to the last frame.

    Args:
      front_end: tells seconds.
      num_frames: width of the spectrogram.
      gap: smallest distance of two ticks, as a share of the axis.
    """
    frame_s = float(front_end.frame_to_s(1))
    seconds = values(0.0, frame_s * (num_frames - 1), apart=gap * num_frames * frame_s)
    return [Tick(t / frame_s, f"{t:g}") for t in seconds]


def frequency(
    front_end: frontend.FrontEnd, num_rows: int, *, gap: float = 0.1
) -> list[Tick]:
    """Round kilohertz from the lowest to the highest row, lowest first.

    Octaves of 1 kHz where the axis is in mels, as far down as they keep their
    distance; equal steps where it is linear or covers little more than an octave.

    Args:
      front_end: tells hertz.
      num_rows: height of the spectrogram.
      gap: smallest distance of two ticks, as a share of the axis.
    """
    rows = np.arange(num_rows)
    hertz = np.asarray(front_end.row_to_hz(rows), np.float64)
    if num_rows == 1:
        return _kilohertz(rows, [float(f"{hertz[0]:.3g}")])

    def within(some: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        some = some[(some >= hertz[0]) & (some <= hertz[-1])]
        return some, np.interp(some, hertz, rows)

    if front_end.n_mels is not None:
        chosen, at = within(_OCTAVES)
        crowded = np.flatnonzero(np.diff(at) < gap * num_rows)
        first = crowded[-1] + 1 if crowded.size else 0
        if len(chosen) - first >= 3:
            return _kilohertz(at[first:], chosen[first:])
    # On a mel axis equal steps crowd towards the top, hence the search.
    for step in _steps(gap * (hertz[-1] - hertz[0])):
        chosen, at = within(_multiples(step, hertz[0], hertz[-1]))
        if np.all(np.diff(at) >= gap * num_rows):
            return _kilohertz(at, chosen)
    raise AssertionError("steps grow without end, one leaves a single tick")


def pixels(size: int, *, gap: float = 0.15) -> list[Tick]:
    """Round indices of frames or rows, for axes of which no front end tells more."""
    apart = max(1.0, gap * size)
    return [Tick(i, f"{i:g}") for i in values(0.0, size - 1.0, apart=apart)]


def values(low: float, high: float, *, apart: float) -> list[float]:
    """Multiples of 1, 2 or 5 times a power of ten in `[low, high]`.

    Args:
      low: of the axis.
      high: of the axis; where it is not above `low` there is nothing to name but
        `low` itself.
      apart: smallest distance of two values.
    """
    if not high > low:
        return [float(low)]
    return _multiples(next(_steps(apart)), low, high).tolist()


def _steps(at_least: float) -> Iterator[float]:
    """1, 2, 5 times a power of ten, ascending from the first that is large enough."""
    at_least = max(at_least, float(np.finfo(np.float32).tiny))
    exponent = math.floor(math.log10(at_least))
    while True:
        for factor in (1, 2, 5):
            step = float(f"{factor}e{exponent}")  # exact, unlike a product
            if step >= at_least * (1 - 1e-9):
                yield step
        exponent += 1


def _multiples(step: float, low: float, high: float) -> np.ndarray:
    slack = 1e-9 * (high - low)
    first = math.ceil((low - slack) / step)
    last = math.floor((high + slack) / step)
    # Adding 0.0 turns -0.0 into 0; rounding drops what the product adds (3 * 0.1).
    digits = max(0, 3 - math.floor(math.log10(step)))
    return np.round(np.arange(first, last + 1) * step, digits) + 0.0


def _kilohertz(at: np.ndarray, hertz: Iterable[float]) -> list[Tick]:
    labels = [f"{value / 1000:g}" for value in hertz]
    return [Tick(float(a), label) for a, label in zip(at, labels, strict=True)]
