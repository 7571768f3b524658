"""The package's own surface."""

from __future__ import annotations

import subprocess
import sys

import pytest

import kcd_jax


def test_importing_the_package_is_cheap():
    code = 'import sys, kcd_jax; assert not {"jax", "flax", "numpy"} & set(sys.modules), "kcd_jax imports its parts"'
    subprocess.run([sys.executable, '-c', code], check=True)


def test_public_names():
    assert kcd_jax.Condenser is kcd_jax.knowledge.Condenser
    assert 'kcd' in kcd_jax.policies.names() and {'Condenser', 'knowledge'} <= set(dir(kcd_jax))
    assert all(hasattr(kcd_jax, name) for name in kcd_jax.__all__) and set(kcd_jax.__all__) <= set(dir(kcd_jax))
    assert all(hasattr(kcd_jax.knowledge, name) for name in kcd_jax.knowledge.__all__)
    with pytest.raises(AttributeError, match='no attribute'):
        kcd_jax.condense  # noqa: B018


def test_an_unknown_policy_names_the_known_ones():
    with pytest.raises(ValueError, match="unknown policy 'kdc' \\(did you mean 'kcd'\\?\\); known: .*random"):
        kcd_jax.policies.get('kdc')
