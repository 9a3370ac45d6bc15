"""What each layer is worth before any training: how far a block turns the hidden state, what every prefix scores."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedModel

from inheritune.comparison import resampled_means
from inheritune.errors import Failed, Refused
from inheritune.objective import Objective
from inheritune.reference import block_list, eval_mode
from inheritune.result import bits_per_byte
from inheritune.tokens import Tokens, TokenSet
from inheritune.validation import Batch, SetLosses, TokenScores, logits_of, set_batches

Record = dict[str, Any]


def influence_batches(
    tokens: TokenSet, *, sequence_length: int, batch_sequences: int, most_tokens: int
) -> Iterator[Tokens]:
    """The beginning of a set as inputs for `block_influence`: arrays of (B, sequence_length), without padding.

    Layers are chosen by what these tokens show, so take them from training or development text, never from the text
    that the outcome is judged by.

    Args:
        tokens: the set.
        sequence_length: tokens of a sequence; a set that is shorter makes one sequence of all it has.
        batch_sequences: sequences a batch; the last one may hold fewer.
        most_tokens: how far to read; at least one sequence is.
    """
    length = min(sequence_length, tokens.tokens)
    sequences = max(1, min(most_tokens, tokens.tokens) // max(1, length))
    for first in range(0, sequences, batch_sequences):
        stop = min(first + batch_sequences, sequences)
        yield tokens.read(first * length, stop * length).reshape(stop - first, length)


@torch.inference_mode()
def block_influence(
    model: PreTrainedModel, batches: Iterable[Tokens | torch.Tensor], *, dtype: torch.dtype
) -> tuple[float, ...]:
    """Block influence: one minus the cosine of a block's input and output, its mean over tokens.

    As ShortGPT measures it (Men et al. 2024, arXiv 2403.03853, equation 1): 0 where a block leaves every hidden state's
    direction as it is, 2 where it reverses it. Cosines are computed in float32 and averaged in float64, whatever the
    model's dtype. A zero vector has cosine 0 with any other and 1 with itself. The model is left as it was.

    Args:
        model: on the device that it is to be run on, not compiled.
        batches: token ids, (B, T), int64, every token of which counts: no padding.
        dtype: of matrix products.

    Returns:
        A value a block, in the model's order.

    Raises:
        Refused: there is no token; the model's passes do not run each block once, in order, on a hidden state.
        Failed: a hidden state is not finite.
    """
    blocks = block_list(model)[1]
    sums, count = np.zeros(len(blocks)), 0
    with eval_mode(model):
        for batch in batches:
            ids = torch.as_tensor(batch).to(model.device)
            with _changes(blocks) as changes:
                logits_of(model, ids, dtype)
            found = _each_once(model, changes)
            sums += [float(change.double().sum()) for change in found]
            count += found[0].numel()
    if not count:
        raise Refused("influence: no tokens to measure it on; give at least one sequence")
    if not np.isfinite(sums).all():
        raise Failed("influence: a hidden state is not finite, so blocks cannot be compared; try another dtype")
    return tuple((sums / count).tolist())


def most_influential(influence: Sequence[float], count: int) -> tuple[int, ...]:
    """The indices of the `count` blocks of the greatest influence, ascending; of equals the lower index.

    Raises:
        Refused: there are not so many blocks.
    """
    if not 1 <= count <= len(influence):
        raise Refused(f"influence:{count}: the reference has {len(influence)} layers; ask for 1 to {len(influence)}")
    return tuple(sorted(sorted(range(len(influence)), key=lambda index: -influence[index])[:count]))


@torch.inference_mode()
def prefix_losses(
    model: PreTrainedModel,
    tokens: TokenSet,
    *,
    sequence_length: int,
    context_token: int,
    batch_sequences: int,
    dtype: torch.dtype,
    progress: Callable[[int, int], None] | None = None,
) -> list[SetLosses]:
    """Measure every prefix of a model on a whole set in one pass: entry n - 1 is that of the first n blocks.

    What stands after the blocks (final norm, projection, head, soft-capping, scale) is the model's own code: the model
    is run again with its first n blocks alone, which only hand on what they gave in the pass. The last entry is
    `validation.measure`'s, to the bit. The model is left as it was.
    Beside what `measure` needs, a batch holds every block's output: (blocks, B, T, D), in the model's dtype.

    Args:
        model: on the device that it is to be measured on, not compiled.
        tokens: the set.
        sequence_length: tokens of a sequence.
        context_token: what the first token of the set is predicted from.
        batch_sequences: sequences a forward pass.
        dtype: of matrix products.
        progress: told after every batch how many of the sequences are done, and how many there are.

    Raises:
        Refused: the model's passes do not run each block once, in order.
    """
    scores = [TokenScores(tokens) for _ in block_list(model)[1]]
    sequences = math.ceil(tokens.tokens / sequence_length)
    objective = Objective(model, dtype)
    with eval_mode(model):
        for batch in set_batches(
            tokens,
            sequence_length=sequence_length,
            context_token=context_token,
            batch_sequences=batch_sequences,
            device=model.device,
        ):
            _add_prefixes(scores, model, objective, batch)
            if progress is not None:
                progress(batch.first + len(batch.ids), sequences)
    return [score.by_document() for score in scores]


def _add_prefixes(scores: list[TokenScores], model: PreTrainedModel, objective: Objective, batch: Batch) -> None:
    """Score a batch by every prefix. A function of its own, so that what it holds is let go before the next batch."""
    with _outputs(block_list(model)[1]) as caught:
        scores[-1].add(batch, objective(batch.ids, batch.labels, scored=True))
    outputs = _each_once(model, caught)
    for count, score in enumerate(scores[:-1], 1):
        with _prefix(model, outputs[:count]):
            score.add(batch, objective(batch.ids, batch.labels, scored=True))


def scan_record(
    losses: Sequence[SetLosses], *, set_name: str, parameters: Sequence[int], vocabulary: int, seed: int = 0
) -> Record:
    """What every prefix scores, as JSON; `report.scan` shows it.

    Args:
        losses: as `prefix_losses` gives them.
        set_name: the set's.
        parameters: of each prefix, with embeddings and head.
        vocabulary: how many tokens a uniform guess guesses among.
        seed: of the bootstrap.

    Returns:
        `set`, its `documents`, `tokens`, `bytes`; `vocabulary`, `uniform_guess` (nats a token); in `prefixes` for each
        n `layers`, `parameters`, `loss` (nats a token) with its 95% bootstrap interval over documents `low`, `high`,
        `bits_per_byte`, `accuracy`. None where a model's losses are not finite or one document leaves no spread.
    """
    tokens, text_bytes = losses[0].tokens, float(losses[0].bytes.sum())
    finite_nats = [np.nan_to_num(measured.nats, posinf=0.0) for measured in losses]
    drawn = resampled_means(finite_nats, tokens, seed) if len(tokens) > 1 else None
    prefixes = []
    for index, measured in enumerate(losses):
        finite = bool(np.isfinite(measured.nats).all())
        interval = np.percentile(drawn[index], [2.5, 97.5]).tolist() if drawn is not None and finite else [None, None]
        prefixes.append(
            {
                "layers": index + 1,
                "parameters": parameters[index],
                "loss": measured.loss if finite else None,
                "low": interval[0],
                "high": interval[1],
                "bits_per_byte": bits_per_byte(float(measured.nats.sum()), text_bytes) if finite else None,
                "accuracy": float(measured.correct.sum() / tokens.sum()),
            }
        )
    return {
        "set": set_name,
        "documents": len(tokens),
        "tokens": int(tokens.sum()),
        "bytes": int(text_bytes),
        "vocabulary": vocabulary,
        "uniform_guess": math.log(vocabulary),
        "prefixes": prefixes,
    }


_NO_INFLUENCE = "its influence is not defined; name the layers by their indices"
_Caught = list[tuple[int, Any]]
"""What was caught at a block, with the block's index, in the order of the pass."""


