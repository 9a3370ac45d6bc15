"""Half the width: a model as deep as the reference with half of its heads and half of its sizes, from random init.

A control of the paper's (arXiv 2404.08634), whose code masks half of every matrix; here the matrices are smaller.

What is halved is the width, the number of heads (not their size) and what goes with either: the sizes within MLPs and
experts, latent sizes, recurrent states' channels. Every other number of a config stays. Which number is which is read
from its name, as transformers' own configs name sizes, and the reading is checked: reference and model are built
without memory, and must differ in nothing but their widths, by about a half.
"""

from __future__ import annotations

import copy
import re
from typing import Any

import torch
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel

from inheritune.errors import Refused
from inheritune.reference import LINEAGE_KEY, LOADING_ERRORS, Reference, block_list, one_line, weightless
from inheritune.surgery.configs import kinds
from inheritune.surgery.initial import random_like

_HEADS = re.compile("(^|_)heads(_per_layer)?$")
_SHARED = re.compile("(kv|key)[a-z_]*heads$|(^|_)n_?groups$")
"""Heads that several others share: keys and values, and the states of Mamba 2's groups of heads."""
_SIZES = re.compile(
    "hidden_size|intermediate_size|ffn?_dim$|dff$|inner$|embed[a-z_]*_dim$|latent|rank$|(?<!1d_)width$|ssm$"
)
_HEAD_SIZE = re.compile("(?<!all_)head_?(dim|size)$")
_LEAST, _MOST = 0.2, 0.38
"""The share of its matrices that a block may keep: a quarter where all is halved; more where a matrix has but one side
to halve, such as a router's, or that of keys and values which all heads share. Where an MLP stays as wide inside, it is
two fifths or more."""


def half_width_config(reference: Reference) -> PretrainedConfig:
    """The reference's config with half the width; its depth, vocabulary, positions and head size as they are.

    Heads of keys and values become half as many where they are even in number. Where they are odd they stay: they
    divide half of the heads as they do all of them.

    Raises:
        Refused: width or heads are odd in number, or what else has to be halved cannot be told.
    """
    try:
        config = _halved(reference.config)
        model = weightless(config, trust_remote_code=reference.trust_remote_code)
        complaint = _difference(reference.skeleton, model)
    except (StopIteration, *LOADING_ERRORS) as error:  # Zamba 2's config looks its blocks up by next()
        complaint = one_line(error)
    if complaint is not None:
        what = f"how to halve a {reference.config.model_type} of this shape cannot be told"
        raise Refused(f"half-width: {what}: {complaint}; leave this control out")
    return config


def half_width(reference: Reference, seed: int) -> PreTrainedModel:
    """A model of half the reference's width from random init, as transformers initialises it, in float32.

    Raises:
        Refused: see `half_width_config`.
    """
    return random_like(half_width_config(reference), reference, seed)


def _halved(config: PretrainedConfig) -> PretrainedConfig:
    """A copy of a config with half the width, as it will be when it is read back from its file; not checked."""
    narrow = copy.deepcopy(config)
    if hasattr(narrow, LINEAGE_KEY):
        delattr(narrow, LINEAGE_KEY)  # it inherits nothing
    text = narrow.get_text_config()
    standard = {own: name for name, own in text.attribute_map.items()}
    halves = type(text).from_dict(_halves(text.to_diff_dict(), standard))
    if text is narrow:
        return halves
    within = next(name for name, value in vars(narrow).items() if value is text)
    setattr(narrow, within, halves)
    return type(narrow).from_dict(narrow.to_diff_dict())


def _halves(values: dict[Any, Any], standard: dict[str, str]) -> dict[Any, Any]:
    """A config's values, at any depth, with half the width.

    Args:
        values: by their names, or by layers' indices.
        standard: transformers' own name for each value that the family calls otherwise.
    """
    halves: dict[Any, Any] = {}
    for name, value in values.items():
        known = standard.get(name, str(name))
        if isinstance(value, dict):
            halves[name] = _halves(value, standard)
        elif isinstance(value, list | tuple):
            halves[name] = type(value)(_half(known, entry) for entry in value)
        else:
            halves[name] = _half(known, value)
    return halves


def _half(name: str, value: Any) -> Any:
    """A value of a config, or its half if it is a number of heads or a size that goes with the width."""
    if type(value) is not int:
        return value
    if _SHARED.search(name):
        return value if value % 2 else value // 2
    if value % 2 and (name == "hidden_size" or _HEADS.search(name)):
        raise Refused(f"half-width: {name} is {value}, which has no half; leave this control out")
    return (value + 1) // 2 if _HEADS.search(name) or _SIZES.search(name) else value


def _difference(reference: PreTrainedModel, model: PreTrainedModel) -> str | None:
    """The first thing in which a model differs from a reference otherwise than half the width does; None if nothing."""
    odd = reference.state_dict().keys() ^ model.state_dict().keys()
    if odd:
        return f"only one of the two has {min(odd)}"
    wide, narrow = (_embedding_shape(one) for one in (reference, model))
    if narrow != [wide[0], wide[1] / 2]:
        return f"an embedding of {wide} becomes one of {narrow}"
    for index, (theirs, ours) in enumerate(zip(_head_sizes(reference), _head_sizes(model), strict=True)):
        changed = [name for name, value in theirs.items() if ours.get(name) != value]
        if changed:
            return f"{changed[0]} of block {index} is {theirs[changed[0]]} and becomes {ours.get(changed[0])}"
    for index, (block, half) in enumerate(zip(block_list(reference)[1], block_list(model)[1], strict=True)):
        if not _LEAST <= _share(block, half) <= _MOST:
            return f"block {index} keeps {_share(block, half):.0%} of its matrices, not about a quarter"
    return None


def _embedding_shape(model: PreTrainedModel) -> list[int]:
    weight = model.get_input_embeddings().weight
    assert isinstance(weight, torch.Tensor)
    return list(weight.shape)


def _head_sizes(model: PreTrainedModel) -> list[dict[str, Any]]:
    """For each block what its modules say of the size of their heads, by the setting's dotted name."""
    return [
        {
            f"{path}.{name}": value
            for path, (_, settings, _) in block.items()
            for name, value in settings.items()
            if _HEAD_SIZE.search(name)
        }
        for block in kinds(model)
    ]


def _share(block: nn.Module, half: nn.Module) -> float:
    """How much of a block's matrices is left; one that stays as it is, such as a table of positions, does not count."""
    pairs = zip(block.parameters(), half.parameters(), strict=True)
    sizes = [(wide.numel(), narrow.numel()) for wide, narrow in pairs if wide.dim() > 1 and wide.shape != narrow.shape]
    return sum(narrow for _, narrow in sizes) / sum(wide for wide, _ in sizes) if sizes else 1.0
