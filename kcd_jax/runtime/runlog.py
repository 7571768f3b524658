"""The files of one run: config.json, metrics.jsonl, TensorBoard events, summary.json, manifest.json, and its lock.

Only the first process prints and writes; on the others every call does nothing.
"""

from __future__ import annotations

import contextlib
import fcntl
import io
import json
import os
import pathlib
import time
import zlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from kcd_jax.runtime import console, descriptions, distributed, environment, files

METRICS, CONFIG, SUMMARY, MANIFEST, EVENTS = (
    'metrics.jsonl',
    'config.json',
    'summary.json',
    'manifest.json',
    'tensorboard',
)
RESULTS = (METRICS, 'knowledge/*.npz', '*.safetensors')  # files in the manifest of a finished run
FLUSH_SECONDS = 1.0  # longest time until records reach TensorBoard


class Busy(ValueError):
    """Another run is using the folder."""


class RunLog:
    """The files and printed lines of one run; a context manager that locks the run's folder.

    Attributes:
      workdir: folder of the run.
      description: of the run, JSON values.
      lines: of metrics.jsonl so far. Checkpoints include them, so that `rewind` restores the log of that state whatever
        happened to the file.
    """

    def __init__(self, workdir: str | pathlib.Path, description: Mapping[str, Any]):
        """Stores the arguments; files are touched on entering the context.

        Args:
          workdir: folder of the run; created if it does not exist.
          description: complete description of the run; written to config.json under 'run', or compared with it.

        Raises:
          ValueError: on entering, if the folder cannot be written, another run is using it (`Busy`), or it holds a run
            with another description.
        """
        self.workdir = pathlib.Path(workdir)
        self.description = json.loads(files.dumps(description))
        self.lines: list[str] = []
        self._lock: io.TextIOWrapper | None = None
        self._metrics: io.FileIO | None = None
        self._events: _Events | None = None
        self._progress: console.Progress | None = None

    def __enter__(self) -> RunLog:
        if not distributed.is_first():
            return self
        try:
            self.workdir.mkdir(parents=True, exist_ok=True)
            self._lock = lock(self.workdir)
            saved = files.read_json(self.workdir / CONFIG)
            if saved is None:
                content = {'run': self.description, **environment.describe()}
                files.write_text(self.workdir / CONFIG, files.dumps(content, indent=2) + '\n')
            else:
                if note := descriptions.refuse_other(self.workdir, saved.get('run', {}), self.description):
                    console.say(note)
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
        # If there was an error, it must not be replaced by one from closing the files.
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
        """Restores the log to the state that a run resumes from.

        Args:
          lines: of metrics.jsonl at that state (`self.lines` then).
          step: of that state; events of later steps are hidden from TensorBoard. -1 hides all of them.

        Raises:
          OSError: the files cannot be written.
        """
        if not distributed.is_first():
            return
        self._close_files()
        self.lines = list(lines)
        path = self.workdir / METRICS
        wanted = ''.join(f'{line}\n' for line in lines).encode()
        if not path.exists() or path.read_bytes() != wanted:
            files.write_bytes(path, wanted)
        with self._naming_the_log():
            # Unbuffered, so that a killed process loses no line and a full disk is detected at the line it truncates.
            self._metrics = open(path, 'ab', buffering=0)
            self._events = _Events(self.workdir / EVENTS, step + 1)

    def record(self, entry: Mapping[str, Any]) -> None:
        """Appends one JSON line, and its numbers as TensorBoard scalars '<kind>/<name>' at `entry['step']`.

        Args:
          entry: JSON and NumPy values. Times go under 'time'; everything else is equal in every repetition of a run.
            Numbers that are not finite become null.

        Raises:
          OSError: the files cannot be written, or the folder was deleted or moved.
        """
        if not distributed.is_first():
            return
        line = files.dumps(entry)
        with self._naming_the_log():
            self._refuse_deleted()
            content = memoryview(f'{line}\n'.encode())
            while content:
                content = content[self._metrics.write(content) :]
            self._events.add(entry)
        self.lines.append(line)

    def sync(self) -> None:
        """Flushes all records to the disk; call it before saving a checkpoint.

        Raises:
          OSError: the files cannot be written, or the folder was deleted or moved.
        """
        if distributed.is_first():
            with self._naming_the_log():
                self._refuse_deleted()
                os.fsync(self._metrics.fileno())
                self._events.flush()

    def _refuse_deleted(self) -> None:
        """Raises if metrics.jsonl is no longer the open file, since writes to a deleted file succeed and are lost."""
        path = self.workdir / METRICS
        try:
            if os.path.samestat(os.stat(path), os.fstat(self._metrics.fileno())):
                return
        except FileNotFoundError:
            pass
        raise _Deleted(
            f'{path} was deleted, moved or replaced while the run was using it; what is left there is not touched: '
            'start the same command again'
        )

    @contextlib.contextmanager
    def _naming_the_log(self) -> Iterator[None]:
        try:
            yield
        except _Deleted:
            raise
        except OSError as error:
            raise OSError(
                f'{self.workdir / METRICS} or {EVENTS} next to it cannot be written ({error.strerror or error}); '
                'nothing before the last checkpoint is lost: make room and start the same command again'
            ) from error

    def write_arrays(self, name: str, **arrays: Any) -> None:
        """Writes a NumPy archive into the run's folder atomically.

        Args:
          name: relative to the folder, such as 'knowledge/stage_1.npz'.
          **arrays: by name.
        """
        if distributed.is_first():
            files.write_npz(self.workdir / name, **arrays)

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        """Finishes the run: removes unreadable archives, then writes manifest.json and summary.json.

        The manifest has the size and CRC-32 of each file in `RESULTS`, so that `finished` detects later losses.

        Args:
          summary: JSON and NumPy values.
        """
        if not distributed.is_first():
            return
        for path in sorted(self.workdir.glob('knowledge/*.npz')):
            if not files.is_whole_npz(path):
                path.unlink()
                self.say(f'{path} cannot be read and was removed; reports omit it')
        files.write_text(self.workdir / MANIFEST, files.dumps(_manifest(self.workdir), indent=1) + '\n')
        files.write_text(self.workdir / SUMMARY, files.dumps(summary, indent=2) + '\n')

    # -- lines ----------------------------------------------------------------------------------------------------

    def say(self, line: str) -> None:
        """Prints a line."""
        console.say_of_run(line)

    def start_progress(self, total: int, done: int = 0) -> None:
        """Starts a progress bar, or lines of progress without a terminal.

        Args:
          total: training images of the whole run.
          done: images that earlier starts trained on.
        """
        self.stop_progress()
        self._progress = console.Progress(total, done)

    def progress(self, images: int, **numbers: float) -> None:
        """Adds trained images to the count and shows `numbers` next to it."""
        if self._progress is not None:
            self._progress.update(images, numbers)

    def stop_progress(self) -> None:
        """Ends the bar."""
        if self._progress is not None:
            self._progress.close()
            self._progress = None


