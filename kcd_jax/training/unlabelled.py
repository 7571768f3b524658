"""What cannot work without labels is refused by name, before the first compile."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kcd_jax.contracts import LABEL_SCORES, Method, Policy
from kcd_jax.data import Dataset
from kcd_jax.teachers.teacher import Teacher
from kcd_jax.training import serving

if TYPE_CHECKING:
    from kcd_jax.training.run import Run


def with_classes(dataset: Dataset, teacher: Teacher | Run | None) -> Dataset:
    """The data with the classes of its teacher, where the data itself names none.

    A teacher that gives embeddings alone has none: the student gets logits for those of the test images, or a single
    one, which nothing trains.
    """
    if dataset.num_classes:
        return dataset
    if teacher is None:
        raise ValueError(
            f'the data {dataset.name} has no labels, so it cannot train a network on its own; give a teacher '
            '(teacher.checkpoint=FILE, or Teacher.restore and the like)'
        )
    if isinstance(teacher, Teacher):
        seen = int(dataset.test.labels.max()) + 1  # 1 without labels
        return dataset.with_classes(teacher.card.get('num_classes') or seen, teacher.card.get('class_names') or ())
    return dataset.with_classes(teacher.data.num_classes, teacher.data.class_names)


def lacking(method: Method, policy: Policy) -> str:
    """Which of a method and a policy reads labels, in words; '' if neither does."""
    if method.needs_labels:
        return f'method {method.name or "custom"} reads the labels of the training points'
    if policy.reads_labels or {*policy.teacher_scores} & {*LABEL_SCORES}:
        return f'policy {policy.name or "custom"} reads the labels of the training points'
    return ''


def _label_free(method: Method, policy: Policy) -> str:
    """What to use in place of what `lacking` names."""
    if method.needs_labels:
        return 'a method that needs none, such as kd'
    if policy.keywords.get('score') == 'cross_entropy':
        return 'policy.score=entropy, which needs none'
    return 'a policy that needs none (none, random, kcd)'


def _has_held_out(teacher: Teacher | Run | None) -> bool:
    """Whether the teacher answers for the held-out images."""
    return teacher is not None and all(outputs.test is not None for outputs in serving.stored_outputs(teacher))


def _compares_embeddings(run: Run) -> bool:
    """Whether the student's embeddings are compared with the teacher's on the held-out images."""
    known = all(outputs.test_embed is not None for outputs in serving.stored_outputs(run.teacher))
    return run.method.similarity is not None and 'embed' in run.needs and known


def refuse(run: Run) -> None:
    """ValueError, in one line, for a run that would train on labels that its data does not have."""
    if run.data.test_labelled and run.data.num_classes <= (most := int(run.data.test.labels.max())):
        raise ValueError(f'{run.data.name} has the test label {most}, and there are {run.data.num_classes} classes')
    if run.predicts and not run.data.scored and not _has_held_out(run.teacher):
        raise ValueError(
            f'the held-out images of {run.data.name} have no labels, and no teacher answers for them, so nothing can '
            'be measured; give labels of the test images, or leave these out: some training images are then held out'
        )
    if not run.predicts and not run.data.scored and not _compares_embeddings(run):
        raise ValueError(
            f'the held-out images of {run.data.name} have no labels, and the teacher has no embeddings of them that '
            f'method {run.method.name or "custom"} compares with, so nothing can be measured; give labels of the test '
            'images, or test_embed'
        )
    if not run.predicts and (run.policy.scores or run.policy.reads_predictions):
        raise ValueError(
            f'policy {run.policy.name or "custom"} selects by predictions, and method {run.method.name or "custom"} '
            'trains none; use kcd, random or none, or weights.alpha above 0'
        )
    if run.data.labelled:
        return
    if what := lacking(run.method, run.policy):
        raise ValueError(f'{what}, and {run.data.name} has none; use {_label_free(run.method, run.policy)}')
    for phase in run.phases:
        for update in phase.updates:
            weights = run.weights if update.weights is None else update.weights
            if weights.gamma > 0:
                raise ValueError(
                    f'weights.gamma is {weights.gamma:g}, and {run.data.name} has no labels; use weights.gamma=0'
                )
            if not weights.alpha and not weights.beta:
                raise ValueError(
                    f'without labels nothing is left to train on in phase {phase.name} of method '
                    f'{run.method.name or "custom"}; set weights.alpha above 0'
                )
