"""Several processes that run one program: how they start, agree on errors, and stop together.

JAX's own multi-controller runtime is the engine: every process runs the same program in lockstep and holds a part of
the mesh. What only one of them sees (an unwritable folder, a clock, a signal) must be told to all before they act on
it, or the others wait for ever in their next collective. With one process nothing here costs anything.
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

AUTO = 'auto'
CONNECT_SECONDS = 120  # a process that does not come by then ends the others
HEARTBEAT_SECONDS = 45  # a process that was silent this long is dead, and the others end: within a minute
_MESSAGE_BYTES = 2048


class Agreed(ValueError):
    """An error that every process knows of, the user's or the disk's; the first process says it.

    Attributes:
      on_disk: it was an OSError where it was found.
    """

    def __init__(self, line: str, on_disk: bool):
        super().__init__(line)
        self.on_disk = on_disk


# ------------------------------------------------------------------------------------------------- start and identity


def initialize(coordinator: str, processes: int | None = None, process: int | None = None) -> None:
    """Joins the other processes; before the first JAX operation, and only when the user asked for it.

    Args:
      coordinator: '' does nothing, whatever the environment holds (a workstation inside a SLURM job must not wait for
        others); 'auto' asks SLURM, Open MPI or the TPU's metadata; else 'host:port' of the first process.
      processes: how many there are. process: the number of this one, from 0. Both are needed with host:port.

    Raises:
      ValueError: an address without the numbers, numbers without an address, or 'auto' where there is no cluster.
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
        raise ValueError(f'--coordinator={coordinator} is not HOST:PORT, nor auto')
    if processes is None or process is None or not 0 <= process < processes:
        raise ValueError(
            f'--processes={processes} --process={process}: with --coordinator=HOST:PORT give the number of processes, '
            'and of each its own number from 0'
        )
    jax.distributed.initialize(
        coordinator, processes, process, cluster_detection_method='deactivate', **limits
    )  # fmt: skip


def is_connected() -> bool:
    """Whether `initialize` joined this process to others (or to itself alone)."""
    return jax.distributed.is_initialized()


def is_first() -> bool:
    """Whether this is the process that says and writes."""
    return jax.process_index() == 0


def leave(code: int, line: str = '') -> int:
    """The exit code, on every process, once all have come so far; the first says `line` on stderr."""
    if line and (not is_connected() or is_first()):
        print(line, file=sys.stderr, flush=True)
    if is_connected():
        with contextlib.suppress(jax.errors.JaxRuntimeError):  # another one died on its way out
            jax.distributed.shutdown()
    return code


def leave_alone(code: int, line: str) -> int:
    """The exit code, for an error that the others may not know of.

    Of several processes this one ends at once: the orderly way would wait for the others, who wait for it in their
    next collective; they notice that it is gone.
    """
    print(line, file=sys.stderr, flush=True)
    if is_connected():
        sys.stdout.flush()
        os._exit(code)
    return code


def lost(error: Exception) -> str:
    """One line for an error of JAX's runtime while several processes run: nearly always another one's end."""
    reason = str(error).strip().partition('\n')[0][:200]
    return (
        f'process {jax.process_index()} lost touch with another process ({reason}); '
        'start all of them again: they go on from the last checkpoint'
    )


# ---------------------------------------------------------------------------------------------------------- agreement


def from_first(content: bytes) -> bytes:
    """`content` of the first process, on all of them. All call it; only the first one's argument counts."""
    if jax.process_count() == 1:
        return content
    size = int(multihost_utils.broadcast_one_to_all(np.int32(len(content))))
    if not size:
        return b''
    room = max(256, 1 << (size - 1).bit_length())  # few sizes, few compilations
    if not is_first():
        content = b''
    padded = np.frombuffer(content.ljust(room, b'\0'), np.uint8)
    return np.asarray(multihost_utils.broadcast_one_to_all(padded))[:size].tobytes()


