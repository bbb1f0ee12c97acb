"""The exponential from products: SciPy in float64, finite differences, its range."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg

from apex_jax import expm
from benchmarks import accuracy

C = 24


KINDS = list(accuracy.kinds(np.random.default_rng(0), C))


@pytest.mark.parametrize("kind", KINDS)
def test_no_worse_than_the_reference(kind):
    """A factor of 3, or what some twenty roundings of the largest entry come to."""
    reference = jax.jit(jax.scipy.linalg.expm)
    ours = jax.jit(expm.expm)
    for seed in range(8):
        rng = np.random.default_rng(seed)
        for norm in (0.1, 0.58, 0.59, 2.0, 5.0, 10.0, 18.0, 30.0, 50.0):
            matrix = accuracy.of_norm(accuracy.kinds(rng, C)[kind], norm)
            wanted = scipy.linalg.expm(matrix.astype(np.float64))
            theirs = accuracy.error_of(reference(matrix), wanted)
            assert accuracy.error_of(ours(matrix), wanted) <= max(3 * theirs, 5e-6), (
                norm
            )


@pytest.mark.parametrize("kind", ["general", "antisymmetric", "non-normal"])
def test_within_a_factor_of_three_at_256_channels(kind):
    """The goal to the letter, where channels are many and matrices are like A's."""
    for norm in (0.5, 5.0, 18.0, 50.0):
        matrix = accuracy.of_norm(
            accuracy.kinds(np.random.default_rng(0), 256)[kind], norm
        )
        wanted = scipy.linalg.expm(matrix.astype(np.float64))
        theirs = accuracy.error_of(jax.scipy.linalg.expm(jnp.asarray(matrix)), wanted)
        assert (
            accuracy.error_of(expm.expm(jnp.asarray(matrix)), wanted) <= 3 * theirs
        ), norm


@pytest.mark.parametrize("kind", ["general", "antisymmetric", "non-normal"])
def test_gradient_at_256_channels(kind, rng):
    matrix = accuracy.of_norm(accuracy.kinds(rng, 256)[kind], 18.0)
    cotangent = rng.normal(size=matrix.shape)
    _, pull_back = jax.vjp(expm.expm, jnp.asarray(matrix))
    (found,) = pull_back(jnp.asarray(cotangent, jnp.float32))
    wanted = scipy.linalg.expm_frechet(
        matrix.T.astype(np.float64), cotangent, compute_expm=False
    )
    assert accuracy.error_of(found, wanted) < 1e-5


@pytest.mark.parametrize("noise", [0.0, 0.02])
def test_one_large_entry_does_not_overflow(noise, rng):
    """e^50 is a number; e^(50 + 46), with the mean taken out, would be none."""
    matrix = np.float32(np.diag([-48.0] * (C - 1) + [48.0]))
    matrix += np.float32(noise * rng.normal(size=(C, C)))
    wanted = scipy.linalg.expm(matrix.astype(np.float64))
    assert accuracy.error_of(expm.expm(jnp.asarray(matrix)), wanted) < 5e-6
    cotangent = rng.normal(size=(C, C))
    _, pull_back = jax.vjp(expm.expm, jnp.asarray(matrix))
    (found,) = pull_back(jnp.asarray(cotangent, jnp.float32))
    wanted = scipy.linalg.expm_frechet(
        matrix.T.astype(np.float64), cotangent, compute_expm=False
    )
    assert accuracy.error_of(found, wanted) < 2e-5


def test_zero_is_exactly_the_identity():
    np.testing.assert_array_equal(expm.expm(jnp.zeros((C, C))), np.eye(C))
    found = jax.grad(lambda a: expm.expm(a)[1, 2])(jnp.zeros((C, C)))
    np.testing.assert_array_equal(found, np.eye(C)[1][:, None] * np.eye(C)[2])


def test_one_channel():
    found, gradient = jax.value_and_grad(lambda a: expm.expm(a)[0, 0])(
        jnp.full((1, 1), 1.5)
    )
    assert found == pytest.approx(np.exp(1.5), rel=1e-6)
    assert gradient[0, 0] == pytest.approx(np.exp(1.5), rel=1e-6)


