"""What is measured beside pointing, on networks whose answer hangs on a known cell."""

import dataclasses
import itertools
from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest
import scipy.signal
import soundfile

from apex_jax import (
    attribution,
    audio,
    bank,
    data,
    disentangle,
    explain,
    look,
    schemes,
)
from apex_jax import classifier as classifier_lib
from experiments.localisation import explained, trust, variants

FRONT_END = audio.FrontEnd(
    sample_rate=8000,
    clip_s=0.09,
    n_fft=256,
    hop_length=64,
    n_mels=8,
    mean=-40.0,
    std=20.0,
    top_db=None,
)
SILENCE = float(audio.silence_level(FRONT_END, jnp.zeros((1, 8, 12)))[0])
# Cells of 4 by 4 pixels; at 6 steps of 16 pixels each a cell goes at a time.
GRID = schemes.Grid(map_shape=(2, 3), input_shape=(8, 12), cell=(4.0, 4.0))
STEPS = 6
# Channel 0 is the cell (0, 1) and speaks for both classes, 1 is (1, 2) and speaks for
# class 1 alone. Plain evidence is largest where nothing is decided.
SHARED, EVENT = (0, 1), (1, 2)
PLACES = np.zeros((2, 3, 2), np.float32)
PLACES[(*SHARED, 0)] = PLACES[(*EVENT, 1)] = 1
WEIGHT = np.array([[9, 0], [9, 6]], np.float32)


def forward(shift, spectrogram):
    heard = (spectrogram - SILENCE).reshape(-1, 2, 4, 3, 4).mean(axis=(2, 4))
    maps = jnp.roll(heard[..., None] * jnp.asarray(PLACES)[None], shift, axis=2)
    return maps, jnp.mean(maps, axis=(1, 2)) @ WEIGHT.T


CLASSIFIER = classifier_lib.Classifier(
    params=jnp.int32(0),
    forward_fn=forward,
    head=classifier_lib.LinearHead(
        weight=jnp.asarray(WEIGHT), bias=jnp.zeros(2, jnp.float32)
    ),
    class_names=("no", "yes"),
    stride=(4, 4),
)


def explainer_of(scheme, shift=0):
    """Of the network whose map lies some columns after the sound."""
    shape = (2, 1)
    one = bank.Bank(
        clip=np.zeros(shape, int),
        activation=jnp.zeros(shape),
        location=jnp.zeros((*shape, 2), jnp.int32),
        purity=jnp.zeros(shape),
        scheme=scheme,
        sign="positive",
    )
    return explain.Explainer(
        classifier=dataclasses.replace(CLASSIFIER, params=jnp.int32(shift)),
        transform=disentangle.identity(2),
        positive=one,
        negative=one,
        clips=(data.Clip(path="none.wav", label=0),),
        front_end=FRONT_END,
    )


@pytest.fixture
def clips(tmp_path, rng):
    """Noise that in the event's cell, the last third above 1.5 kHz, is 20 dB louder."""
    high = scipy.signal.butter(4, 1500, "highpass", fs=8000, output="sos")
    made = []
    for number in range(4):
        path, noise = tmp_path / f"{number}.wav", 0.03 * rng.normal(size=720)
        noise[480:] += 9 * scipy.signal.sosfilt(high, noise)[480:]
        soundfile.write(path, noise, 8000)
        made.append(data.Clip(path=str(path), label=1))
    return made


# Channels change places, and one is twice as large.
SWAPPED = disentangle.Transform(
    matrix=jnp.array([[0.0, 2.0], [1.0, 0.0]]),
    inverse=jnp.array([[0.0, 1.0], [0.5, 0.0]]),
    centre=jnp.zeros(2),
)


def faithful(clips, scheme="square", shift=0, **options):
    explainer = explainer_of(scheme, shift)
    found = trust.faithful(
        {"some": dataclasses.replace(explainer, transform=SWAPPED)},
        clips,
        1,
        seed=0,
        steps=STEPS,
        on_progress=lambda _: None,
        **options,
    )
    return {(row["method"], row["locate"], row["heat"]): row for row in found}


def pixels_of(clip):
    return look.spectrogram_of(FRONT_END, audio.load_clip(clip.path, FRONT_END))


