"""What decides a teacher's answers besides names and weights: code, the arrays in it, flags; and what keeps them."""

from __future__ import annotations

import errno
import gc
import os
import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kcd_jax import Run, Teacher, data, methods, networks
from kcd_jax.runtime import descriptions, sharding
from kcd_jax.training import code, fill, teacher_cache
from kcd_jax.training.description import describe

pytestmark = pytest.mark.fast_compile

SETTINGS = {'epochs': 2, 'batch': 20, 'augment': {'crop': 1}, 'eval_every': 2, 'survey': False}


@pytest.fixture(scope='module')
def digits():
    return data.load('digits', num_points=60)


@pytest.fixture(autouse=True)
def own_caches(monkeypatch):
    monkeypatch.setattr(teacher_cache, '_SHARED', {})


def linear(seed=0, name='linear'):
    """A network without weights: its code holds them."""
    held = np.random.RandomState(seed).standard_normal((16 * 16 * 3, 10)).astype(np.float32)
    return networks.from_functions(lambda key, shape: {}, lambda _, x: x.reshape(len(x), -1) @ held, name=name)


def student(factor=1.0, start=0.0):
    def init(key, shape):
        return {'kernel': jnp.full((16 * 16 * 3, 10), start)}

    def apply(params, x):
        return x.reshape(len(x), -1) @ params['kernel'] * factor

    return networks.from_functions(init, apply, name='own')


def calling():
    """A network that leaves JAX."""

    def apply(_, x):
        shape = jax.ShapeDtypeStruct((len(x), 10), jnp.float32)
        return jax.pure_callback(lambda images: np.asarray(images)[:, 0, :10, 0], shape, x)

    return networks.from_functions(lambda key, shape: {}, apply, name='calling')


def run_of(dataset, teacher, own=None, **teaching):
    recipe = {**SETTINGS, 'teaching': {'allow_weak': True, **teaching}}
    made = Teacher.from_network(teacher, dataset.image_shape)
    return Run(own or student(), dataset, made, method=methods.get('kd').make(), recipe=recipe)


def key_of(run):
    return teacher_cache.identity(run, sharding.make_mesh(), 256, [], False)


def test_a_folder_is_refused_when_the_code_of_a_network_changed(digits, tmp_path):
    run_of(digits, linear()).train(tmp_path)
    assert run_of(digits, linear()).train(tmp_path).summary['accuracy'] is not None  # read back
    with pytest.raises(ValueError, match='holds another run: the code of the teacher is not that of the run'):
        run_of(digits, linear(seed=1)).train(tmp_path)
    with pytest.raises(ValueError, match='holds another run: the code of the student is not that of the run'):
        run_of(digits, linear(), student(2.0)).train(tmp_path)


def test_another_start_is_told_and_keeps_the_run(digits, tmp_path, capsys):
    """A model may draw its weights anew whenever its script is started."""
    first = run_of(digits, linear()).train(tmp_path)
    capsys.readouterr()
    again = run_of(digits, linear(), student(start=0.01)).train(tmp_path)
    assert again.summary['accuracy'] == first.summary['accuracy']
    assert 'the run there began with other weights than those of the given network' in capsys.readouterr().out
    described = [describe(run_of(digits, linear(), student(start=start))) for start in (0.0, 0.01)]
    assert 'what the student begins with' in descriptions.differences(*described), 'processes must begin alike'


def test_settings_of_the_process_are_no_part_of_the_code(digits):
    def network():
        apply = lambda _, x: jax.nn.relu(x.mean((1, 2)) @ jnp.ones((3, 9)))  # noqa: E731
        return networks.from_functions(lambda key, shape: {}, apply, name='plain')

    found = {code.of_student(network(), digits.image_shape, 20)}
    with jax.disable_jit(), jax.default_matmul_precision('float32'):
        found.add(code.of_student(network(), digits.image_shape, 20))
    assert len(found) == 1


def test_a_student_is_traced_at_its_batch(digits):
    shapes = []

    def apply(params, x):
        shapes.append(len(x))
        return x.mean((1, 2)) @ jnp.ones((3, 10))

    describe(run_of(digits, linear(), networks.from_functions(lambda key, shape: {}, apply, name='seen')))
    assert {*shapes} == {1, 20}


def test_answers_are_those_of_the_code_that_asks(digits, tmp_path):
    first, second = (run_of(digits, linear(seed)).train(tmp_path / str(seed)) for seed in range(2))
    rows = [one.summary['computed']['teacher_rows'] for one in (first, second)]
    assert rows[0] == rows[1] and rows[0]['computed'] > 100


def test_a_network_built_in_python_is_described_by_its_program_and_one_of_a_file_by_that(digits):
    described = describe(run_of(digits, linear()))
    assert described['student_code'].startswith(f'jax {jax.__version__} flax')
    assert described['teacher']['code'] == describe(run_of(digits, linear()))['teacher']['code']
    shipped = networks.get('resnet8x0_25')(10)
    variables = shipped.init(jax.random.key(0), (16, 16, 3))
    own = describe(Run('resnet8x0_25', digits, Teacher(shipped, variables, {'num_classes': 10}), recipe=SETTINGS))
    assert own['student_code'] == own['teacher']['code'] == code.of_file(networks.file_of('resnet8x0_25'))
    assert 'student_start' in described and 'student_start' not in own


