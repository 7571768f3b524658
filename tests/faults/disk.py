"""Full disks and read-only places.

A disk is a small tmpfs filled to the brim from outside; where mounting is refused, the size of any file that the
running program writes is limited instead (RLIMIT_FSIZE).
"""

from __future__ import annotations

import contextlib
import functools
import os
import pathlib
import random
import resource
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator

from damage import folder_bench
from harness import Bench, Injection, Program, expect, records, steps

SIZE = 32 << 20


class Disk:
    """A place that can be filled."""

    def __init__(self, folder: pathlib.Path, mounted: bool):
        self.folder, self.mounted = folder, mounted
        self.ballast = folder / 'ballast'

    def fill(self, program: Program, leave: int) -> None:
        """Leaves so many bytes free (or allows files of that size), while the program stands still."""
        program.freeze()
        if self.mounted:
            state = os.statvfs(self.folder)
            with contextlib.suppress(OSError):  # full already: the pages of the file itself count too
                self.ballast.write_bytes(bytes(max(state.f_bavail * state.f_frsize - leave, 0)))
        else:
            resource.prlimit(program.process.pid, resource.RLIMIT_FSIZE, (leave, leave))
        program.thaw()

    def free(self) -> None:
        self.ballast.unlink(missing_ok=True)

    @property
    def kind(self) -> str:
        return 'tmpfs' if self.mounted else 'RLIMIT_FSIZE'


@contextlib.contextmanager
def disk(bench: Bench, mount: bool = True) -> Iterator[Disk]:
    folder = bench.scratch / f'disk_{os.getpid()}'
    folder.mkdir(exist_ok=True)
    command = ['mount', '-t', 'tmpfs', '-o', f'size={SIZE}', 'none', str(folder)]
    mounted = mount and not subprocess.run(command, capture_output=True).returncode
    try:
        yield Disk(folder, mounted)
    finally:
        if mounted:
            subprocess.run(['umount', '-l', folder], check=True)
        shutil.rmtree(folder, ignore_errors=True)


def in_checkpoint(bench: Bench, dice: random.Random, mount: bool) -> Injection:
    """The disk fills up while a partial checkpoint is there; the log may notice before the checkpoint does."""
    leave = dice.choice([0, 4, 8, 16]) << 10 if mount else 20 << 10
    with disk(bench, mount) as place:
        workdir = bench.halfway(place.folder)
        folder = workdir / bench.run
        before = steps(folder)

        def writing() -> bool:
            return 'going on from' in program.output() and any((folder / 'checkpoints').glob('*tmp*'))

        with bench.start(workdir) as program:
            expect(program.freeze_in(writing), f'no checkpoint was caught: {program.output(1)}')
            place.fill(program, leave)
            line = bench.refused(program, 74, 'not be written' if mount else 'a checkpoint could not be written')
        place.free()
        expect(steps(folder)[-1:] >= before[-1:], f'checkpoints {before} became {steps(folder)}')
        injection = Injection(f'{leave >> 10} KiB left, {place.kind}', 74, bench.private(line, workdir))
        return bench.go_on(workdir, injection)


def in_log(bench: Bench, dice: random.Random) -> Injection:
    """No room at all while no checkpoint is due: the log is the first to notice."""
    del dice
    slow = Bench(bench.scratch, bench.words + ',checkpoint.seconds=1000')  # a setting that may change between starts
    with disk(bench) as place:
        workdir = bench.halfway(place.folder)
        with slow.start(workdir) as program:
            expect(program.until(lambda: 'going on from step' in program.output()), program.output(1))
            log = workdir / bench.run / 'metrics.jsonl'
            place.fill(program, 0 if place.mounted else log.stat().st_size + 40)
            line = bench.refused(program, 74, 'cannot be written (')
        place.free()
        injection = Injection(f'no room for the next line of the log, {place.kind}', 74, bench.private(line, workdir))
        return bench.go_on(workdir, injection)


