"""Comparisons and trials: one teacher, one table, finished runs are not repeated, results overwrite nothing."""

from __future__ import annotations

import json
import pathlib

import pytest
from ml_collections import ConfigDict

from kcd_jax.experiments import config as grammar
from kcd_jax.experiments import experiment, runner
from kcd_jax.report import page
from kcd_jax.runtime import files
from kcd_jax.training import loop, teacher_cache
from tests.digits import one_device

pytestmark = pytest.mark.fast_compile

ROOT = pathlib.Path(__file__).resolve().parents[2]


@pytest.fixture
def config(tiny_networks):
    config = grammar.load(f'{ROOT}/configs/digits_kd.py:quicktest,tiny_teacher-tiny,compare=(student,kd,kcd),trials=2')
    config.checkpoint.seconds = 1e9
    return config


def test_an_experiment_runs_every_name_for_every_seed_and_ends_with_a_table(config, tmp_path, capsys, monkeypatch):
    results = runner.run(config, tmp_path / 'all', mesh=one_device())
    assert [(result.name, result.summary['seed']) for result in results] == [
        (name, seed) for seed in (0, 1) for name in ('student', 'kd', 'kcd')
    ]
    assert {result.workdir.relative_to(tmp_path).as_posix() for result in results} == {
        f'all/{name}/trial_{trial}' for trial in (0, 1) for name in ('student', 'kd', 'kcd')
    }
    teachers = {result.summary['teacher']['accuracy'] for result in results if result.summary['teacher']}
    assert len(teachers) == 1
    said = capsys.readouterr().out
    assert said.startswith('student: method none, policy none, tiny on digits, seed 0\n')
    assert 'kcd: method kd, policy kcd, tiny_teacher -> tiny on digits, seed 1\n' in said
    for word in ('Teacher', 'Student alone', 'KC-KD', 'vs KD', 'condensation 3/3 after epoch 5: kept 210 of 300'):
        assert word in said, word
    assert (tmp_path / 'all' / 'report.html').stat().st_size > 10_000

    # KD and KC-KD of a seed train on all points first: they are the same run until the first condensation.
    first = {}
    for result in results:
        records = [json.loads(line) for line in (result.workdir / 'metrics.jsonl').read_text().splitlines()]
        epoch = next(record for record in records if record['kind'] == 'train')
        first[result.name, result.summary['seed']] = epoch['entropy']
    for seed in (0, 1):  # the two programs round differently
        assert first['kd', seed] == pytest.approx(first['kcd', seed], rel=1e-5)
        assert first['kd', seed] != pytest.approx(first['student', seed], rel=1e-5)
    assert first['kd', 0] != first['kd', 1]

    # The same command again trains nothing, and prints the same.
    monkeypatch.setattr(loop.Trainer, '__init__', lambda *args, **kwargs: pytest.fail('a finished run was run again'))
    again = runner.run(config, tmp_path / 'all', mesh=one_device())
    assert [result.accuracy for result in again] == [result.accuracy for result in results]

    # Results carry no place of the machine; another experiment with the same names overwrites none of them.
    published = experiment.publish(tmp_path / 'all', tmp_path / 'results')
    assert {path.name for path in published} == {
        'teacher_1000.json',
        *(f'{name}_{seed}.json' for name in ('student', 'kd', 'kcd') for seed in (0, 1)),
    }
    assert not any(str(tmp_path) in path.read_text() for path in published)
    assert files.read_json(tmp_path / 'results' / 'kd_0.json')['accuracy'] == results[1].accuracy
    assert experiment.publish(tmp_path / 'all', tmp_path / 'results') == published
    for path in (tmp_path / 'all').rglob('summary.json'):
        summary = files.read_json(path)
        summary['run']['recipe']['epochs'] = 7
        path.write_text(json.dumps({**summary, 'accuracy': 0.125}))
    other = experiment.publish(tmp_path / 'all', tmp_path / 'results')
    assert not set(other) & set(published) and len(set(other)) == len(published)
    assert files.read_json(tmp_path / 'results' / 'kd_0.json')['accuracy'] == results[1].accuracy
    assert all(files.read_json(path)['accuracy'] == 0.125 for path in other)


