"""What is refused: a second run in one work directory, and a work directory of another configuration."""

from __future__ import annotations

import random
import time

from harness import Bench, Injection, expect, stages


def second_run(bench: Bench, dice: random.Random) -> Injection:
    """The second one is refused; the first one does not notice."""
    del dice
    workdir = bench.fresh()
    with bench.start(workdir) as first:
        expect(first.freeze_in(lambda: stages(workdir / bench.run) >= 1), first.output(1))
        with bench.start(workdir) as second:
            line = bench.refused(second, 2, f'another run (process {first.process.pid}) is using')
            seconds = time.monotonic() - second.began
        first.thaw()
        expect(first.end() == 0, first.output(1))
    line = bench.private(line, workdir).replace(str(first.process.pid), 'N')
    injection = Injection(f'refused after {seconds:.1f} s; the first one ended undisturbed', 2, line)
    injection.lost = bench.differing(workdir)
    return injection


def other_config(bench: Bench, dice: random.Random) -> Injection:
    """Refused with the keys that differ, before anything is touched; the right command resumes."""
    del dice
    workdir = bench.halfway()
    with bench.start(workdir, '--config.optim.lr=0.04', '--config.policy.ratio=0.5') as program:
        line = bench.refused(program, 2, 'recipe.optim.lr is 0.05 there and 0.04 here')
        seconds = time.monotonic() - program.began
    return bench.go_on(workdir, Injection(f'refused after {seconds:.1f} s', 2, bench.private(line, workdir)))


FAULTS = {
    'second_run': ('two runs started in one work directory', second_run, 1),
    'other_config': ('work directory of another configuration', other_config, 1),
}
