"""Features of maps that came from elsewhere, and their place on a mesh."""

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest

from apex_jax import features as features_lib
from apex_jax import mesh as mesh_lib
from apex_jax import schemes

N, F, T, C, K = 7, 3, 5, 6, 4


@pytest.fixture
def maps(rng):
    return rng.normal(size=(N, F, T, C)).astype(np.float32)


@pytest.fixture
def logits(rng):
    return rng.normal(size=(N, K)).astype(np.float32)


@pytest.mark.parametrize("to_array", [np.asarray, jnp.asarray])
def test_from_maps_by_hand(to_array, maps, logits):
    made = features_lib.from_maps(to_array(maps), to_array(logits))
    assert made.num_clips == N
    assert made.map_shape == (F, T)
    np.testing.assert_array_equal(made.logits, logits)
    np.testing.assert_array_equal(made.views.cells, maps)
    for n in range(N):
        rows = np.array([sum(maps[n, f, t] for t in range(T)) / T for f in range(F)])
        columns = np.array([sum(maps[n, f, t] for f in range(F)) / F for t in range(T)])
        np.testing.assert_allclose(made.views.rows[n], rows, atol=1e-6)
        np.testing.assert_allclose(made.views.columns[n], columns, atol=1e-6)
        np.testing.assert_allclose(made.pooled[n], sum(rows) / F, atol=1e-6)


def test_cells_are_dropped_where_marginals_do(maps, logits):
    assert features_lib.from_maps(maps, logits, keep_cells=False).views.cells is None


def test_errors(maps, logits, monkeypatch):
    # Users run without the annotations' checks.
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    for wrong in ((maps[0], logits), (maps, logits[0]), (maps[:-1], logits)):
        with pytest.raises(ValueError, match="same number of clips; got"):
            features_lib.from_maps(*wrong)
    for bad in (np.nan, np.inf):
        broken = maps.copy()
        broken[2, 1, 3, 4] = bad
        with pytest.raises(ValueError, match="must be finite"):
            features_lib.from_maps(broken, logits)
        with pytest.raises(ValueError, match="must be finite"):
            features_lib.from_maps(maps, logits + bad)


@pytest.mark.parametrize("num_devices", [1, 3, 8])
def test_on_a_mesh_clips_keep_their_order_and_padding_is_zero(
    num_devices, maps, logits
):
    mesh = mesh_lib.make(jax.devices()[:num_devices])
    made = features_lib.from_maps(maps, logits)
    spread = made.to_mesh(mesh)
    padded = mesh_lib.round_up(N, mesh)
    assert padded == {1: 7, 3: 9, 8: 8}[num_devices]
    assert spread.num_clips == N
    assert spread.map_shape == (F, T)
    assert spread.logits is made.logits
    for before, after in zip(
        jax.tree.leaves((made.pooled, made.views)),
        jax.tree.leaves((spread.pooled, spread.views)),
        strict=True,
    ):
        assert after.shape == (padded, *before.shape[1:])
        assert len(after.sharding.device_set) == num_devices
        assert after.addressable_shards[0].data.shape[0] == padded // num_devices
        np.testing.assert_array_equal(after[:N], before)
        np.testing.assert_array_equal(after[N:], 0)
    again = spread.to_mesh(mesh)
    for once, twice in zip(
        jax.tree.leaves((spread.pooled, spread.views)),
        jax.tree.leaves((again.pooled, again.views)),
        strict=True,
    ):
        np.testing.assert_array_equal(once, twice)
        assert once.sharding == twice.sharding


def test_host_arrays_and_their_types_survive(maps, logits):
    mesh = mesh_lib.make()
    tree = {"half": maps.astype(jnp.bfloat16), "whole": np.arange(N)}
    spread = mesh_lib.shard(tree, mesh)
    assert spread["half"].dtype == jnp.bfloat16
    np.testing.assert_array_equal(spread["whole"], [*range(N), 0])


def test_replicate_puts_a_copy_on_every_device():
    mesh = mesh_lib.make()
    copy = mesh_lib.replicate(jnp.arange(3.0), mesh)
    assert len(copy.addressable_shards) == 8
    for shard in copy.addressable_shards:
        np.testing.assert_array_equal(shard.data, [0.0, 1.0, 2.0])


def test_averages_alone(maps, logits):
    """What the marginal schemes need, computed elsewhere."""
    views = schemes.Views(rows=maps.mean(axis=2), columns=maps.mean(axis=1))
    made, whole = (features_lib.from_maps(m, logits) for m in (views, maps))
    assert made.views.cells is None
    assert made.map_shape == (F, T)
    np.testing.assert_allclose(made.pooled, whole.pooled, atol=1e-6)
    np.testing.assert_allclose(made.views.columns, whole.views.columns, atol=1e-6)


def test_averages_of_different_maps(maps, logits):
    views = schemes.Views(rows=maps.mean(axis=2), columns=maps[::-1].mean(axis=1))
    with pytest.raises(ValueError, match="averages of the same maps"):
        features_lib.from_maps(views, logits)
    swapped = schemes.Views(rows=maps, columns=maps.mean(axis=1))
    with pytest.raises(ValueError, match=r"rows must be \[clip, F, chan\]"):
        features_lib.from_maps(swapped, logits)


def test_maps_whose_values_cancel():
    """Rounding of large values is no disagreement of rows and columns; a shift is."""
    maps = np.array([[1e30, -1e30], [0.0, 1.0]], np.float32)[None, :, :, None]
    logits = np.zeros((1, 1), np.float32)
    assert features_lib.from_maps(maps, logits).num_clips == 1
    cells = np.array([[1.0, -1.0], [1e-3, 0.0]], np.float32)[None, :, :, None]
    views = schemes.Views(rows=cells.mean(2), columns=2 * cells.mean(1), cells=cells)
    with pytest.raises(ValueError, match="averages of the same maps"):
        features_lib.from_maps(views, logits)
