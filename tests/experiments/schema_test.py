"""Ranges of every setting: absurd values are refused in one line; the reference page is current."""

from __future__ import annotations

import math
import pathlib
import random

import pytest

from kcd_jax import methods, policies
from kcd_jax.experiments import config as grammar
from kcd_jax.experiments import experiment, schema
from kcd_jax.runtime import descriptions

ROOT = pathlib.Path(__file__).resolve().parents[2]
DIGITS = f'{ROOT}/configs/digits_kd.py'
SHORT = 'quicktest,tiny_teacher-tiny,method=kd,policy=kcd,epochs=3,stages=1'

REFUSED = [
    'temperature=0', 'temperature=-4', 'gamma=-1', 'gamma=0,weights.alpha=0', 'weights.alpha=-1', 'factor=-1',
    'factor=0', 'eval_batch=0', 'eval_batch=-5', 'eval_every=0', 'chunk=-1', 'checkpoint.keep=0', 'checkpoint.keep=-1',
    'augment.crop=-2', 'augment.crop=40', 'augment.crop=16', 'data.workers=-1', 'data.workers=99999',
    'seed=9223372036854775808', 'seed=-1', 'trials=0', 'lr=-0.1', 'lr=0', 'lr=nan', 'lr=inf', 'momentum=1.5',
    'momentum=nan', 'weight_decay=-1', 'weight_decay=inf', 'temperature=nan', 'temperature=inf', 'gamma=nan',
    'ratio=1.5', 'ratio=nan', 'epsilon_max=inf', 'augment.area=(1e-12,1)', 'augment.area=(0.5,)',
    'augment.area=(0.9,0.1)', 'augment.area=(nan,1)', 'drops=(a,)', 'drops=(0,)', 'drops=(1.5,)', 'drops=(nan,)',
    'warmup=-1', 'epochs=0',
    'epochs=True', 'epochs=-3', 'epochs=10**9', 'epochs=1000000000', 'batch=0', 'batch=-20', 'batch=True', 'method=5',
    'policy=5', 'compare=(kd,kd)', 'compare=(kd,5)', 'validation=1', 'validation=-0.1', 'validation=nan',
    'data.num_points=-1', 'data.num_points=5', 'data.seed=-1', 'checkpoint.seconds=-1', 'checkpoint.seconds=nan',
    'dtype=float64', 'logits=scaled', 'stream=maybe', 'optim.name=sgdd', 'optim.schedule=step', 'teacher.lr=nan',
    'teacher.epochs=0', 'teacher.batch=0', 'teacher.seed=-1', 'teacher.num_points=-1', 'method=crd,size=0',
    'method=crd,num_negatives=0', 'method=crd,size=True', 'dataset=digit', 'student.name=5',
    'temperature=1e-300', 'temperature=1e30', 'gamma=1e39', 'weights.beta=1e308', 'lr=1e30', 'weight_decay=1e9',
    'optim.warmup=3', 'method=', 'policy=', 'dataset=', 'method=crd,size=1000000000',
    'method=dkd,method.temperature=1e-30',
    'method=wcord,num_negatives=1000000000', 'method=wcord,regulariser=1e-30', 'method=sskd,head_fraction=1e30',
    'method=kr,prior_lr=1e30', 'policy.alpha=1e30',
]  # fmt: skip


def check(words, devices=4):
    """What `--check` does with the words after a config file."""
    found = experiment.of_config(grammar.load(f'{DIGITS}:{words}'))
    for cell in found.cells:
        cell.run.check(devices)


@pytest.mark.parametrize('word', REFUSED)
def test_bad_settings_are_refused(tiny_networks, word):
    with pytest.raises(ValueError) as error:
        check(f'{SHORT},{word}')
    line, key = str(error.value), word.rpartition('=')[0].rpartition(',')[2].rpartition('.')[2]
    assert '\n' not in line and len(line) < 1000
    if key not in ('dataset', 'method', 'policy', 'compare', 'name') and word != 'data.num_points=5':
        assert key in line, line


def test_ordinary_settings_are_accepted(tiny_networks):
    check(f'{SHORT},temperature=0.5,gamma=0,lr=1,momentum=0,augment.crop=15,eval_batch=1,seed=9223372036854775807')
    check(f'{SHORT},optim.name=adam,optim.schedule=cosine,optim.warmup=1,augment.area=(0.08,1)')


def test_two_hundred_random_configs_are_each_accepted_or_refused_in_a_line(tiny_networks):
    """Random settings with random values, sensible and not; nothing but a ValueError of one line may come out."""
    draw = random.Random(7)
    keys = [key for key in schema.settings() if not key.startswith(('data.dir', 'teacher.checkpoint'))]
    values = [0, 1, 2, 3, -1, 5, 20, 64, 0.5, 1.0, 0.1, 1e-12, 1e30, -0.5, 'nan', 'inf', '-inf', True, False, 'kd']
    values += [
        'none',
        'kcd',
        'sgd',
        'adam',
        'cosine',
        'bfloat16',
        '()',
        '(0.5,)',
        '(a,)',
        '(0.08,1.0)',
        '""',
        2**63,
        '[',
    ]
    accepted = 0
    for _ in range(200):
        method, policy = draw.choice(methods.names()), draw.choice(policies.names())
        words = [f'method={method},policy={policy}']
        own = [f'{kind}.{key}' for kind, name in (('method', method), ('policy', policy))
               for key in schema.keywords(kind, name)]  # fmt: skip
        for key in draw.sample([*keys, *own, *own], draw.choice((0, 1, 1, 2))):
            words.append(f'{key}={draw.choice(values)}')
        try:
            check(f'quicktest,tiny_teacher-tiny,{",".join(words)}', draw.choice((1, 2, 4)))
            accepted += 1
        except ValueError as error:
            assert '\n' not in str(error) and 10 < len(str(error)) < 2000, (words, str(error))
        except Exception as error:
            raise AssertionError(f'{words}: {error!r}') from error
    assert 20 < accepted < 180


def test_every_setting_is_in_the_base_config_with_its_default():
    flat = descriptions.flatten(grammar.base().to_dict())
    for key, setting in schema.settings().items():
        if not key.startswith('weights.'):
            assert flat[key] == setting.default, key
    assert set(flat) <= {*schema.settings(), *schema.STRUCTURE}


def test_every_keyword_of_a_method_or_policy_has_a_meaning():
    for kind, package in (('method', methods), ('policy', policies)):
        for name in package.names():
            for key, setting in schema.keywords(kind, name).items():
                assert setting.meaning, f'{kind}.{key} of {name} has no line under Args of make'
                assert not isinstance(setting.default, float) or math.isfinite(setting.default)


def test_the_reference_page_is_current():
    page = (ROOT / 'docs' / 'configuration.md').read_text()
    assert page == schema.reference_page(), 'python -m kcd_jax train --reference > docs/configuration.md'
