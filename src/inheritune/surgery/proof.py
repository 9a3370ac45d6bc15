"""The proof: reference and target are run side by side, and what the kept layers compute is compared bit for bit."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from inheritune.errors import Failed
from inheritune.reference import block_list, final_norm
from inheritune.surgery.bits import same_bits

Record = dict[str, Any]


def prove(
    reference_model: PreTrainedModel, target_model: PreTrainedModel, indices: tuple[int, ...], token_ids: torch.Tensor
) -> Record:
    """Prove, by running both, that the target computes what the reference's kept layers compute, bit for bit.

    Three comparisons. Where the first n layers were kept: the target's hidden state as it enters the final norm equals
    the reference's as it leaves block n - 1 (both caught by hooks: the last entry of `output_hidden_states` is taken
    after the norm). Where all were kept: equal logits too. For any choice: each block of the target, given the very
    inputs that its source block got, gives the same output.

    Args:
        reference_model: the reference, of the target's dtype and on its device.
        target_model: what `inherit` made, before any training.
        indices: which blocks were kept.
        token_ids: (sequences, tokens), int64.

    Returns:
        The three comparisons, each with its largest absolute difference, None where it does not apply; and what they
        were made with.

    Raises:
        Failed: any of them differs, or the reference's own numbers are not finite, which proves nothing.
    """
    _check_comparable(reference_model, target_model)
    blocks = block_list(target_model)[1]
    prefix = indices == tuple(range(len(indices)))
    whole = prefix and len(indices) == len(block_list(reference_model)[1])
    with torch.no_grad(), eval_mode(reference_model, target_model):
        theirs = _trace(reference_model, token_ids)
        ours = _trace(target_model, token_ids)
        if not all(torch.isfinite(theirs.calls[index].output).all() for index in indices):
            raise Failed("proof: the reference's hidden state is not finite, so nothing is shown; try another dtype")
        hidden = logits = None
        if prefix:
            last = theirs.calls[indices[-1]].output
            hidden = difference("hidden state before the final norm", last, ours.entering_norm)
        if whole:
            logits = difference("logits", theirs.logits, ours.logits)
        blockwise = []
        for position, index in enumerate(indices):
            call = theirs.calls[index]
            compared = difference(f"block {position}", call.output, call.repeat(blocks[position]))
            blockwise.append({"block": position, "source": index, **compared})
    return {
        "tokens": token_ids.numel(),
        "sequences": token_ids.shape[0],
        "dtype": str(target_model.dtype).removeprefix("torch."),
        "device": str(target_model.device),
        "attention": target_model.config._attn_implementation,
        "hidden_state_before_final_norm": hidden,
        "logits": logits,
        "blocks": blockwise,
    }


def difference(what: str, expected: torch.Tensor, got: torch.Tensor) -> Record:
    """Compare two tensors bit for bit.

    Raises:
        Failed: they differ.
    """
    if expected.shape != got.shape or expected.dtype != got.dtype:
        kinds = f"{tuple(got.shape)} {got.dtype}, not {tuple(expected.shape)} {expected.dtype}"
        raise Failed(f"proof: {what}: {kinds}")
    largest = float((expected.double() - got.double()).abs().max())
    if not same_bits(expected, got):
        raise Failed(f"proof: {what} differs from the reference's by up to {largest:.3g}; it must be equal bit for bit")
    return {"equal": True, "max_abs_difference": largest}


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


@dataclass(frozen=True)
class _BlockCall:
    """What a block was given in a forward pass, and the hidden state that it gave: (B, T, D)."""

    arguments: tuple[Any, ...]
    keywords: dict[str, Any]
    output: torch.Tensor

    def repeat(self, block: nn.Module) -> torch.Tensor:
        """The hidden state that another block makes of the same input."""
        return _hidden_state(block(*_copied(self.arguments), **self.keywords))


@dataclass(frozen=True)
class _Trace:
    """A forward pass, from inside."""

    calls: list[_BlockCall]
    entering_norm: torch.Tensor
    """The hidden state that enters the final norm, or leaves the last block where there is none: (B, T, D)."""
    logits: torch.Tensor
    """(B, T, V)"""


def _trace(model: PreTrainedModel, token_ids: torch.Tensor) -> _Trace:
    """Run a model and catch what its blocks and its final norm are given."""
    calls: list[_BlockCall] = []
    given: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
    entering: list[torch.Tensor] = []

    def before(_block: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> None:
        given.append((_copied(arguments), keywords))

    def after(_block: nn.Module, _arguments: Any, output: Any) -> None:
        arguments, keywords = given.pop()
        calls.append(_BlockCall(arguments, keywords, _hidden_state(output).clone()))

    def before_norm(_norm: nn.Module, arguments: tuple[Any, ...]) -> None:
        entering.append(arguments[0].clone())

    norm = final_norm(model)
    with contextlib.ExitStack() as hooks:
        for block in block_list(model)[1]:
            hooks.callback(block.register_forward_pre_hook(before, with_kwargs=True).remove)
            hooks.callback(block.register_forward_hook(after).remove)
        if norm is not None:
            hooks.callback(norm.register_forward_pre_hook(before_norm).remove)
        logits = model(input_ids=token_ids.to(model.device), use_cache=False).logits
    return _Trace(calls, entering[-1] if entering else calls[-1].output, logits)


def _copied(arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    """The same arguments in memory of their own: some blocks add to the hidden state in place."""
    return tuple(value.clone() if isinstance(value, torch.Tensor) else value for value in arguments)


def _hidden_state(output: Any) -> torch.Tensor:
    """The hidden state of a block's output; some families return it in a tuple."""
    hidden = output[0] if isinstance(output, tuple) else output
    assert isinstance(hidden, torch.Tensor)
    return hidden


def _check_comparable(reference_model: PreTrainedModel, target_model: PreTrainedModel) -> None:
    """Equal bits can be asked for only where both compute in the same way."""
    for what, theirs, ours in (
        ("dtype", reference_model.dtype, target_model.dtype),
        ("device", reference_model.device, target_model.device),
        ("attention", reference_model.config._attn_implementation, target_model.config._attn_implementation),
    ):
        if theirs != ours:
            raise Failed(f"proof: {what} differs, {theirs} in the reference and {ours} in the target; load both alike")
