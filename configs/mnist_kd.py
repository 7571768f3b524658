"""KC-KD on MNIST: resnet20 -> resnet8, 24 epochs in 6 stages of 4, batch 128.

The papers' only result on MNIST is the convergence of KR (its Fig. 5), without naming the networks; use method=kr.
Digits are shifted by up to 2 pixels and not mirrored.
  python -m kcd_jax data prepare mnist
  python -m kcd_jax.main --config=configs/mnist_kd.py
"""

from kcd_jax.experiments import config as grammar


def get_config(arg=None):
    config = grammar.base()
    config.data.name = 'mnist'
    config.augment.crop, config.augment.flip = 2, False
    config.teacher.name, config.student.name = 'resnet20', 'resnet8'
    config.teacher.epochs, config.teacher.batch = 12, 128
    config.epochs, config.batch = 24, 128
    quicktest = {
        'trials': 1,
        'epochs': 6,
        'teacher.epochs': 4,
        'teacher.batch': 32,  # enough steps to get above chance, which a teacher must
        'data.num_points': 1280,
        'teacher.num_points': 1280,
        'policy.stages': 3,
    }
    return grammar.build(config, arg, method='kd', policy='kcd', quicktest=quicktest)
