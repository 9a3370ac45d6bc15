"""Causal attention on a CPU in bfloat16: what torch's own kernel does at a third of the matrix product's speed.

`scaled_dot_product_attention` on a CPU computes scores above the diagonal and masks them, and its products of bfloat16
are slower than `matmul`'s (benchmarks/LOG.md). Here queries come in bands; each is multiplied with the keys that it may
see, by `matmul`, and without copies of keys that several heads share. Scores are rounded to bfloat16 before their
softmax, as eager attention's are; on a real model the loss and its gradient come as close to float32's as with torch's
kernel.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

_BAND = 128
"""Queries of a band: the fewer, the less is computed in vain, and the smaller the products."""
_LONGEST = 512
"""Beyond it the scores, which autograd keeps, take more memory than they save time."""


@contextlib.contextmanager
def banded(device: torch.device) -> Iterator[None]:
    """Have models that call transformers' `sdpa` on a CPU take the banded attention where it computes the same.

    Where it does not (a mask, dropout, a bias, float32, long sequences), and on other devices, nothing changes.
    """
    if device.type != "cpu" or ALL_ATTENTION_FUNCTIONS["sdpa"] is not sdpa_attention_forward:
        yield  # another device, banded already, or a function that somebody else has put there
        return
    ALL_ATTENTION_FUNCTIONS["sdpa"] = _attention
    try:
        yield
    finally:
        del ALL_ATTENTION_FUNCTIONS["sdpa"]


@contextlib.contextmanager
def torchs_own() -> Iterator[None]:
    """Have models take torch's kernel within `banded`, as they would on a GPU."""
    if ALL_ATTENTION_FUNCTIONS["sdpa"] is not _attention:
        yield
        return
    del ALL_ATTENTION_FUNCTIONS["sdpa"]
    try:
        yield
    finally:
        ALL_ATTENTION_FUNCTIONS["sdpa"] = _attention


def _attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    **settings: Any,
) -> tuple[torch.Tensor, None]:
    """transformers' interface: heads (B, H, T, D) in, (B, T, H, D) out."""
    causal = settings.get("is_causal")
    changed = ("position_bias", "softcap")  # by the first scores are; the second sdpa refuses
    if (
        attention_mask is None
        and (getattr(module, "is_causal", True) if causal is None else causal)
        and not settings.get("dropout")
        and all(settings.get(name) is None for name in changed)
        and _computed_in(query) == torch.bfloat16
        and 1 < query.shape[2] == key.shape[2] <= _LONGEST
    ):
        scaling = settings.get("scaling")
        scale = query.shape[-1] ** -0.5 if scaling is None else scaling
        query, key, value = (heads.to(torch.bfloat16) for heads in (query, key, value))
        return banded_attention(query, key, value, scale).transpose(1, 2), None
    return sdpa_attention_forward(module, query, key, value, attention_mask, **settings)


def _computed_in(query: torch.Tensor) -> torch.dtype:
    """The dtype of attention's products: autocast's where it is on, since rotary positions come in float32."""
    return torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else query.dtype


def banded_attention(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float) -> torch.Tensor:
    """Causal attention, a band of queries at a time; softmax in float32.

    Args:
        query: (B, H, T, D).
        key: (B, G, T, D), G dividing H: head h reads the group h // (H / G).
        value: (B, G, T, E).
        scale: of the scores.

    Returns:
        (B, H, T, E).
    """
    batch, heads, length, width = query.shape
    groups = key.shape[1]
    grouped = query.reshape(batch, groups, heads // groups, length, width)
    bands = []
    for first in range(0, length, _BAND):
        end = min(length, first + _BAND)
        rows = heads // groups * (end - first)
        band = grouped[:, :, :, first:end].reshape(batch, groups, rows, width)
        scores = (band @ key[:, :, :end].transpose(-1, -2)).view(batch, groups, heads // groups, end - first, end)
        later = torch.ones((end - first, end), dtype=torch.bool, device=query.device).triu(first + 1)
        shares = torch.softmax((scores.float() * scale).masked_fill(later, -torch.inf), -1).to(value.dtype)
        mixed = shares.view(batch, groups, rows, end) @ value[:, :, :end]
        bands.append(mixed.view(batch, groups, heads // groups, end - first, -1))
    return torch.cat(bands, 3).reshape(batch, heads, length, -1)
