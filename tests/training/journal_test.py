"""What a summary says of the held-out images."""

from __future__ import annotations

import base64

import numpy as np

from kcd_jax.training.journal import right_answers


def test_right_answers_count_repeated_points_once():
    logits, labels = np.eye(2)[[0, 1, 0, 1, 1, 1]], np.array([0, 1, 1] * 2)
    for ids, points in ((None, 6), (np.array(['a', 'b', 'c'] * 2), 3), (np.array(['a', 'b', 'b', 'a', 'c', 'd']), 6)):
        found = right_answers(logits, labels, ids)
        bits = np.unpackbits(np.frombuffer(base64.b64decode(found['bits']), np.uint8), count=found['images'])
        assert found['points'] == points and bits.tolist() == [1, 1, 0, 0, 1, 1]
