"""A run in ImageNet's shape, streamed, killed in the middle of an epoch (`imagenet.py`)."""

from __future__ import annotations

import json
import os
import pathlib
import random
import signal

import pytest

from tests.faults import imagenet

pytestmark = pytest.mark.fast_compile

ROOT = pathlib.Path(__file__).parent.parent.parent


@pytest.mark.slow
def test_a_run_killed_within_an_epoch_ends_bit_for_bit(tmp_path: pathlib.Path):
    """256 JPEGs of 1,000 classes at 32 pixels through six condensations; tiny networks, saved after every step."""
    kept = {name: os.environ[name] for name in ('JAX_COMPILATION_CACHE_DIR', 'JAX_DISABLE_MOST_OPTIMIZATIONS')}
    bench = imagenet.ImageNet(tmp_path, 32, 'tiny_teacher-tiny,checkpoint.seconds=0', env=kept)
    bench.prepare(timed=False)
    ends = bench.ends()
    assert len(ends) == 7
    summary = json.loads((bench.whole / bench.run / 'summary.json').read_text())
    assert len(summary['condensations']) == 6 and summary['num_classes'] == 8  # of 1,000 folders 8 hold images
    assert [len(list((bench.whole / bench.run / 'knowledge').glob('stage_*.npz')))] == [6]
    injection = bench.killed(1, random.Random(0))
    assert injection.code == -signal.SIGKILL and injection.lost == []


def test_the_stored_result_at_224_pixels_lost_nothing():
    """Written by `python tests/faults/imagenet.py --size=224`, which takes minutes."""
    found = json.loads((ROOT / 'results' / 'imagenet_killed_224.json').read_text())
    assert found['images'] == {'train': 256, 'test': 64, 'classes': 1000, 'used': 8, 'pixels': 224}
    assert found['condensations'] == 6
    (injection,) = found['injections']
    assert injection['code'] == -signal.SIGKILL and injection['lost'] == []
