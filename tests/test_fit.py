"""Fitting from feature maps of any framework, and what a fit says of itself."""

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import soundfile
import test_cache

from apex_jax import (
    cache,
    classifier,
    data,
    disentangle,
    explain,
    explanation,
    features,
    fit,
    listen,
    optimize,
    schemes,
)
from apex_jax.commands import options as commands
from experiments import options as experiments

N, F, T, C, K = 9, 3, 4, 6, 2
CONFIG = optimize.Config(
    epochs=2, prototypes_start=4, prototypes_end=3, batch_size=16, learning_rate=0.01
)
NAMES = ("real", "fake")


@pytest.fixture
def maps(rng):
    return rng.normal(size=(N, F, T, C)).astype(np.float32)


@pytest.fixture
def head(rng):
    weight, bias = rng.normal(size=(K, C)), rng.normal(size=K)
    return classifier.LinearHead(
        weight=jnp.asarray(weight, jnp.float32), bias=jnp.asarray(bias, jnp.float32)
    )


@pytest.fixture
def logits(maps, head):
    """By hand, as the other framework would have them."""
    weight, bias = np.asarray(head.weight), np.asarray(head.bias)
    return np.stack([weight @ m.mean(axis=(0, 1)) + bias for m in maps])


def fitted(key, maps, logits, head, scheme="time", **options):
    options = {"config": CONFIG, "mesh": test_cache.mesh_of(1), **options}
    return fit.from_maps(key, maps, logits, head, scheme, **options)


@pytest.mark.parametrize("scheme", schemes.SCHEMES)
def test_an_explanation_of_a_map_by_hand(scheme, key, maps, logits, head):
    made = fitted(key, maps, logits, head, scheme, class_names=NAMES)
    explainer = made.explainer
    found = explainer.from_map(
        maps[4], logits=logits[4], num_channels=3, evidence="plain"
    )
    assert found.class_names == NAMES
    assert found.predicted == found.target == np.argmax(logits[4])
    np.testing.assert_allclose(found.logits, logits[4], rtol=1e-6)
    assert found.spectrogram is None
    assert found.front_end is None

    matrix, inverse = (
        np.asarray(a, np.float64)
        for a in (explainer.transform.matrix, explainer.transform.inverse)
    )
    weight = np.asarray(head.weight, np.float64)[found.target] @ inverse
    zhat = maps @ matrix.T
    share = weight * np.maximum(zhat[4].mean(axis=(0, 1)), 0)
    np.testing.assert_allclose(found.contributions, share, atol=1e-4)
    best = np.argsort(-share, kind="stable")[:3]
    assert [channel.index for channel in found.channels] == best.tolist()
    for channel in found.channels:
        one = zhat[..., channel.index]
        assert channel.location == location_of(scheme, one[4])
        # Without a spectrogram a pixel is a cell.
        heat = weight[channel.index] * one[4] + np.asarray(head.bias)[found.target] / C
        heat = np.maximum(heat, 0)
        np.testing.assert_allclose(channel.heatmap, heat / (heat.max() or 1), atol=1e-4)
        sums = one.sum(axis=(1, 2))
        strongest = np.argsort(-sums)[:3]
        assert [p.clip.id for p in channel.prototypes] == [
            made.explainer.clips[n].id for n in strongest
        ]
        for prototype, n in zip(channel.prototypes, strongest, strict=True):
            assert prototype.location == location_of(scheme, one[n])
            assert prototype.class_name == NAMES[np.argmax(logits[n])]
            assert prototype.spectrogram is None
            assert prototype.heatmap.shape == (F, T)
            assert prototype.areas[0].start_s is None


def location_of(scheme, one):
    row, column = one.mean(axis=1).argmax(), one.mean(axis=0).argmax()
    if scheme == "square":
        row, column = np.unravel_index(one.argmax(), one.shape)
    return {
        "square": (row, column),
        "time": (-1, column),
        "frequency": (row, -1),
        "time_frequency": (row, column),
    }[scheme]


@pytest.mark.parametrize("scheme", ["time", "frequency", "time_frequency"])
def test_averages_serve_the_marginal_schemes(scheme, key, maps, logits, head):
    """The same transform, channels, regions; the heatmap is that of the averages."""
    views = schemes.Views(rows=maps.mean(axis=2), columns=maps.mean(axis=1))
    whole, averages = (
        fitted(key, m, logits, head, scheme).explainer for m in (maps, views)
    )
    np.testing.assert_allclose(
        averages.transform.matrix, whole.transform.matrix, atol=1e-4
    )
    one = schemes.Views(rows=views.rows[2], columns=views.columns[2])
    found = averages.from_map(one, evidence="plain")
    wanted = whole.from_map(maps[2], evidence="plain")
    for mine, theirs in zip(found.channels, wanted.channels, strict=True):
        assert mine.index == theirs.index
        assert mine.areas == theirs.areas
    k = found.channels[0].index
    zhat = (maps[2] @ np.asarray(averages.transform.matrix).T)[..., k]
    sums = zhat.mean(axis=1)[:, None] + zhat.mean(axis=0)[None, :] - zhat.mean()
    weight = np.asarray(averages.head.weight)[found.target, k]
    heat = np.maximum(weight * sums + np.asarray(head.bias)[found.target] / C, 0)
    np.testing.assert_allclose(
        found.channels[0].heatmap, heat / (heat.max() or 1), atol=1e-3
    )


