"""Train on the final set of another run from the first epoch on (KCD Fig. 4), with the same networks or others.

    python -m kcd_jax.main --config=FILE:words --config.policy.reuse=RUN [--config.policy.mode=ds]
    python -m kcd_jax report condensed-set RUN OUT       OUT.npz and OUT.txt, for use elsewhere

RUN is the folder of a run with a condensing policy (<workdir>/kcd/trial_0). Modes: 'vaks', the kept points mixed with
dropped ones as at the end of that run; 'ds' (direct selection), the kept points unmixed. `--config.policy.reuse=RUN` is
short for the words `policy=reuse` and `--config.policy.run=RUN`.
"""

from __future__ import annotations

import json
import pathlib
import zipfile
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from kcd_jax import knowledge
from kcd_jax.contracts import Plan, Policy, PyTree, table_rows
from kcd_jax.settings import ranges

MODES = ('vaks', 'ds')
_ARRAYS = ('order', 'num_keep', 'partner', 'epsilon')
_DATA = ('name', 'num_points', 'seed', 'validation')  # keys of config.data that determine the training points


def read(run: str) -> dict[str, np.ndarray]:
    """{'order', 'num_keep', 'partner', 'epsilon'}: the last plan in a run's folder `knowledge`.

    Raises:
      ValueError: there is none, or it cannot be read.
    """
    if not run:
        raise ValueError('policy reuse needs the folder of a run with policy kcd; use policy.run=FOLDER')
    files = list((pathlib.Path(run) / 'knowledge').glob('stage_*.npz'))
    files = sorted((f for f in files if f.stem.split('_')[1].isdigit()), key=lambda f: int(f.stem.split('_')[1]))
    if not files:
        raise ValueError(f'{run} holds no knowledge/stage_*.npz; give the folder of a finished run with policy kcd')
    try:
        with np.load(files[-1], allow_pickle=False) as stored:
            return {name: stored[name] for name in _ARRAYS}
    except (OSError, KeyError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(f'{files[-1]} cannot be read ({error}); run its command again') from error


def refuse_other_data(run: str, data: Mapping[str, Any]) -> None:
    """Raises ValueError unless the run in the folder `run` used the data that `data` describes.

    A set is a list of indices; on other data they would silently select other points.
    """
    try:
        theirs = json.loads((pathlib.Path(run) / 'config.json').read_text())['run']['data']
    except (OSError, KeyError, ValueError):
        return  # a folder with only the set does not describe its data
    for key in _DATA:
        if theirs.get(key) != data[key]:
            raise ValueError(
                f'{run} has data.{key}={theirs.get(key)!r}, but this run has {data[key]!r}, so its set selects other '
                'points; use a run on the same data'
            )


def export(run: str, target: str) -> tuple[pathlib.Path, pathlib.Path]:
    """Writes the final set of a run for use in other programs.

    TARGET.npz holds the kept points by rank: index i32[n], the point mixed into each, partner i32[n] (itself if none),
    and its share, epsilon f32[n]. TARGET.txt has one index per line. Indices are those of
    `kcd_jax.data.load(...).train`.

    Args:
      run: folder of the run.
      target: path without a suffix.

    Returns:
      The two files.

    Raises:
      ValueError: the run has no set, or it cannot be read.
    """
    stored = read(run)
    kept = stored['order'][: int(stored['num_keep'])]
    path = pathlib.Path(target)
    path.parent.mkdir(parents=True, exist_ok=True)
    arrays, listed = (path.with_name(f'{path.name}.{suffix}') for suffix in ('npz', 'txt'))
    np.savez(arrays, index=kept, partner=stored['partner'][kept], epsilon=stored['epsilon'][kept])
    listed.write_text(''.join(f'{index}\n' for index in kept))
    return arrays, listed


@ranges(mode={'choices': MODES})
def make(*, run: str = '', mode: str = 'vaks') -> Policy:
    """Builds the policy; reads the run's folder.

    Args:
      run: folder of the run whose final set is used.
      mode: 'ds': the kept points unmixed; 'vaks': mixed with dropped points as at the end of that run.

    Raises:
      ValueError: there is no such set, or mode 'vaks' with a set that has no mixing.
    """
    stored = read(run)
    num_keep = int(stored['num_keep'])
    if mode == 'vaks' and not stored['epsilon'].any():
        raise ValueError(
            f"the final set of {run} has no mixing (preset 'reference' keeps it in its pool); use mode='ds'"
        )

    def keep_counts(num_points: int, epochs: int) -> list[int]:
        if len(stored['order']) != table_rows(num_points) or stored['order'][:num_keep].max() >= num_points:
            raise ValueError(f'the set of {run} is not of these {num_points} points; use a run on the same data')
        return [num_keep] * epochs

    def replan(key, table, plan: Plan, state: PyTree, epoch: int, epochs: int) -> tuple[Plan, PyTree]:
        del key, table, plan, epoch, epochs
        new = knowledge.unmixed_plan(jnp.asarray(stored['order'], jnp.int32), num_keep)
        if mode == 'vaks':
            new = new.replace(
                partner=jnp.asarray(stored['partner'], jnp.int32), epsilon=jnp.asarray(stored['epsilon'], jnp.float32)
            )
        return new, state

    return Policy(when=lambda epoch, epochs: epoch == 0, replan=replan, keep_counts=keep_counts, mixes=mode == 'vaks')
