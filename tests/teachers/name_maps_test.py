"""Checkpoints under other people's names: tiny networks written as timm and Hugging Face name them, and read back."""

from __future__ import annotations

import re

import jax
import numpy as np
import pytest
from safetensors.numpy import save_file

from kcd_jax import networks
from kcd_jax.networks import convnext, resnet, vit
from kcd_jax.teachers import Teacher, name_maps, torch_weights

SHAPE = (8, 8, 3)
TINY = {
    'basic': (resnet, resnet.Architecture((1, 2, 1, 1), (4, 4, 6, 6, 8), imagenet=True, normalization='imagenet')),
    'bottleneck': (
        resnet,
        resnet.Architecture((2, 1), (4, 4, 6), bottleneck=True, imagenet=True, normalization='imagenet'),
    ),
    'transformer': (vit, vit.Architecture(4, width=12, depth=4)),
    'convnext': (convnext, convnext.Architecture(2, (1, 2), (4, 8))),
}


@pytest.fixture
def tiny(monkeypatch):
    """(name) -> (network, variables that are all different)."""

    def build(name):
        module, architecture = TINY[name]
        monkeypatch.setitem(module.NAMES, name, architecture)
        network = networks.get(name)(5)
        variables = network.init(jax.random.key(0), SHAPE)
        leaves, structure = jax.tree.flatten({part: variables[part] for part in ('params', 'batch_stats')})
        random = np.random.default_rng(0)
        drawn = [random.uniform(0.1, 1, leaf.shape).astype(np.float32) for leaf in leaves]
        return network, {**variables, **jax.tree.unflatten(structure, drawn)}

    return build


def hugging_face_resnet(tensors):
    found = {}
    for name, value in tensors.items():
        *_, leaf = name.split('.')
        if name.startswith(('conv1.', 'bn1.')):
            found[f'resnet.embedder.embedder.{"convolution" if name[0] == "c" else "normalization"}.{leaf}'] = value
        elif name.startswith('fc.'):
            found[f'classifier.1.{leaf}'] = value
        else:
            stage, block, part = re.match(r'layer(\d+)\.(\d+)\.(.*)\.\w+$', name).groups()
            place = f'resnet.encoder.stages.{int(stage) - 1}.layers.{block}'
            if part.startswith('downsample'):
                inner = f'shortcut.{"convolution" if part.endswith("0") else "normalization"}'
            else:
                inner = f'layer.{int(part[-1]) - 1}.{"convolution" if part[0] == "c" else "normalization"}'
            found[f'{place}.{inner}.{leaf}'] = value
    return found


def hugging_face_vit(tensors):
    words = {
        'norm1': 'layernorm_before',
        'norm2': 'layernorm_after',
        'attn.proj': 'attention.output.dense',
        'mlp.fc1': 'intermediate.dense',
        'mlp.fc2': 'output.dense',
    }
    outside = {
        'cls_token': 'vit.embeddings.cls_token',
        'pos_embed': 'vit.embeddings.position_embeddings',
        'patch_embed.proj': 'vit.embeddings.patch_embeddings.projection',
        'norm': 'vit.layernorm',
        'head': 'classifier',
    }
    found = {'vit.pooler.dense.weight': np.zeros((12, 12), np.float32)}
    for name, value in tensors.items():
        module, _, leaf = name.rpartition('.')
        if name in outside:
            found[outside[name]] = value
        elif module in outside:
            found[f'{outside[module]}.{leaf}'] = value
        else:
            _, number, part = module.split('.', 2)
            place = f'vit.encoder.layer.{number}'
            if part == 'attn.qkv':
                for word, piece in zip(('query', 'key', 'value'), np.split(value, 3), strict=True):
                    found[f'{place}.attention.attention.{word}.{leaf}'] = piece
            else:
                found[f'{place}.{words[part]}.{leaf}'] = value
    return found


def hugging_face_convnext(tensors):
    found = {}
    for name, value in tensors.items():
        name = name.replace('stem.0', 'embeddings.patch_embeddings').replace('stem.1', 'embeddings.layernorm')
        name = name.replace('head.fc', 'classifier').replace('head.norm', 'layernorm')
        if name.startswith('stages'):
            name = f'encoder.{name}'
            for ours, theirs in (
                ('downsample', 'downsampling_layer'),
                ('blocks', 'layers'),
                ('conv_dw', 'dwconv'),
                ('.norm.', '.layernorm.'),
                ('mlp.fc', 'pwconv'),
                ('gamma', 'layer_scale_parameter'),
            ):
                name = name.replace(ours, theirs)
            value = value[:, :, 0, 0] if 'pwconv' in name and value.ndim == 4 else value
        found[name if name.startswith('classifier') else f'convnext.{name}'] = value
    return found


