"""A recording that was explained window by window, as a whole.

In come the page's clips; out come the places of their spectrograms side by side and,
for the classes found, the probability in every window.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Sequence

import numpy as np

from apex_jax import audio, ticks
from apex_jax.pages import page, picture

MOST_LANES = 8  # classes whose course is shown
TOLERANCE_S = 0.01  # the page tells times to a hundredth of a second


@dataclasses.dataclass(frozen=True, kw_only=True)
class Window:
    """A clip's place in the overview of its recording.

    Attributes:
      clip: the clip.
      start: of what is seen of it, in percent of the width.
      length: likewise.
      shown: from where to where in the clip that is, as parts of it in [0, 1]. Clips
        that overlap meet in the middle of the overlap.
    """

    clip: page.Clip
    start: float
    length: float
    shown: tuple[float, float]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Overview:
    """A recording that was explained window by window.

    Attributes:
      name: of its file.
      span: from when to when; empty where that is all of the recording.
      windows: in order of time.
      overlap: whether some of them share a stretch of the recording.
      axes: their ticks.
      lanes: classes found or explained, most often first, each with its probability in
        every window.
      num_other: classes found or explained, but too seldom for a lane.
    """

    name: str
    span: str
    windows: tuple[Window, ...]
    overlap: bool
    axes: picture.Axes
    lanes: tuple[tuple[str, tuple[float, ...]], ...]
    num_other: int


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
    length = _clip_s(clips[0])
    # Halfway through an overlap, where each of its two windows knows as much around.
    middle = (starts[:-1] + length + starts[1:]) / 2
    first = np.maximum(starts, [-np.inf, *middle])
    last = np.minimum(starts + length, [*middle, np.inf])
    windows = tuple(
        Window(
            clip=clip,
            start=100 * (a - begin) / whole,
            length=100 * (b - a) / whole,
            shown=((a - start) / length, (b - start) / length),
        )
        for clip, start, a, b in zip(
            clips, starts.tolist(), first.tolist(), last.tolist(), strict=True
        )
    )
    often = collections.Counter(
        c
        for clip in clips
        for c in {*clip.result.found, *(target for target, _ in clip.targets)}
    )
    common = sorted(often, key=lambda c: (-often[c], c))
    names = clips[0].result.class_names
    return Overview(
        name=clips[0].name,
        span="" if _is_whole(clips, starts) else page.span(begin, begin + whole),
        windows=windows,
        overlap=bool((np.diff(starts) < length - TOLERANCE_S).any()),
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
            for c in common[:MOST_LANES]
        ),
        num_other=len(common[MOST_LANES:]),
    )


def _is_whole(clips: list[page.Clip], starts: np.ndarray) -> bool:
    """Whether the windows are known to hold the recording from its start to its end."""
    last, length = clips[-1].result, _clip_s(clips[0])
    assert last.sound_s is not None, "only sounds have an overview"
    if starts[0] > 0 or (np.diff(starts) > length + TOLERANCE_S).any():
        return False
    if last.sound_s < length - TOLERANCE_S:
        return True  # filled up: the recording was at its end
    try:
        end_s = audio.duration(last.source)
    except audio.AudioError:
        return False
    return float(last.offset_s + last.sound_s) >= end_s - TOLERANCE_S
