"""Files of weights are recognised by their content: ours, PyTorch's and foreign safetensors, under any name."""

from __future__ import annotations

import gzip
import json
import pathlib

import jax
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from kcd_jax import networks
from kcd_jax.teachers import Teacher, torch_file, torch_weights, weights_file

GOLDEN = pathlib.Path(__file__).parents[1] / 'golden' / 'torch'
SHAPE = (32, 32, 3)


@pytest.fixture(scope='module')
def variables():
    network = networks.get('resnet8')(100)
    return torch_weights.read(GOLDEN / 'resnet8.pth', network, SHAPE)


@pytest.mark.parametrize('suffix', ['', '.th', '.bin', '.ckpt', '.pt', '.tar', '.safetensors'])
@pytest.mark.parametrize('kind', ['legacy', 'zip', 'safetensors', 'ours'])
def test_any_suffix(tmp_path, variables, kind, suffix):
    path = tmp_path / f'teacher{suffix}'
    if kind == 'ours':
        weights_file.save(path, variables, {'network': 'resnet8', 'num_classes': 100, 'image_shape': SHAPE})
    elif kind == 'safetensors':  # as timm and Hugging Face write them
        save_file(torch_weights.to_torch(variables), path, {'format': 'pt'})
    else:
        data = (GOLDEN / 'resnet8.pth').read_bytes()
        path.write_bytes(data if kind == 'legacy' else torch_file.encode(torch_weights.to_torch(variables)))
    restored = Teacher.restore(path, 'resnet8', image_shape=SHAPE)
    jax.tree.map(np.testing.assert_array_equal, restored.variables, variables)
    assert restored.card['num_classes'] == 100


def test_half_precision_safetensors(tmp_path, variables):
    header, values = {}, b''
    for name, value in torch_weights.to_torch(variables).items():
        part = value.astype(ml_dtypes.bfloat16).tobytes()
        place = [len(values), len(values) + len(part)]
        header[name] = {'dtype': 'BF16', 'shape': value.shape, 'data_offsets': place}
        values += part
    text = json.dumps(header).encode()
    (tmp_path / 'half').write_bytes(len(text).to_bytes(8, 'little') + text + values)
    restored = Teacher.restore(tmp_path / 'half', 'resnet8', image_shape=SHAPE)
    kernel = np.asarray(variables['params']['conv1']['kernel'])
    np.testing.assert_array_equal(restored.variables['params']['conv1']['kernel'], kernel.astype(ml_dtypes.bfloat16))


def test_the_card_of_an_export(tmp_path, variables):
    card = {'network': 'resnet8', 'class_names': ['a', 'é'], 'accuracy': 0.25, 'epochs': 240, 'policy': None}
    weights_file.export(tmp_path / 'a.pth', variables, card)
    weights_file.export(tmp_path / 'b.safetensors', variables, card)
    for path in tmp_path.iterdir():
        found = weights_file.read(path)
        assert (
            found.is_torch and {**found.card, **card} == found.card and found.card['normalization']['mean'][0] == 0.5071
        )
        assert set(found.tensors) == set(torch_weights.to_torch(variables))
    # A file in which others keep it as an entry next to the weights.
    state = torch_file.decode((tmp_path / 'a.pth').read_bytes())
    assert state.metadata['kcd_jax']['accuracy'] == 0.25 and set(state) == set(found.tensors)


@pytest.mark.parametrize(
    ('content', 'message'),
    [
        (b'', 'not a PyTorch checkpoint'),
        (b'\x89HDF\r\n\x1a\n' + bytes(99), 'an HDF5 file'),
        (gzip.compress(b'weights', mtime=0), 'compressed by gzip; decompress it first'),
        (b'<!DOCTYPE html>', 'a web page'),
        (b'version https://git-lfs.github.com/spec/v1\n', 'a Git LFS pointer'),
        (b'\x02\0\0\0\0\0\0\0{}', 'it holds no tensors'),
        (b'\xff\0\0\0\0\0\0\0{"a"', 'a damaged safetensors file'),
        ((10).to_bytes(8, 'little') + b'{"a": [1]}', 'a damaged safetensors file'),
    ],
)
def test_other_files_are_named(tmp_path, content, message):
    (tmp_path / 'teacher').write_bytes(content)
    with pytest.raises(ValueError, match=rf'teacher cannot be read as a teacher \(.*{message}') as error:
        Teacher.restore(tmp_path / 'teacher', 'resnet8', image_shape=SHAPE)
    assert '\n' not in str(error.value)


def test_a_foreign_network_is_listed_with_the_nearest_names(tmp_path, variables):
    tensors = torch_weights.to_torch(variables)
    tensors['embedder.weight'] = tensors.pop('conv1.weight')
    tensors['layer1.0.convolution1.weight'] = tensors.pop('layer1.0.conv1.weight')
    save_file(tensors, tmp_path / 'model.safetensors', {'format': 'pt'})
    with pytest.raises(ValueError) as error:
        Teacher.restore(tmp_path / 'model.safetensors', 'resnet8', image_shape=SHAPE)
    said = str(error.value)
    assert 'layer1.0.conv1.weight (nearest: layer1.0.convolution1.weight)' in said and '\n' not in said
    assert '2 left over: embedder.weight, layer1.0.convolution1.weight' in said
