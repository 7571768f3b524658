"""Executes the notebooks in clean kernels and prints one line for each.

  python tests/notebooks.py [--quick] [NAME ...]

`--quick` replaces the parameters of each notebook by the small ones below, as the tests do.
"""

from __future__ import annotations

import argparse
import pathlib
import sys
import tempfile
import time
from collections.abc import Mapping
from typing import Any

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

FOLDER = pathlib.Path(__file__).parent.parent / 'notebooks'
# {notebook: {parameter: value}}: all cells run, on less data.
QUICK: dict[str, dict[str, Any]] = {
    'adding_a_method': {'words': 'resnet8-resnet8x0_25,quicktest,policy=kcd'},
    'quickstart': {'words': 'resnet8-resnet8x0_25,quicktest,policy=kcd'},
    'ratio_and_policy': {'words': 'resnet8-resnet8x0_25,quicktest,policy=kcd', 'ratios': (0.9, 0.7), 'trials': 1},
    'your_own_loop': {'epochs_per_stage': 1},
    'valued_images': {'words': 'resnet8-resnet8x0_25,quicktest,policy=kcd'},
}


def names() -> list[str]:
    """The names of all notebooks."""
    return sorted(path.stem for path in FOLDER.glob('*.ipynb'))


def quick(name: str, workdir: str) -> dict[str, Any]:
    """Parameters with which a notebook runs in about a minute and leaves nothing outside `workdir`."""
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
