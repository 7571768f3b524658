"""Short runs on the digits with the tests' tiny networks (fixture `tiny_networks`), and what a run leaves."""

from __future__ import annotations

import json
import pathlib

import numpy as np

from kcd_jax.experiments import experiment
from kcd_jax.runtime import checkpoint

ROOT = pathlib.Path(__file__).parent.parent


def config_for(words: str = '', pair: str = 'tiny_teacher-tiny', method: str = 'kd', policy: str = 'kcd', **settings):
    """The digits config in quicktest form, saved and evaluated at its end alone; `settings` of its top level."""
    words = f'quicktest,{pair},method={method},policy={policy},{words}'
    config = experiment.load_config(f'{ROOT}/configs/digits_kd.py:{words}')
    config.checkpoint.seconds, config.eval_every = 1e9, 6
    for key, value in settings.items():
        config[key] = value
    return config


def final_state(workdir: str | pathlib.Path) -> dict[str, np.ndarray]:
    """Every array of the newest checkpoint, by its path."""
    with checkpoint.Checkpointer(pathlib.Path(workdir) / 'checkpoints') as keeper:
        return keeper.read(keeper.steps()[-1])[0]


def metrics(workdir: str | pathlib.Path) -> list[dict]:
    """The records of a run without their times."""
    lines = (pathlib.Path(workdir) / 'metrics.jsonl').read_text().splitlines()
    return [{key: value for key, value in json.loads(line).items() if key != 'time'} for line in lines]


def assert_same_run(one: str | pathlib.Path, other: str | pathlib.Path) -> None:
    """Bit-identical arrays and equal records."""
    arrays, others = final_state(one), final_state(other)
    assert arrays.keys() == others.keys()
    for path, array in arrays.items():
        np.testing.assert_array_equal(array, others[path], err_msg=path)
    assert metrics(one) == metrics(other)
