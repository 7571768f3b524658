"""Your own pictures: a student of a folder, with a teacher that is trained first or comes from a file. One command:

  python -m kcd_jax train --config=configs/folder_kd.py --config.data.dir=/pictures
  python -m kcd_jax train --config=configs/folder_kd.py --config.data.dir=/pictures --config.teacher.checkpoint=FILE
  python -m kcd_jax train --config=configs/folder_kd.py:resnet34-resnet18,dataset=folder:224 --config.data.dir=/pictures

/pictures holds train/CLASS/*.jpg and test/CLASS/*.jpg, or CLASS/*.jpg alone, of which a tenth is held out; pictures of
any size are scaled to 64 pixels (folder:SIZE). Without class folders there are no labels: then a teacher from a file
says what the pictures are. `--check` prints what was found and what the run costs, and trains nothing.
`:quicktest,resnet8-resnet8x0_25` trains tiny networks at 32 pixels for six epochs, to see that it works.
`:compare=(student,kd,random,kcd),trials=3` shows what condensation does on this data.
"""

from kcd_jax.experiments import config as grammar

QUICKTEST = {
    'data.name': 'folder:32',
    'epochs': 6,
    'batch': 16,
    'teacher.epochs': 6,
    'teacher.batch': 16,
    'policy.stages': 3,
}


def get_config(arg=None):
    config = grammar.base()
    config.data.name, config.data.num_points = 'folder:64', 0
    config.augment.crop = 8
    config.teacher.name, config.student.name = 'resnet32x4', 'resnet8x4'
    config.teacher.epochs = config.epochs = 120
    config.teacher.batch = config.batch = 64
    config.eval_every = 5
    return grammar.build(config, arg, method='kd', policy='kcd', quicktest=QUICKTEST)
