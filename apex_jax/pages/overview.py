"""A recording that was explained window by window, as a whole.

In come the page's clips; out come the places of their spectrograms side by side and,
for the classes found, the probability in every window.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from apex_jax import ticks
from apex_jax.pages import page, picture

MOST_LANES = 8  # classes whose course is shown


@dataclasses.dataclass(frozen=True, kw_only=True)
class Window:
    """A clip's place in the overview of its recording, in percent of the width."""

    clip: page.Clip
    start: float
    length: float
    shown: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Overview:
    """A recording that was explained window by window."""

    name: str
    windows: tuple[Window, ...]
    axes: picture.Axes
    lanes: tuple[tuple[str, tuple[float, ...]], ...]


def overviews(clips: Sequence[page.Clip]) -> list[Overview]:
    """One for each file of which several windows were explained.

    Windows must cover half of the time from the first to the last: the few seconds of
    clips that lie minutes apart would be too narrow to see.
    """
    files: dict[str, list[page.Clip]] = {}
    for clip in clips:
        if clip.result.sound_s is not None and clip.result.waveform is None:
            files.setdefault(clip.result.source, []).append(clip)
    found = []
    for windows in files.values():
        starts = np.array([clip.result.offset_s for clip in windows], float)
        if len(windows) > 1 and all(clip.figure is not None for clip in windows):
            length = _clip_s(windows[0])
            whole = starts[-1] - starts[0] + length
            covered = length + np.minimum(np.diff(starts), length).sum()
            if covered >= whole / 2:
                found.append(_overview(windows, starts, whole))
    return found


def _clip_s(clip: page.Clip) -> float:
    front_end = clip.result.front_end
    assert front_end is not None, "a sound is explained through a front end"
    return float(front_end.clip_s)


def _overview(clips: list[page.Clip], starts: np.ndarray, whole: float) -> Overview:
    assert clips[0].figure is not None, "windows without a picture make no overview"
    axes, begin = clips[0].figure.axes, float(starts[0])
    windows = []
    gaps = [*np.diff(starts), np.inf]
    for clip, start, gap in zip(clips, starts - begin, gaps, strict=True):
        length = _clip_s(clip)
        visible = min(length, gap)  # of windows that overlap, the later one is seen
        windows.append(
            Window(
                clip=clip,
                start=100 * start / whole,
                length=100 * visible / whole,
                shown=visible / length,
            )
        )
    likely = [int(np.argmax(clip.result.logits)) for clip in clips]
    names = clips[0].result.class_names
    # The classes found most often, each with its probability in every window.
    common = sorted(set(likely), key=lambda c: (-likely.count(c), c))[:MOST_LANES]
    return Overview(
        name=clips[0].name,
        windows=tuple(windows),
        axes=dataclasses.replace(
            axes,
            across=tuple(
                (100 * (t - begin) / whole, f"{t:g}")
                for t in ticks.values(begin, begin + whole, apart=0.15 * whole)
            ),
            edges_s=None,
        ),
        lanes=tuple(
            (names[c], tuple(float(clip.result.probabilities[c]) for clip in clips))
            for c in common
        ),
    )
