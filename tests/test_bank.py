"""The bank against a full sort and the whole transformed maps, on 1 to 8 devices."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from apex_jax import bank, disentangle, schemes
from apex_jax import features as features_lib
from apex_jax import mesh as mesh_lib

N, F, T, C = 13, 3, 5, 6


def whole_numbers(rng, *shape):
    """Products and sums of these are exact in float32, so ties are ties."""
    return rng.integers(-4, 5, shape).astype(np.float32)


def transform_of(matrix, centre):
    return disentangle.Transform(
        matrix=jnp.asarray(matrix, jnp.float32),
        inverse=jnp.eye(len(matrix)),  # the bank has no use for it
        centre=jnp.asarray(centre, jnp.float32),
    )


def mesh_of(num_devices):
    return mesh_lib.make(jax.devices()[:num_devices])


def ranking_by_hand(matrix, centre, pooled, num, sign):
    """A stable full sort: equals stay in the order of the clips."""
    clips = np.zeros((len(matrix), num), int)
    means = np.zeros((len(matrix), num))
    for k, row in enumerate(matrix):
        scores = [
            sum(row[c] * (v[c] - centre[c]) for c in range(len(row))) for v in pooled
        ]
        key = [-s if sign == "positive" else s for s in scores]
        order = sorted(range(len(pooled)), key=key.__getitem__)  # stable
        clips[k] = order[:num]
        means[k] = [scores[n] for n in order[:num]]
    return clips, means


def top_clips(transform, pooled, num, sign, num_devices):
    mesh = mesh_of(num_devices)
    return bank.top_clips(
        transform,
        mesh_lib.shard(pooled, mesh),
        num=num,
        num_clips=len(pooled),
        sign=sign,
        mesh=mesh,
    )


@pytest.mark.parametrize("sign", ["positive", "negative"])
@pytest.mark.parametrize("num_devices", [1, 3, 8])
def test_top_clips_are_a_full_stable_sort(num_devices, sign, rng):
    pooled = whole_numbers(rng, N, C)
    pooled[[4, 11, 12]] = pooled[1]  # the same clip on several devices
    pooled[[7, 2]] = 0
    matrix, centre = whole_numbers(rng, C, C), whole_numbers(rng, C)
    matrix[3] = 0  # a dead channel: all clips tie
    for num in (1, 5, N):
        clips, means = top_clips(
            transform_of(matrix, centre), pooled, num, sign, num_devices
        )
        expected, expected_means = ranking_by_hand(matrix, centre, pooled, num, sign)
        np.testing.assert_array_equal(clips, expected)
        np.testing.assert_array_equal(means, expected_means)
    np.testing.assert_array_equal(clips[3], np.arange(N))


@pytest.mark.parametrize("sign", ["positive", "negative"])
def test_padding_is_never_a_prototype(sign, rng):
    """Padding is zero: it would win wherever all clips lie on the other side."""
    pooled = (1.0 + rng.random((N, C))).astype(np.float32)
    direction = -1.0 if sign == "positive" else 1.0
    transform = transform_of(direction * np.eye(C), np.zeros(C))
    clips, means = top_clips(transform, pooled, N, sign, 8)
    assert (np.sort(clips, axis=1) == np.arange(N)).all()
    assert np.isfinite(means).all()


@pytest.mark.parametrize("sign", ["positive", "negative"])
def test_zero_and_minus_zero_tie(sign):
    pooled = np.array([[-0.0], [0.0], [-0.0], [0.0]], np.float32)
    clips, _ = top_clips(transform_of(np.eye(1), np.zeros(1)), pooled, 4, sign, 1)
    np.testing.assert_array_equal(clips, [[0, 1, 2, 3]])


def test_top_clips_do_not_depend_on_the_clips_order(rng):
    pooled = rng.normal(size=(N, C)).astype(np.float32)
    transform = transform_of(rng.normal(size=(C, C)), rng.normal(size=C))
    shuffle = rng.permutation(N)
    clips, means = top_clips(transform, pooled, 5, "positive", 8)
    shuffled, shuffled_means = top_clips(transform, pooled[shuffle], 5, "positive", 8)
    np.testing.assert_array_equal(shuffle[np.asarray(shuffled)], clips)
    np.testing.assert_allclose(shuffled_means, means, atol=1e-5)


@pytest.mark.parametrize("num", [0, N + 1])
def test_top_clips_of_an_impossible_number(num, rng):
    pooled = whole_numbers(rng, N, C)
    with pytest.raises(ValueError, match=f"between 1 and {N} clips; got {num}"):
        top_clips(disentangle.identity(C), pooled, num, "positive", 1)


@pytest.mark.parametrize("scheme", schemes.SCHEMES)
@pytest.mark.parametrize("sign", ["positive", "negative"])
def test_bank_by_hand(scheme, sign, rng):
    """Every number of the bank from the whole transformed maps, in float64 loops."""
    maps = rng.normal(size=(N, F, T, C))
    matrix, centre = rng.normal(size=(C, C)), rng.normal(size=C)
    mesh = mesh_of(8)
    made = bank.build(
        transform_of(matrix, centre),
        features_of(maps).to_mesh(mesh),
        scheme=scheme,
        num_prototypes=4,
        sign=sign,
        mesh=mesh,
    )
    assert (made.scheme, made.sign) == (scheme, sign)
    zhat = np.zeros(maps.shape)
    for n, f, t in np.ndindex(N, F, T):
        zhat[n, f, t] = matrix @ (maps[n, f, t] - centre)
    for k in range(C):
        sums = [zhat[n, :, :, k].sum() for n in range(N)]
        order = np.argsort(sums if sign == "negative" else np.negative(sums))[:4]
        np.testing.assert_array_equal(made.clip[k], order)
        for place, n in enumerate(order):
            rows, columns = zhat[n].mean(axis=1), zhat[n].mean(axis=0)
            row, column = rows[:, k].argmax(), columns[:, k].argmax()
            match scheme:
                case "square":
                    row, column = np.unravel_index(zhat[n, :, :, k].argmax(), (F, T))
                    location, p = (row, column), zhat[n, row, column]
                case "time":
                    location, p = (-1, column), columns[column]
                case "frequency":
                    location, p = (row, -1), rows[row]
                case "time_frequency":
                    location, p = (row, column), (rows[row] + columns[column]) / 2
            assert tuple(made.location[k, place].tolist()) == location
            purity = p[k] / np.sqrt(sum(x * x for x in p))
            assert float(made.purity[k, place]) == pytest.approx(purity, abs=1e-5)
            assert float(made.activation[k, place]) == pytest.approx(sums[n], abs=2e-4)


def features_of(maps, keep_cells=True):
    logits = np.zeros((len(maps), 2), np.float32)
    return features_lib.from_maps(
        np.asarray(maps, np.float32), logits, keep_cells=keep_cells
    )


def test_more_prototypes_than_clips_gives_all_clips(rng):
    mesh = mesh_of(8)
    build = functools.partial(bank.build, scheme="time", num_prototypes=100, mesh=mesh)
    features = features_of(rng.normal(size=(3, F, T, C)), keep_cells=False)
    made = build(disentangle.identity(C), features.to_mesh(mesh))
    assert made.clip.shape == made.purity.shape == (C, 3)
    assert made.location.shape == (C, 3, 2)
    assert (np.sort(made.clip, axis=1) == np.arange(3)).all()


def test_more_pairs_than_a_chunk_on_1_and_8_devices(rng):
    """41 channels x 13 clips are one chunk of 512 pairs and 21 pairs of the next."""
    chan = 41
    assert chan * N % bank.CHUNK_PAIRS > 0
    assert chan * N > bank.CHUNK_PAIRS
    maps = rng.normal(size=(N, F, T, chan)).astype(np.float32)
    transform = transform_of(rng.normal(size=(chan, chan)), rng.normal(size=chan))
    one, eight = (
        bank.build(
            transform,
            features_of(maps).to_mesh(mesh),
            scheme="square",
            num_prototypes=N,
            mesh=mesh,
        )
        for mesh in (mesh_of(1), mesh_of(8))
    )
    np.testing.assert_array_equal(one.clip, eight.clip)
    np.testing.assert_array_equal(one.location, eight.location)
    np.testing.assert_allclose(one.purity, eight.purity, atol=1e-6)
    np.testing.assert_allclose(one.activation, eight.activation, rtol=1e-5, atol=1e-4)
    matrix, centre = (np.asarray(a, "f8") for a in (transform.matrix, transform.centre))
    for k, place in ((0, 0), (20, 7), (39, 4), (40, 0), (40, 12)):
        n = int(one.clip[k, place])
        row, column = (int(i) for i in one.location[k, place])
        p = matrix @ (maps[n, row, column] - centre)
        purity = p[k] / np.sqrt(sum(x * x for x in p))
        assert float(one.purity[k, place]) == pytest.approx(purity, abs=1e-5)


def test_square_needs_cells(rng):
    mesh = mesh_of(1)
    features = features_of(rng.normal(size=(N, F, T, C)), keep_cells=False)
    with pytest.raises(ValueError, match="content='maps'"):
        bank.build(
            disentangle.identity(C), features.to_mesh(mesh), scheme="square", mesh=mesh
        )


def test_near_ties_are_the_same_on_any_number_of_devices(rng):
    """A product's last bits depend on its shape: all products have one shape."""
    chan, clips = 256, 1501
    transform = disentangle.Transform(
        matrix=jnp.asarray(rng.normal(size=(chan, chan)), jnp.float32),
        inverse=jnp.eye(chan),
        centre=jnp.zeros(chan),
    )
    pooled = rng.normal(size=(clips, chan)).astype(np.float32)
    found = []
    for num_devices in (1, 3, 8):
        mesh = mesh_lib.make(jax.devices()[:num_devices])
        spread = mesh_lib.shard(pooled, mesh)
        found.append(
            bank.top_clips(transform, spread, num=50, num_clips=clips, mesh=mesh)
        )
    for clip, activation in found[1:]:
        np.testing.assert_array_equal(clip, found[0][0])
        np.testing.assert_array_equal(activation, found[0][1])
