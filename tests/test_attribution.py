"""Grad-CAM against CAM in closed form; both baselines through the explanation type."""

import dataclasses

import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
import soundfile
import test_cache
import test_superpixels

from apex_jax import attribution, bank, data, disentangle, explain, explanation, schemes
from apex_jax import classifier as classifier_lib

F, T, CELL = 3, 4, 8
CHAN, CLASSES = 5, 2
FRONT_END = test_cache.FRONT_END  # 24 rows x 32 frames
SHAPE = FRONT_END.shape


def head_of(rng):
    return classifier_lib.LinearHead(
        weight=jnp.asarray(rng.normal(size=(CLASSES, CHAN)), jnp.float32),
        bias=jnp.asarray(rng.normal(size=CLASSES), jnp.float32),
    )


# --- Grad-CAM


def test_grad_cam_is_cam(rng):
    """`relu(W[c] . Z) / (F T)` in each cell: evidence in units of the logit."""
    head, feature_map = head_of(rng), rng.normal(size=(F, T, CHAN)).astype("f4")
    weight = np.asarray(head.weight, np.float64)
    for target in range(CLASSES):
        cells, channels = attribution.grad_cam_cells(
            head, jnp.asarray(feature_map), jnp.int32(target)
        )
        for f, t in np.ndindex(F, T):
            cam = sum(weight[target, k] * feature_map[f, t, k] for k in range(CHAN))
            assert float(cells[f, t]) == pytest.approx(max(cam, 0) / (F * T), abs=1e-6)
        mean = feature_map.mean(axis=(0, 1))
        np.testing.assert_allclose(channels, weight[target] * mean, atol=1e-6)
        logit = float(head(jnp.asarray(mean))[target])
        assert float(sum(channels) + head.bias[target]) == pytest.approx(
            logit, abs=1e-5
        )


def test_the_gradient_goes_through_the_head(rng):
    """A head that is not linear changes the weights; CAM would not notice."""

    class Squared(classifier_lib.LinearHead):
        def __call__(self, pooled):
            return super().__call__(pooled) ** 2

    linear = head_of(rng)
    squared = Squared(weight=linear.weight, bias=linear.bias)
    feature_map = jnp.asarray(rng.normal(size=(F, T, CHAN)), jnp.float32)
    logit = linear(classifier_lib.pool(feature_map))[1]
    assert abs(logit) > 0.1
    _, straight = attribution.grad_cam_cells(linear, feature_map, jnp.int32(1))
    _, curved = attribution.grad_cam_cells(squared, feature_map, jnp.int32(1))
    np.testing.assert_allclose(curved, 2 * logit * straight, rtol=1e-4)


# --- as explanations


def explainer_of(scheme="time_frequency", classifier=None):
    """Nothing is fitted: neither method looks at the transform or the banks."""
    classifier = test_cache.classifier_of() if classifier is None else classifier
    chan = classifier.head.weight.shape[1]
    arrays = {
        "clip": jnp.zeros((chan, 1), jnp.int32),
        "activation": jnp.zeros((chan, 1)),
        "location": jnp.zeros((chan, 1, 2), jnp.int32),
        "purity": jnp.zeros((chan, 1)),
    }
    positive, negative = (
        bank.Bank(scheme=scheme, sign=sign, **arrays)
        for sign in ("positive", "negative")
    )
    return explain.Explainer(
        classifier=classifier,
        transform=disentangle.identity(chan),
        positive=positive,
        negative=negative,
        clips=(data.Clip(path="nowhere.wav", label=0),),
        front_end=FRONT_END,
    )


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return test_cache.write_clips(tmp_path_factory.mktemp("wavs"), 1)[0]


@pytest.fixture(scope="module")
def explainer():
    return explainer_of()


def by_method(method, explainer, sound, **options):
    if method == "lime":
        options = {"num_samples": 50, "num_segments": 12, **options}
        return attribution.lime(explainer, sound, **options)
    return attribution.grad_cam(explainer, sound, **options)


@pytest.mark.parametrize("scheme", schemes.SCHEMES)
def test_grad_cam_of_a_clip(scheme, explainer, clip):
    _, feature_map, logits = test_cache.map_of(explainer.classifier, clip)
    weight = np.asarray(explainer.classifier.head.weight)
    assert (feature_map @ weight.T > 0).any()  # some class has evidence
    for target, name in enumerate(test_cache.NAMES):
        result = attribution.grad_cam(explainer, clip.path, target=name, scheme=scheme)
        (channel,) = result.channels
        cells = np.maximum(feature_map @ weight[target], 0)
        if cells.max() == 0:  # nothing speaks for this class
            assert channel.areas == ()
            continue
        heat = explainer.grid().upsample(jnp.asarray(cells / cells.max()))
        np.testing.assert_allclose(channel.heatmap, heat, atol=1e-4)
        assert channel.contribution == pytest.approx(cells.mean(), rel=1e-4)
        total = result.contributions.sum() + explainer.classifier.head.bias[target]
        assert float(total) == pytest.approx(logits[target], abs=1e-3)
        # A square is the hottest cell, a column the hottest on average, and so on.
        row, column = np.unravel_index(cells.argmax(), cells.shape)
        if scheme != "square":
            row, column = cells.mean(axis=1).argmax(), cells.mean(axis=0).argmax()
        wanted = explanation.areas(
            explainer.grid(), scheme, np.array([row, column]), FRONT_END
        )
        assert channel.areas == wanted


