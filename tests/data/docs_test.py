"""The examples of docs/data.md and docs/adding_a_dataset.md run, on fewer points and smaller pictures."""

from __future__ import annotations

import pathlib
import re
import sys
import textwrap

import numpy as np
import pytest
from PIL import Image

from kcd_jax import data

pytestmark = pytest.mark.fast_compile

DOCS = pathlib.Path(__file__).parents[2] / 'docs'


def examples(name: str) -> list[str]:
    """The Python blocks of a page."""
    text = (DOCS / name).read_text(encoding='utf-8')
    return [
        textwrap.dedent(block) for block in re.findall(r'^( *```python\n.*?)^ *```', text, re.DOTALL | re.MULTILINE)
    ]


def source_of(name: str) -> str:
    return '\n'.join(block.partition('\n')[2] for block in examples(name))


@pytest.fixture
def run(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch):
    """run(word): executes the example of data.md that has the word, in an empty folder; its names."""
    monkeypatch.chdir(tmp_path)

    def execute(word: str) -> dict:
        [source] = [block.partition('\n')[2] for block in examples('data.md') if word in block]
        for old, new in (
            ("'epochs': 60", "'epochs': 6"),
            (', 64)', ', 16)'),
            ('::16, ::16', '::4, ::4'),
            ("'resnet20'", "'resnet8x0_25'"),
            ("'resnet8'", "'resnet8x0_25'"),
        ):
            source = source.replace(old, new)
        names = {}
        exec(compile(source, 'data.md', 'exec'), names)
        return names

    return execute


def write(folder: pathlib.Path, number: int) -> None:
    folder.mkdir(parents=True)
    random = np.random.default_rng(number)
    for i in range(number):
        Image.fromarray(random.integers(0, 256, (16, 16, 3), np.uint8)).save(folder / f'{i}.png')


@pytest.mark.slow
def test_arrays(run):
    assert len(run('runs/arrays')['dataset'].train) == 400
    assert pathlib.Path('runs/arrays/student.safetensors').exists()


@pytest.mark.slow
def test_a_folder_of_pictures(run):
    for name in ('cat', 'dog'):
        write(pathlib.Path('pictures') / name, 40)
    Image.new('RGB', (20, 16)).save('unknown.jpg')
    names = run('runs/pictures')
    assert names['names'][0] in ('cat', 'dog') and names['probabilities'].shape == (1,)


@pytest.mark.slow
def test_pictures_without_labels(run):
    write(pathlib.Path('unlabelled'), 60)
    assert -1 < run('runs/unlabelled')['result'].summary['cosine'] < 1


def test_the_example_of_objects_runs(run, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch):
    [source] = [block.partition('\n')[2] for block in examples('data.md') if 'class Stripes' in block]
    dataset = run('class Stripes')['dataset']
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
