"""The loss as transformers' own models take it: every score of a micro-batch at once, and autograd's gradient of them.

What the chunked loss (`inheritune.objective`) is measured against: precision and attention are the same.
"""

from __future__ import annotations

import torch
from torch import nn
from transformers import PreTrainedModel

from inheritune.attention import banded
from inheritune.loss import token_losses
from inheritune.objective import Losses
from inheritune.parallel import autocast


class PlainLoss(nn.Module):
    """A causal language model with its next-token cross-entropy.

    Args:
        model: the model, to be trained.
        dtype: of matrix products.
    """

    def __init__(self, model: PreTrainedModel, dtype: torch.dtype) -> None:
        super().__init__()
        self.model = model
        self._dtype = dtype

    def forward(self, ids: torch.Tensor, labels: torch.Tensor) -> Losses:
        """Sums over the tokens that count; ids and labels are (B, T), int64."""
        with autocast(self._dtype, ids.device), banded(ids.device):
            nats = token_losses(self.model(input_ids=ids, use_cache=False).logits, labels).sum()
        return Losses(nats, nats.detach(), torch.zeros_like(nats))
