"""Rows spread over devices: which device holds which, and none is read for nothing."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from apex_jax import mesh as mesh_lib

N = 11


def mesh_of(num_devices):
    return mesh_lib.make(jax.devices()[:num_devices])


def row_of(tree):
    return {n: jax.ShapeDtypeStruct(a.shape[1:], a.dtype) for n, a in tree.items()}


@pytest.fixture
def tree(rng):
    return {
        "wide": rng.normal(size=(N, 3, 2)).astype(np.float32),
        "whole": np.arange(1, N + 1, dtype=np.int32),
    }


@pytest.mark.parametrize("num_devices", [1, 3, 8])
@pytest.mark.parametrize("piece", [1, 4, 100])
def test_assembled_rows_are_those_of_shard(num_devices, piece, tree):
    mesh, asked, largest = mesh_of(num_devices), [], 0

    def read(rows):
        """In pieces whose borders are none of the devices' borders."""
        nonlocal largest
        asked.append(rows)
        start = rows.start
        while start < rows.stop:
            end = min(rows.stop, (start // piece + 1) * piece)
            largest = max(largest, end - start)
            yield {name: array[start:end] for name, array in tree.items()}
            start = end

    made = mesh_lib.assemble(read, row_of(tree), N, mesh)
    wanted = mesh_lib.shard(tree, mesh)
    for name in tree:
        np.testing.assert_array_equal(made[name], wanted[name])
        assert made[name].sharding == wanted[name].sharding
        assert made[name].dtype == tree[name].dtype
    assert [n for rows in asked for n in rows] == list(range(N))
    assert largest <= piece


def test_more_devices_than_rows():
    rows = {"row": np.float32([[1, 2], [3, 4]])}
    made = mesh_lib.assemble(
        lambda r: [{"row": rows["row"][r.start : r.stop]}] if r else [],
        row_of(rows),
        2,
        mesh_of(8),
    )
    np.testing.assert_array_equal(made["row"], [[1, 2], [3, 4], *[[0, 0]] * 6])


def test_rows_are_written_in_place(tree):
    """Not a second copy on the device while a cache is loaded."""
    block = jnp.zeros((5, 2))
    before = block.unsafe_buffer_pointer()
    after = mesh_lib._write(block, jnp.ones((2, 2)), jnp.int32(3))
    assert after.unsafe_buffer_pointer() == before
    assert block.is_deleted()
    np.testing.assert_array_equal(after, [[0, 0]] * 3 + [[1, 1]] * 2)


def test_one_process_owns_the_whole_mesh():
    mesh = mesh_of(3)
    assert mesh_lib.local(mesh) is mesh


def test_to_host_frees_a_copy_from_the_mesh():
    copy = mesh_lib.replicate({"a": jnp.arange(3.0)}, mesh_of(8))
    freed = mesh_lib.to_host(copy)["a"]
    assert len(freed.devices()) == 1
    np.testing.assert_array_equal(freed, [0, 1, 2])
    # Not bound to a device: it goes where it is used.
    assert len((freed + mesh_lib.replicate(jnp.ones(3), mesh_of(3))).devices()) == 3


@pytest.mark.parametrize("num_devices", [1, 2])
def test_a_cpu_gets_a_few_clips_at_a_time(num_devices, rng):
    mesh, few = mesh_of(num_devices), mesh_lib.CPU_CLIPS
    seen = []

    def function(factor, clips):
        seen.append(len(clips["x"]))
        return {"sum": factor * clips["x"].sum(axis=1), "n": clips["n"]}, clips["x"]

    def run(count, **options):
        seen.clear()
        clips = {
            "x": jnp.asarray(rng.normal(size=(count, 3)), jnp.float32),
            "n": jnp.arange(count),
        }
        run_all = jax.jit(mesh_lib.map_clips(function, mesh, **options))
        found, again = run_all(jnp.float32(2), mesh_lib.shard(clips, mesh))
        np.testing.assert_allclose(found["sum"], 2 * clips["x"].sum(axis=1), rtol=1e-5)
        np.testing.assert_array_equal(found["n"], clips["n"])
        np.testing.assert_array_equal(again, clips["x"])
        return set(seen)

    assert run(3 * few * num_devices) == {few}
    assert run(3 * few * num_devices, together=True) == {3 * few}
    # Not to be divided: as they come.
    assert run((few + 1) * num_devices) == {few + 1}
    assert run(num_devices) == {1}
