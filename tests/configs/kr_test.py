"""KR's config: rows of the paper's Table 1 run on CIFAR-10-shaped data and are in the table."""

from __future__ import annotations

import importlib
import pathlib
import sys

import numpy as np
import pytest

from kcd_jax.experiments import config as grammar
from kcd_jax.experiments import runner
from kcd_jax.report import paper_results
from tests.digits import one_device

pytestmark = pytest.mark.fast_compile

ROOT = pathlib.Path(__file__).parents[2]
NAMES = ('student', 'nst', 'kr', 'kr+kdgan')  # of both kinds; kr-dense differs in a word


@pytest.fixture
def cifar10(tmp_path, monkeypatch):
    """A folder with a prepared 'cifar10': 64 training images of 32x32, whose brightness tells their class."""
    monkeypatch.syspath_prepend(str(ROOT / 'tests' / 'data'))
    tiny_tfds = importlib.import_module('tiny_tfds')

    def points(number, seed, shape):
        random = np.random.default_rng(seed)
        labels = (np.arange(number) % 3).astype(np.int32)
        noise = random.integers(0, 60, (number, *shape))
        return (noise + 90 * labels.reshape(-1, 1, 1, 1)).astype(np.uint8), labels

    monkeypatch.setattr(tiny_tfds, 'points', points)
    yield tiny_tfds.write(tmp_path / 'data', name='cifar10', shards=(64,), shape=(32, 32, 3)).parent.parent
    sys.modules.pop('tiny_tfds', None)


def test_the_recipe_is_the_papers():
    config = grammar.load(f'{ROOT}/configs/kr.py')
    # 64,000 iterations at batch 128 of 50,000 images; the rates fall after 30,000 and 48,000.
    assert config.epochs == round(64_000 / (50_000 // 128))
    main = grammar.recipe_of(config).optim.optimiser(config.epochs)
    steps = np.array([main.lr(epoch) for epoch in range(config.epochs)])
    falls = np.flatnonzero(np.diff(steps)) + 1
    np.testing.assert_allclose(falls * (50_000 // 128), [30_000, 48_000], atol=390)
    np.testing.assert_allclose(steps[[0, *falls]], [0.1, 0.01, 0.001])
    assert (config.optim.weight_decay, config.optim.momentum) == (1e-5, 0.9)
    assert (config.method.aggregate, config.method.prior_lr, config.method.sparse) == (3, 0.1, 'recode')


def test_the_rate_does_not_depend_on_the_pair_and_can_be_set():
    for words, rate in (('resnet32-resnet14_kr,dataset=cifar100', 0.1), ('lr=0.05', 0.05), ('optim.lr=0.02', 0.02)):
        assert grammar.load(f'{ROOT}/configs/kr.py:{words}').optim.lr == rate


def test_weights_are_the_posteriors_unless_given():
    def weights(words):
        config = grammar.load(f'{ROOT}/configs/{words}')
        return {key: config.weights[key] for key in ('gamma', 'alpha', 'beta')}

    assert weights('kr.py') == {'gamma': 0.1, 'alpha': 0.9, 'beta': 0.0}
    assert weights('kr.py:posterior=nst') == {'gamma': 1.0, 'alpha': 0.0, 'beta': 50.0}
    assert weights('kr.py:beta=20.0,method.posterior=nst') == {'gamma': 1.0, 'alpha': 0.0, 'beta': 20.0}
    assert weights('cifar100_kd.py:resnet56-resnet20,method=kr,posterior=reviewkd')['beta'] == 0.6
    config = grammar.load(f'{ROOT}/configs/kr.py')
    found = grammar.variant(config, 'kr+kdgan')
    assert found.method.posterior == 'kdgan' and found.weights.beta == 1.0 and found.student.name == 'resnet8_kr'
    for name in ('nst', 'fsp'):
        other = grammar.variant(config, name)
        assert other.student.name == 'resnet8' and other.method.name == name


def test_a_posterior_with_weight_zero_is_refused(tiny_networks, cifar10, tmp_path):
    config = grammar.load(f'{ROOT}/configs/kr.py:tiny_teacher-tiny,batch=16')
    config.data.dir, config.method.posterior = str(cifar10), 'nst'
    with pytest.raises(
        ValueError, match='the term of posterior=nst is weighted by weights.beta, which is 0; give posterior=nst in'
    ):
        grammar.run_of(config).train(tmp_path / 'run')


@pytest.mark.slow
def test_rows_of_the_table_run_and_appear_in_it(tiny_networks, cifar10, tmp_path, capsys):
    words = f'tiny_teacher-tiny,compare=({",".join(NAMES)}),epochs=2,teacher.epochs=6,batch=16,teacher.batch=16'
    config = grammar.load(f'{ROOT}/configs/kr.py:{words}')
    config.data.dir = str(cifar10)
    results = runner.run(config, tmp_path / 'runs', mesh=one_device())
    assert tuple(result.name for result in results) == NAMES
    assert 'kr+kdgan' in capsys.readouterr().out
    summaries = []
    for result in results:
        narrow = 'resnet8_kr' if result.summary['method'] == 'kr' else 'resnet8'
        teacher = result.summary['teacher'] and {**result.summary['teacher'], 'network': 'resnet26'}
        summaries.append({**result.summary, 'student': narrow, 'teacher': teacher})
    table = paper_results.paper_table('kr_table1', summaries)
    ours = {record['row']: record['n'] for record in table.records if record['measure'] == 'accuracy'}
    assert set(ours.values()) == {0, 1} and sum(ours.values()) == 1 + len(NAMES)  # and the teacher
