"""`python -m benchmarks.life POINTS FOLDER`: the life of an index space as a run has it, in a process of its own.

A value table, a plan and an order of so many points on one host device, by the run's own loop, over images that cost
nothing: what it takes to record a batch, to condense, to write the stage file, to order an epoch, to find the first
batch of a stream, and (up to `MAX_SAVED` points) to save a checkpoint. The last line of the output is one JSON object.
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
import resource
import statistics
import sys
import time
from typing import Any

BATCH, EPOCHS, LAST_STAGE, REPEATS = 1024, 240, 201, 50
FEW = 70_000
MAX_SAVED = 20_000_000  # while a checkpoint is written it takes several times the state


class Black:
    """A source of black images that takes no memory."""

    def __getitem__(self, point: int) -> Any:
        import numpy as np

        return np.zeros((32, 32, 3), np.uint8)


def peak_bytes() -> int:
    """The most memory that this process has held so far."""
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def live(num_points: int, folder: pathlib.Path) -> dict[str, float]:
    """{part: seconds, and 'PART_bytes': the most bytes a point up to its end, above the process without points}.

    'record_copied' are the bytes that the recording program takes beside the table, which it writes in place, by the
    compiler's own count; 'record_moved' is 1 if the table's buffers lie elsewhere after it.
    """
    import jax
    import jax.numpy as jnp
    import numpy as np

    from benchmarks.own import CONFIG, made_up_data
    from kcd_jax import data, knowledge
    from kcd_jax.contracts import ValueTable, table_rows
    from kcd_jax.experiments import experiment
    from kcd_jax.runtime import checkpoint, runlog, sharding
    from kcd_jax.training import check
    from kcd_jax.training.loop import Loop

    found: dict[str, float] = {}
    mesh, rows = sharding.make_mesh(jax.devices()[:1]), table_rows(num_points)

    def scattered() -> ValueTable:
        """Values all over [0, 1) and up to 239 visits, without the temporaries of random numbers."""
        point = jnp.arange(rows, dtype=jnp.uint32)
        value = (point * jnp.uint32(2654435761) >> jnp.uint32(8)).astype(jnp.float32) / 2**24
        return ValueTable(value, (point % 239 + 1).astype(jnp.int32), num_points)

    # The data's own index and labels are no part of this: zeros without memory.
    images = data.Images(Black(), np.broadcast_to(np.int64(0), num_points), (32, 32, 3))
    train = data.Split(images, np.broadcast_to(np.int32(0), num_points))
    dataset = dataclasses.replace(made_up_data(64), train=train)
    config = experiment.load_config(f'{CONFIG}:resnet20-resnet8,method=none,policy=kcd,epochs={EPOCHS},batch={BATCH}')
    before = peak_bytes()

    def passed(part: str, start: float) -> None:
        found[part], found[f'{part}_bytes'] = time.perf_counter() - start, (peak_bytes() - before) / num_points

    with runlog.RunLog(folder, config.to_dict()) as run_log:
        run_log.rewind([], -1)
        start = time.perf_counter()
        run = check.resolve(config, dataset, device_count=mesh.size)
        loop = Loop(config, run, dataset, None, folder, mesh, run_log)
        current = loop.initial_state(None)
        passed('create', start)

        current = current.replace(table=jax.jit(scattered, out_shardings=sharding.batch(mesh))())
        index = sharding.put(np.arange(BATCH, dtype=np.int32), sharding.batch(mesh))
        value = sharding.put(np.ones(BATCH, np.float32), sharding.batch(mesh))
        jitted = jax.jit(knowledge.record, donate_argnums=0, out_shardings=sharding.batch(mesh))
        record = jitted.lower(current.table, index, value).compile()
        table, times = current.table, []
        places = [leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves(table)]
        for _ in range(REPEATS):
            start = time.perf_counter()
            table = jax.block_until_ready(record(table, index, value))
            times.append(time.perf_counter() - start)
        memory = record.memory_analysis()
        found['record'] = statistics.median(times)
        found['record_copied'] = memory.temp_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
        found['record_moved'] = float(places != [leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves(table)])
        current = current.replace(table=table)

        start = time.perf_counter()
        current = loop.condense_before(current, LAST_STAGE)
        passed('condense_and_stage', start)
        found['condense'] = loop.seconds['condense']
        found['stage'] = found.pop('condense_and_stage') - found['condense']
        (file,) = (folder / 'knowledge').iterdir()
        found['stage_file'] = file.stat().st_size / num_points

        start = time.perf_counter()
        order = jax.block_until_ready(loop.order(current.key, current.plan, jnp.int32(LAST_STAGE)))
        passed('order', start)

        start = time.perf_counter()
        steps = int(current.plan.num_keep) // BATCH
        supplies = loop.feed.epoch(order, current.plan, LAST_STAGE, 0, steps)
        next(supplies)
        supplies.close()
        passed('first_batch', start)

        if num_points <= MAX_SAVED:
            start = time.perf_counter()
            with checkpoint.Checkpointer(folder / 'checkpoints') as keeper:
                keeper.save(1, current, {})
            passed('checkpoint', start)
    return found


if __name__ == '__main__':
    from kcd_jax import main

    main.prepare_jax(1, False)
    folder = pathlib.Path(sys.argv[2])
    live(FEW, folder / 'few')  # what is compiled and loaded whatever the number of points
    print(json.dumps(live(int(sys.argv[1]), folder / 'many')))
