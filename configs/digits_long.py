"""The built-in example, long-tailed digits: KD, the student alone, and four choices of points at 30 % of KD's compute.

In this regime the policies differ most (docs/benchmark.md): 110 points of the most frequent class, 3 of the rarest, and
a test set with equal classes. Three seeds; the ratios are solved for 30 %.
  ./launch/run.sh --config=configs/digits_long.py
"""

from ml_collections import ConfigDict

from configs import digits_kd
from kcd_jax.experiments import config as grammar


def get_config(arg=None):
    config = digits_kd.recipe()
    config.data.name, config.data.num_points = 'digits:long', 0
    config.epochs, config.batch, config.eval_every = 36, 12, 36
    config.teacher.epochs = 120  # 600 steps
    config.augment.seed = 1  # the seeds show the same views, so that the teacher answers once
    config.variants = ConfigDict(
        {
            'random': {'run': 'random', 'policy': {'stages': 1, 'first': 'none', 'drawn': 'epoch', 'ratio': 0.328}},
            'kcd': {'run': 'kcd', 'policy': {'ratio': 0.077}},
            'balanced': {'run': 'balanced', 'policy': {'classes': 'even', 'ratio': 0.328}},
            'rounds': {'run': 'rounds', 'policy': {'ratio': 0.077}},
        }
    )
    config.compare = ('student', 'kd', 'random', 'kcd', 'balanced', 'rounds')
    config.reference, config.trials = 'random', 3
    return grammar.build(config, arg, method='kd', policy='kcd', quicktest=digits_kd.QUICKTEST)
