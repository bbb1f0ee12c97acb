"""Scores of seeds become intervals, comparisons and tables."""

import numpy as np
import pytest

from experiments.localisation import (
    stable,
    summary,
    tables,
)


def test_seeds_are_matched_by_what_a_row_is_of():
    """Not by where it stands; p of several seeds is one."""
    rows = [
        {"method": name, "evidence": "plain", "locate": "map", "own": [own],
         "random": [0.1], "p": 0.04}
        for name, own in (("one", 0.2), ("other", 0.8))
    ]  # fmt: skip
    found = summary._masked([rows, rows[::-1]])
    assert [row["method"] for row in found] == ["one", "other"]
    assert [row["own"][0] for row in found] == [0.2, 0.8]
    x = -2 * 2 * np.log(0.04)  # Fisher; chi squared of four degrees of freedom
    assert found[0]["p"] == pytest.approx(np.exp(-x / 2) * (1 + x / 2))


def test_what_stays_is_a_mean_over_seeds_of_the_clips_that_can_say(rng):
    """A seed of which nothing can be said does not count, nor does a clip."""
    rows = [
        {"method": "one", "evidence": "plain", "locate": "map", "change": "noise",
         **{name: [1.0, 1.0] for name in summary.AGREEMENTS}, **ranks}
        for ranks in ({"rank": [0.5, None]}, {"rank": [None, None]},
                      {"rank": [0.0, 0.5]})
    ]  # fmt: skip
    (found,) = summary._stable([[row] for row in rows])
    assert found["region"] == (1, 1, 1)
    assert found["rank"][0] == pytest.approx((0.5 + 0.25) / 2)
    assert 0 <= found["rank"][1] < found["rank"][0] < found["rank"][2] <= 0.5
    (none,) = summary._stable([[rows[1]]])
    assert none["rank"] is None


def test_the_table_of_what_stays():
    """A line a change and way; what another seed's channels cannot say is a dash."""
    row = {
        "method": "paper",
        "evidence": "plain",
        "locate": "map",
        **dict.fromkeys(summary.AGREEMENTS, (0.5, 0.25, 0.75)),
        "rank": None,
    }
    several = [
        {**row, "change": change} for change in ("noise", stable.SEED, stable.RANDOM)
    ]
    lines = tables._stays(several)[1].splitlines()[2:]
    known, name = "0.50 [0.25, 0.75]", "paper, plain, map"
    assert lines == [
        f"| noise | {name} | {known} | – | {known} | {known} | {known} |",
        f"| {stable.SEED} | {name} | – | – | {known} | {known} | {known} |",
        f"| {stable.RANDOM} | {name} | – | – | {known} | {known} | – |",
    ]
    assert tables._stays([]) == []


def test_the_interval_of_a_known_mean(rng):
    values = [rng.integers(0, 2, size=400) for _ in range(3)]
    mean, low, high = summary.interval(values)
    assert mean == pytest.approx(np.mean([v.mean() for v in values]))
    width = np.sqrt(np.var(np.concatenate(values)) / 1200)
    assert mean - 6 * width < low < mean - width
    assert mean + width < high < mean + 6 * width
    assert summary.interval([[1.0] * 5]) == (1, 1, 1)
    # Seeds that disagree make it wide, however many clips there are.
    _, low, high = summary.interval([np.zeros(1000), np.ones(1000)])
    assert (low, high) == (0, 1)


def test_hits_are_compared_clip_by_clip():
    """As the method that is compared with has them, on the clips that a row is of."""

    def row(method, hits, **way):
        return {
            "method": method,
            "scheme": "time",
            "scores": {"time": hits, "both": hits},
            **way,
        }

    reference = row(**{**summary.REFERENCE, "hits": [1, 1, 0, 1]})
    same, fewer = row("CAM", [1, 0, 0, 1]), row("LIME", [0, 1])
    part = {
        "rows": [reference, same, fewer, {**same, "scheme": "square"}],
        "fits": ["time", "time"], "accuracy": 1.0, "clips": 4, "seed": 0, "again": [],
        "learned": [], "faithful": [], "masked": [], "consistent": [], "stable": [],
    }  # fmt: skip
    ahead = [row["ahead"] for row in summary.of([part, part])["rows"]]
    assert ahead[0] == (0, 0, 0)
    assert [found[0] for found in ahead[1:3]] == [0.25, 0.5]
    assert ahead[1][1:] == pytest.approx((0, 0.625), abs=0.13)
    assert ahead[3] is None
    alone = summary.of([{**part, "rows": [same]}])
    assert alone["rows"][0]["ahead"] is None


def test_all_events_at_a_glance():
    """Only the scheme that fits, the axis that the event has, and blanks for no row.

    Of plain evidence only the channels as published and as they are.
    """

    def row(method, scheme, hit, **way):
        scores = {"frequency": hit, "both": [0.9, 0.9, 0.9]}
        scores |= {"share": [0.25] * 3, "share of all": [0.125] * 3} if way else {}
        return {"method": method, "scheme": scheme, "scores": scores, **way}

    way = {"evidence": "plain", "locate": "map"}
    silence = {"evidence": "contrastive", "locate": "occlusion"}
    shown = tables._at_a_glance(
        {
            "band": {
                "fits": ("frequency", "frequency"),
                "rows": [
                    row("CAM", "frequency", [0.5, 0.4, 0.6]),
                    row("paper", "frequency", [0.1, 0.0, 0.2], **way),
                    row("paper", "frequency", [0.3, 0.2, 0.4], **silence),
                    row("paper", "square", [1, 1, 1], **way),
                    row("whitened", "frequency", [1, 1, 1], **way),
                ],
            },
            "burst": {
                "fits": ("square", "both"),
                "rows": [row("paper", "square", [0, 0, 0], **way)],
            },
        }
    )
    assert shown[1].splitlines() == [
        "| method | band, frequency |  | burst, square |  |",
        "| --- | --- | --- | --- | --- |",
        "| CAM | 0.50 [0.40, 0.60] |  |  |  |",
        "|  | *map* | *occlusion* | *map* | *occlusion* |",
        "| paper, plain | 0.10 [0.00, 0.20] |  | 0.90 [0.90, 0.90] |  |",
        "| paper |  | 0.30 [0.20, 0.40] |  |  |",
    ]
    assert shown[3].splitlines() == [
        "| U | band, frequency | burst, square |",
        "| --- | --- | --- |",
        "| paper, plain | 0.25, 0.12 | 0.25, 0.12 |",
        "| paper | 0.25, 0.12 |  |",
    ]
