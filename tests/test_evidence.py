"""Contrastive evidence and how concentrated evidence is, against NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from apex_jax import classifier as classifier_lib
from apex_jax import evidence

K, C = 5, 7


def head_of(rng, classes=K):
    return classifier_lib.LinearHead(
        weight=rng.normal(size=(classes, C)).astype(np.float32),
        bias=rng.normal(size=classes).astype(np.float32),
    )


def test_contrastive_is_a_row_less_the_mean_of_the_others(rng):
    head = head_of(rng)
    found = evidence.contrastive(head, "softmax")
    for c in range(K):
        others = [d for d in range(K) if d != c]
        np.testing.assert_allclose(
            found.weight[c],
            head.weight[c] - head.weight[others].mean(axis=0),
            atol=1e-5,
        )
        assert float(found.bias[c]) == pytest.approx(
            head.bias[c] - head.bias[others].mean(), abs=1e-5
        )


def test_what_all_classes_share_is_no_contrast(rng):
    head, shared = head_of(rng), rng.normal(size=C).astype(np.float32)
    moved = classifier_lib.LinearHead(weight=head.weight + shared, bias=head.bias + 3)
    one, other = (evidence.contrastive(h, "softmax") for h in (head, moved))
    np.testing.assert_allclose(one.weight, other.weight, atol=1e-5)
    np.testing.assert_allclose(one.bias, other.bias, atol=1e-5)
    # No probability of the classifier tells the two apart either.
    pooled = rng.normal(size=(9, C)).astype(np.float32)
    before, after = (
        classifier_lib.probabilities(h(pooled), "softmax") for h in (head, moved)
    )
    np.testing.assert_allclose(before, after, atol=1e-5)


def test_the_contrastive_head_decides_alike(rng):
    head, pooled = head_of(rng), rng.normal(size=(200, C)).astype(np.float32)
    logits, contrast = head(pooled), evidence.contrastive(head, "softmax")(pooled)
    np.testing.assert_array_equal(logits.argmax(axis=1), contrast.argmax(axis=1))


@pytest.mark.parametrize(("classes", "activation"), [(3, "sigmoid"), (1, "softmax")])
def test_there_is_no_contrast_where_classes_stand_alone(classes, activation, rng):
    with pytest.raises(ValueError, match=f"has {classes} classes under {activation}"):
        evidence.contrastive(head_of(rng, classes), activation)


def concentration(weight, pooled):
    """Of one class whose head is `weight`."""
    head = classifier_lib.LinearHead(
        weight=jnp.asarray(weight, jnp.float32)[None], bias=jnp.zeros(1)
    )
    pooled = jnp.asarray(pooled, jnp.float32)
    return evidence.concentration(head, pooled, jnp.int32(0))


@pytest.mark.parametrize(
    ("weight", "pooled", "expected"),
    [
        ([0, 0, 3, 0], [1, 1, 1, 1], 1),
        ([2, 2, 2, 2], [1, 1, 1, 1], 1 / 2),
        ([1, 1, 1, 1], [1, 0, 1, 0], 1 / np.sqrt(2)),
        # What speaks against: three of eight parts are left for the class.
        ([3, -5, 0, 0], [1, 1, 1, 1], 3 / 8),
        # For the class by its absence, and against it by its absence.
        ([3, -5, 0, 0], [1, -1, 1, 1], 3 / 8),
        ([3, 5, 0, 0], [1, -1, 1, 1], 3 / 8),
    ],
)
def test_concentration_of_known_evidence(weight, pooled, expected):
    assert float(concentration(weight, pooled)) == pytest.approx(expected)


def test_concentration_of_any_scale(rng):
    weight, pooled = rng.normal(size=(2, C)).astype(np.float32)
    e = np.maximum(weight * np.maximum(pooled, 0), 0).astype(np.float64)
    expected = np.sqrt((e**2).sum()) / np.abs(weight * pooled).sum()
    for scale in (1e-30, 1.0, 1e30):
        found = concentration(weight, pooled * np.float32(scale))
        assert float(found) == pytest.approx(expected, rel=1e-5)


def test_evidence_cannot_be_hidden_where_contributions_do_not_look():
    """Two channels that speak for the class, turned by 180 degrees: same logit."""
    weight, pooled = np.array([4.0, 1, 1]), np.ones(3)
    turned = np.array([1.0, -1, -1])
    assert (weight * turned) @ (pooled * turned) == weight @ pooled
    before = concentration(weight, pooled)
    assert float(before) < 0.75
    assert float(concentration(weight * turned, pooled * turned)) < 0.75


@pytest.mark.parametrize("weight", [np.zeros(4), -np.arange(4.0)])
def test_no_evidence_is_not_concentrated_and_pulls_nowhere(weight):
    value, gradient = jax.value_and_grad(concentration, argnums=1)(
        np.asarray(weight, np.float32), np.ones(4, np.float32)
    )
    assert float(value) == 0
    np.testing.assert_array_equal(gradient, np.zeros(4))


def test_what_moves_a_logit_is_all_of_it(rng):
    head, pooled = head_of(rng), rng.normal(size=(20, C)).astype(np.float32)
    for clip in pooled:
        found = evidence.parts(head, jnp.asarray(clip), jnp.int32(2), top=3)
        moves = head.weight[2] * clip
        positive = np.sort(np.where(clip > 0, moves.clip(0), 0))[::-1]
        assert float(found.first) == pytest.approx(positive[0])
        assert float(found.top) == pytest.approx(positive[:3].sum(), rel=1e-5)
        assert float(found.every) == pytest.approx(np.abs(moves).sum(), rel=1e-5)
        assert float(found.positive + found.absent - found.against) == pytest.approx(
            moves.sum(), abs=1e-5
        )
        few = evidence.parts(head, jnp.asarray(clip), jnp.int32(2), top=99)
        assert float(few.top) == pytest.approx(float(found.positive), rel=1e-6)


def test_how_many_channels_make_up_a_share():
    head = classifier_lib.LinearHead(
        weight=np.array([[4.0, 3.0, 2.0, 1.0, -9.0]], np.float32),
        bias=np.zeros(1, np.float32),
    )
    for share, expected in ((0.3, 1), (0.41, 2), (0.7, 2), (0.75, 3), (1.0, 4)):
        found = evidence.needed(head, jnp.ones(5), jnp.int32(0), share=share)
        assert int(found) == expected
    assert int(evidence.needed(head, -jnp.ones(5), jnp.int32(0))) == 0
