"""Golden arrays."""

from __future__ import annotations

import pathlib

import numpy as np
import pytest


@pytest.fixture(scope='session')
def golden():
    """golden('kcd')['stage0/count']: the arrays of tests/golden/kcd.npz."""
    return lambda name: np.load(pathlib.Path(__file__).parents[1] / 'golden' / f'{name}.npz')