def test_averages_do_not_serve_square(key, maps, logits, head):
    views = schemes.Views(rows=maps.mean(axis=2), columns=maps.mean(axis=1))
    with pytest.raises(ValueError, match="square scheme looks at single cells"):
        fitted(key, views, logits, head, "square")


def test_logits_of_another_head(key, maps, logits, head):
    """Found before the optimisation, however long that would be."""
    forever = dataclasses.replace(CONFIG, epochs=10**9)
    with pytest.raises(disentangle.InvarianceError, match="not folded"):
        fitted(key, maps, logits + np.float32([0, 1]), head, config=forever)
    explainer = fitted(key, maps, logits, head).explainer
    with pytest.raises(disentangle.InvarianceError, match="other logits than"):
        explainer.from_map(maps[0], logits=logits[0] + 1)


def test_an_explainer_names_what_is_wrong_with_u(key, maps, logits, head, rng):
    """Of a clip, when it is explained: whoever made the explainer."""
    explainer = fitted(key, maps, logits, head).explainer
    chan = maps.shape[-1]
    rounded = jax.tree.map(
        lambda a: a.astype(jnp.bfloat16).astype(jnp.float32), explainer.transform
    )
    wild = disentangle.from_generator(
        jnp.asarray(8 * rng.normal(size=(chan, chan)), jnp.float32)
    )
    nothing = dataclasses.replace(
        explainer.transform, matrix=jnp.full((chan, chan), jnp.nan)
    )
    for transform, said in (
        (rounded, "U and its inverse were rounded to bfloat16"),
        (wild, r"U is too ill-conditioned for this clip .*lower learning rate"),
        (nothing, "NaN or infinity stands in U"),
    ):
        harmed = dataclasses.replace(
            explainer, transform=transform, provenance=explanation.Provenance()
        )
        with pytest.raises(disentangle.InvarianceError, match=said):
            harmed.from_map(100 * maps[0])


def test_maps_that_do_not_fit(key, maps, logits, head):
    explainer = fitted(key, maps, logits, head).explainer
    with pytest.raises(ValueError, match=r"must be \[F, T, 6\]"):
        explainer.from_map(maps[0][..., :5])
    with pytest.raises(ValueError, match="no front end"):
        explainer("clip.wav")
    with pytest.raises(ValueError, match="clips must be one a map, 9; got 1"):
        fitted(key, maps, logits, head, clips=[data.Clip(path="a", label=0)])
    with pytest.raises(ValueError, match="each of 2 classes; got 3"):
        fitted(key, maps, logits, head, class_names=("a", "b", "c"))


def test_what_was_given_is_neither_kept_nor_changed(key, maps, logits, head):
    pictures = np.zeros((N, 12, 8), np.float32)
    explainer = fitted(
        key, maps, logits, head, spectrograms=pictures, stride=(4, 2)
    ).explainer
    picture, own = pictures[0].copy(), logits[0].copy()
    found = explainer.from_map(maps[0], logits=own, spectrogram=picture)
    picture[:], own[:] = 7, 99
    assert found.spectrogram.max() == 0
    assert found.logits.max() < 99
    with pytest.raises(ValueError, match="read-only"):
        found.spectrogram[0] = 1
    with pytest.raises(ValueError, match=r"must be \[12, 8\].*got \[3, 5\]"):
        explainer.from_map(maps[0], spectrogram=np.zeros((3, 5), np.float32))
    with pytest.raises(ValueError, match="spectrogram must be finite"):
        explainer.from_map(maps[0], spectrogram=np.full((12, 8), np.nan, np.float32))


def test_several_maps_and_several_classes(key, maps, logits, head):
    made = fitted(key, maps, logits, head, activation="sigmoid").explainer
    looks = [made.look_at_map(one) for one in maps[:3]]
    for n, found in enumerate(made(looks, num_channels=1)):
        np.testing.assert_allclose(found.logits, logits[n], rtol=1e-4, atol=1e-4)
    for look, own in zip(looks, logits, strict=False):
        order = np.argsort(-own, kind="stable")
        wanted = [c for c in order if own[c] > 0] or [order[0]]
        assert [one.target for one in made.positives(look)] == wanted


