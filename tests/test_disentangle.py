"""U = expm(A), its inverse, the head that undoes it, and the audit of both."""

import dataclasses
import tracemalloc

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg

from apex_jax import classifier, disentangle

N, F, T, C, K = 7, 3, 5, 6, 4


def float32(array):
    return jnp.asarray(array, jnp.float32)


@pytest.fixture
def head(rng):
    return classifier.LinearHead(
        weight=float32(rng.normal(size=(K, C))), bias=float32(rng.normal(size=K))
    )


@pytest.fixture
def pooled(rng):
    return float32(rng.normal(size=(N, C)))


def base_of(rng):
    """An invertible change of coordinates that is far from the identity."""
    matrix = rng.normal(size=(C, C)) + 3 * np.eye(C)
    return disentangle.Transform(
        matrix=float32(matrix),
        inverse=float32(np.linalg.inv(matrix)),
        centre=float32(rng.normal(size=C)),
    )


@pytest.mark.parametrize("scale", [0.0, 0.01, 0.5, 3.0])
def test_exponential_is_scipys(scale, rng):
    generator = scale * rng.normal(size=(C, C))
    expected = scipy.linalg.expm(generator)
    np.testing.assert_allclose(
        disentangle.exponential(float32(generator)),
        expected,
        atol=3e-6 * np.abs(expected).max(),
    )


def test_exponential_is_the_power_series(rng):
    generator = 0.3 * rng.normal(size=(C, C))
    term, total = np.eye(C), np.eye(C)
    for n in range(1, 30):
        term = term @ generator / n
        total = total + term
    np.testing.assert_allclose(
        disentangle.exponential(float32(generator)), total, atol=1e-5
    )


def test_exponential_of_zero_is_exactly_the_identity():
    np.testing.assert_array_equal(
        disentangle.exponential(jnp.zeros((C, C))), np.eye(C, dtype=np.float32)
    )


def test_every_product_asks_for_the_highest_precision(head, pooled):
    """CPU products are float32 anyway: only the program shows what a GPU would do."""

    def logits(generator):
        transform = disentangle.Transform(
            matrix=disentangle.exponential(generator),
            inverse=disentangle.exponential(-generator),
            centre=jnp.ones(C),
        )
        return transform.compensate(head)(transform(pooled))

    program = str(jax.make_jaxpr(logits)(jnp.ones((C, C))))
    gradient = str(
        jax.make_jaxpr(jax.grad(lambda a: logits(a).sum()))(jnp.ones((C, C)))
    )
    for text in (program, gradient):
        assert text.count("dot_general[") > 5
        # jaxprs print the precision once a product, None where it is not asked for.
        assert text.count("precision=(Precision.HIGHEST, Precision.HIGHEST)") == (
            text.count("dot_general[")
        )


def test_gradient_of_the_exponential_is_the_adjoint_and_the_finite_difference(rng):
    generator, weights = 0.4 * rng.normal(size=(C, C)), rng.normal(size=(C, C))
    got = jax.grad(lambda a: jnp.sum(float32(weights) * disentangle.exponential(a)))(
        float32(generator)
    )
    adjoint = scipy.linalg.expm_frechet(generator.T, weights, compute_expm=False)
    step, difference = 1e-6, np.zeros((C, C))
    for i, j in np.ndindex(C, C):
        nudge = np.zeros((C, C))
        nudge[i, j] = step
        up, down = (scipy.linalg.expm(generator + s * nudge) for s in (1, -1))
        difference[i, j] = np.sum(weights * (up - down)) / (2 * step)
    np.testing.assert_allclose(adjoint, difference, atol=1e-6)
    np.testing.assert_allclose(got, adjoint, atol=2e-5 * np.abs(adjoint).max())


@pytest.mark.parametrize("scale", [0.1, 0.5, 1.0])
def test_inverse_undoes_the_matrix(scale, rng):
    transform = disentangle.from_generator(float32(scale * rng.normal(size=(C, C))))
    product = np.asarray(transform.matrix, np.float64) @ np.asarray(transform.inverse)
    condition = np.linalg.cond(np.asarray(transform.matrix))
    np.testing.assert_allclose(product, np.eye(C), atol=1e-6 * condition)


def test_base_is_applied_before_the_exponential(rng):
    base, generator = base_of(rng), 0.3 * rng.normal(size=(C, C))
    transform = disentangle.from_generator(float32(generator), base)
    u, p = scipy.linalg.expm(generator), np.asarray(base.matrix, np.float64)
    np.testing.assert_allclose(transform.matrix, u @ p, atol=2e-5)
    np.testing.assert_allclose(transform.inverse, np.linalg.inv(u @ p), atol=2e-5)
    np.testing.assert_array_equal(transform.centre, base.centre)


