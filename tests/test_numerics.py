"""Odd shapes and odd numbers: what is documented comes out, never a silent NaN."""

import dataclasses
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from apex_jax import (
    audio,
    augment,
    bank,
    boxes,
    disentangle,
    evidence,
    expm,
    features,
    metrics,
    objective,
    optimize,
    purity,
    rounding,
    schemes,
    spectrogram,
)
from apex_jax import classifier as classifier_lib
from apex_jax import mesh as mesh_lib
from apex_jax import settings as train_settings

FINITE = (0.0, 1.0, -1.0, 3.0, 1e-30, -1e-30, 1e30, -1e30)
FRONT_ENDS = (
    audio.FrontEnd(sample_rate=800, clip_s=0.25, n_fft=64, hop_length=16, n_mels=8),
    audio.FrontEnd(
        sample_rate=800, clip_s=0.25, n_fft=64, hop_length=20, n_mels=None, top_db=80.0
    ),
    audio.FrontEnd(
        sample_rate=800,
        clip_s=0.25,
        n_fft=32,
        hop_length=32,
        n_mels=4,
        power=1.0,
        amin=1e-5,
        top_db=80.0,
        top_db_scope="batch",
        mean=-13.0,
        std=7.0,
    ),
)  # fmt: skip
SIGNS = np.array([1, -1], np.float32)[:, None, None]
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


_expm = jax.jit(expm.expm)


@few
@given(st.data())
def test_a_transform_undoes_itself_or_is_refused(data):
    """From nothing to what has no exponential in float32."""
    chan = data.draw(st.sampled_from((1, 3)))  # each shape is compiled
    generator = data.draw(arrays(chan, chan, numbers=(*FINITE, 50.0, -50.0)))
    norm = np.abs(generator.astype(np.float64)).sum(axis=0).max()
    if not all(np.isfinite(_expm(jnp.asarray(a))).all() for a in SIGNS * generator):
        assert norm > 50
        with pytest.raises(disentangle.InvarianceError, match="learning rate"):
            disentangle.from_generator(jnp.asarray(generator))
        return
    transform = disentangle.from_generator(jnp.asarray(generator))
    assert all(np.isfinite(a).all() for a in jax.tree.leaves(transform))
    if norm < 5:
        product = np.asarray(transform.matrix) @ np.asarray(transform.inverse)
        np.testing.assert_allclose(product, np.eye(chan), atol=2e-3)


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
def test_a_generator_that_is_no_number_is_refused(wrong):
    generator = np.zeros((3, 3), np.float32)
    generator[1, 2] = wrong
    assert np.isnan(_expm(jnp.asarray(generator))).all()
    with pytest.raises(disentangle.InvarianceError, match="not finite"):
        disentangle.from_generator(jnp.asarray(generator))


@few
@given(st.data())
def test_an_audit_says_yes_or_why_not(data):
    """Of any finite clips, weights, transform and logits."""
    clips, chan, classes = (data.draw(st.integers(1, n)) for n in (5, 3, 3))
    head = classifier_lib.LinearHead(
        weight=jnp.asarray(data.draw(arrays(classes, chan))),
        bias=jnp.asarray(data.draw(arrays(classes))),
    )
    matrix, inverse = (jnp.asarray(data.draw(arrays(chan, chan))) for _ in range(2))
    transform = disentangle.Transform(
        matrix=matrix, inverse=inverse, centre=jnp.asarray(data.draw(arrays(chan)))
    )
    pooled = data.draw(arrays(clips, chan))
    logits = data.draw(st.sampled_from((np.asarray(head(pooled)), None)))
    if logits is None or not np.isfinite(logits).all():
        logits = data.draw(arrays(clips, classes))
    activation = data.draw(st.sampled_from(("softmax", "sigmoid")))
    audit = disentangle.audit(transform, head, pooled, logits, activation=activation)
    numbers = [v for v in dataclasses.asdict(audit).values() if isinstance(v, float)]
    assert not np.isnan(numbers).any()
    if audit.passed:
        assert audit.check() is audit
        return
    assert audit.max_abs_logit_error > audit.allowed or audit.changed_predictions
    with pytest.raises(disentangle.InvarianceError) as raised:
        audit.check()
    assert len(str(raised.value)) < 1000


