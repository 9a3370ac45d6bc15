"""A model's loss on a fixed set, document by document, every token of the set once."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from transformers import PreTrainedModel

from inheritune.distributed import World
from inheritune.loss import IGNORED
from inheritune.objective import Objective, Scores
from inheritune.parallel import autocast
from inheritune.reference import eval_mode
from inheritune.tokens import Prepared, TokenSet, whole_set, whole_set_positions

Documents = npt.NDArray[np.float64]


@dataclass(frozen=True)
class SetLosses:
    """What a model scores on a set, by document: arrays of (documents,)."""

    nats: Documents
    """Total cross-entropy of the document's tokens, end-of-text included."""
    correct: Documents
    """How many of its tokens were the most likely next token."""
    tokens: Documents
    bytes: Documents

    @property
    def loss(self) -> float:
        """Nats a token over the whole set."""
        return float(self.nats.sum() / self.tokens.sum())

    def record(self) -> dict[str, Any]:
        """As JSON: the sums a document, in the set's order."""
        return {
            "nats": [round(x, 6) for x in self.nats.tolist()],
            "correct": self.correct.astype(int).tolist(),
            "tokens": self.tokens.astype(int).tolist(),
            "bytes": self.bytes.astype(int).tolist(),
        }


@dataclass(frozen=True)
class Batch:
    """Some neighbouring blocks of a set, on a device."""

    ids: torch.Tensor
    """(B, T), int64"""
    labels: torch.Tensor
    """(B, T), int64: the next tokens, `loss.IGNORED` after the set's end."""
    first: int
    """Which block of the set is its first."""
    positions: torch.Tensor | None = None
    """(B, T), int64: places in the documents, where documents must not see each other."""


def set_batches(
    tokens: TokenSet,
    *,
    sequence_length: int,
    context_token: int,
    batch_sequences: int,
    device: torch.device,
    document_mask: bool = False,
) -> Iterator[Batch]:
    """A whole set in order, as one stream in blocks of `sequence_length` tokens, `batch_sequences` blocks a batch."""
    places = whole_set_positions(tokens, sequence_length) if document_mask else None
    inputs, labels = whole_set(
        tokens, sequence_length, context_token, IGNORED, apart=document_mask
    )  # each (blocks, sequence_length)
    for first in range(0, len(inputs), batch_sequences):
        rows = slice(first, first + batch_sequences)
        positions = None if places is None else torch.from_numpy(places[rows]).to(device)
        ids, wanted = (torch.from_numpy(x[rows]).to(device) for x in (inputs, labels))
        yield Batch(ids, wanted, first, positions)


class TokenScores:
    """One model's scores on a set, gathered batch by batch, then summed by document."""

    def __init__(self, tokens: TokenSet) -> None:
        self._set = tokens
        # float32, as the losses come: a scan holds as many of these as there are layers
        self._nats = np.zeros(tokens.tokens, np.float32)
        self._correct = np.zeros(tokens.tokens, np.bool_)

    def add(self, batch: Batch, scores: Scores) -> None:
        """Note what a model scored on a batch."""
        start = batch.first * batch.ids.shape[1]
        place = slice(start, start + batch.ids.numel())
        within = len(self._nats[place])  # the last block may reach beyond the set's end
        self._nats[place] = scores.nats.flatten()[:within].cpu().numpy()
        self._correct[place] = scores.correct.flatten()[:within].cpu().numpy()

    def add_up(self, world: World) -> None:
        """Bring together what the ranks scored, each some batches; the others' places hold zeros, so sums are exact."""
        for values in (self._nats, self._correct):
            values[:] = world.add_up(torch.from_numpy(values.astype(np.float32)).to(world.device)).cpu().numpy()

    def by_document(self) -> SetLosses:
        """The sums by document, in float64."""
        ends = self._set.document_ends
        starts = np.concatenate([[0], ends[:-1]]).astype(np.int64)
        nats, correct = (np.add.reduceat(x.astype(np.float64), starts) for x in (self._nats, self._correct))
        sizes = np.diff(ends, prepend=0).astype(np.float64)
        return SetLosses(nats, correct, sizes, self._set.document_bytes.astype(np.float64))


@torch.inference_mode()
def measure(
    model: PreTrainedModel,
    tokens: TokenSet,
    *,
    sequence_length: int,
    context_token: int,
    batch_sequences: int,
    dtype: torch.dtype,
    document_mask: bool = False,
) -> SetLosses:
    """Measure a model on a whole set.

    The set is read as one stream in blocks of `sequence_length`, as in training: a token sees what stands before it in
    its block, be it of its own document or of the one before. The model's mode (train or eval) is restored.

    Args:
        model: on the device that it is to be measured on.
        tokens: the set.
        sequence_length: tokens of a block.
        context_token: what the first token of the set is predicted from.
        batch_sequences: blocks a forward pass.
        dtype: of matrix products; losses are float32, their sums float64.
        document_mask: whether a token sees its own document alone.
    """
    return measure_objective(
        Objective(model, dtype),
        tokens,
        World(rank=0, size=1, device=model.device),
        sequence_length=sequence_length,
        context_token=context_token,
        batch_sequences=batch_sequences,
        document_mask=document_mask,
    )


def measure_all(
    model: PreTrainedModel,
    prepared: Prepared,
    sequence_length: int,
    batch_sequences: int,
    dtype: torch.dtype,
    *,
    document_mask: bool = False,
) -> dict[str, SetLosses]:
    """Measure a model on the development set and on every validation set, whole."""
    return {
        name: measure(
            model,
            prepared.set(name),
            sequence_length=sequence_length,
            context_token=prepared.context_token,
            batch_sequences=batch_sequences,
            dtype=dtype,
            document_mask=document_mask,
        )
        for name in prepared.measured_names
    }


@torch.no_grad()
def measure_objective(
    objective: Objective,
    tokens: TokenSet,
    world: World,
    *,
    sequence_length: int,
    context_token: int,
    batch_sequences: int,
    document_mask: bool = False,
) -> SetLosses:
    """Measure the model of an objective, possibly sharded, on a whole set; every rank does its share of the batches.

    A collective call; what it gives is the same on every rank. The arguments are those of `measure`.
    """
    scores = TokenScores(tokens)
    batches = set_batches(
        tokens,
        sequence_length=sequence_length,
        context_token=context_token,
        batch_sequences=batch_sequences,
        device=world.device,
        document_mask=document_mask,
    )
    with eval_mode(objective.model):
        for turn in iter(lambda: list(itertools.islice(batches, world.size)), []):
            # a rank without a batch of its own in the last turn runs another's: a sharded model needs all ranks
            batch = turn[min(world.rank, len(turn) - 1)]
            found = objective(batch.ids, batch.labels, batch.positions, scored=True)
            if world.rank < len(turn):
                scores.add(batch, found)
    if world.size > 1:
        scores.add_up(world)
    return scores.by_document()


def logits_of(model: PreTrainedModel, ids: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """A pass without key-value cache: token ids (B, T) to scores (B, T, V), matrix products in `dtype`."""
    # A mixture's config may ask for its routers' balancing loss: nothing here reads it, and a scan skips the routers.
    routers = getattr(model.config.get_text_config(), "output_router_logits", False)
    unasked = {"output_router_logits": False} if routers else {}
    with autocast(dtype, model.device):
        logits = model(input_ids=ids, use_cache=False, **unasked).logits
    assert isinstance(logits, torch.Tensor)
    return logits