def event_of(pixels):
    """What the event's pixels add to the class's logit, each."""
    added = np.zeros_like(pixels)
    added[4:, 8:] = WEIGHT[1, 1] * (pixels - SILENCE)[4:, 8:] / (16 * 6)
    return added


def areas(clip, heat):
    """By hand, of heat without equal pixels but where it does not matter."""
    added = event_of(pixels_of(clip)).ravel()
    order = np.argsort(-heat.ravel(), kind="stable")
    gone = np.array([added[order[: 16 * n]].sum() for n in range(STEPS + 1)])
    curves = 1 / (1 + np.exp(gone - added.sum())), 1 / (1 + np.exp(-gone))
    return [float(np.mean((c[1:] + c[:-1]) / 2)) for c in curves]


def at_rank(clip, rank):
    """Areas where the event is the cell at that rank."""
    cells = np.zeros((2, 3))
    order = [cell for cell in np.ndindex(2, 3) if cell != EVENT]
    order.insert(rank, EVENT)
    for n, cell in enumerate(order):
        cells[cell] = -n
    return areas(clip, cells.repeat(4, axis=0).repeat(4, axis=1))


def rank_of(clip, row, number):
    """At which rank the event was, to a fraction where several areas were averaged."""
    first, last = (at_rank(clip, rank)[0] for rank in (0, 5))
    return 5 * (row["deletion"][number] - first) / (last - first)


def upsampled(cells):
    """Bilinear, half-pixel centres; beyond the outermost centres constant."""

    def along(size):
        weights = np.eye(size)
        at = (np.arange(4 * size) + 0.5) / 4 - 0.5
        return np.stack([np.interp(at, np.arange(size), w) for w in weights], axis=1)

    return along(2) @ np.maximum(cells, 0) @ along(3).T


def test_heat_is_of_what_decides(clips):
    """The event first; a plain Grad-CAM would begin with what both classes share.

    As the event is one channel's, that channel's heat is that of all, under any U.
    """
    found = faithful(clips)
    explainer = explainer_of("square")
    for number, clip in enumerate(clips):
        seen = explainer.occluded(explainer.look(clip.path))
        lead = WEIGHT[1] - WEIGHT[0]
        by_map = upsampled(np.asarray(seen.views.cells) @ lead)
        effects = np.asarray(seen.effects["square"].cells) @ lead
        event_first = at_rank(clip, 0)
        heatmaps = {
            ("CAM", "map"): areas(clip, by_map),
            ("Grad-CAM", "map"): areas(clip, by_map),
            (trust.CLASS, "occlusion"): areas(clip, upsampled(effects)),
        }
        for name in (variants.RAW, "some"):
            heatmaps[name, "map"] = heatmaps["CAM", "map"]
            heatmaps[name, "occlusion"] = heatmaps[trust.CLASS, "occlusion"]
        assert heatmaps["CAM", "map"] == pytest.approx(event_first)
        for which, heatmap in heatmaps.items():
            for kind, expected in (("heatmap", heatmap), ("regions", event_first)):
                row = found[*which, kind]
                got = row["deletion"][number], row["insertion"][number]
                assert got == pytest.approx(expected, abs=2e-5), (which, kind)
        plain = attribution.grad_cam(explainer, clip.path, target=1)
        assert plain.channels[0].location == SHARED
        assert areas(clip, plain.channels[0].heatmap)[0] > event_first[0] + 0.05
    # Both kinds of every method.
    of_kind = [
        {which[:2] for which in found if which[2] == kind}
        for kind in ("heatmap", "regions")
    ]
    assert of_kind[0] == of_kind[1]
    assert len(of_kind[0]) == 4 + 2 * 2


def test_effects_of_clips_are_those_of_each(clips):
    """As an explanation has them, which test_occlusion works out by hand."""
    explainer = explainer_of("square", shift=1)
    seen = [explainer.look(clip.path) for clip in clips]
    maps = np.stack([np.asarray(one.views.cells) for one in seen])
    found = explained.effects_of(
        explainer.classifier, FRONT_END, clips, maps, ("square", "time", "frequency")
    )
    for scheme in schemes.SCHEMES:
        one = explainer_of(scheme, shift=1)
        for number, clip in enumerate(clips):
            effects = one.occluded(one.look(clip.path)).effects[scheme].cells
            np.testing.assert_allclose(
                np.asarray(found[scheme].cells)[number], effects, atol=1e-5
            )
    assert set(
        explained.effects_of(explainer.classifier, FRONT_END, clips, maps, ("time",))
    ) == {"time"}


