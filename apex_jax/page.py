"""Explanations laid out for a page: clips, what explains them, figures, an overview.

In come `Explanation`s; out come plain values in the order in which a reader meets
them, ready for the template: words, percents of widths, names of embedded images and
sounds.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from pathlib import PurePath
from typing import Any

import numpy as np

from apex_jax import embed, explanation, picture

METHODS = {"apex": "APEX", "grad-cam": "Grad-CAM", "lime": "LIME"}
MOST_CLASSES = 8  # listed with their probabilities; the rest is summed up

# What an `Explanation.source` says that is no file.
_NO_FILE = ("waveform", "spectrogram", "feature map")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Figure:
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


@dataclasses.dataclass(frozen=True, kw_only=True)
class Bar:
    """A signed number as a bar, from `start` for `length` percent of the width."""

    label: str
    value: float
    text: str
    start: float
    length: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Evidence:
    """A channel: its region in the clip, and the training clips that show it."""

    channel: explanation.Channel
    name: str
    figure: Figure
    prototypes: tuple[tuple[explanation.Prototype, Figure], ...]
    negatives: tuple[tuple[explanation.Prototype, Figure], ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class View:
    """One explanation of a clip: one method, scheme and class."""

    result: explanation.Explanation
    method: str
    channels: tuple[Evidence, ...]
    bars: tuple[Bar, ...]
    zero: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Clip:
    """A clip and all its explanations."""

    id: str
    name: str
    span: str
    figure: Figure | None
    result: explanation.Explanation
    classes: tuple[tuple[str, float, bool], ...]
    num_other: int
    most_other: float
    views: tuple[View, ...]

    @property
    def targets(self) -> list[tuple[int, str]]:
        """The classes explained: index and name."""
        results = [view.result for view in self.views]
        return list(dict.fromkeys((r.target, r.class_name) for r in results))


def clips(
    explanations: Sequence[explanation.Explanation], store: embed.Store
) -> list[Clip]:
    """Every clip with its explanations, windows of a recording in order of time."""
    return [
        _clip(f"clip-{n}", results, store)
        for n, results in enumerate(_by_clip(explanations))
    ]


def _by_clip(
    explanations: Sequence[explanation.Explanation],
) -> list[list[explanation.Explanation]]:
    """Those of the same clip together, clips of the same source by their offset."""
    groups: dict[tuple, list[explanation.Explanation]] = {}
    for result in explanations:
        given: bytes = b""
        if result.waveform is not None:
            given = embed.digest(result.waveform)
        elif result.source in _NO_FILE:
            known = result.logits if result.spectrogram is None else result.spectrogram
            given = embed.digest(known)
        key = (result.source, given, result.offset_s)
        groups.setdefault(key, []).append(result)
    first: dict[tuple, int] = {}
    for n, key in enumerate(groups):
        first.setdefault(key[:2], n)
    return [groups[k] for k in sorted(groups, key=lambda k: (first[k[:2]], k[2]))]


def _clip(
    name: str, results: list[explanation.Explanation], store: embed.Store
) -> Clip:
    result = results[0]
    path = PurePath(result.source)
    probabilities = result.probabilities
    order = [int(c) for c in np.argsort(-probabilities, kind="stable")]
    # A class that is explained is listed, however unlikely.
    explained = {r.target for r in results}
    listed = [c for n, c in enumerate(order) if n < MOST_CLASSES or c in explained]
    other = [c for c in order if c not in listed]
    span = ""
    figure = None
    if result.front_end is not None:
        end = result.offset_s + result.front_end.clip_s
        span = f"{result.offset_s:.2f}–{end:.2f} s"
    if result.spectrogram is not None:
        figure = _figure(result, store, f"Spectrogram of {path.name}.")
    return Clip(
        id=name,
        name=path.name or result.source,
        span=span,
        figure=figure,
        result=result,
        classes=tuple(
            (
                result.class_names[c],
                float(probabilities[c]),
                c in explained,
            )
            for c in listed
        ),
        num_other=len(other),
        most_other=float(probabilities[other].max()) if other else 0.0,
        views=tuple(_view(r, store) for r in results),
    )


def _view(result: explanation.Explanation, store: embed.Store) -> View:
    scheme = result.scheme.replace("_", "-")
    method = METHODS[result.method]
    if result.method == "apex":
        method = f"{method}, {scheme}"
    bars, zero = _bars(result)
    return View(
        result=result,
        method=method,
        channels=tuple(_evidence(result, c, store) for c in result.channels),
        bars=bars,
        zero=zero,
    )


def _bars(result: explanation.Explanation) -> tuple[tuple[Bar, ...], float]:
    """Contributions of the channels shown, and of all others together, by sign."""
    shown = [(_name(result, c), float(c.contribution)) for c in result.channels]
    if result.method == "apex":
        indices = [c.index for c in result.channels if c.index is not None]
        others = np.delete(np.asarray(result.contributions, np.float64), indices)
        for word, part in (
            ("for", others[others > 0]),
            ("against", others[others < 0]),
        ):
            if part.size:
                shown.append((f"{part.size} others {word}", float(part.sum())))
    low = min(0.0, *(value for _, value in shown))
    high = max(0.0, *(value for _, value in shown))
    scale = 100 / (high - low) if high > low else 0.0
    # As many decimals for all as give the longest bar three digits.
    largest = max(high, -low)
    decimals = max(0, 2 - math.floor(math.log10(largest))) if largest else 0
    bars = tuple(
        Bar(
            label=label,
            value=value,
            text=number(value, f"+.{decimals}f"),
            start=scale * (min(value, 0.0) - low),
            length=scale * abs(value),
        )
        for label, value in shown
    )
    return bars, -scale * low


def _name(result: explanation.Explanation, channel: explanation.Channel) -> str:
    if channel.index is None:
        return METHODS[result.method]
    return f"Channel {channel.index}"


def _evidence(
    result: explanation.Explanation, channel: explanation.Channel, store: embed.Store
) -> Evidence:
    name = _name(result, channel)
    about = f"Spectrogram of {PurePath(result.source).name} for {result.class_name}."
    if result.spectrogram is None:
        about = f"Heatmap for {result.class_name}."

    def shown(prototypes: tuple[explanation.Prototype, ...]) -> tuple:
        found = []
        for prototype in prototypes:
            path = PurePath(prototype.clip.path)
            text = f"Training clip {path.name}, {prototype.class_name}."
            figure = _figure(result, store, text, prototype)
            found.append((prototype, figure))
        return tuple(found)

    return Evidence(
        channel=channel,
        name=name,
        figure=_figure(result, store, f"{name}. {about}", channel),
        prototypes=shown(channel.prototypes),
        negatives=shown(channel.negatives),
    )


def _figure(
    result: explanation.Explanation,
    store: embed.Store,
    text: str,
    part: explanation.Channel | explanation.Prototype | None = None,
) -> Figure:
    """The clip, or a prototype, with the region and heatmap of `part`."""
    front_end = result.front_end
    prototype = part if isinstance(part, explanation.Prototype) else None
    values = (result if prototype is None else prototype).spectrogram
    pixels = values if part is None else part.heatmap
    assert pixels is not None, "a clip without a spectrogram is not drawn by itself"
    shape = pixels.shape
    drawn: dict[str, Any] = {}
    if values is not None:
        values = np.asarray(values, np.float32)
        shown = values if front_end is None else front_end.to_db(values)
        drawn["image"] = store.image(picture.spectrogram, shown)
        drawn["bar"] = picture.bar_ticks(shown)
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
    return Figure(
        axes=picture.axes(front_end, shape, small=prototype is not None),
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


def number(value: float, form: str) -> str:
    """Formatted, with a minus that is as wide as a plus.

    >>> number(-0.51234, "+.3g")
    '−0.512'
    """
    return f"{value:{form}}".replace("-", "−")