def arrays_from_first(tree: PyTree) -> PyTree:
    """The arrays of the first process, on all of them; each gives arrays of these shapes and dtypes. All call it."""
    if jax.process_count() == 1:
        return tree
    leaves, structure = jax.tree.flatten(jax.tree.map(np.asarray, tree))
    parts = [np.ascontiguousarray(leaf).reshape(-1).view(np.uint8) for leaf in leaves]
    everything = np.asarray(multihost_utils.broadcast_one_to_all(np.concatenate([np.zeros(0, np.uint8), *parts])))
    ends = np.cumsum([part.size for part in parts])
    pieces = [everything[end - part.size : end].copy() for part, end in zip(parts, ends, strict=True)]
    return jax.tree.unflatten(
        structure, [piece.view(leaf.dtype).reshape(leaf.shape) for piece, leaf in zip(pieces, leaves, strict=True)]
    )


def from_all(text: str) -> list[str]:
    """Everybody's `text` (its first 2,048 bytes), process by process. All call it."""
    if jax.process_count() == 1:
        return [text]
    content = text.encode()[:_MESSAGE_BYTES].ljust(_MESSAGE_BYTES, b'\0')
    rows = np.asarray(multihost_utils.process_allgather(np.frombuffer(content, np.uint8)))
    return [row.tobytes().rstrip(b'\0').decode(errors='ignore') for row in rows]


@contextlib.contextmanager
def together() -> Iterator[None]:
    """A piece of work in which each process may find the user's mistake: found by one, it is raised by all.

    Nothing inside may wait for another process. With one process an error passes through as it is.

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
    """The JSON value that `function` returns on the first process, on all; its errors too. The others do not call it.

    Raises:
      Agreed: the first process's ValueError or OSError, where there are several.
    """
    if jax.process_count() == 1:
        return function()
    value = None
    with together():
        if is_first():
            value = function()
    return json.loads(from_first(json.dumps(value).encode()))


def refuse_difference(what: str, mine: Mapping[str, Any], how: Callable[[Mapping, Mapping], str]) -> None:
    """Raises on all processes when `mine` is not everywhere what it is on the first.

    Args:
      what: in a word or two, for the message. mine: JSON. how: (the first's, mine) -> what differs, '' for nothing.

    Raises:
      Agreed: 'process 1 has another configuration than process 0: ...'.
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
    """Whether the run is asked to stop: SIGTERM or the platform's notice of pre-emption; a context manager.

    Where JAX's runtime connects the processes, it listens to the signal itself and makes all stop at the same step; a
    handler of our own would take the signal from it. Without it, our handler sets a flag.
    """

    _calls = 0  # of this process's life: the runtime compares them between processes, over all runs

    def __init__(self) -> None:
        self._heard = False
        self._previous: Any = None
        self._connected = jax.distributed.is_initialized()

    def __enter__(self) -> Notice:
        if not self._connected:
            with contextlib.suppress(ValueError):  # only the main thread may listen
                self._previous = signal.signal(signal.SIGTERM, self._hear)
        return self

    def __exit__(self, *details: Any) -> None:
        if self._previous is not None:
            signal.signal(signal.SIGTERM, self._previous)
            self._previous = None

    def _hear(self, number: int, frame: Any) -> None:
        del number, frame
        self._heard = True

    def came(self) -> bool:
        """True at the same call on every process. All call it, between the same steps."""
        if self._connected:
            Notice._calls += 1
            self._heard = self._heard or multihost_utils.reached_preemption_sync_point(Notice._calls)
        return self._heard


class Timer:
    """When the next of something is due by the first process's clock; the same answer on every process."""

    def __init__(self, seconds: float):
        """Due `seconds` after the start, and after each `restart`."""
        self.seconds = seconds
        self.restart()

    def restart(self) -> None:
        """Counts from now."""
        self._start = time.monotonic()
        self._calls = 0
        self._ask_at = 1

    def due(self) -> bool:
        """Whether it is time. All processes call it, between the same steps.

        They ask the first one's clock only where half of what is left may have passed: a few times an interval.
        """
        elapsed = time.monotonic() - self._start
        if jax.process_count() == 1:
            return elapsed > self.seconds
        self._calls += 1
        if self._calls < self._ask_at:
            return False
        left = self.seconds - elapsed
        wait = 0 if left <= 0 else int(min(max(left * self._calls / (2 * max(elapsed, 1e-3)), 1), 1000))
        wait = int(multihost_utils.broadcast_one_to_all(np.int32(wait)))
        self._ask_at = self._calls + wait
        return wait == 0
