"""KD and KC-KD on the digits with other recipes: cosine decay with warm-up, Adam, function matching; seeds 0 to 2.

  python -m kcd_jax train --config=configs/digits_recipes.py --results=results/digits_recipes

Data, networks and teacher are those of digits_kd.py. This tests whether a selection helps under other learning rate
schedules too: in the papers' recipe the drops come late, when few points are left.

Function matching (Beyer et al. 2022, "Knowledge distillation: A good teacher is patient and consistent") has no labels,
mixup of every image with a uniform share, Adam with decoupled weight decay and gradients clipped to norm 1, a cosine
with warm-up, and many more epochs: four times as many here. The paper tunes temperature, rate and weight decay per data
set; the values here are in its ranges and were not tuned.
"""

from ml_collections import ConfigDict

from configs import digits_kd
from kcd_jax.experiments import config as grammar

RECIPES = {
    'cosine': {'optim': {'schedule': 'cosine', 'warmup': 5}},
    'adam': {'optim': {'name': 'adam', 'lr': 0.002, 'weight_decay': 0.0, 'schedule': 'cosine', 'warmup': 5}},
    'function_matching': {
        'weights': {'gamma': 0.0, 'alpha': 1.0, 'temperature': 1.0},
        'optim': {
            'name': 'adamw',
            'lr': 0.003,
            'weight_decay': 3e-4,
            'clip': 1.0,
            'schedule': 'cosine',
            'warmup': 5,
        },
        'augment': {'mixup': 1.0},
        'epochs': 240,
    },
}
RUNS = ('kd', 'random', 'kcd')
QUICKTEST = {
    **digits_kd.QUICKTEST,
    **{f'variants.{run}-function_matching.epochs': digits_kd.QUICKTEST['epochs'] for run in RUNS},
}


def get_config(arg=None):
    config = digits_kd.recipe()
    variants = {f'{run}-{name}': {'run': run, **recipe} for name, recipe in RECIPES.items() for run in RUNS}
    config.variants = ConfigDict(variants)
    config.compare, config.trials = (*RUNS, *variants), 3
    return grammar.build(config, arg, method='kd', policy='kcd', quicktest=QUICKTEST)
