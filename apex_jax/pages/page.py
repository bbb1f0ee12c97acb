"""Explanations laid out for a page: clips, what explains them, figures, an overview.

In come `Explanation`s; out come plain values in the order in which a reader meets
them, ready for the template: words, percents of widths, names of embedded images and
sounds.
"""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Sequence
from pathlib import PurePath

import numpy as np

from apex_jax import explanation
from apex_jax.pages import embed, panel, picture

METHODS = {
    "apex": "APEX",
    "grad-cam": "Grad-CAM",
    "lime": "LIME",
    "audioprotopnet": "AudioProtoPNet",
}
MOST_CLASSES = 8  # listed with their probabilities; the rest is summed up

# What an `Explanation.source` says that is no file.
_NO_FILE = ("waveform", "spectrogram", "feature map")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Bar:
    """A signed number as a bar, from `start` for `length` percent of the width."""

    label: str
    value: float
    text: str
    start: float
    length: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Example:
    """A training clip that shows a channel; perhaps the very clip explained."""

    prototype: explanation.Prototype
    figure: panel.Panel
    itself: bool


@dataclasses.dataclass(frozen=True, kw_only=True)
class Evidence:
    """A channel: its region in the clip, and the training clips that show it."""

    channel: explanation.Channel
    name: str
    figure: panel.Panel
    prototypes: tuple[Example, ...]
    negatives: tuple[Example, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class View:
    """One explanation of a clip: one method, scheme and class.

    Attributes:
      together: where all channels together lie, in words; "" where they lie nowhere.
    """

    result: explanation.Explanation
    method: str
    together: str
    channels: tuple[Evidence, ...]
    bars: tuple[Bar, ...]
    zero: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Verdict:
    """What the classifier says of a clip: words, then `(name, probability)`s."""

    words: str
    classes: tuple[tuple[str, float], ...]

    def __str__(self) -> str:
        return f"{self.words}: {', '.join(name for name, _ in self.classes)}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Clip:
    """A clip and all its explanations."""

    id: str
    name: str
    span: str
    figure: panel.Panel | None
    result: explanation.Explanation
    verdict: Verdict
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
    recordings: dict[tuple, dict[float, list[explanation.Explanation]]] = {}
    for result in explanations:
        windows = recordings.setdefault(_recording(result), {})
        windows.setdefault(result.offset_s, []).append(result)
    found: list[Clip] = []
    for windows in recordings.values():
        limits = _limits([results[0] for results in windows.values()])
        for _, results in sorted(windows.items()):
            found.append(_clip(f"clip-{len(found)}", results, store, limits))
    return found


def _recording(result: explanation.Explanation) -> tuple:
    """Equal for clips of the same file, or of the same array where one was given."""
    if result.waveform is not None:
        return result.source, embed.digest(result.waveform)
    if result.source in _NO_FILE:
        known = result.logits if result.spectrogram is None else result.spectrogram
        return result.source, embed.digest(known)
    return (result.source,)


def _limits(results: list[explanation.Explanation]) -> tuple[float, float] | None:
    """Of the colours: a window of a recording is as bright as it is loud."""
    known = [(r, r.spectrogram) for r in results if r.spectrogram is not None]
    return picture.limits([panel.decibel(r, s) for r, s in known]) if known else None


def _clip(
    name: str,
    results: list[explanation.Explanation],
    store: embed.Store,
    limits: tuple[float, float] | None,
) -> Clip:
    result = results[0]
    if not all(_same_network(result, other) for other in results[1:]):
        raise ValueError(
            f"explanations of {result.source} come from networks that say different "
            "things of it; a page is of one network, write a page for each"
        )
    path = PurePath(result.source)
    probabilities = result.probabilities
    order = [int(c) for c in np.argsort(-probabilities, kind="stable")]
    # A class that is explained is listed, however unlikely.
    explained = {r.target for r in results}
    listed = [c for n, c in enumerate(order) if n < MOST_CLASSES or c in explained]
    other = [c for c in order if c not in listed]
    time = ""
    figure = None
    if result.front_end is not None:
        start, length = float(result.offset_s), float(result.front_end.clip_s)
        time = span(start, start + length)
    if result.spectrogram is not None:
        text = f"Spectrogram of {path.name}."
        figure = panel.make(result, store, text, limits=limits)
    return Clip(
        id=name,
        name=path.name or result.source,
        span=time,
        figure=figure,
        result=result,
        verdict=_verdict(result),
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
        views=tuple(_view(r, store, limits) for r in results),
    )


def _same_network(one: explanation.Explanation, other: explanation.Explanation) -> bool:
    return one.class_names == other.class_names and np.allclose(
        one.logits, other.logits, rtol=1e-3, atol=1e-3
    )


def _verdict(result: explanation.Explanation) -> Verdict:
    words = "Found" if result.found else "Nothing found; most likely"
    if result.activation == "softmax":
        words = "Predicted"
    names, probabilities = result.class_names, result.probabilities
    classes = result.found or (result.predicted,)
    return Verdict(
        words=words, classes=tuple((names[c], float(probabilities[c])) for c in classes)
    )


def _view(
    result: explanation.Explanation,
    store: embed.Store,
    limits: tuple[float, float] | None,
) -> View:
    scheme = result.scheme.replace("_", "-")
    method = METHODS[result.method]
    if result.method == "apex":
        method = f"{method}, {scheme}"
    bars, zero = _bars(result)
    return View(
        result=result,
        method=method,
        together=_together(result),
        channels=tuple(_evidence(result, c, store, limits) for c in result.channels),
        bars=bars,
        zero=zero,
    )


def _together(result: explanation.Explanation) -> str:
    heatmap = result.channels[0].heatmap if result.channels else result.spectrogram
    if heatmap is None or not result.class_areas:
        return ""
    return panel.where(result.class_areas, heatmap.shape, offset_s=result.offset_s)


def _bars(result: explanation.Explanation) -> tuple[tuple[Bar, ...], float]:
    """Contributions of the channels shown, and of all others together, by sign.

    None for Grad-CAM and LIME, whose one heatmap contributes all there is.
    """
    if result.method not in ("apex", "audioprotopnet"):
        return (), 0.0
    shown = [(_name(result, c), float(c.contribution)) for c in result.channels]
    indices = [c.index for c in result.channels if c.index is not None]
    others = np.delete(np.asarray(result.contributions, np.float64), indices)
    for word, part in (("for", others[others > 0]), ("against", others[others < 0])):
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
    word = "Prototype" if result.method == "audioprotopnet" else "Channel"
    return f"{word} {channel.index}"


def _evidence(
    result: explanation.Explanation,
    channel: explanation.Channel,
    store: embed.Store,
    limits: tuple[float, float] | None,
) -> Evidence:
    name = _name(result, channel)
    about = f"Spectrogram of {PurePath(result.source).name} for {result.class_name}."
    if result.spectrogram is None:
        about = f"Heatmap for {result.class_name}."

    return Evidence(
        channel=channel,
        name=name,
        figure=panel.make(result, store, f"{name}. {about}", channel, limits=limits),
        prototypes=tuple(_example(result, p, store) for p in channel.prototypes),
        negatives=tuple(_example(result, p, store) for p in channel.negatives),
    )


def _example(
    result: explanation.Explanation,
    prototype: explanation.Prototype,
    store: embed.Store,
) -> Example:
    clip = prototype.clip
    text = f"Training clip {PurePath(clip.path).name}, {prototype.class_name}."
    same_file = os.path.abspath(clip.path) == os.path.abspath(result.source)
    return Example(
        prototype=prototype,
        figure=panel.make(result, store, text, prototype),
        itself=same_file and clip.offset_s == result.offset_s,
    )


def span(start_s: float, end_s: float) -> str:
    """To a hundredth of a second, without zeros that say nothing.

    >>> span(2.5, 10.0)
    '2.5–10 s'
    """
    start, end = (f"{x:.2f}".rstrip("0").rstrip(".") for x in (start_s, end_s))
    return f"{start}–{end} s"


def number(value: float | int, form: str) -> str:
    """Formatted, with a minus that is as wide as a plus.

    >>> number(-0.51234, "+.3g")
    '−0.512'
    """
    return f"{value:{form}}".replace("-", "−")
