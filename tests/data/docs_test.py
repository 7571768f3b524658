"""The examples of docs/data.md and docs/adding_a_dataset.md run as they stand."""

from __future__ import annotations

import pathlib
import re
import sys
import textwrap

import pytest

from kcd_jax import data

DOCS = pathlib.Path(__file__).parents[2] / 'docs'


def examples(name: str) -> list[str]:
    """The Python blocks of a page."""
    text = (DOCS / name).read_text(encoding='utf-8')
    return [
        textwrap.dedent(block) for block in re.findall(r'^( *```python\n.*?)^ *```', text, re.DOTALL | re.MULTILINE)
    ]


def source_of(name: str) -> str:
    return '\n'.join(block.partition('\n')[2] for block in examples(name))


def test_the_examples_of_your_own_data_run(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch):
    source, names = source_of('data.md'), {}
    exec(compile(source, 'data.md', 'exec'), names)
    dataset = names['dataset']
    assert len(dataset.train) == 400 and dataset.class_names == ('rows', 'columns')
    columns = dataset.train.images[dataset.train.labels == 1]
    assert columns[:, :, ::4].mean() > columns[:, :, 1::4].mean() + 80
    (tmp_path / 'stripes.py').write_text(source)
    monkeypatch.syspath_prepend(str(tmp_path))
    assert data.load('python:stripes:make').image_shape == (16, 16, 3)


def test_the_example_of_a_file_is_found_by_its_name(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / 'stripes.py').write_text(source_of('adding_a_dataset.md'))
    monkeypatch.setattr(data, '__path__', [*data.__path__, str(tmp_path)])
    try:
        loaded = data.load('stripes')
    finally:
        sys.modules.pop('kcd_jax.data.stripes', None)
    assert len(loaded.train) == 400 and loaded.class_names == ('rows', 'columns')
    columns = loaded.train.images[loaded.train.labels == 1]
    assert columns[:, :, ::4].mean() > columns[:, :, 1::4].mean() + 80


def test_the_names_of_the_table_are_known():
    text = (DOCS / 'data.md').read_text(encoding='utf-8')
    for name in data.names():
        assert f'`{name}`' in text or f'`{name}:' in text
