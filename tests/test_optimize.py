"""Learning A against Adam and the method written again in NumPy."""

import dataclasses
import functools
import gc

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg

from apex_jax import bank, disentangle, optimize, purity, resume, schemes
from apex_jax import classifier as classifier_lib
from apex_jax import features as features_lib
from apex_jax import mesh as mesh_lib

N, F, T, C, K = 7, 3, 5, 6, 4

# Small enough for the loops below; decay and rate large enough to be seen.
CONFIG = optimize.Config(
    epochs=5,
    epochs_per_round=2,
    prototypes_start=10,  # more than there are clips
    prototypes_end=2,
    learning_rate=1e-2,
    weight_decay=0.1,
    beta1=0.8,
    beta2=0.99,
    epsilon=1e-5,
)


def features_of(maps, keep_cells=True):
    logits = np.zeros((len(maps), K), np.float32)
    return features_lib.from_maps(
        np.asarray(maps, np.float32), logits, keep_cells=keep_cells
    )


def mesh_of(num_devices):
    return mesh_lib.make(jax.devices()[:num_devices])


def fit(key, maps, scheme, config=CONFIG, num_devices=1, **options):
    """On one device, as eight virtual ones compile slowly."""
    features = features_of(maps, keep_cells=scheme == "square")
    mesh = mesh_of(num_devices)
    return optimize.fit(key, features, scheme, config=config, mesh=mesh, **options)


# The method once more, in float64 and loops.


def averages_at(scheme, feature_map, direction):
    """Location of a channel by section 3, as the average of the map it stands for."""
    response = feature_map @ direction
    row, column = response.mean(axis=1).argmax(), response.mean(axis=0).argmax()
    of_row, of_column = (
        feature_map[row].mean(axis=0),
        feature_map[:, column].mean(axis=0),
    )
    match scheme:
        case "square":
            return feature_map[np.unravel_index(response.argmax(), response.shape)]
        case "time":
            return of_column
        case "frequency":
            return of_row
        case "time_frequency":
            return (of_row + of_column) / 2


def purities(generator, pairs):
    """`pairs` holds (channel, vector before U); the locations are constants."""
    matrix = scipy.linalg.expm(generator)
    found = []
    for k, vector in pairs:
        p = [sum(matrix[i, c] * vector[c] for c in range(C)) for i in range(C)]
        found.append(p[k] / sum(x * x for x in p) ** 0.5)
    return found


def finite_difference(generator, pairs, step=1e-5):
    """Gradient of minus the mean purity, entry by entry of A."""
    gradient = np.zeros((C, C))
    vectors = np.array([vector for _, vector in pairs])
    channels = [k for k, _ in pairs]

    def loss(a):
        p = vectors @ scipy.linalg.expm(a).T
        return -np.mean(p[np.arange(len(p)), channels] / np.sqrt((p * p).sum(axis=1)))

    assert loss(generator) == pytest.approx(-np.mean(purities(generator, pairs)))
    for i, j in np.ndindex(C, C):
        nudge = np.zeros((C, C))
        nudge[i, j] = step
        gradient[i, j] = (loss(generator + nudge) - loss(generator - nudge)) / (
            2 * step
        )
    return gradient


def strongest(generator, maps, num):
    """The num clips with the largest sum of each channel's map."""
    matrix = scipy.linalg.expm(generator)
    sums = [[(z @ row).sum() for z in maps] for row in matrix]
    return [np.argsort(np.negative(s), kind="stable")[:num] for s in sums]


