"""The files of methods, policies and networks are a part of a run: another statement in one is another run."""

from __future__ import annotations

import dataclasses
import importlib
import json
import sys
import textwrap

import jax
import pytest

from kcd_jax import Run, Teacher, data, networks, plugins, policies
from kcd_jax.contracts import Policy
from kcd_jax.experiments.experiment import same_run
from kcd_jax.runtime import descriptions
from kcd_jax.training import code, shared_teachers

pytestmark = pytest.mark.fast_compile

RECIPE = {'epochs': 1, 'batch': 20, 'survey': False, 'teaching': {'allow_weak': True}}
POLICY = '''
    """Half of the points."""

    from kcd_jax import knowledge
    from kcd_jax.contracts import Policy
    from kcd_jax.policies import _share_of_mine

    def make() -> Policy:
        """Builds the policy."""  # in one line

        def replan(key, table, plan, state, epoch, epochs):
            return knowledge.unmixed_plan(knowledge.rank(table, 0.03), _share_of_mine.SHARE * table.num_points), state

        sizes = lambda num_points, epochs: [round(_share_of_mine.SHARE * num_points)] * epochs
        return Policy(when=lambda epoch, epochs: epoch == 0, replan=replan, keep_counts=sizes)
'''
SHARE = '"""A share."""\n\nSHARE = 0.5\n'
OTHER = {
    'statement': ('half_of_mine', POLICY.replace('0.03', '0.04')),
    'helper': ('_share_of_mine', SHARE.replace('0.5', '0.6')),
}
SAME = {
    'docstring': ('half_of_mine', POLICY.replace('Half of the points.', '50 %.')),
    'comment': ('half_of_mine', POLICY.replace('in one line', 'as ever')),
    'layout': ('half_of_mine', POLICY.replace('    def make', '\n\n    def make')),
    'helper': ('_share_of_mine', SHARE.replace('A share', 'The share')),
}
NETWORK = """
    import jax.numpy as jnp

    from kcd_jax import networks

    NAMES = ('line_of_mine',)

    def make(name, num_classes, *, dtype=jnp.float32, normalization='none'):
        init = lambda key, shape: {'kernel': jnp.ones((shape[0] * shape[1] * shape[2], num_classes))}
        return networks.from_functions(init, lambda params, x: x.reshape(len(x), -1) @ params['kernel'], name=name)
"""


@pytest.fixture
def write(tmp_path, monkeypatch):
    """Writes a policy or network of a user's own, as another process would find it."""
    packages = {'policies': policies, 'networks': networks}
    written = set()
    monkeypatch.setattr(sys, 'dont_write_bytecode', True)  # two texts of one size, written within one second
    for kind, package in packages.items():
        (tmp_path / kind).mkdir()
        monkeypatch.setattr(package, '__path__', [*package.__path__, str(tmp_path / kind)])

    def forget():
        for module in written:
            sys.modules.pop(module, None)
            plugins._loaded.pop(module, None)
            package, _, stem = module.rpartition('.')
            if package in sys.modules:
                vars(sys.modules[package]).pop(stem, None)

    def write(name, text, kind='policies'):
        (tmp_path / kind / f'{name}.py').write_text(textwrap.dedent(text))
        written.add(f'{packages[kind].__name__}.{name}')
        forget()
        importlib.invalidate_caches()

    yield write
    forget()


@pytest.fixture
def half(write):
    write('_share_of_mine', SHARE)
    write('half_of_mine', POLICY)
    return write


def run(teacher=None, student='resnet8x0_25'):
    points = data.load('digits', num_points=40)
    policy = 'half_of_mine' if 'half_of_mine' in policies.names() else 'none'
    return Run(student, points, teacher, policy=policies.get(policy).make(), recipe=RECIPE)


