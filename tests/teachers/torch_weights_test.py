"""PyTorch checkpoints in and out: against outputs of the public code, and against files that mean harm."""

from __future__ import annotations

import argparse
import collections
import io
import json
import os
import pathlib
import pickle
import zipfile

import jax
import numpy as np
import pytest

from kcd_jax import networks
from kcd_jax.teachers import torch_file, torch_weights

GOLDEN = pathlib.Path(__file__).parents[1] / 'golden' / 'torch'
NAMES = json.loads((GOLDEN / 'state_dict_names.json').read_text())
SHAPE = (32, 32, 3)
OURS = {'ResNet50': 'resnet50_cifar'}


def nhwc(x):
    return x.transpose(0, 2, 3, 1) if x.ndim == 4 else x


@pytest.fixture(scope='module')
def resnet8():
    return networks.get('resnet8')(100, normalization='none')


@pytest.fixture(scope='module')
def resnet8_bytes():
    return (GOLDEN / 'resnet8.pth').read_bytes()


@pytest.fixture(scope='module')
def tensors(resnet8_bytes):
    return torch_weights.state_dict(torch_file.decode(resnet8_bytes))


@pytest.mark.parametrize('name', ['resnet8', 'wrn_16_1'])  # the first in the format before 1.6, the second a zip
def test_outputs_are_those_of_the_public_code(name):
    network = networks.get(name)(100, normalization='none')
    variables = torch_weights.read(GOLDEN / f'{name}.pth', network, SHAPE)
    with np.load(GOLDEN / f'{name}_outputs.npz') as golden:
        outputs, _ = jax.jit(network.apply, static_argnums=2)(variables, nhwc(golden['x']), False)
        np.testing.assert_allclose(outputs.logits, golden['logits'], atol=1e-4)
        for number, feat in enumerate((*outputs.feats, outputs.embed)):
            np.testing.assert_allclose(feat, nhwc(golden[f'feat{number}']), atol=1e-4)
        for number, preact in enumerate(outputs.preacts, start=1):
            np.testing.assert_allclose(preact, nhwc(golden[f'preact{number}']), atol=1e-4)


@pytest.mark.parametrize('name', ['MobileNetV2', 'ShuffleV1', 'ShuffleV2'])
def test_first_stages_of_the_light_networks_are_those_of_the_public_code(name):
    """The weights up to an early tap, to keep the files small: every kind of unit comes before it."""
    network = networks.get(name.lower())(100, normalization='none')
    tensors = torch_weights.to_torch(network.init(jax.random.key(0), SHAPE))
    with np.load(GOLDEN / f'{name}_first_stage.npz') as golden:
        given = {key.removeprefix('weights/'): golden[key] for key in golden if key.startswith('weights/')}
        assert set(given) <= set(tensors)
        variables = torch_weights.from_torch({**tensors, **given}, network, SHAPE)
        taps = 3 if name == 'MobileNetV2' else 2

        def early(variables, image):  # nothing after the taps is compiled
            outputs, _ = network.apply(variables, image, False)
            return outputs.feats[:taps], outputs.preacts[: taps - 1]

        feats, preacts = jax.jit(early)(variables, nhwc(golden['x']))
        for number, feat in enumerate(feats):
            np.testing.assert_allclose(feat, nhwc(golden[f'feat{number}']), atol=1e-4)
        for number, preact in enumerate(preacts, start=1):
            np.testing.assert_allclose(preact, nhwc(golden[f'preact{number}']), atol=1e-4)


@pytest.mark.parametrize('name', NAMES)
def test_names_and_shapes_are_those_of_the_public_code(name):
    network = networks.get(OURS.get(name, name.lower()))(100)
    variables = jax.eval_shape(lambda key: network.init(key, SHAPE), jax.random.key(0))
    hollow = jax.tree.map(lambda leaf: np.broadcast_to(np.float32(0), leaf.shape), variables)
    found = {key: list(value.shape) for key, value in torch_weights.to_torch(hollow).items()}
    assert found == dict(NAMES[name])