@few
@given(st.data())
def test_contributions_add_up_to_the_logit(data):
    chan = data.draw(st.integers(1, 4))
    small = tuple(number for number in FINITE if abs(number) < 1e20)
    head = classifier_lib.LinearHead(
        weight=jnp.asarray(data.draw(arrays(2, chan, numbers=small))),
        bias=jnp.zeros(2),
    )
    pooled = data.draw(arrays(chan, numbers=small))
    found = np.asarray(evidence.contributions(head, jnp.asarray(pooled), jnp.int32(1)))
    wanted = [float(head.weight[1, k]) * max(0.0, pooled[k]) for k in range(chan)]
    np.testing.assert_allclose(found, wanted, rtol=1e-6, atol=1e-37)
    # Beyond float32 infinite, and never no number.
    huge = data.draw(arrays(2, chan)), data.draw(arrays(chan))
    head = classifier_lib.LinearHead(weight=jnp.asarray(huge[0]), bias=jnp.zeros(2))
    found = evidence.contributions(head, jnp.asarray(huge[1]), jnp.int32(0))
    assert not np.isnan(found).any()


# Compiled: one by one their operations take seconds.
_spectrogram = jax.jit(audio.spectrogram, static_argnums=0)
_attenuated = jax.jit(audio.attenuate, static_argnums=0)
_mixed = jax.jit(augment.mixed, static_argnums=(1, 5))
_power = jax.jit(augment.power, static_argnums=(1, 2))
LOUD = (0.0, 1.0, -1.0, 0.3, 1e-30, -1e-30, 1e15, -1e15)


