"""Statistics of every training point and class at the end of a run, for the report's figures."""

from __future__ import annotations

import numpy as np

CHUNK = 65_536  # rows at a time, to bound memory


def class_accuracy(logits: np.ndarray, labels: np.ndarray, num_classes: int) -> list[float | None]:
    """[K]: accuracy per class; None for a class without images."""
    hit = np.argmax(logits, axis=-1) == labels
    of_class = np.bincount(labels, minlength=num_classes)
    hits = np.bincount(labels, hit, minlength=num_classes)
    return [float(right / count) if count else None for right, count in zip(hits, of_class, strict=True)]


def distance_to_centre(embed: np.ndarray, labels: np.ndarray, num_classes: int) -> np.ndarray:
    """f32[N]: Euclidean distance of each embedding f32[N, D] to the mean of its class (UNIX Fig. 4a)."""
    sums = np.zeros((num_classes, embed.shape[1]))
    np.add.at(sums, labels, embed)
    centres = sums / np.maximum(np.bincount(labels, minlength=num_classes), 1)[:, None]
    found = np.empty(len(labels), np.float32)
    for start in range(0, len(labels), CHUNK):
        rows = slice(start, start + CHUNK)
        found[rows] = np.linalg.norm(embed[rows] - centres[labels[rows]], axis=1)
    return found


def correlation(logits: np.ndarray) -> np.ndarray:
    """f64[K, K]: correlation of the class logits f32[N, K] over the images; 0 for a constant class."""
    centred = logits.astype(np.float64) - logits.mean(axis=0, dtype=np.float64)
    norms = np.linalg.norm(centred, axis=0)
    scaled = centred / np.where(norms > 0, norms, 1.0)
    return scaled.T @ scaled


def of_points(
    entropy: np.ndarray,
    embed: np.ndarray | None,
    teacher_entropy: np.ndarray | None,
    labels: np.ndarray,
    num_classes: int,
) -> dict[str, np.ndarray]:
    """Values per training point, unaugmented and in eval mode: 'entropy', 'distance' and 'teacher_entropy'.

    Args:
      entropy: f32[N] in nats, the student's.
      embed: f32[N, D], the student's.
      teacher_entropy: f32[N] in nats.
      labels: i32[N].
      num_classes: K.

    Returns:
      {name: f32[N]}, without the values whose input is None.
    """
    found = {'entropy': entropy}
    if embed is not None:
        found['distance'] = distance_to_centre(embed, labels, num_classes)
    if teacher_entropy is not None:
        found['teacher_entropy'] = teacher_entropy
    return found
