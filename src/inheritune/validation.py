"""A model's loss on a fixed set, document by document, every token of the set once."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from transformers import PreTrainedModel

from inheritune.loss import IGNORED, token_losses
from inheritune.parallel import autocast
from inheritune.reference import eval_mode
from inheritune.tokens import TokenSet, whole_set

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


def set_batches(
    tokens: TokenSet, *, sequence_length: int, context_token: int, batch_sequences: int, device: torch.device
) -> Iterator[Batch]:
    """A whole set in order, as one stream in blocks of `sequence_length` tokens, `batch_sequences` blocks a batch."""
    inputs, labels = whole_set(tokens, sequence_length, context_token, IGNORED)  # each (blocks, sequence_length)
    for first in range(0, len(inputs), batch_sequences):
        rows = slice(first, first + batch_sequences)
        yield Batch(torch.from_numpy(inputs[rows]).to(device), torch.from_numpy(labels[rows]).to(device), first)


class TokenScores:
    """One model's scores on a set, gathered batch by batch, then summed by document."""

    def __init__(self, tokens: TokenSet) -> None:
        self._set = tokens
        # float32, as the losses come: a scan holds as many of these as there are layers
        self._nats = np.zeros(tokens.tokens, np.float32)
        self._correct = np.zeros(tokens.tokens, np.bool_)

    def add(self, batch: Batch, logits: torch.Tensor) -> None:
        """Score a batch by its logits, (B, T, V)."""
        start = batch.first * batch.ids.shape[1]
        place = slice(start, start + batch.ids.numel())
        within = len(self._nats[place])  # the last block may reach beyond the set's end
        self._nats[place] = token_losses(logits, batch.labels).flatten()[:within].cpu().numpy()
        self._correct[place] = (logits.argmax(-1) == batch.labels).flatten()[:within].cpu().numpy()

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
    """
    scores = TokenScores(tokens)
    with eval_mode(model):
        for batch in set_batches(
            tokens,
            sequence_length=sequence_length,
            context_token=context_token,
            batch_sequences=batch_sequences,
            device=model.device,
        ):
            scores.add(batch, logits_of(model, batch.ids, dtype))
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
