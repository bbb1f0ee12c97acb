"""Which stretches of a recording are learned from: detected events, and how many.

BirdSet's recordings carry events found by a peak detector, in clusters. In come their
lists, out come the stretches that are kept; NumPy alone.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

Span = tuple[float, float]

NOISE = -1  # the cluster of events that belong to none
WHOLE = (0.0, 5.0)  # of a recording without events
WINDOW_S = 8.0  # events shorter than this are widened to it


def usable(
    events: Sequence[Sequence[float]] | None, clusters: Sequence[int] | None
) -> list[Span]:
    """The events of the most frequent cluster, noise left out unless it is all.

    Of clusters that are as frequent the lowest number counts. A recording without
    events counts as one, its first five seconds. What has no finite, positive length
    is left out.

    Args:
      events: start and end in seconds of each; None: not detected.
      clusters: of each; None, or of another length: all of one.
    """
    events = [] if events is None else list(events)
    if clusters is None or len(clusters) != len(events):
        clusters = [0] * len(events)
    # A null event goes together with its cluster. NaN is what pandas makes of a null.
    whole = [
        (e, NOISE if c is None or c != c else c)
        for e, c in zip(events, clusters, strict=True)
        if e is not None and len(e) == 2 and None not in e
    ]
    spans = [(float(e[0]), float(e[1])) for e, _ in whole]
    numbers = np.array([c for _, c in whole], int)
    sound = [
        0 <= start < end and np.isfinite(end) for start, end in spans
    ]  # NaN is neither
    spans = [span for span, fine in zip(spans, sound, strict=True) if fine]
    numbers = numbers[np.array(sound, bool)]
    if not spans:
        return [WHOLE]
    candidates = numbers[numbers != NOISE]
    if not len(candidates):
        return spans
    values, counts = np.unique(candidates, return_counts=True)
    most = values[np.argmax(counts)]
    return [span for span, own in zip(spans, numbers, strict=True) if own == most]


def limit(
    files: Sequence[str],
    classes: Sequence[str],
    *,
    class_limit: int | None,
    event_limit: int | None,
    seed: int,
) -> np.ndarray:
    """Which events are kept so that frequent classes do not drown rare ones.

    For each class the number of events that a file may give is lowered by one as long
    as the class keeps at least `class_limit` events and it is above `event_limit`. No
    file loses all of its events, so a class of many files stays above its limit. Which
    events of a file survive is drawn.

    The rule of BirdSet's code but for one case in which that does not end: files that
    all have the same number of events, above the limits.

    Args:
      files: the recording of each event.
      classes: the class of each event.
      class_limit: events of a class below which no file loses any; None: no limits.
      event_limit: events of a file that are always allowed; None for 1.
      seed: of the draw.

    Returns:
      Positions of those kept, in order.
    """
    if class_limit is None or not files:
        return np.arange(len(files))
    least = max(1, event_limit or 1)
    order = np.random.default_rng(seed).permutation(len(files))
    _, class_of = np.unique(np.asarray(classes, dtype=str), return_inverse=True)
    _, file_of = np.unique(np.asarray(files, dtype=str), return_inverse=True)
    # The how-manieth of its file and class each event is, in the order drawn.
    pair = class_of * (file_of.max(initial=0) + 1) + file_of
    by_pair = order[np.argsort(pair[order], kind="stable")]
    sorted_pair = pair[by_pair]
    firsts = np.flatnonzero(np.r_[True, sorted_pair[1:] != sorted_pair[:-1]])
    sizes = np.diff(np.r_[firsts, len(by_pair)])
    rank = np.empty(len(files), int)
    rank[by_pair] = np.arange(len(by_pair)) - np.repeat(firsts, sizes)
    # Pairs lie class by class.
    pair_class = class_of[by_pair[firsts]]
    caps = np.empty(pair_class.max() + 1, int)
    for number, counts in enumerate(
        np.split(sizes, np.flatnonzero(np.diff(pair_class)) + 1)
    ):
        cap = int(counts.max())
        while cap > least and np.minimum(counts, cap - 1).sum() >= class_limit:
            cap -= 1
        caps[number] = cap
    return np.flatnonzero(rank < caps[class_of])


def window(span: Span, length_s: float | None) -> Span:
    """Where a crop of an event is taken from: eight seconds around a shorter one.

    Args:
      span: the event.
      length_s: of the recording; None where it is not known.
    """
    start, end = span
    wider = max(0.0, WINDOW_S - (end - start)) / 2
    last = np.inf if length_s is None else length_s
    first, end = max(0.0, start - wider), min(last, end + wider)
    # An event beyond the end, as damaged metadata have them: the end of what is there.
    return (first, end) if first < end else (max(0.0, end - WINDOW_S), end)


def middle(span: Span, clip_s: float, length_s: float | None) -> float:
    """Where a clip begins that has the event in its middle, within the recording."""
    start = (span[0] + span[1] - clip_s) / 2
    if length_s is not None:
        start = min(start, length_s - clip_s)
    return max(0.0, start)
