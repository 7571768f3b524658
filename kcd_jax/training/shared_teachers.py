"""Teachers that runs train, shared between work folders: the same teacher is trained once per machine.

A finished teacher leaves its files in a folder named by its description, and by what its bits depend on besides: the
versions of the libraries and the devices. A later run copies them instead of training it again.
"""

from __future__ import annotations

import contextlib
import fnmatch
import hashlib
import os
import pathlib
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from typing import Any

from kcd_jax import paths
from kcd_jax.runtime import descriptions, environment, files, runlog

OFF = 'off'


def folder() -> pathlib.Path | None:
    """Where they are: KCD_JAX_TEACHERS, else 'teachers' in the cache folder; None if that is 'off'."""
    named = os.environ.get('KCD_JAX_TEACHERS', '')
    if named == OFF:
        return None
    return paths.expand(named) if named else paths.cache_folder() / 'teachers'


def entry(description: Mapping[str, Any]) -> pathlib.Path | None:
    """The folder of a teacher, by the description of the run that trains it; None if none is shared."""
    root = folder()
    if root is None:
        return None
    keys = {
        key: str(value).rpartition(':')[2] if key in descriptions.CODE else value
        for key, value in descriptions.flatten(description).items()
        if not any(fnmatch.fnmatchcase(key, pattern) for pattern in descriptions.FREE_KEYS)
    }
    about = environment.describe()
    made_by = {key: about[key] for key in ('python', 'versions', 'precision', 'device')}
    digest = hashlib.sha256(files.dumps([dict(sorted(keys.items())), made_by]).encode()).hexdigest()
    return root / f'{description["student"]}-{digest[:16]}'


def fetch(description: Mapping[str, Any], workdir: pathlib.Path) -> pathlib.Path | None:
    """Copies a shared teacher into the folder of the run that would train it.

    Args:
      description: of that run.
      workdir: its folder, locked by the caller; nothing is copied into one with a checkpoint.

    Returns:
      Where the files come from; None if there is no whole teacher of this description.
    """
    shared = entry(description)
    if shared is None or not (shared / runlog.SUMMARY).is_file() or any(workdir.glob('checkpoints/[0-9]*')):
        return None
    summary = runlog.read_summary(shared)
    if summary is None or descriptions.differences(summary['run'], description) or runlog.damaged(shared):
        return None
    for name in _names(shared):
        files.write_bytes(workdir / name, (shared / name).read_bytes())
    return None if runlog.damaged(workdir) else shared


def publish(description: Mapping[str, Any], workdir: pathlib.Path) -> None:
    """Leaves a finished teacher's files for later runs; a cache that cannot be written does not stop the run."""
    shared = entry(description)
    if shared is None:
        return
    with contextlib.suppress(OSError):
        if shared.is_dir() and not runlog.damaged(shared):
            return
        shared.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix='.new-', dir=shared.parent) as new:
            made = pathlib.Path(new) / 'entry'
            for name in _names(workdir):
                files.write_bytes(made / name, (workdir / name).read_bytes())
            shutil.rmtree(shared, ignore_errors=True)  # a damaged one
            os.rename(made, shared)  # fails where another process was faster


def _names(workdir: pathlib.Path) -> Iterator[str]:
    """The files of a finished run, the summary last: it is what makes a run finished."""
    yield from files.read_json(workdir / runlog.MANIFEST) or {}
    yield from (runlog.MANIFEST, runlog.SUMMARY)
