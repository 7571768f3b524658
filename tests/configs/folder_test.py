"""configs/folder_kd.py on folders of pictures of several sizes, with and without labels and test images."""

from __future__ import annotations

import pathlib

import jax
import numpy as np
import pytest
from PIL import Image

from kcd_jax import networks
from kcd_jax.experiments import config as grammar
from kcd_jax.experiments import experiment
from kcd_jax.teachers import Teacher

CONFIG = str(pathlib.Path(__file__).parents[2] / 'configs' / 'folder_kd.py')
WORDS = 'quicktest,tiny_teacher-tiny,dataset=folder:16,batch=8,teacher.batch=8,augment.crop=2'


@pytest.fixture
def pictures(tmp_path, monkeypatch, tiny_networks):
    """pictures(places) -> a folder with 12 pictures in each of the places, and the current folder is an empty one."""
    monkeypatch.setenv('KCD_JAX_CACHE', str(tmp_path / 'cache'))
    (tmp_path / 'empty').mkdir()
    monkeypatch.chdir(tmp_path / 'empty')
    rng = np.random.default_rng(0)

    def write(*places: str) -> pathlib.Path:
        root = tmp_path / 'pictures'
        for place in places:
            (root / place).mkdir(parents=True, exist_ok=True)
            for number in range(12):
                pixels = rng.integers(0, 256, (*rng.integers(20, 40, 2), 3), np.uint8)
                Image.fromarray(pixels).save(root / place / f'{number}.{"png" if number % 2 else "jpg"}')
        return root

    return write


def config_of(root: pathlib.Path, words: str = '', **settings: str):
    config = grammar.load(f'{CONFIG}:{WORDS}{words}')
    return grammar.override(
        config, [('data.dir', str(root)), *((k.replace('__', '.'), v) for k, v in settings.items())]
    )


@pytest.mark.parametrize(
    ('places', 'points'), [(('train/a', 'train/b', 'test/a', 'test/b'), 24), (('a', 'b'), 22)], ids=['split', 'whole']
)
def test_a_folder_with_classes_trains_its_own_teacher(pictures, places, points):
    run = grammar.run_of(config_of(pictures(*places)))
    lines = '\n'.join(run.check(1))
    assert f'{points} training points, 2 classes' in lines and 'trained first' in lines
    assert ('held out' in lines) == (points == 22)
    assert run.data.image_shape == (16, 16, 3) and run.policy.name == 'kcd'


def test_a_folder_without_classes_needs_a_teacher_from_a_file(pictures, tmp_path):
    root = pictures('')
    with pytest.raises(ValueError, match='has no labels, so it cannot train a network on its own; give a teacher'):
        grammar.run_of(config_of(root))
    network = networks.get('tiny_teacher')(3)
    card = {'network': 'tiny_teacher', 'num_classes': 3, 'class_names': ['x', 'y', 'z'], 'image_shape': [16, 16, 3]}
    Teacher(network, network.init(jax.random.key(0), (16, 16, 3)), card).save(tmp_path / 'teacher.safetensors')
    given = {'teacher__checkpoint': str(tmp_path / 'teacher.safetensors')}
    made = experiment.of_config(config_of(root, ',compare=(student,kd,balanced,kcd)', **given))
    assert [cell.label for cell in made.cells] == ['kd', 'kcd']
    assert [line.partition(':')[0] for line in made.omitted] == ['student is left out', 'balanced is left out']
    run = made.cells[0].run
    assert run.data.class_names == ('x', 'y', 'z') and run.weights.gamma == 0
    assert 'gamma is 0' in '\n'.join(run.check(1))
    assert run.describe()['data']['digests'] == grammar.load_data(config_of(root)).digests
    with pytest.raises(ValueError, match='weights.gamma is 0.5, and folder:16 has no labels'):
        grammar.run_of(config_of(root, **given, weights__gamma='0.5')).validate()
    with pytest.raises(ValueError, match='no run is left: student is left out: method none reads the labels'):
        experiment.of_config(config_of(root, ',compare=(student,)', **given))
