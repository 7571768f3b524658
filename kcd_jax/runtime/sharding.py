"""Meshes and partition specs, used in this module only. Training has one mesh axis, `data`.

The batch and the value table are split over it; everything else is replicated. One process and several work the same.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from kcd_jax.contracts import ROW_MULTIPLE, PyTree, TrainState

AXIS = 'data'
REPLICATED_BYTES = 2**30  # a larger memory bank is split; CRD's on ImageNet has 0.66e9 bytes


def make_mesh(devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A mesh along `data`.

    Args:
      devices: default: all devices of all processes.

    Raises:
      ValueError: the number of devices does not divide 512; per-point arrays are padded to a multiple of that.
    """
    devices = jax.devices() if devices is None else list(devices)
    if not devices or ROW_MULTIPLE % len(devices):
        near = min(1 << max(len(devices).bit_length() - 1, 0), ROW_MULTIPLE)
        raise ValueError(f'{len(devices)} devices do not divide {ROW_MULTIPLE}; use {near} of them (a power of two)')
    # Auto axes: with explicit axes, the default, gather, scatter and sort of split arrays raise.
    return jax.make_mesh((len(devices),), (AXIS,), axis_types=(AxisType.Auto,), devices=devices)


def replicated(mesh: Mesh) -> NamedSharding:
    """The whole array on every device."""
    return NamedSharding(mesh, PartitionSpec())


def batch(mesh: Mesh) -> NamedSharding:
    """The first axis split over the devices."""
    return NamedSharding(mesh, PartitionSpec(AXIS))


def of_processes() -> tuple[NamedSharding, NamedSharding]:
    """For what processes tell each other: (one row on all devices of each process, the whole array on every device)."""
    devices = sorted(jax.devices(), key=lambda device: (device.process_index, device.id))
    mesh = Mesh(np.array(devices).reshape(jax.process_count(), -1), ('process', 'device'))
    return NamedSharding(mesh, PartitionSpec('process')), replicated(mesh)


def check(rows: int, devices: int, what: str = 'batch') -> None:
    """Refuses a number of rows that is not a multiple of the devices, which JAX would replicate silently.

    Args:
      rows: of a batch.
      devices: number of devices.
      what: subject of the message.

    Raises:
      ValueError: 'batch 100 is not a multiple of 8 devices; use 96 or 104'.
    """
    if rows < 1:
        raise ValueError(f'{what} {rows} is too small; use {devices} or more')
    if rows % devices:
        below = rows // devices * devices
        choices = f'{below} or {below + devices}' if below else f'{devices}'
        raise ValueError(f'{what} {rows} is not a multiple of {devices} devices; use {choices}')


def state_shardings(mesh: Mesh, state: TrainState) -> TrainState:
    """The sharding of every leaf of a state, concrete or abstract: the value table is split, the rest replicated.

    A method's memory bank above `REPLICATED_BYTES`, which may not fit on one device, is split by rows too, at the cost
    of an all-gather in every step.
    """

    def bank(x: jax.Array | jax.ShapeDtypeStruct) -> NamedSharding:
        large = x.ndim > 0 and x.size * x.dtype.itemsize > REPLICATED_BYTES
        return batch(mesh) if large and x.shape[0] % mesh.size == 0 else replicated(mesh)

    everywhere = jax.tree.map(lambda _: replicated(mesh), state)
    return everywhere.replace(
        table=jax.tree.map(lambda _: batch(mesh), state.table), method_state=jax.tree.map(bank, state.method_state)
    )


def constrain_batch(mesh: Mesh, tree: PyTree) -> PyTree:
    """Constrains the first axis of every array to be split over the devices, inside jit; scalars are unchanged.

    Raises:
      ValueError: while tracing, if the rows are not a multiple of the devices.
    """

    def constrain(x: jax.Array) -> jax.Array:
        if x.ndim == 0:
            return x
        check(x.shape[0], mesh.size, 'a batch of')
        return jax.lax.with_sharding_constraint(x, batch(mesh))

    return jax.tree.map(constrain, tree)


def constrain_replicated(mesh: Mesh, tree: PyTree) -> PyTree:
    """Constrains every array of the tree to be replicated, inside jit."""
    return jax.tree.map(lambda x: jax.lax.with_sharding_constraint(x, replicated(mesh)), tree)


def replicate(mesh: Mesh, tree: PyTree) -> PyTree:
    """Replicates arrays by one all-gather each, without a host transfer."""
    return _replicator(mesh)(tree)


