"""The examples of docs/models.md run as they are written, on fewer points."""

from __future__ import annotations

import pathlib
import re

import jax
import numpy as np
import pytest
from safetensors.numpy import save_file

from kcd_jax import networks
from kcd_jax.networks import resnet
from kcd_jax.teachers import torch_weights
from tests.teachers.name_maps_test import hugging_face_resnet

pytestmark = pytest.mark.fast_compile

CHECKPOINT = 'Checkpoints of PyTorch, timm and Hugging Face'
TEXT = (pathlib.Path(__file__).parents[2] / 'docs' / 'models.md').read_text(encoding='utf-8')
EXAMPLES = dict(re.findall(r'^## ([^\n]*)\n+```python\n(.*?)^```', TEXT, re.DOTALL | re.MULTILINE))
SLOW = (
    'flax linen',
    'A linen teacher',
    'equinox',
    'Keras 3',
    'Plain functions (Haiku, optax examples, your own)',
    CHECKPOINT,
)


def test_every_framework_has_a_short_example():
    assert {'flax nnx', *SLOW} == {*EXAMPLES}
    assert all(len(source.strip().splitlines()) <= 25 for source in EXAMPLES.values())


@pytest.mark.parametrize('title', [pytest.param(t, marks=pytest.mark.slow if t in SLOW else ()) for t in EXAMPLES])
def test_the_example_runs(title, tmp_path, monkeypatch):
    monkeypatch.setenv('KERAS_BACKEND', 'jax')
    if title in ('equinox', 'Keras 3'):
        pytest.importorskip(title.split()[0].lower())
    monkeypatch.chdir(tmp_path)
    if title == CHECKPOINT:
        tiny = resnet.Architecture((1, 1, 1, 1), (4, 4, 6, 6, 8), imagenet=True, normalization='imagenet')
        monkeypatch.setitem(resnet.NAMES, 'resnet18', tiny)
        variables = networks.get('resnet18')(10).init(jax.random.key(0), (16, 16, 3))
        save_file(hugging_face_resnet(torch_weights.to_torch(variables)), 'model.safetensors')
    source = EXAMPLES[title].replace("'digits')", "'digits', num_points=64)")
    source = source.replace("'epochs': 4", "'epochs': 1").replace('epochs=4', 'epochs=1')
    source = source.replace("'batch': 32}", "'batch': 32, 'teaching': {'allow_weak': True}}")
    names = {'__name__': 'example'}
    exec(compile(source, 'models.md', 'exec'), names)
    (folder,) = (tmp_path / 'runs').iterdir()
    assert (folder / 'student.safetensors').exists()
    if 'model' in names:
        assert np.isfinite(names['model'](np.asarray(names['digits'].test.images[:2]))).all()
