"""Shared by all commands: argument parsing, JAX settings before its first use, errors as one line and an exit code."""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import os
import signal
import sys
from collections.abc import Callable
from typing import Any, NoReturn

INTERRUPTED = (
    'Ctrl-C: nothing was saved now; the same command resumes from the last checkpoint, or starts again without one'
)

MAX_DEVICES = 512

_interrupts: list[int] = []  # Ctrl-Cs inside `interruptible`


class Parser(argparse.ArgumentParser):
    """An argument parser with one-line errors, which prints the epilog as it is written."""

    def __init__(self, **keywords: Any):
        """Takes what `argparse.ArgumentParser` takes; flags are never abbreviated."""
        settings = {'formatter_class': argparse.RawDescriptionHelpFormatter, 'allow_abbrev': False}
        super().__init__(**{**settings, **keywords})

    def error(self, message: str) -> NoReturn:
        """Raises ValueError instead of printing the usage."""
        raise ValueError(f'{message}; see {self.prog} --help')


def prepare_jax(devices: int = 0, deterministic: bool = False) -> None:
    """Configures JAX and XLA; call it before the first JAX operation.

    Args:
      devices: host devices on a CPU; 0: one per core, rounded down to a power of two.
      deterministic: whether to use deterministic operations on a GPU.

    Raises:
      ValueError: `devices` is out of range.
    """
    from kcd_jax.runtime import backend

    if not 0 <= devices <= MAX_DEVICES:
        raise ValueError(f'--devices={devices} is out of range; use 1 to {MAX_DEVICES}, or 0 for one per core')
    # On a busy machine a host device may reach a collective more than 40 seconds late, the default after which XLA
    # ends the process. The user's own flags take precedence.
    flags = ['--xla_cpu_collective_call_terminate_timeout_seconds=600']
    if deterministic:
        flags.append('--xla_gpu_deterministic_ops=true')
    backend.add_xla_flags(flags)
    keep_memory()
    import jax

    _stop_if_interrupted()
    # A power of two, so that it divides the padded rows of the value table.
    jax.config.update('jax_num_cpu_devices', devices or 1 << (min(cores(), MAX_DEVICES).bit_length() - 1))
    cache = os.environ.get('JAX_COMPILATION_CACHE_DIR') or os.path.expanduser('~/.cache/kcd_jax/xla')
    jax.config.update('jax_compilation_cache_dir', cache)
    jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.3)


def cores() -> int:
    """The number of CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1


def keep_memory() -> None:
    """Makes glibc keep memory that a step frees, instead of mapping it again at every step.

    On a CPU, a step with buffers above 32 MB otherwise spends much of its time in page faults. Without glibc this does
    nothing. The options are M_MMAP_THRESHOLD, M_TRIM_THRESHOLD and M_ARENA_MAX of mallopt(3).
    """
    try:
        mallopt = ctypes.CDLL('libc.so.6').mallopt
    except (OSError, AttributeError):
        return
    for option, value in ((-3, 2**31 - 1), (-1, 2**31 - 1), (-8, 1)):
        mallopt(option, value)


def as_line(error: BaseException) -> str:
    """The error message on one line."""
    return f'error: {" ".join(str(error).split()) or type(error).__name__}'


def run(body: Callable[[], int]) -> int:
    """Runs a command as a single process or one of several; returns its exit code.

    Bad input is reported in one line on stderr, or with its traceback if KCD_JAX_TRACEBACK is set.

    Args:
      body: the command; returns the exit code.
    """
    with contextlib.suppress(ValueError):  # only the main thread may install handlers
        signal.signal(signal.SIGTERM, _stop)
    return interruptible(lambda: _guarded(body))


def interruptible(call: Callable[[], int]) -> int:
    """Calls a function that returns an exit code; Ctrl-C inside, while modules are imported, is one line and 130.

    An import that is interrupted may fail by another error: NumPy's ends in a RecursionError.
    """
    before = signal.getsignal(signal.SIGINT)
    with contextlib.suppress(ValueError):  # only the main thread may install handlers
        signal.signal(signal.SIGINT, _interrupt)
    _interrupts.clear()
    try:
        return call()
    except KeyboardInterrupt:
        pass
    except Exception:
        if not _interrupts:
            raise
    finally:
        with contextlib.suppress(ValueError):
            signal.signal(signal.SIGINT, before)
    print(INTERRUPTED, file=sys.stderr)
    return 130


def _stop_if_interrupted() -> None:
    """Raises KeyboardInterrupt again after imports: some extension modules lose it."""
    if _interrupts:
        raise KeyboardInterrupt


def _interrupt(number: int, frame: Any) -> None:
    _interrupts.append(number)
    signal.default_int_handler(number, frame)


def _stop(number: int, frame: Any) -> None:
    """Ends the program on SIGTERM when there is nothing to save: before, between and after trainings."""
    del frame
    signal.signal(number, signal.SIG_IGN)
    os.write(2, b'SIGTERM: nothing to save; the same command resumes\n')
    raise SystemExit(75)


def _guarded(body: Callable[[], int]) -> int:
    import jax

    from kcd_jax.runtime import backend, distributed, exitcodes

    _stop_if_interrupted()
    try:
        return distributed.leave(body())
    except distributed.Stopped as notice:
        return distributed.leave(notice.exit_code, str(notice))
    except distributed.Agreed as error:  # raised on every process
        return distributed.leave(exitcodes.of_error(error), as_line(error))
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python reports it again at exit
        return distributed.leave_alone(exitcodes.OUTPUT_CLOSED, 'error: the reader of the output closed it')
    except (ValueError, OSError) as error:
        if os.environ.get('KCD_JAX_TRACEBACK'):
            raise
        return distributed.leave_alone(exitcodes.of_error(error), as_line(error))
    except (RuntimeError, AssertionError) as error:
        if isinstance(error, jax.errors.JaxRuntimeError) and distributed.is_connected():
            return distributed.leave_alone(exitcodes.PEER_LOST, f'error: {distributed.lost(error)}')
        if not (line := backend.unavailable()):
            raise
        return distributed.leave_alone(exitcodes.BAD_INPUT, f'error: {line}')
    except KeyboardInterrupt:
        return distributed.leave_alone(exitcodes.INTERRUPTED, INTERRUPTED)


def complain(error: BaseException) -> int:
    """Prints an error in the command line; returns the exit code."""
    print(as_line(error), file=sys.stderr)
    return 2
