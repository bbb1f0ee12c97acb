"""Scores of seeds become intervals, comparisons and tables."""

import numpy as np
import pytest
import scipy.stats

from experiments.localisation import (
    cells,
    glance,
    stable,
    summary,
    tables,
)


def test_seeds_are_matched_by_what_a_row_is_of():
    """Not by where it stands; each seed has its own p."""
    rows = [
        {"method": name, "evidence": "plain", "locate": "map", "own": [own],
         "random": [0.1], "p": own / 10}
        for name, own in (("one", 0.2), ("other", 0.8))
    ]  # fmt: skip
    clips = [{"recording": "a.wav"}]
    found = summary._masked(
        [{"masked": part, "explained": clips} for part in (rows, rows[::-1])]
    )
    assert [row["method"] for row in found] == ["one", "other"]
    assert [row["own"][0] for row in found] == [0.2, 0.8]
    assert [row["p"] for row in found] == [[0.2 / 10] * 2, [0.8 / 10] * 2]


def test_what_stays_is_a_mean_over_seeds_of_the_clips_that_can_say(rng):
    """A seed of which nothing can be said does not count, nor does a clip."""
    rows = [
        {"method": "one", "evidence": "plain", "locate": "map", "change": "noise",
         **{name: [1.0, 1.0] for name in summary.AGREEMENTS},
         "rank": rank, "heat": [share, share]}  # two seeds never agree to all digits
        for rank, share in (([0.5, None], 0.1), ([None, None], 0.2), ([0.0, 0.5], 0.3))
    ]  # fmt: skip
    clips = [{"recording": name} for name in ("a.wav", "b.wav")]
    parts = [{"stable": [row], "explained": clips} for row in rows]
    (found,) = summary._stable(parts)
    assert found["region"] == (1, pytest.approx(0.025 ** (1 / 6)), 1)
    assert found["rank"][0] == pytest.approx((0.5 + 0.25) / 2)
    assert 0 <= found["rank"][1] < found["rank"][0] < found["rank"][2] <= 0.5
    (none,) = summary._stable([parts[1]])
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
    changes = ("noise", stable.SEED, stable.RANDOM, stable.ANOTHER)
    several = [{**row, "change": change} for change in changes]
    lines = tables._stays(several)[1].splitlines()[2:]
    known, name = "0.50 [0.25, 0.75]", "paper, plain, map"
    of_top = f"{known} | {known}"
    assert lines == [
        f"| noise | {name} | {known} | {known} | {known} | – | {known} | {known} |",
        f"| {stable.SEED} | {name} | {known} | – | – | – | {known} | {known} |",
        f"| {stable.RANDOM} | {name} | – | – | – | – | {known} | – |",
        f"| {stable.ANOTHER} | {name} | – | {of_top} | – | {known} | {known} |",
    ]
    assert tables._stays([]) == []


def test_the_interval_of_a_known_mean(rng):
    values = [rng.integers(0, 2, size=400) for _ in range(3)]
    mean, low, high = summary.interval(values)
    assert mean == pytest.approx(np.mean([v.mean() for v in values]))
    width = np.sqrt(np.var(np.concatenate(values)) / 1200)
    assert mean - 6 * width < low < mean - width
    assert mean + width < high < mean + 6 * width
    # Seeds that disagree make it wide, however many clips there are.
    _, low, high = summary.interval([np.zeros(1000), np.ones(1000)])
    assert (low, high) == (0, 1)


def test_values_of_one_recording_are_drawn_together(rng):
    """Ten recordings of forty clips that agree say as little as ten clips."""
    of_each = rng.permutation([0] * 5 + [1] * 5)
    values, groups = np.repeat(of_each, 40), np.repeat(list("abcdefghij"), 40)
    together = summary.interval([values], [groups])
    np.testing.assert_allclose(together, summary.interval([of_each]), atol=0.05)
    apart = summary.interval([values])
    assert together[2] - together[1] > 4 * (apart[2] - apart[1])
    # Of recordings of one clip and of ninety-nine the mean is of clips, not of both.
    mean, low, high = summary.interval([[0.0] + [1.0] * 99], [["a"] + ["b"] * 99])
    assert (mean, low, high) == (0.99, 0.0, 1.0)


@pytest.mark.parametrize("count", [5, 120])
def test_where_all_hit_the_interval_is_that_of_clopper_and_pearson(count):
    exact = scipy.stats.binomtest(2 * count, 2 * count).proportion_ci(0.95, "exact")
    found = summary.interval([[1.0] * count] * 2)
    assert found == pytest.approx((1, exact.low, exact.high))
    assert summary.interval([[0] * count] * 2) == pytest.approx((0, 0, 1 - exact.low))
    # Of differences either side.
    found = summary.interval([[0] * count] * 2, least=-1.0)
    assert found == pytest.approx((0, exact.low - 1, 1 - exact.low))
    # Clips of one recording are one.
    alone = summary.interval([[1.0] * count], [["a"] * count])
    assert alone == pytest.approx((1, 0.025, 1))


