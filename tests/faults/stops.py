"""SIGTERM and SIGINT at random moments: one line, an exit code for each, and the same command continues."""

from __future__ import annotations

import random
import shutil
import signal

from harness import Bench, Injection, expect


def _stop(bench: Bench, dice: random.Random, number: signal.Signals, code: int, says: str) -> Injection:
    while True:
        workdir = bench.fresh()
        with bench.start(workdir) as program:
            instant = dice.uniform(0.15, 1) * bench.seconds
            if program.live(instant):
                program.process.send_signal(number)
            found, lines = program.end(), program.output(1).strip().splitlines()
        finished = (workdir / bench.run / 'manifest.json').exists()
        if found != 0 and not (finished and found == -number):  # Python, at its end, takes the handlers away
            break
        shutil.rmtree(workdir)  # it had finished, or was about to
    expect(found == code, f'exit code {found} {instant:.1f} s after the start: {lines}')
    lines = [line for line in lines if 'press it again' not in line]  # says at once that Ctrl-C was heard
    expect(len(lines) == 1 and says in lines[0], f'not one line: {lines}')
    return bench.go_on(workdir, Injection(f'{instant:.1f} s after its start', found, lines[0]))


def sigterm(bench: Bench, dice: random.Random) -> Injection:
    return _stop(bench, dice, signal.SIGTERM, 75, 'the same command')


def sigint(bench: Bench, dice: random.Random) -> Injection:
    return _stop(bench, dice, signal.SIGINT, 130, 'Ctrl-C: ')


FAULTS = {
    'sigterm': ('SIGTERM at a random instant', sigterm, 3),
    'sigint': ('SIGINT (Ctrl-C) at a random instant', sigint, 3),
}
