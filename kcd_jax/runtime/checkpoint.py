"""Checkpoints of one run: exact, verified, and with a predecessor to fall back on.

A checkpoint is a folder named after its step, with one file: a line with the CRC-32 of the next line, a line of JSON
that describes each array (shape, dtype, CRC-32) and carries the run's notes, and the bytes of all arrays. It is written
in the background under another name, synced, and renamed when it is complete. Its content does not depend on the number
of devices or processes. All digests are verified before a value is used: a flipped bit is found, not trained on.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import json
import math
import os
import pathlib
import shutil
import zlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from kcd_jax.contracts import PyTree
from kcd_jax.runtime import console, distributed, sharding
from kcd_jax.trees import leaf_paths

FILE = 'state.bin'


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
        self.directory, self.keep = pathlib.Path(directory).absolute(), keep
        self._damaged: list[int] = []
        self._writer = concurrent.futures.ThreadPoolExecutor(1, 'checkpoint')
        self._saving: concurrent.futures.Future[None] | None = None
        if distributed.is_first():
            try:
                self.directory.mkdir(parents=True, exist_ok=True)
                for partial in self.directory.glob('*.tmp'):
                    shutil.rmtree(partial)
            except OSError as error:
                raise ValueError(
                    f'{self.directory} cannot be written ({error.strerror}); choose another --workdir'
                ) from error

    def __enter__(self) -> Checkpointer:
        return self

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        # After an error, report that one and not what it did to the last save.
        with contextlib.suppress(OSError) if error is not None else contextlib.nullcontext():
            self.close()

    def steps(self) -> list[int]:
        """The steps with a checkpoint, damaged or not, in ascending order; none on other processes than the first."""
        names = (path.name for path in self.directory.glob('*')) if distributed.is_first() else ()
        return sorted(int(name) for name in names if name.isdigit())

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
        with distributed.together():
            if not distributed.is_first():
                return
            self.wait()
            for damaged in self._damaged:  # they would count among the newest, and hide later saves of lower steps
                shutil.rmtree(self.directory / str(damaged), ignore_errors=True)
            self._damaged = []
            if step not in self.steps():
                self._saving = self._writer.submit(self._write, step, arrays, json.loads(json.dumps(meta)))

    def _write(self, step: int, arrays: Mapping[str, np.ndarray], meta: Mapping[str, Any]) -> None:
        parts = {path: np.ascontiguousarray(array).reshape(-1).view(np.uint8) for path, array in arrays.items()}
        entries = {path: (x.shape, x.dtype.name, zlib.crc32(parts[path].data)) for path, x in arrays.items()}
        header = json.dumps({'arrays': entries, 'meta': meta}).encode() + b'\n'
        partial = self.directory / f'{step}.tmp'
        try:
            partial.mkdir(exist_ok=True)
            with open(partial / FILE, 'wb') as file:
                file.write(_digest(header) + header)
                for part in parts.values():
                    file.write(part.data)
                file.flush()
                os.fsync(file.fileno())
            partial.rename(self.directory / str(step))
            for old in self.steps()[: -self.keep]:
                shutil.rmtree(self.directory / str(old))
        except OSError as error:
            shutil.rmtree(partial, ignore_errors=True)
            raise OSError(
                f'a checkpoint could not be written under {self.directory} ({error.strerror or error}); earlier ones '
                'are intact: make room and start the same command again'
            ) from error

    def wait(self) -> None:
        """Returns when the save in progress is on disk.

        Raises:
          OSError: it could not be written.
        """
        saving, self._saving = self._saving, None
        if saving is not None:
            saving.result()

    def close(self) -> None:
        """Waits for the save in progress."""
        try:
            self.wait()
        finally:
            self._writer.shutdown()

    def restore_latest(
        self, state: PyTree, lacks: Callable[[dict[str, Any]], str] = lambda meta: ''
    ) -> tuple[PyTree, dict[str, Any]] | None:
        """Restores the newest checkpoint that is whole. One line is printed for each one that is passed over.

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
        try:
            with open(self.directory / str(step) / FILE, 'rb') as file:
                digest, header, data = file.readline(), file.readline(), memoryview(file.read())
        except OSError as error:
            raise Damaged(f'{FILE} cannot be read: {error.strerror}') from error
        if digest != _digest(header):
            raise Damaged('its description does not agree with its digest')
        described, arrays = json.loads(header), {}
        for path, (shape, name, crc32) in described['arrays'].items():
            dtype = np.dtype(name)
            size = math.prod(shape) * dtype.itemsize
            part, data = data[:size], data[size:]
            if zlib.crc32(part) != crc32:
                raise Damaged(f'{path} does not agree with its digest')
            arrays[path] = np.frombuffer(part, dtype).reshape(shape)
        return arrays, described['meta']


def _digest(header: bytes) -> bytes:
    return f'{zlib.crc32(header):08x}\n'.encode()


def _refuse_other_tree(place: pathlib.Path, arrays: Mapping[str, np.ndarray], state: PyTree) -> None:
    """Raises ValueError when saved arrays are not those of `state`, naming the first that differ."""

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