@pytest.mark.parametrize('name', ['resnet8', 'wrn_16_1'])
def test_export_and_import_are_exact(name, tmp_path):
    network = networks.get(name)(100)
    variables = torch_weights.read(GOLDEN / f'{name}.pth', network, SHAPE)
    public = torch_weights.state_dict(torch_file.decode((GOLDEN / f'{name}.pth').read_bytes()))
    exported = torch_weights.to_torch(variables)
    assert set(exported) == set(public)
    for key in public:
        if not key.endswith('num_batches_tracked'):
            np.testing.assert_array_equal(exported[key], public[key])
    torch_weights.write(tmp_path / 'student.pth', variables)
    again = torch_weights.read(tmp_path / 'student.pth', network, SHAPE)
    jax.tree.map(np.testing.assert_array_equal, again, variables)
    torch_weights.write(tmp_path / 'again.pth', again)
    assert (tmp_path / 'again.pth').read_bytes() == (tmp_path / 'student.pth').read_bytes()


def test_option_a_checkpoints_with_module_prefixes():
    network = networks.get('resnet20_a')(10)
    variables = network.init(jax.random.key(0), SHAPE)
    public = {f'module.{key}': value for key, value in torch_weights.to_torch(variables).items()}
    assert {'module.layer1.0.conv1.weight', 'module.linear.weight'} <= set(public)
    back = torch_weights.from_torch(public, network, SHAPE)
    jax.tree.map(np.testing.assert_array_equal, back, variables)


def test_classifier_and_projection_by_any_of_their_names(tensors, resnet8):
    renamed = {key.replace('fc.', 'linear.').replace('downsample', 'shortcut'): value for key, value in tensors.items()}
    expected = torch_weights.from_torch(tensors, resnet8, SHAPE)
    jax.tree.map(np.testing.assert_array_equal, torch_weights.from_torch(renamed, resnet8, SHAPE), expected)
    with pytest.raises(ValueError, match=r'linear.bias and fc.bias are the same tensor'):
        torch_weights.from_torch({**tensors, 'linear.bias': tensors['fc.bias']}, resnet8, SHAPE)


@pytest.mark.parametrize('key', ['model', 'state_dict', 'net', 'student', 'state_dict_ema'])
def test_containers(tensors, key):
    found, notes = torch_weights.unwrap({'epoch': 3, key: tensors, 'optimizer': {'state': {}}})
    assert set(found) == set(tensors) and notes == ()
    nested, _ = torch_weights.unwrap({'state_dict': {key: {**tensors, 'epoch': 3}}})
    assert set(nested) == set(tensors)
    with pytest.raises(ValueError, match=r'no weights found: none of state_dict_ema, .* \(epoch\)'):
        torch_weights.state_dict({'epoch': 3})
    with pytest.raises(ValueError, match='holds a list'):
        torch_weights.state_dict([1])


def test_averaged_weights_are_preferred_and_named(tensors):
    other = {name: value + 1 for name, value in tensors.items()}
    found, notes = torch_weights.unwrap({'state_dict': other, 'state_dict_ema': tensors})
    np.testing.assert_array_equal(found['fc.bias'], tensors['fc.bias'])
    assert notes == ("read the averaged weights in 'state_dict_ema', not those in 'state_dict'",)


PREFIXES = [
    'module.',
    '_orig_mod.',
    'model.',
    'module.student.',
    'net.',
    'student.',
    '_orig_mod.module.model.',
    'body.',
]


@pytest.mark.parametrize('prefix', PREFIXES)
def test_prefixes(tensors, resnet8, prefix):
    expected = torch_weights.from_torch(tensors, resnet8, SHAPE)
    wrapped = {f'{prefix}{name}': value for name, value in tensors.items()}
    beside = {'n_averaged': np.zeros((), np.int64), 'criterion.weight': np.ones(100, np.float32)}
    back = torch_weights.from_torch({**wrapped, **beside}, resnet8, SHAPE)
    jax.tree.map(np.testing.assert_array_equal, back, expected)
    assert torch_weights.outside({**wrapped, **beside}, resnet8, SHAPE) == ['criterion.weight']
    assert torch_weights.count_classes(wrapped) == 100
    assert torch_weights.outside(tensors, resnet8, SHAPE) == []