def test_saved_without_a_network(key, maps, logits, head, tmp_path):
    """The run holds the maps of the clips that banks point to, and no others."""
    pictures = np.arange(N * 12 * 8, dtype=np.float32).reshape(N, 12, 8)
    made = fitted(key, maps, logits, head, spectrograms=pictures, stride=(4, 2))
    explain.save(tmp_path / "run", made.explainer)
    assert not (tmp_path / "run" / "classifier").exists()
    back = explain.load(tmp_path / "run")
    assert back.provenance == made.explainer.provenance
    assert len(back.clips) <= N
    for one in (made.explainer, back):
        found = one.from_map(maps[3], spectrogram=pictures[3], num_negatives=2)
        first = found.channels[0]
        assert first.areas[0].box.rows == (0.0, 12.0)
        assert first.heatmap.shape == (12, 8)
        for prototype in (*first.prototypes, *first.negatives):
            # A name is no file: it stays as it is.
            number = int(str(prototype.clip.path).removeprefix("clip "))
            np.testing.assert_array_equal(prototype.spectrogram, pictures[number])


def test_files_give_sound_and_picture(key, maps, logits, head, tmp_path):
    """With a front end, prototypes are drawn on their files' spectrograms."""
    clips = test_cache.write_clips(tmp_path, num_clips=N, num_classes=2)
    front_end = test_cache.FRONT_END
    made = fitted(key, maps, logits, head, clips=clips, front_end=front_end)
    found = made.explainer.from_map(maps[0], source=str(clips[0].path))
    # The query's too, and its sound can be heard.
    assert found.spectrogram.shape == front_end.shape
    assert found.sound_s == pytest.approx(0.4)
    assert len(listen.clip(found).samples) == 0.4 * 8000
    prototype = found.channels[0].prototypes[0]
    assert prototype.spectrogram.shape == front_end.shape
    assert prototype.heatmap.shape == front_end.shape
    assert prototype.areas[0].end_s <= front_end.clip_s
    assert soundfile.info(prototype.clip.path).samplerate == 8000


def test_a_fit_says_how_it_was_made(key, maps, logits, head):
    cached = cache.Cached(
        features=features.from_maps(maps, logits),
        clips=tuple(data.Clip(path=f"{n}.wav", label=0) for n in range(N)),
    )
    made = fit.explainer(
        key,
        classifier.of_maps(head, NAMES),
        cached,
        None,
        "time_frequency",
        config=CONFIG,
        settings=[("data", "made up")],
        mesh=test_cache.mesh_of(1),
    )
    provenance = made.explainer.provenance
    assert provenance.audit == made.audit
    assert provenance.purity == (
        made.history.round_purity[0],
        made.history.round_purity[-1],
    )
    settings = dict(provenance.settings)
    assert settings["data"] == "made up"
    assert settings["scheme"] == "time-frequency"
    assert settings["training clips"] == "9"
    assert settings["channels"] == "6"
    assert settings["feature map"] == "3 x 4 cells"
    assert settings["prototypes a channel"] == "4 falling to 3"
    assert {"python", "jax"} <= set(dict(provenance.versions))


def test_what_is_recommended_is_taken_where_nothing_is_asked(key, maps, logits, head):
    """By the library and by `apex-jax fit`; the experiments take the paper's."""
    made, same, papers = (
        fitted(key, maps, logits, head, config=config).explainer
        for config in (None, optimize.Config.recommended(), optimize.Config())
    )
    np.testing.assert_array_equal(made.transform.matrix, same.transform.matrix)
    assert not np.allclose(made.transform.matrix, papers.transform.matrix, atol=1e-3)
    told, of_papers = (dict(e.provenance.settings) for e in (made, papers))
    assert told["epochs"] == "120"
    assert told["prototypes a channel"] == "5"
    assert told["concentration"] == "0.03"
    assert of_papers["prototypes a channel"] == "100 falling to 5"
    assert "concentration" not in of_papers

    asked = commands.Fit(weights=Path("net"), out=Path("out"))
    assert asked.optimise == optimize.Config.recommended()
    assert experiments.Common().optimise == optimize.Config()


def test_the_raw_bank_is_that_of_the_networks_own_channels(key, maps, logits, head):
    made = fitted(key, maps, logits, head).explainer
    sums = maps.sum(axis=(1, 2))
    np.testing.assert_array_equal(made.raw.clip, np.argsort(-sums, axis=0)[:3].T)
    for k in range(C):
        n = int(made.raw.clip[k, 0])
        column = maps[n].mean(axis=0)
        best = column[column[:, k].argmax()]
        assert float(made.raw.purity[k, 0]) == pytest.approx(
            best[k] / np.linalg.norm(best), abs=1e-5
        )
