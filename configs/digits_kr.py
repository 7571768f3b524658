"""KR's sparse recoding against the other penalties on the digits, five seeds: the paper's Fig. 5 on a small scale.

  ./launch/run.sh --config=configs/digits_kr.py --workdir=runs/kr_fig5 --results=results/digits_kr_fig5
  python -m kcd_jax report figures runs/kr_fig5

Data and networks are those of digits_kd.py, for 300 iterations. `configs/digits_kr_choices.py` compares other choices.
"""

from ml_collections import ConfigDict

from configs import digits_kd
from kcd_jax.experiments import config as grammar

# {run: KR's keyword `sparse`}; 'dense' is the paper's name for KR without recoding.
SPARSE = {'recode': 'recode', 'penalty': 'penalty', 'l1': 'l1', 'l2': 'l2', 'dense': 'none'}


def recipe():
    """The recipe of digits_kd.py with a third of its epochs, 300 iterations."""
    config = digits_kd.recipe()
    config.epochs = 20
    return config


def get_config(arg=None):
    config = recipe()
    config.variants = ConfigDict({name: {'run': 'kr', 'method': {'sparse': word}} for name, word in SPARSE.items()})
    config.compare, config.trials, config.reference = tuple(SPARSE), 5, 'dense'
    return grammar.build(config, arg, method='kr', policy='none', quicktest=digits_kd.QUICKTEST)
