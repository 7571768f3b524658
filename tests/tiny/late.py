"""`python -m tests.tiny.late FLAGS`: connected processes whose last device reaches a collective a second late.

Each ends at once when they have agreed: what Gloo has not connected by then, it never says.
"""

from __future__ import annotations

import argparse
import os

import jax
import jax.numpy as jnp

from kcd_jax.runtime import distributed

made = jax.make_array_from_process_local_data


@jax.jit
def late(value: jax.Array) -> jax.Array:
    """The same after much work: the device works on it while the program goes on."""
    work = jax.lax.fori_loop(0, 1000, lambda i, matrix: matrix @ matrix * 1e-3, jnp.ones((400, 400)))
    return jnp.where(work[0, 0] > 1e30, jnp.zeros_like(value), value)


def made_late(*args) -> jax.Array:
    array = made(*args)
    *first, last = [shard.data for shard in array.addressable_shards]
    return jax.make_array_from_single_device_arrays(array.shape, array.sharding, [*first, late(last)])


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument('--coordinator', required=True)
    for name in ('processes', 'process', 'devices'):
        parser.add_argument(f'--{name}', type=int, required=True)
    options = parser.parse_args()
    jax.config.update('jax_num_cpu_devices', options.devices)
    distributed.initialize(options.coordinator, options.processes, options.process)
    late(jax.device_put(jnp.zeros((1, 2048), jnp.uint8), jax.local_devices()[-1])).block_until_ready()  # compiled
    jax.make_array_from_process_local_data = made_late
    print(distributed.from_all(str(options.process)), flush=True)
    os._exit(0)


if __name__ == '__main__':
    main()
