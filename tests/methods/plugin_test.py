"""A user's method in one file: the command line, the config and the common tests find it."""

from __future__ import annotations

import os
import pathlib
import shutil
import subprocess
import sys

import pytest

from kcd_jax import methods

pytestmark = pytest.mark.fast_compile

ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture
def run(tmp_path):
    """Runs `python -m ...` with a copy of the template as the method 'nearest_words'."""
    (tmp_path / 'methods').mkdir()
    shutil.copy(ROOT / 'kcd_jax/methods/_template.py', tmp_path / 'methods' / 'nearest_words.py')
    assert 'nearest_words' not in methods.names()

    def run(*words):
        environment = {**os.environ, 'KCD_JAX_PLUGINS': str(tmp_path)}
        return subprocess.run(
            [sys.executable, '-m', *words], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300
        )

    return run


def check(run, words):
    return run('kcd_jax.main', f'--config=configs/digits_kd.py:{words}', '--check')


def test_the_command_line_finds_it_with_its_weights_and_keywords(run):
    done = check(run, 'method=nearest_words,policy=kcd,scale=2.0')
    assert done.returncode == 0, done.stderr
    assert 'nearest_words: 1 * CE + 0 * KD(T=4) + 1 * extra' in done.stdout and 'kcd: 300' in done.stdout
    done = check(run, 'method=nearest_word')
    assert done.returncode == 2 and "(did you mean 'nearest_words'?)" in done.stderr


@pytest.mark.slow
def test_it_is_compared_and_its_keywords_are_checked(run):
    done = check(run, 'compare=(student,nearest_words)')
    assert done.returncode == 0 and '--- nearest_words' in done.stdout, done.stderr
    done = check(run, 'method=nearest_words,scael=2.0')
    assert done.returncode == 2 and "unknown config key 'scael' (did you mean 'scale'?)" in done.stderr


@pytest.mark.slow
def test_the_common_tests_hold_for_it(run):
    done = run(
        'pytest', '-q', '-p', 'no:cacheprovider', 'tests/methods/common_test.py', '-k', 'nearest_words and not slow'
    )
    assert done.returncode == 0, done.stdout
    assert int(done.stdout.split(' passed')[0].split()[-1]) >= 12


@pytest.mark.slow
def test_it_trains(run, tmp_path):
    words = 'method=nearest_words,policy=random,epochs=2,stages=2,num_points=120'
    done = run(
        'tests.tiny.program', f'--config=configs/digits_kd.py:quicktest,tiny_teacher-tiny,{words}',
        '--config.teacher.epochs=6', '--devices=1', f'--workdir={tmp_path}/run',
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert 'NEAREST_WORDS' in done.stdout
