from __future__ import annotations

import json

import numpy as np
import pytest

from kcd_jax.report import records
from tests.report.runs import make_stage


def test_stages_have_no_padding_rows(experiment):
    first, second, third = records.read_stages(experiment / 'kcd' / 'trial_0')
    assert [stage.number for stage in (first, second, third)] == [1, 2, 3]
    made = make_stage(2, seed=2)
    assert second.value.shape == second.count.shape == second.order.shape == second.kept.shape == (300,)
    assert second.num_keep == 243 and second.kept.sum() == 243
    assert set(np.nonzero(second.kept)[0]) == set(made['order'][:243])
    np.testing.assert_array_equal(second.value, made['value'][:300])


def test_evenly_spaced_stages_are_read(experiment, tmp_path):
    folder = tmp_path / 'run' / 'knowledge'
    folder.mkdir(parents=True)
    for number in range(1, 13):
        np.savez(folder / f'stage_{number}.npz', **make_stage(1))
    assert [stage.number for stage in records.read_stages(tmp_path / 'run')] == list(range(1, 13))
    assert [stage.number for stage in records.read_stages(tmp_path / 'run', 4)] == [1, 5, 8, 12]
    assert [stage.number for stage in records.read_stages(tmp_path / 'run', 1)] == [12]
    assert records.read_stages(experiment / 'kd' / 'trial_0') == []


def test_a_damaged_stage_is_named(experiment):
    path = experiment / 'kcd' / 'trial_0' / 'knowledge' / 'stage_2.npz'
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(ValueError, match=r'stage_2.npz is damaged .*; remove it or run that run again'):
        records.read_stages(experiment / 'kcd' / 'trial_0')
    np.savez(path, **{**make_stage(1), 'num_keep': np.int32(999)})
    with pytest.raises(ValueError, match='999 kept of 300 points'):
        records.read_stages(experiment / 'kcd' / 'trial_0')


def test_metrics(experiment):
    run = experiment / 'kcd' / 'trial_0'
    metrics = records.read_metrics(run)
    assert records.series(metrics, 'eval', 'accuracy') == (
        [1, 2, 3, 4, 5, 6],
        [0.75 * epoch / 6 for epoch in range(1, 7)],
    )
    with open(run / 'metrics.jsonl', 'a') as file:
        file.write('{"kind": "eval", "epo')
    assert len(records.read_metrics(run)) == len(metrics), 'a cut last line is what a killed run leaves'
    (run / 'metrics.jsonl').write_text('{"kind"\n{"kind": "eval"}\n')
    with pytest.raises(ValueError, match='line 1 is damaged'):
        records.read_metrics(run)
    assert records.read_metrics(experiment) == []


def test_series_leaves_out_non_numbers():
    lines = [{'kind': 'eval', 'epoch': 1, 'accuracy': None}, {'kind': 'eval', 'epoch': 2, 'accuracy': 0.5}]
    assert records.series(json.loads(json.dumps(lines)), 'eval', 'accuracy') == ([2.0], [0.5])


def test_points_whose_arrays_do_not_fit_together_are_damaged(tmp_path):
    (tmp_path / 'knowledge').mkdir()
    path = tmp_path / 'knowledge' / 'points.npz'
    np.savez(path, count=np.ones(3), entropy=np.ones(3))
    assert set(records.read_points(tmp_path)) == {'count', 'entropy'}
    for arrays in ({'entropy': np.ones(2)}, {'entropy': np.ones((3, 2))}):
        np.savez(path, **{'count': np.ones(3), **arrays})
        with pytest.raises(ValueError, match=r'points.npz is damaged \(its arrays do not fit together: count \[3\]'):
            records.read_points(tmp_path)
