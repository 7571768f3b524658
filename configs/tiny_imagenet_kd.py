"""KC-KD on Tiny ImageNet with UNIX's recipe (Table 6): resnet32x4 -> shufflev2, 100 epochs, batch 256, 64 pixels.

Paper (UNIX), top-1 accuracy in %: KD 62.83, UNIX 63.64 at 78.92 % of the computation, without labels. KCD has no such
table; its 6 stages do not divide 100 epochs, so there are 5 stages of 20.
  python -m kcd_jax data prepare tiny_imagenet
  python -m kcd_jax.main --config=configs/tiny_imagenet_kd.py
  python -m kcd_jax.main --config=configs/tiny_imagenet_kd.py:resnet32x4-shufflev1,policy=unix,policy.beta=0.2,k=192
The learning rate is 0.1 for every network and drops at epochs 40, 70 and 90. The paper does not give the padding of its
crop of 64 pixels; 8 is CIFAR's, relative to the image size.
"""

from kcd_jax.experiments import config as grammar


def get_config(arg=None):
    config = grammar.base()
    config.data.name = 'tiny_imagenet'
    config.augment.crop = 8
    config.teacher.name, config.student.name = 'resnet32x4', 'shufflev2'
    config.teacher.epochs, config.teacher.batch, config.teacher.lr = 100, 256, 0.1
    config.epochs, config.batch = 100, 256
    config.optim.lr, config.optim.drops = 0.1, (0.4, 0.7, 0.9)
    quicktest = {
        'trials': 1,
        'epochs': 6,
        'teacher.epochs': 1,
        'batch': 64,
        'teacher.batch': 64,
        'data.num_points': 512,
        'teacher.num_points': 512,
        'policy.stages': 3,
    }
    return grammar.build(
        config,
        arg,
        method='kd',
        policy='kcd',
        keywords={name: {'stages': 5} for name in ('kcd', 'random')},
        quicktest=quicktest,
        lr=lambda network: 0.1,
    )