def test_channels_that_can_say_make_the_mean_of_consistency():
    rows = [
        {"method": "paper", "time": [0.25, float("nan"), 0.75], "chance": 0.5,
         "frequency": [float("nan")] * 3},
        {"method": "paper", "time": [float("nan"), 1.0, 0.0], "chance": 0.25,
         "frequency": [float("nan")] * 3},
    ]  # fmt: skip
    (found,) = summary._consistent([{"consistent": [row]} for row in rows])
    assert found["time"] == [0.5, 0.5]
    assert found["chance"] == [0.5, 0.25]
    assert found["frequency"] == []
    told = {f"{kind}, {level}": [0.125] for kind in ("time", "frequency")
            for level in ("any clips", "same class")}  # fmt: skip
    line = tables._alike([{**found, **told, "same_class": [1.0]}]).splitlines()[2]
    assert line == (
        "| paper | 1.00 / 0.38 | 0.50 (0.50, 0.50) / 0.12 / 0.12 | – / 0.12 / 0.12 |"
    )


def test_curves_are_compared_with_random_heat_of_their_kind():
    """Less area under deletion is better, and more under insertion."""

    def row(method, heat, deletion, insertion):
        return {
            "method": method, "locate": "", "heat": heat,
            "deletion": [deletion] * 6, "insertion": [insertion] * 6,
            "curves": {"share": [0.0, 1.0], "deletion": [deletion, 0.0]},
        }  # fmt: skip

    part = {
        "explained": [{"recording": str(n)} for n in range(6)],
        "faithful": [
            row("random", "regions", 0.5, 0.5),
            row("random", "heatmap", 0.1, 0.9),
            row("good", "regions", 0.2, 0.8),
            row("good", "heatmap", 0.2, 0.8),
        ],
    }
    _, _, regions, heatmap = summary._faithful([part])
    least = 1 / 2**6  # of all exchanges of six pairs one is as good
    for name in ("deletion p", "insertion p"):
        assert regions[name] == [pytest.approx(least, abs=0.01)]
        assert heatmap[name] == [1]
    assert regions["deletion"] == pytest.approx((0.2, 0.2, 0.2))
    assert regions["curves"]["deletion"] == [0.2, 0.0]


def test_two_seeds_of_the_optimisation_stand_side_by_side():
    def learned(purity, hits):
        return {
            "variant": "paper", "scheme": "time", "purity": [0.1, purity],
            "condition_number": 10 * purity,
            "rows": [{"method": "paper", "scheme": "time", "evidence": "plain",
                      "locate": "map", "scores": {"time": hits}}],
        }  # fmt: skip

    first, other = learned(0.3, [1, 0]), learned(0.4, [1, 1])
    part = {
        "fits": ["time", "time"],
        "learned": [{"variant": "whitened", "scheme": "time"}, first],
        "rows": first["rows"],
        "again": [other],
    }
    (found,) = summary._again([part])
    assert found["purity"] == [[0.3], [0.4]]
    assert found["condition_number"] == [[3.0], [4.0]]
    assert found["rows"][0]["hits"] == [[0.5], [1.0]]


def test_each_axis_that_scheme_and_event_have():
    row = {
        "method": "paper",
        "scheme": "square",
        "scores": {name: (value,) for name, value in [
            ("time", 0.1), ("time, best", 0.2), ("frequency", 0.3),
            ("frequency, best", 0.4), ("both", 0.5), ("both, best", 0.6), ("iou", 0.7),
        ]},
    }  # fmt: skip
    alone = {**row, "method": "random", "scheme": "time"}
    lines = tables._by_scheme([row, alone], "click").splitlines()
    assert lines[0] == (
        "| method | square: time | square: overlap | time: time | time: overlap | "
        "time-frequency: time | time-frequency: overlap |"
    )
    assert lines[2] == "| paper | 0.10 / 0.20 | 0.70 |  |  |  |  |"
    assert lines[3] == "| random |  |  | 0.10 / 0.20 | 0.70 |  |  |"
    head = tables._by_scheme([row], "burst").splitlines()[0]
    assert "| square: time | square: frequency | square: joint | square: ov" in head


def test_a_p_that_rounds_to_nothing_is_not_called_zero():
    assert cells.p_values([0.04, 0.001, 0.0004]) == "0.040, 0.001, < 0.001"