def fit_by_hand(maps, scheme, config):
    """Sections 3 to 5 with all pairs in one batch, so that their order is nothing."""
    generator = np.zeros((C, C))
    first, second = np.zeros((C, C)), np.zeros((C, C))
    rounds = int(np.ceil(config.epochs / config.epochs_per_round))
    line = np.linspace(config.prototypes_start, config.prototypes_end, rounds)
    epoch_purity, round_purity = [], []

    def pairs_of(clips):
        matrix = scipy.linalg.expm(generator)
        return [
            (k, averages_at(scheme, maps[n], matrix[k]))
            for k in range(C)
            for n in clips[k]
        ]

    def measure_round():
        clips = strongest(generator, maps, config.prototypes_end)
        round_purity.append(np.mean(purities(generator, pairs_of(clips))))

    for epoch in range(config.epochs):
        if epoch % config.epochs_per_round == 0:
            measure_round()
            num = min(round(line[epoch // config.epochs_per_round]), len(maps))
            clips = strongest(generator, maps, num)
        pairs = pairs_of(clips)
        epoch_purity.append(np.mean(purities(generator, pairs)))
        gradient = finite_difference(generator, pairs)
        gradient += config.weight_decay * generator
        first = config.beta1 * first + (1 - config.beta1) * gradient
        second = config.beta2 * second + (1 - config.beta2) * gradient**2
        step = (first / (1 - config.beta1 ** (epoch + 1))) / (
            np.sqrt(second / (1 - config.beta2 ** (epoch + 1))) + config.epsilon
        )
        generator = generator - config.learning_rate * step
    measure_round()
    return generator, epoch_purity, round_purity


@pytest.mark.parametrize("scheme", schemes.SCHEMES)
def test_fit_is_the_method_in_numpy(scheme, rng, key):
    maps = rng.normal(size=(N, F, T, C))
    seen = []
    generator, history = fit(
        key, maps, scheme, on_epoch=lambda epoch, mean: seen.append((epoch, mean))
    )
    expected, epoch_purity, round_purity = fit_by_hand(maps, scheme, CONFIG)
    assert np.abs(expected).max() > 4 * CONFIG.learning_rate  # it went somewhere
    np.testing.assert_allclose(generator, expected, atol=2e-2 * CONFIG.learning_rate)
    np.testing.assert_allclose(history.epoch_purity, epoch_purity, atol=2e-5)
    np.testing.assert_allclose(history.round_purity, round_purity, atol=2e-5)
    assert history.epoch_prototypes == [7, 7, 6, 6, 2]
    assert history.round_epochs == [0, 2, 4, 5]
    assert seen == list(enumerate(history.epoch_purity, start=1))


def epoch_of(
    maps, clips, num, config, scheme="time", num_devices=1, seed=0, start=None
):
    mesh = mesh_of(num_devices)
    generator = jnp.zeros((C, C)) if start is None else jnp.asarray(start, jnp.float32)
    generator, state = mesh_lib.replicate(
        (generator, config.optimiser().init(generator)), mesh
    )
    return optimize.run_epoch(
        jax.random.key(seed),
        generator,
        state,
        features_of(maps).to_mesh(mesh).views,
        jnp.asarray(clips),
        jnp.int32(num),
        config=config,
        scheme=scheme,
        mesh=mesh,
    )


def test_one_step_from_a_learned_generator_has_the_adjoints_gradient(rng):
    """Without Adam's scaling: with a huge epsilon the first step is the gradient."""
    maps, start = rng.normal(size=(N, F, T, C)), 0.4 * rng.normal(size=(C, C))
    clips = np.array(strongest(start, maps, 4))
    config = optimize.Config(learning_rate=1e6, epsilon=1e6, weight_decay=1e-5)
    matrix = scipy.linalg.expm(start)
    outer = np.zeros((C, C))
    for k in range(C):
        for n in clips[k, :3]:
            vector = averages_at("square", maps[n], matrix[k])
            p = matrix @ vector
            length = np.sqrt(p @ p)
            by_p = np.eye(C)[k] / length - p[k] * p / length**3
            outer -= np.outer(by_p, vector) / (3 * C)
    gradient = scipy.linalg.expm_frechet(start.T, outer, compute_expm=False)
    after, _, _ = epoch_of(maps, clips, 3, config, scheme="square", start=start)
    np.testing.assert_allclose(
        np.asarray(after) - start, -(gradient + 1e-5 * start), atol=2e-6
    )


def test_an_epoch_visits_every_pair_once(rng, monkeypatch):
    """The pairs that reach the loss are written down while the epoch runs."""
    top, num, batch_size = N, 5, 8  # 30 pairs: three full batches and one of six
    maps = rng.normal(size=(N, F, T, C)).astype(np.float32)
    clips = np.stack([rng.permutation(N)[:top] for _ in range(C)])
    batches = []
    loss = purity.loss

    def spy(prototypes, channels, weights):
        jax.debug.callback(
            lambda *a: batches.append([np.array(x) for x in a]),
            prototypes,
            channels,
            weights,
        )
        return loss(prototypes, channels, weights)

    monkeypatch.setattr(purity, "loss", spy)
    # Of its own, so that no other test runs the program that holds the spy. A rate of
    # almost 0 keeps U the identity, so that a prototype is a
    # column of its clip.
    config = optimize.Config(learning_rate=1e-30, batch_size=batch_size)
    columns = maps.mean(axis=1)
    orders = []
    for seed in (0, 1):
        batches.clear()
        _, _, mean = epoch_of(maps, clips, num, config, seed=seed)
        jax.effects_barrier()
        assert sorted(b[2].sum() for b in batches) == [6, 8, 8, 8]
        visited = [
            (int(k), int(np.abs(columns - p).sum(axis=2).min(axis=1).argmin()))
            for prototypes, channels, weights in batches
            for p, k, w in zip(prototypes, channels, weights, strict=True)
            if w
        ]
        expected = sorted((k, int(n)) for k in range(C) for n in clips[k, :num])
        assert sorted(visited) == expected
        assert visited != expected  # shuffled
        orders.append(visited)
        by_hand = purities(
            np.zeros((C, C)),
            [(k, averages_at("time", maps[n], np.eye(C)[k])) for k, n in expected],
        )
        assert float(mean) == pytest.approx(np.mean(by_hand), abs=1e-6)
    assert orders[0] != orders[1]


def test_every_epoch_has_an_order_of_its_own(rng, key, monkeypatch):
    keys = []

    def spy(key, generator, state, *args, **options):
        keys.append(tuple(jax.random.key_data(key).tolist()))
        return generator, state, jnp.float32(0)

    monkeypatch.setattr(optimize, "run_epoch", spy)
    fit(key, rng.normal(size=(N, F, T, C)), "time")
    assert len(set(keys)) == len(keys) == CONFIG.epochs


def test_fewer_prototypes_do_not_compile_again(rng, key):
    programs = (optimize.run_epoch, bank.top_clips, bank.measure)
    before = [program._cache_size() for program in programs]
    # A number of clips that no other test has: nothing is compiled yet.
    _, history = fit(key, rng.normal(size=(N + 2, F, T, C)), "time")
    assert history.epoch_prototypes == [9, 9, 6, 6, 2]
    after = [program._cache_size() for program in programs]
    assert [n - m for n, m in zip(after, before, strict=True)] == [1, 1, 1]


def products(program):
    """Shapes of the factors of every matrix product in a program."""
    for step in program.eqns:
        if step.primitive.name == "dot_general":
            yield tuple(factor.aval.shape for factor in step.invars)
        for value in step.params.values():
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                yield from products(inner)


@pytest.mark.parametrize("scheme", schemes.SCHEMES)
def test_a_step_multiplies_only_what_it_must(scheme, key):
    """A pair costs its channel's row of U on its candidates, and one vector in U."""
    config = dataclasses.replace(CONFIG, batch_size=13)
    maps, generator = jnp.ones((N, F, T, C)), jnp.zeros((C, C))
    program = jax.make_jaxpr(
        functools.partial(
            optimize.run_epoch, config=config, scheme=scheme, mesh=mesh_of(1)
        )
    )(
        key,
        generator,
        config.optimiser().init(generator),
        schemes.views(maps, keep_cells=scheme == "square"),
        jnp.zeros((C, 4), jnp.int32),
        jnp.int32(2),
    )
    candidates = {
        "square": [F * T],
        "time": [T],
        "frequency": [F],
        "time_frequency": [F, T],
    }[scheme]
    vectors = (13, C)
    expected = [
        # Where a loop over squarings stands once: four forward, eight back.
        *[((C, C), (C, C))] * 12,
        *[((13, count, C), vectors) for count in candidates],
        (vectors, (C, C)),  # the vectors in U
        (vectors, vectors),  # and U's gradient
    ]
    assert sorted(products(program.jaxpr)) == sorted(expected)


MANY_STEPS = dataclasses.replace(CONFIG, batch_size=8, weight_decay=1e-5)


def test_the_same_key_gives_the_same_generator(rng):
    maps = rng.normal(size=(N, F, T, C))
    one, again, other = (
        np.asarray(fit(jax.random.key(s), maps, "square", MANY_STEPS)[0])
        for s in (3, 3, 4)
    )
    np.testing.assert_array_equal(one, again)
    assert np.abs(one - other).max() > 1e-5


def test_1_device_is_8_devices(rng, key):
    maps = rng.normal(size=(N, F, T, C))
    (one, history), (eight, other) = (
        fit(key, maps, "square", MANY_STEPS, num_devices=n) for n in (1, 8)
    )
    np.testing.assert_allclose(one, eight, atol=1e-6)
    np.testing.assert_allclose(history.epoch_purity, other.epoch_purity, atol=1e-6)
    np.testing.assert_allclose(history.round_purity, other.round_purity, atol=1e-6)


def test_a_known_mixture_is_unmixed(rng, key):
    """One source sounds in each cell; the channels hear known mixtures of them.

    Purity 1 is reached where U undoes the mixture up to a factor for each channel.
    """
    num_clips = 40
    loudness = rng.exponential(size=(num_clips, F, T, 1))
    sources = np.eye(C)[rng.integers(0, C, (num_clips, F, T))] * loudness
    mixture = np.eye(C) + 0.3 * rng.random((C, C)) * (1 - np.eye(C))
    features = features_of(sources @ mixture.T)
    config = optimize.Config(
        epochs=20,
        prototypes_start=20,
        prototypes_end=5,
        learning_rate=1e-2,
        batch_size=60,
    )
    generator, history = optimize.fit(
        key, features, "square", config=config, mesh=mesh_of(1)
    )
    before, after = history.round_purity[0], history.round_purity[-1]
    assert before < 0.95
    assert after > 0.995
    assert all(
        b > a - 1e-3
        for a, b in zip(history.round_purity, history.round_purity[1:], strict=False)
    )
    unmixed = scipy.linalg.expm(np.asarray(generator, "f8")) @ mixture
    leak = unmixed / np.diag(unmixed)[None, :] - np.eye(C)
    assert np.abs(leak).max() < 0.1 < np.abs(mixture - np.eye(C)).max()
    transform = disentangle.from_generator(generator)
    assert np.linalg.cond(np.asarray(transform.matrix)) < 10


def test_a_single_clip(rng, key):
    generator, history = fit(key, rng.normal(size=(1, F, T, C)), "time")
    assert np.isfinite(generator).all()
    assert np.abs(generator).max() > 0
    assert history.epoch_prototypes == [1] * 5


def test_features_already_on_the_mesh_and_padded(rng, key):
    features = features_of(rng.normal(size=(N, F, T, C)))
    mesh = mesh_of(8)
    here, there = (
        optimize.fit(key, given, "square", config=MANY_STEPS, mesh=mesh)[0]
        for given in (features, features.to_mesh(mesh))
    )
    np.testing.assert_array_equal(here, there)


def test_silent_clips_keep_the_generator_finite(rng, key):
    """A clip whose map is zero has purity 0 and must not make A NaN."""
    maps = rng.normal(size=(N, F, T, C))
    maps[[1, 4]] = 0
    generator, history = fit(key, maps, "square")
    assert np.isfinite(generator).all()
    assert np.isfinite(history.epoch_purity).all()


def test_schedule_is_the_papers():
    expected = [100, 89, 79, 68, 58, 47, 37, 26, 16, 5]
    assert optimize.Config().schedule() == expected
    assert expected == [round(n) for n in np.linspace(100, 5, 10)]
    odd = optimize.Config(epochs=5, epochs_per_round=2)
    assert odd.schedule() == [100, 52, 5]


def test_defaults_are_the_papers():
    assert dataclasses.asdict(optimize.Config()) == {
        "epochs": 20,
        "epochs_per_round": 2,
        "prototypes_start": 100,
        "prototypes_end": 5,
        "batch_size": 512,
        "learning_rate": 1e-3,
        "weight_decay": 1e-5,
        "beta1": 0.9,
        "beta2": 0.999,
        "epsilon": 1e-8,
        "exponential": "products",
        "precondition": "none",
        "precondition_eps": 0.1,
        "transform": "general",
        "concentration": 0.0,
        "algorithm": "adam",
    }


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"epochs": 0}, "epochs must be positive; got 0"),
        ({"epochs_per_round": -1}, "epochs_per_round must be positive"),
        ({"prototypes_end": 0}, "prototypes_end must be positive"),
        ({"batch_size": 0}, "batch_size must be positive"),
        ({"learning_rate": 0.0}, "learning_rate must be positive"),
        ({"learning_rate": float("nan")}, "learning_rate must be positive; got nan"),
        ({"prototypes_start": 4}, r"at least prototypes_end \(5\); got 4"),
        ({"weight_decay": -0.1}, "weight_decay must not be negative; got -0.1"),
        ({"concentration": -0.1}, "concentration must not be negative; got -0.1"),
        ({"precondition_eps": 0.0}, "precondition_eps must be positive; got 0"),
    ],
)
def test_settings_that_cannot_work(wrong, message, rng, key):
    features = features_of(rng.normal(size=(1, F, T, C)))
    with pytest.raises(ValueError, match=message):
        optimize.fit(key, features, "time", config=optimize.Config(**wrong))


