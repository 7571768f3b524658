"""Test bench for faults: starts the program as a user would, watches it from outside, and compares what it leaves.

The program has no hooks for it. To hit a certain moment, the bench watches the files of the run, stops the process with
SIGSTOP, and checks that the moment is right. The following must agree with an undisturbed run: every array of the last
checkpoint (parameters, running statistics, optimizer, value table, plan), the exported student, every stage file, the
log apart from its times, and the summary apart from its seconds, command and commit.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence

import numpy as np

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
PROGRAM = 'tests.tiny.program'  # kcd_jax.main, and networks that train in a second
WORDS = 'quicktest,tiny_teacher-tiny,method=kd,policy=kcd,epochs=30,stages=6,eval_every=1,checkpoint.seconds=0.2'
LIMIT = 1800  # seconds until a run counts as hanging


@dataclasses.dataclass
class Injection:
    """One injected fault.

    Attributes:
      instant: when and where it was injected, in words.
      code: exit code of the disturbed program; negative: the signal that ended it; None: it was not running.
      says: the line that the program printed about it: its error, or a line when it continued.
      lost: names of what is not bit for bit the same in the end.
      recovery: seconds from the restart to the first new epoch in the log; None where nothing was left to train.
    """

    instant: str
    code: int | None = None
    says: str = ''
    lost: list[str] = dataclasses.field(default_factory=list)
    recovery: float | None = None


class Wrong(Exception):
    """The program did not do what it promises."""


def expect(condition: object, what: str) -> None:
    """Raises Wrong unless `condition`."""
    if not condition:
        raise Wrong(what)


class Program:
    """The program, running."""

    def __init__(self, command: Sequence[str], folder: pathlib.Path, env: dict[str, str]):
        """`folder`: of the run whose log is watched."""
        self.log, self.checkpoints = folder / 'metrics.jsonl', folder / 'checkpoints'
        self.had_checkpoints = bool(steps(folder))
        self.files = [tempfile.TemporaryFile('w+') for _ in range(2)]
        self.began, self.began_ns = time.monotonic(), time.time_ns()
        self.process = subprocess.Popen(
            command, cwd=ROOT, env=env, stdout=self.files[0], stderr=self.files[1], stdin=subprocess.DEVNULL
        )

    def __enter__(self) -> Program:
        return self

    def __exit__(self, *details: object) -> None:
        if self.process.poll() is None:
            self.thaw()
            self.process.terminate()  # a launcher passes it on, and ends those that do not listen
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(timeout=30)
            self.process.kill()
            self.process.wait()
        for file in self.files:
            file.close()

    def output(self, number: int = 0) -> str:
        """What it printed so far: 0 on stdout, 1 on stderr."""
        return os.pread(self.files[number].fileno(), 1 << 20, 0).decode()

    def running(self) -> bool:
        """False once it ended; a run that hangs is Wrong."""
        expect(time.monotonic() - self.began < LIMIT, f'no end after {LIMIT} s: {self.output()} {self.output(1)}')
        return self.process.poll() is None

    def end(self) -> int:
        """Waits; the exit code."""
        while self.running():
            time.sleep(0.01)
        return self.process.returncode

    def send(self, number: signal.Signals) -> int:
        """Sends a signal and waits for the end; the exit code."""
        self.process.send_signal(number)
        return self.end()

    def until(self, condition: Callable[[], object]) -> bool:
        """Waits for `condition()`; False when the program ended before."""
        while self.running():
            if condition():
                return True
            time.sleep(0.004)
        return False

    def live(self, seconds: float) -> bool:
        """Waits until so many seconds after its start; False when it ended before."""
        return self.until(lambda: time.monotonic() - self.began > seconds)

    def freeze_in(self, condition: Callable[[], object]) -> bool:
        """Freezes the program at an instant at which `condition()` holds; False when it ended before."""
        while self.until(condition):
            self.freeze()
            if condition():
                return True
            self.thaw()
        return False

    def freeze(self) -> None:
        """Stops it where it is."""
        self.process.send_signal(signal.SIGSTOP)
        while self.running() and _state(self.process.pid) != 'T':
            time.sleep(0.0005)

    def thaw(self) -> None:
        """Lets it go on."""
        self.process.send_signal(signal.SIGCONT)

    def first_new_epoch(self) -> float | None:
        """Seconds from the start to the first epoch in the log that was not there; None: it ended without one."""

        def new() -> bool:
            said = self.output()
            found = re.search(r'going on from step ([\d,]+)', said)
            if self.had_checkpoints and not found and 'from the beginning' not in said:
                return False
            start = int(found[1].replace(',', '')) if found else 0
            if not self.log.exists() or self.log.stat().st_mtime_ns < self.began_ns:
                return False
            return any(record['kind'] == 'train' and record['step'] > start for record in records(self.log))

        while True:
            alive = self.running()
            if new():
                return time.monotonic() - self.began
            if not alive:
                return None
            time.sleep(0.005)


class Bench:
    """One configuration: its reference run, and runs to be disturbed."""

    run = 'kcd/trial_0'  # its folder in the work directory

    def __init__(
        self, scratch: pathlib.Path, words: str = WORDS, processes: int = 1, env: dict[str, str] | None = None
    ):
        """`scratch` keeps the undisturbed run and the compiled programs between calls. All runs have two devices."""
        self.scratch, self.words, self.processes = scratch, words, processes
        self.env = {
            **os.environ, 'PYTHONPATH': str(ROOT), 'JAX_PLATFORMS': 'cpu',
            'TF_CPP_MIN_LOG_LEVEL': '3',  # as the command sets it; importing JAX here has put 1 there
            'JAX_COMPILATION_CACHE_DIR': str(scratch / 'xla'), 'KCD_JAX_CACHE': str(scratch / 'cache'), **(env or {}),
        }  # fmt: skip
        self.whole = scratch / 'whole'
        self.seconds = float('nan')  # what the undisturbed run takes, with its teacher there
        self._count = 0

    def arguments(self, workdir: pathlib.Path, *more: str) -> list[str]:
        devices = ['--devices=2'] if self.processes == 1 else []
        return [f'--config=configs/digits_kd.py:{self.words}', *devices, f'--workdir={workdir}', *more]

    def start(self, workdir: pathlib.Path, *more: str, env: dict[str, str] | None = None) -> Program:
        program = ['-m', PROGRAM]
        if self.processes > 1:
            sizes = [f'--processes={self.processes}', '--devices-per-process=1']
            program = ['launch/local_processes.py', *sizes, f'--module={PROGRAM}', '--']
        command = [sys.executable, *program, *self.arguments(workdir, *more)]
        return Program(command, workdir / self.run, {**self.env, **(env or {})})

    def prepare(self, timed: bool = True) -> None:
        """Runs once undisturbed (and trains the teacher), then once more if `timed`; anew for another commit."""
        from kcd_jax.runtime import environment

        made_by = self.scratch / 'commit'
        commit = str(environment.describe()['commit'])
        if not made_by.exists() or made_by.read_text() != commit:
            for name in ('half', 'folder', 'processes', *(['whole'] if self.processes == 1 else [])):
                shutil.rmtree(self.scratch / name, ignore_errors=True)
            (self.scratch / 'seconds.json').unlink(missing_ok=True)
            made_by.write_text(commit)
        if not (self.whole / self.run / 'summary.json').exists():
            self._to_the_end(self.whole)
        took = self.scratch / 'seconds.json'
        if timed and not took.exists():
            workdir = self.fresh()
            seconds = self._to_the_end(workdir)
            expect(not self.differing(workdir), f'two undisturbed runs differ: {self.differing(workdir)}')
            took.write_text(json.dumps(seconds))
        self.seconds = json.loads(took.read_text()) if took.exists() else float('nan')

    def _to_the_end(self, workdir: pathlib.Path) -> float:
        with self.start(workdir) as program:
            expect(program.end() == 0, f'the undisturbed run failed: {program.output(1)}')
            return time.monotonic() - program.began

    def fresh(self, place: pathlib.Path | None = None, teacher: bool = True) -> pathlib.Path:
        """A new work directory, with the trained teacher in it."""
        self._count += 1
        workdir = (place or self.scratch) / f'run_{os.getpid()}_{self._count}'
        if teacher and (self.whole / 'teacher').exists():
            shutil.copytree(self.whole / 'teacher', workdir / 'teacher')
        workdir.mkdir(parents=True, exist_ok=True)
        return workdir

    def halfway(self, place: pathlib.Path | None = None) -> pathlib.Path:
        """A new work directory of a run that was killed past its third condensation, with two checkpoints."""
        source = self.scratch / 'half'
        if not source.exists():
            workdir = self.fresh()
            with self.start(workdir) as program:
                folder = workdir / self.run

                def far_enough() -> bool:
                    return stages(folder) >= 3 and len(steps(folder)) >= 2 and max(steps(folder)) > 100

                expect(program.freeze_in(far_enough), f'the run ended early: {program.output(1)}')
                program.send(signal.SIGKILL)
            workdir.rename(source)
        self._count += 1
        workdir = (place or self.scratch) / f'run_{os.getpid()}_{self._count}'
        return shutil.copytree(source, workdir)

    def go_on(self, workdir: pathlib.Path, injection: Injection, says: str = '', env: dict | None = None) -> Injection:
        """Starts the same command again, to the end; fills in what was lost and how long recovery took.

        `says`: what exactly one line of its output must hold.
        """
        with self.start(workdir, env=env) as program:
            injection.recovery = program.first_new_epoch()
            code, out = program.end(), program.output()
            expect(code == 0, f'{injection.instant}: it did not go on: {program.output(1)}')
        if says:
            lines = [line for line in out.splitlines() if says in line]
            expect(len(lines) == 1, f'{injection.instant}: {len(lines)} lines say {says!r}: {out}')
            injection.says = self.private(lines[0], workdir)
        injection.lost = self.differing(workdir)
        shutil.rmtree(workdir)
        return injection

    def refused(self, program: Program, code: int, says: str) -> str:
        """Waits for the end with this code and one line on stderr that holds `says`; that line."""
        found, lines = program.end(), program.output(1).strip().splitlines()
        expect(found == code, f'exit code {found} instead of {code}: {lines}')
        expect(len(lines) == 1 and says in lines[0], f'no single line with {says!r}: {lines}')
        return lines[0]

    def private(self, line: str, workdir: pathlib.Path) -> str:
        """A line without the places of this machine."""
        return line.replace(str(workdir), 'WORKDIR').replace(str(self.scratch), 'SCRATCH')

    def differing(self, workdir: pathlib.Path) -> list[str]:
        """Names of what is not the same as in the undisturbed run."""
        return differences(self.whole / self.run, workdir / self.run)


# --------------------------------------------------------------------------------------------------- what a run leaves


def contents(folder: pathlib.Path) -> dict[str, bytes | object]:
    """{name: what must be the same} of a finished run."""
    from kcd_jax.teachers import teacher
    from tests import digits

    found = {name: array.tobytes() for name, array in digits.final_state(folder).items()}
    for path in sorted((folder / 'knowledge').glob('stage_*.npz')):
        with np.load(path) as stage:
            found.update({f'{path.stem}/{name}': stage[name].tobytes() for name in stage})
    tensors, card = teacher.load(folder / teacher.FILE)
    found.update({f'student/{name}': tensor.tobytes() for name, tensor in tensors.items()})
    found['card'] = {k: v for k, v in card.items() if k != 'commit'}
    found['metrics.jsonl'] = [
        {k: v for k, v in record.items() if k != 'time'} for record in records(folder / 'metrics.jsonl')
    ]
    summary = json.loads((folder / 'summary.json').read_text())
    if summary.get('teacher'):  # its card says of which commit, and '-dirty' where the tree has changes
        summary['teacher'].pop('commit', None)
    found['summary.json'] = {k: v for k, v in summary.items() if k not in ('seconds', 'command', 'commit', 'computed')}
    return found


def differences(one: pathlib.Path, other: pathlib.Path) -> list[str]:
    """Names of what two finished runs did not leave the same."""
    a, b = contents(one), contents(other)
    return sorted({*a} ^ {*b}) + [name for name in sorted({*a} & {*b}) if a[name] != b[name]]


def records(path: pathlib.Path) -> list[dict]:
    """The whole lines of a log, as they are at this instant."""
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text().split('\n')[:-1]]


def steps(folder: pathlib.Path) -> list[int]:
    """The checkpoints of a run, in order."""
    return sorted(int(path.name) for path in (folder / 'checkpoints').glob('*') if path.name.isdigit())


def stages(folder: pathlib.Path) -> int:
    """How many stage files there are."""
    return len(list((folder / 'knowledge').glob('stage_*.npz')))


def _state(pid: int) -> str:
    """R, S, D, T (stopped), Z, ..."""
    try:
        return pathlib.Path(f'/proc/{pid}/stat').read_text().rpartition(')')[2].split()[0]
    except OSError:
        return 'Z'
