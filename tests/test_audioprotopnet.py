"""AudioProtoPNet against plain NumPy and torch; its training, push, maps and boxes."""

import dataclasses
import functools
import itertools
import json
import pathlib
import runpy

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import test_cache
import test_convnext
from flax import nnx

from apex_jax import (
    archive,
    audio,
    audioprotopnet,
    boxes,
    checkpoint,
    comparisons,
    convert,
    data,
    listen,
    objective,
    report,
    settings,
    train,
)
from apex_jax.models import audioprotopnet as network
from apex_jax.models import audioprotopnet_keys, convnext, convnext_keys

DATA = pathlib.Path(__file__).parent / "data"
FRONT_END, NAMES = test_cache.FRONT_END, test_cache.NAMES
BACKBONE = convnext.ConvNeXtConfig(depths=(1, 2), dims=(4, 6), num_classes=2)
SMALL = convnext.ConvNeXtConfig(depths=(1,), dims=(6,), num_classes=2)  # to train
CLASSES, EACH = 3, 2


@jax.jit
def body_of(model, spectrogram):
    return model.backbone.body(spectrogram)


@jax.jit
def logits_by(model, spectrogram):
    return model(spectrogram)


@jax.jit
def similarities_of(model, spectrogram):
    return model.head.similarities(body_of(model, spectrogram))


orthogonality = jax.jit(objective.orthogonality, static_argnames="epsilon")


@functools.cache
def model_of(seed=0, backbone=BACKBONE):
    """Every array matters, and some weights are below zero."""
    rng = np.random.default_rng(seed)
    model = network.on(
        test_convnext.lively(backbone),
        num_classes=CLASSES,
        num_prototypes=EACH,
        key=jax.random.key(seed),
    )
    arrays = convnext.named_arrays(model)
    for name in ("prototypes", "weight", "bias"):
        shape = arrays[f"head.{name}"].shape
        arrays[f"head.{name}"] = np.float32(rng.normal(0.2, 1, shape))
    return network.from_named_arrays(model.config, arrays)


def bilinear_twice(body):
    """Half-pixel centres, edges repeated: every new sample lies at a quarter."""

    def along(values):
        before = np.concatenate([values[:1], values[:-1]])
        after = np.concatenate([values[1:], values[-1:]])
        pairs = [0.75 * values + 0.25 * before, 0.75 * values + 0.25 * after]
        return np.stack(pairs, axis=1).reshape(-1, *values.shape[1:])

    return along(along(body).swapaxes(0, 1)).swapaxes(0, 1)


def similarity_maps(body, prototypes):
    """One place and prototype at a time, with the two channels really appended."""
    fine = bilinear_twice(np.asarray(body, np.float64))
    maps = np.zeros((len(prototypes), *fine.shape[:2]))
    for p, row, column in itertools.product(*map(range, maps.shape)):
        place = np.append(fine[row, column], [1e-4, 1e-4])
        prototype = np.append(np.float64(prototypes[p]), [1e-4, 1e-4])
        length = np.sqrt(prototype @ prototype + 1e-4) + 1e-4
        cosine = (place @ prototype) / (np.sqrt(place @ place + 1e-4) * length)
        maps[p, row, column] = max(cosine / 1.01, 0)
    return maps


def logits_of(model, body):
    head = model.head
    prototypes = np.asarray(head.prototypes[...]).reshape(CLASSES * EACH, -1)
    best = similarity_maps(body, prototypes).max(axis=(1, 2)).reshape(CLASSES, EACH)
    weight = np.maximum(np.asarray(head.weight[...]), 0)
    return (weight * best).sum(axis=1) + np.asarray(head.bias[...])


# --- the network


def test_logits_are_the_formula():
    model, spectrogram = model_of(), test_convnext.spectrograms(2, 24, 40)
    body = np.asarray(body_of(model, spectrogram))
    assert (np.asarray(model.head.weight[...]) < 0).any()
    expected = [logits_of(model, one) for one in body]
    np.testing.assert_allclose(
        logits_by(model, spectrogram), expected, rtol=2e-6, atol=2e-6
    )


def test_maps_are_the_formula():
    model, spectrogram = model_of(), test_convnext.spectrograms(2, 24, 40)
    body = body_of(model, spectrogram)
    chosen = np.array([4, 1])
    prototypes = np.asarray(model.head.prototypes[...]).reshape(CLASSES * EACH, -1)
    found = model.head.maps(body, chosen)
    for one, place in zip(np.asarray(body), found, strict=True):
        np.testing.assert_allclose(
            place, similarity_maps(one, prototypes[chosen]), rtol=2e-6, atol=2e-6
        )


def test_a_vector_and_itself():
    vector = jnp.full((1, 1, 1, 1024), 0.7)
    (found,) = network._similarities(vector[0], vector[0, 0]).ravel()
    assert found == pytest.approx(1 / 1.01, abs=1e-4)


@pytest.mark.parametrize("chunk", [1, 4, 5, 6, 100])
def test_chunks_change_nothing(chunk, monkeypatch):
    """Neither similarities nor gradients, where chunks divide evenly and where not."""
    model, spectrogram = model_of(), test_convnext.spectrograms(2, 24, 40)
    body = body_of(model, spectrogram)

    def total(head, body):
        return jnp.sum(head.similarities(body) ** 2)

    def found():
        return jax.jit(jax.value_and_grad(total, argnums=(0, 1)))(model.head, body)

    whole = found()
    monkeypatch.setattr(network, "CHUNK", chunk)
    for one, other in zip(
        jax.tree.leaves(whole), jax.tree.leaves(found()), strict=True
    ):
        np.testing.assert_allclose(other, one, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("classes", "each", "expected"),
    [
        (9736, 1, 97_551_504),
        (9736, 5, 137_469_104),
        (9736, 10, 187_366_104),
        (9736, 20, 287_160_104),
        (411, 5, 89_669_154),
        (2, 5, 87_572_620),
    ],
)
def test_as_many_weights_as_published(classes, each, expected):
    backbone = convnext.ConvNeXtConfig.named("base", num_classes=0)
    config = network.AudioProtoPNetConfig(
        backbone=backbone, num_classes=classes, num_prototypes=each
    )
    leaves = jax.tree.leaves(network.abstract(config))
    assert sum(leaf.size for leaf in leaves) == expected


