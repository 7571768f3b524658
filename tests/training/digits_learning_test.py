"""What the numbers of the digits must show: distillation helps, and the sign of the ranking matters.

The teacher is trained on 1,200 points. The student is the same small network on fewer points, so that the effects are
several times as large as the spread of the seeds.
"""

from __future__ import annotations

import numpy as np
import pytest

from kcd_jax.experiments import config as grammar
from tests.digits import ROOT, know_tiny_networks, one_device

pytestmark = pytest.mark.slow
PAIR = 'tiny_teacher-tiny_teacher,teacher.epochs=20'


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """A folder for the runs and their one teacher; the tiny networks are known while this file's tests run."""
    with pytest.MonkeyPatch.context() as patch:
        know_tiny_networks(patch)
        yield tmp_path_factory.mktemp('digits')


def accuracies(folder, name, config, seeds) -> np.ndarray:
    """Last-epoch accuracies of the first seeds on one device, with one teacher for all."""
    config.checkpoint.seconds, config.eval_every, config.survey = 1e9, 60, False
    run = grammar.run_of(config)
    options = {'teacher_dir': folder / 'teacher', 'mesh': one_device()}
    results = [run.with_seed(seed).train(folder / f'{name}_{seed}', **options) for seed in range(seeds)]
    return np.asarray([result.accuracy for result in results])


def test_distillation_beats_the_student_alone_by_more_than_two_standard_errors(folder):
    """100 points, on which the student alone learns about 65 % and the distilled one about 74 %."""
    config = grammar.load(f'{ROOT}/configs/digits_kd.py:{PAIR},num_points=100,epochs=40')
    runs = {name: accuracies(folder, name, grammar.variant(config, name), 3) for name in ('student', 'kd')}
    difference = runs['kd'] - runs['student']
    assert difference.mean() > 2 * difference.std(ddof=1) / np.sqrt(len(difference)), runs


def test_keeping_the_least_valuable_points_is_worse_by_more_than_two_standard_deviations(folder):
    """600 points, 20 % kept: the highest entropies (about 76 %) against the lowest (61 %), without augmentation."""
    runs = {}
    for ranking in ('value', 'reversed'):
        kept = f'method=kd,policy=kcd,first=none,ratio=0.2,policy.augment=none,ranking={ranking}'
        config = grammar.load(f'{ROOT}/configs/digits_kd.py:{PAIR},{kept},num_points=600,epochs=12')
        runs[ranking] = accuracies(folder, ranking, config, 3)
    spread = np.sqrt((runs['value'].var(ddof=1) + runs['reversed'].var(ddof=1)) / 2)
    assert runs['value'].mean() - runs['reversed'].mean() > 2 * spread, runs
