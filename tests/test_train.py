"""Training: gradients clip by clip, two tones learned, which epoch is returned."""

import dataclasses
import functools
import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import test_cache
from flax import nnx

from apex_jax import audio, data, settings, train
from apex_jax.models import audioprotopnet, convnext

FRONT_END = test_cache.FRONT_END
CONFIG = convnext.ConvNeXtConfig(depths=(2,), dims=(8,), num_classes=2)
NAMES = ("low", "high")
mesh_of = test_cache.mesh_of


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    """19 of two tones: the last batch of 8 is ragged."""
    return test_cache.write_clips(
        tmp_path_factory.mktemp("tones"), num_clips=19, num_classes=2
    )


@pytest.fixture(autouse=True, scope="module")
def one_optimiser_a_config():
    """So that runs of the same settings share what is compiled."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            train.Config, "optimiser", functools.cache(train.Config.optimiser)
        )
        yield


@pytest.fixture
def model():
    return test_cache.classifier_of(CONFIG, class_names=NAMES).params


def fit(model, clips, validation=None, **options):
    settings = {"epochs": 2, "batch_size": 8, "learning_rate": 3e-3}
    config = train.Config(**settings | options.pop("config", {}))
    options = {"mesh": mesh_of(1), "class_names": NAMES, **options}
    return train.fit(
        model, clips, validation or clips[:4], FRONT_END, config=config, **options
    )


# --- settings


def test_num_epochs():
    """As asked, or so many that few clips get steps enough, and not too few of many."""
    assert train.Config(epochs=7).num_epochs(1) == 7
    default = train.Config()
    fewest = default.num_epochs(10**6)
    assert fewest > 10
    for steps in (1, 3, 7, 16, 40):
        expected = max(fewest, math.ceil(settings.MIN_STEPS / steps))
        assert default.num_epochs(steps) == expected


def test_weight_decay_is_on_kernels_alone(model):
    """Biases of stacked blocks are matrices, and must not decay all the same."""
    config = train.Config(learning_rate=0.5, weight_decay=0.1, warmup=0.5)
    optimiser = config.optimiser(4)

    @jax.jit
    def second_update(model):
        nothing = jax.tree.map(jnp.zeros_like, model)
        _, state = optimiser.update(nothing, optimiser.init(model), model)  # rate 0
        return optimiser.update(nothing, state, model)[0]  # half the rate

    updates = second_update(model)
    before = convnext.named_arrays(model)
    decayed = set()
    for name, update in convnext.named_arrays(updates).items():
        if name.endswith("kernel"):
            np.testing.assert_allclose(
                update, -0.25 * 0.1 * np.asarray(before[name]), rtol=1e-5
            )
            decayed.add(name)
        else:
            assert not np.any(np.asarray(update)), name
    assert {"stem.kernel", "stages.0.blocks.depthwise.kernel", "head.kernel"} <= decayed
    assert before["stages.0.blocks.expand.bias"].ndim == 2


def test_rate_rises_and_falls(model):
    """Adam's first steps on a gradient of ones are the rate itself."""
    config = train.Config(
        learning_rate=0.2, weight_decay=0.0, warmup=0.25, clip_norm=1e9
    )
    optimiser, params = config.optimiser(8), {"w": jnp.zeros(3)}
    state, rates = optimiser.init(params), []
    for _ in range(9):
        update, state = optimiser.update({"w": jnp.ones(3)}, state, params)
        rates.append(-float(update["w"][0]))
    expected = [0, 0.1]
    expected += [0.2 * (1 + math.cos(math.pi * n / 6)) / 2 for n in range(7)]
    np.testing.assert_allclose(rates, expected, atol=1e-5)


# --- one step


@functools.cache
def descent():
    return optax.sgd(1.0)


def step(model, waveform, label, valid):
    """A step down the very gradient, on 8 devices; `model` is kept."""
    model = jax.tree.map(jnp.copy, model)
    state = descent().init(model)
    target = np.eye(2, dtype=np.float32)[label]
    moved, _, loss = train.step(
        model,
        state,
        jax.random.key(0),
        *(jnp.asarray(a) for a in (waveform, target, valid)),
        jnp.arange(len(valid)),
        task=train.classification("softmax"),
        optimiser=descent(),
        front_end=FRONT_END,
        mesh=mesh_of(8),
    )
    return moved, float(loss)


