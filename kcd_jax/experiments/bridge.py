"""Builds runs from configs until experiments/config.py does."""

from __future__ import annotations

import functools

import jax.numpy as jnp

from kcd_jax import data, methods, policies
from kcd_jax.contracts import Weights
from kcd_jax.runtime import sharding
from kcd_jax.teachers.teacher import Teacher
from kcd_jax.training.recipe import Recipe
from kcd_jax.training.run import Run


@functools.lru_cache(maxsize=4)
def _data(name, folder, validation, seed, num_points, stream, area):
    loading = data.Loading(data.STREAM[stream], sharding.device_memory(), area)
    return data.load(name, folder, validation=validation, seed=seed, num_points=num_points, loading=loading)


def dataset_of(config, num_points=None):
    d = config.data
    points = d.num_points if num_points is None else num_points
    return _data(d.name, d.dir or None, d.validation, d.seed, points, str(d.stream).lower(), tuple(config.augment.area))


def recipe_of(config):
    optim = {**config.optim.to_dict(), 'drops': tuple(config.optim.drops)}
    return Recipe(
        epochs=config.epochs,
        batch=config.batch,
        optim=optim,
        augment={**config.augment.to_dict(), 'area': tuple(config.augment.area)},
        logits=config.logits,
        dtype=config.dtype,
        deterministic=config.deterministic,
        chunk=config.chunk,
        eval_every=config.eval_every,
        eval_batch=config.eval_batch,
        survey=config.survey,
        workers=config.data.workers,
        checkpoint=config.checkpoint.to_dict(),
    )


def run_of(config, name='', dataset=None):
    def made(package, section):
        return package.get(section.name).make(**{k: v for k, v in section.items() if k != 'name'})

    method = made(methods, config.method)
    weights = Weights(**config.weights.to_dict())
    dataset = dataset_of(config) if dataset is None else dataset
    recipe = recipe_of(config)
    teacher = None
    if method.needs or weights.alpha > 0:
        t = config.teacher
        if t.checkpoint:
            teacher = Teacher.restore(
                t.checkpoint,
                t.name,
                dataset.num_classes,
                dataset.image_shape,
                t.normalization or None,
                jnp.dtype(config.dtype),
            )
        else:
            optim = {**recipe.to_dict()['optim'], 'lr': t.lr}
            teacher = Run(
                student=t.name,
                data=dataset_of(config, t.num_points),
                recipe=recipe.replace(epochs=t.epochs, batch=t.batch, optim=optim, survey=False, logits='plain'),
                seed=t.seed,
                name='teacher',
            )
    return Run(
        student=config.student.name,
        data=dataset,
        teacher=teacher,
        method=method,
        policy=made(policies, config.policy),
        weights=weights,
        recipe=recipe,
        seed=config.seed,
        name=name,
    )
