"""KC-KD on CIFAR-100 (KCD, Table 1): wrn_40_2 -> wrn_16_2, 240 epochs, batch 64.

Paper, accuracy in %: teacher 75.61, student alone 73.26, KD 74.92, KC-KD 75.70. Cost: 81.76 % of KD's samples.
  python -m kcd_jax.main --config=configs/cifar100_kd.py
  python -m kcd_jax.main --config=configs/cifar100_kd.py:resnet56-resnet20,method=kd,policy=kcd
The teacher is trained first, by the same recipe, unless `teacher.checkpoint` names one. On two CPU cores a run of this
size takes days.
"""

from kcd_jax.experiments import config as grammar


def get_config(arg=None):
    config = grammar.base()
    quicktest = {
        'trials': 1,
        'epochs': 6,
        'teacher.epochs': 1,
        'data.num_points': 1280,
        'teacher.num_points': 1280,
        'policy.stages': 3,
        'optim.drops': (0.5, 0.75),
    }
    return grammar.build(config, arg, method='kd', policy='kcd', quicktest=quicktest)
