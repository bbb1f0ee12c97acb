"""Each cause of a broken invariance, provoked: the audit names it and what helps."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend import core

from apex_jax import causes, classifier, disentangle

N, C, K = 40, 12, 3  # enough clips to tell whether logits are linear in them
EPSILON = 1e-6


@pytest.fixture
def head(rng):
    return classifier.LinearHead(
        weight=jnp.asarray(rng.normal(size=(K, C)), jnp.float32),
        bias=jnp.asarray(rng.normal(size=K), jnp.float32),
    )


@pytest.fixture
def pooled(rng):
    return rng.normal(1, 2, (N, C)).astype(np.float32)


@pytest.fixture
def transform(rng):
    generator = jnp.asarray(rng.normal(0, 0.3, (C, C)), jnp.float32)
    return disentangle.from_generator(generator)


def says(transform, head, pooled, logits):
    audit = disentangle.audit(transform, head, pooled, logits)
    with pytest.raises(disentangle.InvarianceError) as raised:
        audit.check()
    return str(raised.value)


def bfloat16(array):
    """Rounded, and back."""
    return jnp.asarray(array).astype(jnp.bfloat16).astype(jnp.float32)


def normed(pooled, scale=1.0, shift=0.0):
    centred = pooled - pooled.mean(axis=1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(1, keepdims=True) + EPSILON) * (
        scale
    ) + (shift)


def test_what_is_right_has_no_cause(transform, head, pooled):
    audit = disentangle.audit(transform, head, pooled, head(pooled)).check()
    assert audit.cause == ""
    assert disentangle.cause_of(transform, head, pooled, head(pooled)) == ""


def test_an_ill_conditioned_u(rng, head, pooled):
    generator = jnp.asarray(5 * rng.normal(size=(C, C)), jnp.float32)
    transform = disentangle.from_generator(generator)
    said = says(transform, head, pooled, head(pooled))
    assert "U is ill-conditioned" in said
    assert "lower the learning rate" in said


def test_u_in_bfloat16(transform, head, pooled):
    rounded = jax.tree.map(bfloat16, transform)
    said = says(rounded, head, pooled, head(pooled))
    assert "U and its inverse were rounded to bfloat16" in said
    assert "float32" in said


def test_u_and_the_inverse_of_another(rng, transform, head, pooled):
    generator = jnp.asarray(rng.normal(0, 0.3, (C, C)), jnp.float32)
    other = disentangle.from_generator(generator)
    mixed = dataclasses.replace(transform, inverse=other.inverse)
    assert "are of two fits" in says(mixed, head, pooled, head(pooled))


@pytest.mark.parametrize("bits", [8, 11])
def test_rounded_products_on_the_way_through_u(bits, transform, head, pooled):
    """As bf16 and TF32 multiply: of each factor so many bits are left."""

    def rounded(array):
        mantissa, exponent = np.frexp(np.asarray(array, np.float64))
        return np.ldexp(np.rint(mantissa * 2**bits) / 2**bits, exponent)

    path = causes.Path(
        *(np.asarray(a) for a in (transform.matrix, transform.inverse)),
        *(np.asarray(a) for a in (transform.centre, head.weight, head.bias)),
    )
    through = rounded(pooled) @ rounded(path.matrix).T
    weight = rounded(path.weight) @ rounded(path.inverse)
    after = rounded(through) @ rounded(weight).T + path.bias
    said = causes.find(path, pooled, np.asarray(head(pooled)), after)
    name = {8: "bfloat16", 11: "TF32"}[bits]
    assert f"on the way through U are rounded to about {name}'s precision" in said
    assert "Precision.HIGHEST" in said


def test_features_in_bfloat16(transform, head, pooled):
    """The map was made by rounded products, the logits were not."""
    said = says(transform, head, bfloat16(pooled), head(pooled))
    assert "own logits differ from its head's of the pooled map by a rounding" in said
    assert "bfloat16's precision" in said
    assert "make map and logits in float32" in said


def test_logits_in_bfloat16(transform, head, pooled):
    said = says(transform, head, pooled, bfloat16(head(pooled)))
    assert "by a rounding" in said


def test_a_norm_that_was_not_folded(transform, head, pooled):
    """From one clip on."""
    for clips in (pooled, pooled[:1]):
        logits = head(normed(clips).astype(np.float32))
        said = disentangle.cause_of(transform, head, clips, logits)
        assert "A norm between pooling and head was not folded" in said
        assert "with a layer norm between, the head gives these logits" in said
        assert "classifier.fold_layer_norm" in said


def test_a_norm_with_weights_that_was_not_folded(rng, transform, head, pooled):
    """Many clips tell; of few it may as well be another head."""
    scale, shift = rng.uniform(0.5, 2, C), rng.normal(size=C)
    logits = head(normed(pooled, scale, shift).astype(np.float32))
    assert "of normed vectors the logits are linear" in says(
        transform, head, pooled, logits
    )
    few = says(transform, head, pooled[:5], logits[:5])
    assert "either a norm between pooling and head was not folded" in few
    assert "or the head is another network's" in few


def test_a_head_that_does_not_match(rng, transform, head, pooled):
    others = classifier.LinearHead(weight=head.weight[::-1], bias=head.bias)
    said = says(transform, others, pooled, head(pooled))
    assert "The head does not match" in said
    assert "in the same order" in said
    few = disentangle.cause_of(transform, others, pooled[:5], head(pooled)[:5])
    assert "or the head is another network's" in few


@pytest.mark.parametrize(
    ("where", "name"),
    [(0, "the network's logits"), (1, "the features"), (2, "the head"), (3, "U")],
)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_where_nan_stands(where, name, bad, transform, head, pooled):
    logits = np.array(head(pooled))
    weight, matrix = np.array(head.weight), np.array(transform.matrix)
    (logits, pooled, weight, matrix)[where][1, 2] = bad
    said = says(
        dataclasses.replace(transform, matrix=jnp.asarray(matrix)),
        dataclasses.replace(head, weight=jnp.asarray(weight)),
        pooled,
        logits,
    )
    assert f"NaN or infinity stands in {name}:" in said


# --- whatever precision is the default


def products(jaxpr):
    """The precisions of all products of a program, of inner ones too."""
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            yield equation.params["precision"]
        for value in jax.tree.leaves(
            list(equation.params.values()),
            is_leaf=lambda v: isinstance(v, core.ClosedJaxpr),
        ):
            if isinstance(value, core.ClosedJaxpr):
                yield from products(value.jaxpr)
            elif isinstance(value, core.Jaxpr):
                yield from products(value)


@pytest.mark.parametrize("default", ["bfloat16", "tensorfloat32", "high"])
@pytest.mark.parametrize("method", ["products", "reference"])
def test_the_default_precision_does_not_reach_the_path(
    default, method, transform, head, pooled
):
    """U, its inverse, the head and the logits: all at HIGHEST, whoever sets what."""

    def path(generator, head, pooled):
        forward, backward = (
            disentangle.exponential(a, method) for a in (generator, -generator)
        )
        made = disentangle.Transform(
            matrix=forward, inverse=backward, centre=jnp.zeros(C)
        )
        return made.compensate(head)(made(pooled))

    with jax.default_matmul_precision(default):
        jaxpr = jax.make_jaxpr(path)(jnp.zeros((C, C)), head, jnp.asarray(pooled))
        disentangle.audit(transform, head, pooled, head(pooled)).check()
    found = list(products(jaxpr.jaxpr))
    assert len(found) > 4
    highest = jax.lax.Precision.HIGHEST
    assert set(found) == {(highest, highest)}
