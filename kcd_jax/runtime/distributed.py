"""Multi-process runs: how processes connect, agree on errors, and stop together.

They use JAX's multi-controller runtime: every process runs the same program and holds a part of the mesh. What only one
process sees (an unwritable folder, a clock, a signal) must be shared with all before any of them acts on it, or the
others wait forever in their next collective. With one process these functions communicate nothing.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from kcd_jax.contracts import PyTree
from kcd_jax.runtime import exitcodes, sharding

AUTO = 'auto'
CONNECT_SECONDS = 120  # all processes end if one of them has not connected by then
HEARTBEAT_SECONDS = 45  # a process without a heartbeat for this long counts as dead; the others end within a minute
_MESSAGE_BYTES = 2048


class Agreed(ValueError):
    """An error that is raised on every process; the first process prints it.

    Attributes:
      on_disk: whether it was an OSError on the process where it occurred.
      exit_code: from `exitcodes`.
    """

    def __init__(self, line: str, on_disk: bool):
        super().__init__(line)
        self.on_disk = on_disk
        self.exit_code = exitcodes.DISK if on_disk else exitcodes.BAD_INPUT


class Stopped(Exception):
    """The program was asked to stop and has saved its state.

    Attributes:
      exit_code: from `exitcodes`, different for Ctrl-C and for a preemption.
    """

    def __init__(self, number: int, step: int | None = None):
        """Composes the line to print.

        Args:
          number: the signal received, SIGTERM or SIGINT.
          step: the step that was saved; None if no run was in progress.
        """
        name = 'Ctrl-C' if number == signal.SIGINT else 'SIGTERM'
        saved = 'nothing to save' if step is None else f'saved step {step:,}'
        super().__init__(f'{name}: {saved}; the same command resumes from there')
        self.exit_code = exitcodes.INTERRUPTED if number == signal.SIGINT else exitcodes.PREEMPTED


# ---------------------------------------------------------------------------------------------------- start and end


def initialize(coordinator: str, processes: int | None = None, process: int | None = None) -> None:
    """Connects to the other processes if requested. Call it before the first JAX operation.

    Args:
      coordinator: '' does nothing, whatever the environment: a single process inside a SLURM job must not wait for
        others. 'auto' reads SLURM, Open MPI or TPU metadata. Otherwise 'host:port' of the first process.
      processes: number of processes, needed with 'host:port'.
      process: index of this process, from 0, needed with 'host:port'.

    Raises:
      ValueError: an address without the numbers, numbers without an address, or 'auto' without a cluster.
    """
    numbers = processes, process
    if not coordinator:
        if numbers != (None, None):
            raise ValueError('--processes and --process need --coordinator=HOST:PORT of the first process')
        return
    limits = {'initialization_timeout': CONNECT_SECONDS, 'heartbeat_timeout_seconds': HEARTBEAT_SECONDS}
    if coordinator == AUTO:
        if numbers != (None, None):
            raise ValueError('--coordinator=auto finds --processes and --process by itself; leave them out')
        try:
            jax.distributed.initialize(**limits)
        except ValueError as error:
            raise ValueError(
                f'--coordinator=auto finds no cluster ({error}); start it with srun or on every worker of a TPU, or '
                'leave it out for a single process'
            ) from error
        return
    host, _, port = coordinator.rpartition(':')
    if not host or not port.isdigit():
        raise ValueError(f'--coordinator={coordinator} is neither HOST:PORT nor auto')
    if processes is None or process is None or not 0 <= process < processes:
        raise ValueError(
            f'--processes={processes} --process={process}: --coordinator=HOST:PORT needs the number of processes, and '
            'for each of them its own index from 0'
        )
    # Detection is off, so that SLURM's variables do not override the arguments.
    jax.distributed.initialize(coordinator, processes, process, cluster_detection_method='deactivate', **limits)


def is_connected() -> bool:
    """Whether `initialize` connected this process to others (or to itself alone)."""
    return jax.distributed.is_initialized()


def is_first() -> bool:
    """Whether this is the first process, which prints and writes."""
    return jax.process_index() == 0


def leave(code: int, line: str = '') -> int:
    """Waits until all processes get here, and returns the exit code.

    Args:
      code: exit code.
      line: printed on stderr by the first process.
    """
    if line and (not is_connected() or is_first()):
        print(line, file=sys.stderr, flush=True)
    if is_connected():
        with contextlib.suppress(jax.errors.JaxRuntimeError):  # another process died while it was leaving
            jax.distributed.shutdown()
    return code


def leave_alone(code: int, line: str) -> int:
    """Prints an error that may have occurred on this process only, and returns the exit code.

    One of several processes exits at once instead: an orderly shutdown would wait for the others, which wait for this
    one in their next collective. Exiting makes them end too.
    """
    print(line, file=sys.stderr, flush=True)
    if is_connected():
        sys.stdout.flush()
        os._exit(code)
    return code


def lost(error: Exception) -> str:
    """The line for a JAX runtime error with several processes, nearly always because another process ended."""
    reason = str(error).strip().partition('\n')[0][:200]
    return (
        f'process {jax.process_index()} lost its connection to another process ({reason}); '
        'start all of them again: they resume from the last checkpoint'
    )


# ---------------------------------------------------------------------------------------------------------- agreement


def _collected(mine: np.ndarray, how: Callable[[jax.Array], jax.Array]) -> np.ndarray:
    """how([processes, ...]) of every process's array; all of them call it with the same shape and dtype.

    It waits for the result on every device, not on the first alone as JAX's `multihost_utils` does: a process that goes
    on, ends and takes its connection down while another of its devices still connects to its peers hangs, or they do.
    """
    row_each, whole = sharding.of_processes()
    rows = jax.make_array_from_process_local_data(row_each, mine[None])
    result = jax.jit(how, out_shardings=whole)(rows)
    return np.asarray(jax.block_until_ready(result).addressable_data(0))


def _gathered(mine: np.ndarray) -> np.ndarray:
    return _collected(mine, _same)


def _broadcast(mine: np.ndarray) -> np.ndarray:
    """The first process's array of integers."""
    return _collected(mine if is_first() else np.zeros_like(mine), _total)