def test_features_that_cannot_work(rng, key):
    maps = rng.normal(size=(N, F, T, C))
    with pytest.raises(ValueError, match="content='maps'"):
        optimize.fit(key, features_of(maps, keep_cells=False), "square")
    with pytest.raises(ValueError, match="at least one clip"):
        optimize.fit(key, features_of(maps[:0]), "time")


def test_a_rate_that_is_far_too_large_is_an_error(rng, key):
    config = dataclasses.replace(CONFIG, learning_rate=1e3)
    with pytest.raises(disentangle.InvarianceError, match="learning rate"):
        fit(key, rng.normal(size=(N, F, T, C)), "time", config)


def test_round_purity_is_the_banks(rng, key):
    """The number reported is the one that the finished bank shows."""
    maps, mesh = rng.normal(size=(N, F, T, C)), mesh_of(1)
    features = features_of(maps, keep_cells=False)
    # A single round: its prototypes are more than those that are measured.
    config = dataclasses.replace(CONFIG, epochs=1)
    generator, history = optimize.fit(key, features, "time", config=config, mesh=mesh)
    assert history.epoch_prototypes == [N]
    made = bank.build(
        disentangle.from_generator(generator),
        features.to_mesh(mesh),
        scheme="time",
        num_prototypes=CONFIG.prototypes_end,
        mesh=mesh,
    )
    assert history.round_purity[-1] == pytest.approx(
        float(made.purity.mean()), abs=1e-6
    )


