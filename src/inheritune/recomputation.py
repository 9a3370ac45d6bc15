"""Activation checkpointing: a block keeps its input alone, and computes the rest again when its backward comes.

Chen et al. 2016 (arXiv 1604.06174), with the block as the unit: memory for the layers' activations falls to a hidden
state each, for one more forward pass of the blocks. Applied from outside, around whatever a block is (compiled, sharded
by FSDP2); dropout draws the same numbers again, so in eager mode nothing changes by a bit.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from inheritune.attention import banded
from inheritune.reference import block_list


def recompute_blocks(model: PreTrainedModel) -> None:
    """Have every block recompute its activations in the backward pass, in place; called after the blocks are compiled.

    `parallel.uncompile_blocks` undoes it.
    """
    for block in block_list(model)[1]:
        # where nn.Module.compile puts what is called in a module's place: hooks, such as FSDP's, stay inside of it
        block._compiled_call_impl = _recomputed(block._compiled_call_impl or block._call_impl)


def _recomputed(call: Callable[..., Any]) -> Callable[..., Any]:
    def run(*arguments: Any, **settings: Any) -> Any:
        if not torch.is_grad_enabled():
            return call(*arguments, **settings)
        return checkpoint(_uncached, call, *arguments, use_reentrant=False, **settings)

    return run


def _uncached(call: Callable[..., Any], *arguments: Any, **settings: Any) -> Any:
    """Call without autocast's cache, which would keep every block's weights in bfloat16 until the forward ends.

    And with the attention that the objective has put in place, which is gone when the backward pass comes.
    """
    before = torch.is_autocast_cache_enabled()
    torch.set_autocast_cache_enabled(False)
    hidden = next(given for given in (*arguments, *settings.values()) if isinstance(given, torch.Tensor))
    try:
        with banded(hidden.device):
            return call(*arguments, **settings)
    finally:
        torch.set_autocast_cache_enabled(before)
