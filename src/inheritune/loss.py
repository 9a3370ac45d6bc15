"""What training minimises and validation measures: next-token cross-entropy, in nats; and the distillation term."""

from __future__ import annotations

import torch
from torch.nn import functional as F

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
    flat = F.cross_entropy(
        logits.reshape(batch * length, vocabulary).float(), labels.reshape(-1), ignore_index=IGNORED, reduction="none"
    )
    return flat.reshape(batch, length)


def distillation_losses(
    logits: torch.Tensor, teacher_logits: torch.Tensor, labels: torch.Tensor, temperature: float
) -> torch.Tensor:
    """Forward KL divergence of every position, KL(teacher || student), in nats, times the temperature's square.

    Both models' scores are divided by the temperature first; the factor keeps the term's gradient of the same size
    whatever the temperature (Hinton, Vinyals and Dean 2015, arXiv 1503.02531, section 2). Computed in float32.

    Args:
        logits: (B, T, V), the student's scores.
        teacher_logits: (B, T, V), the teacher's.
        labels: (B, T), int64; `IGNORED` where a position does not count.
        temperature: above 0.

    Returns:
        (B, T), float32; 0 where the label is `IGNORED`.
    """
    student = F.log_softmax(logits.float() / temperature, -1)
    teacher = F.log_softmax(teacher_logits.float() / temperature, -1)
    divergence = F.kl_div(student, teacher, reduction="none", log_target=True).sum(-1)
    return torch.where(labels == IGNORED, 0.0, divergence * temperature**2)
