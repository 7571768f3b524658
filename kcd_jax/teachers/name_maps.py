"""Names of tensors in other people's checkpoints, translated line by line into ours.

A line is `pattern -> name`. In a pattern '*' stands for one word between dots and '**.' for any words with the dots
after them, also none; in a name '{1}' is what the first of them stood for, and '{1+1}' that number plus one.

    **.encoder.layer.*.output.dense.* -> blocks.{2}.mlp.fc2.{3}

Several patterns joined by ' + ' are concatenated along the first axis (outputs, in PyTorch's layout), several names
share a tensor in equal parts, and the name '-' leaves it out. The first line that fits is used; a tensor that none fits
keeps its name. Text after '#' is a comment.
"""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from kcd_jax import paths

# Hugging Face's; timm's are ours. The first line of a table is what its checkpoints are recognised by.
TABLES = {
    'resnet': """
        **.embedder.embedder.convolution.* -> conv1.{2}
        **.embedder.embedder.normalization.* -> bn1.{2}
        **.encoder.stages.*.layers.*.layer.*.convolution.* -> layer{2+1}.{3}.conv{4+1}.{5}
        **.encoder.stages.*.layers.*.layer.*.normalization.* -> layer{2+1}.{3}.bn{4+1}.{5}
        **.encoder.stages.*.layers.*.shortcut.convolution.* -> layer{2+1}.{3}.downsample.0.{4}
        **.encoder.stages.*.layers.*.shortcut.normalization.* -> layer{2+1}.{3}.downsample.1.{4}
        **.classifier.1.* -> fc.{2}
    """,
    'vit': """
        **.embeddings.cls_token -> cls_token
        **.embeddings.position_embeddings -> pos_embed
        **.embeddings.mask_token -> -
        **.embeddings.patch_embeddings.projection.* -> patch_embed.proj.{2}
        **.encoder.layer.*.attention.attention.query.* + **.encoder.layer.*.attention.attention.key.* + \
            **.encoder.layer.*.attention.attention.value.* -> blocks.{2}.attn.qkv.{3}
        **.encoder.layer.*.attention.output.dense.* -> blocks.{2}.attn.proj.{3}
        **.encoder.layer.*.layernorm_before.* -> blocks.{2}.norm1.{3}
        **.encoder.layer.*.layernorm_after.* -> blocks.{2}.norm2.{3}
        **.encoder.layer.*.intermediate.dense.* -> blocks.{2}.mlp.fc1.{3}
        **.encoder.layer.*.output.dense.* -> blocks.{2}.mlp.fc2.{3}
        **.layernorm.* -> norm.{2}
        **.pooler.dense.* -> -
        **.classifier.* -> head.{2}
    """,
    'convnext': """
        **.embeddings.patch_embeddings.* -> stem.0.{2}
        **.embeddings.layernorm.* -> stem.1.{2}
        **.encoder.stages.*.downsampling_layer.*.* -> stages.{2}.downsample.{3}.{4}
        **.encoder.stages.*.layers.*.dwconv.* -> stages.{2}.blocks.{3}.conv_dw.{4}
        **.encoder.stages.*.layers.*.layernorm.* -> stages.{2}.blocks.{3}.norm.{4}
        **.encoder.stages.*.layers.*.pwconv1.* -> stages.{2}.blocks.{3}.mlp.fc1.{4}
        **.encoder.stages.*.layers.*.pwconv2.* -> stages.{2}.blocks.{3}.mlp.fc2.{4}
        **.encoder.stages.*.layers.*.layer_scale_parameter -> stages.{2}.blocks.{3}.gamma
        **.layernorm.* -> head.norm.{2}
        **.classifier.* -> head.fc.{2}
    """,
}
_REFERENCE = re.compile(r'\{(\d+)(?:\+(\d+))?\}')


@dataclasses.dataclass(frozen=True)
class Rule:
    """One line: the patterns, the names that replace them ('-' alone: none), and the line itself."""

    patterns: tuple[str, ...]
    names: tuple[str, ...]
    line: str

    def match(self, name: str) -> tuple[str, ...] | None:
        """What the stars of the first pattern stand for in a tensor's name; None if it does not fit."""
        found = _compiled(self.patterns[0]).fullmatch(name)
        return None if found is None else found.groups()


