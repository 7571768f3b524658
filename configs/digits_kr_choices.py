"""Alternatives for the choices that the KR paper leaves open, on the digits: one run per choice, three seeds.

  ./launch/run.sh --config=configs/digits_kr_choices.py:trials=1 --devices=1 --results=results/digits_kr_choices

`chosen` is KR with its defaults, `kd` its posterior alone. That command, one seed, makes the table of docs/KR.md.
"""

from ml_collections import ConfigDict

from configs import digits_kd, digits_kr
from kcd_jax.experiments import config as grammar

CHOICES = {
    'chosen': {},
    'dense': {'method': {'sparse': 'none'}},
    'drop': {'method': {'sparse': 'drop'}},
    'each-convolution': {'method': {'aggregate': 1}},
    'six-convolutions': {'method': {'aggregate': 6}},
    'mu-residual': {'method': {'mu': 'residual'}},
    'mu-one': {'method': {'mu': 'one'}},
    'transport-10': {'method': {'transport': 10.0}},
    'prior-lr-1': {'method': {'prior_lr': 1.0}},
    'strength-3': {'method': {'strength': 3.0}},
    'threshold-lr-10': {'method': {'threshold_lr': 10.0}},
    'floor-half': {'method': {'floor': 0.5}},
    'nst': {'method': {'posterior': 'nst'}},
    'kdgan': {'method': {'posterior': 'kdgan'}},
    'prior-only': {'weights': {'gamma': 0.0, 'alpha': 0.0}},
}


def get_config(arg=None):
    config = digits_kr.recipe()
    config.variants = ConfigDict({name: {'run': 'kr', **parts} for name, parts in CHOICES.items()})
    config.compare, config.trials, config.reference = ('student', 'kd', *CHOICES), 3, 'chosen'
    return grammar.build(config, arg, method='kd', policy='none', quicktest=digits_kd.QUICKTEST)
