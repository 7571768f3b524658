"""What the numbers of the embedded default must show: distillation helps, and the sign of the ranking matters."""

from __future__ import annotations

import numpy as np
import pytest

from kcd_jax.experiments import config as grammar
from tests.digits import ROOT, one_device

pytestmark = pytest.mark.slow


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp('digits')


def accuracies(folder, name, config, seeds) -> np.ndarray:
    """Last-epoch accuracies of the first seeds on one device, with one teacher for all."""
    config.checkpoint.seconds, config.eval_every, config.survey = 1e9, 60, False
    run = grammar.run_of(config)
    options = {'teacher_dir': folder / 'teacher', 'mesh': one_device()}
    results = [run.with_seed(seed).train(folder / f'{name}_{seed}', **options) for seed in range(seeds)]
    return np.asarray([result.accuracy for result in results])


def test_distillation_beats_the_student_alone_by_more_than_two_standard_errors(folder):
    config = grammar.load(f'{ROOT}/configs/digits_kd.py')
    runs = {name: accuracies(folder, name, grammar.variant(config, name), 3) for name in ('student', 'kd')}
    difference = runs['kd'] - runs['student']
    assert difference.mean() > 2 * difference.std(ddof=1) / np.sqrt(len(difference))


def test_keeping_the_least_valuable_points_is_worse_by_more_than_two_standard_deviations(folder):
    """600 points, 20 % kept: the highest entropies against the lowest, without augmentation."""
    runs = {}
    for ranking in ('value', 'reversed'):
        words = f'method=kd,policy=kcd,num_points=600,ratio=0.2,policy.augment=none,ranking={ranking}'
        runs[ranking] = accuracies(folder, ranking, grammar.load(f'{ROOT}/configs/digits_kd.py:{words}'), 3)
    spread = np.sqrt((runs['value'].var(ddof=1) + runs['reversed'].var(ddof=1)) / 2)
    assert runs['value'].mean() - runs['reversed'].mean() > 2 * spread, runs
