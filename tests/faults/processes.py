"""SIGKILL of one of two processes: the launcher ends the other within a minute, and the next start continues."""

from __future__ import annotations

import os
import pathlib
import random
import shutil
import signal
import time

from harness import Bench, Injection, expect, stages


def one_of_two(bench: Bench, dice: random.Random) -> Injection:
    other = two_processes(bench)
    workdir = other.fresh()
    victim, wanted = dice.randrange(2), dice.randint(1, 5)
    with other.start(workdir) as launcher:
        expect(launcher.until(lambda: stages(workdir / bench.run) >= wanted), launcher.output(1))
        expect(_kill(launcher.process.pid, victim), f'process {victim} was not found')
        began = time.monotonic()
        code, said = launcher.end(), launcher.output(1).strip().splitlines()[-1]
        seconds = time.monotonic() - began
    expect(code == 128 + signal.SIGKILL and seconds < 60, f'exit code {code} after {seconds:.1f} s: {said}')
    instant = f'process {victim}, after condensation {wanted}; the launcher ended {seconds:.1f} s later'
    return other.go_on(workdir, Injection(instant, code, said))


def two_processes(bench: Bench) -> Bench:
    """A bench whose runs are two processes with a device each."""
    words = bench.words.replace('epochs=30', 'epochs=12')  # two processes share the cores
    other = Bench(bench.scratch / 'processes', words, processes=2)
    if not other.whole.exists():
        shutil.copytree(bench.whole / 'teacher', other.whole / 'teacher')
    other.prepare(timed=False)
    return other


def _kill(launcher: int, number: int) -> bool:
    """Kills the launcher's process of that number."""
    for folder in pathlib.Path('/proc').glob('[0-9]*'):
        try:
            words = (folder / 'cmdline').read_bytes().split(b'\0')
            parent = int((folder / 'stat').read_text().rpartition(')')[2].split()[1])
        except (OSError, IndexError):
            continue
        if parent == launcher and f'--process={number}'.encode() in words:
            os.kill(int(folder.name), signal.SIGKILL)
            return True
    return False


FAULTS = {'kill_one_of_two': ('SIGKILL of one of two processes', one_of_two, 2)}