def test_it_begins_unsure():
    """Logits of -2 where nothing is similar, and at most 2.95 with five prototypes."""
    model = network.on(
        test_convnext.lively(BACKBONE), num_classes=4, key=jax.random.key(0)
    )
    assert model.head.prototypes.shape == (4, 5, 6)
    prototypes = np.asarray(model.head.prototypes[...])
    assert prototypes.min() >= 0
    assert prototypes.max() < 1
    nothing = model.head.logits(jnp.zeros((1, 4, 5)))
    np.testing.assert_array_equal(nothing, np.full((1, 4), -2))
    everything = model.head.logits(jnp.full((1, 4, 5), 1 / 1.01))
    np.testing.assert_allclose(everything, np.full((1, 4), 2.95), atol=1e-3)


def test_as_network_gives_similarities_and_logits():
    model, spectrogram = model_of(), test_convnext.spectrograms(2, 24, 40)
    feature_map, logits = network.as_network(model)(spectrogram)
    assert feature_map.shape == (2, 1, 1, CLASSES * EACH)
    np.testing.assert_allclose(logits, logits_by(model, spectrogram), rtol=1e-6)
    similarities = np.asarray(feature_map).reshape(2, CLASSES, EACH)
    weight = np.maximum(np.asarray(model.head.weight[...]), 0)
    expected = (similarities * weight).sum(axis=-1) + np.asarray(model.head.bias[...])
    np.testing.assert_allclose(logits, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_the_gradient_is_that_of_the_maximum():
    """To body and prototypes alike, of the plain formula, over two chunks."""
    body = jax.random.normal(jax.random.key(0), (3, 2, 4, 6))
    many = network.CHUNK + 5
    prototypes = jax.random.normal(jax.random.key(1), (many, 1, 6))
    head = network.PrototypeHead(
        network.AudioProtoPNetConfig(
            backbone=BACKBONE, num_classes=many, num_prototypes=1
        ),
        rngs=nnx.Rngs(0),
    )

    def ours(body, prototypes):
        mine = jax.tree.unflatten(
            jax.tree.structure(head), [head.bias[...], prototypes, head.weight[...]]
        )
        assert mine.prototypes.shape == (many, 1, 6)
        return jnp.sum(jnp.sin(mine.similarities(body)))

    def plain(body, prototypes):
        cells = network.finer(body).reshape(3, -1, 6)
        extended = [
            jnp.concatenate([a, jnp.full((*a.shape[:-1], 2), 1e-4)], axis=-1)
            for a in (cells, prototypes[:, 0])
        ]
        lengths = [jnp.sqrt((a**2).sum(-1) + 1e-4) for a in extended]
        cosine = jnp.einsum("bnc,pc->bnp", *extended, precision="highest")
        cosine /= lengths[0][..., None] * (lengths[1] + 1e-4)[None, None]
        return jnp.sum(jnp.sin(jnp.maximum(cosine / 1.01, 0).max(axis=1)))

    expected = jax.jit(jax.grad(plain, argnums=(0, 1)))(body, prototypes)
    found = jax.jit(jax.grad(ours, argnums=(0, 1)))(body, prototypes)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)


def test_restricted_to_some_classes():
    model, spectrogram = model_of(), test_convnext.spectrograms(1, 24, 40)
    some = network.restrict(model, [2, 0])
    assert some.config.num_classes == 2
    np.testing.assert_allclose(
        logits_by(some, spectrogram),
        logits_by(model, spectrogram)[:, [2, 0]],
        rtol=1e-6,
    )
    for wrong in ([], [3], [-1]):
        with pytest.raises(ValueError, match="classes must be some of 0 to 2"):
            network.restrict(model, wrong)


def test_no_classes_or_prototypes():
    for changes in ({"num_classes": 0}, {"num_prototypes": 0}):
        with pytest.raises(ValueError, match="at least 1, got"):
            network.AudioProtoPNetConfig(
                **{"backbone": BACKBONE, "num_classes": 2, **changes}
            )


# --- losses


def test_asymmetric_loss():
    logits = jnp.array([[2.0, -3.0, 40.0], [-40.0, 0.0, -2.0], [1.0, 1.0, 1.0]])
    target = jnp.array([[1.0, 0, 0], [1, 1, 0], [0, 0, 0]])
    valid = jnp.array([True, True, False])
    total = 0.0
    for z, y in zip(
        *(np.float64(a[:2]).ravel() for a in (logits, target)), strict=True
    ):
        p = 1 / (1 + np.exp(-z))
        q = min(1 - p + 0.05, 1)
        total -= (1 - p) * np.log(max(p, 1e-8)) if y else (1 - q) ** 4 * np.log(q)
    found = jax.jit(objective.asymmetric)(logits, target, valid)
    assert float(found) == pytest.approx(total / 6, rel=1e-5)
    nobody = objective.asymmetric(logits, target, jnp.zeros(3, bool))
    assert float(nobody) == 0
    grads = jax.jit(jax.grad(objective.asymmetric))(logits, target, valid)
    assert np.isfinite(np.asarray(grads)).all()


def test_asymmetric_loss_of_a_beginning():
    """One class of 9,736 present, all logits -2: 1.9e-4 (the authors' code)."""
    target = jnp.zeros((1, 9736)).at[0, 5].set(1)
    loss = objective.asymmetric(jnp.full_like(target, -2), target, jnp.ones(1, bool))
    assert float(loss) == pytest.approx(1.9e-4, rel=0.03)


