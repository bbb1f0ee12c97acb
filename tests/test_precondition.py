"""The coordinates that A is learned in, against moments taken in NumPy."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from apex_jax import classifier as classifier_lib
from apex_jax import disentangle, fit, optimize, precondition, schemes
from apex_jax import features as features_lib
from apex_jax import mesh as mesh_lib

N, F, T, C = 11, 3, 4, 6


def maps_of(rng):
    """Vectors that share a mean and vary unequally, in directions of no channel's."""
    mixture = np.linalg.qr(rng.normal(size=(C, C)))[0]
    spread = np.array([5.0, 2.0, 1.0, 0.3, 0.1, 0.01])
    return (3 + (rng.normal(size=(N, F, T, C)) * spread) @ mixture).astype(np.float32)


def moments_of(maps, scheme, num_devices=1):
    mesh = mesh_lib.make(jax.devices()[:num_devices])
    features = features_lib.from_maps(maps, np.zeros((len(maps), 2), np.float32))
    return precondition.moments(features.to_mesh(mesh), scheme, mesh=mesh)


def vectors_by_hand(maps, scheme):
    """What each scheme chooses among (method, section 3), one vector a row."""
    maps = np.asarray(maps, np.float64)
    cells, columns, rows = (
        a.reshape(-1, C) for a in (maps, maps.mean(axis=1), maps.mean(axis=2))
    )
    match scheme:
        case "square":
            return cells
        case "time":
            return columns
        case "frequency":
            return rows
    return np.concatenate([columns, rows])


@pytest.mark.parametrize("num_devices", [1, 8])  # 8 pad the 11 clips to 16
@pytest.mark.parametrize("chunk", [4, 1024])  # 4 does not divide the 11 clips
@pytest.mark.parametrize("scheme", schemes.SCHEMES)
def test_moments_are_those_of_the_candidates(
    scheme, chunk, num_devices, rng, monkeypatch
):
    whole = precondition._mean_and_covariance
    monkeypatch.setattr(
        precondition, "_mean_and_covariance", functools.partial(whole, chunk=chunk)
    )
    maps = maps_of(rng)
    found = moments_of(maps, scheme, num_devices)
    vectors = vectors_by_hand(maps, scheme)
    covariance = np.cov(vectors.T, bias=True)
    np.testing.assert_allclose(found.mean, vectors.mean(axis=0), rtol=1e-5)
    np.testing.assert_allclose(
        (found.vectors * found.values) @ found.vectors.T,
        covariance,
        atol=1e-5 * covariance.max(),
    )
    values = np.linalg.eigvalsh(covariance)
    assert found.participation_ratio == pytest.approx(
        values.sum() ** 2 / (values**2).sum(), rel=1e-4
    )
    assert found.num_large == (values > 0.01 * values.max()).sum()


def test_the_effective_rank_of_known_features():
    values = np.array([0.0, 0.0, 2.0, 2.0, 2.0])
    known = precondition.Moments(mean=np.zeros(5), values=values, vectors=np.eye(5))
    assert known.participation_ratio == pytest.approx(3)
    assert known.num_large == 3
    flat = precondition.Moments(mean=np.zeros(5), values=0 * values, vectors=np.eye(5))
    assert (flat.participation_ratio, flat.num_large) == (0, 0)


@pytest.mark.parametrize("eps", [0.01, 0.1, 1.0])
def test_whitened_vectors_are_as_even_as_eps_lets_them_be(eps, rng):
    maps = maps_of(rng)
    found = moments_of(maps, "square")
    base = precondition.coordinates(found, "whiten", eps=eps)
    moved = np.asarray(base(maps)).reshape(-1, C)
    np.testing.assert_allclose(moved.mean(axis=0), 0, atol=1e-4)
    largest = found.values.max()
    # Along each eigenvector lambda becomes lambda / (lambda + eps lambda_max).
    expected = found.values / (found.values + eps * largest)
    variances = np.linalg.eigvalsh(np.cov(moved.T, bias=True))
    np.testing.assert_allclose(
        variances / variances.max(), np.sort(expected) / expected.max(), atol=1e-4
    )
    matrix = np.asarray(base.matrix, np.float64)
    assert np.linalg.norm(matrix, 2) == pytest.approx(1, rel=1e-5)
    assert np.linalg.cond(matrix) <= np.sqrt(1 + 1 / eps) * (1 + 1e-5)
    np.testing.assert_allclose(matrix, matrix.T, atol=1e-6)
    np.testing.assert_allclose(
        matrix @ np.asarray(base.inverse, np.float64), np.eye(C), atol=1e-5
    )