def _same(rows: jax.Array) -> jax.Array:
    return rows


def _total(rows: jax.Array) -> jax.Array:
    return rows.sum(0, dtype=rows.dtype)


def from_first(content: bytes) -> bytes:
    """Broadcasts the first process's `content`. All processes call it."""
    if jax.process_count() == 1:
        return content
    size = int(_broadcast(np.array(len(content), np.int32)))
    if not size:
        return b''
    room = max(256, 1 << (size - 1).bit_length())  # few different sizes, to compile less
    if not is_first():
        content = b''
    padded = np.frombuffer(content.ljust(room, b'\0'), np.uint8)
    return _broadcast(padded)[:size].tobytes()


def arrays_from_first(tree: PyTree) -> PyTree:
    """Broadcasts the first process's arrays. All processes call it, with the same shapes and dtypes."""
    if jax.process_count() == 1:
        return tree
    leaves, structure = jax.tree.flatten(jax.tree.map(np.asarray, tree))
    parts = [np.ascontiguousarray(leaf).reshape(-1).view(np.uint8) for leaf in leaves]
    everything = _broadcast(np.concatenate([np.zeros(0, np.uint8), *parts]))
    ends = np.cumsum([part.size for part in parts])
    pieces = [everything[end - part.size : end].copy() for part, end in zip(parts, ends, strict=True)]
    return jax.tree.unflatten(
        structure, [piece.view(leaf.dtype).reshape(leaf.shape) for piece, leaf in zip(pieces, leaves, strict=True)]
    )


def concatenated(rows: np.ndarray) -> np.ndarray:
    """Every process's rows [M, ...], one after the other; M is the same on all. All processes call it."""
    return rows if jax.process_count() == 1 else np.concatenate(_gathered(rows))


def summed(counts: Mapping[str, int]) -> dict[str, int]:
    """Counts added up over the processes. All of them call it."""
    found = [json.loads(text) for text in from_all(json.dumps(dict(counts)))]
    return {key: sum(one[key] for one in found) for key in counts}


def from_all(text: str) -> list[str]:
    """Gathers the first 2,048 bytes of every process's `text`, in order. All processes call it."""
    if jax.process_count() == 1:
        return [text]
    content = text.encode()[:_MESSAGE_BYTES].ljust(_MESSAGE_BYTES, b'\0')
    rows = _gathered(np.frombuffer(content, np.uint8))
    return [row.tobytes().rstrip(b'\0').decode(errors='ignore') for row in rows]


