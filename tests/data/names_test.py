"""Data sets found by the names of their files: the package's own, a user's, the template; shapes without files."""

from __future__ import annotations

import pathlib
import shutil
import subprocess
import sys

import numpy as np
import pytest

from kcd_jax import data
from kcd_jax.data import _template

ROOT = pathlib.Path(data.__file__).parent


@pytest.fixture
def plugins(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> pathlib.Path:
    """A folder of a user's own data sets."""
    monkeypatch.setattr(data, '__path__', [*data.__path__, str(tmp_path)])
    yield tmp_path
    for name in [name for name in sys.modules if name.startswith('kcd_jax.data.') and name.endswith('_of_a_user')]:
        del sys.modules[name]


def test_the_listing_shows_only_data_sets():
    files = {path.stem for path in ROOT.glob('*.py') if not path.stem.startswith('_')}
    assert set(data.names()) == files
    for name in files:
        module = __import__(f'kcd_jax.data.{name}', fromlist=['load'])
        assert hasattr(module, 'load') or hasattr(module, 'SHAPES')


def test_the_template_is_a_data_set(plugins: pathlib.Path):
    shutil.copy(_template.__file__, plugins / 'colours_of_a_user.py')
    assert 'colours_of_a_user' in data.names()
    loaded = data.load('colours_of_a_user', num_points=60, validation=0.1)
    assert loaded.name == 'colours_of_a_user' and loaded.class_names == ('red', 'green', 'blue')
    assert data.check('colours_of_a_user').startswith('colours_of_a_user: 90 train, 30 test, 3 classes, 16x16')
    for point in range(60):
        assert loaded.train.images[point].mean(axis=(0, 1)).argmax() == loaded.train.labels[point]
    assert not data.needs_tensorflow('colours_of_a_user') and data.prepare('colours_of_a_user') == ''


def test_a_set_of_tfds_needs_only_its_shapes(plugins: pathlib.Path, tmp_path: pathlib.Path):
    from tests.data import tiny_tfds

    (plugins / 'toy_of_a_user.py').write_text(
        'from kcd_jax.data import Normalization, Shapes\n'
        'SHAPES = Shapes(12, 4, 3, (8, 8, 3), Normalization((0.5,) * 3, (0.2,) * 3))\n'
    )
    tiny_tfds.write(tmp_path / 'files', name='toy_of_a_user')
    loaded = data.load('toy_of_a_user', tmp_path / 'files', cache=tmp_path / 'cache')
    assert len(loaded.train) == 12 and loaded.normalization.mean == (0.5, 0.5, 0.5)
    assert data.shapes_of('toy_of_a_user').train.images.shape == loaded.train.images.shape
    assert data.load('toy_of_a_user:16', tmp_path / 'files', cache=tmp_path / 'cache').image_shape == (16, 16, 3)


def test_an_environment_variable_lists_folders(tmp_path: pathlib.Path):
    (tmp_path / 'data').mkdir()
    shutil.copy(_template.__file__, tmp_path / 'data' / 'colours.py')
    program = "from kcd_jax import data; print(data.check('colours'))"
    environment = {'KCD_JAX_PLUGINS': str(tmp_path), 'PATH': '', 'PYTHONPATH': str(ROOT.parents[1])}
    done = subprocess.run([sys.executable, '-c', program], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.startswith('colours: 90 train')


@pytest.mark.parametrize(
    ('source', 'words'),
    [
        ('def load(request): return 3', 'load returned a int'),
        ('x = 3', 'has no function load'),
        ('import nothing_like_it', 'cannot be loaded from'),
    ],
)
def test_a_broken_file_raises_one_line(plugins: pathlib.Path, source: str, words: str):
    (plugins / 'bad_of_a_user.py').write_text(source)
    with pytest.raises(ValueError) as error:
        data.load('bad_of_a_user')
    assert words in str(error.value) and '\n' not in str(error.value)
    assert data.load('digits').num_classes == 10  # and it stops nothing else


def test_options_are_passed_to_the_module(plugins: pathlib.Path):
    source = (
        pathlib.Path(_template.__file__)
        .read_text()
        .replace('    random =', '    assert (request.option, request.dir) == ("a:b", "d")\n    random =')
    )
    (plugins / 'any_of_a_user.py').write_text(f"{source}\nOPTIONS = 'ANYTHING'\n")
    assert data.load('any_of_a_user:a:b', 'd').source == {
        'name': 'any_of_a_user:a:b', 'dir': str(pathlib.Path('d').absolute()), 'stream': None,
        'validation': 0.0, 'seed': 0, 'num_points': 0,
    }  # fmt: skip
    with pytest.raises(ValueError, match='nothing may follow'):
        data.load('tiny_imagenet:3')


SHAPES = {
    'digits': (1200, 597, 10, (16, 16, 3)),
    'digits:noisy': (1200, 5970, 10, (16, 16, 3)),
    'cifar10': (50_000, 10_000, 10, (32, 32, 3)),
    'cifar100': (50_000, 10_000, 100, (32, 32, 3)),
    'tcifar100:blur=2': (50_000, 10_000, 100, (32, 32, 3)),
    'mnist': (60_000, 10_000, 10, (28, 28, 3)),
    'tiny_imagenet': (100_000, 10_000, 200, (64, 64, 3)),
    'imagenet2012': (1_281_167, 50_000, 1000, (224, 224, 3)),
    'imagenet2012:64': (1_281_167, 50_000, 1000, (64, 64, 3)),
}


@pytest.mark.parametrize('name', SHAPES)
def test_shapes_without_files(name: str):
    train, test, classes, shape = SHAPES[name]
    whole = data.shapes_of(name)
    assert (len(whole.train), len(whole.test), whole.num_classes, whole.image_shape) == (train, test, classes, shape)
    assert whole.train.images.shape == (train, *shape) and whole.shape_only and len(whole.class_names) == classes
    part = data.shapes_of(name, validation=0.1, num_points=500)
    assert (len(part.train), len(part.validation)) == (500, round(0.1 * train))
    assert part.train.images.shape == (500, *shape) and part.source['num_points'] == 500
    assert part.identity != whole.identity and part.train.labels.max() < classes


def test_shapes_are_those_of_the_files():
    loaded, shapes = (make('digits', validation=0.2, num_points=300) for make in (data.load, data.shapes_of))
    for split in ('train', 'validation', 'test'):
        assert getattr(loaded, split).images.shape == getattr(shapes, split).images.shape
    assert (loaded.num_classes, loaded.image_shape) == (shapes.num_classes, shapes.image_shape)
    for name in ('folder:64', 'python:a:b', 'imagenet_resized/32x32'):
        with pytest.raises(ValueError, match='only from its files'):
            data.shapes_of(name)


def test_a_folder_by_its_path(tmp_path: pathlib.Path):
    from tests.data import photographs

    photographs.folder(tmp_path / 'images', train=4, test=2, classes=2, size=(20, 16))
    for size, shape in ((None, (16, 20, 3)), (8, (8, 8, 3))):
        loaded = data.from_folder(tmp_path / 'images', size, cache=tmp_path / 'cache')
        assert loaded.image_shape == shape
        again = data.load(loaded.source['name'], loaded.source['dir'], cache=tmp_path / 'cache')
        assert again.identity == loaded.identity
        np.testing.assert_array_equal(again.train.images, loaded.train.images)
