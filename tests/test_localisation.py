"""Planted events are where they are said to be, and scores are of who points there."""

import dataclasses
import gzip
import json
from pathlib import Path
from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest
import soundfile
from flax import nnx

from apex_jax import checkpoint, data, disentangle, schemes
from apex_jax import classifier as classifier_lib
from apex_jax.models import convnext
from experiments import methods
from experiments.localisation import (
    corpus,
    explained,
    merge,
    options,
    plants,
    run,
    scoring,
    stable,
    summary,
    tables,
    trust,
    tuning,
    variants,
)

RATE = 8000
CHAN = 6
GRID = schemes.Grid(map_shape=(4, 8), input_shape=(64, 128), cell=(16.0, 16.0))


@pytest.mark.parametrize("name", ["burst", "band", "click"])
def test_what_is_planted_is_where_it_is_said_to_be(name, rng):
    """Nine tenths of what was added lie in the box, give or take the edges' width."""
    waveform = 0.1 * rng.normal(size=RATE)
    planted, event = getattr(plants, name)(rng, waveform, RATE, 1500.0)
    added = planted - waveform
    outside = np.ones(RATE, bool)
    end = RATE if event.end_s == np.inf else round(event.end_s * RATE)
    outside[round(event.start_s * RATE) : end] = False
    assert not np.any(added[outside])
    power = np.abs(np.fft.rfft(added)) ** 2
    hz = np.fft.rfftfreq(RATE, 1 / RATE)
    inside = (hz >= event.low_hz - 20) & (hz <= event.high_hz + 20)
    assert power[inside].sum() > 0.9 * power.sum()