def test_what_goes_out_of_range_ends_in_its_epoch(monkeypatch):
    """Not a round later: an epoch on NaN learns nothing."""
    maps = np.random.default_rng(0).normal(size=(12, 2, 3, 4)).astype(np.float32)
    told = []
    config = optimize.Config(
        epochs=4,
        epochs_per_round=4,
        prototypes_start=3,
        prototypes_end=3,
        batch_size=4,
        learning_rate=1e6,
    )
    with pytest.raises(ValueError, match="not finite"):
        optimize.fit(
            jax.random.key(0),
            features_of(maps),
            "time",
            config=config,
            on_epoch=lambda epoch, purity: told.append(epoch),
        )
    assert told == []


# --- going on after an interruption


class Stopped(Exception):
    pass


@pytest.mark.parametrize("epochs", [1, 2, 3, 5])
def test_an_interrupted_optimisation_goes_on_to_the_same_transform(
    epochs, key, rng, tmp_path, monkeypatch
):
    """In the middle of a round, at its end, and after the last epoch."""
    monkeypatch.setattr(resume, "SECONDS", 0.0)
    maps = rng.normal(size=(N, F, T, C))
    wanted, history = fit(key, maps, "time")

    def saver():
        return resume.Saver(tmp_path / "state", lambda: {"settings": "these"})

    def interrupt(epoch, purity):
        if epoch == epochs:
            raise Stopped

    with pytest.raises(Stopped):
        fit(key, maps, "time", saver=saver(), on_epoch=interrupt)
    seen = []
    found, resumed = fit(
        key, maps, "time", saver=saver(), on_epoch=lambda *told: seen.append(told)
    )
    np.testing.assert_array_equal(found, wanted)
    assert resumed == history
    assert seen == list(enumerate(history.epoch_purity, start=1))