@pytest.mark.parametrize(("classes", "expected"), [(9736, 1.4e-3), (411, 6.6e-3)])
def test_orthogonality_of_a_beginning(classes, expected):
    """The authors' code at its beginning, to the two digits known."""
    prototypes = jax.random.uniform(jax.random.key(1), (classes, 5, 1024))
    found = orthogonality(prototypes, epsilon=1e-4)
    assert float(found) == pytest.approx(expected, rel=0.03)


def test_orthogonality_is_the_formula(rng):
    prototypes = rng.normal(size=(2, 3, 5)).astype(np.float32)
    squares = 0.0
    for one in prototypes.astype(np.float64):
        unit = [p / (np.sqrt(p @ p + 1e-4) + 1e-4) for p in one]
        squares += sum(
            (a @ b - (i == j)) ** 2
            for i, a in enumerate(unit)
            for j, b in enumerate(unit)
        )
    found = objective.orthogonality(jnp.asarray(prototypes), epsilon=1e-4)
    assert float(found) == pytest.approx(np.sqrt(squares) / (2 * 3**2), rel=1e-5)
    # A single prototype is orthogonal to no other, and has a gradient.
    alone = jnp.eye(4)[:, None]
    assert float(objective.orthogonality(alone, epsilon=0.0)) == pytest.approx(0)
    slope = jax.grad(orthogonality)(alone, epsilon=0.0)
    assert np.isfinite(np.asarray(slope)).all()


# --- training


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    """Of three tones; 19, so that the last batch is ragged."""
    return test_cache.write_clips(tmp_path_factory.mktemp("tones"), num_clips=19)


def fit(clips, **changes):
    chosen = {"epochs": 12, "batch_size": 8, "learning_rate": 5e-3, **changes}
    return audioprotopnet.fit(
        test_convnext.lively(SMALL),
        clips,
        clips[:6],
        FRONT_END,
        class_names=NAMES,
        num_prototypes=EACH,
        config=audioprotopnet.Config(**chosen),
        mesh=test_cache.mesh_of(1),
    )


def test_prototypes_are_learned_and_the_backbone_stays(clips):
    model, epochs = fit(clips)
    assert epochs[-1].train_loss < 0.7 * epochs[0].train_loss
    before = convnext.named_arrays(test_convnext.lively(SMALL))
    for name, array in convnext.named_arrays(model.backbone).items():
        np.testing.assert_array_equal(array, before[name], err_msg=name)
    first = jax.random.uniform(jax.random.key(0), model.head.prototypes.shape)
    assert np.abs(np.asarray(model.head.prototypes[...]) - first).max() > 0.1


@pytest.mark.slow
def test_the_backbone_can_be_trained_too(clips):
    model, _ = fit(clips, epochs=2, backbone_rate=1e-3)
    before = convnext.named_arrays(test_convnext.lively(SMALL))
    moved = {
        name
        for name, array in convnext.named_arrays(model.backbone).items()
        if np.any(np.asarray(array) != before[name])
    }
    # What only the backbone's own classifier uses is not.
    assert {name.split(".")[0] for name in moved} >= {"stem", "stages"}


def test_each_part_has_its_rate_and_decay():
    """Without gradients AdamW only decays, by rate times decay."""
    config = settings.PrototypeTraining(backbone_rate=0.3, warmup=0.5)
    optimiser, model = config.optimiser(4), model_of(backbone=SMALL)

    @jax.jit
    def second_update(model):
        nothing = jax.tree.map(jnp.zeros_like, model)
        _, state = optimiser.update(nothing, optimiser.init(model), model)  # rate 0
        return optimiser.update(nothing, state, model)[0]  # half the rate

    arrays = convnext.named_arrays(model)
    for name, update in convnext.named_arrays(second_update(model)).items():
        rate, decay = {
            "head.prototypes": (0.05, 0.01),
            "head.weight": (5e-4, 1e-4),
            "head.bias": (5e-4, 1e-4),
        }.get(name, (0.3, 1e-4))
        np.testing.assert_allclose(
            update, -0.5 * rate * decay * np.asarray(arrays[name]), rtol=1e-4, atol=1e-9
        )


def test_the_gradient_is_that_of_the_formula(clips):
    """One step down the very gradient, against differences of the plain formula."""
    model = model_of()
    task = audioprotopnet.learning(model.config)
    waveform = np.stack([test_cache.waveform_of(clip) for clip in clips[:8]])
    target = jnp.asarray(objective.targets(clips[:8], CLASSES))
    spectrogram = audio.spectrogram(FRONT_END, jnp.asarray(waveform))
    moved, _, loss = train.step(
        jax.tree.map(jnp.copy, model.head),
        optax.sgd(1.0).init(model.head),
        jax.random.key(0),
        *(jnp.asarray(a) for a in (waveform, target, np.ones(8, bool))),
        jnp.arange(8),
        fixed=model.backbone,
        task=task,
        optimiser=optax.sgd(1.0),
        front_end=FRONT_END,
        mesh=test_cache.mesh_of(8),
    )

    @jax.jit
    def value(head):
        logits = network.joined(model.config, model.backbone, head)(spectrogram)
        return objective.asymmetric(
            logits, target, jnp.ones(8, bool)
        ) + objective.orthogonality(head.prototypes[...], epsilon=1e-4)

    assert float(loss) == pytest.approx(float(value(model.head)), rel=1e-5)
    gradient = jax.tree.map(jnp.subtract, model.head, moved)
    for leaf, slope in enumerate(jax.tree.leaves(gradient)):
        leaves, structure = jax.tree.flatten(model.head)
        place = np.unravel_index(np.argmax(np.abs(slope)), slope.shape)
        step = 3e-3

        def at(change, leaf=leaf, place=place, leaves=leaves, structure=structure):
            changed = [*leaves]
            changed[leaf] = leaves[leaf].at[place].add(change)
            return float(value(jax.tree.unflatten(structure, changed)))

        difference = (at(step) - at(-step)) / (2 * step)
        assert float(slope[place]) == pytest.approx(difference, rel=0.03)


