"""Students that learn embeddings: teachers without logits, values that are losses, linear probes and neighbours."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from kcd_jax import data, methods, networks, policies
from kcd_jax.report import page, tables
from kcd_jax.teachers import Teacher
from kcd_jax.training import probe
from kcd_jax.training.run import Run
from tests.digits import metrics, one_device

pytestmark = pytest.mark.fast_compile

SETTINGS = {'epochs': 4, 'batch': 16, 'augment': {'crop': 0}, 'eval_every': 2, 'optim': {'lr': 0.05}}


@pytest.fixture(scope='module')
def points():
    """(images u8[80, 8, 8, 3], labels i32[80]): the class is the colour of which there is most."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 80)
    images = rng.integers(0, 150, (80, 8, 8, 3))
    images[np.arange(80), :, :, labels] += 100
    return images.astype(np.uint8), labels


def embedding(pixels: np.ndarray) -> np.ndarray:
    """A teacher's embeddings f32[P, 4]."""
    means = pixels.mean(axis=(1, 2))
    return np.concatenate([means, means.max(axis=1, keepdims=True)], axis=1) - 0.4


def run_of(points, labels=None, test=None, teacher=None, policy='kcd', **fields) -> Run:
    return Run(
        student='tiny',
        teacher=teacher or Teacher.from_callable(embedding, version='means'),
        data=data.from_arrays(points[0], labels, test=test),
        **{
            'method': methods.get('embed').make(),
            'policy': policies.get(policy).make(**({'stages': 2, 'augment': 'none'} if policy == 'kcd' else {})),
            'recipe': SETTINGS,
            **fields,
        },
    )


def test_a_teacher_of_embeddings_alone_and_no_labels(points, tiny_networks, tmp_path):
    run = run_of(points)
    lines = '\n'.join(run.check())
    assert 'its own loss' in lines and 'gives embeddings alone' in lines and 'reads embeddings' not in lines
    result = run.train(tmp_path / 'run', mesh=one_device())
    summary, records = result.summary, metrics(result.workdir)
    assert (result.accuracy, summary['measure'], summary['agreement']) == (None, 'cosine', None)
    cosines = [one['cosine'] for one in records if one['kind'] == 'eval']
    assert len(cosines) == 2 and -1 <= cosines[0] < cosines[1] == summary['cosine']
    # Values are losses: of points seen once, their mean is the epoch's mean loss.
    table, first = np.load(result.workdir / 'knowledge/stage_1.npz'), records[0]
    seen = table['count'] > 0
    assert table['value'][seen].mean() == pytest.approx(first['extra'], rel=1e-4) and first['loss'] == first['extra']
    assert 'entropy' not in first and 'teacher_entropy' not in first
    assert set(np.load(result.workdir / 'knowledge/points.npz').files) == {'value', 'count'}
    [table] = tables.tables(tables.collect([result.workdir]))
    assert table.headers[1] == 'cosine %' and f'{100 * summary["cosine"]:.2f}' in table.rows[-1]
    text = page.write(result.workdir).read_text()
    assert 'None' not in text and 'value (loss' in text and 'nats' not in text


def test_labels_give_a_linear_probe_and_neighbours(points, tiny_networks, tmp_path):
    network = networks.get('tiny_teacher')(3)
    variables = network.init(jax.random.key(0), (8, 8, 3))
    teacher = Teacher(network, variables, {'network': 'tiny_teacher', 'num_classes': 3})
    run = run_of(points, points[1], teacher=teacher, policy='none')
    result = run.train(tmp_path / 'run', mesh=one_device())
    assert result.summary['measure'] == 'accuracy' and result.summary['class_accuracy'] is None
    model, train, test = result.model, run.data.train, run.data.test
    embed = [
        np.asarray(model.network.apply(model.variables, split.images / np.float32(255), False)[0].embed)
        for split in (train, test)
    ]
    expected = probe.accuracies(embed[0], train.labels, embed[1], test.labels)
    assert expected == {name: result.summary[name] for name in ('accuracy', 'knn_accuracy')}
    [table] = tables.tables(tables.collect([result.workdir]))
    assert any('linear probe' in note for note in table.notes)


def test_both_accuracies_against_what_is_known(points):
    images, labels = points
    embed = embedding(images / 255.0)
    found = probe.accuracies(embed[:60], labels[:60], embed[60:], labels[60:])
    assert found == {'accuracy': 1.0, 'knn_accuracy': 1.0}
    shuffled = np.random.default_rng(1).permutation(labels)
    chance = probe.accuracies(embed[:60], shuffled[:60], embed[60:], shuffled[60:])
    assert max(chance.values()) < 0.7
    assert probe.accuracies(embed[:60], 0 * labels[:60], embed[60:], labels[60:]) == {}


