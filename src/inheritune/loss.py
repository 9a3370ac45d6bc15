"""What training minimises and validation measures: next-token cross-entropy, in nats."""

from __future__ import annotations

import torch

IGNORED = -100
"""The label of a position that does not count: padding of the last, unfilled micro-batch."""


def token_losses(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Cross-entropy of every position, in nats, computed in float32 whatever the logits' dtype.

    Args:
        logits: (B, T, V), scores of the next token.
        labels: (B, T), int64, the next tokens; `IGNORED` where none counts.

    Returns:
        (B, T), float32; 0 where the label is `IGNORED`.
    """
    batch, length, vocabulary = logits.shape
    flat = torch.nn.functional.cross_entropy(
        logits.reshape(batch * length, vocabulary).float(), labels.reshape(-1), ignore_index=IGNORED, reduction="none"
    )
    return flat.reshape(batch, length)