OTHERS = {
    'basic': hugging_face_resnet,
    'bottleneck': hugging_face_resnet,
    'transformer': hugging_face_vit,
    'convnext': hugging_face_convnext,
}


@pytest.mark.parametrize('name', TINY)
@pytest.mark.parametrize('theirs', ['timm', 'hugging_face'])
def test_a_checkpoint_under_their_names_is_read(name, theirs, tiny, tmp_path):
    _, variables = tiny(name)
    tensors = torch_weights.to_torch(variables)
    if theirs == 'hugging_face':
        tensors = OTHERS[name](tensors)
        assert not {*tensors} & {*torch_weights.to_torch(variables)}
    # safetensors lists them by name: keys come before queries
    file = tmp_path / 'model.safetensors'
    save_file({key: np.ascontiguousarray(value) for key, value in sorted(tensors.items())}, file)
    teacher = Teacher.restore(file, name, image_shape=SHAPE, normalization='imagenet')
    assert teacher.card['num_classes'] == 5 and 'notes' not in teacher.card
    jax.tree.map(np.testing.assert_array_equal, teacher.variables, variables)


TIMM = {
    'deit_tiny_16': {
        'cls_token': (1, 1, 192),
        'pos_embed': (1, 197, 192),
        'patch_embed.proj.weight': (192, 3, 16, 16),
        'blocks.11.norm1.weight': (192,),
        'blocks.0.attn.qkv.weight': (576, 192),
        'blocks.0.attn.qkv.bias': (576,),
        'blocks.0.attn.proj.weight': (192, 192),
        'blocks.0.mlp.fc1.weight': (768, 192),
        'norm.bias': (192,),
        'head.weight': (1000, 192),
    },
    'convnext_atto': {
        'stem.0.weight': (40, 3, 4, 4),
        'stem.1.weight': (40,),
        'stages.1.downsample.0.weight': (40,),
        'stages.1.downsample.1.weight': (80, 40, 2, 2),
        'stages.2.blocks.5.gamma': (160,),
        'stages.2.blocks.5.conv_dw.weight': (160, 1, 7, 7),
        'stages.2.blocks.5.mlp.fc1.weight': (640, 160, 1, 1),
        'head.norm.weight': (320,),
        'head.fc.bias': (1000,),
    },
    'resnet50': {'layer1.0.downsample.0.weight': (256, 64, 1, 1), 'fc.weight': (1000, 2048)},
}


@pytest.mark.parametrize('name', TIMM)
def test_our_names_are_timms(name):
    network = networks.get(name)(1000)
    shapes = jax.eval_shape(lambda key: network.init(key, (224, 224, 3)), jax.random.key(0))
    hollow = jax.tree.map(lambda leaf: np.broadcast_to(np.float32(0), leaf.shape), shapes)
    found = torch_weights.to_torch(hollow)
    for key, shape in TIMM[name].items():
        assert found[key].shape == shape, key


def test_any_other_names_by_a_file(tiny, tmp_path):
    network, variables = tiny('transformer')
    del network
    tensors = {}
    for name, value in torch_weights.to_torch(variables).items():
        pieces = dict(zip('qkv', np.split(value, 3), strict=True)) if '.qkv.' in name else {'': value}
        for letter, piece in pieces.items():
            tensors[f'body.{name.replace("qkv", letter).replace("blocks.", "cell_")}'] = np.ascontiguousarray(piece)
    tensors['body.ema_steps'] = np.zeros((), np.float32)
    save_file(tensors, tmp_path / 'mine.safetensors')
    lines = """
        body.cell_*.attn.q.* + body.cell_*.attn.k.* + body.cell_*.attn.v.* -> blocks.{1}.attn.qkv.{2}  # joined
        body.ema_steps -> -
        body.cell_*.*.*.* -> blocks.{1}.{2}.{3}.{4}
        body.cell_*.*.* -> blocks.{1}.{2}.{3}
        body.**.* -> {1}{2}
    """
    (tmp_path / 'names.txt').write_text(lines)
    given = {'network': 'transformer', 'image_shape': SHAPE, 'normalization': 'imagenet'}
    with pytest.raises(ValueError, match=r'missing: blocks.0.attn.proj.bias \(nearest: .*cell_0.attn.proj.bias\), '):
        Teacher.restore(tmp_path / 'mine.safetensors', **given, num_classes=5)
    teacher = Teacher.restore(tmp_path / 'mine.safetensors', **given, names=tmp_path / 'names.txt')
    jax.tree.map(np.testing.assert_array_equal, teacher.variables, variables)
    teacher.save(tmp_path / 'ours.safetensors')
    with pytest.raises(ValueError, match='has the names of this package; a map of names is for the files of others'):
        Teacher.restore(tmp_path / 'ours.safetensors', names=tmp_path / 'names.txt')


