"""Effects region by region in NumPy; and where the map answers away from the sound."""

import dataclasses

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
import test_attribution
import test_cache
import test_masking

from apex_jax import (
    audio,
    bank,
    classifier,
    disentangle,
    explain,
    gallery,
    look,
    masking,
    occlusion,
    schemes,
)
from apex_jax import features as features_lib

FRONT_END, CHAN = test_cache.FRONT_END, test_cache.CHAN
F, T, CELL = 3, 4, 8
GRID = schemes.Grid.of((F, T), FRONT_END.shape, (CELL, CELL))
mask_by_hand, attenuated = test_masking.mask_by_hand, test_masking.attenuated


@pytest.fixture(scope="module")
def network():
    return test_cache.classifier_of()


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    return test_cache.write_clips(tmp_path_factory.mktemp("wavs"))


@jax.jit
def pooled_of(model, spectrogram):
    return model(spectrogram[None])[0][0].mean(axis=(0, 1))


def usual_by_hand(spectrogram):
    """The smaller of the row's median over time and the frame's over frequency."""
    rows = [np.median(row) for row in spectrogram]
    frames = [np.median(frame) for frame in spectrogram.T]
    return np.array([[min(row, frame) for frame in frames] for row in rows])


def effects_by_hand(network, spectrogram, scheme):
    """`[F, T, chan]`: each region taken away, and each all there is."""
    usual = usual_by_hand(spectrogram)
    silence = attenuated(spectrogram, np.ones_like(spectrogram))

    def pooled(kept, instead):
        left = kept * spectrogram + (1 - kept) * instead
        return np.asarray(pooled_of(network, jnp.asarray(left, "f4")))

    def effect(part, row, column):
        mask = mask_by_hand(part, row, column, hard=True)
        lost = pooled(np.ones_like(mask), usual) - pooled(1 - mask, usual)
        gained = pooled(mask, silence) - pooled(np.zeros_like(mask), silence)
        return (lost + gained) / 2

    found = np.zeros((F, T, CHAN))
    for f, t in np.ndindex(F, T):
        match scheme:
            case "square":
                found[f, t] = effect("square", f, t)
            case "time":
                found[f, t] = effect("time", schemes.ALL, t)
            case "frequency":
                found[f, t] = effect("frequency", f, schemes.ALL)
            case _:
                found[f, t] = effect("time", schemes.ALL, t)
                found[f, t] += effect("frequency", f, schemes.ALL)
    return found


@pytest.mark.parametrize("scheme", schemes.SCHEMES)
def test_effects_by_hand(scheme, network, clips):
    """Of several clips compiled; of one clip in chunks that do not come out even."""
    spectrograms = np.stack([test_cache.map_of(network, c)[0] for c in clips[:2]])
    pooled = jnp.stack([pooled_of(network, s) for s in spectrograms])
    batch = jax.jit(occlusion.effects, static_argnames=("front_end", "grid", "scheme"))(
        network,
        front_end=FRONT_END,
        spectrogram=jnp.asarray(spectrograms),
        pooled=pooled,
        grid=GRID,
        scheme=scheme,
    )
    for n, spectrogram in enumerate(spectrograms):
        wanted = effects_by_hand(network, spectrogram, scheme)
        one = occlusion.effects_of_clip(
            network,
            FRONT_END,
            spectrogram,
            pooled[n],
            grid=GRID,
            scheme=scheme,
            chunk_size=5,
        )
        for found in (one, jax.tree.map(lambda a, n=n: a[n], batch)):
            np.testing.assert_allclose(found.cells, wanted, atol=2e-5)
            np.testing.assert_allclose(found.rows, wanted.mean(axis=1), atol=2e-5)
            np.testing.assert_allclose(found.columns, wanted.mean(axis=0), atol=2e-5)


def displaced(params, spectrogram):
    """Channel 0 is how loud a cell is, and says so one row and column further on."""
    loud = spectrogram.reshape(-1, F, CELL, T, CELL).mean(axis=(2, 4)) + 2.0
    loud = jnp.roll(loud, (1, 1), axis=(1, 2))
    feature_map = jnp.stack([loud, jnp.full_like(loud, 0.01)], axis=-1)
    return feature_map, feature_map.mean(axis=(1, 2)) @ params["weight"].T


