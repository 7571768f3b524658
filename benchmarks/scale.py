"""The index space at scale: what a run of very many points holds and waits for, each size in a process of its own."""

from __future__ import annotations

import json
import os
import pathlib
import subprocess
import sys
from collections.abc import Iterator

from benchmarks import Row
from benchmarks.own import CONFIG

# Points: (in words, seconds that a condensation may take).
SIZES = {1_280_000: ('1.28 million', 0.1), 14_000_000: ('14 million', 1.1), 100_000_000: ('100 million', 6.0)}


def live(num_points: int, scratch: pathlib.Path) -> dict[str, float]:
    """What `benchmarks.life` finds.

    Raises:
      ValueError: it failed.
    """
    paths = [str(CONFIG.parent.parent), *filter(None, [os.environ.get('PYTHONPATH')])]
    environment = {**os.environ, 'PYTHONPATH': os.pathsep.join(paths)}
    command = [sys.executable, '-m', 'benchmarks.life', str(num_points), str(scratch / f'life_{num_points}')]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or [f'status {done.returncode}, perhaps out of memory'])[-1]
        raise ValueError(f'the life of {num_points:,} points failed: {reason}')
    return json.loads(done.stdout.splitlines()[-1])


def rows(quick: bool, scratch: pathlib.Path) -> Iterator[Row]:
    """Recording, condensation, stage file and the order of an epoch of up to 100 million points, as a run has them."""
    for num_points, (text, target) in list(SIZES.items())[: 1 if quick else 3]:
        found = live(num_points, scratch)
        in_place = found['record_copied'] < num_points and not found['record_moved']
        yield Row(
            f'recording a batch of 1,024, {text} points',
            f'{1e3 * found["record"]:.2f} ms; {"in place" if in_place else "THE TABLE IS COPIED"}',
            'no copy of the table',
            met=in_place,
            details=found,
        )
        yield Row(
            f'condensation in a run, {text} points',
            f'{found["condense"]:.2f} s; order {found["order"]:.2f} s; stage file {found["stage"]:.1f} s; '
            f'peak {found["condense_and_stage_bytes"]:.0f} bytes a point',
            f'{target:g} s',
            f'{target / 2:g} s',
            found['condense'] <= target,
        )
