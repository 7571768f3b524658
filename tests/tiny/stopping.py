"""`python -m tests.tiny.stopping FLAGS`: connected processes that take steps until a signal stops them together."""

from __future__ import annotations

import argparse
import pathlib
import sys
import time

import jax

from kcd_jax.runtime import distributed


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument('--coordinator', required=True)
    for name in ('processes', 'process', 'devices'):
        parser.add_argument(f'--{name}', type=int, required=True)
    parser.add_argument('--folder', type=pathlib.Path, required=True)
    options = parser.parse_args()
    jax.config.update('jax_num_cpu_devices', options.devices)
    distributed.initialize(options.coordinator, options.processes, options.process)
    step = 0
    with distributed.Notice() as notice:
        while not notice.came():
            step += 1
            time.sleep(0.01)
            if step == 5:
                (options.folder / f'{options.process}.ready').touch()
        stopped = notice.stopped(step)
    (options.folder / f'{options.process}.step').write_text(str(step))
    return distributed.leave(stopped.exit_code, str(stopped))


if __name__ == '__main__':
    sys.exit(main())
