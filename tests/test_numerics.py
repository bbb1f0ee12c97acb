"""Odd shapes and odd numbers: what is documented comes out, never a silent NaN."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from apex_jax import (
    bank,
    boxes,
    disentangle,
    evidence,
    features,
    metrics,
    optimize,
    purity,
    schemes,
)
from apex_jax import classifier as classifier_lib
from apex_jax import mesh as mesh_lib

FINITE = (0.0, 1.0, -1.0, 3.0, 1e-30, -1e-30, 1e30, -1e30)
SCHEMES = ("square", "time", "frequency", "time_frequency")
few = settings(max_examples=25, deadline=None)


def arrays(*shape, numbers=FINITE):
    size = int(np.prod(shape))
    return st.lists(st.sampled_from(numbers), min_size=size, max_size=size).map(
        lambda flat: np.float32(flat).reshape(shape)
    )


@st.composite
def maps(draw):
    """Maps `[N, F, T, C]` of few clips, cells and channels, one of each too."""
    return draw(arrays(*(draw(st.integers(1, 3)) for _ in range(4))))


@few
@given(st.data())
def test_purity_is_a_share(data):
    vector = data.draw(arrays(data.draw(st.integers(1, 5))))
    channel = data.draw(st.integers(0, len(vector) - 1))
    value, gradient = jax.value_and_grad(purity.score)(jnp.asarray(vector), channel)
    assert -1 - 1e-6 <= value <= 1 + 1e-6
    assert np.isfinite(gradient).all()
    exact = vector.astype(np.float64)
    length = np.sqrt((exact**2).sum())
    assert value == pytest.approx(exact[channel] / length if length else 0.0, abs=1e-6)


@few
@given(maps(), st.sampled_from(SCHEMES), st.data())
def test_a_location_lies_in_the_map(found, scheme, data):
    direction = data.draw(arrays(found.shape[-1]))
    views = schemes.views(jnp.asarray(found[0]), keep_cells=True)
    row, column = schemes.locate(scheme, views, jnp.asarray(direction)).tolist()
    assert row in {schemes.ALL, *range(found.shape[1])}
    assert column in {schemes.ALL, *range(found.shape[2])}
    vector = schemes.vector(scheme, views, jnp.asarray([row, column]))
    assert np.isfinite(vector).all()


@settings(max_examples=6, deadline=None)  # each shape is compiled
@given(maps(), st.sampled_from(SCHEMES), st.integers(1, 5))
def test_learning_from_anything_finite(found, scheme, prototypes):
    """More prototypes than clips, one channel, nothing but zeros: A stays finite."""
    logits = np.zeros((len(found), 2), np.float32)
    one = features.from_maps(found, logits)
    config = optimize.Config(
        epochs=2, prototypes_start=prototypes, prototypes_end=1, batch_size=4
    )
    generator, history = optimize.fit(
        jax.random.key(0),
        one,
        scheme,
        config=config,
        mesh=mesh_lib.make(jax.devices()[:1]),
    )
    assert np.isfinite(generator).all()
    assert all(-1 - 1e-5 <= p <= 1 + 1e-5 for p in history.round_purity)


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
def test_what_is_no_number_is_refused(wrong):
    good, logits = np.ones((2, 2, 3, 4), np.float32), np.zeros((2, 2), np.float32)
    for place in ("maps", "logits"):
        given = {"maps": good.copy(), "logits": logits.copy()}
        given[place][0, 0] = wrong
        with pytest.raises(ValueError, match="must be finite"):
            features.from_maps(given["maps"], given["logits"])


@few
@given(maps(), st.sampled_from(("positive", "negative")))
def test_a_ranking_is_a_permutation(found, sign):
    pooled = found.mean(axis=(1, 2))
    transform = disentangle.identity(pooled.shape[1])
    clips, value = bank.top_clips(
        transform,
        jnp.asarray(pooled),
        num=len(pooled),
        num_clips=len(pooled),
        sign=sign,
        mesh=mesh_lib.make(jax.devices()[:1]),
    )
    assert np.array_equal(np.sort(clips, axis=1), np.sort(np.argsort(clips), axis=1))
    ordered = np.asarray(value) * (1 if sign == "positive" else -1)
    assert (np.diff(ordered, axis=1) <= 0).all()


@few
@given(maps(), st.data())
def test_a_heatmap_lies_between_0_and_1(found, data):
    chan = found.shape[-1]
    head = classifier_lib.LinearHead(
        weight=jnp.asarray(data.draw(arrays(2, chan))),
        bias=jnp.asarray(data.draw(arrays(2))),
    )
    views = schemes.views(jnp.asarray(found[0]), keep_cells=data.draw(st.booleans()))
    rows, columns = found.shape[1:3]
    heat = evidence.heatmap(
        head,
        disentangle.identity(chan),
        views,
        jnp.int32(0),
        jnp.int32(1),
        grid=schemes.Grid.of((rows, columns), (4 * rows, 4 * columns)),
    )
    assert ((np.asarray(heat) >= 0) & (np.asarray(heat) <= 1 + 1e-6)).all()


@few
@given(st.data())
def test_probabilities_are_probabilities(data):
    logits = data.draw(arrays(3, data.draw(st.integers(1, 4))))
    softmax = classifier_lib.probabilities(logits, "softmax")
    sigmoid = classifier_lib.probabilities(logits, "sigmoid")
    np.testing.assert_allclose(softmax.sum(axis=1), 1)
    for values in (softmax, sigmoid):
        assert ((values >= 0) & (values <= 1)).all()


@few
@given(st.data())
def test_scores_of_anything_finite(data):
    classes = data.draw(st.integers(1, 3))
    scores = data.draw(arrays(4, classes)).astype(np.float64)
    labels = data.draw(arrays(4, classes, numbers=(0.0, 1.0))).astype(int)
    for score in (metrics.mean_average_precision, metrics.auroc):
        with warnings.catch_warnings():
            # That a class is absent is said; what it counts then is asked for here.
            warnings.filterwarnings("ignore", message=".*classes have no positives")
            value = score(labels, scores, absent="zero")
        assert 0 <= value <= 1


@few
@given(st.data())
def test_a_box_of_any_map(data):
    heat = data.draw(arrays(data.draw(st.integers(1, 4)), data.draw(st.integers(1, 4))))
    box = boxes.box(heat)
    assert 0 <= box.rows[0] < box.rows[1] <= heat.shape[0]
    assert 0 <= box.frames[0] < box.frames[1] <= heat.shape[1]
    shown = boxes.normalised(heat)
    assert ((shown >= 0) & (shown <= 1)).all()
