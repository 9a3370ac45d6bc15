"""Structure: where a model's blocks and its final norm are, how many parameters it has; and models from random init."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from inheritune.errors import Refused


def block_list(model: PreTrainedModel) -> tuple[str, nn.ModuleList]:
    """The blocks of a model's text decoder and their dotted name, found by structure.

    They are the outermost `nn.ModuleList` in the decoder with as many entries as the config has layers; an entry of a
    block list is made of modules itself, which single projections, or rotary embeddings by kind, are not.

    Raises:
        Refused: none, or several that could be meant.
    """
    layers = model.config.get_text_config().num_hidden_layers
    lists = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) == layers and any(True for _ in module[0].children())
    }
    inside = {id(module) for module in model.get_decoder().modules()}
    # some families call their head the decoder
    candidates = {name: module for name, module in lists.items() if id(module) in inside} or lists
    # a mixture's experts may be as many as the layers: they lie inside a block
    outermost = [name for name in candidates if not any(name.startswith(f"{other}.") for other in candidates)]
    if len(outermost) != 1:
        found = "none" if not outermost else ", ".join(outermost)
        raise Refused(f"{type(model).__name__}: which list holds the {layers} blocks is not clear; candidates: {found}")
    return outermost[0], candidates[outermost[0]]


def final_norm(model: PreTrainedModel) -> nn.Module | None:
    """The norm between the last block and the head; None where the architecture has none.

    It is the norm that stands beside the block list; of several, the one that was defined after it.

    Raises:
        Refused: several that could be meant.
    """
    name, blocks = block_list(model)
    parent = model.get_submodule(name.rpartition(".")[0])
    children = list(parent.named_children())
    position = [child is blocks for _, child in children].index(True)
    norms = [(index, child) for index, (_, child) in enumerate(children) if "norm" in type(child).__name__.lower()]
    after = [child for index, child in norms if index > position]
    found = after or [child for _, child in norms]
    if len(found) > 1:
        names = ", ".join(child_name for child_name, child in children if child in found)
        raise Refused(f"{type(model).__name__}: which norm is the final one is not clear; candidates: {names}")
    return found[0] if found else None


def fresh(config: PretrainedConfig, seed: int, *, trust_remote_code: bool = False) -> PreTrainedModel:
    """A model of this config from random init, as transformers initialises it, in the config's dtype.

    The same seed gives the same model; the caller's random state and config are left as they were.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        # a copy: from_config writes the dtype that it resolved into the config it is given
        model = AutoModelForCausalLM.from_config(copy.deepcopy(config), trust_remote_code=trust_remote_code)
    assert isinstance(model, PreTrainedModel)
    return model


def parameters(model: nn.Module) -> int:
    """All parameters, a tied one once."""
    return sum(parameter.numel() for parameter in model.parameters())


def inner_parameters(model: PreTrainedModel) -> int:
    """Parameters without embeddings (token, position) and head."""
    head = model.get_output_embeddings()
    outer = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding) or module is head}
    return sum(parameter.numel() for parameter in model.parameters() if id(parameter) not in outer)


@contextlib.contextmanager
def eval_mode(*models: PreTrainedModel) -> Iterator[None]:
    """Put models in eval mode, and back as they were, module by module."""
    before = [(module, module.training) for model in models for module in model.modules()]
    for model in models:
        model.eval()
    try:
        yield
    finally:
        for module, training in before:
            module.training = training


def dimensions(model: PreTrainedModel) -> dict[str, Any]:
    """What a `Reference` says of a model's size and shape: known from its structure and its config alone."""
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    return {
        "layers": len(block_list(model)[1]),
        "parameters": parameters(model),
        "parameters_without_embeddings": inner_parameters(model),
        "embedding_rows": next(embedding.parameters()).shape[0],
        "tied": head is not None and head.weight is embedding.weight,
        "max_positions": getattr(model.config.get_text_config(), "max_position_embeddings", None),
    }


def prefix_parameters(model: PreTrainedModel) -> list[int]:
    """Parameters of every prefix of a model's blocks, with embeddings, final norm and head: N values."""
    inside = [sum(parameter.numel() for parameter in block.parameters()) for block in block_list(model)[1]]
    outside = parameters(model) - sum(inside)
    return [outside + sum(inside[: count + 1]) for count in range(len(inside))]


def not_finite(named: Iterable[tuple[str, torch.Tensor]]) -> list[str]:
    """The names of tensors that hold NaN or infinity, as weights of a damaged file do (and buffers may: masks)."""
    return [name for name, values in named if not torch.isfinite(values).all()]