def test_transform_of_every_position_by_hand(rng):
    base = base_of(rng)
    maps = rng.normal(size=(2, F, T, C))
    got = base(float32(maps))
    matrix, centre = (np.asarray(a, np.float64) for a in (base.matrix, base.centre))
    for n, f, t, k in np.ndindex(2, F, T, C):
        expected = sum(matrix[k, c] * (maps[n, f, t, c] - centre[c]) for c in range(C))
        assert abs(float(got[n, f, t, k]) - expected) < 3e-5
    np.testing.assert_allclose(base(float32(maps[0, 0, 0])), got[0, 0, 0], atol=1e-6)


def test_identity_changes_nothing(head, pooled):
    transform = disentangle.identity(C)
    np.testing.assert_array_equal(transform(pooled), pooled)
    same = transform.compensate(head)
    np.testing.assert_array_equal(same.weight, head.weight)
    np.testing.assert_array_equal(same.bias, head.bias)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("with_base", [False, True])
def test_logits_do_not_change(seed, with_base, head):
    rng = np.random.default_rng(seed)
    base = base_of(rng) if with_base else None
    transform = disentangle.from_generator(float32(0.5 * rng.normal(size=(C, C))), base)
    maps = rng.normal(size=(N, F, T, C))
    weight, bias = np.asarray(head.weight, "f8"), np.asarray(head.bias, "f8")
    logits = np.array([weight @ maps[n].mean(axis=(0, 1)) + bias for n in range(N)])
    compensated = transform.compensate(head)
    got = compensated(classifier.pool(transform(float32(maps))))
    np.testing.assert_allclose(got, logits, atol=2e-4)
    result = disentangle.audit(
        transform, head, classifier.pool(float32(maps)), float32(logits)
    )
    assert result.check() is result


@pytest.mark.parametrize(
    "generator",
    [
        pytest.param(200.0 * np.eye(C), id="overflow"),
        pytest.param(-200.0 * np.eye(C), id="inverse overflows"),
        pytest.param(np.full((C, C), 1e30), id="past the squarings"),
        pytest.param(np.full((C, C), np.nan), id="nan"),
    ],
)
def test_a_generator_without_a_finite_exponential(generator):
    with pytest.raises(disentangle.InvarianceError, match=r"not finite.*learning rate"):
        disentangle.from_generator(float32(generator))


# The audit.


def test_audit_numbers_by_hand(rng, head, pooled):
    transform = disentangle.from_generator(float32(0.5 * rng.normal(size=(C, C))))
    logits = np.asarray(head(pooled), np.float64)
    logits = float32(logits + rng.normal(size=(N, K)))  # so that there are errors
    result = disentangle.audit(transform, head, pooled, logits, tolerance=0.25)
    matrix, inverse = (
        np.asarray(a, "f8") for a in (transform.matrix, transform.inverse)
    )
    weight, bias = np.asarray(head.weight, "f8"), np.asarray(head.bias, "f8")
    largest, total, changed = 0.0, 0.0, 0
    for n in range(N):
        after = weight @ inverse @ (matrix @ np.asarray(pooled[n], "f8")) + bias
        errors = np.abs(after - np.asarray(logits[n], "f8"))
        largest, total = max(largest, errors.max()), total + errors.sum()
        changed += int(after.argmax() != np.asarray(logits[n]).argmax())
    assert 0 < changed < N
    variances = [np.var(np.asarray(logits[:, k], "f8")) for k in range(K)]
    singular = np.linalg.svd(matrix, compute_uv=False)
    assert result.num_clips == N
    assert result.max_abs_logit_error == pytest.approx(largest, abs=1e-4)
    assert result.mean_abs_logit_error == pytest.approx(total / (N * K), abs=1e-4)
    assert result.changed_predictions == changed
    assert result.condition_number == pytest.approx(
        singular[0] / singular[-1], rel=1e-6
    )
    assert result.logit_spread == pytest.approx(np.sqrt(np.mean(variances)), rel=1e-6)
    assert result.tolerance == 0.25
    assert not result.passed


def test_audit_in_chunks_is_the_audit(rng, head, pooled, monkeypatch):
    """Its memory does not grow with the clips; the last chunk is a ragged one."""
    transform = disentangle.from_generator(float32(rng.normal(0, 0.3, (C, C))))
    logits = head(pooled) + float32(rng.normal(0, 0.1, (len(pooled), K)))
    whole = disentangle.audit(transform, head, pooled, logits)
    assert len(pooled) % 3
    monkeypatch.setattr(disentangle, "CHUNK_CLIPS", 3)
    chunked = dataclasses.asdict(disentangle.audit(transform, head, pooled, logits))
    # Where the arithmetic goes wrong is looked for in the worst chunk alone.
    causes = whole.cause, chunked.pop("cause")
    assert all(causes)
    for name, value in dataclasses.asdict(whole).items():
        if name == "cause":
            continue
        assert chunked[name] == pytest.approx(value, rel=1e-4), name


