"""The index links what a user has to short blocks that are run; those of recipes.md and export.md are run here."""

from __future__ import annotations

import pathlib
import re

import jax
import numpy as np
import pytest

from kcd_jax import data, networks
from kcd_jax.teachers import weights_file

pytestmark = pytest.mark.fast_compile

DOCS = pathlib.Path(__file__).parents[1] / 'docs'
# Where the blocks of each page are run.
RUN_BY = {
    'models.md': 'networks/docs_test.py',
    'teachers.md': 'teachers/docs_test.py',
    'data.md': 'data/docs_test.py',
    'condenser.md': 'knowledge/condenser_docs_test.py',
    'recipes.md': 'docs_test.py',
    'export.md': 'docs_test.py',
}


def sections(page: str) -> dict[str, str]:
    """{anchor: the text under its heading, up to the next heading of any level}."""
    text = (DOCS / page).read_text(encoding='utf-8')
    parts = re.split(r'^#{2,4} (.*)\n', text, flags=re.MULTILINE)  # not '#', which begins comments in blocks too
    anchors = [re.sub(r'[^\w -]', '', title.lower()).replace(' ', '-') for title in parts[1::2]]
    return dict(zip(anchors, parts[2::2], strict=True))


def blocks(page: str, anchor: str) -> list[str]:
    return re.findall(r'^```python\n(.*?)^```', sections(page)[anchor], re.DOTALL | re.MULTILINE)


def links() -> list[tuple[str, str]]:
    table = sections('index.md')['start-from-what-you-have']
    return re.findall(r'\]\((\w+\.md)#([\w-]+)\)', table)


def test_the_index_has_the_twelve_stories():
    assert len({*links()}) == 12 and {page for page, _ in links()} == {*RUN_BY}


@pytest.mark.parametrize(('page', 'anchor'), links(), ids=str)
def test_a_link_leads_to_a_short_block(page, anchor):
    found = blocks(page, anchor)
    assert found and (DOCS.parent / 'tests' / RUN_BY[page]).exists()
    for block in found:
        assert len([line for line in block.splitlines() if line.strip() and not line.strip().startswith('#')]) <= 25


@pytest.mark.slow
def test_the_recipe_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    [source] = blocks('recipes.md', 'adamw-cosine-ema-and-mixup')
    for old, new in (
        ('num_points=300', 'num_points=40'),
        ("'epochs': 60", "'epochs': 1"),
        ('epochs=60', 'epochs=6'),
        ("'resnet14'", "'resnet8x0_25'"),
    ):
        assert old in source
        source = source.replace(old, new)
    names = {}
    exec(compile(source, 'recipes.md', 'exec'), names)
    assert names['recipe'].ema == 0.999 and 0 <= names['result'].accuracy <= 1


@pytest.mark.slow
def test_the_export_runs_and_both_files_predict_as_the_student(tmp_path, monkeypatch):
    for package in ('jax2onnx', 'onnxruntime'):
        pytest.importorskip(package)
    monkeypatch.chdir(tmp_path)
    digits = data.load('digits')
    variables = networks.get('resnet8x0_25')(10).init(jax.random.key(0), digits.image_shape)
    pathlib.Path('runs/mine').mkdir(parents=True)
    card = {'network': 'resnet8x0_25', 'num_classes': 10, 'image_shape': list(digits.image_shape)}
    weights_file.save(pathlib.Path('runs/mine/student.safetensors'), variables, card)
    [source] = blocks('export.md', 'onnx-and-stablehlo-in-python')
    names = {}
    exec(compile(source, 'export.md', 'exec'), names)
    expected = names['model'](digits.test.images)
    for given in ('onnx_logits', 'stablehlo_logits'):
        np.testing.assert_allclose(names[given], expected, atol=1e-4)
