"""What every prefix of a model scores before any training, with how far its blocks turn the hidden state: one pass."""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from inheritune.comparison import resampled_means
from inheritune.layerwise.passes import caught
from inheritune.layerwise.turning import Turning, TurningSums
from inheritune.loss import IGNORED
from inheritune.objective import Objective, Scores
from inheritune.reference import block_list, eval_mode
from inheritune.result import bits_per_byte
from inheritune.tokens import Tokens, TokenSet
from inheritune.validation import Batch, SetLosses, TokenScores, set_batches

Record = dict[str, Any]


@dataclass(frozen=True)
class Scan:
    """What one pass over a set shows of a model's layers."""

    prefixes: list[SetLosses]
    """Entry n - 1 is what the first n blocks score. Of a sample a document's tokens are those scored, and its bytes in
    proportion."""
    turning: Turning | None
    """Over all tokens of the set, sampled or not; None where a hidden state is not finite."""
    tokens: int
    """Of the set."""
    bytes: int
    seed: int | None
    """Of the sample of positions that were scored; None where all were."""

    @property
    def positions(self) -> int:
        """How many positions were scored, the same for every prefix."""
        return int(self.prefixes[0].tokens.sum())


@torch.inference_mode()
def scan_prefixes(
    model: PreTrainedModel,
    tokens: TokenSet,
    *,
    sequence_length: int,
    context_token: int,
    batch_sequences: int,
    dtype: torch.dtype,
    positions: int | None = None,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> Scan:
    """Measure every prefix of a model on a set, and how far its blocks turn the hidden state, in one pass.

    What stands after the blocks (final norm, projection, head, soft-capping, scale) is the model's own code: the model
    is run again with its first n blocks alone, which only hand on what they gave in the pass. With all positions the
    last entry is `validation.measure`'s, to the bit. The model is left as it was.
    Beside what `measure` needs, a batch holds every block's output: (blocks, B, T, D), in the model's dtype.

    Args:
        model: on the device that it is to be measured on, not compiled.
        tokens: the set.
        sequence_length: tokens of a sequence.
        context_token: what the first token of the set is predicted from.
        batch_sequences: sequences a forward pass.
        dtype: of matrix products.
        positions: how many of the set's tokens the head is applied to, drawn without replacement, the same for every
            prefix; without it, or where the set has no more, all. The blocks see every token. N prefixes take N heads:
            with a vocabulary of 49,152 and 30 layers of width 576 eight times the work of the blocks.
        seed: of the draw.
        progress: told after every batch how many of the sequences are done, and how many there are.

    Raises:
        Refused: the model's passes do not run each block once, in order, on a hidden state.
    """
    blocks = block_list(model)[1]
    scores = [TokenScores(tokens) for _ in blocks]
    sums, objective = TurningSums(len(blocks), model.device), Objective(model, dtype)
    drawn = _drawn(tokens.tokens, positions, seed)
    sequences = math.ceil(tokens.tokens / sequence_length)
    with eval_mode(model):
        for batch in set_batches(
            tokens,
            sequence_length=sequence_length,
            context_token=context_token,
            batch_sequences=batch_sequences,
            device=model.device,
        ):
            _add(scores, sums, model, objective, batch, None if drawn is None else _places(drawn, batch))
            if progress is not None:
                progress(batch.first + len(batch.ids), sequences)
    losses = [score.by_document() for score in scores]
    if drawn is not None:
        losses = [_of_sample(measured, tokens, drawn) for measured in losses]
    size = int(tokens.document_bytes.sum())
    return Scan(losses, sums.means(), tokens.tokens, size, None if drawn is None else seed)


def _drawn(tokens: int, positions: int | None, seed: int) -> Tokens | None:
    """Which of a set's tokens are scored, ascending; None for all."""
    if positions is None or positions >= tokens:
        return None
    return np.sort(np.random.default_rng(seed).choice(tokens, positions, replace=False))


def _places(drawn: Tokens, batch: Batch) -> torch.Tensor:
    """Which of a batch's positions, counted row by row, are among those drawn: (n,), int64."""
    start = batch.first * batch.ids.shape[1]
    low, high = np.searchsorted(drawn, [start, start + batch.ids.numel()])
    return torch.from_numpy(drawn[low:high] - start).to(batch.ids.device)


def _add(
    scores: list[TokenScores],
    sums: TurningSums,
    model: PreTrainedModel,
    objective: Objective,
    batch: Batch,
    places: torch.Tensor | None,
) -> None:
    """Measure a batch. A function of its own, so that what it holds is let go before the next batch."""

    def score() -> Scores:
        found: Scores = objective(batch.ids, batch.labels, scored=True, places=places)
        return found if places is None else _spread(found, places, batch.ids.shape)

    with caught(block_list(model)[1]) as found:
        scores[-1].add(batch, score())
    found.check(model)
    sums.add(found, batch.labels != IGNORED)
    if places is not None and not places.numel():
        return
    for count, prefix in enumerate(scores[:-1], 1):
        with _prefix(model, found.outputs[:count]):
            prefix.add(batch, score())


def _spread(found: Scores, places: torch.Tensor, shape: torch.Size) -> Scores:
    """Scores of some places of a batch as the batch's: 0 at the others."""
    return Scores(*(values.new_zeros(shape.numel()).index_put((places,), values).reshape(shape) for values in found))


def _of_sample(measured: SetLosses, tokens: TokenSet, drawn: Tokens) -> SetLosses:
    """The losses of a sample, whose sums are over what was drawn alone."""
    document = np.searchsorted(tokens.document_ends, drawn, side="right")
    scored = np.bincount(document, minlength=len(measured.tokens)).astype(np.float64)
    return dataclasses.replace(measured, tokens=scored, bytes=measured.bytes * scored / measured.tokens)


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


def scan_record(
    scan: Scan, *, set_name: str, parameters: list[int], vocabulary: int, bootstrap_seed: int = 0
) -> Record:
    """What every prefix scores, as JSON; `report.scan` shows it.

    Args:
        scan: as `scan_prefixes` gives it.
        set_name: the set's.
        parameters: of each prefix, with embeddings and head.
        vocabulary: how many tokens a uniform guess guesses among.
        bootstrap_seed: of the bootstrap.

    Returns:
        `set`, its `documents`, `tokens`, `bytes`; `positions`, how many of the tokens were scored, and `sample_seed`,
        None where all were; `vocabulary`, `uniform_guess` (nats a token); in `prefixes` for each n `layers`,
        `parameters`, `loss` (nats a token) with `standard_error` and 95% interval `low`, `high`, `bits_per_byte`,
        `accuracy`; over all tokens `influence` (a value a block) and `angular` (entry (k - 1, a): the angular distance
        of the k blocks from block a on). None where a model's values are not finite or one document leaves no spread.
        Errors and intervals are a bootstrap's over documents of what was scored, so a sample's are as much wider.
    """
    losses = scan.prefixes
    spoken = losses[0].tokens > 0  # a document that no position was drawn from says nothing
    tokens, text_bytes = losses[0].tokens[spoken], float(losses[0].bytes.sum())
    finite_nats = [np.nan_to_num(measured.nats[spoken], posinf=0.0) for measured in losses]
    drawn = resampled_means(finite_nats, tokens, bootstrap_seed) if len(tokens) > 1 else None
    prefixes = []
    for index, measured in enumerate(losses):
        finite = bool(np.isfinite(measured.nats).all())
        spread = drawn[index] if drawn is not None and finite else None
        interval = [None, None] if spread is None else np.percentile(spread, [2.5, 97.5]).tolist()
        prefixes.append(
            {
                "layers": index + 1,
                "parameters": parameters[index],
                "loss": measured.loss if finite else None,
                "standard_error": None if spread is None else float(spread.std(ddof=1)),
                "low": interval[0],
                "high": interval[1],
                "bits_per_byte": bits_per_byte(float(measured.nats.sum()), text_bytes) if finite else None,
                "accuracy": float(measured.correct.sum() / tokens.sum()),
            }
        )
    turning = scan.turning
    return {
        "set": set_name,
        "documents": len(spoken),
        "tokens": scan.tokens,
        "bytes": scan.bytes,
        "positions": scan.positions,
        "sample_seed": scan.seed,
        "vocabulary": vocabulary,
        "uniform_guess": math.log(vocabulary),
        "prefixes": prefixes,
        "influence": None if turning is None else [round(value, 6) for value in turning.influence],
        "angular": None if turning is None else turning.stretches(),
    }
