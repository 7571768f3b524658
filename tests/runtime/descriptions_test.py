"""Whether two descriptions are of the same run, and the messages if they are not."""

from __future__ import annotations

import copy
import pathlib

import pytest

from kcd_jax.runtime import descriptions

FOLDER = pathlib.Path('runs/one')
NESTED = {
    'student': 'resnet56',
    'teacher': None,
    'data': {'name': 'digits', 'dir': '/here', 'identity': 'aa', 'digests': {'train images': 'b', 'test labels': 'c'}},
    'recipe': {'epochs': 3, 'workers': 0, 'checkpoint': {'seconds': 60.0, 'keep': 2}},
    'seed': 0,
}
RUN = {
    **NESTED,
    'student': 'resnet8',
    'teacher': {'run': copy.deepcopy(NESTED)},
    'recipe': {'epochs': 4, 'workers': 0, 'checkpoint': {'seconds': 60.0, 'keep': 2}, 'optim': {'drops': (0.5, 0.75)}},
}
CODE = {**RUN, 'student_code': 'jax 1:aa', 'student_start': 'jax 1:aa'}
RESTORED = {**RUN, 'teacher': {'network': 'resnet56', 'checkpoint': '/here/t.safetensors', 'identity': 'bb'}}


def changed(run: dict, **changes) -> dict:
    """A copy with other values at keys joined by two underscores."""
    result = copy.deepcopy(run)
    for key, value in changes.items():
        *parents, last = key.split('__')
        node = result
        for parent in parents:
            node = node[parent]
        node[last] = value
    return result


@pytest.mark.parametrize(
    'changes',
    [
        {},
        {'name': 'a label'},
        {'data__dir': '/there'},
        {'recipe__workers': 2},
        {'recipe__checkpoint__seconds': 1.0, 'recipe__checkpoint__keep': 5},
        {'teacher__run__data__dir': '/there', 'teacher__run__recipe__workers': 4},
        {'recipe__optim__drops': [0.5, 0.75]},
        {'student_code': 'jax 2:bb'},
        {'teacher__run__student_code': 'jax 2:bb'},
    ],
)
def test_what_changes_no_number_is_free(changes):
    other = changed(RUN, **changes)
    assert descriptions.differences(RUN, other) == ''
    assert descriptions.refuse_other(FOLDER, RUN, other) == ''


def test_code_is_compared_as_the_same_versions_write_it():
    for versions in ('jax 2', 'jax 2 flax 1', 'flax 1', ''):
        assert descriptions.differences(CODE, changed(CODE, student_code=f'{versions}:bb')) == ''
    assert descriptions.differences(CODE, changed(CODE, student_code='jax 1 flax 1:bb')), 'jax wrote both'


def test_another_start_is_told_where_a_run_goes_on_and_refused_between_processes():
    other = changed(CODE, student_start='jax 1:bb')
    assert descriptions.refuse_other(FOLDER, CODE, other).startswith('runs/one: the run there began with other weights')
    assert descriptions.differences(CODE, other)
    assert descriptions.refuse_other(FOLDER, RUN, other) == ''


@pytest.mark.parametrize(
    ('changes', 'says'),
    [
        ({'seed': 1}, 'seed is 0 there and 1 here'),
        ({'recipe__optim__drops': (0.5,)}, r'recipe.optim.drops is \[0.5, 0.75\] there and \[0.5\] here'),
        ({'teacher__run__seed': 2}, 'teacher.run.seed is 0 there and 2 here'),
        ({'recipe__new': True}, 'recipe.new is None there and True here'),
        (
            {'data__name': 'cifar10', 'data__identity': 'cc', 'data__digests': {'train images': 'x'}},
            "data.name is 'digits' there and 'cifar10' here; use",
        ),
    ],
)
def test_another_configuration_is_named(changes, says):
    with pytest.raises(ValueError, match=f'runs/one holds a run of another configuration: .*{says}.*another --workdir'):
        descriptions.refuse_other(FOLDER, changed(RUN), changed(RUN, **changes))


def test_many_differences_are_cut_short():
    other = changed(RUN, seed=1, student='x', recipe__epochs=9, teacher__run__seed=3, data__name='x', recipe__a=1)
    assert descriptions.differences(RUN, other).endswith(' here and 2 more')


@pytest.mark.parametrize(
    ('run', 'changes', 'says'),
    [
        (RUN, {'data__identity': 'cc'}, r'the data \(points, labels or files\) is not that of the run in the folder'),
        (
            RUN,
            {'data__identity': 'cc', 'data__digests__test labels': 'cc', 'data__digests__class names': 'cc'},
            'the data .* of the run in the folder: class names, test labels differ',
        ),
        (RESTORED, {'teacher__identity': 'cc'}, r'the teacher \(its file\) is not that of the run in the folder'),
        (CODE, {'student_code': 'jax 1:cc'}, 'the code of the student is not that of the run in the folder'),
        (RUN, {'teacher__run__data__identity': 'cc'}, "the teacher's data .* is not that of the run in the folder"),
    ],
)
def test_changed_content_is_reported_in_words(run, changes, says):
    with pytest.raises(ValueError, match=f'runs/one holds another run: {says}; use another --workdir') as caught:
        descriptions.refuse_other(FOLDER, run, changed(run, **changes))
    assert 'cc' not in str(caught.value) and '\n' not in str(caught.value)
    assert descriptions.differences(run, changed(run, **changes))


def test_a_teacher_may_move_but_not_change():
    descriptions.refuse_other(FOLDER, RESTORED, changed(RESTORED, teacher__checkpoint='/there/t.safetensors'))
    without = changed(RESTORED, teacher__identity='')
    with pytest.raises(ValueError, match='teacher.checkpoint is'):
        descriptions.refuse_other(FOLDER, without, changed(without, teacher__checkpoint='/there/t.safetensors'))