def test_a_teacher_without_logits_is_refused_where_they_are_read(points, tiny_networks):
    for change, words in (
        ({'method': methods.get('kd').make()}, 'reads its logits; it can serve the methods'),
        ({'weights': {'alpha': 1.0}}, 'reads its logits'),
        ({'policy': 'unix'}, 'policy unix selects by predictions'),
    ):
        with pytest.raises(ValueError) as error:
            run_of(points, **change).validate()
        assert words in str(error.value) and '\n' not in str(error.value)
    with pytest.raises(ValueError, match='give embeddings alone'):
        Teacher.ensemble([Teacher.from_callable(embedding, version=name) for name in 'ab'])
    flat = Teacher.from_callable(lambda pixels: embedding(pixels)[:, 0], version='flat')
    with pytest.raises(ValueError, match=r'returned embeddings of shape \[8\] instead of \[8, D\]'):
        flat.for_images((8, 8, 3))


@pytest.mark.parametrize(('policy', 'keywords'), [('moderate', {}), ('rounds', {'doubt': 0.2, 'sizes': 'constant'})])
def test_policies_that_read_the_teacher_alone_work_without_predictions(
    points, tiny_networks, policy, keywords, tmp_path
):
    network = networks.get('tiny_teacher')(3)
    teacher = Teacher(
        network, network.init(jax.random.key(0), (8, 8, 3)), {'network': 'tiny_teacher', 'num_classes': 3}
    )
    chosen = policies.get(policy).make(ratio=0.5, **keywords)
    run = run_of(points, points[1], teacher=teacher, policy='none').replace(policy=chosen)
    result = run.train(tmp_path, mesh=one_device())
    assert {plan['kept'] for plan in result.summary['condensations']} == {run.num_points // 2}
    for name in ('learnability', 'unix'):
        with pytest.raises(ValueError, match=f'policy {name} selects by predictions, and method embed trains none'):
            run.replace(policy=policies.get(name).make()).validate()


def test_stored_embeddings_alone(points, tiny_networks, tmp_path):
    embed = embedding(points[0] / np.float32(255))
    np.savez(tmp_path / 'embed.npz', embed=embed[:64], test_embed=embed[64:])
    stored = Teacher.from_outputs(tmp_path / 'embed.npz')
    assert (
        stored.serves == {'embed'}
        and stored.identity == Teacher.from_outputs(embed=embed[:64], test_embed=embed[64:]).identity
    )
    run = run_of((points[0][:64],), test=(points[0][64:], points[1][64:]), teacher=stored, policy='none')
    result = run.train(tmp_path / 'run', mesh=one_device())
    assert result.summary['cosine'] > -1 and result.summary['measure'] == 'accuracy'  # labels of the test images alone
    for arrays, words in (
        ({}, 'neither logits'),
        ({'embed': embed[:64, 0]}, r'embed of stored outputs has shape \[64\]'),
        ({'embed': embed[:64], 'test_embed': embed[64:, :3]}, r'use \[16, 4\]'),
    ):
        with pytest.raises(ValueError, match=words):
            Teacher.from_outputs(**arrays)


def test_embeddings_are_judged_at_the_end_or_not_at_all(points, tiny_networks, tmp_path, capfd):
    """Without test_embed and with labels of the test images: a probe after the last epoch. Without both: refused."""
    embed = embedding(points[0] / np.float32(255))
    stored = Teacher.from_outputs(embed=embed[:64])
    run = run_of((points[0][:64],), test=(points[0][64:], points[1][64:]), teacher=stored, policy='none')
    result = run.train(tmp_path / 'run', mesh=one_device())
    assert result.summary['measure'] == 'accuracy' and result.summary['cosine'] is None
    assert 'measured after the last epoch' in capfd.readouterr().out
    with pytest.raises(ValueError, match='the teacher has no embeddings of them that method embed compares with'):
        run_of((points[0][:64],), test=(points[0][64:], None), teacher=stored, policy='none').validate()


@pytest.mark.parametrize('stored', [False, True])
def test_a_teacher_of_embeddings_beside_labels(points, tiny_networks, tmp_path, stored):
    """With gamma above 0 the student predicts, and its teacher does not."""
    teacher = Teacher.from_callable(embedding, version='means')
    if stored:
        embed = embedding(points[0] / np.float32(255))
        teacher = Teacher.from_outputs(embed=embed[:64], test_embed=embed[64:])
    run = run_of(
        (points[0][:64],), points[1][:64], test=(points[0][64:], points[1][64:]), teacher=teacher, policy='none',
        weights={'gamma': 1.0},
    )  # fmt: skip
    summary = run.train(tmp_path / 'run', mesh=one_device()).summary
    assert summary['measure'] == 'accuracy' and summary['agreement'] is None and summary['teacher']['accuracy'] is None
    assert 'teacher_entropy' not in np.load(tmp_path / 'run' / 'knowledge/points.npz').files