WEIGHT = jnp.array([[1.0, 0.0], [0.0, 1.0]])
DISPLACED = classifier.Classifier(
    params={"weight": WEIGHT},
    head=classifier.LinearHead(weight=WEIGHT, bias=jnp.zeros(2)),
    forward_fn=displaced,
    class_names=("loud", "quiet"),
)


@pytest.mark.parametrize("scheme", schemes.SCHEMES)
@pytest.mark.parametrize("place", [(2, 1), (0, 3)])
def test_the_sound_is_found_where_the_map_answers_elsewhere(place, scheme):
    (row, column), spectrogram = place, np.full(FRONT_END.shape, -2.0, np.float32)
    spectrogram[CELL * row :, CELL * column :][:CELL, :CELL] = 2.0  # 80 dB above
    explainer = test_attribution.explainer_of(scheme, DISPLACED)
    seen = explainer.look(spectrogram)

    def wanted(row, column):
        return (
            schemes.ALL if scheme == "time" else row,
            schemes.ALL if scheme == "frequency" else column,
        )

    effects = explainer.occluded(seen).effects[scheme]
    found = schemes.locate(scheme, effects, jnp.array([1.0, 0.0]))
    assert tuple(found.tolist()) == wanted(row, column)
    missed = schemes.locate(scheme, seen.views, jnp.array([1.0, 0.0]))
    assert tuple(missed.tolist()) == wanted((row + 1) % F, (column + 1) % T)
    for locate, where in (("occlusion", (row, column)), ("map", tuple(missed))):
        hidden = masking.hide(
            jax.random.key(0), explainer, seen, 0, scheme, locate=locate
        )
        np.testing.assert_allclose(
            hidden.mask, mask_by_hand(scheme, *wanted(*map(int, where))), atol=1e-5
        )


def effects_under(forward, spectrogram, scheme):
    """Of a network of one channel, which is the same in all cells: `[F, T]`."""

    def everywhere(params, spectrogram):
        cells = spectrogram.reshape(-1, F, CELL, T, CELL).mean(axis=(2, 4))
        feature_map = jnp.broadcast_to(
            forward(cells)[:, None, None, None], (len(cells), F, T, 1)
        )
        return feature_map, feature_map.mean(axis=(1, 2))

    network = classifier.Classifier(
        params=None,
        head=classifier.LinearHead(weight=jnp.ones((1, 1)), bias=jnp.zeros(1)),
        forward_fn=everywhere,
        class_names=("it",),
    )
    return occlusion.effects_of_clip(
        network,
        FRONT_END,
        spectrogram,
        pooled_of(network, jnp.asarray(spectrogram)),
        grid=GRID,
        scheme=scheme,
    ).cells[..., 0]


SILENCE = float(audio.silence_level(FRONT_END, np.full((1, 1, 1), 2.0, "f4"))[0])
RAIN = 1.0
EVENT = 2.0  # also the loudest, which silence is counted from


def over_rain(*cells):
    heard = np.full(FRONT_END.shape, RAIN, np.float32)
    for row, column in cells:
        heard[CELL * row :, CELL * column :][:CELL, :CELL] = EVENT
    return heard


def region_of(scheme, row, column):
    return (
        slice(None) if scheme == "time" else row,
        slice(None) if scheme == "frequency" else column,
    )


@pytest.mark.parametrize("scheme", ["square", "time", "frequency"])
def test_a_hole_in_rain_is_no_news(scheme):
    """To a network that hears whatever differs from rain, and silence most of all."""
    found = effects_under(
        lambda cells: jnp.abs(cells - RAIN).sum(axis=(1, 2)),
        over_rain((1, 2)),
        scheme,
    )
    # Rain in the place of silence makes it hear less, the event less so.
    size = {"square": 1, "time": F, "frequency": T}[scheme]
    wanted = np.full((F, T), size * (SILENCE - RAIN) / 2)
    wanted[region_of(scheme, 1, 2)] += (1 + 1) / 2
    np.testing.assert_allclose(found, wanted, rtol=1e-5)


