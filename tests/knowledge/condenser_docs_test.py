"""The loops of docs/condenser.md run as they stand."""

from __future__ import annotations

import importlib.util
import pathlib
import re

import jax
import numpy as np

PAGE = pathlib.Path(__file__).parents[2] / 'docs' / 'condenser.md'


def test_the_loops_of_the_page_run_and_come_back_from_orbax(tmp_path: pathlib.Path):
    blocks = re.findall(r'^```python\n(.*?)^```', PAGE.read_text(encoding='utf-8'), re.DOTALL | re.MULTILINE)
    model, loop, linen, grain, streamed, orbax = blocks
    nnx = model + loop
    for block in (model, loop, linen):
        assert len([line for line in block.splitlines() if line.strip()]) <= 40
    names = {'folder': tmp_path / 'checkpoints'}
    with jax.numpy_dtype_promotion('standard'), jax.numpy_rank_promotion('allow'):
        exec(compile(nnx, 'nnx', 'exec'), names)
        sizes, values = names['condenser'].keep_counts, np.asarray(names['state'].table.value)
        assert int(names['plan'].num_keep) == sizes[-1] == 179
        assert (np.asarray(names['state'].table.count) > 0).all() and (values > 0).all()
        exec(compile(linen, 'linen', 'exec'), names)
        assert int(names['plan'].num_keep) == 179
        assert not np.array_equal(np.asarray(names['state'].table.value), values)
        if importlib.util.find_spec('grain') is None:
            names['points'] = np.asarray(names['plan'].order[:179])
        else:
            before = int(names['train'].step)
            exec(compile(grain + streamed, 'grain', 'exec'), names)
            assert int(names['train'].step) == before + 179 // 32
            batch, mixed = names['batch'], names['epsilon'] > 0
            assert batch['image'].shape == (32, 16, 16, 3) and mixed.sum() == min(179, 256 - 179)
            expected = names['condenser'].mix(names['plan'], names['images'], batch['index'])
            np.testing.assert_allclose(batch['image'], expected, atol=1e-6)
        saved = names['state']
        exec(compile(orbax, 'orbax', 'exec'), names)
    assert names['state'] is not saved and names['stage'] == 3
    jax.tree.map(np.testing.assert_array_equal, names['state'], saved)
