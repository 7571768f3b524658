"""Executes the notebooks in clean kernels and prints one line for each.

  python tests/notebooks.py [--quick] [NAME ...]

`--quick` replaces the parameters of each notebook by the small ones below, as the tests do.
"""

from __future__ import annotations

import argparse
import os
import pathlib
import shutil
import sys
import tempfile
import time
from collections.abc import Mapping
from typing import Any

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

FOLDER = pathlib.Path(__file__).parent.parent / 'notebooks'
TINY = pathlib.Path(__file__).parent / 'tiny' / 'tiny.py'
WORDS = 'tiny_teacher-tiny,quicktest,policy=kcd'
# {notebook: {parameter: value}}: all cells run, on less data and with tiny networks.
QUICK: dict[str, dict[str, Any]] = {
    'adding_a_method': {'words': WORDS},
    'quickstart': {'words': WORDS},
    'ratio_and_policy': {'words': WORDS, 'ratios': (0.9, 0.7), 'trials': 1},
    'your_own_loop': {'epochs_per_stage': 1},
    'valued_images': {'words': WORDS},
}


def names() -> list[str]:
    """The names of all notebooks."""
    return sorted(path.stem for path in FOLDER.glob('*.ipynb'))


def quick(name: str, workdir: str) -> dict[str, Any]:
    """Parameters with which a notebook runs in half a minute and leaves nothing outside `workdir`.

    The kernels find the tiny networks in `workdir` as they would a user's own, by KCD_JAX_PLUGINS.
    """
    family = pathlib.Path(workdir, 'networks', TINY.name)
    family.parent.mkdir(exist_ok=True)
    shutil.copy(TINY, family)
    os.environ['KCD_JAX_PLUGINS'] = workdir
    source = parameters(read(name)).source
    return {**QUICK[name], **{key: workdir for key in ('workdir', 'folder') if f'{key} = ' in source}}


def parameters(book: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """The cell tagged `parameters`."""
    return next(cell for cell in book.cells if 'parameters' in cell.metadata.get('tags', ()))


def read(name: str) -> nbformat.NotebookNode:
    """The committed notebook."""
    return nbformat.read(FOLDER / f'{name}.ipynb', as_version=4)


def execute(name: str, values: Mapping[str, Any]) -> nbformat.NotebookNode:
    """Runs a notebook in its own kernel, with `values` set after its cell of parameters. The file is not changed.

    Raises:
      ValueError: the notebook has no parameter of that name.
      CellExecutionError: a cell failed.
    """
    book = read(name)
    first = parameters(book)
    for key in values:
        if f'{key} = ' not in first.source:
            raise ValueError(f'{name} has no parameter {key!r}')
    lines = '\n'.join(f'{key} = {value!r}' for key, value in values.items())
    book.cells.insert(book.cells.index(first) + 1, nbformat.v4.new_code_cell(lines))
    NotebookClient(book, timeout=3600, resources={'metadata': {'path': str(FOLDER)}}).execute()
    return book


def main(arguments: list[str] | None = None) -> int:
    """Executes the named notebooks, or all."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('names', nargs='*', metavar='NAME')
    parser.add_argument('--quick', action='store_true')
    parsed = parser.parse_args(arguments)
    failed = 0
    for name in parsed.names or names():
        start = time.monotonic()
        try:
            with tempfile.TemporaryDirectory() as folder:
                execute(name, quick(name, folder) if parsed.quick else {})
            outcome = 'ok'
        except CellExecutionError as error:
            outcome, failed = f'failed\n{error}', failed + 1
        print(f'{name}: {outcome} ({time.monotonic() - start:.0f} s)', flush=True)
    return 1 if failed else 0


if __name__ == '__main__':
    sys.exit(main())
