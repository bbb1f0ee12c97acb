"""Scores are of who points at the event: places, hits, what silencing takes."""

import dataclasses
from pathlib import Path
from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest

from apex_jax import audio, disentangle, schemes
from apex_jax import classifier as classifier_lib
from experiments.localisation import (
    corpus,
    explained,
    options,
    scoring,
    trust,
    variants,
)

CHAN = 6
GRID = schemes.Grid(map_shape=(4, 8), input_shape=(64, 128), cell=(16.0, 16.0))


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
    shares = found.parts.shares()
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
    of_all = np.stack(found.parts, axis=1)
    for clip, parts in zip(pooled, of_all, strict=True):
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
        found.parts.shares()["share of all"],
        of_all[:, 0] / of_all[:, 2:].sum(axis=1),
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
    # Of effects too: what contributes, and no part of the sound adds to.
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
    # A band that is loud all the time is no more unusual at one moment than another.
    heard[:, 32:48] += 3
    assert scoring.loudest(GRID, heard, "square")[0][:, 0, 0].tolist() == [2] * 5
    for pixels, (row, column) in zip(heard, PLACES, strict=True):
        pixels[16 * row : 16 * row + 16, 16 * column : 16 * column + 16] += 3
    found, there = scoring.unusual(GRID, heard, "time")
    assert [tuple(p) for p in found[:, 0].tolist()] == [(-1, c) for _, c in PLACES]
    assert there.all()
    known = boxes_of([(1, 2), (1, 3), (2, 2)])
    for scheme, place in (("frequency", (1, -1)), ("time", (-1, 2))):
        found, there = scoring.constant(GRID, scheme, known, 3)
        assert found.tolist() == [[list(place)]] * 3
        assert there.all()
        assert "both, best" not in scoring.scored(GRID, scheme, (found, there), known)


def explained_of(maps, head, effects):
    """A classifier and clips of which only these are known."""
    return explained.Explained(
        config=options.Config(),
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
def test_what_silencing_takes_by_hand(scheme, rng, monkeypatch):
    """Every region of every clip; the top channel's own against the others' mean."""
    maps, head = maps_with_a_plant(rng, PLACES)
    rows, columns = GRID.regions(scheme)
    cells = 0.05 * rng.normal(size=(len(PLACES), rows, columns, CHAN))
    whole = np.broadcast_to(cells, (len(PLACES), 4, 8, CHAN)).astype(np.float32)
    effects = {scheme: schemes.views(jnp.asarray(whole), keep_cells=True)}
    of = explained_of(maps, head, effects)
    taken = cells + 0.05 * rng.normal(size=cells.shape)
    left = maps.mean(axis=(1, 2))[:, None, None] - taken
    silenced = {scheme: left.reshape(len(PLACES), rows * columns, CHAN)}
    monkeypatch.setattr(
        explained.Explained, "silenced", lambda self, scheme: silenced[scheme]
    )
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
            (r, c): probability(pooled) - probability(pooled - taken[n, r, c])
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


@pytest.mark.parametrize("scheme", ["square", "frequency"])
def test_regions_are_silenced_as_in_the_masking_study(scheme, rng, monkeypatch):
    """With soft edges; the network's channels are the means of single rows."""
    maps, head = maps_with_a_plant(rng, PLACES[:2])
    heard = rng.normal(-1, 1, size=(2, 64, 128)).astype(np.float32)
    clips = dict(zip(("a", "b"), heard, strict=True))
    classifier = classifier_lib.Classifier(
        params={},
        head=head,
        forward_fn=lambda params, s: (
            jnp.moveaxis(s[:, None, :CHAN], 2, 3),
            jnp.zeros((len(s), 2)),
        ),
        class_names=corpus.CLASSES,
    )
    front_end = options.Config().front_end_of("burst")
    of = dataclasses.replace(
        explained_of(maps, head, {}),
        clips=list(clips),
        problem=SimpleNamespace(
            front_end=front_end, classifier=lambda model: classifier
        ),
    )
    monkeypatch.setattr(
        explained, "spectrogram_of", lambda front_end, clip: clips[clip]
    )
    found = of.silenced(scheme)
    locations = GRID.locations(scheme)
    assert found.shape == (2, len(locations), CHAN)
    for n, spectrogram in enumerate(heard):
        silence = float(audio.silence_level(front_end, spectrogram[None])[0])
        for r, location in enumerate(locations):
            mask = np.asarray(GRID.mask(scheme, jnp.asarray(location), blur=0.25))
            left = spectrogram * (1 - mask) + silence * mask
            np.testing.assert_allclose(found[n, r], left.mean(axis=1)[:CHAN], atol=1e-4)