def test_another_optimisation_is_refused(key, rng, tmp_path, monkeypatch):
    monkeypatch.setattr(resume, "SECONDS", 0.0)
    maps = rng.normal(size=(N, F, T, C))
    fit(key, maps, "time", saver=resume.Saver(tmp_path, lambda: {"settings": "a"}))
    with pytest.raises(ValueError, match=r"other settings than asked for.*delete"):
        fit(key, maps, "time", saver=resume.Saver(tmp_path, lambda: {"settings": "b"}))


# What the paper has not: other families of U, a second term of the loss, other steps.


def test_an_orthogonal_generator_is_antisymmetric(rng, key):
    config = dataclasses.replace(CONFIG, transform="orthogonal", weight_decay=0.0)
    maps = rng.normal(size=(N, F, T, C))
    generator, history = fit(key, maps, "square", config)
    assert np.abs(generator).max() > CONFIG.learning_rate
    np.testing.assert_array_equal(generator, -np.asarray(generator).T)
    matrix = scipy.linalg.expm(np.asarray(generator, np.float64))
    np.testing.assert_allclose(matrix @ matrix.T, np.eye(C), atol=1e-6)
    assert history.round_purity[-1] > history.round_purity[0]


def concentration_by_hand(generator, pooled, weight, predicted):
    """Mean over clips of |e| / sum |w z|, e the positive evidence."""
    matrix = scipy.linalg.expm(generator)
    heads = weight @ np.linalg.inv(matrix)
    terms = []
    for v, c in zip(pooled, predicted, strict=True):
        e = np.maximum(heads[c] * np.maximum(matrix @ v, 0), 0)
        terms.append(np.sqrt((e**2).sum()) / np.abs(heads[c] * (matrix @ v)).sum())
    return np.mean(terms)


