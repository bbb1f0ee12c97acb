"""The classifier contract: pooled map, linear head, a norm folded into the map."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from apex_jax import classifier, disentangle

N, F, T, C, K = 7, 3, 5, 6, 4
EPSILON = 1e-3


def layer_norm(v, scale, bias, epsilon):
    """LayerNorm of one vector, channel by channel."""
    mean = sum(v) / len(v)
    variance = sum((x - mean) ** 2 for x in v) / len(v)
    return np.array(
        [
            g * (x - mean) / np.sqrt(variance + epsilon) + b
            for x, g, b in zip(v, scale, bias, strict=True)
        ]
    )


def pooled_by_hand(maps):
    pooled = np.zeros((len(maps), maps.shape[-1]))
    for n, one in enumerate(maps):
        for f in range(one.shape[0]):
            for t in range(one.shape[1]):
                pooled[n] += one[f, t]
    return pooled / (maps.shape[1] * maps.shape[2])


@pytest.fixture
def network(rng):
    """Maps, norm and head of a made-up network, and its logits in float64."""
    maps = rng.normal(0.7, 2.0, (N, F, T, C))
    scale, shift = rng.normal(1.0, 0.5, C), rng.normal(0.0, 1.0, C)
    weight, bias = rng.normal(size=(K, C)), rng.normal(size=K)
    logits = np.array(
        [
            weight @ layer_norm(v, scale, shift, EPSILON) + bias
            for v in pooled_by_hand(maps)
        ]
    )
    head = classifier.LinearHead(
        weight=jnp.asarray(weight, jnp.float32), bias=jnp.asarray(bias, jnp.float32)
    )
    return (
        tuple(jnp.asarray(a, jnp.float32) for a in (maps, scale, shift)),
        head,
        logits,
    )


def test_head_is_a_matrix_and_a_bias(network, rng):
    _, head, _ = network
    vectors = rng.normal(size=(N, 2, C))
    expected = np.zeros((N, 2, K))
    for n, m, k in np.ndindex(N, 2, K):
        expected[n, m, k] = float(head.bias[k]) + sum(
            float(head.weight[k, c]) * vectors[n, m, c] for c in range(C)
        )
    got = head(jnp.asarray(vectors, jnp.float32))
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(
        head(jnp.asarray(vectors[0, 0], jnp.float32)),
        expected[0, 0],
        rtol=1e-5,
        atol=1e-5,
    )


def test_head_asks_for_the_highest_precision(network):
    _, head, _ = network
    program = str(jax.make_jaxpr(head)(jnp.ones((N, C))))
    assert "HIGHEST" in program


def test_pool_is_the_mean_over_rows_and_columns(network):
    (maps, _, _), _, _ = network
    np.testing.assert_allclose(
        classifier.pool(maps), pooled_by_hand(np.asarray(maps, np.float64)), atol=1e-6
    )


def test_folded_norm_gives_the_networks_logits(network):
    (maps, scale, shift), head, logits = network
    folded = classifier.fold_layer_norm(maps, scale, shift, epsilon=EPSILON)
    assert folded.shape == maps.shape
    np.testing.assert_allclose(head(classifier.pool(folded)), logits, atol=5e-6)


def test_folded_norm_at_every_position(network):
    (maps, scale, shift), _, _ = network
    folded = classifier.fold_layer_norm(maps, scale, shift, epsilon=EPSILON)
    exact = np.asarray(maps, np.float64)
    for n, v in enumerate(pooled_by_hand(exact)):
        deviation = np.sqrt(v.var() + EPSILON)
        for f, t, c in np.ndindex(F, T, C):
            expected = (
                float(scale[c]) * (exact[n, f, t, c] - v.mean()) / deviation
            ) + float(shift[c])
            assert abs(float(folded[n, f, t, c]) - expected) < 2e-5


def test_folding_one_clip_is_folding_it_in_a_batch(network):
    (maps, scale, shift), _, _ = network
    batched = classifier.fold_layer_norm(maps, scale, shift, epsilon=EPSILON)
    single = classifier.fold_layer_norm(maps[2], scale, shift, epsilon=EPSILON)
    np.testing.assert_allclose(single, batched[2], atol=1e-6)


def test_the_norms_own_epsilon_matters(network):
    (maps, scale, shift), head, logits = network
    folded = classifier.fold_layer_norm(maps, scale, shift, epsilon=10 * EPSILON)
    assert np.abs(head(classifier.pool(folded)) - logits).max() > 1e-4


def test_audit_finds_a_norm_that_was_not_folded(network):
    (maps, scale, shift), head, logits = network
    transform = disentangle.identity(C)
    folded = classifier.fold_layer_norm(maps, scale, shift, epsilon=EPSILON)
    disentangle.audit(transform, head, classifier.pool(folded), logits).check()
    unfolded = disentangle.audit(transform, head, classifier.pool(maps), logits)
    with pytest.raises(disentangle.InvarianceError, match=r"norm .* not folded"):
        unfolded.check()


def test_classifier_is_a_pytree_with_static_settings(network):
    (maps, scale, shift), head, logits = network

    def forward(params, spectrogram):
        del spectrogram
        folded = classifier.fold_layer_norm(*params, epsilon=EPSILON)
        return folded, jnp.asarray(logits, jnp.float32)

    model = classifier.Classifier(
        params=(maps, scale, shift),
        head=head,
        forward_fn=forward,
        class_names=("a", "b", "c", "d"),
        stride=(2, 3),
    )
    rebuilt = jax.tree.map(lambda a: a, model)
    assert rebuilt.class_names == model.class_names
    assert rebuilt.stride == (2, 3)
    feature_map, own = jax.jit(lambda m, s: m(s))(model, jnp.zeros((N, 8, 11)))
    np.testing.assert_allclose(head(classifier.pool(feature_map)), own, atol=5e-6)


def test_probabilities_by_hand():
    logits = np.array([[0.0, np.log(3.0), -1e4], [1e4, 0.0, 1e4]])
    softmax = classifier.probabilities(logits, "softmax")
    np.testing.assert_allclose(softmax, [[0.25, 0.75, 0.0], [0.5, 0.0, 0.5]])
    sigmoid = classifier.probabilities(logits, "sigmoid")
    np.testing.assert_allclose(sigmoid, [[0.5, 0.75, 0.0], [1.0, 0.5, 1.0]])
    one = classifier.probabilities(jnp.zeros(4), "softmax")
    np.testing.assert_allclose(one, 0.25)


def test_a_classifier_of_maps_cannot_be_run():
    head = classifier.LinearHead(weight=jnp.ones((2, 3)), bias=jnp.zeros(2))
    made = classifier.of_maps(head, ["a", "b"], activation="sigmoid")
    assert made.class_names == ("a", "b")
    with pytest.raises(ValueError, match="cannot be run here"):
        made(jnp.zeros((1, 8, 8)))
    with pytest.raises(ValueError, match="each of 2 classes; got 3"):
        classifier.of_maps(head, ["a", "b", "c"])
