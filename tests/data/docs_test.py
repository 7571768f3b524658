"""The example of docs/data.md runs as it stands."""

from __future__ import annotations

import pathlib
import re

from kcd_jax import data

DOCUMENT = pathlib.Path(__file__).parents[2] / 'docs' / 'data.md'


def test_the_example_of_your_own_objects_runs(tmp_path, monkeypatch):
    (source,) = re.findall(r'```python\n(.*?)```', DOCUMENT.read_text(encoding='utf-8'), re.DOTALL)
    names: dict = {}
    exec(compile(source, DOCUMENT.name, 'exec'), names)
    dataset = names['dataset']
    assert len(dataset.train) == 400 and dataset.class_names == ('rows', 'columns')
    columns = dataset.train.images[dataset.train.labels == 1]
    assert columns[:, :, ::4].mean() > columns[:, :, 1::4].mean() + 80
    (tmp_path / 'stripes.py').write_text(source)
    monkeypatch.syspath_prepend(str(tmp_path))
    assert data.load('python:stripes:make').image_shape == (16, 16, 3)


def test_the_names_of_the_table_are_known():
    text = DOCUMENT.read_text(encoding='utf-8')
    for name in data.names():
        assert f'`{name}`' in text or f'`{name}:' in text
