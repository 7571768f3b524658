"""Exports: every format gives the student's own logits on 100 images, and a file that does not is not written."""

from __future__ import annotations

import dataclasses
import json
import pathlib

import flax.linen as nn
import jax
import numpy as np
import pytest

import kcd_jax
from kcd_jax import export as exports
from kcd_jax import networks
from kcd_jax.export import formats, writing
from kcd_jax.teachers.model import Model
from tests.export import families
from tests.export.families import CLASSES, SHAPE, images

pytestmark = pytest.mark.fast_compile

CARD = {
    'dataset': 'known',
    'accuracy': 0.75,
    'teacher': {'network': 'resnet14', 'accuracy': 0.875},
    'cost': {'macs': 123_000_000, 'relative_macs': 0.6},
    'command': 'python -m kcd_jax train --config=mine.py',
}


@pytest.fixture(scope='module')
def model():
    made = families.model_of('resnet8x0_25')
    return dataclasses.replace(made, card={**made.card, **CARD})


@pytest.mark.parametrize('name', sorted(exports.FORMATS))
def test_a_file_gives_the_students_logits(name, model, tmp_path):
    for package in families.PACKAGES.get(name, ()):
        pytest.importorskip(package)
    known = exports.Images(images(2, 120), model(images(2, 120)).argmax(-1), 'made by a test')
    assert np.ptp(known.images, axis=0).min() > 100 and np.ptp(model(known.images), axis=0).min() > 1e-2
    found = exports.export(model, name, tmp_path / 'student', known, 'kcd_jax export it')
    assert found.path == tmp_path / f'student{exports.FORMATS[name].suffix}' and found.compared == 100
    assert found.difference <= 1e-4 and found.agreement == 1.0 and found.accuracy == (1.0, 1.0)
    assert sorted(found.latency) == [1, 32] and all(min(pair) > 0 for pair in found.latency.values())
    read = exports.FORMATS[name].read(found.path.read_bytes(), model)
    for count in (1, 3, 100):
        got = read(images()[:count])
        assert got.shape == (count, CLASSES) and got.dtype == np.float32
        np.testing.assert_allclose(got, model(images()[:count]), atol=1e-4)
    card = (tmp_path / f'{found.path.name}.md').read_text()
    for words in (
        'resnet8x0_25, 5,129 parameters',
        '5 (a, b, c, d, e)',
        '75.00 % on the test images',
        '**teacher**: resnet14, 87.50 %',
        '1.23e+08 multiply-accumulates, 60 % of training on all points',
        '`python -m kcd_jax train --config=mine.py`',
        '`kcd_jax export it`',
        '- **license**:\n',
        f'student{found.path.suffix}',
    ):
        assert words in card
    compile(card.partition('```python')[2].partition('```')[0], 'usage', 'exec')


def test_the_usage_of_each_card_runs(model, tmp_path, monkeypatch):
    """The lines of the cards, as a user would copy them."""
    pytest.importorskip('onnxruntime')
    monkeypatch.chdir(tmp_path)
    for name in ('safetensors', 'stablehlo', 'onnx'):
        exports.export(model, name, 'student')
        card = pathlib.Path(f'student{exports.FORMATS[name].suffix}.md').read_text()
        scope = {'images': images()}
        exec(card.partition('```python')[2].partition('```')[0], scope)
        if name == 'safetensors':
            assert scope['names'] == kcd_jax.load('student.safetensors').predict(images())[0]
        else:
            np.testing.assert_allclose(scope['logits'], model(images()), atol=1e-4)


def test_int8_agrees_and_is_small(model, tmp_path):
    pytest.importorskip('jax2onnx')
    known = exports.Images(images(2), model(images(2)).argmax(-1), 'made by a test')
    plain = exports.export(model, 'onnx', tmp_path / 'student.onnx', known)
    found = exports.quantize(model, plain, images(3, 64), known)
    assert found.path.name == 'student.int8.onnx' and found.format == 'onnx, int8'
    assert 1e-4 < found.difference < 0.5 and found.agreement > 0.9 and found.accuracy[1] == found.agreement
    onnx = pytest.importorskip('onnx')
    kernels = [entry for entry in onnx.load(found.path).graph.initializer if entry.data_type == onnx.TensorProto.INT8]
    assert sum(len(entry.dims) == 4 for entry in kernels) >= 9  # of every convolution
    assert 'the file in onnxruntime' in (tmp_path / 'student.int8.onnx.md').read_text()