def test_impossible_settings():
    for changes in (
        {"epochs": 0},
        {"prototype_rate": 0.0},
        {"backbone_rate": -1.0},
        {"clip_norm": 0.0},
        {"prototype_decay": -0.1},
        {"warmup": 1.5},
    ):
        (name,) = changes
        with pytest.raises(ValueError, match=name):
            settings.PrototypeTraining(**changes).check()


# --- nearest clips and push


@pytest.fixture(scope="module")
def similarities(clips):
    """Of every clip to every prototype, a clip at a time."""
    model, found = model_of(), []
    for clip in clips:
        waveform = jnp.asarray(test_cache.waveform_of(clip))[None]
        spectrogram = audio.spectrogram(FRONT_END, waveform)
        found.append(np.asarray(similarities_of(model, spectrogram)).ravel())
    return np.array(found)


@pytest.mark.parametrize("own_class", [True, False])
def test_nearest_clips(clips, similarities, own_class):
    found = audioprotopnet.nearest(
        model_of(), clips, FRONT_END, num=8, own_class=own_class, batch_size=8
    )
    label = np.array([clip.label for clip in clips])
    for p in range(CLASSES * EACH):
        allowed = label == p // EACH if own_class else label >= 0
        order = np.argsort(np.where(allowed, -similarities[:, p], np.inf))
        count = min(8, allowed.sum())
        # Two clips may be equally similar to the last digit.
        np.testing.assert_allclose(
            similarities[found.index[p, :count], p],
            similarities[order[:count], p],
            atol=1e-5,
        )
        np.testing.assert_allclose(
            found.similarity[p, :count], similarities[order[:count], p], atol=1e-5
        )
        assert (found.index[p, count:] == -1).all()
        assert np.isnan(found.similarity[p, count:]).all()


def test_nearest_clips_of_many_equals_and_one_broken(clips, tmp_path):
    """Over several batches: ties go to the first, numbers count all clips given."""
    (tmp_path / "broken.wav").write_text("no sound")
    broken = dataclasses.replace(clips[0], path=tmp_path / "broken.wav")
    asked = (broken, *[clips[0]] * 3, *clips[1:], clips[0])
    skip_log = data.SkipLog()
    found = audioprotopnet.nearest(
        model_of(), asked, FRONT_END, num=4, batch_size=4, skip_log=skip_log
    )
    assert found.clips == asked
    assert len(skip_log) == 1
    copies = {1, 2, 3, len(asked) - 1}
    for line in found.index[:EACH]:  # of the class of `clips[0]`
        at = [i for i in line if i in copies]
        assert at == sorted(copies)[: len(at)]
    assert any(1 in line for line in found.index[:EACH])
    with pytest.raises(ValueError, match="none of the 1 clips could be read"):
        audioprotopnet.nearest(
            model_of(), (broken,), FRONT_END, skip_log=data.SkipLog()
        )


def test_nearest_holds_the_best_alone(clips, monkeypatch):
    """However many clips: what is sorted at a time is a batch and the best so far."""
    sorted_at_once = []
    real = audioprotopnet._largest

    def largest(num, values, index):
        sorted_at_once.append(sum(map(len, values)))
        return real(num, values, index)

    monkeypatch.setattr(audioprotopnet, "_largest", largest)
    audioprotopnet.nearest(
        model_of(),
        clips * 3,
        FRONT_END,
        num=2,
        batch_size=8,
        mesh=test_cache.mesh_of(1),
    )
    assert max(sorted_at_once) == 2 + 8
    assert len(sorted_at_once) == 8


def test_push_runs_a_clip_once(clips, monkeypatch):
    """Both prototypes of each class are nearest to the one clip that it has."""
    few = tuple({clip.label: clip for clip in clips}.values())
    read, real = [], data.batches

    def batches(clips, *arguments, **options):
        read.append([clip.path for clip in clips])
        return real(clips, *arguments, **options)

    monkeypatch.setattr(data, "batches", batches)
    _, found = audioprotopnet.push(model_of(), few, FRONT_END, batch_size=2)
    assert (found.index[:, 0] >= 0).all()
    assert [len(paths) for paths in read] == [3, 3]
    assert len(set(read[1])) == 3


def test_push_without_any_class(clips):
    """Nothing to push to: clips without a bird, say."""
    none = tuple(data.Clip(path=clip.path, label=()) for clip in clips[:3])
    model = model_of()
    pushed, found = audioprotopnet.push(model, none, FRONT_END)
    assert (found.index == -1).all()
    np.testing.assert_array_equal(
        pushed.head.prototypes[...], model.head.prototypes[...]
    )


def test_push_makes_prototypes_of_places(clips):
    model = model_of()
    # A class without clips, and one of a single clip, which is nearest to two.
    some = (clips[0], *(clip for clip in clips if clip.label == 2))
    pushed, found = audioprotopnet.push(model, some, FRONT_END, batch_size=8)
    assert (found.index[EACH : 2 * EACH] == -1).all()
    assert found.index[:EACH].tolist() == [[0]] * EACH
    assert len(set(found.index[2 * EACH :, 0])) == EACH
    before = np.asarray(model.head.prototypes[...])
    after = np.asarray(pushed.head.prototypes[...])
    np.testing.assert_array_equal(after[1], before[1])
    for p in (0, 1, 4, 5):
        clip = found.clips[found.index[p, 0]]
        assert clip.label == p // EACH
        waveform = jnp.asarray(test_cache.waveform_of(clip))[None]
        body = body_of(model, audio.spectrogram(FRONT_END, waveform))
        fine = bilinear_twice(np.asarray(body, np.float64)[0])
        maps = similarity_maps(body[0], before.reshape(CLASSES * EACH, -1)[[p]])
        place = np.unravel_index(np.argmax(maps[0]), maps[0].shape)
        np.testing.assert_allclose(
            after.reshape(CLASSES * EACH, -1)[p], fine[place], rtol=1e-4, atol=1e-5
        )
        assert float(pushed.head.maps(body, np.array([p])).max()) == pytest.approx(
            1 / 1.01, abs=1e-3
        )