@jax.jit
def gradient_of_one(model, waveform, label):
    def loss(model):
        logits = model(audio.spectrogram(FRONT_END, waveform[None]))[0]
        return -jax.nn.log_softmax(logits)[label]

    return jax.value_and_grad(loss)(model)


def test_the_gradient_is_the_mean_over_valid_clips(model, clips):
    """Unread clips and padding hold noise here: they must not count at all."""
    rng = np.random.default_rng(3)
    waveform = rng.normal(size=(8, FRONT_END.num_samples)).astype(np.float32)
    valid = np.array([1, 1, 0, 1, 0, 1, 1, 0], bool)
    label = np.array([0, 1, 1, 1, 0, 0, 1, 0], np.int32)
    for n in np.flatnonzero(valid):
        waveform[n] = test_cache.waveform_of(clips[n])
    found = [
        gradient_of_one(model, waveform[n], label[n]) for n in np.flatnonzero(valid)
    ]
    loss = np.mean([float(one) for one, _ in found])
    mean = jax.tree.map(lambda *g: sum(g) / len(g), *(g for _, g in found))
    moved, reported = step(model, waveform, label, valid)
    assert reported == pytest.approx(loss, rel=1e-5)
    chex.assert_trees_all_close(
        jax.tree.map(jnp.subtract, model, moved), mean, rtol=1e-3, atol=2e-5
    )


def test_a_batch_without_a_valid_clip_moves_nothing(model):
    noise = np.random.default_rng(0).normal(size=(8, FRONT_END.num_samples))
    nothing = np.zeros(8, bool)
    moved, loss = step(model, noise.astype("f4"), np.zeros(8, "i4"), nothing)
    assert loss == 0
    chex.assert_trees_all_equal(moved, model)


# --- whole runs


@pytest.mark.slow
def test_two_tones_are_learned(model, clips):
    seen, reported = [], []
    best, epochs = fit(
        model,
        clips[:15],
        clips[15:],
        config={"epochs": 12, "learning_rate": 3e-2},
        on_progress=seen.append,
        on_epoch=reported.append,
    )
    assert reported == epochs
    assert [e.epoch for e in epochs] == list(range(1, 13))
    assert sum(seen) == 12 * 15
    assert epochs[-1].train_loss < 0.5 * epochs[0].train_loss
    lowest = min(epochs, key=lambda e: e.validation_loss)
    assert lowest.validation_accuracy == 1
    assert lowest.validation_metrics == {"cmap": 1, "auroc": 1, "eer": 0}
    # The best network is the one returned: its loss once more, clip by clip.
    losses = [
        float(gradient_of_one(best, test_cache.waveform_of(c), np.int32(c.label))[0])
        for c in clips[15:]
    ]
    assert lowest.validation_loss == pytest.approx(np.mean(losses), rel=1e-3, abs=1e-6)
    # And the one it began with is still there.
    assert np.isfinite(np.asarray(model.head.bias)).all()


@pytest.mark.slow
def test_several_classes_a_clip_are_learned(model, clips):
    """Two classes that say the same of every tone, where softmax could not."""
    both = [dataclasses.replace(c, label=(0, 1) if c.label else ()) for c in clips]
    config = {"epochs": 12, "learning_rate": 3e-2}
    best, epochs = fit(model, both[:15], both[15:], config=config, activation="sigmoid")
    lowest = min(epochs, key=lambda e: e.validation_loss)
    assert lowest.validation_loss < 0.3 < epochs[0].validation_loss
    assert lowest.validation_accuracy == 1  # any class is right where there is one
    for clip in both[15:]:
        waveform = test_cache.waveform_of(clip)[None]
        logits = best(audio.spectrogram(FRONT_END, waveform))[0]
        assert ((np.asarray(logits) > 0) == bool(clip.label)).all()


def test_accuracy_where_no_validation_clip_has_a_class(model, clips):
    none = [dataclasses.replace(c, label=()) for c in clips]
    _, epochs = fit(model, none, config={"epochs": 1}, activation="sigmoid")
    assert epochs[0].validation_accuracy is None


