"""Scikit-learn's digits, made hard enough to separate methods in minutes on two CPU cores.

The teacher is trained on 1,200 points and a narrow student on 300 of them, with noise and shifts.
  ./launch/run.sh --config=configs/digits_kd.py
"""

from kcd_jax.experiments import config as grammar

QUICKTEST = {'trials': 1, 'epochs': 6, 'teacher.epochs': 6, 'policy.stages': 3}


def recipe():
    """The data, the networks and the schedule."""
    config = grammar.base()
    config.data.name, config.data.num_points = 'digits', 300
    config.augment.crop, config.augment.flip = 2, False
    config.student.name, config.teacher.name = 'resnet8x0_25', 'resnet14'
    config.teacher.epochs, config.teacher.lr, config.teacher.batch = 30, 0.05, 64
    config.epochs, config.batch = 60, 20
    config.optim.lr = 0.05
    config.eval_every, config.eval_batch = 5, 600
    return config


def get_config(arg=None):
    config = recipe()
    config.compare = ('student', 'kd', 'random', 'kcd')
    config.trials = 3
    return grammar.build(config, arg, method='kd', policy='kcd', quicktest=QUICKTEST)
