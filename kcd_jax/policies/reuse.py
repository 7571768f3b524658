"""The final set of another run, from the first epoch on (KCD Fig. 4), for the same pair of networks or another one."""

from __future__ import annotations

import pathlib
import zipfile

import jax.numpy as jnp
import numpy as np

from kcd_jax import knowledge
from kcd_jax.spec import Plan, Policy, PyTree, table_rows

MODES = ('vaks', 'ds')
_ARRAYS = ('order', 'num_keep', 'partner', 'epsilon')


def read(run: str) -> dict[str, np.ndarray]:
    """{'order', 'num_keep', 'partner', 'epsilon'}: the last plan that a run left in its folder `knowledge`.

    Raises:
      ValueError: there is none, or it cannot be read.
    """
    if not run:
        raise ValueError('policy reuse needs a run; give the folder of one that condensed: policy.run=FOLDER')
    files = list((pathlib.Path(run) / 'knowledge').glob('stage_*.npz'))
    files = sorted((f for f in files if f.stem.split('_')[1].isdigit()), key=lambda f: int(f.stem.split('_')[1]))
    if not files:
        raise ValueError(f'{run} holds no knowledge/stage_*.npz; give the folder of a finished run with policy kcd')
    try:
        with np.load(files[-1], allow_pickle=False) as stored:
            return {name: stored[name] for name in _ARRAYS}
    except (OSError, KeyError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(f'{files[-1]} cannot be read ({error}); run its command again') from error


def export(run: str, target: str) -> None:
    """Writes the final set of a run for use elsewhere.

    TARGET.npz holds the kept points by rank (index, partner, epsilon), TARGET.txt one index a line.
    """
    stored = read(run)
    kept = stored['order'][: int(stored['num_keep'])]
    path = pathlib.Path(target)
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(
        path.with_name(f'{path.name}.npz'), index=kept, partner=stored['partner'][kept], epsilon=stored['epsilon'][kept]
    )
    path.with_name(f'{path.name}.txt').write_text(''.join(f'{index}\n' for index in kept))


def make(*, run: str = '', mode: str = 'vaks') -> Policy:
    """Builds the policy; reads the run's folder.

    Args:
      run: folder of the run whose final set is used.
      mode: 'ds': the kept points with their own images; 'vaks': with the dropped ones mixed in as at that run's end.

    Raises:
      ValueError: no such set, one of another data set, or one that holds no mixing where it is asked for.
    """
    knowledge.check_choice('mode', mode, MODES)
    stored = read(run)
    num_keep = int(stored['num_keep'])
    if mode == 'vaks' and not stored['epsilon'].any():
        raise ValueError(
            f"the final set of {run} mixes nothing (preset 'reference' mixes in a pool of its own); use mode='ds'"
        )

    def keep_counts(num_points: int, epochs: int) -> list[int]:
        if len(stored['order']) != table_rows(num_points) or stored['order'][:num_keep].max() >= num_points:
            raise ValueError(f'the set of {run} is not one of these {num_points} points; use a run on the same data')
        return [num_keep] * epochs

    def replan(key, table, plan: Plan, state: PyTree, epoch: int, epochs: int) -> tuple[Plan, PyTree]:
        del key, table, epoch, epochs
        new = knowledge.unmixed_plan(jnp.asarray(stored['order'], jnp.int32), num_keep)
        if mode == 'vaks':
            new = new.replace(
                partner=jnp.asarray(stored['partner'], jnp.int32), epsilon=jnp.asarray(stored['epsilon'], jnp.float32)
            )
        return knowledge.place_like(new, plan), state

    return Policy(when=lambda epoch, epochs: epoch == 0, replan=replan, keep_counts=keep_counts, mixes=mode == 'vaks')
