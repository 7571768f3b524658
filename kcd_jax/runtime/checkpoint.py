"""Checkpoints: Orbax's files, a digest of our own, and the previous good one when the newest is damaged.

Orbax notices a missing file, but a flipped byte in the data restores silently wrong numbers, and nothing falls back by
itself. So every checkpoint carries, beside the run's own notes, a description of each array (shape, dtype, CRC-32 of
its bytes), and `restore_latest` walks back until one agrees with its description.

The arrays are saved as one array of bytes, a copy on the host: its content does not depend on the number of devices or
processes, the run may donate its buffers while it is written, a save takes a third of the time of one array a leaf,
and a damaged store is one error (hundreds of arrays are read at once, and each of them would print a traceback).
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
import pathlib
import shutil
import threading
import zlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from kcd_jax.contracts import PyTree
from kcd_jax.runtime import distributed, runlog, sharding
from kcd_jax.trees import leaf_paths

FORMAT = 2
STATE, META = 'state', 'meta'  # the items of a checkpoint

# Orbax numbers its operations for a whole process, and mixes up those of several threads: runs side by side take turns.
_turn = threading.RLock()

# Orbax logs what it also raises, with a traceback; what is raised becomes one line here.
logging.getLogger('absl').addFilter(lambda record: f'{os.sep}orbax{os.sep}' not in record.pathname)


class Checkpointer:
    """The checkpoints of one run, in one folder; a context manager.

    With several processes all of them call every method, in the same order. The first one writes, reads and decides;
    what it reads goes to the others, so that the folder may be on its own disk.
    """

    def __init__(self, directory: str | pathlib.Path, keep: int = 2):
        """Opens `directory` (made if need be). `keep`: the newest checkpoints that stay.

        Raises:
          ValueError: fewer than two are kept (a damaged one would leave none); the folder cannot be written.
        """
        if keep < 2:
            raise ValueError(f'checkpoint.keep is {keep}; keep at least 2, so that a damaged one has a predecessor')
        self.directory = pathlib.Path(directory).absolute()
        self._damaged: list[int] = []
        self._manager: ocp.CheckpointManager | None = None
        if not distributed.is_first():
            return
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            options = ocp.CheckpointManagerOptions(
                create=False,
                cleanup_tmp_directories=True,
                multiprocessing_options=ocp.options.MultiprocessingOptions(active_processes={0}),
                preservation_policy=ocp.checkpoint_managers.preservation_policy.LatestN(keep),
            )
            with _turn:
                self._manager = ocp.CheckpointManager(self.directory, options=options)
        except OSError as error:
            reason = f'{self.directory} cannot be written ({error.strerror})'
            raise ValueError(f'{reason}; choose another --workdir') from error

    def __enter__(self) -> Checkpointer:
        return self

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if error is None:
            self.close()
            return
        with contextlib.suppress(OSError):  # what ended the run is said, not what it did to the last save
            self.close()

    def steps(self) -> list[int]:
        """The steps with a checkpoint, damaged or not, in order."""
        return sorted(self._manager.all_steps()) if self._manager else []

    def save(self, step: int, state: PyTree, meta: Mapping[str, Any]) -> None:
        """Starts saving; returns once the arrays are copied (the files are written behind).

        Args:
          step: of the run; a checkpoint of this step that is there already is kept.
          state: arrays, on any number of devices. meta: JSON values that come back with it.

        Raises:
          OSError: this save or the one before could not be written (disk full, ...). Earlier checkpoints are intact.
        """
        arrays = leaf_paths(sharding.to_host(state, copy=False))  # `_save` copies them into one array of bytes
        with distributed.together():
            self._save(step, arrays, state, meta)

    def _save(self, step: int, arrays: Mapping[str, np.ndarray], state: PyTree, meta: Mapping[str, Any]) -> None:
        if self._manager is None:
            return
        self.wait()
        self._remove_damaged()
        if step in self._manager.all_steps():
            return
        content = {'format': FORMAT, 'arrays': _describe(arrays), 'statics': _statics(state), 'meta': dict(meta)}
        content = json.loads(json.dumps(content))
        items = {
            STATE: ocp.args.StandardSave({'bytes': np.concatenate([_bytes(array) for array in arrays.values()])}),
            META: ocp.args.JsonSave({'content': content, 'crc32': _text_digest(content)}),
        }
        with _turn, _disk_errors(self.directory):
            self._manager.save(step, args=ocp.args.Composite(**items), force=True)
            if threading.current_thread() is not threading.main_thread():
                self._manager.wait_until_finished()

    def restore_latest(
        self, state: PyTree, lacks: Callable[[dict[str, Any]], str] = lambda meta: ''
    ) -> tuple[PyTree, dict[str, Any]] | None:
        """The newest checkpoint that is whole.

        Args:
          state: a state of the run (arrays, or `jax.ShapeDtypeStruct`s with shardings): the tree, shapes, dtypes and
            places that are wanted. The number of devices may differ from that of the save.
          lacks: meta -> the file that the run had at that state and lost since, or ''. A checkpoint from before that
            file, which makes the run write it again, goes first; where there is none the file stays lost.

        Returns:
          (state, meta) in new buffers, or None when there is no checkpoint. One line is said for each damaged one.

        Raises:
          ValueError: the newest whole checkpoint is of another tree: 'checkpoint of another configuration'.
        """
        arrays, content = {}, None
        with distributed.together():
            found = self._newest_whole(state, lacks)
            if found is not None:
                arrays, content = found
        content = json.loads(distributed.from_first(json.dumps(content).encode()))
        if content is None:
            return None
        if not arrays:
            arrays = {path: np.zeros(leaf.shape, leaf.dtype) for path, leaf in leaf_paths(state).items()}
        arrays = distributed.arrays_from_first({path: arrays[path] for path in leaf_paths(state)})
        restored = jax.tree.unflatten(jax.tree.structure(state), [arrays[path] for path in leaf_paths(state)])
        return sharding.put(restored, jax.tree.map(lambda leaf: leaf.sharding, state)), content['meta']

    def _newest_whole(
        self, state: PyTree, lacks: Callable[[dict[str, Any]], str]
    ) -> tuple[dict[str, np.ndarray], dict[str, Any]] | None:
        """The arrays and the description of the newest step that is whole; None on the other processes."""
        faults: dict[int, str] = {}
        second: tuple[int, dict[str, np.ndarray], dict[str, Any]] | None = None
        chosen = None
        for step in reversed(self.steps()):
            try:
                arrays, content = self._read(step)
            except _Damaged as damage:
                self._damaged.append(step)
                faults[step] = f'checkpoint {step} is damaged ({damage})'
                continue
            _refuse_other_tree(self.directory / str(step), content, state)
            lost = lacks(content['meta'])
            if not lost:
                chosen = step, arrays, content
                break
            if second is None:
                second = step, arrays, content
            faults[step] = f'{lost} is damaged or missing'
        if chosen is None and second is not None:
            runlog.say(f'{faults.pop(second[0])} and stays so: no checkpoint is older; nothing else depends on it')
            faults = {step: fault for step, fault in faults.items() if step in self._damaged}
            chosen = second
        for step, fault in faults.items():
            back = 'starting from the beginning' if chosen is None else f'going back to step {chosen[0]:,}'
            again = step - (chosen[0] if chosen else 0)
            runlog.say(f'{fault}; {back}: {again:,} steps are done again')
        if chosen is None:
            return None
        _, arrays, content = chosen
        return arrays, content

    def wait(self) -> None:
        """Returns when the save in flight is on disk.

        Raises:
          OSError: it could not be written.
        """
        if self._manager is None:
            return
        with _disk_errors(self.directory):
            self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits and lets go of the folder."""
        if self._manager is None:
            return
        try:
            self.wait()
        finally:
            with _turn, _disk_errors(self.directory):
                self._manager.close()

    def _read(self, step: int) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """The arrays and the description of a step, found to agree."""
        saved = self._item(step, META, ocp.args.JsonRestore())
        content = saved.get('content') if isinstance(saved, dict) else None
        if not isinstance(content, dict) or saved.get('crc32') != _text_digest(content):
            raise _Damaged('its description does not agree with its digest')
        if content['format'] != FORMAT:
            raise ValueError(
                f'{self.directory / str(step)} has format {content["format"]}, and this program reads {FORMAT}; '
                'use the version that wrote it'
            )
        dtypes = {path: np.dtype(dtype) for path, (_, dtype, _) in content['arrays'].items()}
        sizes = {path: math.prod(shape) * dtypes[path].itemsize for path, (shape, _, _) in content['arrays'].items()}
        wanted = {'bytes': jax.ShapeDtypeStruct((sum(sizes.values()),), np.uint8)}
        everything = np.asarray(self._item(step, STATE, ocp.args.StandardRestore(wanted))['bytes'])
        arrays, start = {}, 0
        for path, (shape, _, digest) in content['arrays'].items():
            part = everything[start : start + sizes[path]]
            if zlib.crc32(part.data) != digest:
                raise _Damaged(f'{path} does not agree with its digest')
            arrays[path] = part.view(dtypes[path]).reshape(shape)
            start += sizes[path]
        return arrays, content

    def _item(self, step: int, name: str, how: Any) -> Any:
        """One item of a step. Orbax raises exceptions of every kind on damaged files."""
        try:
            with _turn:
                return self._manager.restore(step, args=ocp.args.Composite(**{name: how}))[name]
        except Exception as error:
            raise _Damaged(f'its {name} cannot be read: {type(error).__name__}') from error

    def _remove_damaged(self) -> None:
        """Removes the steps that were found damaged, now that a newer good one is about to be written.

        They would count among the newest that are kept, and hide later steps with lower numbers.
        """
        if not self._damaged:
            return
        for step in self._damaged:
            shutil.rmtree(self.directory / str(step), ignore_errors=True)
        self._damaged = []
        self._manager.reload()


