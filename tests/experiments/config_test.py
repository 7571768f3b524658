"""The grammar: words to configs to runs, and one-line errors for invalid input."""

from __future__ import annotations

import pathlib

import pytest
from ml_collections import ConfigDict

from kcd_jax.experiments import config as grammar
from kcd_jax.experiments import schema

ROOT = pathlib.Path(__file__).resolve().parents[2]
DIGITS, CIFAR100 = f'{ROOT}/configs/digits_kd.py', f'{ROOT}/configs/cifar100_kd.py'
FILES = sorted(path for path in (ROOT / 'configs').glob('*.py') if 'SWEEPS' not in path.read_text())


@pytest.mark.parametrize('path', FILES, ids=lambda path: path.stem)
def test_every_shipped_config_is_valid(path):
    for words in ('', 'quicktest'):
        config = grammar.load(f'{path}:{words}')
        schema.check_config(config.to_dict())
        for name in config.compare:
            schema.check_config(grammar.variant(config, name).to_dict())


def test_adam_cosine_and_warmup_are_each_used_by_a_shipped_config():
    used = set()
    for path in FILES:
        config = grammar.load(str(path))
        for one in (config, *(grammar.variant(config, name) for name in config.compare)):
            used |= {one.optim.name, one.optim.schedule, 'warmup' if one.optim.warmup else ''}
    assert {'sgd', 'adam', 'drops', 'cosine', 'warmup'} <= used


@pytest.mark.parametrize(
    ('words', 'method', 'policy'),
    [
        ('', 'kd', 'kcd'),
        ('method=crd', 'crd', 'none'),
        ('policy=random', 'kd', 'random'),
        ('method=crd,policy=kcd', 'crd', 'kcd'),
        ('method=none', 'none', 'none'),
    ],
)
def test_a_method_alone_trains_on_every_point(words, method, policy):
    for file in (DIGITS, CIFAR100):
        config = grammar.load(f'{file}:{words}')
        assert (config.method.name, config.policy.name) == (method, policy)
        if words:
            assert not config.compare and config.trials == 1


@pytest.mark.parametrize(
    ('words', 'keys'),
    [
        ('policy=kcd,alpha=0.9', ('policy.alpha', 'weights.alpha')),
        ('policy=unix,beta=0.2', ('policy.beta', 'weights.beta')),
        ('method=dkd,policy=none,temperature=2', ('method.temperature', 'weights.temperature')),
        ('method=dkd,policy=none,warmup=2', ('method.warmup', 'optim.warmup')),
        ('policy=kcd,schedule=linear', ('policy.schedule', 'optim.schedule')),
    ],
)
def test_an_ambiguous_word_is_refused_with_both_keys(words, keys):
    with pytest.raises(ValueError, match='could mean') as error:
        grammar.load(f'{DIGITS}:{words}')
    assert all(key in str(error.value) for key in keys)
    *_, word = words.split(',')
    value = word.partition('=')[2]
    assert grammar.load(f'{DIGITS}:{words.removesuffix(word)}{keys[0]}={value}')


def test_keys_of_the_run_come_before_those_of_its_teacher():
    config = grammar.load(f'{DIGITS}:lr=0.2,epochs=12,seed=3,num_points=90,crop=1')
    assert (config.optim.lr, config.epochs, config.seed) == (0.2, 12, 3)
    assert (config.data.num_points, config.augment.crop) == (90, 1)
    assert (config.teacher.lr, config.teacher.epochs, config.teacher.seed) == (0.05, 30, 1000)


@pytest.mark.parametrize(
    ('words', 'says'),
    [
        ('method=kdd', "unknown method 'kdd'.*did you mean 'kd'"),
        ('method=5', "unknown method '5'"),
        ('policy=kdc', "unknown policy 'kdc'.*did you mean 'kcd'"),
        ('resnet14-resnet9', "unknown network 'resnet9'"),
        ('quicktst', "unknown config word 'quicktst'.*did you mean 'quicktest'"),
        ('epoch=3', "unknown config key 'epoch'.*did you mean 'epochs'"),
        ('optim.lrr=3', "unknown config key 'optim.lrr'"),
        (
            'method=crd,ratio=0.5',
            'ratio is a keyword of policy=balanced, policy=kcd, .*policy=static, but this is method=crd,policy=none',
        ),
        ('optim=3', 'optim is a section'),
        ('epochs=many', 'epochs takes a value of type int'),
        ('epochs=True', 'epochs takes an integer, not True'),
        ('survey=1', 'survey takes True or False, not 1'),
        ('epochs=2.5', 'epochs takes a value of type int'),
    ],
)
def test_an_unknown_word_is_refused_in_one_line(words, says):
    with pytest.raises(ValueError, match=says) as error:
        grammar.load(f'{DIGITS}:{words}')
    assert '\n' not in str(error.value)


def test_values_are_read_by_the_type_of_their_key():
    config = grammar.load(f'{DIGITS}:data.dir=123,stream=True,drops=(0.5,),flip=false,compare=(kd,kcd)')
    assert config.data.dir == '123' and config.data.stream == 'true' and config.optim.drops == (0.5,)
    assert config.augment.flip is False and config.compare == ('kd', 'kcd')


