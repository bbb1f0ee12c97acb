"""Which events of a recording are learned from: plain rules, on hand-made lists."""

import math

import numpy as np
import pytest

from experiments.birdset import events


@pytest.mark.parametrize(
    ("spans", "clusters", "kept"),
    [
        (None, None, [(0, 5)]),
        ([], [], [(0, 5)]),
        ([[1, 2]], [0], [(1, 2)]),
        # Noise is left out, unless it is all there is.
        ([[1, 2], [3, 4], [5, 6]], [0, -1, -1], [(1, 2)]),
        ([[1, 2], [3, 4]], [-1, -1], [(1, 2), (3, 4)]),
        ([[1, 2]], [-1], [(1, 2)]),
        # The most frequent cluster; of equal ones the lowest.
        ([[0, 1], [1, 2], [2, 3], [4, 5]], [1, 0, 1, -1], [(0, 1), (2, 3)]),
        ([[0, 1], [1, 2]], [3, 2], [(1, 2)]),
        # What cannot be.
        ([[2, 1], [math.nan, 3], [4, 5], None], [0, 0, 0, 0], [(4, 5)]),
        ([[1, 2], [3, 4]], [0, None], [(1, 2)]),  # of no cluster: noise
        ([[1, 2], [3, 4]], [0.0, math.nan], [(1, 2)]),  # as pandas has that
        ([None, [1, 2], [3, 4]], [0, 0, -1], [(1, 2)]),  # with its cluster
        ([[1, 1]], [0], [(0, 5)]),
        ([[1, math.inf], [1, 2]], [0, 0], [(1, 2)]),
        ([[1, 2], [3, 4]], None, [(1, 2), (3, 4)]),
        ([[1, 2], [3, 4]], [0], [(1, 2), (3, 4)]),
    ],
)
def test_usable(spans, clusters, kept):
    assert events.usable(spans, clusters) == kept


def plain_cap(counts, class_limit, event_limit):
    """How many events each file of a class may give: one less, again and again."""
    counts = list(counts)
    while True:
        cap = max(counts)
        if cap <= event_limit:
            return counts
        lower = [min(n, cap - 1) for n in counts]
        if sum(lower) < class_limit:
            return counts
        counts = lower


@pytest.mark.parametrize(
    ("counts", "total"),
    [
        ([20] * 10, 200),  # too few to take any
        ([1] * 900, 900),  # no file is dropped
        ([n for n in range(1, 11) for _ in range(30)], 570),
        ([3] * 900, 900),  # where the reference would not end
    ],
)
def test_what_the_limits_leave_as_the_reference_does(counts, total):
    """BirdSet's own figures at class limit 500 and event limit 1."""
    files = [f"f{i}" for i, n in enumerate(counts) for _ in range(n)]
    kept = events.limit(
        files, ["a"] * len(files), class_limit=500, event_limit=1, seed=0
    )
    assert len(kept) == total == sum(plain_cap(counts, 500, 1))


@pytest.mark.parametrize("seed", range(5))
def test_limits_of_several_classes(seed):
    """Each class by itself, each file of it to the same cap."""
    rng = np.random.default_rng(seed)
    files, classes = [], []
    for code in "abc":
        for number in range(int(rng.integers(1, 12))):
            several = int(rng.integers(1, 9))
            files += [f"{code}{number}"] * several
            classes += [code] * several
    mixed = rng.permutation(len(files))
    files, classes = [files[i] for i in mixed], [classes[i] for i in mixed]
    kept = events.limit(files, classes, class_limit=15, event_limit=2, seed=seed)
    assert list(kept) == sorted(kept)
    for code in "abc":
        own = [f for f, c in zip(files, classes, strict=True) if c == code]
        names = sorted(set(own))
        wanted = plain_cap([own.count(name) for name in names], 15, 2)
        found = [files[i] for i in kept]
        assert [found.count(name) for name in names] == wanted


def test_which_events_survive_is_drawn():
    files = ["a"] * 50 + ["b"] * 50
    draws = {
        tuple(events.limit(files, ["x"] * 100, class_limit=6, event_limit=1, seed=s))
        for s in range(5)
    }
    assert len(draws) == 5
    assert {len(d) for d in draws} == {6}
    again = events.limit(files, ["x"] * 100, class_limit=6, event_limit=1, seed=0)
    assert tuple(again) in draws


def test_no_limits():
    assert list(
        events.limit(["a", "a"], ["x", "x"], class_limit=None, event_limit=1, seed=0)
    ) == [0, 1]
    assert not len(events.limit([], [], class_limit=5, event_limit=1, seed=0))


@pytest.mark.parametrize(
    ("span", "length", "window", "start"),
    [
        ((10, 11), 60.0, (6.5, 14.5), 8.0),
        ((0.5, 1.5), 60.0, (0.0, 5.0), 0.0),
        ((58, 59), 60.0, (54.5, 60.0), 55.0),
        ((10, 22), 60.0, (10, 22), 13.5),
        ((1, 2), 3.0, (0.0, 3.0), 0.0),
        ((10, 11), None, (6.5, 14.5), 8.0),
    ],
)
def test_where_a_crop_is_taken_from(span, length, window, start):
    assert events.window(span, length) == window
    assert events.middle(span, 5.0, length) == start
