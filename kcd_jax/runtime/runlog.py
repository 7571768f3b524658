"""What a run says and writes: lines and a progress bar, config.json, metrics.jsonl, TensorBoard events, summary.json.

Only process 0 says and writes anything; on the others every call does nothing.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import importlib.metadata
import io
import json
import os
import pathlib
import platform
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
from tqdm import tqdm

from kcd_jax.runtime import files

METRICS, CONFIG, SUMMARY, EVENTS = 'metrics.jsonl', 'config.json', 'summary.json', 'tensorboard'
# Settings that may change between a run and its continuation: they change no number that the run computes.
FREE_KEYS = ('data.dir', 'data.workers', 'checkpoint.seconds', 'checkpoint.keep')
PLAIN_SECONDS = 10.0  # at most one progress line in this time where there is no terminal
FLUSH_SECONDS = 1.0  # TensorBoard sees what is recorded after at most this time
PACKAGES = 'kcd_jax jax jaxlib flax optax orbax-checkpoint numpy pillow simplejpeg cykooz-resizer'.split()

_bar: tqdm | None = None
_quiet = False


class Busy(ValueError):
    """Another run holds the folder."""


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Leaves out the lines of the runs inside, but not their progress: whoever makes many runs sums them up."""
    global _quiet
    before, _quiet = _quiet, True
    try:
        yield
    finally:
        _quiet = before


def is_writer() -> bool:
    """Whether this process is the one that says and writes."""
    return jax.process_index() == 0


def say(line: str) -> None:
    """Prints a line (or several) at once, above the progress bar if there is one."""
    if not is_writer():
        return
    if _bar is None:
        print(line, flush=True)
    else:
        _bar.write(line)


# ------------------------------------------------------------------------------------------------------------ a run


