"""What training minimises and validation measures: next-token cross-entropy, in nats; and the distillation term."""

from __future__ import annotations

import torch
from torch.nn import functional as F

IGNORED = -100
"""The label of a position that does not count: padding of the last, unfilled micro-batch."""

_PIECE_SCORES = 1 << 19
"""Scores that a CPU treats at a time: 2 MiB in float32, which stay in its cache from one operation to the next."""


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


@torch.no_grad()
def summed_loss(logits: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Cross-entropy summed over the positions, in nats, and its gradient: softmax less one at the label.

    On a CPU rows are taken in pieces that fit its cache: five times as fast as `token_losses` and its backward, which
    write the scores in float32 to memory and read them again several times (benchmarks/LOG.md).

    Args:
        logits: (B, T, V).
        labels: (B, T), int64; `IGNORED` where none counts. Scores that are not finite show even there.

    Returns:
        A float32 scalar; and the gradient with respect to `logits`, of their shape and dtype.
    """
    scores, wanted = logits.reshape(-1, logits.shape[-1]), labels.reshape(-1, 1)
    gradient = torch.empty_like(scores)
    counts = (wanted != IGNORED).float()
    wanted = wanted.clamp(min=0)
    total = torch.zeros((), device=logits.device)
    rows = max(1, _PIECE_SCORES // scores.shape[-1]) if logits.device.type == "cpu" else len(scores)
    for first in range(0, len(scores), rows):
        piece = slice(first, first + rows)
        shares = torch.log_softmax(scores[piece], -1, dtype=torch.float32)
        total -= (shares.gather(-1, wanted[piece]) * counts[piece]).sum()
        shares.exp_().scatter_add_(-1, wanted[piece], torch.full_like(shares[:, :1], -1.0))
        # by a product: a fill takes five times as long
        gradient[piece] = shares.mul_(counts[piece])
    return total, gradient.reshape(logits.shape)