def test_settings_by_full_keys():
    config = grammar.override(grammar.load(DIGITS), [('optim.lr', '1'), ('teacher.checkpoint', 'a,b.pth')])
    assert config.optim.lr == 1.0 and config.teacher.checkpoint == 'a,b.pth'
    with pytest.raises(ValueError, match='--config=FILE:method=crd'):
        grammar.override(config, [('method.name', 'crd')])
    with pytest.raises(ValueError, match="unknown config key 'optim.lrr'"):
        grammar.override(config, [('optim.lrr', '1')])


@pytest.mark.parametrize(
    ('content', 'says'),
    [
        ('def get_config(arg:\n', 'is not a Python file: line 1'),
        ('\x00', 'cannot be imported|is not a Python file'),
        ('import no_such_module\n', "ModuleNotFoundError: No module named 'no_such_module'"),
        ('x = 1\n', 'defines no get_config'),
        ('def get_config(arg):\n    return 3\n', 'returns a int'),
        ('def get_config(arg):\n    return {}["x"]\n', "KeyError: 'x'"),
        ('raise SystemError("no")\n', 'SystemError: no'),
        ('raise SystemExit(3)\n', 'SystemExit: 3'),
        ('def get_config(arg):\n    raise SystemExit(3)\n', 'SystemExit: 3'),
    ],
)
def test_a_file_that_is_not_a_config_is_refused_in_one_line(tmp_path, content, says):
    path = tmp_path / 'mine.py'
    path.write_text(content)
    with pytest.raises(ValueError, match=says) as error:
        grammar.load(f'{path}:epochs=3')
    assert '\n' not in str(error.value) and 'mine.py' in str(error.value)
    with pytest.raises(ValueError, match='there is no config file'):
        grammar.load(str(tmp_path))


def test_a_config_file_needs_nothing_but_the_package(tmp_path):
    path = tmp_path / 'mine'
    path.write_text(
        'from kcd_jax.experiments import config as grammar\n'
        'def get_config(arg=None):\n'
        '    config = grammar.base()\n'
        '    config.epochs = 7\n'
        "    return grammar.build(config, arg, method='kd', policy='random')\n"
    )
    config = grammar.load(f'{path}:ratio=0.5')
    assert (config.epochs, config.policy.name, config.policy.ratio) == (7, 'random', 0.5)


def test_a_variant_is_a_run_with_parts_of_its_config_replaced(tiny_networks):
    config = grammar.load(f'{DIGITS}:quicktest,tiny_teacher-tiny')
    config.variants = ConfigDict(
        {
            'kd+sp': {'run': 'sp', 'weights': {'alpha': 0.5}, 'method': {'group': 10}},
            'more': {'run': 'kd', 'weight': {'alpha': 2.0}},
            'wrong': {'run': 'kdd'},
        }
    )
    both = grammar.variant(config, 'kd+sp')
    assert (both.method.name, both.method.group, both.policy.name) == ('sp', 10, 'none')
    assert both.weights.to_dict() == {'gamma': 1.0, 'alpha': 0.5, 'beta': 3000.0, 'temperature': 4.0}
    assert not both.variants and not both.compare
    with pytest.raises(ValueError, match="variant 'more': .*weight"):
        grammar.variant(config, 'more')
    with pytest.raises(ValueError, match=r"unknown run in compare 'kdd' \(did you mean 'kd'\?\)"):
        grammar.variant(config, 'wrong')
    with pytest.raises(ValueError, match=r"unknown run in compare 'moor' \(did you mean 'more'\?\)"):
        grammar.variant(config, 'moor')


@pytest.mark.parametrize('preset', ['paper', 'reference'])
def test_random_has_the_size_of_kcd_at_every_stage(preset):
    config = grammar.load(DIGITS)
    config.policy.preset = preset
    sizes = []
    for name in ('kcd', 'random'):
        section = grammar.variant(config, name).policy.to_dict()
        sizes.append(schema.module_of('policy', section.pop('name')).make(**section).keep_counts(50_000, 240))
    assert sizes[0] == sizes[1]


def test_a_run_has_what_its_config_says(tiny_networks):
    config = grammar.load(f'{DIGITS}:quicktest,tiny_teacher-tiny,method=kd,policy=kcd,workers=2,validation=0.1')
    run = grammar.run_of(config)
    assert run.student == 'tiny' and run.teacher.student == 'tiny_teacher' and run.name == 'kcd'
    assert run.recipe.epochs == 6 and run.recipe.workers == 2 and run.policy.keywords['stages'] == 3
    teacher = run.teacher
    assert (teacher.recipe.epochs, teacher.recipe.batch, teacher.seed) == (6, 64, 1000)
    assert (teacher.method.name, teacher.policy.name, teacher.recipe.survey) == ('none', 'none', False)
    assert len(run.data.train) == 300 and len(teacher.data.train) == 1080, 'the same points are held out'
    assert len(run.data.validation) == len(teacher.data.validation) == 120
    assert grammar.run_of(grammar.load(f'{DIGITS}:method=none')).teacher is None


@pytest.mark.parametrize('words', ['lr=True', 'method=kd,policy=kcd,ratio=False', 'epochs=True'])
def test_a_truth_value_is_no_number(words):
    with pytest.raises(ValueError, match='takes (a number|an integer), not (True|False)'):
        grammar.load(f'{DIGITS}:{words}')