@contextlib.contextmanager
def together() -> Iterator[None]:
    """Raises an error of any process inside the block on all of them. All processes enter it.

    The block must not wait for another process. With one process, errors pass through unchanged.

    Raises:
      Agreed: a ValueError or OSError inside, on any of several processes.
    """
    if jax.process_count() == 1:
        yield
        return
    found: Exception | None = None
    try:
        yield
    except (ValueError, OSError) as error:
        found = error
    kind = 'disk ' if isinstance(found, OSError) else 'input '
    lines = from_all('' if found is None else kind + (str(found) or type(found).__name__))
    failed = [number for number, line in enumerate(lines) if line]
    if failed:
        kind, _, line = lines[failed[0]].partition(' ')
        where = '' if 0 in failed else f'process {failed[0]}: '
        raise Agreed(where + line, on_disk=kind == 'disk') from found


def first(function: Callable[[], Any]) -> Any:
    """Calls `function` on the first process only, and shares its result, a JSON value, and its errors with all.

    Raises:
      Agreed: the first process's ValueError or OSError, with several processes.
    """
    if jax.process_count() == 1:
        return function()
    value = None
    with together():
        if is_first():
            value = function()
    return json.loads(from_first(json.dumps(value).encode()))


def refuse_difference(what: str, mine: Mapping[str, Any], how: Callable[[Mapping, Mapping], str]) -> None:
    """Raises an error on all processes if a value differs between them.

    Args:
      what: one or two words for the message.
      mine: JSON values of this process.
      how: (the first process's, this process's) -> how they differ, '' if they do not.

    Raises:
      Agreed: 'process 1: another configuration than on process 0: ...'.
    """
    if jax.process_count() == 1:
        return
    theirs = json.loads(from_first(json.dumps(mine).encode()))
    with together():
        difference = how(theirs, mine)
        if difference:
            raise ValueError(f'another {what} than on process 0: {difference}')


# ---------------------------------------------------------------------------------------------- clocks and signals


class Notice:
    """Catches SIGTERM, the platform's preemption notice, and Ctrl-C during training; a context manager.

    A second Ctrl-C raises KeyboardInterrupt. With connected processes, JAX's runtime handles SIGTERM and makes all of
    them stop at the same step, so no handler is installed for it, and Ctrl-C is forwarded as SIGTERM.
    """

    _calls = 0  # over all trainings of this process, since the runtime compares the counts between processes

    def __init__(self) -> None:
        self._number: int | None = None  # of the signal received
        self._previous: dict[int, Any] = {}
        self._connected = is_connected()

    def __enter__(self) -> Notice:
        for number in [signal.SIGINT] if self._connected else [signal.SIGINT, signal.SIGTERM]:
            with contextlib.suppress(ValueError):  # only the main thread may install handlers
                self._previous[number] = signal.signal(number, self._hear)
        return self

    def __exit__(self, *details: Any) -> None:
        while self._previous:
            signal.signal(*self._previous.popitem())

    def _hear(self, number: int, frame: Any) -> None:
        del frame
        if number == signal.SIGINT:
            if self._number == signal.SIGINT:
                raise KeyboardInterrupt
            if is_first():
                os.write(2, b'Ctrl-C: saving after this step; press it again to stop without saving\n')
            if self._connected:
                os.kill(os.getpid(), signal.SIGTERM)
        self._number = number

    def came(self) -> bool:
        """Whether to stop now, the same on every process. All processes call it between the same steps."""
        if self._connected:
            Notice._calls += 1
            if multihost_utils.reached_preemption_sync_point(Notice._calls):
                self._number = self._number or signal.SIGTERM
                return True
            return False
        return self._number is not None

    def stopped(self, step: int) -> Stopped:
        """The exception to raise once `step` is saved."""
        return Stopped(self._number or signal.SIGTERM, step)


class Timer:
    """A periodic timer on the first process's clock, which gives the same answer on every process."""

    def __init__(self, seconds: float):
        """Starts a timer that is due `seconds` after the start and after each `restart`."""
        self.seconds = seconds
        self.restart()

    def restart(self) -> None:
        """Restarts the timer."""
        self._start = time.monotonic()
        self._calls = 0
        self._ask_at = 1

    def due(self) -> bool:
        """Whether the time has passed. All processes call it between the same steps.

        They communicate only when half of the remaining time may have passed, a few times per interval.
        """
        elapsed = time.monotonic() - self._start
        if jax.process_count() == 1:
            return elapsed > self.seconds
        self._calls += 1
        if self._calls < self._ask_at:
            return False
        left = self.seconds - elapsed
        wait = 0 if left <= 0 else int(min(max(left * self._calls / (2 * max(elapsed, 1e-3)), 1), 1000))
        wait = int(_broadcast(np.array(wait, np.int32)))
        self._ask_at = self._calls + wait
        return wait == 0
