"""Streamed and resident feeds give the same batches; a streamed run resumes, and reads only the points it needs."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kcd_jax import data, policies
from kcd_jax.contracts import full_plan, table_rows
from kcd_jax.runtime import sharding
from kcd_jax.training import feed, step, trainer
from kcd_jax.training.run import Run
from tests.digits import RECIPE, assert_same_run, object_run, one_device, run_for, sigterm, stage

pytestmark = pytest.mark.fast_compile

NUM_POINTS, BATCH = 90, 8


class Counted:
    """A source over an array that remembers which points were read."""

    def __init__(self, images: np.ndarray):
        self.images, self.read = images, []

    def __getitem__(self, point: int) -> np.ndarray:
        self.read.append(point)
        return self.images[point]


def streamed(split: data.Split) -> data.Split:
    source = Counted(split.images)
    return data.Split(data.Images(source, np.arange(len(split)), split.images.shape[1:]), split.labels)


@pytest.fixture
def split() -> data.Split:
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (NUM_POINTS, 6, 6, 3), np.uint8)
    return data.Split(images, random.integers(0, 5, NUM_POINTS).astype(np.int32))


def plan_of(num_keep: int = 60):
    """A plan of 60 points, 30 of which have one of the other 30 mixed in."""
    rank = np.random.default_rng(1).permutation(NUM_POINTS).astype(np.int32)
    plan = full_plan(NUM_POINTS)
    order = plan.order.at[:NUM_POINTS].set(rank)
    partner, epsilon = plan.partner.at[rank[30:60]].set(rank[60:]), plan.epsilon.at[rank[30:60]].set(0.25)
    return plan.replace(order=order, num_keep=jnp.int32(num_keep), partner=partner, epsilon=epsilon)


def test_both_feed_the_same_batches_in_the_same_order(split: data.Split):
    mesh, plan = sharding.make_mesh(), plan_of()
    labels = np.zeros(table_rows(NUM_POINTS), np.int32)
    labels[:NUM_POINTS] = split.labels
    by_index = streamed(split)
    one = feed.Resident(split, labels, 1, mesh)
    other = feed.Streamed(by_index, labels, BATCH, mesh, seed=0, workers=0, mixes=True)
    policy = policies.get('kcd').make()
    spec = step.StepSpec(None, None, None, policy, None, BATCH)

    @dataclasses.dataclass
    class At:
        done: jax.Array
        plan: object
        policy_state: dict

    for epoch in range(2):
        order = step.epoch_order(jax.random.PRNGKey(0), plan, jnp.int32(epoch))
        steps = int(plan.num_keep) // BATCH
        by_index.images.source.read.clear()
        for done, ((_, points), (length, raw)) in enumerate(
            zip(one.epoch(order, plan, epoch, 0, steps), other.epoch(order, plan, epoch, 0, steps), strict=True)
        ):
            gathered = step.fetch(points, At(jnp.int32(done), plan, {}), order, spec)
            assert length == 1 and raw.image.sharding == sharding.batch(mesh)
            for name in ('index', 'image', 'label'):
                np.testing.assert_array_equal(getattr(raw, name), getattr(gathered, name), err_msg=name)
            mixed = np.asarray(plan.epsilon)[np.asarray(raw.index)] > 0
            assert mixed.any()
            np.testing.assert_array_equal(
                np.asarray(raw.partner_image)[mixed], np.asarray(gathered.partner_image)[mixed]
            )
        trained = np.asarray(order)[: steps * BATCH]
        partners = np.asarray(plan.partner)[trained[np.asarray(plan.epsilon)[trained] > 0]]
        assert sorted(by_index.images.source.read) == sorted([*trained, *partners])
        rest = [raw for _, raw in other.epoch(order, plan, epoch, 5, steps)]
        assert len(rest) == steps - 5
        np.testing.assert_array_equal(rest[-1].image, raw.image)


def test_partners_are_not_read_for_policies_that_do_not_mix(split: data.Split):
    by_index, plan = streamed(split), plan_of()
    other = feed.Streamed(by_index, split.labels, BATCH, sharding.make_mesh(), seed=0, workers=0, mixes=False)
    order = step.epoch_order(jax.random.PRNGKey(0), plan, jnp.int32(0))
    for _, raw in other.epoch(order, plan, 0, 0, 7):
        assert raw.partner_image is raw.image
    assert len(by_index.images.source.read) == 7 * BATCH


@pytest.mark.parametrize('number', [1, 8, 21])
def test_every_held_out_image_is_evaluated_once(split: data.Split, number: int):
    mesh, part = sharding.make_mesh(), split.take(np.arange(number))
    by_index = streamed(part)
    for one, other in zip(feed.HeldOut(part, 6, mesh), feed.HeldOut(by_index, 6, mesh), strict=True):
        for array, again in zip(one, other, strict=True):
            np.testing.assert_array_equal(array, again)
    assert set(by_index.images.source.read) == set(range(number))
    valid = [np.asarray(valid) for _, _, valid in feed.HeldOut(by_index, 6, mesh)]
    assert np.concatenate(valid).sum() == number


# ------------------------------------------------------------------------------------------------------ in the loop


def test_a_streamed_run_is_the_resident_one_and_resumes_bit_for_bit(tiny_networks, tmp_path, monkeypatch):
    resident = run_for().train(tmp_path / 'resident', teacher_dir=tmp_path / 'teacher')
    run = run_for(f'stream=true,teacher.checkpoint={tmp_path}/teacher')
    images = run.data.train.images
    source = Counted(images.source)
    row = {int(point): row for row, point in enumerate(images.index)}
    train = dataclasses.replace(run.data.train, images=dataclasses.replace(images, source=source))
    run = run.replace(data=dataclasses.replace(run.data, train=train))
    original = trainer.Trainer.train_epoch
    read: list[list[int]] = []

    def by_epoch(self, *arguments):
        source.read.clear()
        result = original(self, *arguments)
        read.append([row[point] for point in source.read])
        return result

    with monkeypatch.context() as patch:
        patch.setattr(trainer.Trainer, 'train_epoch', by_epoch)
        whole = run.train(tmp_path / 'whole')

    # The same points in the same order: every point's visits, and its value after the first epoch.
    one, other = stage(resident.workdir, 1), stage(whole.workdir, 1)
    np.testing.assert_array_equal(one['count'], other['count'])
    np.testing.assert_allclose(one['value'], other['value'], atol=1e-4)
    # What the teacher computed depends on the rows that its cache already has; everything else is equal.
    costs = [{**run.summary['cost'], 'computed': None} for run in (resident, whole)]
    assert costs[0] == costs[1]

    # The last stage's epoch reads the kept points of its full batches and their partners, each once.
    plan = stage(whole.workdir, 3)
    kept = set(plan['order'][: plan['num_keep']].tolist())
    assert len(kept) == 210 and len(set(read[-1])) == len(read[-1])
    partners = set(plan['partner'][plan['epsilon'] > 0].tolist())
    assert set(read[-1]) <= kept | partners
    assert len(set(read[-1]) & kept) == 210 // run.recipe.batch * run.recipe.batch

    with sigterm(4, 5):  # in the middle of an epoch
        run.train(tmp_path / 'cut')
    run.train(tmp_path / 'cut')
    assert_same_run(whole.workdir, tmp_path / 'cut')


def test_a_pool_of_all_images_is_refused_when_streamed(tiny_networks):
    with pytest.raises(ValueError, match="preset='paper', or data in memory") as error:
        run_for('stream=true,preset=reference').check()
    assert '\n' not in str(error.value)
    with pytest.raises(ValueError, match='auto, true, false'):
        run_for('stream=perhaps')


def test_check_reports_that_points_are_streamed(tiny_networks):
    lines = '\n'.join(run_for('stream=true').check())
    assert 'points are streamed by threads, one per core' in lines
    assert 'streamed' not in '\n'.join(run_for().check())


def test_user_defined_objects_are_trained_on(tiny_networks, tmp_path):
    class Bright:
        """Class 1 is bright."""

        def __init__(self, points):
            self.points = points

        def __len__(self):
            return self.points

        def __getitem__(self, i):
            return {'image': np.full((16, 16), 40 + 160 * (i % 2) + i % 16, np.uint8), 'label': i % 2}

    dataset = data.from_objects(Bright(100), Bright(160), class_names=('dark', 'bright'))
    recipe = {**RECIPE, 'epochs': 12, 'eval_every': 12}
    teacher = Run('tiny_teacher', dataset, recipe={**recipe, 'survey': False})
    result = object_run(teacher, data=dataset, recipe=recipe).train(tmp_path, mesh=one_device())
    assert result.summary['num_points'] == 100 and result.summary['num_classes'] == 2
    assert result.summary['dataset'] == 'custom' and result.accuracy > 0.9