@pytest.mark.parametrize(("num_devices", "classes"), [(1, K), (2, K), (2, 40)])
def test_the_loss_of_concentrated_evidence(num_devices, classes, rng):
    """One step against a finite difference of both terms; also of many classes."""
    maps, start = rng.normal(size=(N, F, T, C)), 0.4 * rng.normal(size=(C, C))
    clips = np.array(strongest(start, maps, 2))
    weight = rng.normal(size=(classes, C))
    pooled, predicted = maps.mean(axis=(1, 2)), rng.integers(classes, size=N)
    config = optimize.Config(
        learning_rate=1e6, epsilon=1e6, weight_decay=0.0, concentration=0.7
    )
    mesh = mesh_of(num_devices)
    features = features_of(maps).to_mesh(mesh)
    generator = jnp.asarray(start, jnp.float32)
    generator, state = mesh_lib.replicate(
        (generator, config.optimiser().init(generator)), mesh
    )
    key = jax.random.key(5)
    head = classifier_lib.LinearHead(
        weight=jnp.asarray(weight, jnp.float32), bias=jnp.zeros(classes)
    )
    after, _, mean_purity = optimize.run_epoch(
        key,
        generator,
        state,
        features.views,
        jnp.asarray(clips),
        jnp.int32(2),
        config=config,
        scheme="square",
        mesh=mesh,
        concentrate=optimize.Evidence(
            head=head,
            pooled=features.pooled,
            predicted=mesh_lib.shard(predicted.astype(np.int32), mesh),
            num_clips=N,
        ),
    )
    matrix = scipy.linalg.expm(start)
    pairs = [
        (k, averages_at("square", maps[n], matrix[k]))
        for k in range(C)
        for n in clips[k]
    ]
    # As many clips a step as pairs, drawn with what the epoch's key gives.
    drawn = np.asarray(jax.random.randint(jax.random.fold_in(key, 1), (2 * C,), 0, N))
    assert len(set(drawn.tolist())) > 3
    gradient = finite_difference(start, pairs)
    for i, j in np.ndindex(C, C):
        nudge = np.zeros((C, C))
        nudge[i, j] = 1e-5
        up, down = (
            concentration_by_hand(a, pooled[drawn], weight, predicted[drawn])
            for a in (start + nudge, start - nudge)
        )
        gradient[i, j] -= 0.7 * (up - down) / 2e-5
    np.testing.assert_allclose(np.asarray(after) - start, -gradient, atol=3e-5)
    # What is reported is purity, not the loss.
    assert float(mean_purity) == pytest.approx(
        np.mean(purities(start, pairs)), abs=1e-5
    )