def test_the_code_of_every_member_of_an_ensemble_counts(digits):
    one, same, other = (Teacher.from_network(linear(seed), digits.image_shape) for seed in (0, 0, 1))
    found = [code.of_networks(Teacher.ensemble([one, last]), digits.image_shape) for last in (same, other)]
    assert found[0] and found[0] != found[1]
    stored = Teacher.from_outputs(np.random.RandomState(0).standard_normal((60, 10)).astype(np.float32))
    assert code.of_networks(Teacher.ensemble([stored, stored]), digits.image_shape) == ''


def test_nothing_is_kept_of_a_teacher_that_calls_python(digits, tmp_path):
    run = run_of(digits, calling(), cache=f'{tmp_path}/c')
    assert any('cache: none, since the network calls Python' in line for line in run.check(4))
    assert teacher_cache.open_cache(run, 'key', 60, 10) is None and not (tmp_path / 'c').exists()
    with pytest.raises(ValueError, match='the teacher calling calls Python, so that its answers cannot be kept'):
        fill.refuse(run, 4)
    assert describe(run)['teacher']['code']


@pytest.mark.parametrize(
    ('keywords', 'told'),
    [
        ({'classes': 5}, 'linear has 10 outputs and there are 5 classes'),
        ({'classes': np.array(list('abcde'))}, 'linear has 10 outputs and there are 5 classes'),
        ({'classes': ['a'] * 10}, 'use at least two different class names'),
        ({'variables': {'params': {}}}, "variables of linear have no 'constants'; give what network.init returns"),
    ],
)
def test_what_does_not_fit_a_network_is_refused_in_one_line(digits, keywords, told):
    with pytest.raises(ValueError, match=told):
        Teacher.from_network(linear(), digits.image_shape, **keywords)
    for classes in (10, None, (), []):
        card = Teacher.from_network(linear(), digits.image_shape, classes=classes).card
        assert card['num_classes'] == 10 and 'class_names' not in card


def test_flags_of_xla_that_decide_numbers_are_part_of_the_key(digits, monkeypatch):
    run = run_of(digits, linear())
    monkeypatch.setenv('XLA_FLAGS', '')
    plain = key_of(run)
    monkeypatch.setenv('XLA_FLAGS', '--xla_force_host_platform_device_count=4 --xla_dump_to=dump')
    assert key_of(run) == plain
    keys = set()
    for flags in ('a=true', 'a=false --xla_a=true', 'a=false'):
        monkeypatch.setenv('XLA_FLAGS', f'--xla_{flags}')
        keys.add(key_of(run))
    assert len(keys) == 2 and plain not in keys, 'the last one counts'


def test_caches_in_memory_share_one_bound(digits):
    rows, runs = 30 * 44, [run_of(digits, linear(seed), cache_gb=30 * 44 / 2**30) for seed in range(2)]
    positions, numbers = np.arange(30), np.ones((30, 10), np.float32)
    first = teacher_cache.open_cache(runs[0], 'first', 60, 10)
    first.put(positions, numbers)
    beside = teacher_cache.open_cache(runs[0], 'beside', 60, 10)
    beside.put(positions, numbers)
    assert beside.full and beside.present == 0, 'caches of one run do not push each other out'
    other = teacher_cache.open_cache(runs[1], 'other', 60, 10)
    other.put(positions, numbers)
    assert other.present == 30 and sum(one.memory for one in teacher_cache._SHARED.values()) <= rows
    assert teacher_cache.open_cache(runs[0], 'first', 60, 10) is not first


def test_files_are_closed_with_the_runs_that_opened_them(digits, tmp_path):
    def descriptors():
        gc.collect()
        return sum('rows.bin' in os.readlink(f'/proc/self/fd/{name}') for name in _listed())

    for seed in range(3):
        run_of(digits, linear(seed), cache=f'{tmp_path}/c').train(tmp_path / str(seed))
    assert descriptors() == 0


def _listed():
    return [name for name in os.listdir('/proc/self/fd') if os.path.exists(f'/proc/self/fd/{name}')]


@pytest.mark.parametrize('flags', [os.O_RDWR, os.O_RDONLY])
def test_nothing_is_filled_where_nothing_can_be_stored(digits, tmp_path, monkeypatch, flags):
    """The folder can be read alone, or not at all."""
    run, opened = run_of(digits, linear(), cache=f'{tmp_path}/c'), os.open
    fill.fill(run, 1, sharding.make_mesh(), lambda rows: None)

    def refuse(path, given, *mode):
        if given & 3 >= flags & 3 and pathlib.Path(path).suffix in ('.bin', '.u32'):
            raise PermissionError(errno.EACCES, 'Permission denied')
        return opened(path, given, *mode)

    monkeypatch.setattr(os, 'open', refuse)
    if flags == os.O_RDONLY:
        monkeypatch.setattr(os, 'access', lambda *_: False)
    with pytest.raises(ValueError, match=rf'nothing can be stored in {re.escape(str(tmp_path))}/c; name another'):
        fill.fill(run, 1, sharding.make_mesh(), lambda rows: None)
    if flags == os.O_RDONLY:
        first, second = (teacher_cache.open_cache(run, 'key', 60, 10) for _ in range(2))
        assert first.in_memory and first is second, 'shared by the runs of this process'
