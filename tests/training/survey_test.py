"""Statistics of points and classes against loops."""

from __future__ import annotations

import numpy as np
import pytest

from kcd_jax.training import survey


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def test_class_accuracy():
    logits = np.eye(4)[[0, 1, 1, 2, 0]]
    found = survey.class_accuracy(logits, np.array([0, 1, 0, 2, 2]), 4)
    assert found == [0.5, 1.0, 0.5, None]


def test_distance_to_the_centre_of_the_own_class(rng):
    embed, labels = rng.normal(size=(30, 5)).astype(np.float32), rng.integers(0, 3, 30)
    found = survey.distance_to_centre(embed, labels, 3)
    for i in range(30):
        centre = np.mean([embed[j] for j in range(30) if labels[j] == labels[i]], axis=0)
        assert found[i] == pytest.approx(np.sqrt(np.sum((embed[i] - centre) ** 2)), rel=1e-5)


def test_correlation_matches_numpy(rng):
    logits = rng.normal(size=(40, 4)).astype(np.float32)
    np.testing.assert_allclose(survey.correlation(logits), np.corrcoef(logits, rowvar=False), atol=1e-12)
    logits[:, 2] = 1.0
    assert not survey.correlation(logits)[2].any()


def test_of_points_omits_missing_values(rng):
    entropy, labels = rng.random(6), np.array([0, 1, 2, 0, 1, 2])
    assert set(survey.of_points(entropy, None, None, labels, 3)) == {'entropy'}
    seen = survey.of_points(entropy, rng.normal(size=(6, 4)), 2 * entropy, labels, 3)
    assert set(seen) == {'entropy', 'distance', 'teacher_entropy'}
    np.testing.assert_array_equal(seen['teacher_entropy'], 2 * entropy)


def test_distances_in_chunks_are_the_same(rng, monkeypatch):
    embed, labels = rng.normal(size=(30, 5)).astype(np.float32), rng.integers(0, 3, 30)
    whole = survey.distance_to_centre(embed, labels, 3)
    monkeypatch.setattr(survey, 'CHUNK', 7)
    np.testing.assert_array_equal(survey.distance_to_centre(embed, labels, 3), whole)
