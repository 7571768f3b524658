"""KC-KD on ImageNet (KCD, Table 3): resnet34 -> resnet18, 90 epochs in 6 stages of 15, batch 256, 224 pixels.

Paper, top-1 error in %: teacher 26.69, student alone 30.25, KD 29.34, KC-KD 28.61. Cost relative to KD: 81.76 % of the
samples by its Algorithm 1 (81.61 % in its table).
  python -m kcd_jax.main --config=configs/imagenet_kd.py:teacher.checkpoint=resnet34.pth --check
  python -m kcd_jax.main --config=configs/imagenet_kd.py:resnet18-shufflev2_x0_5,policy=unix,policy.beta=0.2
  python -m kcd_jax.main --config=configs/imagenet_kd.py:dataset=folder:224,data.dir=ROOT
TFDS prepares imagenet2012 from the archives that image-net.org provides after registration (docs/data.md). It is
streamed, since it takes 193 GB as uint8 images of 224 pixels. A folder ROOT/train/CLASS, ROOT/val/CLASS works too.

The paper states a weight decay of 5e-4 (weight_decay=5e-4); the default here is 1e-4, as in other ImageNet recipes. The
paper gives no weights for KD; those of its CIFAR-100 command are used. Not measured.
"""

from kcd_jax.experiments import config as grammar


def get_config(arg=None):
    config = grammar.base()
    config.data.name = 'imagenet2012'
    config.augment.crop, config.augment.area = 0, (0.08, 1.0)
    config.teacher.name, config.student.name = 'resnet34', 'resnet18'
    config.teacher.epochs, config.teacher.batch, config.teacher.lr = 90, 256, 0.1
    config.epochs, config.batch, config.eval_batch = 90, 256, 500
    config.optim.lr, config.optim.drops, config.optim.weight_decay = 0.1, (1 / 3, 2 / 3), 1e-4
    config.checkpoint.seconds = 600.0
    quicktest = {
        'trials': 1,
        'epochs': 6,
        'teacher.epochs': 1,
        'batch': 32,
        'teacher.batch': 32,
        'data.num_points': 256,
        'teacher.num_points': 256,
        'policy.stages': 3,
    }
    return grammar.build(config, arg, method='kd', policy='kcd', quicktest=quicktest, lr=lambda network: 0.1)