def test_an_interval_that_knows_of_no_other_network_looks_other():
    assert cells.cell((0.5, 0.25, 0.75)) == "0.50 [0.25, 0.75]"
    assert cells.cell((1.0, 0.98, 1.0)) == "1.00 (0.98, 1.00)"
    assert cells.cell((0.0, 0.0, 0.02)) == "0.00 (0.00, 0.02)"
    assert cells.cell((0.25, 0.25, 0.25)) == "0.25 [0.25, 0.25]"  # exact, of random
    assert cells.cell(None) == ""


def test_weak_classifiers_are_named():
    assert tables._weak([0.95, 1.0]) == ""
    assert "**1 of 2 below 0.95**" in tables._weak([0.949, 1.0])


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
        "explained": [{"recording": str(n)} for n in range(4)],
        "rows": [reference, same, fewer, {**same, "scheme": "square"}],
        "fits": ["time", "time"], "accuracy": 1.0, "clips": 4, "seed": 0, "again": [],
        "learned": [], "faithful": [], "masked": [], "consistent": [], "stable": [],
    }  # fmt: skip
    ahead = [row["ahead"] for row in summary.of([part, part])["rows"]]
    width = 1 - 0.025 ** (1 / 8)
    assert ahead[0] == pytest.approx((0, -width, width))
    assert [found[0] for found in ahead[1:3]] == [0.25, 0.5]
    assert ahead[1][1:] == pytest.approx((0, 0.625), abs=0.13)
    assert ahead[3] is None
    alone = summary.of([{**part, "rows": [same]}])
    assert alone["rows"][0]["ahead"] is None


def test_where_the_top_channel_and_all_channels_agree():
    """Over the clips of both seeds, along what scheme and event both have."""

    def row(method, places, hits, scheme="square", locate="occlusion", **shares):
        return {
            "method": method, "scheme": scheme, "evidence": "contrastive",
            "locate": locate, "locations": [[[0, p], [3, 3]] for p in places],
            "scores": {"time": hits, "frequency": [0] * len(hits), **shares},
        }  # fmt: skip

    def part(seed, *rows):
        return {
            "event": "click", "explained": [{"recording": str(n)} for n in range(3)],
            "rows": rows, "fits": ["time", "time"], "accuracy": 1.0, "clips": 3,
            "seed": seed, "again": [], "learned": [], "faithful": [], "masked": [],
            "consistent": [], "stable": [],
        }  # fmt: skip

    share = {"share": [0.5] * 3}
    rows = [
        row("paper", [0, 1, 2], [1, 1, 0], **share),
        row("paper", [0, 1, 2], [1, 1, 0], locate="map", **share),
        row("paper", [0, 1, 2], [1, 1, 0], scheme="frequency", **share),
        row(summary.CLASS, [0, 1, 1], [1, 1, 1]),
        row(summary.CLASS, [0, 1, 2], [1, 1, 1], scheme="frequency"),
    ]
    other = [row("paper", [2, 2, 2], [1, 0, 0], **share), *rows[1:]]
    found = summary.of([part(0, *rows), part(1, *other)])["rows"]
    # Seed 0: the first two agree, both hits; seed 1: none, one of three a hit.
    assert found[0]["agreeing"] == {
        "share": pytest.approx(2 / 6), "hit": 1.0, "else": 0.25, "clips": 4
    }  # fmt: skip
    # By map; where no axis is both's; and what has no channels.
    assert [row["agreeing"] for row in found[1:]] == [None] * 4
    (all_agree, _) = summary.of([part(0, rows[3] | {"method": "paper", "scores": rows[0]
        ["scores"]}, rows[3])])["rows"]  # fmt: skip
    assert all_agree["agreeing"] == {
        "share": 1.0, "hit": pytest.approx(2 / 3), "else": None, "clips": 0
    }  # fmt: skip
    alone = summary.of([part(0, rows[0])])["rows"]
    assert alone[0]["agreeing"] is None


