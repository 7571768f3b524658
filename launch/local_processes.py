#!/usr/bin/env python3
"""Starts a run as several processes on this machine, connected over loopback; the CPU's collectives are gloo's.

    launch/local_processes.py --processes=2 --devices-per-process=2 -- --config=configs/digits_kd.py --workdir=runs/two

What follows `--` is passed to `python -m kcd_jax.main` in every process, with flags that connect them. Lines of the
first process are printed unchanged, those of process 1 with the prefix `[1] `; an error line that several processes
print is shown once.

When a process dies the others cannot go on: the launcher reports which one died and how, and the others get `--grace`
seconds to exit before they are killed. SIGTERM and Ctrl-C are passed on to all processes; on SIGTERM each saves the
same step. With `--restarts=N` all processes are started again, at most N times, after one was killed, lost its peers or
was preempted alone; they resume from the last checkpoint.

Exit code: 0; 75 when preempted; 128 + the signal that killed a process; otherwise that of the first failure.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import os
import pathlib
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from typing import IO

ROOT = pathlib.Path(__file__).resolve().parent.parent
LOST, PREEMPTED = 69, 75  # exit codes: a peer is lost; preempted, with the state saved (kcd_jax/runtime/exitcodes.py)
POLL_SECONDS = 0.05
# What gloo prints for each connection, in pieces: processes that connect at once interrupt each other's lines.
GLOO = re.compile(
    r'(\[Gloo\] Rank |\d+| is connected to | peer ranks\. |Expected number of connected peer ranks is : )+'
)
LIBC = ctypes.CDLL(None)


def say(line: str) -> None:
    """Prints a line of the launcher itself on stderr."""
    print(f'launcher: {line}', file=sys.stderr, flush=True)


def free_port() -> int:
    """A TCP port that is free now."""
    with socket.socket() as probe:
        probe.bind(('127.0.0.1', 0))
        return probe.getsockname()[1]


def die_with_parent() -> None:
    """On Linux, makes the kernel kill this process when its launcher is killed."""
    parent_death_signal = 1  # PR_SET_PDEATHSIG of prctl(2)
    with contextlib.suppress(AttributeError):
        LIBC.prctl(parent_death_signal, signal.SIGKILL)


def is_of_gloo(line: str, after_one: bool) -> bool:
    """Whether a line is (part of) gloo's report of its connections; `after_one`: whether the last line was."""
    text = line.strip('\n')
    if not text or text.isdigit():
        return after_one
    return GLOO.fullmatch(text) is not None


def commands(processes: int, devices: int, module: str, args: list[str], port: int) -> list[list[str]]:
    """The command line of each process."""
    connect = [f'--coordinator=127.0.0.1:{port}', f'--processes={processes}', f'--devices={devices}']
    return [[sys.executable, '-m', module, *args, *connect, f'--process={number}'] for number in range(processes)]