@pytest.mark.parametrize('change', sorted(OTHER))
def test_a_changed_statement_is_another_run(half, tmp_path, change):
    before = run()
    described = json.loads(json.dumps(before.describe()))
    before.train(tmp_path / 'run')
    half(*OTHER[change])
    with pytest.raises(ValueError, match='holds another run: the code of the policy is not that of the run') as caught:
        run().train(tmp_path / 'run')
    assert '\n' not in str(caught.value)
    assert not same_run(described, run().describe())


@pytest.mark.parametrize('change', sorted(SAME))
def test_words_about_the_code_are_not_code(half, change):
    described = run().describe()
    half(*SAME[change])
    assert run().describe() == described


def test_what_was_loaded_counts_and_not_what_the_file_says_since(half, tmp_path):
    described = run().describe()
    path = tmp_path / 'policies/half_of_mine.py'
    path.write_text(path.read_text().replace('0.03', '0.04'))
    assert run().describe() == described
    importlib.reload(policies.get('half_of_mine'))
    assert run().describe()['policy_code'] != described['policy_code']


def test_a_helper_counts_as_it_was_loaded(half, tmp_path):
    described = run().describe()
    (tmp_path / 'policies/_share_of_mine.py').write_text('SHARE = (')
    assert run().describe() == described


def test_a_helper_that_is_imported_inside_a_function_always_counts(write, tmp_path):
    write('_share_of_mine', SHARE)
    inside = POLICY.replace('    from kcd_jax.policies import _share_of_mine\n', '')
    write(
        'half_of_mine',
        inside.replace('replan(key', 'of_mine():\n            from . import _share_of_mine\n\n        def replan(key'),
    )
    described = plugins.code(policies.get('half_of_mine'))
    importlib.import_module('kcd_jax.policies._share_of_mine')
    assert plugins.code(policies.get('half_of_mine')) == described, 'whether it was loaded does not'
    write(*OTHER['helper'])
    assert plugins.code(policies.get('half_of_mine')) != described


def test_the_helpers_of_a_folder_count(write, tmp_path):
    folder = tmp_path / 'policies/half_of_mine'
    folder.mkdir()
    write('half_of_mine/__init__', POLICY.replace('from kcd_jax.policies import', 'from . import'))
    write('half_of_mine/_share_of_mine', SHARE)

    def found():
        for name in [name for name in sys.modules if name.startswith('kcd_jax.policies.half_of_mine')]:
            del sys.modules[name]
        return plugins.code(policies.get('half_of_mine'))

    before = found()
    write('half_of_mine/_share_of_mine', OTHER['helper'][1])
    assert found() != before
    found()
    for name in [name for name in sys.modules if name.startswith('kcd_jax.policies.half_of_mine')]:
        del sys.modules[name]


def test_files_of_the_package_are_no_part_of_a_users_file(write, monkeypatch):
    write('_share_of_mine', SHARE)
    write('half_of_mine', 'from kcd_jax.policies.kcd import observe_loss\n' + textwrap.dedent(POLICY))
    described = plugins.code(policies.get('half_of_mine'))
    spec, text = plugins._loaded['kcd_jax.policies.kcd']
    monkeypatch.setitem(plugins._loaded, 'kcd_jax.policies.kcd', (spec, f'{text}\nOTHER = 1\n'))
    assert plugins.code(policies.get('half_of_mine')) == described
    assert 'kcd_jax.policies.kcd' in sys.modules and plugins.code(policies.get('kcd')) != described


def test_a_file_without_text_has_no_digest(monkeypatch):
    spec, _ = plugins._loaded['kcd_jax.policies.kcd']
    monkeypatch.setitem(plugins._loaded, 'kcd_jax.policies.kcd', (spec, None))
    assert code.of_file(policies.get('kcd')) == ''


def test_a_policy_that_was_built_in_python_may_have_any_name():
    for name in ('handmade', 'seta'):
        made = run().replace(policy=Policy(name=name))
        assert ('policy_code' in made.describe()) == (name == 'seta')
        made.validate(1)