@pytest.mark.parametrize("method", ["grad-cam", "lime"])
def test_the_explanation_says_what_it_is(method, explainer, clip):
    apex = explainer.look(clip.path)
    result = by_method(method, explainer, clip.path)
    assert result.method == method
    assert result.source == str(clip.path)
    assert result.target == result.predicted == int(np.argmax(apex.logits))
    assert result.scheme == "time_frequency"
    assert result.front_end == FRONT_END
    assert result.evidence_share == 1
    np.testing.assert_array_equal(result.logits, apex.logits)
    np.testing.assert_array_equal(result.spectrogram, apex.spectrogram)
    (channel,) = result.channels
    assert channel.index is None
    assert channel.prototypes == channel.negatives == ()
    assert channel.heatmap.shape == SHAPE
    assert channel.heatmap.min() >= 0
    assert 0.8 < channel.heatmap.max() <= 1
    assert len(channel.areas) == 2


@pytest.mark.parametrize("method", ["grad-cam", "lime"])
def test_sounds_of_every_kind(method, explainer, clip):
    wave, rate = soundfile.read(clip.path, dtype="float32")
    spectrogram = explainer.look(clip.path, offset_s=0.1).spectrogram
    at = by_method(method, explainer, clip.path, offset_s=0.1).channels[0].heatmap
    given = by_method(method, explainer, wave, sample_rate=rate, offset_s=0.1)
    pixels = by_method(method, explainer, spectrogram)
    np.testing.assert_allclose(given.channels[0].heatmap, at, atol=1e-5)
    np.testing.assert_allclose(pixels.channels[0].heatmap, at, atol=1e-5)
    assert (given.source, pixels.source) == ("waveform", "spectrogram")
    assert given.sample_rate == rate


def test_lime_finds_the_cell_that_counts(rng):
    explainer = explainer_of("square", test_superpixels.patch_classifier())
    result = attribution.lime(
        explainer,
        test_superpixels.sound(rng),
        target="cell",
        num_samples=400,
        num_segments=12,
    )
    (channel,) = result.channels
    assert channel.location == (1, 2)
    assert channel.areas[0].box == schemes.Box(rows=(8.0, 16.0), frames=(16.0, 24.0))
    positive = np.maximum(result.contributions, 0)
    assert channel.contribution == pytest.approx(positive.sum(), rel=1e-5)
    # Half of the heat's pixels or more lie on the cell.
    assert channel.heatmap[8:16, 16:24].mean() > 2 * channel.heatmap.mean()


def test_lime_tells_its_settings_and_keeps_to_its_seed(explainer, clip):
    first, again, other = (
        by_method("lime", explainer, clip.path, seed=seed) for seed in (3, 3, 4)
    )
    np.testing.assert_array_equal(first.contributions, again.contributions)
    assert np.abs(first.contributions - other.contributions).max() > 1e-6
    usual = by_method("lime", explainer, clip.path, seed=3, instead="usual")
    assert np.abs(first.contributions - usual.contributions).max() > 1e-6
    assert dict(usual.provenance.settings)["LIME instead of a superpixel"] == "usual"
    with pytest.raises((ValueError, jaxtyping.TypeCheckError), match="instead"):
        by_method("lime", explainer, clip.path, instead="median")
    settings = dict(first.provenance.settings)
    assert settings["LIME instead of a superpixel"] == "silence"
    assert settings["LIME seed"] == "3"
    assert settings["LIME samples"] == "50"
    assert settings["LIME superpixels"] == str(len(first.contributions))
    assert {name for name, _ in first.provenance.versions} == {"lime", "scikit-image"}


def test_where_nothing_speaks_for_a_class_there_is_no_region(explainer, clip):
    """A map that is zero, as of a network that hears nothing."""
    head = explainer.classifier.head
    silent = dataclasses.replace(
        explainer.classifier,
        head=dataclasses.replace(head, weight=jnp.zeros_like(head.weight)),
    )
    result = attribution.grad_cam(explainer_of(classifier=silent), clip.path)
    (channel,) = result.channels
    assert channel.areas == ()
    assert channel.location == (schemes.ALL, schemes.ALL)
    assert channel.contribution == 0
    assert result.evidence_share == 0
    np.testing.assert_array_equal(channel.heatmap, np.zeros(SHAPE))


@pytest.mark.parametrize("method", ["grad-cam", "lime"])
def test_what_is_not_there_is_named(method, explainer, clip):
    with pytest.raises(ValueError, match="target must be one of low, middle, high"):
        by_method(method, explainer, clip.path, target="loud")
    with pytest.raises(ValueError, match="sample_rate"):
        by_method(method, explainer, np.zeros(4000, np.float32))
    blind = dataclasses.replace(explainer, front_end=None)
    with pytest.raises(ValueError, match="front end"):
        by_method(method, blind, clip.path)


# --- cells


@pytest.mark.parametrize(
    ("map_shape", "shape", "stride"),
    [((3, 4), (24, 32), (8, 8)), ((3, 4), (25, 33), (8, 8)), ((3, 5), (7, 12), None)],
)
def test_cell_means(rng, map_shape, shape, stride):
    grid = schemes.Grid.of(map_shape, shape, stride)
    heat = rng.random(shape)
    means = attribution.cell_means(jnp.asarray(heat, jnp.float32), grid)
    for f, t in np.ndindex(*map_shape):
        # A pixel belongs to a cell if its centre does.
        inside = [
            heat[r, c]
            for r, c in np.ndindex(*shape)
            if f * grid.cell[0] <= r + 0.5 < (f + 1) * grid.cell[0]
            and t * grid.cell[1] <= c + 0.5 < (t + 1) * grid.cell[1]
        ]
        assert float(means[f, t]) == pytest.approx(np.mean(inside), rel=1e-5)