def test_polynomial_is_taylors(rng):
    """Degree 8 in three products, in float64 against the sum of powers."""
    x = 0.3 * rng.normal(size=(5, 5))
    with jax.enable_x64(True):
        found, _ = expm._taylor(jnp.asarray(x), jnp.eye(5, dtype=jnp.float64))
        term, total = np.eye(5), np.zeros((5, 5))
        for power in range(1, 9):
            term = term @ x / power
            total += term
        np.testing.assert_allclose(found, total, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("kind", KINDS)
def test_gradient_is_the_adjoint(kind, rng):
    """The Fréchet derivative of A^T along the cotangent, in float64."""
    cotangent = rng.normal(size=(C, C))
    for norm in (0.3, 4.0, 18.0, 50.0):
        matrix = accuracy.of_norm(accuracy.kinds(rng, C)[kind], norm)
        _, pull_back = jax.vjp(expm.expm, jnp.asarray(matrix))
        (found,) = pull_back(jnp.asarray(cotangent, jnp.float32))
        wanted = scipy.linalg.expm_frechet(
            matrix.T.astype(np.float64), cotangent, compute_expm=False
        )
        assert accuracy.error_of(found, wanted) < 1e-5, norm


def test_gradient_is_the_finite_difference(rng):
    matrix = accuracy.of_norm(rng.normal(size=(4, 4)), 3.0).astype(np.float64)
    weights = rng.normal(size=(4, 4))
    found = jax.grad(lambda a: jnp.sum(jnp.asarray(weights, a.dtype) * expm.expm(a)))(
        jnp.asarray(matrix, jnp.float32)
    )
    difference, step = np.zeros((4, 4)), 1e-6
    for i, j in np.ndindex(4, 4):
        nudge = np.zeros((4, 4))
        nudge[i, j] = step
        up, down = (scipy.linalg.expm(matrix + s * nudge) for s in (1, -1))
        difference[i, j] = np.sum(weights * (up - down)) / (2 * step)
    np.testing.assert_allclose(found, difference, atol=2e-5 * np.abs(found).max())


@pytest.mark.parametrize(
    "matrix",
    [
        np.full((C, C), np.nan, np.float32),
        np.diag(np.float32([np.inf] + [0] * (C - 1))),
        np.full((C, C), 1.01 * expm.LARGEST_NORM / (C - 1), np.float32)
        * (1 - np.eye(C)),
        np.full((C, C), 1e30, np.float32),
    ],
)
def test_out_of_range_is_all_nan(matrix):
    assert np.isnan(np.asarray(expm.expm(jnp.asarray(matrix, jnp.float32)))).all()


def test_just_in_range(rng):
    """Antisymmetric, so that nothing overflows: the result is a rotation."""
    gauss = rng.normal(size=(C, C))
    matrix = accuracy.of_norm(gauss - gauss.T, 0.99 * expm.LARGEST_NORM)
    found = np.asarray(expm.expm(jnp.asarray(matrix)))
    np.testing.assert_allclose(found @ found.T, np.eye(C), atol=1e-3)


@pytest.mark.parametrize("norm", [0.5, 18.0])
def test_products_are_counted(norm, rng):
    """Three and one a squaring, twice as many back, all at the highest precision."""
    matrix = jnp.asarray(accuracy.of_norm(rng.normal(size=(C, C)), norm))
    _, pull_back = jax.vjp(expm.expm, matrix)
    forward, back = (
        str(jax.make_jaxpr(f)(matrix)) for f in (expm.expm, lambda g: pull_back(g))
    )
    # In a program the loop over squarings stands once.
    assert forward.count("dot_general[") == 3 + 1
    assert back.count("dot_general[") == 6 + 2
    for text in (forward, back):
        assert text.count("(Precision.HIGHEST, Precision.HIGHEST)") == text.count(
            "dot_general["
        )


def test_jit_vmap_and_one_compilation(rng):
    traces = []

    @jax.jit
    def value(matrix):
        traces.append(1)
        return expm.expm(matrix)

    for norm in (0.1, 5.0, 50.0):
        matrix = jnp.asarray(accuracy.of_norm(rng.normal(size=(C, C)), norm))
        np.testing.assert_allclose(
            value(matrix), expm.expm(matrix), rtol=1e-5, atol=1e-5
        )
    assert len(traces) == 1
    both = jnp.stack([0.1 * matrix, matrix])
    np.testing.assert_allclose(
        jax.vmap(expm.expm)(both),
        np.stack([expm.expm(one) for one in both]),
        rtol=1e-5,
        atol=1e-5,
    )