@pytest.mark.parametrize(
    ("label", "message"),
    [((0, 1), "2 classes; with activation 'softmax'"), ((), "0 classes"), (2, "to 1")],
)
def test_labels_that_do_not_fit(label, message, model, clips):
    wrong = [*clips[:3], dataclasses.replace(clips[3], label=label)]
    with pytest.raises(ValueError, match=message):
        fit(model, wrong)
    with pytest.raises(ValueError, match=message):
        fit(model, clips, wrong)


@pytest.mark.slow
def test_the_seed_decides_and_devices_do_not(model, clips):
    def run(seed, num_devices):
        return fit(model, clips, seed=seed, mesh=mesh_of(num_devices))

    one, first = run(5, 1)
    again, second = run(5, 1)
    chex.assert_trees_all_equal(one, again)
    assert first == second
    _, other = run(6, 1)
    assert other != first
    eight, third = run(5, 8)
    chex.assert_trees_all_close(eight, one, atol=2e-3)
    for mine, theirs in zip(first, third, strict=True):
        assert mine.train_loss == pytest.approx(theirs.train_loss, rel=1e-3)
        assert mine.validation_loss == pytest.approx(theirs.validation_loss, rel=1e-2)


@functools.partial(jax.jit, donate_argnums=0)
def plus_one(model):
    return jax.tree.map(lambda a: a + 1, model)


def scripted(monkeypatch, losses, train_loss=1.0):
    """Replaces a step by adding 1 to every weight, and validation by `losses`."""
    left = iter(losses)

    def step(model, state, key, *, waveform, target, valid, **_):
        return plus_one(model), state, jnp.float32(train_loss)

    def validate(task, classifier, clips, front_end, *, epoch, train_loss, **_):
        return train.Epoch(
            epoch=epoch,
            train_loss=train_loss,
            validation_loss=next(left),
            validation_accuracy=0.5,
            learning_rate=0.0,
        )

    monkeypatch.setattr(train, "step", step)
    monkeypatch.setattr(train, "_validate", validate)


@pytest.mark.parametrize(
    ("losses", "best"), [((3, 2, 4, 2), 2), ((1, 2, 3, 4), 1), ((4, 3, 2, 1), 4)]
)
def test_the_epoch_with_the_lowest_validation_loss(
    losses, best, model, clips, monkeypatch
):
    scripted(monkeypatch, map(float, losses))
    before = np.asarray(model.head.bias)
    found, epochs = fit(model, clips, config={"epochs": 4})
    assert [e.validation_loss for e in epochs] == list(losses)
    np.testing.assert_allclose(found.head.bias, before + 3 * best, rtol=1e-6)


def test_the_first_of_equal_epochs(model, clips, monkeypatch):
    scripted(monkeypatch, [2.0, 1.0, 1.0])
    before = np.asarray(model.head.bias)
    found, _ = fit(model, clips, config={"epochs": 3})
    np.testing.assert_allclose(found.head.bias, before + 6, rtol=1e-6)


@pytest.mark.parametrize(
    ("losses", "patience", "ran"),
    [((3, 2, 2, 2, 1), 2, 4), ((3, 2, 2, 1, 1), 3, 5), ((5, 4, 3, 2, 1), 1, 5)],
)
def test_training_ends_when_patience_does(
    losses, patience, ran, model, clips, monkeypatch
):
    scripted(monkeypatch, map(float, losses))
    _, epochs = fit(model, clips, config={"epochs": 5, "patience": patience})
    assert [e.validation_loss for e in epochs] == list(losses[:ran])


def test_rounded_products_are_learned_in_float32(model, clips):
    config = {"epochs": 12, "learning_rate": 3e-2, "matmul_dtype": "bfloat16"}
    best, epochs = fit(model, clips[:15], clips[15:], config=config)
    assert min(e.validation_loss for e in epochs) < 0.3
    assert {leaf.dtype for leaf in jax.tree.leaves(best)} == {np.dtype("float32")}
    _, whole = fit(
        model, clips[:15], clips[15:], config={**config, "matmul_dtype": "float32"}
    )
    first = epochs[0].train_loss, whole[0].train_loss
    assert first[0] != first[1]
    assert first[0] == pytest.approx(first[1], rel=0.05)


