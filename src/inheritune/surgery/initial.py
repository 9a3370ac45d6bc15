"""Inits: what a target or a control starts from, other than the reference's layers as they are.

The parts are those of the paper's ablation: attention alone, MLP alone, with and without norms, embeddings and head;
what is not inherited is drawn at random as transformers initialises it.
"""

from __future__ import annotations

import copy
import re
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel

from inheritune.errors import Refused
from inheritune.reference import LINEAGE_KEY, Reference, block_list, final_norm, fresh
from inheritune.surgery.bits import sha256, ties
from inheritune.surgery.cut import Status, TensorRecord
from inheritune.surgery.proof import load_saved

Record = dict[str, Any]

_ATTENTION = re.compile(
    "attn|attention|mixer|mamba|ssm|rwkv|recurrent|temporal|linear_att|short_?conv|^conv$", re.IGNORECASE
)
_MLP = re.compile("mlp|ffn|feed_?forward|moe|expert|^fc[0-9]$|^ff", re.IGNORECASE)


def parts(model: PreTrainedModel) -> dict[str, str]:
    """For each tensor of a model the part that it belongs to.

    Within a block, by the child of the block that holds it: a norm by its class (`block_norms`), `attention` (or what
    mixes tokens in its place) and `mlp` by name or class. Outside: `head`, `final_norm`, and `embeddings`, which is all
    the rest.

    Raises:
        Refused: a block has a child whose part cannot be told.
    """
    prefix, blocks = block_list(model)
    norm, head = final_norm(model), model.get_output_embeddings()
    outside = {id(module): "final_norm" for module in (norm.modules() if norm is not None else ())}
    outside |= {id(module): "head" for module in (head.modules() if head is not None else ())}
    found = {}
    for name in model.state_dict():
        if name.startswith(f"{prefix}."):
            index, _, rest = name.removeprefix(f"{prefix}.").partition(".")
            found[name] = _part_of_block(blocks[int(index)], rest, type(model).__name__)
        else:
            found[name] = outside.get(id(model.get_submodule(name.rpartition(".")[0])), "embeddings")
    return found


def start(
    inherited: Path, reference: Reference, wanted: frozenset[str], seed: int
) -> tuple[PreTrainedModel, frozenset[str]]:
    """A model of the target's shape that has only some parts from the reference, the rest from random init.

    Args:
        inherited: the target as it was cut, saved.
        reference: where it comes from.
        wanted: which parts are inherited; none at all is the random control.
        seed: of the random init.

    Returns:
        The model in eval mode, in float32, and the names of its tensors that are inherited. A tied tensor is inherited
        if either of its parts is.
    """
    whole = load_saved(inherited, reference)
    model = random_like(whole.config, reference, seed)
    belongs, tied, values = parts(model) if wanted else {}, ties(model), whole.state_dict()
    taken = {name for name, part in belongs.items() if part in wanted}
    taken |= {tied[name] for name in taken & tied.keys()}
    taken |= {name for name, first in tied.items() if first in taken}
    with torch.no_grad():
        for name, tensor in model.state_dict(keep_vars=True).items():
            if name in taken:
                tensor.copy_(values[name])
    return model.eval(), frozenset(taken)


def tensor_records(model: PreTrainedModel, taken: frozenset[str], whole: Record | None = None) -> list[TensorRecord]:
    """A record for each tensor of what `start` made, as it is now.

    Args:
        model: what `start` returned first.
        taken: what it returned second.
        whole: the record of the saved cut, which knows the names in the reference's files (of several that are fused,
            the first is given); without it a source is a name in the cut.
    """
    sources: dict[str, str] = {}
    for entry in whole["tensors"] if whole is not None else ():
        for place in entry["module"]:
            sources.setdefault(place, sources[entry["source"]] if entry["status"] == "tied" else entry["source"])
    tied, records = ties(model), []
    for name, tensor in model.state_dict().items():
        status: Status = "tied" if name in tied else "inherited" if name in taken else "fresh"
        source = tied.get(name, sources.get(name, name) if name in taken else None)
        dtype = str(tensor.dtype).removeprefix("torch.")
        records.append(TensorRecord(name, status, source, (name,), tuple(tensor.shape), dtype, sha256(tensor)))
    return records


def random_like(config: PretrainedConfig, reference: Reference, seed: int) -> PreTrainedModel:
    """A model of a target's config from random init, drawn in float32 whatever the dtype of the weights."""
    config = copy.deepcopy(config)
    if hasattr(config, LINEAGE_KEY):
        delattr(config, LINEAGE_KEY)  # it inherits nothing
    config.dtype = torch.float32
    return fresh(config, seed, trust_remote_code=reference.trust_remote_code)


def _part_of_block(block: nn.Module, path: str, family: str) -> str:
    """The part of a block's tensor, by the block's child that it lies in."""
    child_name = path.split(".", maxsplit=1)[0]
    child = getattr(block, child_name)
    kind = type(child).__name__
    if "norm" in kind.lower():
        return "block_norms"
    for part, pattern in (("attention", _ATTENTION), ("mlp", _MLP)):
        if pattern.search(child_name):
            return part
    for part, pattern in (("attention", _ATTENTION), ("mlp", _MLP)):
        if pattern.search(kind):
            return part
    raise Refused(f"init: {family}: whether a block's {child_name} ({kind}) is attention or MLP cannot be told")
