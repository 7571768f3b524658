"""A policy that reads labels and the teacher's scores, in runs: resident, and streamed and cut."""

from __future__ import annotations

import numpy as np
import pytest

from tests.digits import final_state, one_device, run_for, sigterm, stage

pytestmark = pytest.mark.fast_compile


@pytest.mark.slow
def test_a_selection_by_labels_and_scores_is_the_same_streamed_and_cut(tiny_networks, tmp_path):
    """The visits of every point and the last plan of `rounds`, which depend on no sum that rounds differently."""
    words, mesh = 'ratio=0.5,doubt=0.1,num_points=120,survey=false', one_device()
    whole = run_for(words, policy='rounds').train(tmp_path / 'whole', teacher_dir=tmp_path / 'teacher', mesh=mesh)
    streamed = run_for(f'{words},stream=true,teacher.checkpoint={tmp_path}/teacher', policy='rounds')
    with sigterm(3, 1):
        streamed.train(tmp_path / 'cut', mesh=mesh)
    cut = streamed.train(tmp_path / 'cut', mesh=mesh)
    plans = [stage(run.workdir, 6) for run in (whole, cut)]
    assert plans[0]['num_keep'] == 60 and len(whole.summary['condensations']) == 6
    np.testing.assert_array_equal(plans[0]['order'], plans[1]['order'])
    counts = [
        next(array for path, array in final_state(run.workdir).items() if 'table' in path and 'count' in path)
        for run in (whole, cut)
    ]
    np.testing.assert_array_equal(*counts)
    assert cut.summary['cost'] == whole.summary['cost']