@pytest.mark.parametrize(
    ("augment", "activation", "message"),
    [
        ({"no_call": 0.1}, "sigmoid", "need background"),
        ({"mix": 1.5}, "softmax", r"augment\.mix is a probability"),
        ({"gain_db": (3.0, 1.0)}, "softmax", r"augment\.gain_db must be a range"),
    ],
)
def test_augmentation_that_cannot_be(augment, activation, message, model, clips):
    config = {"augment": settings.Augmentation(**augment)}
    with pytest.raises(ValueError, match=message):
        fit(model, clips, config=config, activation=activation)


def test_no_call_asks_for_sigmoid(model, clips):
    config = {"augment": settings.Augmentation(no_call=0.1)}
    with pytest.raises(ValueError, match="'softmax' cannot have"):
        fit(model, clips, config=config, background=clips[:2])


# --- going on after an interruption

ALL = settings.Augmentation(
    roll=0.5, mix=0.5, background=0.5, noise=0.5, gain=0.5, freq_mask=0.5, time_mask=0.5
)


class Interrupted(Exception):
    pass


def interrupted_after(steps):
    """An `on_progress` that ends the training after so many batches."""
    seen = []

    def on_progress(done):
        seen.append(done)
        if len(seen) > steps:
            raise Interrupted

    return on_progress


@pytest.mark.parametrize("steps", [1, 3, 5, 8])
def test_an_interrupted_training_goes_on_to_the_same_network(
    steps, model, clips, tmp_path, monkeypatch
):
    """Three batches an epoch: within one, at its end, and after all of them."""
    monkeypatch.setattr(train, "_STEPS", 1)
    monkeypatch.setattr(train.resume, "SECONDS", 0)
    bad = data.Clip(path=tmp_path / "absent.wav", label=1)
    options = {
        "config": {"epochs": 3, "augment": ALL},
        "background": clips[:3],
        "seed": 4,
    }
    seen = (*clips[:18], bad)
    whole_log, log = data.SkipLog(), data.SkipLog()
    whole, epochs = fit(model, seen, clips[:4], skip_log=whole_log, **options)
    state = tmp_path / "state"
    with pytest.raises(Interrupted):
        fit(
            model,
            seen,
            clips[:4],
            skip_log=data.SkipLog(),
            state_dir=state,
            on_progress=interrupted_after(steps),
            **options,
        )
    assert [p.name for p in state.iterdir()] == [f"{steps:08d}"]
    told, progressed = [], []
    again, more = fit(
        model,
        seen,
        clips[:4],
        skip_log=log,
        state_dir=state,
        on_epoch=told.append,
        on_progress=progressed.append,
        **options,
    )
    chex.assert_trees_all_equal(again, whole)
    assert more == epochs == told
    assert sum(progressed) == 3 * len(seen)
    assert log.entries() == whole_log.entries()


@pytest.mark.slow
def test_it_goes_on_with_another_number_of_devices(model, clips, tmp_path, monkeypatch):
    monkeypatch.setattr(train, "_STEPS", 1)
    monkeypatch.setattr(train.resume, "SECONDS", 0)
    options = {"config": {"epochs": 2}, "seed": 4}
    whole, epochs = fit(model, clips, mesh=mesh_of(8), **options)
    with pytest.raises(Interrupted):
        fit(
            model,
            clips,
            mesh=mesh_of(8),
            state_dir=tmp_path,
            on_progress=interrupted_after(4),
            **options,
        )
    again, more = fit(model, clips, mesh=mesh_of(2), state_dir=tmp_path, **options)
    assert more[0] == epochs[0]
    assert more[1].validation_loss == pytest.approx(epochs[1].validation_loss, rel=1e-2)
    chex.assert_trees_all_close(again, whole, atol=2e-3)


def test_a_state_of_another_training_is_refused(model, clips, tmp_path, monkeypatch):
    monkeypatch.setattr(train.resume, "SECONDS", 0)
    fit(model, clips, state_dir=tmp_path)
    for changes, what in (
        ({"seed": 7}, "settings"),
        ({"config": {"learning_rate": 1e-4}}, "settings"),
        ({"validation": clips[:5]}, "clips"),
    ):
        with pytest.raises(ValueError, match=f"with other {what} than asked"):
            fit(model, clips, state_dir=tmp_path, **changes)
    other = jax.tree.map(lambda leaf: leaf + 1, model)
    with pytest.raises(ValueError, match="with other weights than asked"):
        fit(other, clips, state_dir=tmp_path)
    # What is finished is not trained again, and ends the same.
    first, epochs = fit(model, clips)
    again, more = fit(model, clips, state_dir=tmp_path)
    assert epochs == more
    chex.assert_trees_all_equal(again, first)


