"""`python -m benchmarks.first_step START WORDS FOLDER`: seconds from START (time.time) to the end of a first step.

What a run does before it: imports, the config, 50,000 images in memory, a teacher, the state, the compilation.
"""

from __future__ import annotations

import pathlib
import sys
import time

if __name__ == '__main__':
    from kcd_jax import main

    start, words, folder = sys.argv[1:]
    main.prepare_jax(0, False)
    from benchmarks import own

    with own.own_run(words, 50_000, pathlib.Path(folder)) as run:
        run.step()
        print(time.time() - float(start))