def test_an_audit_makes_no_copy_of_the_logits(rng, monkeypatch):
    """Of thousands of classes they are the largest thing on a host."""
    monkeypatch.setattr(disentangle, "CHUNK_CLIPS", 16)
    classes = 500
    head = classifier.LinearHead(
        weight=float32(rng.normal(size=(classes, C))), bias=jnp.zeros(classes)
    )

    def peak(num_clips):
        pooled = rng.normal(size=(num_clips, C)).astype(np.float32)
        logits = np.asarray(head(jnp.asarray(pooled)))
        tracemalloc.start()
        disentangle.audit(disentangle.identity(C), head, pooled, logits)
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return most

    peak(16)  # compiles
    assert peak(1024) - peak(64) < 1024 * classes * 4 / 10


def test_audit_takes_host_arrays(head, pooled):
    logits = np.asarray(head(pooled))
    disentangle.audit(disentangle.identity(C), head, np.asarray(pooled), logits).check()


def test_audit_of_a_huge_generator_blames_the_condition_number(rng, head, pooled):
    transform = disentangle.from_generator(float32(5 * rng.normal(size=(C, C))))
    result = disentangle.audit(transform, head, pooled, head(pooled))
    assert result.condition_number > 1e5
    with pytest.raises(
        disentangle.InvarianceError, match=r"ill-conditioned.*learning rate"
    ):
        result.check()


def test_audit_of_the_wrong_head(head, pooled):
    wrong = classifier.LinearHead(weight=head.weight[::-1], bias=head.bias)
    result = disentangle.audit(disentangle.identity(C), wrong, pooled, head(pooled))
    said = r"either a norm.*or the head is"
    with pytest.raises(disentangle.InvarianceError, match=said):
        result.check()


def test_audit_refuses_a_head_with_other_classes(head, pooled):
    single = classifier.LinearHead(weight=head.weight[:1], bias=head.bias[:1])
    with pytest.raises(ValueError, match=r"\(7, 1\); got \(7, 4\)"):
        disentangle.audit(disentangle.identity(C), single, pooled, head(pooled))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("where", ["logits", "pooled", "head", "matrix"])
def test_audit_of_values_that_are_not_finite(where, bad, head, pooled):
    transform, logits = disentangle.identity(C), head(pooled)
    match where:
        case "logits":
            logits = logits.at[2, 1].set(bad)
        case "pooled":
            pooled = pooled.at[2, 1].set(bad)
        case "head":
            head = classifier.LinearHead(
                weight=head.weight.at[2, 1].set(bad), bias=head.bias
            )
        case "matrix":
            transform = disentangle.Transform(
                matrix=transform.matrix.at[2, 1].set(bad),
                inverse=transform.inverse,
                centre=transform.centre,
            )
    result = disentangle.audit(transform, head, pooled, logits)
    assert result.max_abs_logit_error == np.inf
    with pytest.raises(disentangle.InvarianceError, match="NaN or infinity"):
        result.check()


def test_a_changed_prediction_fails_however_small_the_error(head, pooled):
    logits = np.array(head(pooled), np.float32)
    first, second = np.argsort(-logits[3])[:2]
    # A near tie: the head's own logits decide it one way, the network's the other.
    shift = logits[3, first] - logits[3, second] + 1e-4
    logits[3, second] += shift
    result = disentangle.audit(
        disentangle.identity(C), head, pooled, float32(logits), tolerance=1e3
    )
    assert result.max_abs_logit_error <= 1e3 * result.logit_spread
    assert result.changed_predictions == 1
    with pytest.raises(disentangle.InvarianceError, match="1 predictions changed"):
        result.check()


@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
@pytest.mark.parametrize(("margin", "ties"), [(2e-6, 1), (1e-3, 0)])
def test_a_tie_within_rounding_is_no_changed_prediction(activation, margin, ties):
    """Only where the network itself decides by less than float32 resolves."""
    logits = np.full((N, 2), [3.0, -3.0], np.float32)
    logits[2] = [margin, 0.0] if activation == "softmax" else [margin, -3.0]
    after = logits.copy()
    after[2, 0] = -margin
    result = disentangle.audit(
        disentangle.identity(2),
        classifier.LinearHead(weight=jnp.eye(2), bias=jnp.zeros(2)),
        after,
        logits,
        activation=activation,
    )
    assert (result.near_ties, result.changed_predictions) == (ties, 1 - ties)
    assert result.passed == bool(ties)


