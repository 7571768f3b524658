"""Checkpoints of one run: written by Orbax, verified by digests of our own, with a predecessor to fall back on.

Orbax writes in the background, renames when a step is complete and removes old steps. Two things it does not give: a
flipped bit in array data restores silently wrong, and nothing falls back by itself. So the JSON item of every step
holds the CRC-32 of each array, and `restore_latest` walks back to the newest step that agrees with its digests. The
arrays are saved from the host by the first process; their content does not depend on the number of devices.
"""

from __future__ import annotations

import contextlib
import functools
import json
import logging
import os
import pathlib
import shutil
import sys
import zlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from kcd_jax.contracts import PyTree
from kcd_jax.runtime import console, distributed, sharding
from kcd_jax.trees import leaf_paths

STATE, META = 'state', 'meta'  # the items of a checkpoint

# Orbax also logs the errors that it raises, with a traceback; here they are reported in one line.
logging.getLogger('absl').addFilter(lambda record: f'{os.sep}orbax{os.sep}' not in record.pathname)


class Damaged(Exception):
    """What is wrong with a checkpoint, in a few words."""


class Checkpointer:
    """The checkpoints of one run, in one folder; a context manager.

    With several processes, all of them call every method in the same order. The first one reads, writes and decides; it
    sends what it reads to the others, which need not see the folder.
    """

    def __init__(self, directory: str | pathlib.Path, keep: int = 2):
        """Opens a folder, and removes what an interrupted save left there.

        Args:
          directory: made if it does not exist.
          keep: how many of the newest checkpoints stay.

        Raises:
          ValueError: fewer than two are to be kept, or the folder cannot be written.
        """
        if keep < 2:
            raise ValueError(f'checkpoint.keep is {keep}; keep at least 2, so that a damaged one has a predecessor')
        self.directory = pathlib.Path(directory).absolute()
        self._damaged: list[int] = []
        self._manager: ocp.CheckpointManager | None = None
        if not distributed.is_first():
            return
        options = ocp.CheckpointManagerOptions(
            create=False,
            multiprocessing_options=ocp.options.MultiprocessingOptions(active_processes={0}),
            preservation_policy=ocp.checkpoint_managers.preservation_policy.LatestN(keep),
        )
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            # Orbax's own cleaning fails every later save if a thread of a failed run still writes there.
            for interrupted in self.directory.glob(f'*{ocp.utils.TMP_DIR_SUFFIX}*'):
                shutil.rmtree(interrupted, ignore_errors=True)
            self._manager = ocp.CheckpointManager(self.directory, options=options)
        except OSError as error:
            raise ValueError(
                f'{self.directory} cannot be written ({error.strerror}); choose another --workdir'
            ) from error

    def __enter__(self) -> Checkpointer:
        return self

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        # If there was an error, it must not be replaced by one from the last save.
        with contextlib.suppress(OSError) if error is not None else contextlib.nullcontext():
            self.close()

    def steps(self) -> list[int]:
        """The steps with a checkpoint, damaged or not, in ascending order; empty except on the first process."""
        return sorted(self._manager.all_steps()) if self._manager else []

    def save(self, step: int, state: PyTree, meta: Mapping[str, Any]) -> None:
        """Starts a save and returns once the arrays are copied to the host.

        Args:
          step: of the run; an existing checkpoint of this step is kept.
          state: arrays, on any number of devices; the run may donate them afterwards.
          meta: JSON values that are restored with it.

        Raises:
          OSError: the save before this one could not be written. Earlier checkpoints are intact.
        """
        arrays = leaf_paths(sharding.to_host(state))
        _quiet_late_writes()
        with distributed.together():
            if self._manager is None:
                return
            self.wait()
            for damaged in self._damaged:  # they would count among the newest, and hide later saves of lower steps
                shutil.rmtree(self.directory / str(damaged), ignore_errors=True)
            if self._damaged:
                self._damaged = []
                self._manager.reload()
            if step in self._manager.all_steps():
                return
            content = json.loads(json.dumps({'arrays': _describe(arrays), 'meta': meta}))
            items = {
                STATE: ocp.args.StandardSave({path: array for path, array in arrays.items() if array.size}),
                META: ocp.args.JsonSave({'content': content, 'crc32': _digest(content)}),
            }
            with self._disk_errors():
                self._manager.save(step, args=ocp.args.Composite(**items), force=True)

    def wait(self) -> None:
        """Returns when the save in progress is on disk.

        Raises:
          OSError: it could not be written.
        """
        if self._manager is not None:
            with self._disk_errors():
                self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits for the save in progress and releases the folder."""
        if self._manager is None:
            return
        try:
            self.wait()
        finally:
            with self._disk_errors():
                self._manager.close()

    @contextlib.contextmanager
    def _disk_errors(self) -> Iterator[None]:
        """Converts errors of Orbax's writing threads on a full or failing disk into a one-line OSError."""
        try:
            yield
        except Exception as error:
            reason = ' '.join(str(error).split())
            known = ('No space left on device', 'Disk quota exceeded', 'File too large', 'Read-only file system')
            found = [text for text in known if text.lower() in reason.lower()]
            if not found and not isinstance(error, OSError):
                raise
            raise OSError(
                f'a checkpoint could not be written under {self.directory} ({(found or [reason[:200]])[0]}); earlier '
                'ones are intact: make room and start the same command again'
            ) from error

    def restore_latest(
        self, state: PyTree, lacks: Callable[[dict[str, Any]], str] = lambda meta: ''
    ) -> tuple[PyTree, dict[str, Any]] | None:
        """Restores the newest intact checkpoint. Prints one line for each damaged one that is skipped.

        Args:
          state: arrays, or `jax.ShapeDtypeStruct`s with shardings: the tree, shapes, dtypes and places that are wanted.
            The number of devices may differ from that of the save.
          lacks: meta -> the name of a file that the run had written by then and has lost since, or ''. An earlier
            checkpoint, from which the run writes that file again, is preferred.

        Returns:
          (state in new buffers, meta), or None when no checkpoint is whole.

        Raises:
          ValueError: the newest whole checkpoint holds another tree, that of another configuration.
        """
        found = None
        with distributed.together():
            found = self._newest_whole(state, lacks)
        meta = json.loads(distributed.from_first(json.dumps(found and found[1]).encode()))
        if meta is None:
            return None
        wanted = leaf_paths(state)
        arrays = found[0] if found else {path: np.zeros(leaf.shape, leaf.dtype) for path, leaf in wanted.items()}
        arrays = distributed.arrays_from_first({path: arrays[path] for path in wanted})
        restored = jax.tree.unflatten(jax.tree.structure(state), [arrays[path] for path in wanted])
        return sharding.put(restored, jax.tree.map(lambda leaf: leaf.sharding, state)), meta

    def _newest_whole(
        self, state: PyTree, lacks: Callable[[dict[str, Any]], str]
    ) -> tuple[dict[str, np.ndarray], dict[str, Any]] | None:
        newest, lost = None, ''
        for step in reversed(self.steps()):
            try:
                arrays, meta = self.read(step)
            except Damaged as damage:
                self._damaged.append(step)
                console.say(f'checkpoint {step} is damaged ({damage}); passed over')
                continue
            _refuse_other_tree(self.directory / str(step), arrays, state)
            missing = lacks(meta)
            if not missing:
                return arrays, meta
            if newest is None:
                newest, lost = (arrays, meta), missing
                console.say(f'{lost} is damaged or missing; looking for a checkpoint from before it')
        if newest is not None:
            console.say(f'no checkpoint is from before {lost}, which stays lost; nothing else depends on it')
        elif self._damaged:
            console.say('no checkpoint is whole; starting from the beginning')
        return newest

    def read(self, step: int) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Reads one checkpoint.

        Returns:
          ({path: array}, meta), after all digests were found to agree.

        Raises:
          Damaged: it cannot be read, or a digest does not agree.
        """
        saved = self._item(step, META, ocp.args.JsonRestore())
        content = saved.get('content') if isinstance(saved, dict) else None
        if not isinstance(content, dict) or saved.get('crc32') != _digest(content):
            raise Damaged('its description does not agree with its digest')
        wanted = {path: np.zeros(shape, np.dtype(name)) for path, (shape, name, _) in content['arrays'].items()}
        filled = {path: array for path, array in wanted.items() if array.size}  # Orbax saves no empty array
        arrays = {**wanted, **self._item(step, STATE, ocp.args.StandardRestore(filled))}
        found = json.loads(json.dumps(_describe(arrays)))
        for path, entry in content['arrays'].items():
            if found.get(path) != entry:
                raise Damaged(f'{path} does not agree with its digest')
        return arrays, content['meta']

    def _item(self, step: int, name: str, how: Any) -> Any:
        """One item of a step. Orbax raises exceptions of every kind on damaged files."""
        try:
            return self._manager.restore(step, args=ocp.args.Composite(**{name: how}))[name]
        except Exception as error:
            raise Damaged(f'its {name} cannot be read: {type(error).__name__}') from error


def _describe(arrays: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """{path: [shape, dtype, CRC-32 of the bytes]}."""
    parts = {path: np.ascontiguousarray(array).reshape(-1).view(np.uint8).data for path, array in arrays.items()}
    return {path: [array.shape, array.dtype.name, zlib.crc32(parts[path])] for path, array in arrays.items()}


def _digest(content: Any) -> int:
    return zlib.crc32(json.dumps(content, sort_keys=True).encode())


def _refuse_other_tree(place: pathlib.Path, arrays: Mapping[str, np.ndarray], state: PyTree) -> None:
    """Raises ValueError if saved arrays differ from those of `state`, naming the first ones."""

    def kinds(leaves: Mapping[str, Any]) -> dict[str, str]:
        sizes = {path: ','.join(map(str, leaf.shape)) for path, leaf in leaves.items()}
        return {path: f'{np.dtype(leaf.dtype).name}[{sizes[path]}]' for path, leaf in leaves.items()}

    there, here = kinds(arrays), kinds(leaf_paths(state))
    differing = sorted(path for path in {*there, *here} if there.get(path) != here.get(path))
    if differing:
        shown = [f'{path} ({there.get(path, "nothing")} there, {here.get(path, "nothing")} here)' for path in differing]
        more = f' and {len(shown) - 3} more' if len(shown) > 3 else ''
        raise ValueError(
            f'{place} is a checkpoint of another configuration: {", ".join(shown[:3])}{more}; '
            'use another --workdir or that configuration'
        )


@functools.cache
def _quiet_late_writes() -> None:
    """Silences the late writes of a failed save, whose event loop is closed: each would print a traceback."""
    logging.getLogger('asyncio').addFilter(lambda record: f'{os.sep}orbax{os.sep}' not in record.getMessage())
    report = sys.unraisablehook

    def hook(late: Any) -> None:
        if not (isinstance(late.exc_value, RuntimeError) and str(late.exc_value) == 'Event loop is closed'):
            report(late)

    sys.unraisablehook = hook