class _Damaged(Exception):
    """What is wrong with a checkpoint, in a few words."""


@contextlib.contextmanager
def _disk_errors(directory: pathlib.Path) -> Iterator[None]:
    """Turns what the writing threads raise on a full or failing disk into one OSError line."""
    try:
        yield
    except Exception as error:
        reason = ' '.join(str(error).split())
        known = ('No space left on device', 'Disk quota exceeded', 'File too large', 'Read-only file system')
        found = [text for text in known if text.lower() in reason.lower()]
        if not found and not isinstance(error, OSError):
            raise
        reason = found[0] if found else reason
        raise OSError(
            f'a checkpoint could not be written under {directory} ({reason[:200]}); earlier ones are intact: '
            'make room and start the same command again'
        ) from error


def _bytes(array: np.ndarray) -> np.ndarray:
    """u8[nbytes] of an array of any shape, scalars and empty ones too."""
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8)


def _describe(arrays: Mapping[str, np.ndarray]) -> dict[str, list[Any]]:
    """{path: [shape, dtype, CRC-32 of the bytes]}, in the order of the bytes."""
    return {
        path: [list(array.shape), array.dtype.name, zlib.crc32(_bytes(array).data)] for path, array in arrays.items()
    }


def _text_digest(content: Any) -> int:
    return zlib.crc32(json.dumps(content, sort_keys=True).encode())