def test_no_clips_asked_for(clips):
    with pytest.raises(ValueError, match="num must be at least 1; got 0"):
        audioprotopnet.nearest(model_of(), clips, FRONT_END, num=0)


# --- maps and boxes


def cubic_at(values, place):
    """One sample of a row by the kernel with a = -0.75, edges repeated."""
    a, total = -0.75, 0.0
    for sample in range(int(np.floor(place)) - 1, int(np.floor(place)) + 3):
        d = abs(place - sample)
        if d <= 1:
            weight = (a + 2) * d**3 - (a + 3) * d**2 + 1
        else:
            weight = a * d**3 - 5 * a * d**2 + 8 * a * d - 4 * a
        total += weight * values[min(max(sample, 0), len(values) - 1)]
    return total


def test_enlarged_as_opencv_does(rng):
    values = rng.normal(size=(4, 5))
    found = boxes.enlarge(values, (9, 17))
    for row, column in np.ndindex(9, 17):
        rows = (row + 0.5) * 4 / 9 - 0.5
        columns = (column + 0.5) * 5 / 17 - 0.5
        expected = cubic_at([cubic_at(line, columns) for line in values], rows)
        assert found[row, column] == pytest.approx(expected, abs=1e-12)
    flat = boxes.enlarge(np.full((3, 3), 2.5), (10, 11))
    np.testing.assert_allclose(flat, 2.5)


OPENCV = json.loads((DATA / "boxes.json").read_text())


@pytest.mark.parametrize("case", OPENCV["cases"])
def test_boxes_are_those_of_opencv(case):
    """Recorded by `data/make_box_references.py`: enlarged maps and boxes."""
    heat = boxes.on_spectrogram(np.array(case["similarity"]), tuple(case["shape"]))
    found = [heat[tuple(at)] for at in case["at"]]
    np.testing.assert_allclose(found, case["values"], atol=1e-6)
    assert heat.max() == pytest.approx(case["largest"], abs=1e-6)
    box = boxes.box(heat)
    assert box.rows == tuple(case["box"]["rows"])
    assert box.frames == tuple(case["box"]["frames"])


def test_the_cases_of_opencv_try_the_choice_among_parts():
    assert sum(case["box"]["parts"] > 1 for case in OPENCV["cases"]) >= 4


def test_a_map_lies_where_its_cells_do():
    """Cells of 8 x 8 pixels, of which the last frames belong to none."""
    similarity = np.zeros((6, 8))
    similarity[4, 7] = 1
    heat = boxes.on_spectrogram(similarity, (24, 37), stride=8)
    assert heat.shape == (24, 37)
    row, column = np.unravel_index(np.argmax(heat), heat.shape)
    assert 16 <= row < 20
    assert 28 <= column < 32
    np.testing.assert_array_equal(heat[:, 32:], np.repeat(heat[:, 31:32], 5, axis=1))
    stretched = boxes.on_spectrogram(similarity, (24, 37))
    np.testing.assert_allclose(stretched, boxes.enlarge(similarity, (24, 37)))


def test_box_of_the_brightest_part_not_the_largest():
    heat = np.zeros((40, 50))
    heat[5:8, 30:40] = 1.0  # large
    heat[20, 10], heat[21, 11], heat[22, 10] = 1.2, 1.4, 1.3  # connected by corners
    box = boxes.box(np.where(heat > 0, heat, np.arange(50)[None] * 1e-3 - 1))
    # A twentieth of 2,000 is 100: the slope's brightest columns belong to it too.
    assert box.rows == (20.0, 23.0)
    assert box.frames == (10.0, 12.0)


