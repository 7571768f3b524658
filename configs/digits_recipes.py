"""KD and KC-KD on the digits with other optimisers: cosine decay with warm-up, and Adam; seeds 0 to 2.

  python -m kcd_jax train --config=configs/digits_recipes.py --results=results/digits_recipes

Data, networks and teacher are those of digits_kd.py. This tests whether a selection helps under other learning rate
schedules too: in the papers' recipe the drops come late, when few points are left.
"""

from ml_collections import ConfigDict

from configs import digits_kd
from kcd_jax.experiments import config as grammar

RECIPES = {
    'cosine': {'optim': {'schedule': 'cosine', 'warmup': 5}},
    'adam': {'optim': {'name': 'adam', 'lr': 0.002, 'weight_decay': 0.0, 'schedule': 'cosine', 'warmup': 5}},
}


def get_config(arg=None):
    config = digits_kd.recipe()
    variants = {
        f'{run}-{name}': {'run': run, **recipe} for name, recipe in RECIPES.items() for run in ('kd', 'random', 'kcd')
    }
    config.variants = ConfigDict(variants)
    config.compare, config.trials = ('kd', 'random', 'kcd', *variants), 3
    return grammar.build(config, arg, method='kd', policy='kcd', quicktest=digits_kd.QUICKTEST)