def test_a_mistake_in_the_last_compared_run_is_found_before_the_first_trains(config, tmp_path):
    config.policy.stages = 4
    with pytest.raises(ValueError, match='4 stages do not divide 6 epochs'):
        runner.run(config, tmp_path / 'all', mesh=one_device())
    assert not (tmp_path / 'all').exists()


def test_each_page_shows_the_images_of_its_run(config, tmp_path, monkeypatch):
    """Variants with other data: the common page has no gallery, instead of another run's."""
    config.variants = ConfigDict({'fewer': {'run': 'kd', 'data': {'num_points': 200}}})
    config.compare, config.trials = ('kd', 'fewer'), 1
    shown = {}
    write = page.write
    monkeypatch.setattr(
        page, 'write', lambda folder, images=None, *args, **more: shown.update(
            {pathlib.Path(folder).relative_to(tmp_path).as_posix(): None if images is None else len(images)}
        ) or write(folder, images, *args, **more)
    )  # fmt: skip
    runner.run(config, tmp_path, mesh=one_device())
    assert shown == {'kd/trial_0': 300, 'fewer/trial_0': 200, '.': None}


def test_variants_are_runs_with_their_own_names_and_one_teacher(config):
    config.variants = ConfigDict(
        {
            'kd+sp': {'run': 'sp', 'weights': {'alpha': 0.5}},
            'kd-adam': {'run': 'kd', 'optim': {'name': 'adam', 'lr': 0.001}},
            'kd-other': {'run': 'kd', 'teacher': {'epochs': 9}},
            'kd-seed': {'run': 'kd', 'teacher': {'seed': 7}},
        }
    )
    config.compare, config.reference = ('student', 'kd', 'kd+sp', 'kd-adam', 'kd-other', 'kd-seed'), 'student'
    found = experiment.of_config(config)
    assert [cell.label for cell in found.cells] == list(config.compare) == [cell.run.name for cell in found.cells]
    assert found.references == ('student',) and found.seeds == (0, 1)
    by_label = {cell.label: cell.run for cell in found.cells}
    assert by_label['kd-adam'].recipe.optim.name == 'adam'
    assert by_label['kd-adam'].teacher.describe() == by_label['kd'].teacher.describe(), (
        'the optimiser is the student only'
    )
    tasks = runner.in_workdir(found, 'w')
    folders = {task.cell.label: task.teacher.as_posix() for task in tasks if task.cell.label != 'student'}
    assert folders == {
        'kd': 'w/teacher', 'kd+sp': 'w/teacher', 'kd-adam': 'w/teacher', 'kd-other': 'w/teacher_1',
        'kd-seed': 'w/teacher_2',
    }  # fmt: skip


@pytest.mark.parametrize(
    ('words', 'says'),
    [
        ('compare=(kd,kd)', 'compare names kd twice'),
        ('compare=(kd,kcdd)', "kcdd: unknown run in compare 'kcdd'.*did you mean 'kcd'"),
        ('trials=0', 'trials is 0'),
        ('seed=9223372036854775807,trials=2', 'exceeds'),
    ],
)
def test_what_cannot_be_an_experiment_is_refused(tiny_networks, words, says):
    with pytest.raises(ValueError, match=says):
        experiment.of_config(grammar.load(f'{ROOT}/configs/digits_kd.py:tiny_teacher-tiny,{words}'))