def test_one_tensor_is_split_into_several():
    rules = name_maps.parse('attn.qkv.* -> q.{1} + k.{1} + v.{1}')
    found = name_maps.renamed({'attn.qkv.bias': np.arange(6), 'other': np.zeros(1)}, rules)
    assert {name: value.tolist() for name, value in found.items()} == {
        'q.bias': [0, 1],
        'k.bias': [2, 3],
        'v.bias': [4, 5],
        'other': [0.0],
    }


@pytest.mark.parametrize(
    ('text', 'line'),
    [
        ('\na.b c.d', r"line 2 of the map is 'a.b c.d'; use 'pattern -> name'"),
        ('a.* ->', r"line 1 of the map is 'a.\* ->'; use"),
        ('a.* -> b.{2}', r'line 1 of the map, .*, does not fit together: \{2\} is no star of it'),
        ('a.* + b -> c', r'does not fit together: use as many stars in each pattern, and one name'),
    ],
)
def test_a_line_that_is_none_is_refused(text, line, tmp_path):
    (tmp_path / 'names.txt').write_text(text)
    with pytest.raises(ValueError, match=rf'names.txt: {line}|names.txt: .*{line}'):
        name_maps.read(tmp_path / 'names.txt')


@pytest.mark.parametrize(
    ('text', 'line'),
    [
        ('a.q + a.k -> a.qk', r'a.q is there without a.k, with which the map joins it'),
        ('a.* -> b', r'the map gives two tensors the name b, the second is a.v'),
        ('a.q -> b + c', r'a.q \[3\] does not split into 2 parts'),
        ('a.* -> b.{1+1}', r"\{1\+1\} of the map adds to 'q', which is no number"),
    ],
)
def test_a_map_that_does_not_suit_the_file_is_refused(text, line):
    with pytest.raises(ValueError, match=line):
        name_maps.renamed({'a.q': np.zeros(3), 'a.v': np.zeros(3)}, name_maps.parse(text))


def test_the_tables_are_maps_of_their_own():
    assert all(len(name_maps.parse(text)) >= 7 for text in name_maps.TABLES.values())
    assert name_maps.usual(['conv1.weight', 'layer1.0.conv1.weight']) == ()


def test_the_command_takes_a_map(tmp_path, capsys):
    from kcd_jax.commands import teacher as command

    network = networks.get('resnet8x0_25')(10)
    variables = network.init(jax.random.key(0), (16, 16, 3))
    tensors = {f'trunk/{name}'.replace('.', '/'): value for name, value in torch_weights.to_torch(variables).items()}
    save_file(tensors, tmp_path / 'mine.safetensors')
    # Without dots a name is one word to a pattern.
    lines = [f'{name} -> {name.removeprefix("trunk/").replace("/", ".")}' for name in tensors]
    (tmp_path / 'names.txt').write_text('\n'.join(lines))
    flags = ['--network=resnet8x0_25', '--dataset=digits', '--normalization=cifar100', '--allow_weak']
    given = ['import', str(tmp_path / 'mine.safetensors'), f'--out={tmp_path}/ours.safetensors', *flags]
    assert command.main(given) == 2 and 'nearest: trunk/' in capsys.readouterr().err
    assert command.main([*given, f'--map={tmp_path}/names.txt']) == 0
    teacher = Teacher.restore(tmp_path / 'ours.safetensors')
    jax.tree.map(np.testing.assert_array_equal, teacher.variables['params'], variables['params'])
