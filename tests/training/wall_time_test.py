"""The estimate of `--check`: proportional to the work, and never a promise."""

from __future__ import annotations

import pytest

from kcd_jax import methods, policies
from kcd_jax.training import wall_time
from tests import digits


@pytest.fixture
def known(tiny_networks, monkeypatch):
    """(run, mesh, multiply-accumulates of its student and of its teacher per image), at a million a second."""
    monkeypatch.setattr(wall_time, '_speed', lambda batch, side, width, mesh: 1e6)
    run = digits.object_run()
    counts = (
        wall_time.ledger.network_macs(network, run.data.image_shape)
        for network in (run.student_network, run.teacher_network)
    )
    return run, digits.one_device(), *counts


def test_it_is_proportional_to_the_work(known):
    run, mesh, student, teacher = known
    images = sum(run.steps) * run.recipe.batch
    assert wall_time.seconds(run, mesh) == pytest.approx((3 * student + teacher) * images / 1e6)
    assert wall_time.seconds(run.teacher, mesh) == pytest.approx(3 * teacher * sum(run.teacher.steps) * 20 / 1e6)
    line = wall_time.line(run, mesh)
    assert line.startswith(f'time       about {wall_time.duration(wall_time.seconds(run, mesh))} of steps, and ')
    assert 'for the teacher if none is trained yet' in line
    assert 'teacher' not in wall_time.line(run.teacher, mesh)


def test_every_pass_counts(known):
    """Four views of SSKD, and no teacher in a step that reads none."""
    run, mesh, student, teacher = known
    scored = run.replace(method=methods.get('none').make(), policy=policies.get('moderate').make())
    assert wall_time.seconds(scored, mesh) == pytest.approx(3 * student * sum(scored.steps) * 20 / 1e6)
    views = run.replace(method=methods.get('sskd').make())
    head = sum(count for (phase, _), count in zip(views.epochs, views.steps, strict=True) if phase.name == 'head')
    main = sum(views.steps) - head
    images = 4 * 20 * (main * (3 * student + teacher) + head * teacher)
    assert wall_time.seconds(views, mesh) == pytest.approx(images / 1e6, rel=0.2), 'the head trains no student'


def test_the_speed_is_measured_here():
    assert 1e5 < wall_time._speed(16, 16, 8, digits.one_device()) < 1e14


@pytest.mark.parametrize(
    ('seconds', 'text'), [(0.1, '1 s'), (42.4, '42 s'), (90, '2 min'), (5000, '83 min'), (12_240, '3.4 h')]
)
def test_durations(seconds, text):
    assert wall_time.duration(seconds) == text