def test_by_occlusion_the_map_does_not_matter(clips):
    """A map that answers a column late: CAM begins with a cell of nothing."""
    found = faithful(clips, shift=1)
    for number, clip in enumerate(clips):
        for kind in ("heatmap", "regions"):
            ranks = {
                which[0]: rank_of(clip, row, number)
                for which, row in found.items()
                if which[0] not in ("random", variants.RAW, "some") and which[2] == kind
            }
            assert ranks.pop(trust.CLASS) == pytest.approx(0, abs=1e-3)
            assert set(ranks) == {"CAM", "Grad-CAM"}
            assert min(ranks.values()) > 0.9


@pytest.mark.parametrize("scheme", ["time", "frequency", "time_frequency"])
def test_regions_are_the_schemes(scheme, clips):
    """Cells of the region that holds the event are first, in random order."""
    found = faithful(clips, scheme)
    size = {"time": 2, "frequency": 3, "time_frequency": 4}[scheme]
    for which in (("CAM", "map"), ("Grad-CAM", "map"), (trust.CLASS, "occlusion")):
        row = found[*which, "regions"]
        ranks = [rank_of(clip, row, number) for number, clip in enumerate(clips)]
        np.testing.assert_allclose(ranks, np.round(ranks), atol=1e-3)
        assert 0 < round(max(ranks)) < size, which


def test_random_heat_is_averaged_over_draws(clips):
    """The event's mean rank over five orders: fifths, and not the same a clip."""
    found = faithful(clips)
    ranks = [
        rank_of(clip, found["random", "", "regions"], number)
        for number, clip in enumerate(clips)
    ]
    # Deletion is linear in the rank, as each cell but the event's takes nothing.
    fifths = trust.RANDOM_DRAWS * np.array(ranks)
    np.testing.assert_allclose(fifths, np.round(fifths), atol=0.01)
    assert not np.allclose(ranks, np.round(ranks), atol=0.01)
    assert len({round(rank, 2) for rank in ranks}) > 1
    assert 0.5 < np.mean(ranks) < 4.5


def test_lime_where_it_was_asked_of_every_clip(clips):
    right = np.zeros((8, 12), np.float32)
    right[4:, 8:] = 1
    right[4:, 4:8] = 0.5
    wrong = right[::-1, ::-1].copy()
    wrong[0, 0] += 1  # of pixels the hottest, of cells not the event
    found = faithful(clips[:2], lime=[right, wrong, right])
    for kind in ("heatmap", "regions"):
        row = found["LIME", "", kind]
        assert rank_of(clips[0], row, 0) == pytest.approx(0, abs=1e-3)
        assert rank_of(clips[1], row, 1) > 1
    assert not any(which[0] == "LIME" for which in faithful(clips[:2], lime=[right]))
    assert not any(which[0] == "LIME" for which in faithful(clips[:1]))
    # Heat that has its maximum on one pixel, and the highest mean elsewhere.
    peak = 0.5 * right
    peak[0, 0] = 3
    found = faithful(clips[:1], lime=[peak])
    assert rank_of(clips[0], found["LIME", "", "regions"], 0) == pytest.approx(
        0, abs=1e-3
    )
    assert rank_of(clips[0], found["LIME", "", "heatmap"], 0) > 0.01


def test_heat_that_is_equal_everywhere_is_as_good_as_chance(clips):
    """Whole cells in an order of the clip's own, for both kinds alike."""
    flat = [np.zeros((8, 12), np.float32)] * len(clips)
    found = faithful(clips, lime=flat)
    ranks = [
        rank_of(clip, found["LIME", "", "heatmap"], number)
        for number, clip in enumerate(clips)
    ]
    np.testing.assert_allclose(ranks, np.round(ranks), atol=1e-3)
    assert len({round(rank) for rank in ranks}) > 1
    assert (
        found["LIME", "", "regions"]["deletion"]
        == (found["LIME", "", "heatmap"]["deletion"])
    )
    assert faithful(clips, lime=flat) == found


# With two channels more that have no bearing on either class.
WIDE = np.pad(WEIGHT, [(0, 0), (0, 2)])


