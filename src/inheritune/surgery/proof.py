"""The proof: reference and saved target are run side by side, and what the kept blocks compute is compared bit for bit.

The target is loaded by `from_pretrained` from what was written; the reference is read from its own files, by its own
config, a block at a time. Nothing that surgery computed is taken for granted.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from inheritune.errors import Failed, Refused
from inheritune.reference import Reference, align, block_list, not_finite, one_line, quiet, streamed
from inheritune.surgery.bits import same_bits
from inheritune.surgery.layers import Indices

Record = dict[str, Any]


def prove(
    reference: Reference,
    directory: Path,
    indices: Indices,
    token_ids: torch.Tensor,
    progress: Callable[[int, int], None] | None = None,
) -> Record:
    """Prove that a saved target computes what the reference's kept blocks compute, and holds what they hold.

    Five comparisons, each bit for bit. (a) Every tensor of the target's module equals the reference's, after whatever
    transformers fuses or splits in loading. (b) Each block of the target, given the very hidden state and arguments
    that its source block got, gives the same output. (c) What a block gets beside the hidden state (mask, positions) is
    the same in the target's own pass as in the reference's. (d) Where the first n layers were kept, the hidden state
    that leaves the target's last block equals the reference's after block n - 1: caught by hooks, since the last entry
    of `output_hidden_states` is taken after the final norm. (e) Where all were kept, the logits are equal.

    Args:
        reference: what the target comes from.
        directory: the target as it was saved.
        indices: which blocks were kept.
        token_ids: (sequences, tokens), int64.
        progress: told blocks done and blocks in all.

    Returns:
        The comparisons, None where one does not apply; and what they were made with.

    Raises:
        Refused: blocks depend on others than the one before them, so that these layers cannot be kept without them.
        Failed: anything differs, or the reference's own numbers are not finite, which proves nothing.
    """
    target = load_saved(directory, reference)
    align(target)
    prefix = indices == tuple(range(len(indices)))
    whole = prefix and len(indices) == reference.layers
    with torch.no_grad(), streamed(reference) as model:
        _check_comparable(model, target)
        ours = _Pass()
        try:
            with ours.watching(target):
                logits = target(input_ids=token_ids, use_cache=False).logits
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            raise Refused(
                f"layers: the target does not run ({type(error).__name__}: {one_line(error)}); keep the layers that it "
                "depends on"
            ) from error
        if len(ours.outputs) != len(indices):
            raise Refused(
                f"{reference.source}: {len(indices)} blocks run {len(ours.outputs)} times in a pass, not once each"
            )
        comparison = _Comparison(model, target, indices, ours, progress)
        theirs = comparison.run(token_ids, whole=whole)
        hidden = None
        if prefix:
            hidden = difference("hidden state before the final norm", comparison.last, ours.outputs[-1])
        compared = difference("logits", theirs, logits) if theirs is not None else None
        outer = _compare_tensors(model, target, outside=True)
    return {
        "tokens": token_ids.numel(),
        "sequences": token_ids.shape[0],
        "dtype": reference.dtype,
        "device": "cpu",
        "attention": target.config._attn_implementation,
        "tensors_equal": outer + comparison.tensors,
        "hidden_state_before_final_norm": hidden,
        "logits": compared,
        "arguments_equal": True,
        "blocks": comparison.blocks,
        "generation": _generation(target, token_ids),
    }


def _generation(target: PreTrainedModel, token_ids: torch.Tensor) -> str:
    """Whether the target generates with a cache: `works`, or what transformers says; some want certain blocks."""
    generator: Any = target
    try:
        with torch.no_grad(), quiet():
            generator.generate(token_ids[:1, :8], max_new_tokens=2, do_sample=False, use_cache=True)
    except Exception as error:  # whatever the family's cache raises
        return f"fails: {one_line(error)}"
    return "works"


def load_saved(directory: Path, reference: Reference) -> PreTrainedModel:
    """A saved target, loaded by transformers alone, in the reference's dtype.

    Raises:
        Failed: it does not load, or lacks a tensor.
    """
    try:
        with quiet(), torch.random.fork_rng(devices=[]):
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                directory,
                dtype=reference.torch_dtype,
                trust_remote_code=reference.trust_remote_code,
                output_loading_info=True,
            )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise Failed(f"{directory}: what was saved does not load: {one_line(error)}") from error
    model, info = loaded
    wrong = [*info["missing_keys"], *info["unexpected_keys"], *(str(key) for key in info["mismatched_keys"])]
    if wrong:
        raise Failed(f"{directory}: what was saved lacks or has too much: {min(wrong)} ({len(wrong)} such tensors)")
    assert isinstance(model, PreTrainedModel)
    model.eval()
    return model


def difference(what: str, expected: torch.Tensor, got: torch.Tensor) -> Record:
    """Compare two tensors bit for bit.

    Raises:
        Failed: they differ.
    """
    if expected.shape != got.shape or expected.dtype != got.dtype:
        kinds = f"{tuple(got.shape)} {got.dtype}, not {tuple(expected.shape)} {expected.dtype}"
        raise Failed(f"proof: {what}: {kinds}")
    largest = float((expected.double() - got.double()).abs().max()) if expected.numel() else 0.0
    if not same_bits(expected, got):
        raise Failed(f"proof: {what} differs from the reference's by up to {largest:.3g}; it must be equal bit for bit")
    return {"equal": True, "max_abs_difference": largest}


@dataclass
class _Pass:
    """What a model's blocks were given beside the hidden state, and what they gave, in one forward pass."""

    arguments: list[tuple[Any, Any]] = field(default_factory=list)
    outputs: list[torch.Tensor] = field(default_factory=list)

    @contextlib.contextmanager
    def watching(self, model: PreTrainedModel) -> Iterator[None]:
        with contextlib.ExitStack() as hooks:
            for block in block_list(model)[1]:
                hooks.callback(block.register_forward_pre_hook(self._before, with_kwargs=True).remove)
                hooks.callback(block.register_forward_hook(self._after).remove)
            yield

    def _before(self, _block: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> None:
        self.arguments.append(_beside_hidden(arguments, keywords))

    def _after(self, _block: nn.Module, _arguments: Any, output: Any) -> None:
        self.outputs.append(_hidden_state(output).clone())


class _Left(Exception):
    """Raised to leave the reference's pass after the last block that is of interest."""


class _Comparison:
    """The reference's pass: each kept block is compared with the target's while it is in memory."""

    def __init__(
        self,
        model: PreTrainedModel,
        target: PreTrainedModel,
        indices: Indices,
        ours: _Pass,
        progress: Callable[[int, int], None] | None,
    ) -> None:
        self._model, self._indices, self._ours = model, indices, ours
        self._blocks = block_list(target)[1]
        self._progress = progress
        self._given: tuple[tuple[Any, ...], dict[str, Any]] = ((), {})
        self._found: dict[int, Record] = {}
        self.tensors = 0
        self.last = torch.empty(0)

    @property
    def blocks(self) -> list[Record]:
        """A record for each of the target's blocks."""
        return [self._found[position] for position in range(len(self._indices))]

    def run(self, token_ids: torch.Tensor, *, whole: bool) -> torch.Tensor | None:
        """Run the reference up to the last kept block, or to its logits, which are then returned."""
        end = max(self._indices)

        def before(_block: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> None:
            self._given = (_copied(arguments), {name: _copied(value) for name, value in keywords.items()})

        def after(index: int) -> Any:
            def compare(block: nn.Module, _arguments: Any, output: Any) -> None:
                self._compare(index, block, _hidden_state(output))
                if self._progress is not None:
                    self._progress(index + 1, end + 1)
                if index == end and not whole:
                    raise _Left

            return compare

        with contextlib.ExitStack() as hooks:
            for index, block in enumerate(block_list(self._model)[1]):
                hooks.callback(block.register_forward_pre_hook(before, with_kwargs=True).remove)
                hooks.callback(block.register_forward_hook(after(index)).remove)
            with contextlib.suppress(_Left):
                return self._model(input_ids=token_ids, use_cache=False).logits  # type: ignore[no-any-return]
        return None

    def _compare(self, index: int, block: nn.Module, output: torch.Tensor) -> None:
        """Compare a block of the reference with every block of the target that was made of it."""
        for position in (place for place, kept in enumerate(self._indices) if kept == index):
            copy = self._blocks[position]
            self.tensors += _compare_tensors(block, copy, name=f"block {position}: ")
            if not torch.isfinite(output).all():
                what = f"the reference's hidden state after block {index} is not finite, so nothing is shown"
                raise Failed(f"proof: {what}; try another dtype, or a file that is not damaged")
            arguments, keywords = self._given
            if not _same(_beside_hidden(arguments, keywords), self._ours.arguments[position]):
                raise Refused(
                    f"layers: as block {position} of the target, block {index} would get other arguments (mask, "
                    "positions, or what an earlier block computed) than in the reference; keep the layers it depends on"
                )
            again = copy(*_copied(arguments), **{name: _copied(value) for name, value in keywords.items()})
            compared = difference(f"block {position}", output, _hidden_state(again))
            self._found[position] = {"block": position, "source": index, **compared}
            self.last = output.clone()


def _compare_tensors(model: nn.Module, target: nn.Module, *, name: str = "", outside: bool = False) -> int:
    """Compare the saved tensors of two modules, or of two models outside their blocks; how many are equal."""
    theirs, ours = model.state_dict(), target.state_dict()
    if outside:
        assert isinstance(model, PreTrainedModel)
        assert isinstance(target, PreTrainedModel)
        blocks = f"{block_list(model)[0]}."
        theirs, ours = (
            {key: value for key, value in tensors.items() if not key.startswith(blocks)} for tensors in (theirs, ours)
        )
    differing = theirs.keys() ^ ours.keys()
    differing |= {key for key in theirs.keys() & ours.keys() if not same_bits(theirs[key], ours[key])}
    if differing:
        raise Failed(f"proof: {name}{min(differing)} differs from the reference's ({len(differing)} tensors do)")
    broken = not_finite((key, value) for key, value in target.named_parameters() if key in ours)
    if broken:
        others = f", {len(broken) - 1} others there, too" if len(broken) > 1 else ""
        raise Refused(f"reference: {name}{broken[0]} holds NaN or infinity{others}; its file is damaged: get it again")
    return len(ours)


def _beside_hidden(arguments: tuple[Any, ...], keywords: dict[str, Any]) -> tuple[Any, Any]:
    """A block's arguments without the hidden state, which is the first."""
    if arguments:
        return arguments[1:], keywords
    return (), {name: value for name, value in keywords.items() if name != "hidden_states"}


def _same(one: Any, other: Any) -> bool:
    """Whether arguments are equal: tensors bit for bit, containers entry by entry, other objects by their kind."""
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        return one is other or same_bits(one, other)
    if isinstance(one, tuple | list) and isinstance(other, tuple | list):
        return len(one) == len(other) and all(_same(a, b) for a, b in zip(one, other, strict=True))
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_same(one[key], other[key]) for key in one)
    return type(one) is type(other)


def _copied(value: Any) -> Any:
    """The same argument in memory of its own: some blocks add to the hidden state in place."""
    if isinstance(value, torch.Tensor):
        return value.clone()
    if isinstance(value, tuple):
        return tuple(_copied(entry) for entry in value)
    return value


def _hidden_state(output: Any) -> torch.Tensor:
    """The hidden state of a block's output; some families return it among others."""
    hidden = output[0] if isinstance(output, tuple | list) else output
    assert isinstance(hidden, torch.Tensor)
    return hidden


def _check_comparable(reference_model: PreTrainedModel, target_model: PreTrainedModel) -> None:
    """Equal bits can be asked for only where both compute in the same way."""
    theirs, ours = reference_model.config._attn_implementation, target_model.config._attn_implementation
    if theirs != ours:
        raise Failed(f"proof: attention differs, {theirs} in the reference and {ours} in the target; load both alike")
