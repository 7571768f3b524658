"""Teachers: what answers as a teacher, its files, and the readers of PyTorch checkpoints."""

from kcd_jax.teachers.teacher import Teacher

__all__ = ['Teacher']