@pytest.mark.parametrize("family", ["general", "orthogonal"])
def test_the_head_takes_u_back(family, rng):
    head = classifier_lib.LinearHead(
        weight=jnp.float32(rng.normal(size=(3, 5))), bias=jnp.float32([1, 2, 3])
    )
    generator = rng.normal(0, 0.4, (5, 5))
    if family == "orthogonal":
        generator = generator - generator.T
    matrix = scipy.linalg.expm(generator)
    found = optimize.compensated(head, jnp.float32(matrix), family)
    wanted = np.asarray(head.weight, float) @ np.linalg.inv(matrix)
    np.testing.assert_allclose(found.weight, wanted, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(found.bias, head.bias)


def test_concentration_gathers_the_evidence(rng, key):
    maps = rng.normal(size=(40, F, T, C)) + 1
    head = classifier_lib.LinearHead(
        weight=rng.normal(size=(K, C)).astype(np.float32), bias=np.zeros(K, np.float32)
    )
    pooled = np.asarray(maps.mean(axis=(1, 2)), np.float32)
    logits = np.asarray(head(pooled))
    features = features_lib.from_maps(maps.astype(np.float32), logits)

    def reached(weight):
        config = dataclasses.replace(
            CONFIG, epochs=30, learning_rate=0.02, concentration=weight
        )
        generator, _ = optimize.fit(
            key, features, "square", config=config, head=head, mesh=mesh_of(1)
        )
        return concentration_by_hand(
            np.asarray(generator, np.float64),
            pooled,
            head.weight,
            logits.argmax(axis=1),
        )

    assert reached(1.0) > reached(0.0) + 0.1


@pytest.mark.parametrize("algorithm", ["muon", "lbfgs"])
def test_other_algorithms_take_other_steps_to_purer_channels(algorithm, rng, key):
    maps = rng.normal(size=(N, F, T, C))
    config = dataclasses.replace(CONFIG, algorithm=algorithm, weight_decay=1e-5)
    generator, history = fit(key, maps, "square", config)
    adams, _ = fit(key, maps, "square", dataclasses.replace(CONFIG, weight_decay=1e-5))
    assert np.abs(generator - adams).max() > 1e-3
    assert history.round_purity[-1] > history.round_purity[0]


def test_concentration_needs_a_head(rng, key):
    features = features_of(rng.normal(size=(2, F, T, C)))
    config = optimize.Config(concentration=0.1)
    with pytest.raises(ValueError, match="needs the head whose evidence it is"):
        optimize.fit(key, features, "time", config=config)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("harm", ["arrays", "description", "everything"])
def test_a_damaged_state_is_set_aside_and_the_optimisation_begins_anew(
    harm, key, rng, tmp_path, monkeypatch
):
    monkeypatch.setattr(resume, "SECONDS", 0.0)
    maps, state = rng.normal(size=(N, F, T, C)), tmp_path / "state"

    def learned(seen):
        saver = resume.Saver(state, lambda: {"settings": "these"})
        return fit(key, maps, "time", saver=saver, on_epoch=lambda e, _: seen.append(e))

    wanted, history = learned([])
    (last,) = (p.name for p in state.iterdir())
    for file in [f for f in (state / last).rglob("*") if f.is_file()]:
        meta = "METADATA" in file.name
        if harm == "everything" or meta == (harm == "description"):
            file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    seen = []
    with pytest.warns(UserWarning, match=rf"{last} is .*set aside as {last}\.damaged"):
        found, again = learned(seen)
    np.testing.assert_array_equal(found, wanted)
    assert again == history
    assert seen == list(range(1, len(history.epoch_purity) + 1))
    assert {p.name for p in state.iterdir()} == {last, f"{last}.damaged"}
    gc.collect()
