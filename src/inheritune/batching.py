"""A rank's micro-batch on its device: ids, labels, positions, filled up to one size."""

from __future__ import annotations

import torch

from inheritune.loss import IGNORED
from inheritune.tokens import TrainingBlocks


def batch_on_device(
    blocks: TrainingBlocks,
    part: list[int],
    *,
    micro_batch: int,
    sequence_length: int,
    context_token: int | None,
    device: torch.device,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """A micro-batch, (micro_batch, T) each, filled up with rows that do not count.

    Equal shapes keep a compiled model from compiling again, and ranks in step where some have less to do.

    Args:
        blocks: the training's.
        part: which of them; may be fewer than `micro_batch`, or none.
        micro_batch: rows.
        sequence_length: T.
        context_token: of documents that do not see each other, the token that each begins with; None: they do.
        device: where the batch is to be.

    Returns:
        Ids, labels, and positions that begin anew with each document; None where documents see each other.
    """
    missing = micro_batch - len(part)
    rows = part or [0]
    positions = None
    if context_token is not None:
        ids, labels, positions = (torch.from_numpy(x) for x in blocks.rows_apart(rows, context_token))
    else:
        ids, labels = (torch.from_numpy(x) for x in blocks.rows(rows))
    if not part:
        labels = torch.full_like(labels, IGNORED)
        missing -= 1
    if missing:
        ids = torch.nn.functional.pad(ids, (0, 0, 0, missing))
        labels = torch.nn.functional.pad(labels, (0, 0, 0, missing), value=IGNORED)
        if positions is not None:
            positions = torch.cat([positions, torch.arange(sequence_length).expand(missing, -1)])
    return ids.to(device), labels.to(device), positions.to(device) if positions is not None else None
