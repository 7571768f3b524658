"""Every method on the digits compared with the student alone, five seeds.

  ./launch/run.sh --config=configs/digits_methods.py --results=results/digits_methods

The recipe is that of digits_kd.py. Two methods need other students, which are also trained alone: FSP one as wide as
the teacher, ONE one with branches. KR has its own experiments (digits_kr.py). Results: docs/measured.md.
"""

from ml_collections import ConfigDict

from configs import digits_kd
from kcd_jax import methods
from kcd_jax.experiments import config as grammar

# The students of FSP and of ONE, which needs no teacher.
OTHER_STUDENTS = {'fsp': 'resnet8', 'one': 'resnet8_one'}


def get_config(arg=None):
    config = digits_kd.recipe()
    variants = {
        # Sun et al. (CVPR 2024): temperature 2, weight 9.
        'kd-standardised': {'run': 'kd', 'logits': 'standardised', 'weights': {'alpha': 9.0, 'temperature': 2.0}},
        # The papers' row "CRD".
        'crd+kd': {'run': 'crd', 'weights': {'alpha': 1.0}},
    }
    for method, student in OTHER_STUDENTS.items():
        variants[f'student-{student}'] = {'run': 'student', 'student': {'name': student}}
        variants[method] = {'run': method, 'student': {'name': student}}
    variants['one']['method'] = {'ramp': 16}  # 80 of the published 300 epochs
    config.variants, config.reference = ConfigDict(variants), 'student'
    plain = [name for name in methods.names() if name not in ('none', 'kd', 'kr', *variants)]
    config.compare = ('student', 'kd', *plain, *variants)
    config.trials = 5
    return grammar.build(config, arg, method='kd', policy='none', quicktest=digits_kd.QUICKTEST)