@pytest.mark.parametrize("scheme", ["square", "time"])
def test_what_happens_twice_is_found_twice(scheme):
    """Neither is missed while the other is there, but each alone is enough."""
    found = effects_under(
        lambda cells: jnp.minimum(jnp.maximum(cells - RAIN, 0).sum(axis=(1, 2)), 1.0),
        over_rain((0, 0), (1, 2)),
        scheme,
    )
    wanted = np.zeros((F, T))
    wanted[region_of(scheme, 0, 0)] = wanted[region_of(scheme, 1, 2)] = 0.5
    np.testing.assert_allclose(found, wanted, atol=1e-5)


@pytest.mark.parametrize(
    ("scheme", "cells"),
    [
        ("time", [(row, column) for row in range(F) for column in range(3)]),
        ("square", [(1, column) for column in range(T)]),
        ("frequency", [(1, column) for column in range(T)]),
    ],
)
def test_what_goes_on_for_most_of_a_clip_is_found(scheme, cells):
    """Three moments of four, or a band all the time, which is its own usual sound."""
    found = effects_under(
        lambda cells: jnp.maximum(cells - RAIN, 0).sum(axis=(1, 2)),
        over_rain(*cells),
        scheme,
    )
    there = np.zeros((F, T), bool)
    for cell in cells:
        there[region_of(scheme, *cell)] = True
    assert (found[there] > 0.4).all()
    assert (found[~there] < 1e-5).all()


@pytest.fixture(scope="module")
def explainers(network, clips):
    """Of each scheme one with banks of real clips, under an affine U."""
    mesh, rng = test_cache.mesh_of(1), np.random.default_rng(4)
    shown = [test_cache.map_of(network, clip) for clip in clips]
    features = features_lib.from_maps(
        np.stack([one[1] for one in shown]), np.stack([one[2] for one in shown])
    ).to_mesh(mesh)
    generator = jnp.asarray(rng.normal(0, 0.3, (CHAN, CHAN)), jnp.float32)
    transform = dataclasses.replace(
        disentangle.from_generator(generator),
        centre=jnp.asarray(rng.normal(size=CHAN), jnp.float32),
    )
    made = {}
    for scheme in schemes.SCHEMES:
        banks = {
            sign: bank.build(
                transform,
                features,
                scheme=scheme,
                num_prototypes=3,
                sign=sign,
                mesh=mesh,
            )
            for sign in ("positive", "negative")
        }
        made[scheme] = explain.Explainer(
            classifier=network,
            transform=transform,
            clips=clips,
            front_end=FRONT_END,
            chunk_size=3,
            **banks,
        )
    return made


def place_by_hand(scheme, along):
    row, column = along.mean(axis=1).argmax(), along.mean(axis=0).argmax()
    if scheme == "square":
        row, column = np.unravel_index(along.argmax(), (F, T))
    return (
        schemes.ALL if scheme == "time" else int(row),
        schemes.ALL if scheme == "frequency" else int(column),
    )