def _statics(state: PyTree) -> dict[str, int]:
    """What the tree holds beside arrays: the points of the value table."""
    table = getattr(state, 'table', None)
    return {} if table is None else {'table.num_points': table.num_points}


def _refuse_other_tree(place: pathlib.Path, content: Mapping[str, Any], state: PyTree) -> None:
    """Raises ValueError when a checkpoint's arrays are not those of `state`, naming the first that differ."""
    saved = {path: (tuple(entry[0]), entry[1]) for path, entry in content['arrays'].items()}
    wanted = {path: (tuple(leaf.shape), np.dtype(leaf.dtype).name) for path, leaf in leaf_paths(state).items()}
    saved.update(content['statics'])
    wanted.update(_statics(state))
    differing = sorted(path for path in {*saved, *wanted} if saved.get(path) != wanted.get(path))
    if differing:
        pairs = [f'{path} ({_say(saved.get(path))} there, {_say(wanted.get(path))} here)' for path in differing]
        more = f' and {len(pairs) - 3} more' if len(pairs) > 3 else ''
        raise ValueError(
            f'{place} is a checkpoint of another configuration: {", ".join(pairs[:3])}{more}; '
            'use another --workdir or that configuration'
        )


def _say(found: Any) -> str:
    if found is None:
        return 'nothing'
    if isinstance(found, tuple):
        shape, dtype = found
        return f'{dtype}[{",".join(map(str, shape))}]'
    return str(found)
