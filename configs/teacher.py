"""Trains a teacher: `configs/teacher.py:NETWORK,dataset=NAME,...`, the papers' recipe with plain cross entropy.

Paper (KCD, Table 1), CIFAR-100 accuracy in %: wrn_40_2 75.61, resnet56 72.34, resnet32x4 79.42, vgg13 74.64,
resnet50_cifar 79.34.
  python -m kcd_jax.main --config=configs/teacher.py:wrn_40_2,dataset=cifar100 --workdir=runs/teacher_wrn_40_2
  python -m kcd_jax.main --config=configs/cifar100_kd.py:teacher.checkpoint=runs/teacher_wrn_40_2/student/trial_0
"""

from kcd_jax.experiments import config as grammar


def get_config(arg=None):
    config = grammar.base()
    config.student.name = 'wrn_40_2'
    quicktest = {'epochs': 2, 'data.num_points': 1280}
    return grammar.build(config, arg, method='none', policy='none', quicktest=quicktest)