def test_all_events_at_a_glance():
    """Only the scheme that fits, the axis that the event has, and blanks for no row.

    Of plain evidence only the channels as published and as they are.
    """

    def row(method, scheme, hit, **way):
        scores = {"frequency": hit, "both": [0.9, 0.9, 0.9]}
        scores |= {"share": [0.25] * 3, "share of all": [0.125] * 3} if way else {}
        found = {"method": method, "scheme": scheme, "scores": scores, "clips": 80}
        return {**found, "agreeing": None, **way}

    way = {"evidence": "plain", "locate": "map"}
    silence = {"evidence": "contrastive", "locate": "occlusion"}
    by_map = {**silence, "locate": "map"}

    def curves(method, locate, heat, *areas):
        areas = dict(zip(("deletion", "insertion"), [(a,) for a in areas], strict=True))
        return {"method": method, "locate": locate, "heat": heat, **areas}

    def stays(change, region):
        scores = {"same_channel": (0.75, 0.5, 1.0), "region": region}
        return {"method": "paper", "change": change, **silence, **scores}

    nothing = {"faithful": [], "masked": [], "stable": [], "again": [], "clips": [80]}
    shown = glance.markdown(
        {
            "band": {
                "fits": ("frequency", "frequency"),
                "clips": [50, 30],
                "again": [
                    {
                        "method": "paper",
                        "rows": [
                            {**way, "hits": [[1, 1], [1, 1]]},
                            {**silence, "hits": [[1, 1], [0.5, 0.7]]},
                        ],
                    }
                ],
                "rows": [
                    row("CAM", "frequency", [0.5, 0.4, 0.6]),
                    {**row("LIME", "frequency", [0.5, 0.4, 0.6]), "clips": 20},
                    row("paper", "frequency", [0.1, 0.0, 0.2], **way),
                    row("paper", "frequency", [0.15, 0.1, 0.2], **by_map),
                    row("paper", "frequency", [0.3, 0.2, 0.4], **silence)
                    | {"agreeing": {"share": 0.75, "hit": 1, "else": 0.5, "clips": 20}},
                    row("paper", "square", [0.3, 0.2, 0.4], **silence)
                    | {"agreeing": {"share": 1, "hit": 0.9, "else": None, "clips": 0}},
                    row("paper", "square", [1, 1, 1], **way),
                    row("whitened", "frequency", [1, 1, 1], **way),
                ],
                "faithful": [
                    curves("CAM", "map", "regions", 0.5, 0.8),
                    curves("paper", "map", "heatmap", 0.4, 0.9),
                    # Of the others only what is found as they are published.
                    curves("concentrated-few", "map", "heatmap", 0.1, 0.1),
                    curves("concentrated-few", "occlusion", "heatmap", 0.2, 0.7),
                    curves("whitened", "occlusion", "heatmap", 0.2, 0.7),
                ],
                "masked": [
                    {"method": "paper", "own": (0.3,), "random": (0.1,), "p": [0.0123]}
                    | way,
                    {"method": "paper", "own": (0.6,), "random": (0.05,), "p": [1e-5]}
                    | silence,
                    {"method": "centred", "own": (0.6,), "random": (0.05,), "p": [1e-5]}
                    | silence,
                ],
                "stable": [
                    stays("random weights", None),
                    stays("noise at 30 dB", (0.5, 0, 1)),
                    stays("noise at 20 dB", (0.5, 0, 1)),
                    stays("another seed", (0.5, 0, 1)),
                ],
            },
            "burst": {
                **nothing,
                "fits": ("square", "both"),
                "rows": [row("paper", "square", [0, 0, 0], **way)],
            },
        }
    )
    shown = {name: part.splitlines()[2:] for name, part in shown.items()}
    assert shown["without channels"] == [
        "| method | band, frequency | burst, square |",
        "| --- | --- | --- |",
        "| CAM | 0.50 [0.40, 0.60] |  |",
        "| LIME | 0.50 [0.40, 0.60] of 20 clips |  |",
    ]
    assert shown["channels"] == [
        "| channels | band, frequency | burst, square |",
        "| --- | --- | --- |",
        "| paper, plain | 0.10 [0.00, 0.20] | 0.90 [0.90, 0.90] |",
        "| paper | 0.15 [0.10, 0.20] / 0.30 [0.20, 0.40] |  |",
        "| paper, another seed | – / 0.60 |  |",
    ]
    assert shown["agreeing"] == [
        "| channels | band, frequency | burst, square |",
        "| --- | --- | --- |",
        "| paper | 0.75: 1.00 / 0.50 of 20 |  |",
        "| paper, square | 1.00: 0.90 / – of 0 |  |",
    ]
    assert shown["shares"] == [
        "| channels | band, frequency | burst, square |",
        "| --- | --- | --- |",
        "| paper, plain | 0.25, 0.12 | 0.25, 0.12 |",
        "| paper | 0.25, 0.12 |  |",
    ]
    assert shown["curves"][2:] == [
        "| CAM, map: regions | 0.50, 0.80 |  |",
        "| paper, map: heatmap | 0.40, 0.90 |  |",
        "| concentrated-few, occlusion: heatmap | 0.20, 0.70 |  |",
    ]
    assert shown["hidden"][2:] == [
        "| paper, plain, map | 0.30 (0.10), p 0.012 |  |",
        "| paper, contrastive, occlusion | 0.60 (0.05), p < 0.001 |  |",
    ]
    assert shown["stays"][2:] == [
        "| noise at 20 dB: paper, contrastive, occlusion | 0.75, 0.50 |  |",
        "| another seed: paper, contrastive, occlusion | –, 0.50 |  |",
        "| random weights: paper, contrastive, occlusion | –, – |  |",
    ]
    assert list(shown) == list(glance.QUESTIONS)
