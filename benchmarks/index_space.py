"""`python -m benchmarks.index_space POINTS FOLDER`: what the value table and the plan of a large run cost, as JSON.

One host device holds a value table, a plan and an epoch's order of that many points; the images take no memory. The
run's own loop records batches, condenses, writes the stage file and orders an epoch. A process of its own lets the peak
memory be read.
"""

from __future__ import annotations

import json
import pathlib
import resource
import statistics
import sys
import time
from typing import Any

BATCH, EPOCHS, LAST_STAGE, REPEATS = 1024, 240, 201, 50
WARM_UP_POINTS = 70_000


class BlackImages:
    """A source of black images that takes no memory."""

    content = 'black images'  # identifies its pixels without reading them

    def __getitem__(self, point: int) -> Any:
        import numpy as np

        return np.zeros((32, 32, 3), np.uint8)


def peak_bytes() -> int:
    """The most memory that this process has held so far."""
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def measure(num_points: int, folder: pathlib.Path) -> dict[str, float]:
    """Seconds and memory of each part.

    Returns:
      {part: seconds, 'PART_bytes': peak bytes per point up to the part's end, above the process without points,
      'record_copied': bytes that the recording program allocates beyond the table, which it updates in place, by the
      compiler's count, 'record_moved': 1 if the table's buffers moved}.
    """
    import jax
    import jax.numpy as jnp
    import numpy as np

    from benchmarks.timed_run import TimedRun, dataset_of, run_of
    from kcd_jax import data, knowledge
    from kcd_jax.contracts import ValueTable, table_rows
    from kcd_jax.runtime import runlog, sharding
    from kcd_jax.training.journal import Journal
    from kcd_jax.training.recipe import Recipe

    found: dict[str, float] = {}

    def table() -> ValueTable:
        """Values all over [0, 1) and up to 239 visits, without the temporaries of a random number generator."""
        point = jnp.arange(table_rows(num_points), dtype=jnp.uint32)
        value = (point * jnp.uint32(2654435761) >> jnp.uint32(8)).astype(jnp.float32) / 2**24
        return ValueTable(value, (point % 239 + 1).astype(jnp.int32), num_points)

    # Broadcast zeros take no memory: the data's own index and labels are not measured here.
    images = data.Images(BlackImages(), np.broadcast_to(np.int64(0), num_points), (32, 32, 3))
    train = data.Split(images, np.broadcast_to(np.int32(0), num_points))
    dataset = dataset_of(train, (32, 32, 3), 100)
    before = peak_bytes()

    def passed(part: str, start: float) -> None:
        found[part], found[f'{part}_bytes'] = time.perf_counter() - start, (peak_bytes() - before) / num_points

    recipe = Recipe(epochs=EPOCHS, batch=BATCH)
    described = run_of('resnet20-resnet8', dataset, method='none', policy='kcd', recipe=recipe)
    run = TimedRun(described, sharding.make_mesh(jax.devices()[:1]))

    rows = sharding.batch(run.mesh)
    current = jax.jit(table, out_shardings=rows)()
    index = sharding.put(np.arange(BATCH, dtype=np.int32), rows)
    value = sharding.put(np.ones(BATCH, np.float32), rows)
    record = jax.jit(knowledge.record, donate_argnums=0, out_shardings=rows).lower(current, index, value).compile()
    places, times = [leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves(current)], []
    for _ in range(REPEATS):
        start = time.perf_counter()
        current = jax.block_until_ready(record(current, index, value))
        times.append(time.perf_counter() - start)
    memory = record.memory_analysis()
    found['record'] = statistics.median(times)
    found['record_copied'] = memory.temp_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
    found['record_moved'] = float(places != [leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves(current)])
    run.state = run.state.replace(table=current)
    del current

    start, before_it = time.perf_counter(), run.state.plan
    run.state = run.trainer.condense(run.state, LAST_STAGE)
    passed('condense', start)

    with runlog.RunLog(folder, {}) as log:
        log.rewind([], -1)
        start = time.perf_counter()
        Journal(described, log).condensation(before_it, run.state, LAST_STAGE)
        passed('stage', start)
    del before_it

    start = time.perf_counter()
    run.order(LAST_STAGE)
    passed('order', start)
    return found


if __name__ == '__main__':
    from kcd_jax.commands import launch

    launch.prepare_jax(1)
    root = pathlib.Path(sys.argv[2])
    measure(WARM_UP_POINTS, root / 'warm_up')  # compiles and loads what does not depend on the number of points
    print(json.dumps(measure(int(sys.argv[1]), root / 'measured')))
