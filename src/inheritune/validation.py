"""A model's loss on a fixed set, document by document, every token of the set once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from transformers import PreTrainedModel

from inheritune.loss import IGNORED, token_losses
from inheritune.parallel import autocast
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
    device = model.device
    inputs, labels = whole_set(tokens, sequence_length, context_token, IGNORED)  # each (blocks, sequence_length)
    nats = np.zeros(inputs.size, np.float64)
    correct = np.zeros(inputs.size, np.float64)
    was_training = model.training
    model.eval()
    for start in range(0, len(inputs), batch_sequences):
        ids = torch.from_numpy(inputs[start : start + batch_sequences]).to(device)  # (B, T)
        targets = torch.from_numpy(labels[start : start + batch_sequences]).to(device)  # (B, T)
        with autocast(dtype, device):
            logits = model(input_ids=ids, use_cache=False).logits  # (B, T, V)
        place = slice(start * sequence_length, start * sequence_length + ids.numel())
        nats[place] = token_losses(logits, targets).flatten().double().cpu().numpy()
        correct[place] = (logits.argmax(-1) == targets).flatten().double().cpu().numpy()
    model.train(was_training)
    starts = np.concatenate([[0], tokens.document_ends[:-1]]).astype(np.int64)
    sums = [np.add.reduceat(values[: tokens.tokens], starts) for values in (nats, correct)]
    return SetLosses(
        sums[0],
        sums[1],
        np.diff(tokens.document_ends, prepend=0).astype(np.float64),
        tokens.document_bytes.astype(np.float64),
    )