def test_a_file_that_disagrees_is_not_written(model, tmp_path, monkeypatch):
    off = dataclasses.replace(exports.FORMATS['stablehlo'], read=lambda *given: lambda x: model(x) + np.float32(2e-4))
    monkeypatch.setitem(writing.FORMATS, 'stablehlo', off)
    with pytest.raises(
        ValueError, match='file is not written: its logits differ by 2.0e-04 from those of resnet8x0_25'
    ):
        exports.export(model, 'stablehlo', tmp_path / 'student')
    nothing = dataclasses.replace(off, read=lambda *given: lambda x: model(x) * np.float32(np.nan))
    monkeypatch.setitem(writing.FORMATS, 'stablehlo', nothing)
    with pytest.raises(ValueError, match='differ by nan'):
        exports.export(model, 'stablehlo', tmp_path / 'student')
    assert not list(tmp_path.iterdir())


def test_what_cannot_be_written_is_one_line(model, tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="unknown format 'onxn'; use safetensors, torch, stablehlo, onnx, tflite"):
        exports.export(model, 'onxn', tmp_path / 'x')
    with pytest.raises(ValueError, match='is a folder; name a file in it'):
        exports.export(model, 'torch', tmp_path)
    other = dataclasses.replace(model, card={**model.card, 'network': 'mine'})
    with pytest.raises(ValueError, match='mine is no network of kcd_jax, so no PyTorch code has its names; use onnx'):
        formats.FORMATS['torch'].write(other)
    monkeypatch.setattr(formats.importlib, 'import_module', lambda name: (_ for _ in ()).throw(ImportError(name)))
    with pytest.raises(
        ValueError, match=r"format onnx needs more packages \(jax2onnx\): pip install 'kcd_jax\[export\]'"
    ):
        exports.export(model, 'onnx', tmp_path / 'x')
    with pytest.raises(ValueError, match='pip install --no-deps litert-converter'):
        exports.export(model, 'tflite', tmp_path / 'x')


def test_a_network_from_elsewhere(tmp_path):
    """A linen module without batch statistics; only a state dict has no names for it."""
    module = nn.Sequential([nn.Conv(4, (3, 3), 2), nn.relu, lambda x: x.mean((1, 2)), nn.Dense(CLASSES)])
    network = networks.from_linen(module, classes=CLASSES, name='mine')
    card = {'network': 'mine', 'num_classes': CLASSES, 'image_shape': list(SHAPE)}
    mine = Model(network, network.init(jax.random.key(0), SHAPE), card)
    for name in ('safetensors', 'stablehlo'):
        assert exports.export(mine, name, tmp_path / 'mine').difference <= 1e-4
    assert '- **classes**: 5 (0, 1, 2, 3, 4)' in (tmp_path / 'mine.stablehlo.md').read_text()


def test_the_program_has_plain_convolutions(model):
    """A depthwise convolution is one operation, and nothing is bound to the CPU."""
    network = networks.get('mobilenetv2')(CLASSES)
    untrained = Model(network, network.init(jax.random.key(0), SHAPE), {'image_shape': SHAPE})
    module = formats.lowered(untrained, ('cpu',)).mlir_module()
    assert module.count('stablehlo.convolution') == 53 and 'stablehlo.dynamic_gather' not in module
    assert 'inlineable' not in module and 'tensor<?x16x16x3xui8>' in module


@pytest.mark.slow
@pytest.mark.parametrize('name', families.QUICK)
def test_families_convert(name, tmp_path, monkeypatch):
    monkeypatch.setattr(writing, 'LATENCY_BATCHES', (1,))
    found = families.convert(name, tmp_path)
    if name == 'vit_mini_4' and 'tflite' in found:  # its attention over a batch of any size
        assert 'LiteRT has no form of an operation of vit_mini_4' in found.pop('tflite')
    assert 'stablehlo' in found and max(found.values()) <= 1e-4


def test_the_stored_result_has_every_family():
    """Written by `python -m tests.export.families`, which takes minutes."""
    stored = json.loads((families.ROOT / 'results' / 'export_families.json').read_text())['families']
    assert sorted(stored) == sorted(families.FAMILIES)
    for name, found in stored.items():
        assert {'onnx', 'stablehlo'} <= found.keys(), name
        wrong = {format: value for format, value in found.items() if not isinstance(value, float) or value > 1e-4}
        assert list(wrong) in ([], ['tflite']), name