@pytest.mark.parametrize("evidence", ["plain", "contrastive"])
@pytest.mark.parametrize("scheme", schemes.SCHEMES)
def test_an_explanation_by_hand(scheme, evidence, explainers, network, clips):
    """Region and heat of the channels, in the clip and in the prototypes' own."""
    explainer = explainers[scheme]
    options = {"num_channels": 2, "num_prototypes": 3, "evidence": evidence}
    seen = explainer.look(clips[1].path, offset_s=clips[1].offset_s)
    found = explainer.explain(seen, locate="occlusion", **options)
    by_map = explainer.explain(seen, locate="map", **options)
    assert (found.locate, by_map.locate) == ("occlusion", "map")
    np.testing.assert_array_equal(found.contributions, by_map.contributions)
    matrix = np.asarray(explainer.transform.matrix, np.float64)
    weight = np.asarray(network.head.weight) @ np.linalg.inv(matrix)
    if evidence == "contrastive":
        weight = weight - (weight.sum(axis=0) - weight) / 2  # of three classes
    # All channels together, without U.
    own = np.asarray(network.head.weight)
    if evidence == "contrastive":
        own = own - (own.sum(axis=0) - own) / 2
    effects = effects_by_hand(network, np.asarray(seen.spectrogram), scheme)
    wanted = place_by_hand(scheme, effects @ own[found.target])
    assert found.class_location == wanted
    assert [a.box for a in found.class_areas] == list(GRID.boxes(scheme, wanted))
    first = found.channels[0]
    assert found.agrees == (first.location == wanted if first.areas else None)
    for channel, other in zip(found.channels, by_map.channels, strict=True):
        assert channel.index == other.index
        shown = [(channel, clips[1]), *((p, p.clip) for p in channel.prototypes)]
        for part, clip in shown:
            spectrogram = test_cache.map_of(network, clip)[0]
            effects = effects_by_hand(network, spectrogram, scheme)
            along = effects @ matrix[channel.index]
            wanted = place_by_hand(scheme, along)
            assert part.location == wanted
            boxes = list(GRID.boxes(scheme, wanted)) if along.max() > 0 else []
            assert [area.box for area in part.areas] == boxes
            speaks = np.maximum(weight[found.target, channel.index] * along, 0)
            heat = GRID.upsample(jnp.asarray(speaks / max(speaks.max(), 1e-30), "f4"))
            np.testing.assert_allclose(part.heatmap, heat, atol=2e-3)
        # Which clips, and how much they excite the channel, is as it was.
        assert [p.clip for p in channel.prototypes] == [
            p.clip for p in other.prototypes
        ]


def test_what_is_done_where_nothing_is_asked(explainers, clips):
    """Contrastive and by occlusion where that can be, and as published where not."""
    explainer = explainers["time"]
    found = explainer(clips[0].path, num_prototypes=1)
    assert (found.evidence, found.locate) == ("contrastive", "occlusion")
    found = explainer.from_map(np.ones((F, T, CHAN), np.float32), num_prototypes=1)
    assert (found.evidence, found.locate) == ("contrastive", "map")
    alone = dataclasses.replace(explainer.classifier, activation="sigmoid")
    found = dataclasses.replace(explainer, classifier=alone)(clips[0].path)
    assert (found.evidence, found.locate) == ("plain", "occlusion")


@pytest.mark.parametrize("scheme", schemes.SCHEMES)
def test_in_silence_there_is_nothing_to_find(scheme, explainers, network):
    """No effect but rounding, in the clip and compiled; and so no region."""
    explainer = explainers[scheme]
    level = audio.silence_level(FRONT_END, np.full((1, *FRONT_END.shape), -5.0, "f4"))
    nothing = np.full(FRONT_END.shape, float(level[0]), np.float32)
    seen = explainer.look(nothing)
    found = explainer.explain(seen, num_prototypes=3)
    assert all(channel.areas == () for channel in found.channels)
    assert not any(channel.heatmap.any() for channel in found.channels)
    assert found.class_areas == ()
    assert found.agrees is None
    # Prototypes are sounds: each has a region where some part of it adds something.
    matrix = np.asarray(explainer.transform.matrix, np.float64)
    for channel in found.channels:
        for prototype in channel.prototypes:
            spectrogram = test_cache.map_of(network, prototype.clip)[0]
            effects = effects_by_hand(network, spectrogram, scheme)
            somewhere = (effects @ matrix[channel.index]).max() > 0
            assert bool(prototype.areas) == somewhere
    by_map = explainer.explain(seen, locate="map", num_prototypes=1)
    assert all(channel.areas for channel in by_map.channels)
    several = occlusion.effects(
        network,
        FRONT_END,
        jnp.asarray(nothing[None]),
        pooled_of(network, jnp.asarray(nothing))[None],
        grid=GRID,
        scheme=scheme,
    )
    assert not np.asarray(several.cells).any()