def test_matches_of_a_clip(clips):
    model = model_of()
    waveform = jnp.asarray(test_cache.waveform_of(clips[0]))[None]
    spectrogram = np.asarray(audio.spectrogram(FRONT_END, waveform)[0])
    logits = np.asarray(logits_by(model, jnp.asarray(spectrogram)[None]))[0]
    bias = np.asarray(model.head.bias[...])
    for target in range(CLASSES):
        found = boxes.matches(
            model, NAMES, spectrogram, target=target, front_end=FRONT_END
        )
        assert {match.prototype // EACH for match in found} == {target}
        assert sum(m.contribution for m in found) + bias[target] == pytest.approx(
            logits[target], abs=1e-5
        )
        contributions = [match.contribution for match in found]
        assert contributions == sorted(contributions, reverse=True)
        for match in found:
            assert match.class_name == NAMES[target]
            assert match.heatmap.shape == spectrogram.shape
            assert match.heatmap.min() == 0
            assert match.heatmap.max() in (0, pytest.approx(1))
            assert 0 <= match.area.start_s < match.area.end_s <= FRONT_END.clip_s + 0.1
            assert 0 <= match.area.low_hz < match.area.high_hz <= 4000
    assert len(boxes.matches(model, NAMES, spectrogram, target=1, num=1)) == 1
    with pytest.raises(ValueError, match="target must be 0 to 2; got 3"):
        boxes.matches(model, NAMES, spectrogram, target=3)


def test_the_local_explanation(clips):
    """Which prototypes, in which order, against the similarities of all of them."""
    model = model_of()
    waveform = jnp.asarray(test_cache.waveform_of(clips[0]))[None]
    spectrogram = np.asarray(audio.spectrogram(FRONT_END, waveform)[0])
    similarity = np.asarray(
        similarities_of(model, jnp.asarray(spectrogram)[None])
    ).ravel()
    logits = np.asarray(logits_by(model, jnp.asarray(spectrogram)[None]))[0]
    found = boxes.local(
        model, NAMES, spectrogram, num_activated=4, num_classes=2, front_end=FRONT_END
    )
    np.testing.assert_allclose(found.logits, logits, rtol=1e-5, atol=1e-6)
    order = np.argsort(-logits)
    assert list(found.predicted) == [c for c in order if logits[c] >= 0]
    values = [match.similarity for match in found.activated]
    np.testing.assert_allclose(values, np.sort(similarity)[::-1][:4], atol=1e-6)
    for match in found.activated:
        assert similarity[match.prototype] == pytest.approx(match.similarity, abs=1e-6)
        assert match.class_name == NAMES[match.prototype // EACH]
    assert len(found.likeliest) == 2
    for target, ones in zip(order, found.likeliest, strict=False):
        alone = boxes.matches(
            model, NAMES, spectrogram, target=int(target), front_end=FRONT_END
        )
        for one, other in zip(ones, alone, strict=True):
            assert one.prototype == other.prototype
            assert one.contribution == pytest.approx(other.contribution, abs=1e-6)
            assert one.area == other.area
            np.testing.assert_allclose(one.heatmap, other.heatmap, atol=1e-5)
    few = boxes.local(model, NAMES, spectrogram, num_activated=0, num_classes=99)
    assert few.activated == ()
    assert len(few.likeliest) == CLASSES
    with pytest.raises(ValueError, match="must not be negative; got -1 and 10"):
        boxes.local(model, NAMES, spectrogram, num_activated=-1)


def test_a_prototype_that_is_similar_to_nothing(clips):
    """Its map is nothing, its box the whole clip; it adds nothing."""
    model = model_of()
    waveform = jnp.asarray(test_cache.waveform_of(clips[0]))[None]
    spectrogram = np.asarray(audio.spectrogram(FRONT_END, waveform)[0])
    body = body_of(model, jnp.asarray(spectrogram)[None])
    arrays = convnext.named_arrays(model)
    dead = np.array(arrays["head.prototypes"])
    # Opposite to every place: their directions lie in one half of the space.
    cells = np.asarray(body).reshape(-1, body.shape[-1])
    mean = (cells / np.linalg.norm(cells, axis=1, keepdims=True)).mean(axis=0)
    assert (cells @ mean > 0).all()
    dead[1, 0] = -9 * mean
    arrays["head.prototypes"] = dead
    model = network.from_named_arrays(model.config, arrays)
    found = boxes.matches(model, NAMES, spectrogram, target=1, front_end=FRONT_END)
    (match,) = (one for one in found if one.prototype == EACH)
    assert match.similarity == match.contribution == 0
    assert not match.heatmap.any()
    rows, frames = spectrogram.shape
    assert match.area.box.rows == (0, rows)
    assert match.area.box.frames == (0, frames)
    result = boxes.explain(model, NAMES, FRONT_END, clips[0].path, target="middle")
    (channel,) = (one for one in result.channels if one.index == EACH)
    assert channel.areas == (match.area,)


def test_a_flat_map_stands_out_nowhere():
    """Equal but for what enlarging rounds, which must not choose a box."""
    heat = boxes.enlarge(np.full((6, 7), 0.3), (24, 37))
    assert heat.min() < heat.max()
    box = boxes.box(heat)
    assert (box.rows, box.frames) == ((0, 24), (0, 37))
    assert not boxes.normalised(heat).any()


# --- on disk, and from the published format


def test_a_checkpoint_comes_back(tmp_path):
    model, spectrogram = model_of(), test_convnext.spectrograms(1, 24, 40)
    checkpoint.save_audioprotopnet(
        tmp_path / "net", model, class_names=NAMES, front_end=FRONT_END.to_dict()
    )
    loaded, metadata = checkpoint.load_audioprotopnet(tmp_path / "net")
    assert loaded.config == model.config
    assert tuple(metadata["class_names"]) == NAMES
    assert metadata["activation"] == "sigmoid"
    assert audio.FrontEnd.from_dict(metadata["front_end"]) == FRONT_END
    np.testing.assert_array_equal(
        logits_by(loaded, spectrogram), logits_by(model, spectrogram)
    )
    with pytest.raises(ValueError, match="'audioprotopnet'; this needs 'classifier'"):
        checkpoint.load_classifier(tmp_path / "net")
    with pytest.raises(ValueError, match="one name for each of 3 classes"):
        checkpoint.save_audioprotopnet(tmp_path / "x", model, class_names=["a"])


def published(model, prefix="backbone."):
    """The network's arrays as its authors' checkpoints hold them."""
    whole = convnext_keys.to_state_dict(model.backbone, "transformers")
    state = {key.replace("convnext.", prefix): array for key, array in whole.items()}
    head = model.head
    prototypes = np.asarray(head.prototypes[...]).reshape(CLASSES * EACH, -1)
    return state | {
        "head.prototype_vectors": prototypes[:, :, None, None],
        "head.last_layer.weight": np.asarray(head.weight[...]),
        "head.last_layer.bias": np.asarray(head.bias[...]),
    }


@pytest.fixture
def headless():
    return model_of(backbone=dataclasses.replace(BACKBONE, num_classes=0))


@pytest.mark.parametrize("prefix", ["backbone.", "model.backbone.", ""])
def test_published_weights(headless, prefix):
    state = published(headless, prefix)
    assert audioprotopnet_keys.recognised(state)
    found = audioprotopnet_keys.from_state_dict(state)
    assert found.config.backbone.num_classes == 0
    spectrogram = test_convnext.spectrograms(2, 24, 40)
    np.testing.assert_allclose(found(spectrogram), headless(spectrogram), rtol=1e-6)


@pytest.mark.parametrize(
    ("head", "backbone"),
    [("", "backbone."), ("", ""), ("model.", "model.backbone."), ("model.", "model.")],
)
def test_published_weights_whose_head_shares_its_prefix(headless, head, backbone):
    """Bare, or with one prefix for the whole network: the head is told by name."""
    state = {
        f"{head}{key.removeprefix('head.')}" if key.startswith("head.") else key: array
        for key, array in published(headless, backbone).items()
    }
    found = audioprotopnet_keys.from_state_dict(state)
    spectrogram = test_convnext.spectrograms(2, 24, 40)
    np.testing.assert_allclose(found(spectrogram), headless(spectrogram), rtol=1e-6)
    for extra in ("frequency_weights", "last_layer.extra"):
        with pytest.raises(ValueError, match=extra):
            audioprotopnet_keys.from_state_dict(state | {head + extra: np.ones(3)})
    del state[f"{head}last_layer.bias"]
    with pytest.raises(ValueError, match=r"left over: last_layer\.bias"):
        audioprotopnet_keys.from_state_dict(state)


def test_published_weights_that_do_not_fit(headless):
    state = published(headless)
    for change, message in [
        ({"head.frequency_weights": np.ones(3)}, "left over: frequency_weights"),
        ({"head.last_layer.weight": np.ones((2, 2))}, "shapes do not fit"),
        ({"head.last_layer.bias": np.full(3, np.nan)}, "not finite"),
        ({"other.encoder.x": np.ones(3)}, "one ConvNeXt"),
        ({"stray": np.ones(3)}, "unexpected: stray"),
    ]:
        with pytest.raises(ValueError, match=message):
            audioprotopnet_keys.from_state_dict(state | change)
    del state["head.prototype_vectors"]
    assert not audioprotopnet_keys.recognised(state)
    with pytest.raises(ValueError, match="none ends in prototype_vectors"):
        audioprotopnet_keys.from_state_dict(state)


def test_convert_writes_a_checkpoint_with_its_front_end(headless, tmp_path):
    safetensors = pytest.importorskip("safetensors.numpy")
    state = {k: np.ascontiguousarray(a) for k, a in published(headless).items()}
    safetensors.save_file(state, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(
        '{"model_type": "AudioProtoNet", "id2label": {"0": "x", "1": "y", "2": "z"}}'
    )
    said = convert.main(convert.Convert(source=tmp_path, out=tmp_path / "net"))
    assert "2 prototypes for each of 3 classes; front end as published" in said
    _, metadata = checkpoint.load_audioprotopnet(tmp_path / "net")
    assert metadata["class_names"] == ["x", "y", "z"]
    front_end = audio.FrontEnd.from_dict(metadata["front_end"])
    assert front_end.shape == (256, 626)
    assert front_end.mel_scale == "htk"
    with pytest.raises(ValueError, match="is an AudioProtoPNet"):
        convert.load(tmp_path)


@pytest.fixture(scope="module")
def recorded():
    """What data/make_audioprotopnet_references.py made with torch and transformers."""
    with np.load(DATA / "audioprotopnet.npz") as arrays:
        return dict(arrays)


def state_of(recorded, kind="state"):
    start = f"{kind}/"
    return {
        name.removeprefix(start): array
        for name, array in recorded.items()
        if name.startswith(start)
    }


def test_a_network_of_transformers_and_torch_gives_the_same(recorded):
    """Its own keys in, its similarities and logits out."""
    state = state_of(recorded)
    assert state["head.prototype_vectors"].shape == (CLASSES * EACH, 6, 1, 1)
    assert state["head.last_layer.weight"].shape == (CLASSES, EACH)
    assert "backbone.encoder.stages.1.layers.1.dwconv.weight" in state
    model = audioprotopnet_keys.from_state_dict(state)
    spectrogram = jnp.asarray(recorded["spectrogram"])
    np.testing.assert_allclose(
        logits_by(model, spectrogram), recorded["logits"], rtol=1e-5, atol=2e-6
    )
    maps = model.head.maps(body_of(model, spectrogram), np.arange(CLASSES * EACH))
    np.testing.assert_allclose(maps, recorded["similarity"], rtol=1e-5, atol=2e-6)


def test_losses_and_their_gradients_as_torch_has_them(recorded):
    model = audioprotopnet_keys.from_state_dict(state_of(recorded))
    task = audioprotopnet.learning(model.config, "head")
    spectrogram, target = (jnp.asarray(recorded[n]) for n in ("spectrogram", "target"))
    valid = jnp.ones(len(target), bool)

    def loss(head):
        logits = task.forward(head, model.backbone, spectrogram, "float32")
        return task.loss(logits, target, valid), task.penalty(head)

    parts = jax.jit(loss)(model.head)
    assert parts[0] == pytest.approx(float(recorded["asymmetric"]), rel=1e-5)
    assert parts[1] == pytest.approx(float(recorded["orthogonality"]), rel=1e-5)
    found = convnext.named_arrays(
        jax.jit(jax.grad(lambda head: sum(loss(head))))(model.head)
    )
    wanted = state_of(recorded, "gradient")
    for ours, theirs in (
        ("prototypes", "head.prototype_vectors"),
        ("weight", "head.last_layer.weight"),
        ("bias", "head.last_layer.bias"),
    ):
        theirs = wanted[theirs.removeprefix("head.")]
        np.testing.assert_allclose(
            found[ours], theirs.reshape(found[ours].shape), rtol=1e-4, atol=1e-6
        )


def test_live_torch_and_transformers():
    """Other weights each time; the version that is installed."""
    torch = pytest.importorskip("torch")
    pytest.importorskip("transformers")
    script = runpy.run_path(str(DATA / "make_audioprotopnet_references.py"))
    theirs = script["AudioProtoPNet"]()
    spectrogram = torch.randn(2, 24, 40)
    with torch.no_grad():
        expected = theirs(spectrogram)[1]
    state = {name: array.numpy() for name, array in theirs.state_dict().items()}
    found = audioprotopnet_keys.from_state_dict(state)(jnp.asarray(spectrogram.numpy()))
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_a_clip_with_several_classes_is_learned_from(clips):
    """Or none: what the birds of a soundscape are like."""
    both = [
        data.Clip(path=clip.path, label=((0, 2), (), (1,))[n % 3])
        for n, clip in enumerate(clips)
    ]
    _, epochs = fit(tuple(both), epochs=1)
    assert np.isfinite(epochs[0].validation_loss)


def test_a_clip_is_explained_as_apex_would_be_asked(clips, tmp_path):
    """In the same type, so that reports, sounds and archives take it."""
    model = model_of()
    nearest = audioprotopnet.nearest(model, clips, FRONT_END, num=2, batch_size=8)
    result = boxes.explain(
        model, NAMES, FRONT_END, clips[0].path, num=1, nearest=nearest, num_examples=2
    )
    waveform = jnp.asarray(test_cache.waveform_of(clips[0]))[None]
    logits = np.asarray(logits_by(model, audio.spectrogram(FRONT_END, waveform)))[0]
    np.testing.assert_allclose(result.logits, logits, rtol=1e-5, atol=1e-6)
    assert result.predicted == result.target == int(np.argmax(logits))
    bias = float(model.head.bias[...][result.target])
    assert result.contributions.sum() + bias == pytest.approx(
        logits[result.target], abs=1e-5
    )
    (channel,) = result.channels
    assert channel.index // EACH == result.target
    assert channel.contribution == pytest.approx(result.contributions.max())
    assert result.evidence_share == pytest.approx(
        channel.contribution / result.contributions.sum()
    )
    for n, example in enumerate(channel.prototypes):
        at = nearest.index[channel.index, n]
        assert example.clip == nearest.clips[at]
        assert example.activation == pytest.approx(
            nearest.similarity[channel.index, n], abs=1e-5
        )
        assert example.purity is None
    page = report.write(tmp_path / "page.html", [result])
    text = page.read_text(encoding="utf-8")
    assert f"Prototype {channel.index}" in text
    assert "AudioProtoPNet" in text
    assert "similarity 0." in text
    assert "purity" not in text.split("<main")[1].split("Prototype")[1][:3000]
    again = archive.load(archive.save(tmp_path / "kept", result))
    assert again.channels[0].prototypes[0].purity is None
    sound = listen.region(listen.clip(result), channel.areas)
    assert len(sound.samples)
    figure = comparisons.beside([result], num=2)
    figure.savefig(tmp_path / "beside.png")
    with pytest.raises(ValueError, match="target 'tit' is none of the classes"):
        boxes.explain(model, NAMES, FRONT_END, clips[0].path, target="tit")


def test_a_page_is_of_one_network(clips, tmp_path):
    one, other = (
        boxes.explain(model_of(seed), NAMES, FRONT_END, clips[0].path)
        for seed in (0, 1)
    )
    with pytest.raises(ValueError, match="networks that say different things"):
        report.write(tmp_path / "page.html", [one, other])


def intermediates(jaxpr):
    """Every array that a program makes, those of the programs in it too."""
    for equation in jaxpr.eqns:
        yield from (one.aval for one in equation.outvars)
        for inner in jax.tree.leaves(
            list(equation.params.values()), is_leaf=lambda one: hasattr(one, "eqns")
        ):
            if hasattr(inner, "eqns"):
                yield from intermediates(inner)


def test_similarities_to_all_birds_are_never_held_at_once():
    """For 9,736 classes at the published width, in value and gradient; not run.

    All of them would be 608 places x 48,680 prototypes, 118 MB a clip.
    """
    shape = convnext.ConvNeXtConfig(depths=(1,), dims=(1024,), num_classes=0)
    config = network.AudioProtoPNetConfig(backbone=shape, num_classes=9736)
    head = jax.eval_shape(lambda: network.PrototypeHead(config, rngs=nnx.Rngs(0)))
    batch = 8
    body = jax.ShapeDtypeStruct((batch, 8, 19, 1024), jnp.float32)
    everything = batch * (16 * 38) * (9736 * 5)

    def loss(head, body):
        return jnp.sum(head.logits(head.similarities(body)))

    learning = jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))
    traced = learning.trace(head, body)
    sizes = [one.size for one in intermediates(traced.jaxpr.jaxpr)]
    # A chunk of prototypes at a time; the prototypes themselves are 50 million.
    assert batch * 608 * network.CHUNK in sizes
    assert max(sizes) < everything / 4
    memory = traced.lower().compile().memory_analysis()
    assert memory.temp_size_in_bytes < 4 * everything


@pytest.mark.slow
def test_as_many_classes_as_birds_there_are():
    """9,736 classes of five prototypes at the published width: a value and a gradient.

    All similarities at once would take 118 MB a clip, and their gradient more.
    """
    shape = convnext.ConvNeXtConfig(depths=(1,), dims=(1024,), num_classes=0)
    config = network.AudioProtoPNetConfig(backbone=shape, num_classes=9736)
    head = network.PrototypeHead(config, rngs=nnx.Rngs(0))
    rng = np.random.default_rng(0)
    body = jnp.asarray(rng.normal(size=(1, 8, 19, 1024)), jnp.float32)
    target = jnp.zeros((1, 9736)).at[0, 17].set(1)

    @jax.jit
    def loss(head, body):
        logits = head.logits(head.similarities(body))
        value = objective.asymmetric(logits, target, jnp.ones(1, bool))
        return value + objective.orthogonality(head.prototypes[...], epsilon=1e-4), (
            logits
        )

    (value, logits), gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))(
        head, body
    )
    # The initial losses that its authors' formulas give, see the decision.
    assert float(value) == pytest.approx(1.9e-4 + 1.4e-3, rel=0.1)
    chosen = np.array([0, 48_679, 17 * 5])
    prototypes = np.asarray(head.prototypes[...]).reshape(-1, 1024)[chosen]
    best = similarity_maps(body[0], prototypes).max(axis=(1, 2))
    found = np.asarray(head.similarities(body)).reshape(-1)[chosen]
    np.testing.assert_allclose(found, best, rtol=1e-4, atol=1e-6)
    assert np.isfinite(gradient.prototypes[...]).all()
    assert np.asarray(gradient.prototypes[...])[17].any()
    assert logits.shape == (1, 9736)
