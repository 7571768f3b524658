"""Evaluation in many small batches finishes on several devices and counts every image once."""

from __future__ import annotations

import os
import pathlib
import subprocess
import sys

import jax
import numpy as np
import pytest

from kcd_jax import data
from kcd_jax.runtime import sharding
from kcd_jax.training import evaluate
from tests.tiny import tiny

pytestmark = pytest.mark.fast_compile

ROOT = pathlib.Path(__file__).parent.parent.parent

# Two CPU devices and 299 batches: dispatched without waiting, they deadlock in an all-reduce.
MANY_BATCHES = """
import jax
jax.config.update('jax_num_cpu_devices', 2)
from kcd_jax import data, networks
from kcd_jax.runtime import sharding
from kcd_jax.training import evaluate

digits, mesh = data.load('digits'), sharding.make_mesh()
network = networks.get('resnet8')(digits.num_classes)
variables = sharding.put(network.init(jax.random.PRNGKey(0), digits.image_shape), sharding.replicated(mesh))
evaluator = evaluate.Evaluator(digits.test, 2, mesh)
for _ in range(2):
    result, logits = evaluator('student', network, variables)
entropy, _ = evaluator.read('student', network, variables, digits.test, None)
print(len(logits), len(entropy), result['accuracy'])
"""


def test_many_small_batches_on_two_devices_finish():
    environment = {**os.environ, 'PYTHONPATH': str(ROOT)}
    found = subprocess.run(
        [sys.executable, '-c', MANY_BATCHES], env=environment, cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert found.returncode == 0, found.stderr
    batches, points, accuracy = found.stdout.split()
    assert (int(batches), int(points)) == (299, 597) and 0 <= float(accuracy) <= 1


@pytest.mark.parametrize('batch', [7, 64, 500])
def test_the_result_does_not_depend_on_the_batch(batch):
    digits = data.load('digits')
    network = tiny.make('tiny', digits.num_classes)
    variables = network.init(jax.random.PRNGKey(0), digits.image_shape)
    evaluator = evaluate.Evaluator(digits.test, batch, sharding.make_mesh())
    result, logits = evaluator('student', network, variables)
    images = digits.test.images.astype(np.float32) / 255
    expected = np.asarray(network.apply(variables, images, False)[0].logits)
    np.testing.assert_allclose(evaluator.on_host(logits), expected, atol=1e-5)
    assert result['accuracy'] == pytest.approx(np.mean(np.argmax(expected, axis=1) == digits.test.labels))
