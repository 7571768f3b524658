"""The measurement of the networks' speed (not the speed itself)."""

from __future__ import annotations

import math

import jax
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from benchmarks import networks_speed
from kcd_jax import networks


def test_a_network_is_measured_on_a_mesh():
    mesh = jax.make_mesh((2,), ('data',), axis_types=(AxisType.Auto,), devices=jax.devices()[:2])
    rows, everywhere = (NamedSharding(mesh, spec) for spec in (PartitionSpec('data'), PartitionSpec()))
    sizes = {'batch': 4, 'num_classes': 5, 'pixels': 8, 'seconds': 0.0}
    found = networks_speed.measure('resnet8x0_25', **sizes, sharding=rows, replicated=everywhere)
    assert found.name == 'resnet8x0_25'
    assert all(math.isfinite(value) and value > 0 for value in (found.forward, found.train, found.compile_seconds))


def test_the_networks_that_are_measured_exist():
    assert set(networks_speed.CIFAR) <= set(networks.names())
