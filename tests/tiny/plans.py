"""`python -m tests.tiny.plans FLAGS`: prints the digests of the plans that the policies make of one table.

Takes the flags that connect processes, as kcd_jax.main does; process 0 prints one line of JSON.
"""

from __future__ import annotations

import argparse
import hashlib
import json

import jax
import jax.numpy as jnp
import numpy as np

from kcd_jax import policies
from kcd_jax.contracts import ValueTable, full_plan, stream
from kcd_jax.runtime import distributed, sharding
from kcd_jax.training import step
from kcd_jax.training.state import copy_to

NUM_POINTS, EPOCHS = 3000, 12
POLICIES = {
    'kcd': {},
    'kcd window': {'dropped': 'window', 'augment': 'random', 'schedule': 'linear'},
    'infobatch': {},
    'infobatch full': {'until': 0.0},
}


def table() -> ValueTable:
    """Many ties: a few values, points never visited, and what is not a number."""
    rng, empty = np.random.default_rng(3), ValueTable.create(NUM_POINTS)
    rows = len(empty.value)
    value = rng.integers(0, 7, rows).astype(np.float32) / 4
    value[rng.integers(0, NUM_POINTS, 20)] = np.nan
    count = rng.integers(0, 3, rows).astype(np.int32)
    value[count == 0] = 0
    value[NUM_POINTS:], count[NUM_POINTS:] = 0, 0
    return empty.replace(value=jnp.asarray(value), count=jnp.asarray(count))


def digests(mesh: jax.sharding.Mesh) -> dict[str, str]:
    """{policy: SHA-256 of the plan and of the epoch's order}, as the loop makes them on this mesh."""
    whole, found = sharding.replicated(mesh), {}
    split = sharding.put(table(), sharding.batch(mesh))
    before = sharding.put(full_plan(NUM_POINTS), whole)
    key = sharding.put(jax.random.PRNGKey(0), whole)
    order = jax.jit(step.epoch_order, out_shardings=whole)
    table_everywhere = sharding.replicate(mesh, split)
    for name, keywords in POLICIES.items():
        policy = policies.get(name.split()[0]).make(**keywords)
        state = sharding.put(policy.init(NUM_POINTS, len(split.value), None), whole)
        replan_key = stream(key, 'replan', 1)
        plan, _ = policy.replan(replan_key, table_everywhere, before, state, 1, EPOCHS)
        plan = copy_to(plan, whole)
        arrays = sharding.to_host((plan, order(key, plan, jnp.int32(1))))
        digest = hashlib.sha256(b''.join(np.ascontiguousarray(array).tobytes() for array in jax.tree.leaves(arrays)))
        found[name] = digest.hexdigest()
    return found


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument('--coordinator', default='')
    for name in ('processes', 'process', 'devices'):
        parser.add_argument(f'--{name}', type=int)
    options = parser.parse_args()
    jax.config.update('jax_num_cpu_devices', options.devices)
    distributed.initialize(options.coordinator, options.processes, options.process)
    mesh, number = sharding.make_mesh(), jax.process_index()
    report = {
        'devices': mesh.size,
        'processes': jax.process_count(),
        'plans': digests(mesh),
    }
    report['first'] = distributed.first(lambda: {'number': number})
    report['bytes'] = distributed.from_first(f'from {number}'.encode()).decode()
    mine = {'a': np.full(3, number, np.float32), 'b': np.int32(number)}
    report['arrays'] = jax.tree.map(lambda x: x.tolist(), distributed.arrays_from_first(mine))
    report['all'] = distributed.from_all(f'I am {number}')
    report['rows'] = sharding.local_rows(mesh, 8).tolist()
    try:
        with distributed.together():
            if number == jax.process_count() - 1:
                raise OSError('no such place')
    except (distributed.Agreed, OSError) as error:
        report['error'] = str(error)
        report['on_disk'] = isinstance(error, OSError) or error.on_disk
    timer = distributed.Timer(0.0)
    report['due'] = [timer.due() for _ in range(3)]
    if distributed.is_first():
        print(json.dumps(report), flush=True)
    distributed.leave(0)


if __name__ == '__main__':
    main()
