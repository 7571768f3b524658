"""Whether a teacher that answers on the host can serve a run: what cannot work is refused before the first compile."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from kcd_jax import methods
from kcd_jax.contracts import LABEL_SCORES, SCORES
from kcd_jax.teachers.teacher import Teacher

if TYPE_CHECKING:
    from kcd_jax.training.run import Run

EMBEDDING_BYTES = 2**32  # limit for the embeddings of all points; ImageNet's 1.28 million of width 512 take 2.6e9


def view_count(run: Run) -> int | None:
    """Different views of a training point, all of the method's rows counted; None where they are not finite."""
    augment = run.recipe.augment
    if augment.endless:
        return None
    if augment.views:
        return run.method.num_views * augment.views
    if run.data.train.draws_crops:  # a reader that crops gives no image twice
        return None
    return run.method.num_views * (2 if augment.flip else 1) * (2 * augment.crop + 1) ** 2


def servable(serves: frozenset[str]) -> list[str]:
    """The methods of the package that read nothing of their teacher but `serves`."""
    found = []
    for name in methods.names():
        method = methods.get(name).make()
        asked = {*method.needs, *(('logits',) if methods.weights_of(method).alpha > 0 else ())}
        if asked and asked <= serves:
            found.append(name)
    return found


def refuse_unserved(run: Run) -> None:
    """ValueError, in one line, where the run asks its teacher for what it cannot give."""
    teacher = run.teacher
    if unknown := sorted({*run.policy.teacher_scores} - {*SCORES}):
        raise ValueError(f'policy {run.policy.name} reads the score {unknown[0]!r}; use {", ".join(SCORES)}')
    reads_label = [name.replace('_', ' ') for name in run.policy.teacher_scores if name in LABEL_SCORES]
    if reads_label and not run.data.labelled:
        raise ValueError(
            f"policy {run.policy.name} reads the teacher's {reads_label[0]}, and {run.data.name} has no labels"
        )
    what = f'the teacher {run.teacher_network.name}' if run.uses_teacher else ''
    if 'distance' in run.policy.teacher_scores and run.setup.teacher.embed is None:
        raise ValueError(f'{what} gives no embeddings, which policy {run.policy.name} reads; use a teacher that does')
    if 'distance' in run.policy.teacher_scores:
        size = 4 * run.num_points * run.setup.teacher.embed.shape[1]
        if size > EMBEDDING_BYTES:
            raise ValueError(
                f'policy {run.policy.name} needs the embeddings of all {run.num_points:,} points at once, '
                f'{size / 2**30:.1f} GiB on every process; use a teacher with narrower ones, or another policy'
            )
    if run.host is None:
        return
    if lacking := sorted(run.needs - teacher.serves):
        can = ', '.join(servable(teacher.serves))
        raise ValueError(
            f'{what} gives {" and ".join(sorted(teacher.serves, reverse=True))}, and method '
            f'{run.method.name or "custom"} reads its {", ".join(lacking)}; it can serve the methods {can}'
        )
    if {*run.policy.teacher_scores} - {'distance'} and 'logits' not in teacher.serves:
        raise ValueError(
            f'{what} gives embeddings alone, and the scores that policy {run.policy.name} reads are computed with '
            'logits; use a teacher that gives these as well, or another policy'
        )
    if run.needs and (why := run.teacher_in_step):
        raise ValueError(f'{what} can only be asked before the steps, and this run needs it inside the step: {why}')
    for outputs in stored_outputs(teacher):
        _refuse_stored(outputs, run)


def stored_outputs(teacher: Teacher | Run) -> list[Any]:
    """The stored outputs of a teacher, or among the members of an ensemble."""
    if not isinstance(teacher, Teacher) or teacher.host is None or teacher.host.kind == 'callable':
        return []
    if teacher.host.kind == 'outputs':
        return [teacher.host]
    return [outputs for member in teacher.members for outputs in stored_outputs(member)]


def _refuse_stored(outputs: Any, run: Run) -> None:
    what, held_out = f'the teacher {outputs.name}', run.data.held_out
    if run.needs and run.mixing is not None:
        raise ValueError(
            f'{what} holds stored outputs, and mixup and CutMix mix images without stored outputs; use augment.mixup=0 '
            'and augment.cutmix=0, or a teacher that can be asked'
        )
    if run.needs and run.policy.mixes:
        raise ValueError(
            f'{what} holds stored outputs, and policy {run.policy.name} mixes images without stored outputs; use one '
            'that mixes none (kcd with augment=none, random, infobatch, none), or a teacher that can be asked'
        )
    if len(outputs.train) != run.num_points:
        raise ValueError(f'{what} holds {len(outputs.train):,} training points and the data has {run.num_points:,}')
    for key, rows in (('test_embed', outputs.test_embed), ('test', outputs.test)):
        if rows is not None and len(rows) != len(held_out):
            raise ValueError(f'{what} holds {len(rows):,} test images ({key}) and the data evaluates {len(held_out):,}')
    if outputs.num_views is None:
        if run.needs and run.method.num_views > 1:
            raise ValueError(
                f'{what} holds one answer per point, and method {run.method.name} shows {run.method.num_views} '
                'transformed ones; store an answer per view, [N, V, K]'
            )
        return
    views = None if run.recipe.augment.area else view_count(run)
    if views is None:
        endless = run.recipe.augment.endless or 'area'
        raise ValueError(
            f'{what} holds {outputs.num_views} views per point, and views by augment.{endless} '
            'have no finite number; store one answer per point, [N, K], or augment by crop and flip alone'
        )
    if outputs.num_views != views:
        augment = run.recipe.augment
        raise ValueError(
            f'{what} holds {outputs.num_views} views per point, and augment.crop={augment.crop} with augment.flip='
            f'{augment.flip} has {views}; store that many, or one answer per point, [N, K]'
        )
