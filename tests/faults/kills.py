"""SIGKILL: at random instants, in the middle of a checkpoint, of a condensation, of the teacher's training."""

from __future__ import annotations

import random
import shutil
import signal
import time

from harness import Bench, Injection, Wrong, expect, records, steps

TRIES = 10


def anywhere(bench: Bench, dice: random.Random) -> Injection:
    """Between the program's first instant and its last."""
    while True:
        workdir = bench.fresh()
        with bench.start(workdir) as program:
            instant = dice.uniform(0, bench.seconds)
            program.live(instant)
            code = program.send(signal.SIGKILL)
        if code == -signal.SIGKILL:
            there = steps(workdir / bench.run)
            where = f'last checkpoint at step {there[-1]}' if there else 'before the first checkpoint'
            return bench.go_on(workdir, Injection(f'{instant:.1f} s after its start, {where}', code))
        shutil.rmtree(workdir)  # it was faster than the first time and had finished


def in_training(bench: Bench, dice: random.Random) -> Injection:
    """At a random epoch, a random tenth of a second later."""
    workdir = bench.fresh()
    log = workdir / bench.run / 'metrics.jsonl'
    epoch = dice.randint(1, max(record['epoch'] for record in records(bench.whole / bench.run / 'metrics.jsonl')) - 1)

    with bench.start(workdir) as program:
        caught = program.until(lambda: any(r['kind'] == 'train' and r['epoch'] >= epoch for r in records(log)))
        expect(caught, f'epoch {epoch} was not caught: {program.output(1)}')
        program.live(time.monotonic() - program.began + dice.uniform(0, 0.1))
        code = program.send(signal.SIGKILL)
    last = (steps(workdir / bench.run) or ['none'])[-1]
    return bench.go_on(workdir, Injection(f'after epoch {epoch}; last checkpoint: {last}', code))


def checkpoint(bench: Bench, dice: random.Random) -> Injection:
    """While a checkpoint is written: the folder of the partial one is there, and stays."""
    workdir = bench.fresh()
    wanted = dice.randint(1, 4)
    seen: set[str] = set()

    def writing() -> list[str]:
        found = [path.name for path in (workdir / bench.run / 'checkpoints').glob('*tmp*')]
        seen.update(found)
        return found if len(seen) >= wanted else []

    with bench.start(workdir) as program:
        expect(program.freeze_in(writing), f'no checkpoint was caught: {program.output(1)}')
        name = writing()[0]
        code = program.send(signal.SIGKILL)
    return bench.go_on(workdir, Injection(f'checkpoint {wanted}, half written as {name}', code))


def condensation(bench: Bench, dice: random.Random) -> Injection:
    """Between the evaluation before a condensation and the end of its stage file."""
    whole = records(bench.whole / bench.run / 'metrics.jsonl')
    planned = {record['epoch']: record['number'] for record in whole if record['kind'] == 'condensation'}
    epoch = dice.choice(sorted(planned))

    def condensing() -> bool:
        folder = workdir / bench.run
        last = (records(folder / 'metrics.jsonl') or [{'kind': ''}])[-1]
        file = folder / 'knowledge' / f'stage_{planned[epoch]}.npz'
        return last['kind'] in ('eval', 'condensation') and last['epoch'] == epoch and not file.exists()

    for _ in range(TRIES):  # the instant is short: it may pass between two looks
        workdir = bench.fresh()
        with bench.start(workdir) as program:
            if program.freeze_in(condensing):
                code = program.send(signal.SIGKILL)
                return bench.go_on(workdir, Injection(f'condensation {planned[epoch]}, after epoch {epoch}', code))
        shutil.rmtree(workdir)
    raise Wrong(f'the condensation was not caught in {TRIES} runs')


def again_and_again(bench: Bench, dice: random.Random) -> Injection:
    """Five kills of one run, each at a random instant of its training."""
    workdir = bench.fresh()
    log = records(bench.whole / bench.run / 'metrics.jsonl')
    seconds = sum(record['time']['seconds'] for record in log if record['kind'] == 'train')
    kills, codes = [], []
    while len(kills) < 5:
        with bench.start(workdir) as program:
            if program.first_new_epoch() is None:
                break
            program.live(time.monotonic() - program.began + dice.uniform(0, 0.2) * seconds)
            codes.append(program.send(signal.SIGKILL))
        kills.append(str((steps(workdir / bench.run) or [0])[-1]))
    instants = f'{len(kills)} kills, last checkpoints at steps {", ".join(kills)}'
    return bench.go_on(workdir, Injection(instants, codes[0]))


def teacher(bench: Bench, dice: random.Random) -> Injection:
    """While the teacher is trained; the student's run that follows must be the same."""
    workdir = bench.fresh(teacher=False)
    log = workdir / 'teacher' / 'metrics.jsonl'
    wanted = dice.randint(1, 5)
    with bench.start(workdir) as program:
        caught = program.until(lambda: sum(record['kind'] == 'train' for record in records(log)) >= wanted)
        expect(caught, f'the teacher was not caught: {program.output(1)}')
        code = program.send(signal.SIGKILL)
    expect(not (workdir / 'teacher' / 'summary.json').exists(), 'the teacher had finished')
    return bench.go_on(workdir, Injection(f'after epoch {wanted} of the teacher', code))


FAULTS = {
    'kill_anywhere': ('SIGKILL at a random instant of the whole life', anywhere, 4),
    'kill_in_training': ('SIGKILL at a random instant of the training', in_training, 8),
    'kill_in_checkpoint': ('SIGKILL while a checkpoint is written', checkpoint, 5),
    'kill_in_condensation': ('SIGKILL during a condensation', condensation, 5),
    'kill_again_and_again': ('five SIGKILLs of one run', again_and_again, 1),
    'kill_teacher': ('SIGKILL while the teacher is trained', teacher, 1),
}