def test_processes_of_one_run_have_the_same_commit(monkeypatch):
    described = run().describe()
    monkeypatch.setattr(code.environment, 'commit', lambda: 'another')
    assert descriptions.differences(described, run().describe()) == ''
    assert descriptions.differences(described, run().describe(), at_once=True).endswith('is not that of process 0')


def test_another_start_is_no_other_run_of_a_sweep():
    described = {**run().describe(), 'student_start': 'jax 1:aa'}
    assert same_run(described, {**described, 'student_start': 'jax 1:bb'})
    assert not same_run(described, {**described, 'policy_code': described['policy_code'][:-2]})


def test_a_network_that_is_given_itself_is_described_by_its_program():
    shipped = networks.get('resnet8x0_25')(10, normalization='none')

    def apply(*arguments):
        outputs, state = shipped.apply(*arguments)
        return outputs.replace(logits=3 * outputs.logits), state

    tripled = dataclasses.replace(shipped, apply=apply)
    found = [run(student=student).describe()['student_code'] for student in ('resnet8x0_25', shipped, tripled)]
    assert len({*found}) == 3


def test_code_is_compared_where_the_versions_that_both_name_agree():
    one, more = 'jax 1 flax 2:aa', 'jax 1 flax 2 equinox 3:bb'
    assert descriptions.other_code({'student_code': one}, {'student_code': more}) == 'the code of the student'
    assert not descriptions.other_code({'student_code': one}, {'student_code': more.replace('bb', 'aa')})
    assert not descriptions.other_code({'student_code': one}, {'student_code': more.replace('jax 1', 'jax 2')})
    same = {**run().describe(), 'student_code': one}
    assert descriptions.differences(same, {**same, 'student_code': more.replace('bb', 'aa')}, at_once=True) == ''


def test_the_networks_of_an_ensemble_are_described_by_their_files():
    shipped = networks.get('resnet8x0_25')(10)
    member = Teacher(shipped, shipped.init(jax.random.key(0), (16, 16, 3)), {'num_classes': 10})
    one, two = (code.of_networks(Teacher.ensemble([member] * count), (16, 16, 3)) for count in (2, 3))
    assert one.rpartition(':')[0] == code.of_file(networks.file_of('resnet8x0_25')).rpartition(':')[0] and one != two


def test_files_of_the_package_are_compared_within_one_commit(monkeypatch):
    described = run().describe()
    assert {'student_code', 'method_code', 'policy_code'} <= described.keys()
    monkeypatch.setattr(plugins, 'code', lambda module: 'other')
    assert 'the code of the method' in descriptions.differences(described, run().describe())
    monkeypatch.setattr(code.environment, 'commit', lambda: 'another')
    assert descriptions.differences(described, run().describe()) == ''


def test_a_trained_teacher_serves_only_the_network_that_it_was(write, tmp_path, monkeypatch):
    monkeypatch.setenv('KCD_JAX_TEACHERS', str(tmp_path / 'shared'))
    write('of_mine', NETWORK, 'networks')
    described = run(student='line_of_mine').describe()
    first = shared_teachers.entry(described)
    write('of_mine', NETWORK.replace('@ params', '@ -params'), 'networks')
    assert shared_teachers.entry(run(student='line_of_mine').describe()) != first
    origin = described['method_code'].rpartition(':')[0]
    assert shared_teachers.entry({**described, 'method_code': described['method_code'].replace(origin, 'any')}) == first


def test_a_teacher_of_a_changed_file_is_another_teacher(write, tmp_path):
    write('of_mine', NETWORK, 'networks')
    run(student='line_of_mine').train(tmp_path / 'teacher')
    described = run(Teacher.restore(tmp_path / 'teacher')).describe()
    assert run(Teacher.restore(tmp_path / 'teacher')).describe() == described
    write('of_mine', NETWORK.replace('@ params', '@ -params'), 'networks')
    other = run(Teacher.restore(tmp_path / 'teacher')).describe()
    assert other['teacher']['identity'] == described['teacher']['identity']
    assert 'the code of the teacher' in descriptions.differences(described, other)
