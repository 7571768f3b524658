"""A teacher that a run trained serves runs in other folders, if it is whole and of the same description."""

from __future__ import annotations

import json

import pytest

from kcd_jax.training import shared_teachers
from tests import digits

pytestmark = pytest.mark.fast_compile


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch, tiny_networks):
    monkeypatch.setenv('KCD_JAX_TEACHERS', str(tmp_path / 'shared'))
    return tmp_path / 'shared'


@pytest.fixture
def trained(monkeypatch):
    """The names of the runs that are trained, in order."""
    started = []
    create = digits.loop.Trainer.__init__

    def counted(self, run, *args, **kwargs):
        started.append(run.name)
        create(self, run, *args, **kwargs)

    monkeypatch.setattr(digits.loop.Trainer, '__init__', counted)
    return started


def small(seed=0):
    points = digits.data.load('digits', num_points=40)
    recipe = {'epochs': 1, 'batch': 20, 'survey': False, 'teaching': {'allow_weak': True}}
    teacher = digits.Run('tiny_teacher', points, recipe=recipe, seed=seed)
    return digits.object_run(teacher, data=points, policy=digits.policies.get('none').make(), recipe=recipe)


def test_a_teacher_is_found_again_and_checked(cache, tmp_path, trained, capsys, monkeypatch):
    run, mesh = small(), digits.one_device()
    first = run.train(tmp_path / 'one', mesh=mesh)
    assert trained == ['teacher', first.name] and len(list(cache.iterdir())) == 1
    (entry,) = cache.iterdir()

    second = run.train(tmp_path / 'two', mesh=mesh)
    assert trained[2:] == [first.name]
    assert (
        f'teacher tiny_teacher: trained by an earlier run, found in {entry} (KCD_JAX_TEACHERS'
        in capsys.readouterr().out
    )
    digits.assert_same_run(tmp_path / 'one', tmp_path / 'two')
    for name in ('student.safetensors', 'summary.json', 'metrics.jsonl'):
        assert (tmp_path / 'two/teacher' / name).read_bytes() == (tmp_path / 'one/teacher' / name).read_bytes()
    assert second.summary['teacher'] == first.summary['teacher']

    weights, description = entry / 'student.safetensors', json.loads((entry / 'summary.json').read_text())['run']
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    assert shared_teachers.fetch(description, tmp_path / 'three') is None
    shared_teachers.publish(description, tmp_path / 'one' / 'teacher')
    assert weights.read_bytes() == whole
    (tmp_path / 'four' / 'checkpoints' / '20').mkdir(parents=True)  # it goes on by itself
    assert shared_teachers.fetch(description, tmp_path / 'four') is None
    monkeypatch.setenv('KCD_JAX_TEACHERS', 'off')
    assert shared_teachers.fetch(description, tmp_path / 'three') is None


def test_what_decides_the_place(monkeypatch):
    description = json.loads(json.dumps(small().teacher.describe(), default=str))
    place = shared_teachers.entry(description)
    assert place == shared_teachers.entry(
        {**description, 'name': 'other', 'data': {**description['data'], 'dir': '/x'}}
    )
    assert place != shared_teachers.entry({**description, 'seed': 7})
    assert shared_teachers.fetch(description, place) is None
    about = shared_teachers.environment.describe()
    monkeypatch.setattr(shared_teachers.environment, 'describe', lambda: {**about, 'precision': 'highest'})
    assert place != shared_teachers.entry(description)


def test_a_cache_that_cannot_be_written_stops_nothing(tmp_path, monkeypatch):
    (tmp_path / 'file').write_text('')
    monkeypatch.setenv('KCD_JAX_TEACHERS', str(tmp_path / 'file' / 'below'))
    description = json.loads(json.dumps(small().teacher.describe(), default=str))
    shared_teachers.publish(description, tmp_path)
    assert shared_teachers.fetch(description, tmp_path) is None


def test_the_slower_of_two_processes_leaves_the_first_ones_files(cache, tmp_path, monkeypatch):
    description = json.loads(json.dumps(small().teacher.describe(), default=str))
    run = tmp_path / 'run'
    run.mkdir()
    (run / 'student.safetensors').write_bytes(b'weights')
    (run / 'manifest.json').write_text(json.dumps(shared_teachers.runlog._manifest(run)))
    (run / 'summary.json').write_text(json.dumps({'run': description}))
    rename = shared_teachers.os.rename

    def late(source, target):
        monkeypatch.setattr(shared_teachers.os, 'rename', rename)
        shared_teachers.publish(description, run)  # the other process, just before
        rename(source, target)

    monkeypatch.setattr(shared_teachers.os, 'rename', late)
    shared_teachers.publish(description, run)
    (entry,) = cache.iterdir()
    assert not shared_teachers.runlog.damaged(entry)
    workdir = tmp_path / 'new'
    assert shared_teachers.fetch(description, workdir) == entry
    assert (workdir / 'student.safetensors').read_bytes() == b'weights'