@pytest.mark.parametrize("loss", [math.nan, math.inf])
def test_a_validation_loss_that_is_not_finite(loss, model, clips, monkeypatch):
    scripted(monkeypatch, [loss])
    with pytest.raises(ValueError, match=r"validation loss .* in epoch 1.*0\.003"):
        fit(model, clips)


def test_a_training_loss_that_is_not_finite(model, clips, monkeypatch):
    scripted(monkeypatch, [1.0], train_loss=math.nan)
    with pytest.raises(ValueError, match="train loss is nan in epoch 1: lower learn"):
        fit(model, clips)


def test_nothing_to_train_or_validate_on(model, clips):
    with pytest.raises(ValueError, match="got 0 and 4"):
        fit(model, (), clips[:4])
    with pytest.raises(ValueError, match="got 19 and 0"):
        train.fit(model, clips, (), FRONT_END, class_names=NAMES)


def test_bad_files_are_skipped_unless_that_is_all(model, clips, tmp_path):
    bad = data.Clip(path=tmp_path / "absent.wav", label=1)
    log = data.SkipLog()
    _, epochs = fit(model, (*clips[:18], bad), (bad, *clips[:3]), skip_log=log)
    assert [path for path, _ in log.entries()] == [str(bad.path)]
    assert math.isfinite(epochs[-1].validation_loss)
    with pytest.raises(ValueError, match="none of the 1 clips"):
        fit(model, clips, (bad,), skip_log=log)
    with pytest.raises(audio.AudioError, match=r"absent\.wav"):
        fit(model, (bad,), clips[:2])


def test_running_blocks_again_learns_the_same(model, clips):
    config = {"epochs": 2, "learning_rate": 1e-2}
    found = [
        fit(model, clips[:15], clips[15:], config={**config, "rematerialise": again})
        for again in (False, True)
    ]
    (one, epochs), (other, others) = found
    chex.assert_trees_all_close(nnx.state(one), nnx.state(other), rtol=1e-4, atol=1e-5)
    assert [e.train_loss for e in epochs] == pytest.approx(
        [e.train_loss for e in others], rel=1e-4
    )


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"batch_size": 0}, "batch_size must be positive"),
        ({"epochs": 0}, "epochs must be positive"),
        ({"learning_rate": -1.0}, "learning_rate must be positive"),
        ({"clip_norm": 0.0}, "clip_norm must be positive"),
        ({"weight_decay": -0.1}, "weight_decay must not be negative"),
        ({"warmup": 1.5}, "warmup is a share, 0 to 1; got 1.5"),
        ({"warmup": float("nan")}, "warmup is a share"),
    ],
)
def test_impossible_settings(config, message, model, clips):
    with pytest.raises(ValueError, match=message):
        fit(model, clips, config=config)


def test_a_step_is_compiled_once(clips, tmp_path):
    """Also for a network as it is when it was just made: its types may not be weak."""
    network = jax.jit(lambda: convnext.ConvNeXt(CONFIG, rngs=nnx.Rngs(0)))()
    before = train.step._cache_size()
    fit(network, clips, config={"batch_size": 7, "epochs": 2})
    assert train.step._cache_size() == before + 1
    head = audioprotopnet.on(network, num_classes=2, key=jax.random.key(0)).head
    assert not any(leaf.aval.weak_type for leaf in jax.tree.leaves(head))


@pytest.mark.parametrize("kind", [settings.Training, settings.PrototypeTraining])
@pytest.mark.parametrize(("warmup", "steps"), [(0.05, 1), (1.0, 1), (1.0, 4)])
def test_a_training_of_few_steps_learns(kind, warmup, steps):
    """Also where warming up would take all of them."""
    config = kind(warmup=warmup)
    config.optimiser(steps)
    assert config.rate(steps - 1, steps) > 0
