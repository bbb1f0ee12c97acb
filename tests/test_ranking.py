"""The n best clips against a full sort, ties and all."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from apex_jax import ranking

C = 5


def sorted_by_hand(scores, num):
    """Largest first, equal ones by position."""
    order = np.argsort(-scores, axis=1, kind="stable")[:, :num]
    return np.take_along_axis(scores, order, axis=1), order


@pytest.mark.parametrize("num", [1, 3, 40])
@pytest.mark.parametrize("chunk", [7, 40, 64, 8192])
@pytest.mark.parametrize("values", [2, 5, 10**6])
def test_a_full_sort(values, chunk, num, rng):
    """Few different values: nearly everything is a tie."""
    scores = rng.integers(-values, values, (C, 97)).astype(np.float32)
    found, at = ranking.best(
        jnp.eye(C), jnp.asarray(scores.T), jnp.int32(97), num, chunk=chunk
    )
    wanted, order = sorted_by_hand(scores, num)
    np.testing.assert_array_equal(found, wanted)
    np.testing.assert_array_equal(at, order)


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_any_shape(data):
    clips = data.draw(st.integers(1, 60))
    counts = data.draw(st.integers(1, clips + 3))  # more than there are: all
    num = data.draw(st.integers(1, clips))
    chunk = data.draw(st.integers(1, 70))
    scores = np.float32(
        data.draw(st.lists(st.integers(-2, 2), min_size=clips, max_size=clips))
    )[None, :]
    found, at = ranking.best(
        jnp.ones((1, 1)), jnp.asarray(scores.T), jnp.int32(counts), num, chunk=chunk
    )
    real = min(num, counts, clips)
    wanted, order = sorted_by_hand(scores[:, :counts], real)
    np.testing.assert_array_equal(found[:, :real], wanted)
    np.testing.assert_array_equal(at[:, :real], order)
    assert np.isneginf(np.asarray(found[:, real:])).all()


def test_directions_are_applied(rng):
    directions, vectors = rng.normal(size=(C, 4)), rng.normal(size=(50, 4))
    found, at = ranking.best(
        jnp.asarray(directions, jnp.float32),
        jnp.asarray(vectors, jnp.float32),
        jnp.int32(50),
        6,
        chunk=16,
    )
    wanted, order = sorted_by_hand(directions @ vectors.T, 6)
    np.testing.assert_allclose(found, wanted, rtol=1e-5)
    np.testing.assert_array_equal(at, order)


def test_the_centre_is_taken_away(rng):
    directions, vectors = rng.normal(size=(C, 4)), rng.normal(size=(50, 4))
    centre = rng.normal(size=4) + 3
    found, at = ranking.best(
        *(jnp.asarray(a, jnp.float32) for a in (directions, vectors)),
        jnp.int32(50),
        6,
        centre=jnp.asarray(centre, jnp.float32),
    )
    wanted, order = sorted_by_hand(directions @ (vectors - centre).T, 6)
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(at, order)


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(st.data())
def test_groups_lose_nothing(data):
    """Rows long enough for groups, mostly of ties, and of minus infinity."""
    num = data.draw(st.integers(1, 5))
    clips = data.draw(st.integers(4 * num, 120))
    numbers = st.sampled_from([-np.inf, -1.0, 0.0, 1.0, 2.0])
    rows = st.lists(numbers, min_size=clips, max_size=clips)
    scores = np.float32(data.draw(st.lists(rows, min_size=2, max_size=2)))
    found, at = ranking.top_by_groups(jnp.asarray(scores), num)
    wanted, order = sorted_by_hand(scores, num)
    np.testing.assert_array_equal(found, wanted)
    np.testing.assert_array_equal(at, order)


def test_minus_zero_is_zero():
    scores = jnp.asarray([[-0.0], [0.0], [-0.0]])
    _, at = ranking.best(jnp.ones((1, 1)), scores, jnp.int32(3), 3)
    assert at.tolist() == [[0, 1, 2]]


def written(program):
    """How many numbers each array has that a program makes on its way."""
    for step in program.eqns:
        yield from (out.aval.size for out in step.outvars)
        for value in step.params.values():
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                yield from written(inner)


def test_memory_is_bounded_by_the_chunk():
    """Neither a score of each clip nor a second copy of the vectors is written."""
    chunk = 2 * ranking.BLOCK_CLIPS
    clips = 3 * chunk + 4
    program = jax.make_jaxpr(
        lambda d, v: ranking.best(d, v, jnp.int32(clips), 5, chunk=chunk)
    )(jnp.ones((C, 3)), jnp.ones((clips, 3)))
    assert max(written(program.jaxpr)) <= C * chunk < 3 * clips