@contextlib.contextmanager
def _outputs(blocks: nn.ModuleList) -> Iterator[_Caught]:
    """Catch what each block gives, in memory of its own: the next block may add to it in place."""
    caught: _Caught = []

    def after(index: int, _block: nn.Module, _arguments: Any, output: Any) -> None:
        caught.append((index, _copied(output)))

    with contextlib.ExitStack() as hooks:
        for index, block in enumerate(blocks):
            hooks.callback(block.register_forward_hook(partial(after, index)).remove)
        yield caught


@contextlib.contextmanager
def _changes(blocks: nn.ModuleList) -> Iterator[_Caught]:
    """Catch how each block turns the hidden state: one minus the cosine, (B, T), float32."""
    caught: _Caught = []
    entering: list[torch.Tensor] = []

    def before(_block: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> None:
        entering.append(_hidden_state((*arguments, *keywords.values())).clone())

    def after(index: int, _block: nn.Module, _arguments: Any, output: Any) -> None:
        given, gave = entering.pop(), _hidden_state(output if isinstance(output, tuple | list) else (output,))
        if given.shape != gave.shape:
            raise Refused(f"block {index} takes {tuple(given.shape)} and gives {tuple(gave.shape)}: {_NO_INFLUENCE}")
        caught.append((index, _turn(given, gave)))

    with contextlib.ExitStack() as hooks:
        for index, block in enumerate(blocks):
            hooks.callback(block.register_forward_pre_hook(before, with_kwargs=True).remove)
            hooks.callback(block.register_forward_hook(partial(after, index)).remove)
        yield caught


@contextlib.contextmanager
def _prefix(model: PreTrainedModel, outputs: list[Any]) -> Iterator[None]:
    """Leave a model its first blocks alone, as many as there are outputs, which they give without computing them."""
    name, blocks = block_list(model)
    owner, attribute = model.get_submodule(name.rpartition(".")[0]), name.rpartition(".")[2]
    kept = blocks[: len(outputs)]
    # an instance's own, as accelerate sets one; as a rule there is none, and the class's is what runs
    before = [vars(block).get("forward") for block in kept]
    try:
        for block, output in zip(kept, outputs, strict=True):
            vars(block)["forward"] = lambda *_, _output=output, **__: _output
        setattr(owner, attribute, kept)
        yield
    finally:
        setattr(owner, attribute, blocks)
        for block, forward in zip(kept, before, strict=True):
            vars(block).pop("forward", None)
            if forward is not None:
                vars(block)["forward"] = forward


def _each_once(model: PreTrainedModel, caught: _Caught) -> list[Any]:
    """What was caught, a value a block; refused if the pass did not run each block once, in order."""
    order = [index for index, _ in caught]
    if order != list(range(len(block_list(model)[1]))):
        why = f"a pass runs its blocks in the order {order}, not each once from first to last"
        raise Refused(f"{type(model).__name__}: {why}; its layers cannot be told apart")
    return [value for _, value in caught]


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
    raise Refused(f"a block takes or gives no hidden state: {_NO_INFLUENCE}")


def _copied(value: Any) -> Any:
    """A block's output in memory of its own."""
    if isinstance(value, tuple | list):
        return type(value)(_copied(item) for item in value)
    return value.clone() if isinstance(value, torch.Tensor) else value