@settings(max_examples=15, deadline=None)
@given(st.data())
def test_a_spectrogram_of_any_sound_is_finite(data):
    """Also silent, constant and absurdly loud; what hides it lies below it."""
    front_end = data.draw(st.sampled_from(FRONT_ENDS))
    batch = 2
    pattern = data.draw(arrays(batch, 4, numbers=LOUD))
    waveform = np.tile(pattern, (1, front_end.num_samples // 4))
    found = np.asarray(_spectrogram(front_end, waveform))
    assert found.shape == (batch, *front_end.shape)
    assert np.isfinite(found).all()
    level = np.asarray(audio.silence_level(front_end, found))
    assert (level <= found.max(axis=(1, 2)) + 1e-4 * np.abs(level)).all()
    mask = data.draw(arrays(batch, 2, numbers=(0.0, 0.5, 1.0))).repeat(
        front_end.num_rows, axis=1
    )[:, : front_end.num_rows, None] * np.ones((1, 1, front_end.num_frames), np.float32)
    hidden = np.asarray(_attenuated(front_end, found, mask))
    low = np.minimum(found, level[:, None, None])
    high = np.maximum(found, level[:, None, None])
    slack = 1e-5 * np.maximum(1, np.abs(found))
    assert ((hidden >= low - slack) & (hidden <= high + slack)).all()
    np.testing.assert_array_equal(hidden[mask == 0], found[mask == 0])


@few
@given(st.data())
def test_an_equal_error_rate_is_a_rate(data):
    count = data.draw(st.integers(2, 6))
    labels = data.draw(arrays(count, numbers=(0.0, 1.0))).astype(int)
    labels[:2] = 0, 1
    scores = data.draw(arrays(count))
    rate = metrics.equal_error_rate(labels, scores)
    assert 0 <= rate <= 1
    assert metrics.equal_error_rate(labels, -scores) == pytest.approx(
        1 - rate, abs=1e-9
    )
    assert metrics.equal_error_rate(labels, np.zeros(count)) == pytest.approx(0.5)
    scores[0] = data.draw(st.sampled_from((np.nan, np.inf)))
    with pytest.raises(ValueError, match="finite"):
        metrics.equal_error_rate(labels, scores)


@jax.jit
def _losses(logits, target, valid, prototypes):
    """Values and gradients."""
    return [
        *(
            jax.value_and_grad(loss)(logits)
            for loss in (
                lambda x: objective.cross_entropy(x, target, valid, "softmax"),
                lambda x: objective.cross_entropy(x, target, valid, "sigmoid"),
                lambda x: objective.asymmetric(x, target, valid),
            )
        ),
        jax.value_and_grad(objective.orthogonality)(prototypes, epsilon=1e-6),
    ]


@few
@given(st.sampled_from(((1, 1), (3, 2))), st.data())  # each shape is compiled
def test_losses_of_anything_finite_have_a_gradient(shape, data):
    batch, classes = shape
    found = _losses(
        data.draw(arrays(batch, classes)),
        data.draw(arrays(batch, classes, numbers=(0.0, 1.0))),
        valid := data.draw(arrays(batch, numbers=(0.0, 1.0))) > 0,
        data.draw(arrays(classes, batch, 2, numbers=(0.0, 1.0, -1.0, 1e-30, 1e15))),
    )
    for value, gradient in found:
        assert np.isfinite(value)
        assert np.isfinite(gradient).all()
    for _, gradient in found[:-1]:
        assert not np.asarray(gradient)[~valid].any()
    assert 0 <= found[-1][0] <= 1


@settings(max_examples=5, deadline=None)  # each shape is compiled
@given(maps(), st.sampled_from(SCHEMES), st.sampled_from(("positive", "negative")))
def test_a_bank_of_any_clips(found, scheme, sign):
    """One clip, fewer than are asked for, nothing but zeros."""
    clips, num_freq, num_time, chan = found.shape
    one = features.from_maps(found, np.zeros((clips, 2), np.float32))
    mesh = mesh_lib.make(jax.devices()[:1])
    built = bank.build(
        disentangle.identity(chan),
        one.to_mesh(mesh),
        scheme=scheme,
        num_prototypes=5,
        sign=sign,
        mesh=mesh,
    )
    top = min(5, clips)
    assert built.clip.shape == built.purity.shape == (chan, top)
    assert ((built.clip >= 0) & (built.clip < clips)).all()
    assert (np.abs(built.purity) <= 1 + 1e-6).all()
    assert np.isfinite(built.activation).all()
    row, column = built.location[..., 0], built.location[..., 1]
    assert (((row >= 0) & (row < num_freq)) | (row == schemes.ALL)).all()
    assert (((column >= 0) & (column < num_time)) | (column == schemes.ALL)).all()


@settings(max_examples=6, deadline=None)
@given(st.data())
def test_augmented_sound_is_finite(data):
    """Whatever happens to it; and targets stay what they are."""
    batch, config = 3, train_settings.Augmentation(
        roll=1.0, mix=1.0, background=0.5, noise=1.0, gain=1.0, no_call=0.5,
        freq_mask=1.0, freq_mask_hz=1e4, time_mask=1.0, time_mask_s=10.0,
    )  # fmt: skip
    front_end, key = FRONT_ENDS[0], jax.random.key(data.draw(st.integers(0, 9)))
    quiet = (0.0, 1.0, -1.0, 1e-30, 1e6)
    waveform, background = (
        np.tile(
            data.draw(arrays(batch, 4, numbers=quiet)), (1, front_end.num_samples // 4)
        )
        for _ in range(2)
    )
    valid = data.draw(arrays(batch, numbers=(0.0, 1.0))) > 0
    activation = data.draw(st.sampled_from(("softmax", "sigmoid")))
    target = np.eye(batch, dtype=np.float32)
    mixed, now = _mixed(key, config, waveform, target, valid, activation)
    assert np.isfinite(mixed).all()
    assert ((np.asarray(now) >= 0) & (np.asarray(now) <= 1)).all()
    if activation == "softmax":
        np.testing.assert_allclose(np.sum(now, axis=1), 1, atol=1e-6)
    np.testing.assert_array_equal(np.asarray(mixed)[~valid], waveform[~valid])
    power, kept = _power(
        key, config, front_end, mixed, np.arange(batch), background, valid
    )
    assert np.isfinite(power).all()
    assert (np.asarray(power) >= 0).all()
    assert np.asarray(kept)[~valid].all()
    assert np.isfinite(spectrogram.decibel(front_end, power)).all()


@few
@given(st.data())
def test_roundings_of_anything_finite(data):
    clips, classes = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 3))
    exact, rounded = (data.draw(arrays(clips, classes)) for _ in range(2))
    activation = data.draw(st.sampled_from(("softmax", "sigmoid")))
    found = rounding.compare(exact, rounded, activation)
    assert np.isfinite(dataclasses.astuple(found)).all()
    assert 0 <= found.changed_predictions <= clips
    same = rounding.compare(exact, exact, activation)
    assert (same.max_abs_logit_difference, same.changed_predictions) == (0, 0)
    exact[0, 0] = data.draw(st.sampled_from((np.nan, np.inf, -np.inf)))
    for pair, name in (((exact, rounded), "exact"), ((rounded, exact), "rounded")):
        with pytest.raises(ValueError, match=f"{name} logits must be finite"):
            rounding.compare(*pair, activation)
    with pytest.raises(ValueError, match="of the same clips"):
        rounding.compare(rounded[:0], rounded[:0], activation)
