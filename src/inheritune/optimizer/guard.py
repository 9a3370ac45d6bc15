"""The gradients' norm, and the guard that skips a step gone wrong: all on the device, nothing waits for the host."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn
from torch.distributed.tensor import DTensor

_WINDOW = 128
"""Gradient norms whose median is the running one."""
_ENOUGH = 16
"""Norms below which there is no median to speak of: what is finite then counts as normal."""


def gradient_norm(parameters: list[nn.Parameter]) -> torch.Tensor:
    """The gradients' global norm, a scalar; over all ranks, where they are sharded."""
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    if gradients and all(type(one) is torch.Tensor and one.device.type == "cpu" for one in gradients):
        # twice as fast there as torch's norm of a tensor, and nearer to the exact value (benchmarks/LOG.md)
        flat = [one.reshape(-1) for one in gradients]
        return torch.stack([torch.dot(one, one) for one in flat]).sum().sqrt()
    norm = torch.nn.utils.get_total_norm(gradients)
    return norm.full_tensor() if isinstance(norm, DTensor) else norm


class Guard:
    """Decides, on the device, whether a step is taken: not where its gradient norm is not finite, or a spike.

    Args:
        device: where norms are.
        factor: a norm above this many times the median of the last norms is a spike; 0: none is.
    """

    def __init__(self, device: torch.device, factor: float) -> None:
        self._factor = factor or math.inf
        self._norms = torch.full((_WINDOW,), math.nan, device=device)
        self._places = torch.arange(_WINDOW, device=device)
        self._seen = torch.zeros((), dtype=torch.int64, device=device)
        self.in_a_row = torch.zeros((), device=device)
        """Steps skipped one after the other, up to now."""

    def judge(self, norm: torch.Tensor) -> torch.Tensor:
        """1.0 if the step with this gradient norm is to be skipped, else 0.0: what a fused optimiser's `found_inf` is.

        The norms of skipped steps are not remembered: a row of spikes does not become normal.
        """
        median = self._norms.nanmedian()
        spike = (self._seen >= _ENOUGH) & (norm > self._factor * median)
        skipped = ~norm.isfinite() | spike
        # by comparison, since an index that lies on a GPU would be waited for
        here = (self._places == self._seen % _WINDOW) & ~skipped
        self._norms = torch.where(here, norm, self._norms)
        self._seen += (~skipped).long()
        self.in_a_row = torch.where(skipped, self.in_a_row + 1, 0.0)
        return skipped.float()

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps of it; waits for the device."""
        norms = [None if math.isnan(norm) else norm for norm in self._norms.tolist()]
        return {"norms": norms, "seen": int(self._seen), "in_a_row": float(self.in_a_row)}

    def load(self, state: dict[str, Any]) -> None:
        """Go on from `state`."""
        norms = [math.nan if norm is None else norm for norm in state["norms"]]
        self._norms.copy_(torch.tensor(norms))
        self._seen.fill_(state["seen"])
        self.in_a_row.fill_(state["in_a_row"])