class Known(explained.Explained):
    """An `Explained` of which only this is known."""

    def __init__(self, **known):
        for name, value in known.items():
            object.__setattr__(self, name, value)


def explained_of(maps, effects, silenced):
    views = schemes.views(jnp.asarray(effects), keep_cells=True)
    head = classifier_lib.LinearHead(weight=WIDE, bias=np.zeros(2, np.float32))
    classifier = classifier_lib.of_maps(head, ("no", "yes"), stride=(4, 4))
    problem = SimpleNamespace(front_end=FRONT_END, classifier=lambda model: classifier)
    return Known(
        maps=maps,
        effects={"square": views},
        silenced={"square": silenced}.get,
        problem=problem,
        model=None,
    )


def probability(pooled):
    logits = WIDE @ pooled
    return np.exp(logits[1]) / np.exp(logits).sum()


def test_what_hiding_the_region_of_all_channels_takes(rng):
    """CAM's is the event's cell, occlusion's the one that adds most."""
    assert explained.PLANTED == 1
    maps = 0.1 * rng.random((3, 2, 3, 4))
    maps[..., :2] += 4 * PLACES
    maps[..., 0] *= 3  # what both classes share is loudest
    effects = 0.1 * rng.normal(size=(3, 2, 3, 4))
    effects[:, 0, 0, :2] = [5.0, 0.0]  # what decides nothing
    effects[:, 1, 1, 1] = 0.6  # the event is heard here, whatever the map says
    effects[:, *EVENT, :2] = [0, 0.35]
    # The last clip has nothing that speaks for the class.
    maps[2, ..., 1] = 0
    maps, effects = maps.astype(np.float32), effects.astype(np.float32)
    # To silence a region need not take what the region adds.
    pooled = maps.mean(axis=(1, 2), dtype=np.float64)
    taken = 1.5 * effects + 0.05 * rng.normal(size=effects.shape)
    silenced = pooled[:, None] - taken.reshape(3, 6, 4)
    found = trust.masked(
        explained_of(maps, effects, silenced.astype(np.float32)),
        {"some": disentangle.identity(4)},
        "square",
    )
    of = {(row["method"], row["evidence"], row["locate"]): row for row in found}
    assert len(of) == len(found) == 3 + len(variants.WAYS)
    assert {frozenset(row) for row in found} == {
        frozenset(("method", "evidence", "locate", "own", "random", "p"))
    }
    places = {
        ("CAM", "contrastive", "map"): EVENT,
        ("Grad-CAM", "contrastive", "map"): EVENT,
        (trust.CLASS, "contrastive", "occlusion"): (1, 1),
        ("some", "plain", "map"): SHARED,
        ("some", "contrastive", "map"): EVENT,
        ("some", "contrastive", "occlusion"): (1, 1),
    }
    for which, place in places.items():
        for n in range(3):
            lost = {
                cell: probability(pooled[n]) - probability(pooled[n] - taken[n, *cell])
                for cell in np.ndindex(2, 3)
            }
            nowhere = n == 2 and which[1] == "contrastive" and which[0] != trust.CLASS
            if nowhere:
                # CAM's heat is zero, and the only channel that counts says nothing.
                assert of[which]["own"][n] == 0
                continue
            own = lost.pop(place)
            assert of[which]["own"][n] == pytest.approx(own, abs=1e-5)
            others = np.mean(list(lost.values()))
            assert of[which]["random"][n] == pytest.approx(others, abs=1e-5)
        assert 0 < of[which]["p"] <= 1
    ours, theirs = (
        of[name, "contrastive", "occlusion"] for name in ("some", trust.CLASS)
    )
    assert ours["own"][:2] == theirs["own"][:2]
    # 3 clips of 6 cells: all three are picked once in 216 times.
    assert theirs["p"] < 0.02


def consistent(labels, maps, prototypes, transform):
    """Of the raw channels, and of a transform with prototypes of its own."""
    clips = [data.Clip(path=f"{i}.wav", label=label) for i, label in enumerate(labels)]
    used = sorted(set(np.ravel(prototypes)))
    packed = np.searchsorted(used, prototypes)
    one = SimpleNamespace(
        classifier=CLASSIFIER,
        transform=transform,
        raw=bank_of(packed),
        positive=bank_of(packed[::-1].copy()),
        clips=[clips[i] for i in used],
    )
    views = schemes.views(jnp.asarray(maps, jnp.float32), keep_cells=False)
    cached = SimpleNamespace(clips=clips, features=SimpleNamespace(views=views))
    return trust.consistent({"some": one}, cached)