def test_a_real_sounds_band_is_where_its_energy_is(rng):
    at = np.arange(RATE // 4) / RATE
    tone = np.sin(2 * np.pi * 1000 * at) + np.sin(2 * np.pi * 1400 * at)
    planted, event = plants.sound(rng, 0.05 * rng.normal(size=RATE), RATE, tone)
    assert event.low_hz == pytest.approx(1000, abs=20)
    assert event.high_hz == pytest.approx(1400, abs=20)
    assert event.end_s - event.start_s == pytest.approx(0.25)
    assert len(planted) == RATE


def test_the_loudest_moment_of_a_recording(rng):
    recording = 0.01 * rng.normal(size=2 * RATE)
    recording[9000:11000] += rng.normal(size=2000)
    cut = plants.loudest(recording, RATE)
    assert 2000 <= len(cut) <= 2000 + 0.1 * RATE
    assert len(plants.loudest(rng.normal(size=5 * RATE), RATE, most_s=0.5)) <= 4000
    whole = rng.normal(size=100)
    np.testing.assert_array_equal(plants.loudest(whole, RATE), whole)


@pytest.fixture
def speech(tmp_path, rng):
    for number in range(8):
        path = tmp_path / "speech" / f"{number}_someone_{number}.wav"
        path.parent.mkdir(exist_ok=True)
        soundfile.write(path, 0.1 * rng.normal(size=3000), RATE)
    return tmp_path / "speech"


def config_of(**more):
    return options.Config(events=("burst",), clips=(6, 4, 4), **more)


def test_a_corpus_is_made_once_and_the_same_again(tmp_path, speech):
    config = config_of(speech=speech)

    def make(folder, seed=0):
        told = []
        made = corpus.make(
            folder,
            config,
            "burst",
            seed,
            skip_log=data.SkipLog(),
            on_progress=told.append,
        )
        samples = [soundfile.read(c.path)[0] for c in made.splits.train]
        return made, samples, sum(told)

    made, samples, count = make(tmp_path / "one")
    assert count == 14
    labels = [clip.label for clip in made.splits.train]
    assert labels == [0, 1, 0, 1, 0, 1]
    assert [len(p) for p in (made.splits.validation, made.splits.test)] == [4, 4]
    events = corpus.of(made, [c for c in made.splits.test if c.label])
    assert all(e.end_s - e.start_s == pytest.approx(plants.BURST_S) for e in events)
    assert len({e.low_hz for e in events}) == 1  # one band a corpus
    assert len({e.start_s for e in events}) == len(events)

    again, _, count = make(tmp_path / "one")
    assert (again, count) == (made, 0)
    _, other, _ = make(tmp_path / "two")
    np.testing.assert_array_equal(samples, other)
    _, other, _ = make(tmp_path / "three", seed=1)
    assert not np.array_equal(samples, other)


def test_no_recording_is_in_two_splits(speech):
    parts = corpus._sources(config_of(speech=speech), "burst", 0)["background"]
    names = [{path.name for path in part} for part in parts]
    assert sum(map(len, names)) == len(set.union(*names)) == 8
    assert all(names)
    few = [Path("1-100-A.wav"), Path("1-100-B.wav"), Path("2-7-A.wav")]
    with pytest.raises(ValueError, match="2 recordings are too few"):
        corpus._split(few, 0)  # takes of a source are one recording


def test_babble_where_no_speech_is_given(tmp_path):
    made = corpus.make(
        tmp_path, config_of(), "burst", 0, skip_log=data.SkipLog(strict=True)
    )
    waveform, rate = soundfile.read(made.splits.train[0].path)
    assert (len(waveform), rate) == (options.SPEECH.num_samples, RATE)
    assert np.abs(waveform).max() > 0.1


def maps_with_a_plant(rng, places):
    """Channel 2 is the plant; the others are noise with no bearing on the class."""
    maps = 0.1 * np.abs(rng.normal(size=(len(places), 4, 8, CHAN)))
    for feature_map, (row, column) in zip(maps, places, strict=True):
        feature_map[row, column, 2] = 5.0
    head = classifier_lib.LinearHead(
        weight=np.array([[0.1] * CHAN, [0.1, 0.1, 3.0, 0.1, 0.1, 0.1]], np.float32),
        bias=np.zeros(2, np.float32),
    )
    return maps.astype(np.float32), head


def channels(classifier, maps, scheme, kind):
    return scoring.channels(
        disentangle.identity(CHAN),
        classifier,
        maps.mean(axis=(1, 2)),
        schemes.views(jnp.asarray(maps), keep_cells=True),
        1,
        scheme,
        kind=kind,
    )


PLACES = [(0, 1), (3, 7), (2, 4), (1, 0), (3, 2)]


def boxes_of(places):
    return np.array(
        [(16 * r, 16 * r + 16, 16 * c, 16 * c + 16) for r, c in places], float
    )


@pytest.mark.parametrize("kind", ["plain", "contrastive"])
@pytest.mark.parametrize("scheme", schemes.SCHEMES)
def test_a_channel_that_is_the_plant_points_at_it(scheme, kind, rng):
    maps, head = maps_with_a_plant(rng, PLACES)
    classifier = classifier_lib.of_maps(head, corpus.CLASSES)
    found = channels(classifier, maps, scheme, kind)
    scores = scoring.scored(GRID, scheme, found.where, boxes_of(PLACES))
    assert scores["both"].tolist() == [1] * len(PLACES)
    assert (scores["iou"] == 1).all() == (scheme == "square")
    pooled = maps.mean(axis=(1, 2))
    weight = head.weight[1] - (head.weight[0] if kind == "contrastive" else 0)
    evidence = weight * pooled
    shares = found.shares()
    np.testing.assert_allclose(
        shares["share"], evidence[:, 2] / evidence.sum(axis=1), rtol=1e-4
    )
    assert (shares["share, best"] >= shares["share"] - 1e-6).all()
    for of in ("", ", best"):  # nothing speaks against, or by its absence
        np.testing.assert_allclose(shares[f"share of all{of}"], shares[f"share{of}"])


def test_what_moves_the_logit_by_hand(rng):
    """Also what speaks for the class by its absence, and what speaks against it."""
    pooled = rng.normal(size=(7, CHAN)).astype(np.float32)
    maps = np.broadcast_to(pooled[:, None, None], (7, 4, 8, CHAN)).copy()
    weight = rng.normal(size=(2, CHAN)).astype(np.float32)
    head = classifier_lib.LinearHead(weight=weight, bias=np.zeros(2, np.float32))
    classifier = classifier_lib.of_maps(head, corpus.CLASSES)
    found = channels(classifier, maps, "time", "plain")
    for clip, parts in zip(pooled, found.parts, strict=True):
        moves = weight[1] * clip
        seen = sorted(moves[(clip > 0) & (moves > 0)], reverse=True)
        expected = (
            seen[0] if seen else 0,
            sum(seen[:4]),
            sum(seen),
            moves[(clip < 0) & (moves > 0)].sum(),
            -moves[moves < 0].sum(),
        )
        np.testing.assert_allclose(parts, expected, rtol=1e-4, atol=1e-6)
        assert parts[2] + parts[3] + parts[4] == pytest.approx(np.abs(moves).sum())
    np.testing.assert_allclose(
        found.shares()["share of all"],
        found.parts[:, 0] / found.parts[:, 2:].sum(axis=1),
        rtol=1e-5,
    )


@pytest.mark.parametrize("scheme", schemes.SCHEMES)
def test_the_hottest_regions_of_what_has_no_channels(scheme, rng):
    """Four of them, by what the scheme looks at; the first where it would point."""
    maps = rng.normal(size=(5, 4, 8, CHAN)).astype(np.float32)
    weight = rng.normal(size=(2, CHAN)).astype(np.float32)
    head = classifier_lib.LinearHead(weight=weight, bias=np.zeros(2, np.float32))
    classifier = classifier_lib.of_maps(head, corpus.CLASSES)
    views = schemes.views(jnp.asarray(maps), keep_cells=True)
    targets = np.array([0, 1, 1, 0, 1])
    found, there = scoring.whole(classifier, views, targets, scheme, kind="plain")
    assert there.all()
    for one, target, where in zip(maps, targets, found, strict=True):
        heat = one @ weight[target]
        rows, columns = heat.mean(axis=1), heat.mean(axis=0)
        places = GRID.locations(scheme)
        row, column = places.T
        values = {
            "square": heat[row, column],
            "time": columns[column],
            "frequency": rows[row],
            "time_frequency": rows[row] + columns[column],
        }[scheme]
        hottest = places[np.argsort(-values)][:4]
        assert where.tolist() == hottest.tolist()


def test_a_channel_that_is_noise_points_as_chance_does(rng):
    places = [tuple(p) for p in rng.integers([4, 8], size=(600, 2))]
    maps, _ = maps_with_a_plant(rng, places)
    head = classifier_lib.LinearHead(  # the class hangs on channel 4, which is noise
        weight=np.eye(CHAN, dtype=np.float32)[[0, 4]], bias=np.zeros(2, np.float32)
    )
    classifier = classifier_lib.of_maps(head, corpus.CLASSES)
    boxes = boxes_of(places)
    for scheme in schemes.SCHEMES:
        found = channels(classifier, maps, scheme, "plain")
        hits = scoring.scored(GRID, scheme, found.where, boxes)
        chance = scoring.random(GRID, scheme, boxes)
        for name in ("frequency", "time", "both", "iou"):
            assert hits[name].mean() == pytest.approx(chance[name].mean(), abs=0.07)
    assert scoring.random(GRID, "square", boxes)["both"] == pytest.approx(1 / 32)
    by_row = scoring.random(GRID, "frequency", boxes)
    assert by_row["frequency"] == pytest.approx(1 / 4)
    # Four different rows of four always hit; of 32 cells, four in 32.
    assert by_row["frequency, best"] == pytest.approx(1)
    best = scoring.random(GRID, "square", boxes)["both, best"]
    assert best == pytest.approx(4 / 32)


@pytest.mark.parametrize("kind", ["plain", "contrastive"])
def test_cam_and_grad_cam_point_at_what_the_head_weighs(kind, rng):
    maps, head = maps_with_a_plant(rng, PLACES)
    classifier = classifier_lib.of_maps(head, corpus.CLASSES)
    views = schemes.views(jnp.asarray(maps), keep_cells=True)
    for where in (scoring.whole, scoring.grad_cam):
        found, there = where(classifier, views, 1, "square", kind=kind)
        assert [tuple(p) for p in found[:, 0].tolist()] == PLACES
        assert there.all()


def test_against_the_other_class_they_leave_out_what_both_share(rng):
    """Channel 0 speaks for both classes, and is loudest where the plant is not."""
    maps, head = maps_with_a_plant(rng, PLACES)
    maps[:, 2, 6, 0] = 50.0
    head = dataclasses.replace(head, weight=head.weight + 5 * np.eye(1, CHAN, 0))
    classifier = classifier_lib.of_maps(head, corpus.CLASSES)
    views = schemes.views(jnp.asarray(maps), keep_cells=True)
    for where in (scoring.whole, scoring.grad_cam):
        for kind, wanted in (("plain", [(2, 6)] * 5), ("contrastive", PLACES)):
            found, _ = where(classifier, views, 1, "square", kind=kind)
            assert [tuple(p) for p in found[:, 0].tolist()] == wanted


def test_the_best_of_several_channels(rng):
    boxes = boxes_of([(1, 2), (1, 2)])
    locations = np.array([[[0, 0], [1, 2]], [[0, 2], [1, 5]]])
    there = np.ones((2, 2), bool)
    scores = scoring.scored(GRID, "square", (locations, there), boxes)
    assert scores["both"].tolist() == [0, 0]
    # Of the second clip one channel hits in time, another in frequency, none in both.
    assert scores["both, best"].tolist() == [1, 0]
    assert scores["time, best"].tolist() == [1, 1]
    assert scores["frequency, best"].tolist() == [1, 1]
    assert scores["iou, best"].tolist() == [1, 0]
    # A channel that is nowhere hits nothing.
    there[0, 1] = False
    scores = scoring.scored(GRID, "square", (locations, there), boxes)
    assert scores["both, best"].tolist() == [0, 0]
    assert scores["iou, best"].tolist() == [0, 0]


def test_heat_of_nothing_points_nowhere(rng):
    maps, head = maps_with_a_plant(rng, PLACES)
    maps[0] = 0
    views = schemes.views(jnp.asarray(maps), keep_cells=True)
    classifier = classifier_lib.of_maps(head, corpus.CLASSES)
    boxes = boxes_of([(0, 0), *PLACES[1:]])
    for where in (scoring.whole, scoring.grad_cam):
        found = where(classifier, views, 1, "square", kind="plain")
        scores = scoring.scored(GRID, "square", found, boxes)
        assert scores["both"].tolist() == [0, 1, 1, 1, 1]
    # Of effects too: what contributes, and no silence takes anything from.
    for locate, hits in (("map", 1), ("occlusion", 0)):
        found = scoring.channels(
            disentangle.identity(CHAN),
            classifier,
            np.abs(maps).mean(axis=(1, 2)) + 1,
            views,
            1,
            "square",
            kind="plain",
            locate=locate,
        )
        scores = scoring.scored(GRID, "square", found.where, boxes)
        assert scores["both"].tolist() == [hits, 1, 1, 1, 1]


def test_what_takes_no_network(rng):
    """The loudest region, and the one that events are in most often."""
    heard = rng.normal(-3, 0.1, size=(len(PLACES), 64, 128)).astype(np.float32)
    for pixels, (row, column) in zip(heard, PLACES, strict=True):
        pixels[16 * row : 16 * row + 16, 16 * column : 16 * column + 16] += 1
    found, there = scoring.loudest(GRID, heard, "square")
    assert [tuple(p) for p in found[:, 0].tolist()] == PLACES
    assert there.all()
    found, _ = scoring.loudest(GRID, heard, "frequency")
    assert [tuple(p) for p in found[:, 0].tolist()] == [(r, -1) for r, _ in PLACES]
    known = boxes_of([(1, 2), (1, 3), (2, 2)])
    for scheme, place in (("frequency", (1, -1)), ("time", (-1, 2))):
        found, there = scoring.constant(GRID, scheme, known, 3)
        assert found.tolist() == [[list(place)]] * 3
        assert there.all()
        assert "both, best" not in scoring.scored(GRID, scheme, (found, there), known)


def explained_of(maps, head, effects):
    """A classifier and clips of which only these are known."""
    return explained.Explained(
        config=config_of(),
        folder=Path("nowhere"),
        event="burst",
        problem=SimpleNamespace(
            front_end=SimpleNamespace(shape=(64, 128)),
            classifier=lambda model: classifier_lib.of_maps(head, corpus.CLASSES),
        ),
        model=None,
        clips=[],
        maps=maps,
        effects=effects,
        boxes=boxes_of(PLACES),
        known=boxes_of(PLACES),
        probabilities=np.ones(len(PLACES)),
        tested=(maps.mean(axis=(1, 2)), np.asarray(head(maps.mean(axis=(1, 2))))),
        accuracy=1.0,
    )


@pytest.mark.parametrize("scheme", ["square", "time", "frequency"])
def test_what_silencing_takes_by_hand(scheme, rng):
    """Every region of every clip; the top channel's own against the others' mean."""
    maps, head = maps_with_a_plant(rng, PLACES)
    rows, columns = GRID.regions(scheme)
    cells = 0.05 * rng.normal(size=(len(PLACES), rows, columns, CHAN))
    whole = np.broadcast_to(cells, (len(PLACES), 4, 8, CHAN)).astype(np.float32)
    effects = {scheme: schemes.views(jnp.asarray(whole), keep_cells=True)}
    of = explained_of(maps, head, effects)
    transform = disentangle.from_generator(
        jnp.asarray(rng.normal(0, 0.2, (CHAN, CHAN)), jnp.float32)
    )
    found = trust.masked(of, {"some": transform}, scheme)
    own = [row for row in found if row["method"] == "some"]
    assert [(row["evidence"], row["locate"]) for row in own] == list(variants.WAYS)

    def probability(pooled):
        logits = np.asarray(head.weight) @ pooled + head.bias
        return np.exp(logits[1]) / np.exp(logits).sum()

    matrix = np.asarray(transform.matrix, np.float64)
    weight = np.asarray(head.weight) @ np.linalg.inv(matrix)
    for n, pooled in enumerate(maps.mean(axis=(1, 2))):
        share = (weight[1] - weight[0]) * np.maximum(matrix @ pooled, 0)
        along = cells[n] @ matrix[share.argmax()]
        lost = {
            (r, c): probability(pooled) - probability(pooled - cells[n, r, c])
            for r, c in np.ndindex(rows, columns)
        }
        own = lost.pop(np.unravel_index(along.argmax(), along.shape))
        if along.max() <= 0:  # it is nowhere, so nothing is silenced
            own = 0.0
        assert found[-1]["own"][n] == pytest.approx(own, abs=1e-5)
        assert found[-1]["random"][n] == pytest.approx(
            np.mean(list(lost.values())), abs=1e-5
        )
    assert 0 < found[-1]["p"] <= 1


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
    """Only the scheme that fits, the axis that the event has, and blanks for no row."""

    def row(method, scheme, hit, **way):
        scores = {"frequency": hit, "both": [0.9, 0.9, 0.9]}
        scores |= {"share": [0.25] * 3, "share of all": [0.125] * 3} if way else {}
        return {"method": method, "scheme": scheme, "scores": scores, **way}

    way = {"evidence": "plain", "locate": "map"}
    shown = tables._at_a_glance(
        {
            "band": {
                "fits": ("frequency", "frequency"),
                "rows": [
                    row("CAM", "frequency", [0.5, 0.4, 0.6]),
                    row("paper", "frequency", [0.1, 0.0, 0.2], **way),
                    row("paper", "square", [1, 1, 1], **way),
                ],
            },
            "burst": {
                "fits": ("square", "both"),
                "rows": [row("paper", "square", [0, 0, 0], **way)],
            },
        }
    )
    assert "| CAM | 0.50 [0.40, 0.60] |  |" in shown[1]
    assert "| paper, plain, map | 0.10 [0.00, 0.20] | 0.90 [0.90, 0.90] |" in shown[1]
    assert "| paper, plain | 0.25, 0.12 | 0.25, 0.12 |" in shown[3]
    assert shown[1].startswith("| method | band, frequency | burst, square |")


def _check_scores(scores):
    """Of what is kept of a seed: every hit can be found again from places and boxes."""
    boxes = np.array([clip["box"] for clip in scores["explained"]])
    assert len(boxes) == scores["clips"] > 0
    assert all(0.5 < clip["probability"] <= 1 for clip in scores["explained"])
    grid = schemes.Grid(
        map_shape=tuple(scores["grid"]["map_shape"]),
        input_shape=tuple(scores["grid"]["input_shape"]),
        cell=tuple(scores["grid"]["cell"]),
    )
    for row in scores["rows"]:
        if row["method"] == "random":
            continue
        where = np.array(row["locations"]), np.array(row["there"])
        again = scoring.scored(grid, row["scheme"], where, boxes[: len(where[0])])
        for name, values in again.items():
            np.testing.assert_allclose(row["scores"][name], values, atol=1e-6)
    assert {row["scheme"] for row in scores["rows"] if row["method"] == "paper"} == set(
        schemes.SCHEMES
    )
    # What is shown of it nowhere else is learned under the scheme that fits alone.
    assert {r["scheme"] for r in scores["rows"] if r["method"] == "whitened"} == {
        "square"
    }
    for row in scores["learned"]:
        assert row["audited_clips"] == 6 + 4  # of training and of test
        assert row["changed_predictions"] == 0
    assert [row["variant"] for row in scores["again"]] == ["paper"]
    assert scores["settings"]["clips"] == [8, 2, 4]
    assert "output_dir" not in scores["settings"]
    assert "jax" in scores["versions"]


@pytest.mark.slow
def test_the_experiment_from_babble_to_tables(tmp_path, capsys, monkeypatch):
    """With a network that was not trained, and says planted of every clip."""

    def untrained(folder, problem, config, patch_size):
        shape = convnext.ConvNeXtConfig(
            depths=(1, 1, 1, 1),
            dims=(8, 8, 12, 16),
            num_classes=2,
            patch_size=patch_size,
            layer_scale_init=1.0,
        )
        model = convnext.ConvNeXt(shape, rngs=nnx.Rngs(0))
        model.head.bias = nnx.Param(jnp.array([0.0, 9.0]))
        checkpoint.save_classifier(
            folder, model, activation=problem.activation, **methods._about(problem)
        )
        return model

    monkeypatch.setattr(methods, "train_convnext", untrained)
    config = options.Config(
        events=("burst",),
        clips=(8, 2, 4),
        explain_clips=6,
        seeds=1,
        variants=("paper", "whitened"),
        lime_clips=1,
        lime_samples=8,
        faithful_clips=1,
        curve_steps=2,
        stable_clips=1,
        output_dir=tmp_path / "run",
        optimise=dataclasses.replace(
            options.Config().optimise, epochs=2, prototypes_start=2, prototypes_end=1
        ),
    )
    results = run.main(config)
    scores = json.loads((tmp_path / "run/burst/seed0/scores.json").read_text())
    _check_scores(scores)
    rows = results["events"]["burst"]["rows"]
    assert {row["method"] for row in rows} == {
        "random", "always the same", "CAM", "Grad-CAM", "all channels",
        "all channels, random weights", "loudest region", "raw channels", "paper",
        "whitened", "LIME",
    }  # fmt: skip
    assert "### burst: square scheme" in (tmp_path / "run/localisation.md").read_text()
    capsys.readouterr()
    again = run.main(config)
    assert "finished before" in capsys.readouterr().out
    assert again["events"] == results["events"]
    for picture in ("burst/consistency.png", "burst/seed0/regions.png"):
        assert (tmp_path / "run" / picture).stat().st_size > 10_000

    scores = tmp_path / "burst-0.json.gz"
    content = (tmp_path / "run/burst/seed0/scores.json").read_bytes()
    scores.write_bytes(gzip.compress(content))
    merged = merge.main(merge.Config(scores=(scores,), output=tmp_path / "merged"))
    assert merged["events"] == results["events"]
    assert (tmp_path / "merged/localisation.md").read_text() == (
        tmp_path / "run/localisation.md"
    ).read_text()

    changes = {"as it is": {}, "another": {"algorithm": "muon"}}
    monkeypatch.setattr(tuning, "CHANGES", {"optimiser": changes})
    seed = tmp_path / "run" / "burst" / "seed0"
    tuned = tuning.main(tuning.Config(run=seed, optimise=config.optimise))
    assert [row["name"] for row in tuned["settings"]] == list(changes)
    for row in tuned["settings"]:
        assert len(row["seconds"]) == 2
        assert len(row["round_epochs"]) == len(row["round_purity"])
    # The same way to learn U as the experiment's own.
    own = next(
        row
        for row in results["events"]["burst"]["rows"]
        if (row["method"], row["scheme"], row.get("locate"))
        == ("paper", "square", "occlusion")
    )
    assert tuned["settings"][0]["hit"] == pytest.approx(own["scores"]["both"][0])
    assert "| as it is |" in (seed / "optimiser.md").read_text()
    assert (seed / "optimiser.png").stat().st_size > 10_000
    with pytest.raises(ValueError, match="no finished folder of an event"):
        tuning.main(tuning.Config(run=tmp_path))


def test_what_cannot_be_merged(tmp_path):
    def scores(name, **changes):
        part = {"made_from": {"version": 2}, "event": "click", "seed": 0, "rows": [],
                "settings": {"seed": 0, "clips": [1, 2, 3]}}  # fmt: skip
        (tmp_path / name).write_text(json.dumps(part | changes))
        return tmp_path / name

    def refused(message, *files):
        with pytest.raises(ValueError, match=message):
            merge.main(merge.Config(scores=files, output=tmp_path / "out"))

    one = scores("one.json")
    refused("at least one")
    refused("click has a seed twice", one, scores("again.json"))
    refused(
        "measured in different ways",
        one,
        scores("older.json", seed=1, made_from={"version": 1}),
    )
    other = {"settings": {"seed": 1, "clips": [4, 2, 3]}}
    refused(
        "different settings: clips of click, seed 1",
        one,
        scores("more.json", seed=1, **other),
    )
    (tmp_path / "other.json").write_text("{}")
    refused(r"other\.json is no scores\.json", tmp_path / "other.json")
    (tmp_path / "cut.json.gz").write_bytes(gzip.compress(b"{}")[:12])
    refused(r"cut\.json\.gz is no scores\.json", tmp_path / "cut.json.gz")


def test_what_cannot_work():
    with pytest.raises(ValueError, match="--events sound takes --sounds DIR"):
        options.Config(events=("sound",)).check()
    with pytest.raises(ValueError, match="--clips must be at least 2 each"):
        options.Config(clips=(6, 1, 4)).check()