def test_the_same_run(tiny_networks):
    def described(words=''):
        run = grammar.run_of(grammar.load(f'{ROOT}/configs/digits_kd.py:tiny_teacher-tiny,policy=kcd{words}'))
        return json.loads(files.dumps(run.describe()))

    one = described()
    assert experiment.same_run(one, described(',seed=3'))
    assert experiment.same_run({**one, 'data': {**one['data'], 'dir': '/there'}}, one)
    assert experiment.same_run({key: value for key, value in one.items() if key != 'weights'}, one), (
        'of a later version'
    )
    assert not experiment.same_run(one, described(',ratio=0.5'))
    assert not experiment.same_run(one, described(',teacher.epochs=3'))
    other_points = {**one, 'data': {**one['data'], 'identity': 'another content'}}
    assert not experiment.same_run(one, other_points)
    assert experiment.same_run(one, {**one, 'data': {**one['data'], 'identity': ''}}), 'shapes have no content'
    older = {**one, 'recipe': {key: value for key, value in one['recipe'].items() if key != 'label_smoothing'}}
    assert experiment.same_run(older, one) and not experiment.same_run(older, described(',label_smoothing=0.1'))
    names = [experiment.folder_name(described(words)) for words in ('', ',seed=3', ',ratio=0.5')]
    assert names[0] == names[1] != names[2] and names[0].startswith('digits-tiny_teacher-tiny-kd-kcd-')


def test_published_results_of_other_runs_and_other_files_are_never_overwritten(tmp_path):
    """Equal names: another configuration, other data under the same settings, and files that are no results."""

    def publish(epochs, identity, accuracy, code=''):
        run = {
            'student': 'tiny', 'seed': 0, 'teacher': None, 'recipe': {'epochs': epochs},
            'data': {'name': 'folder', 'dir': '', 'identity': identity},
            'method': {'name': 'none'}, 'policy': {'name': 'none'}, 'policy_code': code and f'own file:{code}',
        }  # fmt: skip
        folder = tmp_path / f'{epochs}{identity}{code}'
        folder.mkdir(exist_ok=True)
        summary = {'name': 'kd', 'seed': 0, 'accuracy': accuracy, 'run': run}
        (folder / 'summary.json').write_text(json.dumps(summary))
        return experiment.publish(folder, tmp_path / 'results')[0]

    own = [publish(3, 'first', 0.1), publish(4, 'first', 0.2), publish(4, 'other', 0.3), publish(4, 'third', 0.4)]
    assert len(set(own)) == 4
    assert [files.read_json(path)['accuracy'] for path in own] == [0.1, 0.2, 0.3, 0.4]
    assert publish(4, 'third', 0.4) == own[3] and publish(3, 'first', 0.1) == own[0]  # the same run has the same file

    coded = [publish(5, 'first', accuracy, code) for accuracy, code in ((0.5, 'a'), (0.6, 'b'), (0.7, 'c'), (0.8, 'd'))]
    assert [files.read_json(path)['accuracy'] for path in coded] == [0.5, 0.6, 0.7, 0.8], 'other code, one each'

    for content in ('{"mine": 1}', '[1]', 'not JSON'):
        own[0].write_text(content)
        assert publish(3, 'first', 0.1) != own[0] and own[0].read_text() == content


@pytest.mark.slow
def test_a_sweep_with_shared_views_asks_the_teacher_once(tiny_networks, tmp_path, capsys, monkeypatch):
    """The second seed and the policies find every answer of the first run's; the table says how many there were."""
    monkeypatch.setattr(teacher_cache, '_SHARED', {})
    words = (
        'compare=(kd,random),trials=2,augment.seed=0,epochs=3,num_points=120,teacher.epochs=1,teaching.allow_weak=True'
    )
    config = grammar.load(f'{ROOT}/configs/digits_kd.py:quicktest,tiny_teacher-tiny,{words}')
    rows = [result.summary['computed']['teacher_rows'] for result in runner.run(config, tmp_path, mesh=one_device())]
    assert [row['computed'] > 0 for row in rows] == [True, False, False, False]
    computed, served = (sum(row[key] for row in rows) for key in ('computed', 'served'))
    said = ' '.join(capsys.readouterr().out.split())  # lines are wrapped
    share = f'{100 * computed / (computed + served):.2f} %'
    assert f"Of the teacher's {computed + served:,} answers, {computed:,} ({share}) were computed" in said
    assert 'views: shared by the seeds' in said