def test_a_tie_is_measured_by_its_own_clip():
    """A clip with huge logits makes no ties of the others' clear decisions."""
    logits = np.array([[1e6, -1e6], [1e-3, 0.0]], np.float32)
    after = logits.copy()
    after[1, 0] = -1e-3
    result = disentangle.audit(
        disentangle.identity(2),
        classifier.LinearHead(weight=jnp.eye(2), bias=jnp.zeros(2)),
        after,
        logits,
    )
    assert (result.near_ties, result.changed_predictions) == (0, 1)
    assert not result.passed


def test_logits_that_hardly_vary_are_those_of_an_untrained_network(head, pooled):
    still = classifier.LinearHead(weight=1e-3 * head.weight, bias=jnp.zeros(K))
    logits = np.asarray(still(pooled)) + 1e-3
    result = disentangle.audit(disentangle.identity(C), still, pooled, logits)
    # Not because they are small beside an offset: there is none.
    assert 0.01 * result.largest_logit < result.logit_spread < 0.01
    with pytest.raises(disentangle.UntrainedError, match="hardly tells"):
        result.check()


@pytest.mark.parametrize(
    ("spread", "largest", "untrained"),
    [(0.0127, 0.4, True), (0.06, 0.4, False), (0.06, 7.0, True), (0.2, 7.0, False)],
)
def test_where_a_network_counts_as_untrained(spread, largest, untrained):
    """The first is a network that stayed at chance for 17 epochs."""
    result = disentangle.Audit(
        num_clips=288,
        max_abs_logit_error=2e-3 * spread,
        mean_abs_logit_error=1e-6,
        changed_predictions=0,
        condition_number=111.0,
        logit_spread=spread,
        largest_logit=largest,
        tolerance=1e-3,
    )
    assert not result.passed
    with pytest.raises(disentangle.InvarianceError) as caught:
        result.check()
    assert isinstance(caught.value, disentangle.UntrainedError) == untrained


def test_among_thousands_of_classes_rounding_decides_ties(rng):
    """What BirdSet's label space does to an audit that asks for every sign."""
    clips, classes, chan = 512, 4000, 64
    vectors = float32(rng.normal(size=(clips, chan)))
    head = classifier.LinearHead(
        weight=float32(rng.normal(size=(classes, chan))), bias=jnp.zeros(classes)
    )
    transform = disentangle.from_generator(float32(rng.normal(0, 0.2, (chan, chan))))
    result = disentangle.audit(
        transform, head, vectors, head(vectors), activation="sigmoid"
    )
    assert result.near_ties > 0
    assert result.check().changed_predictions == 0


def test_a_large_error_fails_though_no_prediction_changed(head, pooled):
    result = disentangle.audit(
        disentangle.identity(C), head, pooled, 1.01 * head(pooled)
    )
    assert result.changed_predictions == 0
    with pytest.raises(disentangle.InvarianceError, match="0 predictions changed"):
        result.check()


def test_a_single_clip_has_no_spread_and_passes(rng, head, pooled):
    transform = disentangle.from_generator(float32(0.1 * rng.normal(size=(C, C))))
    result = disentangle.audit(transform, head, pooled[:1], head(pooled[:1]))
    assert result.logit_spread == 0.0
    assert result.check() is result


def test_audit_of_no_clips(head, pooled):
    with pytest.raises(ValueError, match="at least one clip"):
        disentangle.audit(disentangle.identity(C), head, pooled[:0], jnp.zeros((0, K)))


@pytest.mark.parametrize(("activation", "changed"), [("softmax", 0), ("sigmoid", N)])
def test_of_several_classes_a_clip_each_one_counts(activation, changed, pooled):
    """The likeliest class stays, but another one goes."""
    head = classifier.LinearHead(
        weight=jnp.zeros((K, C)), bias=float32([3.0, 0.1, -1.0, -2.0])
    )
    logits = np.tile(np.float32([3.0, -0.1, -1.0, -2.0]), (N, 1))
    result = disentangle.audit(
        disentangle.identity(C), head, pooled, logits, activation=activation
    )
    assert result.changed_predictions == changed
    assert result.max_abs_logit_error == pytest.approx(0.2)


def test_what_the_audit_allows(head, pooled):
    result = disentangle.audit(disentangle.identity(C), head, pooled, head(pooled))
    assert result.allowed == pytest.approx(1e-3 * result.logit_spread)
    flat = disentangle.audit(
        disentangle.identity(C), head, pooled[:1], head(pooled[:1])
    )
    assert flat.allowed == pytest.approx(1e-5 * max(1.0, flat.largest_logit))


def test_beyond_the_range_of_the_exponential_the_message_says_so():
    turned = np.zeros((4, 4), np.float32)
    turned[0, 1], turned[1, 0] = 700.0, -700.0  # a rotation: finite, but far
    with pytest.raises(disentangle.InvarianceError, match=r"beyond 594.*'reference'"):
        disentangle.from_generator(jnp.asarray(turned))