def test_none_changes_nothing_and_centre_only_the_mean(rng):
    maps = maps_of(rng)
    found = moments_of(maps, "time")
    none = precondition.coordinates(found, "none")
    np.testing.assert_array_equal(none(maps), maps)
    centre = precondition.coordinates(found, "centre")
    np.testing.assert_allclose(centre(maps), maps - found.mean, atol=1e-5)
    np.testing.assert_array_equal(centre.matrix, np.eye(C))


@pytest.mark.parametrize("kind", ["none", "centre", "whiten"])
def test_logits_survive_any_coordinates(kind, rng):
    maps = maps_of(rng)
    head = classifier_lib.LinearHead(
        weight=rng.normal(size=(3, C)).astype(np.float32),
        bias=rng.normal(size=3).astype(np.float32),
    )
    pooled = maps.mean(axis=(1, 2))
    base = precondition.coordinates(moments_of(maps, "square"), kind, eps=0.01)
    transform = disentangle.from_generator(
        jnp.asarray(0.2 * rng.normal(size=(C, C)), jnp.float32), base
    )
    audit = disentangle.audit(transform, head, pooled, np.asarray(head(pooled)))
    assert audit.passed
    assert audit.max_abs_logit_error < 1e-4


def test_features_that_do_not_vary_are_only_centred():
    maps = np.full((4, F, T, C), 2.0, np.float32)
    base = precondition.coordinates(moments_of(maps, "square"), "whiten")
    np.testing.assert_array_equal(base.matrix, np.eye(C))
    np.testing.assert_array_equal(base(maps), 0 * maps)


@pytest.mark.parametrize("scale", [1e-15, 1e15])
def test_the_scale_of_the_features_does_not_matter(scale, rng):
    maps = maps_of(rng)
    one, other = (
        precondition.coordinates(moments_of(m, "square"), "whiten")
        for m in (maps, maps * np.float32(scale))
    )
    np.testing.assert_allclose(one.matrix, other.matrix, atol=1e-5)


def test_what_cannot_work(rng):
    found = moments_of(maps_of(rng), "square")
    with pytest.raises(ValueError, match=r"eps must be positive; got 0"):
        precondition.coordinates(found, "whiten", eps=0.0)
    with pytest.raises(ValueError, match=r"finite covariance in float32; got .*e\+30"):
        moments_of(maps_of(rng) * np.float32(1e30), "square")


def fitted(maps, rng, key, **settings):
    head = classifier_lib.LinearHead(
        weight=rng.normal(size=(3, C)).astype(np.float32), bias=np.zeros(3, np.float32)
    )
    config = optimize.Config(epochs=2, prototypes_start=3, prototypes_end=2, **settings)
    logits = np.asarray(head(maps.mean(axis=(1, 2))))
    mesh = mesh_lib.make(jax.devices()[:1])
    return fit.from_maps(key, maps, logits, head, "time", config=config, mesh=mesh)


def test_a_fit_learns_in_the_coordinates_it_was_told(rng, key):
    maps = maps_of(rng)
    found = moments_of(maps, "time")
    made = fitted(maps, rng, key, precondition="whiten", learning_rate=1e-9)
    # With steps of nothing, U is P.
    base = precondition.coordinates(found, "whiten")
    transform = made.explainer.transform
    np.testing.assert_allclose(transform.matrix, base.matrix, atol=1e-6)
    np.testing.assert_allclose(transform.centre, found.mean, rtol=1e-5)
    said = dict(made.explainer.provenance.settings)
    assert said["coordinates"] == "centred and whitened, eps 0.1"
    assert said["effective rank"].startswith(f"{found.participation_ratio:.1f}, ")
    plain = dict(fitted(maps, rng, key).explainer.provenance.settings)
    assert plain["coordinates"] == "as they are"
    assert "transform" not in plain


def test_a_fit_of_the_orthogonal_family_only_turns(rng, key):
    maps = maps_of(rng)
    made = fitted(
        maps, rng, key, precondition="centre", transform="orthogonal", learning_rate=0.1
    )
    matrix = np.asarray(made.explainer.transform.matrix, np.float64)
    assert np.abs(matrix - np.eye(C)).max() > 0.1
    np.testing.assert_allclose(matrix @ matrix.T, np.eye(C), atol=1e-5)
    assert made.audit.condition_number == pytest.approx(1, abs=1e-4)
