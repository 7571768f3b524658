"""Trees of parameters by path: name the leaves, select some, merge them back."""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping
from typing import Any

import jax

PyTree = Any


def leaf_paths(tree: PyTree) -> dict[str, Any]:
    """{'student/stage1/conv/kernel': leaf}: the leaves of a tree of mappings by their joined path."""
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {
        '/'.join(str(getattr(k, 'key', getattr(k, 'name', getattr(k, 'idx', k)))) for k in path): leaf
        for path, leaf in leaves
    }


def matches(path: str, patterns: tuple[str, ...]) -> bool:
    """Whether a path fits any of the shell patterns; '*' also crosses '/'."""
    return any(fnmatch.fnmatchcase(path, pattern) for pattern in patterns)


def select(tree: PyTree, patterns: tuple[str, ...]) -> dict[str, Any]:
    """The flat {path: leaf} of the leaves whose path matches; gradients and optax run on this."""
    return {path: leaf for path, leaf in leaf_paths(tree).items() if matches(path, patterns)}


def merge(tree: PyTree, selected: Mapping[str, Any]) -> PyTree:
    """`tree` with the leaves of `selected` put back at their paths."""
    leaves, treedef = jax.tree_util.tree_flatten(tree)
    paths = list(leaf_paths(tree))
    return jax.tree_util.tree_unflatten(
        treedef, [selected.get(path, leaf) for path, leaf in zip(paths, leaves, strict=True)]
    )
