"""Teacher-student pairs of the papers' tables, as data: learning rates and per-pair settings of the methods."""

LIGHT = ('mobilenetv2', 'shufflev1', 'shufflev2')  # the papers train these with a fifth of the learning rate

PAIRS: dict[str, dict] = {}


def lr_for(student: str) -> float:
    """The papers' initial learning rate on CIFAR-100 at batch 64: 0.01 for the light networks, else 0.05."""
    return 0.01 if student in LIGHT else 0.05
