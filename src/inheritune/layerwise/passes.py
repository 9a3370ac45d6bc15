"""One forward pass, and what it shows at a model's blocks."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from inheritune.errors import Refused
from inheritune.reference import block_list

_UNDEFINED = "how far it turns the hidden state is not defined; name the layers by their indices"


@dataclass
class Pass:
    """What was caught at the blocks, in the order in which they ran."""

    order: list[int] = field(default_factory=list)
    """The blocks' indices."""
    outputs: list[Any] = field(default_factory=list)
    """What each block gave, in memory of its own: the next block may add to it in place."""
    turns: list[torch.Tensor] = field(default_factory=list)
    """One minus the cosine of each block's input and output, (B, T), float32."""
    states: list[torch.Tensor] = field(default_factory=list)
    """The N + 1 hidden states, each (B, T, D): what enters the first block, and what leaves each. They share the
    outputs' memory. What a model does between two blocks counts as the latter's."""

    def check(self, model: PreTrainedModel) -> None:
        """Refuse a pass that did not run each block once, in order."""
        if self.order != list(range(len(block_list(model)[1]))):
            why = f"a pass runs its blocks in the order {self.order}, not each once from first to last"
            raise Refused(f"{type(model).__name__}: {why}; its layers cannot be told apart")


@contextlib.contextmanager
def caught(blocks: nn.ModuleList) -> Iterator[Pass]:
    """Catch what a pass shows at the blocks.

    Raises:
        Refused: a block takes or gives no hidden state, or gives one of another shape than it takes.
    """
    found = Pass()
    entering: list[torch.Tensor] = []

    def before(_block: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> None:
        entering.append(_hidden_state((*arguments, *keywords.values())).clone())

    def after(index: int, _block: nn.Module, _arguments: Any, output: Any) -> None:
        given, copy = entering.pop(), _copied(output)
        gave = _hidden_state(copy if isinstance(copy, tuple | list) else (copy,))
        if given.shape != gave.shape:
            raise Refused(f"block {index} takes {tuple(given.shape)} and gives {tuple(gave.shape)}: {_UNDEFINED}")
        found.order.append(index)
        found.outputs.append(copy)
        found.turns.append(_turn(given, gave))
        found.states += [gave] if found.states else [given, gave]

    with contextlib.ExitStack() as hooks:
        for index, block in enumerate(blocks):
            hooks.callback(block.register_forward_pre_hook(before, with_kwargs=True).remove)
            hooks.callback(block.register_forward_hook(partial(after, index)).remove)
        yield found


def _turn(given: torch.Tensor, gave: torch.Tensor) -> torch.Tensor:
    """One minus the cosine of two tensors' last dimension, (..., D) to (...), in float32.

    As half the squared distance of the unit vectors, which is the same: near 0 it loses no digits, and it is 0 where
    the two are equal.
    """
    tiny = torch.finfo(torch.float32).tiny
    units = [nn.functional.normalize(x.float(), dim=-1, eps=tiny) for x in (given, gave)]
    turn = (units[0] - units[1]).square().sum(-1) / 2
    zero = [~unit.any(-1) for unit in units]
    return turn.masked_fill(zero[0] != zero[1], 1.0)


def _hidden_state(values: Iterable[Any]) -> torch.Tensor:
    """The hidden state among a block's arguments or outputs: in every family the first floating-point tensor."""
    for value in values:
        if isinstance(value, torch.Tensor) and value.is_floating_point():
            return value
    raise Refused(f"a block takes or gives no hidden state: {_UNDEFINED}")


def _copied(value: Any) -> Any:
    """A block's output in memory of its own."""
    if isinstance(value, tuple | list):
        return type(value)(_copied(item) for item in value)
    return value.clone() if isinstance(value, torch.Tensor) else value
