"""KR on CIFAR-10, resnet26 -> resnet8_kr (KR, Table 1), 64,000 iterations at batch 128.

Paper, accuracy in %: teacher 91.91; resnet8 alone 87.91, FitNet 88.57, FSP 88.70, NST 88.98, KDGAN 88.62; the narrower
student with KR 90.65, without recoding (KR-Dense) 89.11, with KDGAN 91.35.
  python -m kcd_jax.main --config=configs/kr.py                                        # KR
  python -m kcd_jax.main --config=configs/kr.py:posterior=kdgan                        # KR + KDGAN
  python -m kcd_jax.main --config='configs/kr.py:compare=(student,fitnet,fsp,nst,kdgan,kr,kr-dense,kr+kdgan),trials=5'
  python -m kcd_jax sweep kr_optimisers                                                   # Adam and RMSprop, Sec. 4.3
  python -m kcd_jax.main --config=configs/kr.py:resnet32-resnet14_kr,dataset=cifar100     # Table 2
  python -m kcd_jax.main --config=configs/kr.py:resnet32-resnet14_kr,dataset=tcifar100    # Table 4

In a comparison the other methods train the paper's wider student (resnet8, resnet14), as in its tables. The paper gives
the learning rates (0.1 and 0.01), their drops (30k and 48k iterations), decay 1e-5 and momentum 0.9, but not the batch
size and the number of epochs: docs/KR.md.
"""

from ml_collections import ConfigDict

from kcd_jax.experiments import config as grammar

LEARNING_RATE = 0.1


def get_config(arg=None):
    config = grammar.base()
    config.data.name = 'cifar10'
    config.student.name, config.teacher.name = 'resnet8_kr', 'resnet26'
    config.epochs = config.teacher.epochs = 164
    config.batch = config.teacher.batch = 128
    config.optim.weight_decay, config.optim.drops = 1e-5, (30 / 64, 48 / 64)
    quicktest = {'epochs': 2, 'teacher.epochs': 2, 'data.num_points': 1280, 'teacher.num_points': 1280, 'trials': 1}
    words = f'optim.lr={LEARNING_RATE},teacher.lr={LEARNING_RATE},{arg or ""}'  # instead of the pair's learning rates
    config = grammar.build(config, words, method='kr', policy='none', quicktest=quicktest)
    wide = {'student': {'name': config.student.name.removesuffix('_kr')}}
    others = ('student', 'fitnet', 'fsp', 'nst', 'kdgan')
    config.variants = ConfigDict(
        {
            **{name: {'run': name, **wide} for name in others},
            'kr-dense': {'run': 'kr', 'method': {'sparse': 'none'}},
            'kr+kdgan': {'run': 'kr', 'method': {'posterior': 'kdgan'}},
            # Sec. 4.3, "Joint Optimization". The paper gives no learning rates for these two.
            'kr-adam': {'run': 'kr', 'optim': {'name': 'adam', 'lr': 0.001}},
            'kr-rmsprop': {'run': 'kr', 'optim': {'name': 'rmsprop', 'lr': 0.001, 'momentum': 0.0}},
        }
    )
    config.reference = 'student'
    return config