class RunLog:
    """The files and lines of one run; a context manager that holds the run's folder against a second run.

    Attributes:
      lines: of metrics.jsonl so far. A checkpoint carries them, so that `rewind` makes the log what it was at that
        state, whatever happened to the file.
    """

    def __init__(self, workdir: str | pathlib.Path, config: Mapping[str, Any]):
        """`workdir` is made if need be. `config`: resolved; written to config.json, or compared with the one there.

        Raises (on entering):
          ValueError: the folder cannot be written, another run holds it, or it is of another configuration.
        """
        self.workdir = pathlib.Path(workdir)
        self.config = json.loads(files.dumps(config))
        self.lines: list[str] = []
        self._lock: io.TextIOWrapper | None = None
        self._metrics: io.FileIO | None = None
        self._events: _Events | None = None
        self._plain: _PlainProgress | None = None
        self._own_bar = False

    def __enter__(self) -> RunLog:
        if not is_writer():
            return self
        try:
            self.workdir.mkdir(parents=True, exist_ok=True)
            self._lock = lock(self.workdir)
            saved = files.read_json(self.workdir / CONFIG)
            if saved is None:
                content = {'config': self.config, **environment()}
                files.write_text(self.workdir / CONFIG, files.dumps(content, indent=2) + '\n')
            else:
                refuse_other_config(self.workdir, saved.get('config', {}), self.config)
        except OSError as error:
            self._unlock()
            reason = error.strerror or error
            raise ValueError(
                f'work directory {self.workdir} cannot be written ({reason}); choose another --workdir'
            ) from error
        except ValueError:
            self._unlock()
            raise
        return self

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        self.stop_progress()
        # What ended the run is said, not what it did to the last lines of the log.
        with contextlib.suppress(OSError) if error is not None else contextlib.nullcontext():
            self._close_files()
        self._unlock()

    def _close_files(self) -> None:
        opened, self._metrics, self._events = (self._metrics, self._events), None, None
        for file in opened:
            if file is not None:
                file.close()

    def _unlock(self) -> None:
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    # -- records --------------------------------------------------------------------------------------------------

    def rewind(self, lines: Sequence[str], step: int) -> None:
        """Makes the log what it was at the state that a run goes on from: later, damaged and lost lines are undone.

        Args:
          lines: of metrics.jsonl at that state (`self.lines` then).
          step: of that state; what TensorBoard was told of later ones is hidden. -1: all of it.

        Raises:
          OSError: the disk is full, ...
        """
        if not is_writer():
            return
        self._close_files()
        self.lines = list(lines)
        path = self.workdir / METRICS
        wanted = ''.join(f'{line}\n' for line in lines).encode()
        if not path.exists() or path.read_bytes() != wanted:
            files.write_bytes(path, wanted)
        with self._saying_what_is_lost():
            # Unbuffered: a killed process loses no line, and a full disk is known at the line that it cuts.
            self._metrics = open(path, 'ab', buffering=0)
            self._events = _Events(self.workdir / EVENTS, step + 1)

    def record(self, entry: Mapping[str, Any]) -> None:
        """Appends one JSON line and its numbers as TensorBoard scalars '<kind>/<name>' at `entry['step']`.

        Times belong under 'time': all else is the same in every repetition of a run. What is not finite becomes null.

        Raises:
          OSError: the disk is full, ...
        """
        if not is_writer():
            return
        line = files.dumps(entry)
        with self._saying_what_is_lost():
            content = memoryview(f'{line}\n'.encode())
            while content:
                content = content[self._metrics.write(content) :]
            self._events.add(entry)
        self.lines.append(line)

    def sync(self) -> None:
        """Brings everything that was recorded to the disk, as belongs before a checkpoint.

        Raises:
          OSError: the disk is full, ...
        """
        if is_writer():
            with self._saying_what_is_lost():
                os.fsync(self._metrics.fileno())
                self._events.flush()

    @contextlib.contextmanager
    def _saying_what_is_lost(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise OSError(
                f'{self.workdir / METRICS} or {EVENTS} beside it cannot be written ({error.strerror or error}); '
                'nothing before the last checkpoint is lost: make room and start the same command again'
            ) from error

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        """Writes summary.json at once: where it lies, the run is finished."""
        if is_writer():
            files.write_text(self.workdir / SUMMARY, files.dumps(summary, indent=2) + '\n')

    def write_arrays(self, name: str, **arrays: Any) -> None:
        """Writes an archive into the run's folder, at once: 'knowledge/stage_1.npz'."""
        if is_writer():
            files.write_npz(self.workdir / name, **arrays)

    # -- lines ----------------------------------------------------------------------------------------------------

    def say(self, line: str) -> None:
        """Prints a line."""
        if not _quiet:
            say(line)

    def note(self, line: str) -> None:
        """A line worth seeing in passing: above the bar on a terminal; elsewhere at most one in ten seconds."""
        if _quiet:
            return
        if self._plain is None:
            say(line)
        else:
            self._plain.note(line)

    def start_progress(self, total: int, done: int = 0) -> None:
        """Starts the bar (on a terminal) or the lines: `total` images of the whole run, `done` of them earlier."""
        global _bar
        self.stop_progress()
        if not is_writer():
            return
        if sys.stderr.isatty():
            _bar = tqdm(total=total, initial=done, unit=' images', unit_scale=True, mininterval=0.5, dynamic_ncols=True)
            self._own_bar = True
        else:
            self._plain = _PlainProgress(total, done)

    def progress(self, images: int, **numbers: float) -> None:
        """`images` more were trained on; `numbers` are shown beside."""
        if self._own_bar and _bar is not None:
            _bar.set_postfix({name: f'{value:.3f}' for name, value in numbers.items()}, refresh=False)
            _bar.update(images)
        elif self._plain is not None:
            self._plain.update(images, numbers)

    def stop_progress(self) -> None:
        """Ends the bar."""
        global _bar
        if self._own_bar and _bar is not None:
            _bar.close()
            _bar = None
        self._own_bar, self._plain = False, None


class _Events:
    """Scalars for TensorBoard, written by the caller itself.

    tensorboardX's own writer hands them to a thread; on a full disk that thread dies, and the run waits for it forever.
    """

    def __init__(self, folder: pathlib.Path, start: int):
        """`start`: what earlier files in the folder say of this step and later ones is hidden."""
        self.folder, self.start = folder, start
        self._file: Any = None
        self._flushed = time.monotonic()

    def add(self, entry: Mapping[str, Any]) -> None:
        """The numbers of a record, flushed about once a second."""
        step, kind = entry.get('step'), entry.get('kind', 'run')
        numbers = {
            f'{kind}/{name}': float(value)
            for name, value in entry.items()
            if name not in ('step', 'number', 'of') and isinstance(value, int | float) and not isinstance(value, bool)
        }
        if step is None or not numbers:
            return
        from tensorboardX import event_file_writer, summary  # not needed to start or to check
        from tensorboardX.proto.event_pb2 import Event, SessionLog

        if self._file is None:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._file = event_file_writer.EventsWriter(str(self.folder / 'events'))
            begin = SessionLog(status=SessionLog.START)
            self._file.write_event(Event(wall_time=time.time(), step=self.start, session_log=begin))
        for name, value in numbers.items():
            self._file.write_event(Event(wall_time=time.time(), step=step, summary=summary.scalar(name, value)))
        if time.monotonic() - self._flushed > FLUSH_SECONDS:
            self.flush()

    def flush(self) -> None:
        if self._file is not None:
            self._file.flush()
            self._flushed = time.monotonic()

    def close(self) -> None:
        if self._file is not None:
            self._file.close()


class _PlainProgress:
    """Progress as plain lines, seldom."""

    def __init__(self, total: int, done: int):
        self.total, self.done, self.before = total, done, done
        self.start = self.last = time.monotonic()

    def _due(self) -> bool:
        if time.monotonic() - self.last < PLAIN_SECONDS:
            return False
        self.last = time.monotonic()
        return True

    def update(self, images: int, numbers: Mapping[str, float]) -> None:
        self.done += images
        if self._due():
            rate = (self.done - self.before) / (self.last - self.start)
            shown = ''.join(f', {name} {value:.3f}' for name, value in numbers.items())
            left = tqdm.format_interval(max(self.total - self.done, 0) / rate)
            say(f'{self.done:,} of {self.total:,} images, {rate:,.0f} images/s, {left} left{shown}')

    def note(self, line: str) -> None:
        if self._due():
            say(line)


def lock(workdir: pathlib.Path) -> io.TextIOWrapper:
    """Holds a folder until the returned file is closed or the process ends, however it ends.

    Raises:
      Busy: another run holds it.
    """
    file = open(workdir / '.lock', 'a+', encoding='utf-8')
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.seek(0)
        owner = file.read().strip()
        file.close()
        who = f'another run (process {owner})' if owner else 'another run'
        raise Busy(f'{who} is using {workdir}; wait for it, or choose another --workdir') from None
    except OSError:
        return file  # a file system without locks: nothing to hold on to
    file.truncate(0)
    file.write(str(os.getpid()))
    file.flush()
    return file


def refuse_other_config(workdir: pathlib.Path, saved: Mapping[str, Any], current: Mapping[str, Any]) -> None:
    """Raises ValueError when a folder holds a run of another configuration, naming the keys that differ."""
    shown = differing_keys(saved, current)
    if shown:
        raise ValueError(
            f'{workdir} holds a run of another configuration: {shown}; use another --workdir or that configuration'
        )


def differing_keys(there: Mapping[str, Any], here: Mapping[str, Any]) -> str:
    """'optim.lr is 0.1 there and 0.2 here, ...': how two configurations differ; '' when they compute the same."""
    old, new = _flat(there), _flat(json.loads(files.dumps(here)))
    differing = [key for key in sorted({*old, *new}) if key not in FREE_KEYS and old.get(key) != new.get(key)]
    shown = ', '.join(f'{key} is {old.get(key)!r} there and {new.get(key)!r} here' for key in differing[:4])
    return shown + (f' and {len(differing) - 4} more' if len(differing) > 4 else '')


def _flat(tree: Mapping[str, Any], prefix: str = '') -> dict[str, Any]:
    result: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            result.update(_flat(value, f'{prefix}{key}.'))
        else:
            result[f'{prefix}{key}'] = value
    return result


def read_summary(workdir: str | pathlib.Path) -> dict[str, Any] | None:
    """What `RunLog.write_summary` wrote; None while the run is not finished."""
    return files.read_json(pathlib.Path(workdir) / SUMMARY)


# ------------------------------------------------------------------------------------------------------ environment


@functools.cache
def _commit() -> str | None:
    """The commit of the checkout that the package lies in, '-dirty' behind it when tracked files differ."""
    folder = pathlib.Path(__file__).resolve().parents[2]

    def git(*args: str) -> str:
        command = ['git', '-C', str(folder), *args]
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()

    try:
        if pathlib.Path(git('rev-parse', '--show-toplevel')).resolve() != folder:
            return None  # installed into somebody else's checkout
        return git('rev-parse', 'HEAD') + ('-dirty' if git('status', '--porcelain', '--untracked-files=no') else '')
    except (OSError, subprocess.SubprocessError):
        return None


@functools.cache
def _versions() -> dict[str, str]:
    found = {}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def command(argv: Sequence[str]) -> str:
    """The command line as somebody else would type it: without the places of this machine."""
    program = pathlib.Path(argv[0])
    own = program.parts[-2:] == ('kcd_jax', 'main.py')
    start = ['python', '-m', 'kcd_jax.main'] if own else [program.name]
    places = ('--workdir', '--results', '--config.data.dir', '--coordinator', '--process')
    words = [word for word in argv[1:] if not word.startswith(places)]
    return shlex.join([*start, *words])


def environment() -> dict[str, Any]:
    """{'commit', 'python', 'versions', 'precision', 'device': {'kind', 'backend', 'count', 'processes'}}.

    'precision' is that of float32 products: 'default' is TF32 on a GPU that has it, and float32 on a CPU.
    """
    devices = jax.devices()
    return {
        'commit': _commit(),
        'python': platform.python_version(),
        'versions': dict(_versions()),
        'precision': jax.config.jax_default_matmul_precision or 'default',
        'device': {
            'kind': devices[0].device_kind,
            'backend': jax.default_backend(),
            'count': len(devices),
            'processes': jax.process_count(),
        },
    }
