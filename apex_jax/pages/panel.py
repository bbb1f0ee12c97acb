"""One picture of the page: a spectrogram, its region in words, its heatmap, its sounds.

In comes an explanation and the channel or prototype to show; out come plain values for
the template. The region that is drawn, named and heard is the same tuple of areas.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from apex_jax import explanation
from apex_jax.pages import embed, picture


@dataclasses.dataclass(frozen=True, kw_only=True)
class Panel:
    """A spectrogram with a region and a heatmap, and the sounds that go with it.

    Attributes:
      axes: ticks and units.
      text: what it shows, for who cannot see it.
      image: the spectrogram; None where there is none.
      heat: the heatmap; None for the clip as such.
      outline: SVG path of the region, in pixels; empty where there is none.
      where: the region in words.
      players: what to play: a word for it, and the player.
      bar: ticks of the colour bar, `(percent from the top, label)`.
    """

    axes: picture.Axes
    text: str
    image: embed.Image | None = None
    heat: embed.Image | None = None
    outline: str = ""
    where: str = ""
    players: tuple[tuple[str, embed.Player], ...] = ()
    bar: tuple[tuple[float, str], ...] = ()


def decibel(result: explanation.Explanation, spectrogram: np.ndarray) -> np.ndarray:
    """A spectrogram in dB; as it is where no front end tells its units."""
    values = np.asarray(spectrogram, np.float32)
    return values if result.front_end is None else result.front_end.to_db(values)


def make(
    result: explanation.Explanation,
    store: embed.Store,
    text: str,
    part: explanation.Channel | explanation.Prototype | None = None,
    *,
    limits: tuple[float, float] | None = None,
) -> Panel:
    """The clip, or a prototype, with the region and heatmap of `part`.

    Args:
      result: the explanation.
      store: takes in images and sounds.
      text: what it shows, for who cannot see it.
      part: what lies over the spectrogram; None for the clip as such.
      limits: of the colours, in dB; None for the spectrogram's own.
    """
    prototype = part if isinstance(part, explanation.Prototype) else None
    values = (result if prototype is None else prototype).spectrogram
    pixels = values if part is None else part.heatmap
    assert pixels is not None, "a clip without a spectrogram is not drawn by itself"
    shape = pixels.shape
    drawn: dict[str, Any] = {}
    if values is not None:
        values = decibel(result, values)
        limits = picture.limits([values]) if limits is None else limits
        drawn["image"] = store.image(picture.spectrogram, values, limits)
        drawn["bar"] = picture.bar_ticks(*limits)
    sounds = [("Clip", store.player(result, prototype))]
    if part is not None:
        drawn["heat"] = store.image(picture.heatmap, np.asarray(part.heatmap))
        if part.areas:
            # Of a prototype the page says in any case where in its file it starts.
            offset_s = result.offset_s if prototype is None else 0.0
            drawn["where"] = where(part.areas, shape, offset_s=offset_s)
            drawn["outline"] = picture.outline([a.box for a in part.areas], shape[0])
            text = f"{text} Region: {drawn['where']}."
            sounds.append(("Region", store.player(result, prototype, part.areas)))
    return Panel(
        axes=picture.axes(result.front_end, shape, small=prototype is not None),
        text=text,
        players=tuple((word, player) for word, player in sounds if player is not None),
        **drawn,
    )


def where(
    areas: Sequence[explanation.Area], shape: tuple[int, int], *, offset_s: float = 0.0
) -> str:
    """A region in words, without the axis along which it is everything.

    Args:
      areas: its rectangles.
      shape: `(rows, frames)` of the spectrogram.
      offset_s: where in its file the clip starts.
    """
    return "; ".join(_where(area, shape, offset_s) for area in areas)


def _where(area: explanation.Area, shape: tuple[int, int], offset_s: float) -> str:
    rows, frames = area.box.rows, area.box.frames
    edges_s, edges_hz = (area.start_s, area.end_s), (area.low_hz, area.high_hz)
    if None in edges_s + edges_hz:
        time = f"frames {frames[0]:g}–{frames[1]:g}"
        band = f"rows {rows[0]:g}–{rows[1]:g}"
    else:
        start, end, low, high = (float(e) for e in edges_s + edges_hz if e is not None)
        time = f"{start:.2f}–{end:.2f} s"
        if offset_s:
            time += f" ({offset_s + start:.2f}–{offset_s + end:.2f} s of the file)"
        band = f"{low:.0f}–{high:.0f} Hz"
    match frames == (0, shape[1]), rows == (0, shape[0]):
        case True, True:
            return "the whole clip"
        case True, False:
            return f"{band}, whole clip"
        case False, True:
            return f"{time}, all frequencies"
        case _:
            return f"{time}, {band}"
