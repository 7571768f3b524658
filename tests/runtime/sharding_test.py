"""Meshes, placement and copies on four fake devices."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, PartitionSpec

from kcd_jax import trees
from kcd_jax.contracts import TrainState, ValueTable, full_plan
from kcd_jax.runtime import sharding


def make_state(num_points: int = 300) -> TrainState:
    """A small state; its counters deliberately share one buffer."""
    zero = jnp.zeros((), jnp.int32)
    params = {'student': {'kernel': jnp.ones((3, 5))}, 'method': {}}
    return TrainState(
        step=zero, epoch=zero, done=zero, key=jax.random.PRNGKey(0), params=params,
        model_state={}, method_state={}, opt_state={'main': (params, {})}, table=ValueTable.create(num_points),
        plan=full_plan(num_points), policy_state={}, metrics={'loss': jnp.zeros(2)}, bad_step=zero - 1,
    )  # fmt: skip


def buffers(tree) -> list[int]:
    """The addresses of every leaf, each once: the replicas of one array may lie in one place."""
    places = [{s.data.unsafe_buffer_pointer() for s in leaf.addressable_shards} for leaf in jax.tree.leaves(tree)]
    return [address for addresses in places for address in addresses]


def test_the_mesh_has_one_auto_axis_over_all_devices():
    mesh = sharding.make_mesh()
    assert mesh.axis_names == ('data',) and mesh.size == 4 and mesh.axis_types == (AxisType.Auto,)
    assert sharding.make_mesh(jax.devices()[:2]).size == 2


def test_a_device_count_that_does_not_divide_the_rows_is_refused():
    with pytest.raises(ValueError, match='3 devices do not divide 512; use 2 of them'):
        sharding.make_mesh(jax.devices()[:3])


@pytest.mark.parametrize(
    'rows, devices, words',
    [
        (100, 8, 'batch 100 is not a multiple of 8 devices; use 96 or 104'),
        (3, 4, 'use 4$'),
        (0, 4, 'batch 0 is too small'),
    ],
)
def test_rows_that_the_devices_cannot_share_are_refused(rows, devices, words):
    with pytest.raises(ValueError, match=words):
        sharding.check(rows, devices)


def test_rows_that_fit_pass():
    sharding.check(64, 4)


def test_only_the_value_table_is_split():
    mesh, state = sharding.make_mesh(), make_state()
    places = sharding.state_shardings(mesh, state)
    assert jax.tree.structure(places) == jax.tree.structure(state)
    for path, place in trees.leaf_paths(places).items():
        assert place.spec == (PartitionSpec('data') if path.startswith('table/') else PartitionSpec()), path
    assert sharding.state_shardings(mesh, jax.eval_shape(lambda: state)) == places


def test_a_bank_is_split_above_a_size_and_only_where_its_rows_divide(monkeypatch):
    mesh = sharding.make_mesh()
    monkeypatch.setattr(sharding, 'REPLICATED_BYTES', 400)
    banks = {'small': jnp.zeros((4, 25)), 'large': jnp.zeros((8, 25)), 'odd': jnp.zeros((9, 25)), 'z': jnp.zeros(())}
    places = sharding.state_shardings(mesh, make_state().replace(method_state=banks)).method_state
    assert {name: bool(place.spec) for name, place in places.items()} == {
        'small': False, 'large': True, 'odd': False, 'z': False,
    }  # fmt: skip


def test_put_copies_everything_and_shares_nothing():
    mesh, state = sharding.make_mesh(), make_state()
    placed = sharding.put(state, sharding.state_shardings(mesh, state))
    again = sharding.put(placed, sharding.state_shardings(mesh, placed))
    for tree in (placed, again):
        assert len(set(buffers(tree))) == len(buffers(tree))
    assert not {*buffers(placed)} & {*buffers(again)} and not {*buffers(placed)} & {*buffers(state)}
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(again), jax.device_get(state))
    assert not any(leaf.weak_type for leaf in jax.tree.leaves(again))


def test_a_donated_copy_leaves_the_original_and_the_hosts_array():
    mesh = sharding.make_mesh()
    space = np.zeros(4096 * 4 + 64, np.uint8)  # aligned as XLA likes it: such an array is placed without a copy
    host = space[-space.ctypes.data % 64 :][: 4096 * 4].view(np.float32)
    host[:] = np.arange(4096)
    first = sharding.put({'x': host}, sharding.replicated(mesh))
    second = sharding.put(first, sharding.batch(mesh))
    donating = jax.jit(lambda tree: jax.tree.map(lambda x: x + 1, tree), donate_argnums=0)
    for _ in range(3):
        second = donating(second)
    np.testing.assert_array_equal(first['x'], np.arange(4096))
    np.testing.assert_array_equal(host, np.arange(4096))
    np.testing.assert_array_equal(second['x'], np.arange(4096) + 3)


def test_host_copies_do_not_follow_the_device():
    mesh = sharding.make_mesh()
    x = sharding.put(np.zeros(64, np.float32), sharding.batch(mesh))
    copy = sharding.to_host(x)
    x = jax.jit(lambda v: v + 1, donate_argnums=0)(x)
    assert copy.sum() == 0 and float(x.sum()) == 64


def test_constraints_inside_jit():
    mesh = sharding.make_mesh()
    tree = {'image': jnp.ones((8, 3)), 'count': jnp.zeros((), jnp.int32)}
    split = jax.jit(lambda t: sharding.constrain_batch(mesh, t))(tree)
    assert split['image'].sharding.spec == PartitionSpec('data')
    whole = jax.jit(lambda t: sharding.constrain_replicated(mesh, t))(split)
    assert whole['image'].sharding.is_fully_replicated
    with pytest.raises(ValueError, match='a batch of 6 is not a multiple of 4 devices; use 4 or 8'):
        jax.jit(lambda x: sharding.constrain_batch(mesh, x))(jnp.ones((6, 2)))


def test_the_scatter_into_the_split_table_moves_only_the_batch():
    """In the compiled program no collective is as large as the table, nor as a device's part of it."""
    mesh, rows, batch = sharding.make_mesh(), 1 << 16, 64

    def record(value, index, x):
        return value.at[index].add(x)

    split = sharding.batch(mesh)
    table, index = jax.ShapeDtypeStruct((rows,), jnp.float32), jax.ShapeDtypeStruct((batch,), jnp.int32)
    compiled = jax.jit(record, in_shardings=(split,) * 3, out_shardings=split, donate_argnums=0)
    text = compiled.lower(table, index, jax.ShapeDtypeStruct((batch,), jnp.float32)).compile().as_text()
    collectives = [line for line in text.splitlines() if ' all-gather' in line or ' all-reduce' in line]
    assert collectives
    assert not any(f'[{rows}]' in line or f'[{rows // 4}]' in line for line in collectives), collectives