class _Deleted(OSError):
    """The folder of a run disappeared."""


class _Events:
    """Scalars for TensorBoard, written in the calling thread.

    tensorboardX's own writer uses a thread, which dies on a full disk; the run would wait for it forever.
    """

    def __init__(self, folder: pathlib.Path, start: int):
        """Hides events of step `start` and later in earlier files of `folder` from TensorBoard."""
        self.folder, self.start = folder, start
        self._file: Any = None
        self._flushed = time.monotonic()

    def add(self, entry: Mapping[str, Any]) -> None:
        """Writes the numbers of a record; flushes about once per second."""
        step, kind = entry.get('step'), entry.get('kind', 'run')
        numbers = {
            f'{kind}/{name}': float(value)
            for name, value in entry.items()
            if name not in ('step', 'number', 'of') and isinstance(value, int | float) and not isinstance(value, bool)
        }
        if step is None or not numbers:
            return
        from tensorboardX import event_file_writer, summary  # slow to import, and --check does not need it
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


def lock(workdir: pathlib.Path) -> io.TextIOWrapper:
    """Locks a folder until the returned file is closed or the process ends.

    Raises:
      Busy: another run holds the lock.
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
        return file  # a file system without locks
    file.truncate(0)
    file.write(str(os.getpid()))
    file.flush()
    return file


# ---------------------------------------------------------------------------------------------------- finished runs


def read_summary(workdir: str | pathlib.Path) -> dict[str, Any] | None:
    """The summary that `RunLog.write_summary` wrote; None if the run is not finished."""
    return files.read_json(pathlib.Path(workdir) / SUMMARY)


def finished(workdir: str | pathlib.Path) -> dict[str, Any] | None:
    """The summary of a finished run with intact files.

    Prints one line if files were lost. If the run still has a checkpoint, resuming from it writes them again.

    Returns:
      The summary, or None if the run must resume: it is not finished, or files must be written again.
    """
    workdir = pathlib.Path(workdir)
    summary = read_summary(workdir)
    lost = [] if summary is None else damaged(workdir)
    if not lost:
        return summary
    names = f'{workdir}: {", ".join(lost)} of the finished run {"is" if len(lost) == 1 else "are"} damaged or missing'
    if any((workdir / 'checkpoints').glob('[0-9]*')):
        console.say(f'{names}; continuing from the last checkpoint to write {"it" if len(lost) == 1 else "them"} again')
        return None
    console.say(f'{names}, and no checkpoint is left; only the same command in another --workdir writes them again')
    return summary


def damaged(workdir: str | pathlib.Path) -> list[str]:
    """Names of the files in a finished run's manifest that are missing or have changed.

    Without a readable manifest nothing can be compared, and the manifest itself is named.
    """
    workdir = pathlib.Path(workdir)
    manifest = files.read_json(workdir / MANIFEST)
    if not manifest:
        return [MANIFEST]
    return [name for name, entry in manifest.items() if _fingerprint(workdir / name) != entry]


def _manifest(workdir: pathlib.Path) -> dict[str, dict[str, int] | None]:
    paths = sorted(path for pattern in RESULTS for path in workdir.glob(pattern))
    return {path.relative_to(workdir).as_posix(): _fingerprint(path) for path in paths}


def _fingerprint(path: pathlib.Path) -> dict[str, int] | None:
    """{'bytes', 'crc32'} of a file; None if it cannot be read."""
    size = digest = 0
    try:
        with open(path, 'rb') as file:
            while chunk := file.read(1 << 24):
                size, digest = size + len(chunk), zlib.crc32(chunk, digest)
    except OSError:
        return None
    return {'bytes': size, 'crc32': digest}
