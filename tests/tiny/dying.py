"""`python -m tests.tiny.dying FLAGS`: processes that end in the way that --how names, for tests of the launcher."""

from __future__ import annotations

import argparse
import os
import pathlib
import signal
import sys
import time


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument('--how', required=True)
    parser.add_argument('--folder', type=pathlib.Path, required=True)
    parser.add_argument('--process', type=int, required=True)
    options, _ = parser.parse_known_args()
    print(f'process {options.process} begins', flush=True)
    (options.folder / f'{options.process}.pid').write_text(str(os.getpid()))
    again = (options.folder / 'again').exists()
    if options.process == 1 and options.how == 'killed' and not again:
        (options.folder / 'again').touch()
        while not (options.folder / '0.pid').exists():
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGKILL)
    if options.how == 'mistake':
        print('error: a mistake', file=sys.stderr)
        return 2
    if options.how == 'asked':
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))
    if options.how == 'asked' or not again:
        time.sleep(60)
    return 0


if __name__ == '__main__':
    sys.exit(main())
