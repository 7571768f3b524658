"""The examples of docs/teachers.md run as they are written, each where the packages that it imports are installed."""

from __future__ import annotations

import functools
import re

import numpy as np
import pytest
from sklearn import linear_model

from kcd_jax import data
from tests.blocks import ROOT

pytestmark = pytest.mark.fast_compile

BLOCKS = re.findall(r'```python\n(.*?)```', (ROOT / 'docs' / 'teachers.md').read_text(encoding='utf-8'), re.DOTALL)


def digits() -> data.Dataset:
    return data.load('digits', num_points=300)


@functools.cache
def weights() -> np.ndarray:
    """f32[K, 3, H, W] of a regression without biases on the training points."""
    model = linear_model.LogisticRegression(max_iter=1000, fit_intercept=False)
    model.fit(digits().train.images.reshape(300, -1) / 255, digits().train.labels)
    return model.coef_.reshape(10, 16, 16, 3).transpose(0, 3, 1, 2).astype(np.float32)


def block(word: str) -> str:
    """The example that trains in `runs/WORD`."""
    [found] = [text for text in BLOCKS if f"'runs/{word}'" in text]
    return found


@pytest.fixture
def run(tmp_path, monkeypatch):
    """run(word, ...): executes examples in an empty folder; the summary of the last one, which alone is trained."""
    from kcd_jax.training.loop import Result

    monkeypatch.chdir(tmp_path)
    names, trained = {}, []
    kept = Result.__init__
    monkeypatch.setattr(Result, '__init__', lambda self, *args: (kept(self, *args), trained.append(self))[0])

    def execute(*words):
        for word in words:
            text = block(word) if word == words[-1] else block(word).rstrip().rpartition('\n')[0]
            exec(compile(text, f'docs/teachers.md, {word}', 'exec'), names)
        return trained[-1].summary

    return execute


def test_every_example_is_run():
    assert len(BLOCKS) == len({word for text in BLOCKS for word in re.findall(r"'runs/(\w+)'", text)}) == 7


def test_a_jax_function_is_the_same_as_its_numpy_twin(run):
    twin = run('function')['teacher']
    assert twin['kind'] == 'callable' and twin['accuracy'] > 0.4
    own = run('function', 'jax')
    assert own['teacher']['accuracy'] == pytest.approx(twin['accuracy'], abs=2 / 597)
    assert own['cost']['macs']['teacher_forward'] > 0


def test_pytorch(run, tmp_path):
    torch = pytest.importorskip('torch')
    state = {'1.weight': torch.from_numpy(weights().reshape(10, -1)), '1.bias': torch.zeros(10)}
    torch.save(state, tmp_path / 'digits.pt')
    check(run, 'torch')


def test_onnxruntime(run, tmp_path):
    pytest.importorskip('onnxruntime')
    onnx = pytest.importorskip('onnx')
    helper, kind = onnx.helper, onnx.TensorProto.FLOAT
    nodes = [
        helper.make_node('Flatten', ['images'], ['flat']),
        helper.make_node('Gemm', ['flat', 'weights'], ['logits'], transB=1),
    ]
    graph = helper.make_graph(
        nodes,
        'digits',
        [helper.make_tensor_value_info('images', kind, ['rows', 3, 16, 16])],
        [helper.make_tensor_value_info('logits', kind, ['rows', 10])],
        [onnx.numpy_helper.from_array(weights().reshape(10, -1), 'weights')],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid('', 17)], ir_version=8)
    onnx.save(model, tmp_path / 'digits.onnx')
    check(run, 'onnx')


def check(run, word):
    """The framework's model is the regression of the first example, in its own layout."""
    summary = run('function', word)
    images = digits().test.images / np.float32(255)
    right = np.einsum('nhwc,kchw->nk', images, weights()).argmax(1) == digits().test.labels
    assert summary['teacher']['accuracy'] == pytest.approx(np.mean(right), abs=2 / len(right)) and right.mean() > 0.4


def test_embeddings_alone(run):
    summary = run('function', 'embeddings')
    assert summary['teacher']['num_classes'] == 0 and summary['agreement'] is None
    assert -1 < summary['cosine'] < 1 and min(summary['accuracy'], summary['knn_accuracy']) > 0  # 30 steps


def test_stored_outputs_and_an_ensemble(run):
    stored = run('function', 'outputs')
    assert stored['teacher']['kind'] == 'outputs' and stored['teacher']['accuracy'] > 0.4
    assert stored['computed']['teacher_rows']['computed'] == 0
    both = run('ensemble')
    assert both['teacher']['kind'] == 'ensemble' and both['teacher']['accuracy'] > 0.4