@functools.lru_cache(maxsize=8)
def _replicator(mesh: Mesh) -> Callable[[PyTree], PyTree]:
    return jax.jit(lambda tree: tree, out_shardings=replicated(mesh))


def to_host(tree: PyTree, copy: bool = True) -> PyTree:
    """Whole arrays as NumPy arrays, whatever their sharding. With several processes, all of them must call it.

    Args:
      tree: arrays.
      copy: False only if the result is read before the next step: it may be a view of a device's buffer, which changes
        when that is donated.
    """

    def fetch(x: jax.Array | np.ndarray) -> np.ndarray:
        if isinstance(x, jax.Array) and not x.is_fully_addressable and not x.is_fully_replicated:
            whole = jax.block_until_ready(replicate(x.sharding.mesh, x))  # on every device before this process goes on
            return np.asarray(whole)
        return np.array(x, copy=True) if copy else np.asarray(x)

    return jax.tree.map(fetch, tree)


def put(tree: PyTree, shardings: PyTree) -> PyTree:
    """Places the arrays of `tree` in new buffers.

    Results share no buffers with each other or with `tree`: the state is donated, and donation refuses shared buffers.
    Everything therefore passes through a copy on the host (`jax.device_put` shares memory even with `may_alias=False`).
    On the CPU, the replicas of an array may share that copy, which XLA then does not reuse when it is donated.

    Args:
      tree: arrays, the same values on every process; each process places the parts of its own devices.
      shardings: one for all arrays, or a tree of them.
    """
    if isinstance(shardings, NamedSharding):
        shardings = jax.tree.map(lambda _: shardings, tree)

    def place(x: jax.Array | np.ndarray, sharding: NamedSharding) -> jax.Array:
        x = to_host(x)  # one array at a time: a value table and a plan have 24 bytes per point
        if sharding.is_fully_addressable:
            return jax.device_put(x, sharding)
        return jax.make_array_from_callback(x.shape, sharding, lambda index: x[index])

    return jax.tree.map(place, tree, shardings)


def local(mesh: Mesh) -> Mesh:
    """The part of a mesh on this process's devices; the mesh itself with one process."""
    if jax.process_count() == 1:
        return mesh
    return make_mesh([device for device in mesh.devices.flat if device.process_index == jax.process_index()])


def on_local(tree: PyTree, mesh: Mesh) -> PyTree:
    """This process's part of arrays, on `local(mesh)`, for it to use alone; nothing is copied.

    Args:
      tree: arrays that are replicated, or split along their first axis; of the latter, this process's rows are left.
      mesh: of the arrays.
    """
    if jax.process_count() == 1:
        return tree
    here = local(mesh)

    def view(x: jax.Array) -> jax.Array:
        shards = {shard.device: shard.data for shard in x.addressable_shards}
        parts = [shards[device] for device in here.devices.flat]
        if x.is_fully_replicated:
            return jax.make_array_from_single_device_arrays(x.shape, replicated(here), parts)
        shape = (sum(len(part) for part in parts), *x.shape[1:])
        return jax.make_array_from_single_device_arrays(shape, batch(here), parts)

    return jax.tree.map(view, tree)


def device_memory() -> int | None:
    """The smallest memory of this process's devices in bytes; None if they use the host's memory."""
    stats = [device.memory_stats() for device in jax.local_devices()]
    limits = [stat['bytes_limit'] for stat in stats if stat and 'bytes_limit' in stat]
    return min(limits, default=None)


def local_rows(mesh: Mesh, rows: int) -> np.ndarray:
    """i64[M]: the rows, of an array of `rows` rows split over all devices, that are on this process's devices."""
    parts = batch(mesh).addressable_devices_indices_map((rows,)).values()
    return np.unique(np.concatenate([np.arange(rows)[part] for part in parts]))


def put_rows(tree: PyTree, mesh: Mesh) -> PyTree:
    """Places arrays split along their first axis; each process passes its own rows (`local_rows`)."""
    return jax.tree.map(lambda x: jax.make_array_from_process_local_data(batch(mesh), x), tree)


def put_columns(array: np.ndarray, mesh: Mesh) -> jax.Array:
    """Places an array [S, B, ...] split along its second axis; each process passes its own part, as in `put_rows`."""
    return jax.make_array_from_process_local_data(NamedSharding(mesh, PartitionSpec(None, AXIS)), array)
