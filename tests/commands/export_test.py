"""`python -m kcd_jax export`: from a run's folder to a file, and one line for a mistake."""

from __future__ import annotations

import jax
import numpy as np
import pytest
from PIL import Image

from kcd_jax import data, networks
from kcd_jax.__main__ import main
from kcd_jax.commands import export as command
from kcd_jax.commands import launch
from kcd_jax.export import FORMATS
from kcd_jax.teachers import weights_file

pytestmark = pytest.mark.fast_compile


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    """An untrained student of the digits, in the folder of a run."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(launch, 'prepare_jax', lambda devices: None)
    digits = data.load('digits')
    network = networks.get('resnet8x0_25')(10, normalization=tuple(digits.normalization))
    card = {'network': network.name, 'num_classes': 10, 'image_shape': digits.image_shape, 'dataset': 'digits'}
    weights_file.save(tmp_path / 'run' / weights_file.FILE, network.init(jax.random.key(0), digits.image_shape), card)
    return tmp_path


def test_a_run_becomes_a_program(here, capsys):
    assert main(['export', 'run', '--format=stablehlo', '--out=out/student']) == 0
    said = capsys.readouterr().out
    assert 'out/student.stablehlo: stablehlo, ' in said and '100 images (test images of digits)' in said
    accuracies = said.partition('accuracy: ')[2].split(' %')
    assert accuracies[0] == accuracies[1].split(', ')[1]
    assert 'latency of 32 images' in said
    card = (here / 'out' / 'student.stablehlo.md').read_text()
    assert '`kcd_jax export run --format=stablehlo --out=out/student`' in card


def test_int8_is_compared_and_calibrated_on_pictures(here, capsys):
    pytest.importorskip('jax2onnx')
    (here / 'photos').mkdir()
    for number, image in enumerate(np.asarray(data.load('digits').train.images[:40])):
        Image.fromarray(image).save(here / 'photos' / f'{number}.png')
    assert main(['export', 'run', '--format=onnx', '--int8', '--images=photos', '--out=student.onnx']) == 0
    said = capsys.readouterr().out
    assert 'student.int8.onnx: onnx, int8' in said and said.count('on 40 images (pictures of photos)') == 2
    assert 'accuracy' not in said  # pictures have no labels


@pytest.mark.parametrize(
    ('words', 'message'),
    [
        (['run', '--format=onxn', '--out=x'], "invalid choice: 'onxn'"),
        (['run', '--format=torch', '--int8', '--out=x'], '--int8 is a form of --format=onnx'),
        (['nothing', '--format=torch', '--out=x'], 'there is no teacher at nothing'),
        (['run', '--format=torch', '--out=run'], '--out=run is a folder; name a file in it'),
        (['run', '--format=torch', '--out=x.onnx'], 'has the suffix of format onnx, and --format is torch'),
        (['.', '--format=torch', '--out=x'], '. has no student.safetensors; name one of the runs in it: run'),
        (['empty', '--format=torch', '--out=x'], 'empty has no student.safetensors: no run has finished there'),
        (['run', '--format=safetensors', '--out=run/student'], 'is the file that is exported; name another one'),
        (['run', '--format=torch', '--out=x', '--images=run'], '--images=run has no pictures'),
        (['run', '--format=torch', '--out=x', '--dataset=mnist', '--data_dir=none'], 'mnist'),
    ],
)
def test_a_mistake_is_one_line(here, capsys, words, message):
    (here / 'empty').mkdir()
    assert main(['export', *words]) == 2
    error = capsys.readouterr().err.strip()
    assert error.startswith('error: ') and message in error and '\n' not in error
    assert not (here / 'x.pt').exists()


def test_the_flag_knows_every_format():
    assert set(command.FORMATS) == set(FORMATS)
