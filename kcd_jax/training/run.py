"""A run: everything that a training needs, resolved once and immutable.

    run = Run(student='resnet8', teacher=Teacher.restore('teacher.safetensors'), data=data.load('digits'),
              method=methods.get('kd').make(), policy=policies.get('kcd').make(ratio=0.7), recipe=Recipe(epochs=60))
    run.check()              # what is known before the first step; ValueError for what cannot work
    run.train('runs/mine')   # or goes on where it was cut

Config files, the command line, sweeps, notebooks and tests build runs; the loop, the step, the ledger and the
checkpoints know nothing else. `describe` gives a run as JSON values from which `from_description` builds it again.
"""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from kcd_jax import data, methods, networks, policies
from kcd_jax.contracts import Method, Network, Phase, Policy, PyTree, Setup, Weights, default_phases, table_rows
from kcd_jax.settings import nested, shown
from kcd_jax.teachers.host import Host
from kcd_jax.teachers.teacher import Teacher
from kcd_jax.training import step, unlabelled
from kcd_jax.training.mixtures import Mixing
from kcd_jax.training.recipe import Recipe

if TYPE_CHECKING:
    from kcd_jax.training.loop import Result

MAX_SEED = 2**63 - 1


@dataclasses.dataclass(frozen=True, eq=False)
class Run:
    """One student, trained under one method and one policy.

    Attributes:
      student: a network's config name, or a `Network` for the data's classes.
      data: what it learns from and is evaluated on.
      teacher: a `Teacher`, the `Run` that trains one first, or None for methods that need none.
      method: from `methods.get(name).make(...)`; default: kd with a teacher, none without.
      policy: from `policies.get(name).make(...)`; default: none, every point in every epoch.
      weights: of the objective; a mapping replaces parts of the method's own; None takes the method's own.
      recipe: epochs, batch, optimiser, augmentation, ...
      seed: of initialisation, order, augmentation and selection, 0 <= seed < 2**63.
      name: a label for lines and tables; it changes no number.
    """

    student: str | Network
    data: data.Dataset
    teacher: Teacher | Run | None = None
    method: Method | None = None
    policy: Policy | None = None
    weights: Weights | Mapping[str, float] | None = None
    recipe: Recipe = dataclasses.field(default_factory=Recipe)
    seed: int = 0
    name: str = ''

    def __post_init__(self) -> None:
        if not isinstance(self.student, str | Network):
            raise ValueError(f"student is {self.student!r}; use a network's name or a Network")
        if not isinstance(self.data, data.Dataset):
            raise ValueError(f'data is {self.data!r}; use kcd_jax.data.load(name) or data.from_arrays(...)')
        if self.teacher is not None and not isinstance(self.teacher, Teacher | Run):
            raise ValueError(
                f'teacher is {self.teacher!r}; use Teacher.restore(FILE) or the like, a Run that trains it, or None'
            )
        if isinstance(self.teacher, Teacher):
            self._set('teacher', self.teacher.for_images(self.data.image_shape))
        elif self.teacher is not None and self.teacher.teacher is not None:
            raise ValueError('the run that trains the teacher has a teacher itself; train that one first')
        self._set('data', unlabelled.with_classes(self.data, self.teacher))
        if isinstance(self.seed, bool) or not isinstance(self.seed, int) or not 0 <= self.seed <= MAX_SEED:
            raise ValueError(f'seed is {shown(self.seed)}; use an integer from 0 to 2**63 - 1')
        nested(self, 'recipe', Recipe)
        if self.method is None:
            self._set('method', methods.get('none' if self.teacher is None else 'kd').make())
        if not isinstance(self.method, Method):
            raise ValueError(f'method is {self.method!r}; use kcd_jax.methods.get(name).make(...) or a Method')
        if self.policy is None:
            self._set('policy', policies.get('none').make())
        if not isinstance(self.policy, Policy):
            raise ValueError(f'policy is {self.policy!r}; use kcd_jax.policies.get(name).make(...) or a Policy')
        if not isinstance(self.weights, Weights):
            self._set('weights', self._replaced_weights())
        self._set('name', self.name or self._usual_name())

    def _replaced_weights(self) -> Weights:
        """The method's own weights, with those of the mapping in their place."""
        own = self._own_weights()
        if self.weights is None:
            return own
        known = [field.name for field in dataclasses.fields(Weights)]
        if not isinstance(self.weights, Mapping):
            raise ValueError(f'weights is {self.weights!r}; use Weights(...) or a mapping of {", ".join(known)}')
        if unknown := [key for key in self.weights if key not in known]:
            raise ValueError(f'unknown weight {unknown[0]!r}; known: {", ".join(known)}')
        return dataclasses.replace(own, **self.weights)

    def _own_weights(self) -> Weights:
        """The method's own weights, with gamma 0 for data without labels."""
        own = methods.weights_of(self.method)
        return own if self.data.labelled else dataclasses.replace(own, gamma=0.0)

    def _set(self, field: str, value: Any) -> None:
        object.__setattr__(self, field, value)

    def _usual_name(self) -> str:
        """'student', 'kd', 'kcd', ...: the policy that a run stands for, or its method where there is none."""
        if self.policy.name not in ('none', ''):
            return self.policy.name
        return {'none': 'student', '': 'custom'}.get(self.method.name, self.method.name)

    def replace(self, **changes: Any) -> Run:
        """A copy with some fields changed; a name or weights that were not given follow a new method or policy."""
        if self.name == self._usual_name():
            changes = {'name': '', **changes}
        if 'method' in changes and self.weights == self._own_weights():
            changes = {'weights': None, **changes}
        return dataclasses.replace(self, **changes)

    def with_seed(self, seed: int) -> Run:
        """The same run with another seed; its teacher stays."""
        return self.replace(seed=seed)

    # -- the parts, each found out once ---------------------------------------------------------------------------

    @functools.cached_property
    def student_network(self) -> Network:
        """The student's network."""
        if isinstance(self.student, Network):
            return self.student
        build = networks.get(self.student)
        return build(self.data.num_classes, dtype=jnp.dtype(self.recipe.dtype), normalization=self.data.normalization)

    @property
    def own_network(self) -> Network | None:
        """The student that was built in Python, which no name can stand for; None for one of a config name."""
        return self.student if isinstance(self.student, Network) else None

    @functools.cached_property
    def needs(self) -> frozenset[str]:
        """What the method, the KD term and the policy read of the teacher, from `contracts.NEEDS`."""
        asked = {*self.method.needs, *self.policy.needs}
        return frozenset(asked | {'logits'} if self.weights.alpha > 0 else asked)

    @property
    def uses_teacher(self) -> bool:
        """Whether any term of the objective, the method or the policy reads the teacher, or its scores."""
        return bool(self.needs) or bool(self.policy.teacher_scores)

    @property
    def scores_points(self) -> bool:
        """Whether the teacher scores the training points: the policy reads that, and replans at least once."""
        return bool(self.policy.teacher_scores and self.condensations)

    @property
    def predicts(self) -> bool:
        """Whether anything trains the student's logits; without, values are losses and embeddings are evaluated."""
        return self.method.predicts or self.weights.gamma > 0 or self.weights.alpha > 0

    @property
    def teacher_in_step(self) -> str:
        """Why the teacher runs inside the training step; '' if it answers before the steps."""
        if self.recipe.teaching.in_step:
            return 'recipe.teaching.in_step'
        if rest := sorted(self.needs - {'logits', 'embed'}):
            return f'method {self.method.name or "custom"} reads its {", ".join(rest)}'
        if self.policy.in_batch is not None:
            return f'policy {self.policy.name} mixes inside the batch'
        return ''

    @functools.cached_property
    def teacher_network(self) -> Network | None:
        """The teacher's network; None where nothing looks at it."""
        if not self.uses_teacher:
            return None
        if self.teacher is None:
            if not self.needs:
                raise ValueError(
                    f'policy {self.policy.name or "custom"} reads scores of a teacher; give one (teacher=...)'
                )
            name = f'method {self.method.name}' if self.method.name else 'this method'
            raise ValueError(f'{name} needs a teacher; give one (teacher=...), or use method none with alpha 0')
        return self.teacher.student_network if isinstance(self.teacher, Run) else self.teacher.network

    @property
    def teacher_predicts(self) -> bool:
        """Whether the teacher gives logits, not embeddings alone."""
        return self.teacher_network is not None and self.setup.teacher.logits.shape[-1] > 0

    @property
    def host(self) -> Host | None:
        """What answers on the host in place of a network; None for a network, or where nothing looks at a teacher."""
        return self.teacher.host if isinstance(self.teacher, Teacher) and self.uses_teacher else None

    @property
    def mixing(self) -> Mixing | None:
        """How the recipe's mixup and CutMix are drawn; None without either."""
        augment = self.recipe.augment
        if not (augment.mixup or augment.cutmix):
            return None
        return Mixing(augment.mixup, augment.cutmix, self.num_points, self.data.image_shape[:2])

    @property
    def view_seed(self) -> int:
        """The seed of the views that training shows: `augment.seed`, or the run's own."""
        return self.seed if self.recipe.augment.seed < 0 else self.recipe.augment.seed

    @functools.cached_property
    def setup(self) -> Setup:
        """What the method may look at when it creates its parameters."""
        labels = self.data.train.labels
        rows = table_rows(len(labels))
        all_labels = np.zeros(rows, np.int32)
        all_labels[: len(labels)] = labels
        shape, batch = self.data.image_shape, self.recipe.batch
        student = self.student_network.output_shapes(shape, batch)
        teacher = student if self.teacher_network is None else self.teacher_network.output_shapes(shape, batch)
        restored = self.teacher_network is not None and isinstance(self.teacher, Teacher)
        return Setup(
            student=student,
            teacher=teacher,
            num_points=len(labels),
            rows=rows,
            num_classes=self.data.num_classes,
            batch=batch,
            image_shape=shape,
            labels=all_labels,
            student_network=self.student_network,
            teacher_network=self.teacher_network,
            teacher_variables=self.teacher.variables if restored else None,
        )

    @functools.cached_property
    def phases(self) -> tuple[Phase, ...]:
        """The phases of the training, one for most methods."""
        return self.phases_for(self.policy.epochs(self.recipe.epochs))

    def phases_for(self, epochs: int) -> tuple[Phase, ...]:
        """The method's phases if its main one takes `epochs` epochs."""
        main = self.recipe.optim.optimiser(epochs)
        if self.method.phases is None:
            return default_phases(self.method, epochs, main)
        return tuple(self.method.phases(epochs, main, self.student_network))

    @functools.cached_property
    def epochs(self) -> tuple[tuple[Phase, int], ...]:
        """(phase, epoch within it) of each epoch of the run."""
        return tuple((phase, epoch) for phase in self.phases for epoch in range(phase.epochs))

    @functools.cached_property
    def recording(self) -> int:
        """Epochs that record values, in which the policy acts."""
        return sum(phase.epochs for phase in self.phases if phase.record)

    @functools.cached_property
    def condensations(self) -> tuple[int, ...]:
        """The numbers of finished recording epochs after which the policy selects anew."""
        return tuple(epoch for epoch in range(self.recording) if self.policy.when(epoch, self.recording))

    @functools.cached_property
    def sizes(self) -> tuple[int, ...]:
        """Points of each epoch, as scheduled; in expectation where they depend on the data."""
        counts = iter(self.policy.keep_counts(self.num_points, self.recording))
        return tuple(next(counts) if phase.record else self.num_points for phase, _ in self.epochs)

    @property
    def steps(self) -> tuple[int, ...]:
        """Full batches of each epoch, as scheduled; what is left over is dropped."""
        return tuple(size // self.recipe.batch for size in self.sizes)

    @property
    def rows(self) -> int:
        """Rows of each step that teacher and student train on."""
        return self.policy.rows(self.recipe.batch)

    @property
    def num_points(self) -> int:
        """Training points."""
        return len(self.data.train)

    def step_spec(self, constrain: Callable[[PyTree], PyTree] = lambda tree: tree) -> step.StepSpec:
        """What is static in the run's steps; `constrain` pins an array's rows to a mesh."""
        augment = self.recipe.augment
        return step.StepSpec(
            student=self.student_network,
            teacher=self.teacher_network if self.needs else None,
            method=self.method,
            policy=self.policy,
            weights=self.weights,
            batch=self.recipe.batch,
            num_classes=self.setup.teacher.logits.shape[-1],
            records_loss=not self.predicts,
            crop=augment.crop,
            flip=augment.flip,
            view_seed=augment.seed,
            fixed_views=augment.views,
            area=() if self.data.train.draws_crops else augment.area,
            mixing=self.mixing,
            trivial=augment.trivial,
            erase=augment.erase,
            logits=self.recipe.logits,
            smoothing=self.recipe.label_smoothing,
            ema=self.recipe.ema,
            accumulate=self.recipe.accumulate,
            unroll=jax.default_backend() == 'cpu',
            constrain=constrain,
        )

    # -- checked, described, trained ------------------------------------------------------------------------------

    def validate(self, device_count: int = 1) -> None:
        """Finds whatever can be known to be wrong before anything is compiled; tracing only.

        Args:
          device_count: devices that the batch will be split over.

        Raises:
          ValueError: what was found and what to do, in one line.
        """
        from kcd_jax.training import refusals  # it reads runs

        refusals.refuse(self, device_count)

    def check(self, device_count: int | None = None) -> list[str]:
        """What `--check` prints: the run and its cost, a line per part; nothing is compiled.

        Args:
          device_count: devices of the mesh; default: all of this process's JAX.

        Raises:
          ValueError: what was found and what to do, in one line.
        """
        from kcd_jax.training import check  # it reads runs

        return check.lines(self, len(jax.devices()) if device_count is None else device_count)

    def train(
        self,
        workdir: str | os.PathLike[str],
        *,
        teacher_dir: str | os.PathLike[str] | None = None,
        mesh: Mesh | None = None,
    ) -> Result:
        """Trains the student in the folder `workdir`, or goes on where it was cut; see `loop.train`.

        Args:
          workdir: of the run; a finished one is read back.
          teacher_dir: where a teacher that is trained first is kept; default: `workdir`/teacher.
          mesh: of devices; default: all of them.

        Returns:
          The finished run: .accuracy, .summary, .model, .workdir.
        """
        from kcd_jax.training import loop  # it reads runs

        return loop.train(self, workdir, teacher_dir=teacher_dir, mesh=mesh)

    def describe(self) -> dict[str, Any]:
        """The run as JSON values, complete enough to build it again."""
        from kcd_jax.training import description  # it reads runs

        return description.describe(self)

    @classmethod
    def from_description(
        cls, description: Mapping[str, Any], teacher: Teacher | Run | None = None, student: Network | None = None
    ) -> Run:
        """The run that `describe` described.

        Args:
          description: of `describe`, e.g. of a run's config.json or of a result.
          teacher: in place of the file that it names, which may have moved.
          student: the network, if it was built in Python; a description holds only its name.

        Raises:
          ValueError: the data or the teacher is another one now, or a part is not known by its name.
        """
        from kcd_jax.training.description import build  # it reads runs

        return build(description, teacher, student)

    @classmethod
    def from_config(cls, path: str) -> Run:
        """The run of a config file, 'FILE[:words]', as `--config` reads it.

        Raises:
          ValueError: there is no such file, it has an unknown word, or it compares several runs.
        """
        from kcd_jax.experiments import config  # a config is one way to build a run

        return config.run_of(config.load(path))