class Group:
    """The processes of one start, and their output."""

    def __init__(self, command_lines: list[list[str]]):
        environment = {**os.environ, 'JAX_PLATFORMS': 'cpu', 'PYTHONUNBUFFERED': '1'}
        path = [str(ROOT), *filter(None, [os.environ.get('PYTHONPATH')])]
        environment['PYTHONPATH'] = os.pathsep.join(path)
        self.said: set[str] = set()
        self.lock = threading.Lock()
        self.failed: list[int] = []  # processes that failed by themselves, in order
        self.processes, self.readers = [], []
        for command in command_lines:
            process = subprocess.Popen(
                command, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                text=True, errors='replace', start_new_session=True, preexec_fn=die_with_parent,
            )  # fmt: skip
            self.processes.append(process)
        for number, process in enumerate(self.processes):
            for source, target in ((process.stdout, sys.stdout), (process.stderr, sys.stderr)):
                reader = threading.Thread(target=self.pass_on, args=(number, source, target), daemon=True)
                reader.start()
                self.readers.append(reader)

    def pass_on(self, number: int, source: IO[str], target: IO[str]) -> None:
        """Prints the lines of one process as they arrive."""
        of_gloo = False
        for line in source:
            of_gloo = is_of_gloo(line, of_gloo)
            with self.lock:
                error = line.startswith('error: ')
                repeated = error and line in self.said
                self.said.add(line)
                noise = self.failed and number not in self.failed[:1] and not error  # consequences of another's death
                if repeated or noise or of_gloo:
                    continue
                target.write(line if number == 0 else f'[{number}] {line}')
                target.flush()

    def send(self, number: int) -> None:
        """Sends a signal to every running process."""
        for process in self.processes:
            if process.poll() is None:
                process.send_signal(number)

    def wait(self, grace: float, stopping: list[int]) -> tuple[list[int], int | None]:
        """Waits until all processes have ended.

        Args:
          grace: seconds that the others have after the first failure.
          stopping: signals received so far, appended by a signal handler; each is passed on to all processes.

        Returns:
          The exit codes, and the number of the process to blame or None.
        """
        deadline, passed_on, killed = None, 0, False
        while True:
            for number, process in enumerate(self.processes):
                ended = process.poll() not in (None, 0, PREEMPTED)
                if ended and number not in self.failed and not killed:
                    self.failed.append(number)
            if all(process.returncode is not None for process in self.processes):
                break
            for received in stopping[passed_on:]:
                self.send(received)
                passed_on += 1
            # A preempted process has saved together with the others, which exit soon or were never connected to it.
            if deadline is None and (self.failed or PREEMPTED in [process.returncode for process in self.processes]):
                deadline = time.monotonic() + grace
            if deadline is not None and not killed and time.monotonic() > deadline:
                self.send(signal.SIGKILL)
                killed = True
            time.sleep(POLL_SECONDS)
        for reader in self.readers:
            reader.join(timeout=5)
        codes = [process.returncode for process in self.processes]
        # After a death the others lose their peer or are aborted by JAX's runtime. The sort is stable.
        blamed = sorted(self.failed, key=lambda number: (codes[number] == LOST, codes[number] == -signal.SIGABRT))
        return codes, blamed[0] if blamed else None


def how(code: int) -> str:
    """'was killed by SIGKILL', 'ended with exit code 2'."""
    return f'was killed by {signal.Signals(-code).name}' if code < 0 else f'ended with exit code {code}'


def run(processes: int, devices: int, module: str, args: list[str], *, grace: float, restarts: int) -> int:
    """Starts the processes, and again while restarts are left; returns the exit code."""
    stopping: list[int] = []
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda received, frame: stopping.append(received))
    while True:
        codes, blamed = Group(commands(processes, devices, module, args, free_port())).wait(grace, stopping)
        code = codes[blamed] if blamed is not None else max(codes)
        if blamed is not None:
            if len(set(codes)) > 1 or code < 0:  # an error common to all has been printed
                others = '' if processes == 1 else '; the others were ended'
                say(f'process {blamed} {how(code)}{others}')
            if stopping and code == -signal.SIGTERM:  # it was not yet listening and has nothing to save
                code = PREEMPTED
        again = code < 0 or code in (LOST, PREEMPTED)
        if stopping or not again or not restarts:
            return 128 - code if code < 0 else code
        restarts -= 1
        say(f'starting all {processes} again; restarts left: {restarts}')


def main() -> int:
    """The command line."""
    description, _, details = (__doc__ or '').partition('\n\n')
    parser = argparse.ArgumentParser(
        description=description, epilog=details, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--processes', type=int, default=2, help='number of processes (default 2)')
    parser.add_argument('--devices-per-process', type=int, default=2, help='host devices of each process (default 2)')
    parser.add_argument('--restarts', type=int, default=0, help='restarts at most this many times (default 0)')
    parser.add_argument('--grace', type=float, default=10.0, help='seconds for the others to exit (default 10)')
    parser.add_argument(
        '--module', default='kcd_jax.main', help='module to run, with the same flags (default kcd_jax.main)'
    )
    parser.add_argument('args', nargs='*', metavar='-- ARGS', help='flags of kcd_jax.main')
    options = parser.parse_args()
    if options.processes < 1 or options.devices_per_process < 1:
        parser.error('--processes and --devices-per-process are at least 1')
    return run(
        options.processes,
        options.devices_per_process,
        options.module,
        options.args,
        grace=options.grace,
        restarts=options.restarts,
    )


if __name__ == '__main__':
    sys.exit(main())