def test_a_student_is_chosen_before_other_networks_of_the_file(tensors, resnet8):
    both = {
        f'{who}.{name}': value + (who == 'teacher') for name, value in tensors.items() for who in ('teacher', 'student')
    }
    expected = torch_weights.from_torch(tensors, resnet8, SHAPE)
    jax.tree.map(np.testing.assert_array_equal, torch_weights.from_torch(both, resnet8, SHAPE), expected)
    unclear = {name.replace('student', 'momentum_teacher'): value for name, value in both.items()}
    with pytest.raises(ValueError, match='several networks, under momentum_teacher., teacher.; save the one to use'):
        torch_weights.from_torch(unclear, resnet8, SHAPE)


# -------------------------------------------------------------------------------------------------------- refused files


def zipped(program: bytes, **values: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, 'w') as archive:
        archive.writestr('a/data.pkl', program)
        for key, value in values.items():
            archive.writestr(f'a/data/{key}', value)
    return file.getvalue()


def legacy(program: bytes) -> bytes:
    head = (0x1950A86A20F9469CFC6C, 1001, {'little_endian': True})
    return b''.join(pickle.dumps(part, 2) for part in head) + program + pickle.dumps([], 2)


class Harm:
    """Pickles as a call."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize('wrap', [zipped, legacy])
@pytest.mark.parametrize('protocol', [0, 2, 4])
@pytest.mark.parametrize(
    ('function', 'name'),
    [(os.system, f'{os.system.__module__}.system'), (eval, r'(__builtin__|builtins).eval'), (io.open, '_?io.open')],
)
def test_a_file_that_would_run_something_is_refused_and_runs_nothing(wrap, protocol, function, name, tmp_path):
    victim = tmp_path / 'created'
    argument = {os.system: f'touch {victim}', eval: f'open({str(victim)!r}, "w")', io.open: str(victim)}[function]
    arguments = (argument, 'w') if function is io.open else (argument,)
    path = tmp_path / 'teacher.pth'
    path.write_bytes(wrap(pickle.dumps({'model': Harm(function, *arguments)}, protocol)))
    with pytest.raises(ValueError, match=f'teacher.pth: it asks for {name}, which .* refused, nothing was run'):
        torch_weights.read(path, networks.get('resnet8')(100), SHAPE)
    assert not victim.exists()


def test_indirect_names_are_refused():
    for program in (
        b'cbuiltins\ngetattr\n.',
        b'ctorch._utils\n_rebuild_tensor_v2.__globals__\n.',
        b'\x80\x04\x8c\x05torch\x8c\x04load\x93.',
    ):
        with pytest.raises(ValueError, match='it asks for'):
            torch_file.decode(zipped(program))


def test_what_lies_beside_the_weights_is_inert(tensors):
    beside = {
        'opt': argparse.Namespace(lr=0.05, path='x'),
        'schedule': collections.Counter([150, 180]),
        'best': np.float64(0.7),
        'state': collections.defaultdict(dict, a={}),
    }
    content = torch_file.decode(zipped(pickle.dumps({'epoch': 3, **beside}, 2)))
    assert content['epoch'] == 3 and set(content) == {'epoch', *beside}
    assert not any(vars(content[name]) for name in beside)


def tensor_program(shape: tuple, strides: tuple, elements: int) -> bytes:
    """The pickle of one float tensor in the storage '0'."""
    integers = [b''.join(pickle.dumps(n, 2)[2:-1] for n in numbers) for numbers in (shape, strides)]
    return b''.join(
        [
            b'\x80\x02ctorch._utils\n_rebuild_tensor_v2\n((',
            b'X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpu',
            pickle.dumps(elements, 2)[2:-1] + b'tQK\x00',
            b'(' + integers[0] + b't(' + integers[1] + b't',
            b'\x89NtR.',
        ]
    )


def test_tensors_keep_to_their_storage():
    values = np.arange(6, dtype=np.float32)
    transposed = torch_file.decode(zipped(tensor_program((3, 2), (1, 3), 6), **{'0': values.tobytes()}))
    np.testing.assert_array_equal(transposed, values.reshape(2, 3).T)
    for shape, strides in [((7,), (1,)), ((2, 2), (4, 3)), ((1000, 1000), (0, 0)), ((-1,), (1,)), ((2,), (1, 1))]:
        with pytest.raises(ValueError, match='lies outside|is not understood'):
            torch_file.decode(zipped(tensor_program(shape, strides, 6), **{'0': values.tobytes()}))
    with pytest.raises(ValueError, match='the values of a tensor are missing'):
        torch_file.decode(zipped(tensor_program((6,), (1,), 6), **{'0': values.tobytes()[:-4]}))


@pytest.mark.parametrize('name', ['resnet8', 'wrn_16_1'])
@pytest.mark.parametrize('share', [0.0, 0.01, 0.3, 0.99])
def test_a_truncated_file_is_one_clear_line(name, share, tmp_path):
    data = (GOLDEN / f'{name}.pth').read_bytes()
    path = tmp_path / 'cut.pth'
    path.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(ValueError, match=r'cut\.pth: .*(truncated|damaged|not a PyTorch)') as error:
        torch_weights.read(path, networks.get(name)(100), SHAPE)
    assert '\n' not in str(error.value)


def test_a_damaged_zip_is_noticed(tmp_path):
    data = bytearray((GOLDEN / 'wrn_16_1.pth').read_bytes())
    data[len(data) // 2] ^= 1
    with pytest.raises(ValueError, match='truncated or not'):
        torch_file.decode(bytes(data))


def test_other_files_are_refused(tmp_path, resnet8):
    with pytest.raises(ValueError, match='absent.pth cannot be read: No such file'):
        torch_weights.read(tmp_path / 'absent.pth', resnet8, SHAPE)
    for data, message in [
        (b'PK\x05\x06' + bytes(18), 'without the data.pkl'),
        (pickle.dumps({'a': 1}, 2), 'not a PyTorch checkpoint'),
        (b'hello', 'not a PyTorch checkpoint'),
    ]:
        with pytest.raises(ValueError, match=message):
            torch_file.decode(data)


def test_the_weights_of_another_network_are_listed_by_name(tensors, resnet8_bytes, tmp_path):
    with pytest.raises(ValueError) as error:
        torch_weights.from_torch(tensors, networks.get('resnet14')(100), SHAPE)
    assert 'these are not the weights of resnet14: ' in str(error.value)
    assert '30 missing: layer1.1.bn1.bias, ' in str(error.value) and 'and 22 more' in str(error.value)
    with pytest.raises(ValueError) as error:
        torch_weights.from_torch(tensors, networks.get('resnet8')(10), SHAPE)
    expected = '2 of another shape: fc.bias (100,) instead of (10,), fc.weight (100, 64) instead of (10, 64)'
    assert expected in str(error.value)
    with pytest.raises(
        ValueError, match=r'1 missing: conv1.weight \(nearest: conv0.weight\); 1 left over: conv0.weight'
    ):
        renamed = {key.replace('conv1', 'conv0') if key == 'conv1.weight' else key: v for key, v in tensors.items()}
        torch_weights.from_torch(renamed, networks.get('resnet8')(100), SHAPE)


@pytest.mark.parametrize(
    ('name', 'value', 'message'), [('fc.bias', np.nan, 'NaN'), ('bn1.running_var', -1, 'negative')]
)
def test_useless_values_are_refused(tensors, resnet8, name, value, message):
    broken = {**tensors, name: np.full_like(tensors[name], value)}
    with pytest.raises(ValueError, match=f'{name} holds .*{message}'):
        torch_weights.from_torch(broken, resnet8, SHAPE)