def parse(text: str) -> tuple[Rule, ...]:
    """The rules of a text of lines.

    Raises:
      ValueError: a line is not a rule; the message is one line with its number.
    """
    rules = []
    for number, line in enumerate(text.replace('\\\n', ' ').splitlines(), start=1):
        line = ' '.join(line.partition('#')[0].split())
        if not line:
            continue
        left, arrow, right = (part.strip() for part in line.partition('->'))
        patterns, names = (tuple(word.strip() for word in side.split(' + ')) for side in (left, right))
        stars = [len(re.findall(r'\*+', pattern)) for pattern in patterns]
        references = [found for name in names for found in _REFERENCE.finditer(name)]
        wrong = [found[0] for found in references if not 1 <= int(found[1]) <= stars[0]]
        if not arrow or not all((*patterns, *names)):
            raise ValueError(f"line {number} of the map is {line!r}; use 'pattern -> name'")
        if len(set(stars)) > 1 or wrong or (len(patterns) > 1 and len(names) > 1):
            reason = f'{wrong[0]} is no star of it' if wrong else 'use as many stars in each pattern, and one name'
            raise ValueError(f'line {number} of the map, {line!r}, does not fit together: {reason}')
        rules.append(Rule(patterns, names, line))
    return tuple(rules)


def read(source: str | os.PathLike[str] | Mapping[str, str]) -> tuple[Rule, ...]:
    """The rules of a file, or of a mapping {pattern: name}; ValueError in one line that begins with the file."""
    if isinstance(source, Mapping):
        return parse('\n'.join(f'{pattern} -> {name}' for pattern, name in source.items()))
    try:
        return parse(paths.expand(source).read_text(encoding='utf-8'))
    except OSError as error:
        raise ValueError(f'{source} cannot be read: {error.strerror}') from None
    except ValueError as error:
        raise ValueError(f'{source}: {error}') from None


def usual(names: Iterable[str]) -> tuple[Rule, ...]:
    """The rules of the table that a checkpoint with these names is recognised by; () if there is none."""
    names = list(names)
    for text in TABLES.values():
        rules = parse(text)
        if any(rules[0].match(name) is not None for name in names):
            return rules
    return ()


def renamed(tensors: Mapping[str, np.ndarray], rules: Sequence[Rule]) -> dict[str, np.ndarray]:
    """The tensors under the names that the rules give them.

    Raises:
      ValueError: a part of a concatenation is missing, a tensor does not split, or two get one name.
    """
    fits: dict[str, tuple[Rule, tuple[str, ...]]] = {}
    for name in tensors:
        for rule in rules:
            if (stars := rule.match(name)) is not None:
                fits[name] = (rule, stars)
                break
    joined = {_filled(pattern, stars) for rule, stars in fits.values() for pattern in rule.patterns[1:]}
    result: dict[str, np.ndarray] = {}
    for name, value in tensors.items():
        if name in joined:
            continue
        targets: tuple[str, ...] = (name,)
        if name in fits:
            rule, stars = fits[name]
            parts = [name, *(_filled(pattern, stars) for pattern in rule.patterns[1:])]
            if absent := [part for part in parts if part not in tensors]:
                raise ValueError(f'{name} is there without {absent[0]}, with which the map joins it ({rule.line})')
            value = np.concatenate([tensors[part] for part in parts]) if len(parts) > 1 else value
            targets = () if rule.names == ('-',) else tuple(_replaced(target, stars) for target in rule.names)
            if len(targets) > 1 and (value.ndim == 0 or len(value) % len(targets)):
                raise ValueError(f'{name} {list(value.shape)} does not split into {len(targets)} parts ({rule.line})')
        pieces = np.split(value, len(targets)) if len(targets) > 1 else [value] * len(targets)
        for target, piece in zip(targets, pieces, strict=True):
            if target in result:
                raise ValueError(f'the map gives two tensors the name {target}, the second is {name}')
            result[target] = piece
    return result


def _compiled(pattern: str) -> re.Pattern[str]:
    words = re.split(r'(\*\*\.|\*)', pattern)
    return re.compile(''.join({'**.': r'((?:.*\.)?)', '*': r'([^.]+)'}.get(word, re.escape(word)) for word in words))


def _filled(pattern: str, stars: tuple[str, ...]) -> str:
    """A pattern with the stars of another one in the place of its own."""
    words = iter(stars)
    return re.sub(r'\*\*\.|\*', lambda _: next(words), pattern)


def _replaced(name: str, stars: tuple[str, ...]) -> str:
    def value(found: re.Match[str]) -> str:
        star = stars[int(found[1]) - 1]
        if not found[2]:
            return star
        if not star.isdecimal():
            raise ValueError(f'{found[0]} of the map adds to {star!r}, which is no number')
        return str(int(star) + int(found[2]))

    return _REFERENCE.sub(value, name)