def bank_of(clip):
    return bank.Bank(
        clip=clip,
        activation=jnp.zeros(clip.shape),
        location=jnp.zeros((*clip.shape, 2), jnp.int32),
        purity=jnp.zeros(clip.shape),
        scheme="time",
        sign="positive",
    )


# Six clips are used; counted among these alone, 8 has an odd position, and a class not
# its own.
PROTOTYPES = np.array([[2, 4, 8], [3, 5, 7]])
LEVELS = [f"{k}, {lv}" for k in ("time", "frequency") for lv in trust.CHANCE]


def test_each_method_has_the_levels_of_its_own_channels(rng):
    """Channel 1 is one pattern in every clip; U swaps it with one of noise."""
    labels = [0, 1] * 6
    maps = rng.normal(size=(12, 5, 6, 2))
    maps[..., 1] = rng.normal(size=(1, 5, 6))
    swap = jnp.array([[0.0, 1.0], [1.0, 0.0]])
    swapped = disentangle.Transform(matrix=swap, inverse=swap, centre=jnp.zeros(2))
    found = consistent(labels, maps, PROTOTYPES, swapped)
    assert [row["method"] for row in found] == [variants.RAW, "some"]
    assert set(found[0]) == {
        "method", "chance", "same_class", "time", "frequency", *LEVELS,
    }  # fmt: skip
    for row, steady in zip(found, (1, 0), strict=True):
        assert row["same_class"] == [1, 1]
        assert row["chance"] == pytest.approx(30 / 66, abs=1e-4)
        for kind in ("time", "frequency", *LEVELS):
            assert row[kind][steady] == 1, kind
            assert abs(row[kind][1 - steady]) < 0.95, kind


def test_what_clips_of_a_class_have_in_common_is_no_merit_of_the_channel(rng):
    """Clips of a class are one pattern: by class as alike as the prototypes are."""
    labels = [0, 1] * 6
    maps = rng.normal(size=(2, 5, 6, 2))[labels]
    for row in consistent(labels, maps, PROTOTYPES, disentangle.identity(2)):
        for kind in ("time", "frequency"):
            assert row[kind] == row[f"{kind}, same class"] == [1, 1]
            assert max(row[f"{kind}, any clips"]) < 0.99
    # Where all clips are of one class the two are the same draws.
    maps = rng.normal(size=(12, 5, 6, 2))
    for row in consistent([0] * 12, maps, PROTOTYPES, disentangle.identity(2)):
        assert row["chance"] == 1
        assert row["same_class"] == [1, 1]
        for kind in ("time", "frequency"):
            assert row[f"{kind}, any clips"] == row[f"{kind}, same class"]
            assert row[f"{kind}, any clips"] != row[kind]


def test_the_level_of_any_clips_by_hand(rng):
    """Over many channels alike, the mean over all pairs of different clips."""
    maps = np.repeat(rng.normal(size=(12, 5, 6, 1)), 400, axis=-1)
    clips = [data.Clip(path=f"{i}.wav", label=i % 2) for i in range(12)]
    prototypes = np.tile([0, 2, 4], (400, 1))
    classifier = SimpleNamespace(head=SimpleNamespace(weight=np.zeros((2, 400))))
    one = SimpleNamespace(
        classifier=classifier,
        transform=disentangle.identity(400),
        raw=bank_of(prototypes),
        positive=bank_of(prototypes),
        clips=clips,
    )
    views = schemes.views(jnp.asarray(maps, jnp.float32), keep_cells=False)
    cached = SimpleNamespace(clips=clips, features=SimpleNamespace(views=views))
    row = trust.consistent({"some": one}, cached)[0]
    bands = maps[..., 0].mean(axis=2)
    for level, among in (("any clips", range(12)), ("same class", range(0, 12, 2))):
        pairs = itertools.combinations(among, 2)
        alike = np.mean([np.corrcoef(bands[i], bands[j])[0, 1] for i, j in pairs])
        assert np.mean(row[f"frequency, {level}"]) == pytest.approx(alike, abs=0.06)
