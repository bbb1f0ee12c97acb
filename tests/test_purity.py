"""Purity: p[k] / ||p||, its gradient, its edge cases."""

import functools

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies
from hypothesis.extra import numpy as hypothesis_numpy

from apex_jax import purity

C = 6
score_and_gradient = jax.jit(jax.value_and_grad(purity.score))


def purity_by_hand(p, k):
    length = sum(float(x) ** 2 for x in p) ** 0.5
    return float(p[k]) / length if length else 0.0


def test_score_by_hand(rng):
    for p in rng.normal(size=(20, C)):
        for k in range(C):
            got, _ = score_and_gradient(jnp.asarray(p, jnp.float32), k)
            assert abs(float(got) - purity_by_hand(p, k)) < 1e-6


@pytest.mark.parametrize("scale", [1e-37, 1e-30, 1.0, 1e30, 1e37])
def test_one_hot_is_one_and_its_negative_minus_one_at_any_scale(scale):
    for k in range(C):
        one_hot = jnp.zeros(C).at[k].set(scale)
        assert float(purity.score(one_hot, k)) == 1.0
        assert float(purity.score(-one_hot, k)) == -1.0
        assert float(purity.score(one_hot, (k + 1) % C)) == 0.0


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_scale_changes_nothing_but_the_gradients_size(scale, rng):
    p = rng.normal(size=C)
    value, gradient = score_and_gradient(jnp.asarray(p, jnp.float32), 2)
    scaled, scaled_gradient = score_and_gradient(jnp.asarray(scale * p, jnp.float32), 2)
    np.testing.assert_allclose(scaled, value, rtol=1e-6)
    np.testing.assert_allclose(
        np.asarray(scaled_gradient, np.float64) * scale, gradient, rtol=1e-5, atol=1e-7
    )


def test_one_large_entry_does_not_hide_the_others_scale():
    p = jnp.array([1e20, 1e19, 0.0])
    assert float(purity.score(p, 1)) == pytest.approx(0.1 / np.sqrt(1.01), rel=1e-6)


def test_zero_vector_has_purity_zero_and_no_gradient():
    with jax.debug_nans(True):
        value, gradient = jax.value_and_grad(purity.score)(jnp.zeros(C), 3)
    assert float(value) == 0.0
    np.testing.assert_array_equal(gradient, np.zeros(C))


def test_zero_vector_does_not_spoil_the_loss_of_a_batch(rng):
    prototypes = jnp.asarray(rng.normal(size=(4, C)), jnp.float32).at[1].set(0.0)
    channels = jnp.array([5, 0, 3, 3])
    with jax.debug_nans(True):
        gradient = jax.grad(purity.loss)(prototypes, channels, jnp.ones(4))
    assert np.isfinite(gradient).all()
    assert (np.abs(gradient).max(axis=1) > 0).tolist() == [True, False, True, True]


def test_gradient_is_the_finite_difference(rng):
    step = 1e-6
    for k, p in enumerate(rng.normal(size=(C, C))):
        _, gradient = score_and_gradient(jnp.asarray(p, jnp.float32), k)
        for c in range(C):
            up, down = p.copy(), p.copy()
            up[c] += step
            down[c] -= step
            expected = (purity_by_hand(up, k) - purity_by_hand(down, k)) / (2 * step)
            assert abs(float(gradient[c]) - expected) < 1e-5


@hypothesis.settings(max_examples=200, deadline=None)
@hypothesis.given(
    p=hypothesis_numpy.arrays(
        np.float32, C, elements=strategies.floats(-(2.0**100), 2.0**100, width=32)
    ),
    k=strategies.integers(0, C - 1),
)
def test_score_lies_between_minus_one_and_one(p, k):
    value, gradient = score_and_gradient(jnp.asarray(p), k)
    assert -1.0 - 1e-6 <= float(value) <= 1.0 + 1e-6
    # Below 1e-30 the true gradient is beyond float32.
    if np.abs(p).max() > 1e-30 or not p.any():
        assert np.isfinite(gradient).all()


def test_loss_is_minus_the_mean_over_the_pairs_that_count(rng):
    prototypes = rng.normal(size=(7, C))
    channels = np.array([0, 5, 2, 2, 4, 1, 3])
    weights = np.array([1.0, 1.0, 0.0, 1.0, 0.0, 1.0, 1.0])
    total = count = 0.0
    for p, k, w in zip(prototypes, channels, weights, strict=True):
        if w:
            total += purity_by_hand(p, k)
            count += 1
    arrays = functools.partial(jnp.asarray, dtype=jnp.float32)
    got = purity.loss(arrays(prototypes), jnp.asarray(channels), arrays(weights))
    assert abs(float(got) + total / count) < 1e-6


def test_padding_pairs_get_no_gradient(rng):
    prototypes = jnp.asarray(rng.normal(size=(3, C)), jnp.float32)
    weights = jnp.array([1.0, 0.0, 1.0])
    gradient = jax.grad(purity.loss)(prototypes, jnp.array([1, 2, 3]), weights)
    np.testing.assert_array_equal(gradient[1], np.zeros(C))