def at_the_end(bench: Bench, dice: random.Random) -> Injection:
    """The disk is full when the last epoch is logged: the export, the summary or the report cannot be written."""
    leave = dice.choice([0, 16, 40, 80]) << 10
    with disk(bench) as place:
        workdir = bench.halfway(place.folder)
        folder = workdir / bench.run
        epochs = max(record['epoch'] for record in records(bench.whole / bench.run / 'metrics.jsonl'))

        def last_epoch() -> bool:
            return any(r['kind'] == 'train' and r['epoch'] == epochs for r in records(folder / 'metrics.jsonl'))

        with bench.start(workdir) as program:
            expect(program.until(last_epoch), program.output(1))
            place.fill(program, leave if place.mounted else 20 << 10)
            line = bench.refused(program, 74, 'written')
        place.free()
        return bench.go_on(
            workdir, Injection(f'{leave >> 10} KiB left at the end, {place.kind}', 74, bench.private(line, workdir))
        )


def at_the_start(bench: Bench, dice: random.Random) -> Injection:
    """No room for the first file."""
    del dice
    with disk(bench) as place:
        workdir = bench.fresh(place.folder)
        if place.mounted:
            state = os.statvfs(place.folder)
            place.ballast.write_bytes(bytes(state.f_bavail * state.f_frsize))
        with bench.start(workdir) as program:
            if not place.mounted:
                place.fill(program, 100)
            line = bench.refused(program, 2, 'cannot be written')
        place.free()
        injection = Injection(f'no room for the first file, {place.kind}', 2, bench.private(line, workdir))
        return bench.go_on(workdir, injection)


@contextlib.contextmanager
def read_only(folder: pathlib.Path) -> Iterator[str]:
    """Makes a folder read-only for everybody, root too where mounting is allowed; says how."""
    mounted = not subprocess.run(['mount', '--bind', folder, folder], capture_output=True).returncode
    try:
        if mounted:
            subprocess.run(['mount', '-o', 'remount,ro,bind', folder], check=True)
        else:
            for path in (folder, *folder.rglob('*')):
                path.chmod(path.stat().st_mode & ~0o222)
        yield 'a read-only mount' if mounted else 'no right to write'
    finally:
        if mounted:
            subprocess.run(['umount', '-l', folder], check=True)
        else:
            for path in (folder, *folder.rglob('*')):
                path.chmod(path.stat().st_mode | 0o200)


def read_only_data(bench: Bench, dice: random.Random) -> Injection:
    """The images and the cache of what is decoded from them: nothing is written there, and nothing is needed."""
    del dice
    other = folder_bench(bench)
    with read_only(bench.scratch / 'images') as how, read_only(bench.scratch / 'cache'):
        return other.go_on(other.fresh(), Injection(f'data directory and cache: {how}'))


def read_only_workdir(bench: Bench, dice: random.Random) -> Injection:
    del dice
    workdir = bench.halfway()
    began = time.monotonic()
    with read_only(workdir) as how:
        with bench.start(workdir) as program:
            if how.startswith('no') and os.geteuid() == 0:
                program.process.send_signal(signal.SIGKILL)
                expect(False, 'root writes wherever it wants; mounting is needed to try this')
            line = bench.refused(program, 2, 'cannot be written (Read-only file system)')
    seconds = time.monotonic() - began
    return bench.go_on(workdir, Injection(f'{how}, refused after {seconds:.1f} s', 2, bench.private(line, workdir)))


FAULTS = {
    'disk_full_checkpoint': ('disk full during a checkpoint', functools.partial(in_checkpoint, mount=True), 3),
    'file_limit_checkpoint': (
        'file size limit reached in a checkpoint',
        functools.partial(in_checkpoint, mount=False),
        2,
    ),
    'disk_full_log': ('disk full during a log write', in_log, 1),
    'disk_full_end': ('disk full when the results are written', at_the_end, 2),
    'disk_full_start': ('disk full at the start', at_the_start, 1),
    'read_only_data': ('read-only data directory', read_only_data, 1),
    'read_only_workdir': ('read-only work directory', read_only_workdir, 1),
}
