"""A folder of images through the command line: bad files are named before anything is trained, a lost one in a line."""

from __future__ import annotations

import json
import os
import pathlib
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image

from tests.data import photographs
from tests.faults.harness import differences, records

pytestmark = pytest.mark.fast_compile

ROOT = pathlib.Path(__file__).parents[2]
GOOD, BAD = 240 + 4, ('z_cut.jpg (image file is truncated', 'z_empty.jpg (empty)', 'z_text.jpg (cannot identify')
WORDS = (
    'tiny_teacher-tiny,dataset=folder:32,stream=true,method=kd,policy=kcd,num_points=0,stages=3,epochs=12,batch=16,'
    'teacher.epochs=3,teacher.batch=16,teacher.num_points=0,checkpoint.seconds=0.1,eval_every=4'
)


@pytest.fixture(scope='module')
def images(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """Good pictures of several sizes and kinds, and four that are none."""
    root = photographs.folder(
        tmp_path_factory.mktemp('folder') / 'images', train=240, test=60, classes=3, size=(48, 40), detail=12
    )
    pixels, place = np.random.default_rng(0).integers(0, 256, (50, 70, 3), np.uint8), root / 'train' / 'class_0001'
    Image.fromarray(pixels).convert('L').save(place / 'grey.jpg')
    Image.fromarray(pixels[:, :33]).convert('CMYK').save(place / 'cmyk.jpg')
    Image.fromarray(pixels[:32]).convert('RGBA').save(place / 'rgba.png')
    Image.fromarray(pixels.repeat(4, axis=0)).save(place / 'tall.jpg')
    whole = (place / 'tall.jpg').read_bytes()
    (place / 'z_cut.jpg').write_bytes(whole[: len(whole) // 2])
    (place / 'z_empty.jpg').touch()
    (place / 'z_text.jpg').write_text('not a picture')
    (root / 'test' / 'class_0002' / 'z_text.jpg').write_text('neither')
    return root


def command(images: pathlib.Path, *flags: str) -> list[str]:
    config = f'--config=configs/digits_kd.py:{WORDS},data.dir={images}'
    return [sys.executable, '-m', 'tests.tiny.program', config, '--devices=1', *flags]


def run(images: pathlib.Path, *flags: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(images, *flags), cwd=ROOT, capture_output=True, text=True, timeout=540)


def assert_named(done: subprocess.CompletedProcess[str]) -> None:
    [line] = [line for line in done.stdout.splitlines() if '4 files in' in line]
    assert not done.stderr and all(f'train/class_0001/{words}' in line for words in BAD)
    assert 'test/class_0002/z_text.jpg' in line


@pytest.fixture(scope='module')
def whole(images: pathlib.Path, tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """The work directory of a run that nothing disturbed; what it said is asserted here."""
    workdir = tmp_path_factory.mktemp('whole') / 'run'
    done = run(images, f'--workdir={workdir}')
    assert done.returncode == 0, done.stderr
    assert_named(done)
    return workdir


@pytest.mark.slow
def test_check_names_the_bad_files(images: pathlib.Path):
    done = run(images, '--check')
    assert done.returncode == 0, done.stderr
    assert_named(done)
    assert f'4 bad files left out; {GOOD} training points, 3 classes' in done.stdout
    assert 'points are streamed' in done.stdout


@pytest.mark.slow
def test_the_good_images_are_trained_on(whole: pathlib.Path):
    summary = json.loads((whole / 'kcd' / 'trial_0' / 'summary.json').read_text())
    assert summary['num_points'] == GOOD and summary['epochs'] == 12
    with np.load(whole / 'kcd' / 'trial_0' / 'knowledge' / 'stage_1.npz') as stage:
        assert stage['count'].sum() == GOOD // 16 * 16 and (stage['value'][stage['count'] > 0] > 0).all()


@pytest.mark.slow
def test_a_file_that_disappears_during_training_raises_one_line_and_the_run_resumes(
    images: pathlib.Path, whole: pathlib.Path, tmp_path: pathlib.Path
):
    """Put back, the same command ends with the bits of the run that was never disturbed."""
    workdir = tmp_path / 'run'
    log, lost = workdir / 'kcd' / 'trial_0' / 'metrics.jsonl', images / 'train' / 'class_0000' / '000003.jpg'
    process = subprocess.Popen(
        command(images, f'--workdir={workdir}'), cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    began, away = time.monotonic(), tmp_path / 'away.jpg'
    try:
        while process.poll() is None and time.monotonic() - began < 300:
            if any(record['epoch'] >= 2 for record in records(log)):
                os.rename(lost, away)
                break
            time.sleep(0.01)
        assert process.wait(timeout=300) != 0 and away.exists()
        *_, line = process.stderr.read().splitlines()
        assert line.startswith(f'error: {lost} cannot be decoded')
        refused = run(images, f'--workdir={workdir}')  # other points than those it began with
        assert refused.returncode == 2 and 'another run: the data (' in refused.stderr.splitlines()[-1]
    finally:
        process.kill()
        process.stderr.close()
        if away.exists():
            os.rename(away, lost)
    assert run(images, f'--workdir={workdir}').returncode == 0
    assert differences(whole / 'kcd' / 'trial_0', workdir / 'kcd' / 'trial_0') == []