def test_each_class_of_a_clip_from_one_set_of_passes(explainers, clips, monkeypatch):
    # A new one, which has seen no clip yet.
    explainer, calls = dataclasses.replace(explainers["frequency"]), []
    of_clip = occlusion.effects_of_clip

    def counted(*args, **options):
        calls.append(options["scheme"])
        return of_clip(*args, **options)

    monkeypatch.setattr(occlusion, "effects_of_clip", counted)
    seen = explainer.look(clips[2].path)
    once = explainer.occluded(seen)
    assert calls == ["frequency"]
    assert explainer.occluded(once) is once
    shown = set()
    for target in range(3):
        found = explainer.explain(once, target=target, num_prototypes=2)
        shown |= {p.clip.id for c in found.channels for p in c.prototypes}
    # The prototypes' clips too are occluded once each.
    assert len(calls) == 1 + len(shown)
    # A clip with several classes is occluded once for all of them.
    sigmoid = dataclasses.replace(
        explainer,
        classifier=dataclasses.replace(explainer.classifier, activation="sigmoid"),
    )
    seen = dataclasses.replace(seen, logits=np.abs(seen.logits) + 1)
    shifted = dataclasses.replace(
        sigmoid.classifier.head,
        bias=sigmoid.classifier.head.bias + seen.logits - once.logits,
    )
    several = dataclasses.replace(
        sigmoid, classifier=dataclasses.replace(sigmoid.classifier, head=shifted)
    )
    calls.clear()
    found = several.positives(seen, num_prototypes=1)
    assert len(found) == 3
    shown = {p.clip.id for one in found for c in one.channels for p in c.prototypes}
    assert len(calls) == 1 + len(shown)


def test_a_map_without_its_sound_is_refused(explainers, clips):
    explainer = explainers["frequency"]
    with pytest.raises((ValueError, jaxtyping.TypeCheckError), match="locate"):
        explainer(clips[0].path, locate="gradient")
    feature_map = np.ones((F, T, CHAN), np.float32)
    for spectrogram in (None, np.zeros(FRONT_END.shape, np.float32)):
        given = explainer.look_at_map(feature_map, spectrogram=spectrogram)
        assert explainer.explain(given, num_prototypes=1).locate == "map"
        with pytest.raises(ValueError, match="known by its feature map"):
            explainer.explain(given, locate="occlusion")
    seen = explainer.look(clips[0].path)
    stacked = jax.tree.map(lambda a: np.stack([a] * len(clips)), seen.views)
    kept = gallery.Kept(views=stacked)
    elsewhere = dataclasses.replace(explainer, kept=kept)
    with pytest.raises(ValueError, match="the training clips' maps were kept"):
        elsewhere.prototypes([0], 0, explainer.positive, 1, locate="occlusion")


@pytest.mark.parametrize("scheme", schemes.SCHEMES)
def test_a_study_hides_what_an_explanation_shows(scheme, explainers, network, clips):
    options = {"evidence": "contrastive", "locate": "occlusion"}
    found = test_masking.study(
        network,
        explainers[scheme].transform,
        clips[:5],
        scheme=scheme,
        draws=1,
        **options,
    )
    for n, clip in enumerate(clips[:5]):
        seen = explainers[scheme].look(clip.path, offset_s=clip.offset_s)
        shown = explainers[scheme].explain(
            seen, num_channels=1, num_prototypes=1, **options
        )
        assert tuple(found.location[n].tolist()) == shown.channels[0].location
        row, column = shown.channels[0].location
        left = attenuated(seen.spectrogram, mask_by_hand(scheme, row, column))
        _, logits = look.run(network, [left], 1)
        np.testing.assert_allclose(found.apex[n], logits[0], rtol=1e-3, atol=1e-3)


def test_silence_is_what_the_front_end_says():
    spectrogram = np.full((1, *FRONT_END.shape), 1.0, np.float32)
    left = audio.attenuate(
        FRONT_END, jnp.asarray(spectrogram), jnp.ones_like(spectrogram)
    )
    np.testing.assert_allclose(left, audio.silence_level(FRONT_END, spectrogram)[0])
