"""Tensors as bytes: equality to the bit, hashes, and which tensors of a model are one and the same."""

from __future__ import annotations

import hashlib
from collections.abc import Container, Mapping

import torch
from torch import nn


def same_bits(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Equality of shape, dtype and every bit: 0.0 and -0.0 differ, a NaN equals itself."""
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    return torch.equal(raw(one), raw(other))


def sha256(tensor: torch.Tensor) -> str:
    """Of a tensor's bytes, row by row, in the machine's byte order."""
    return hashlib.sha256(raw(tensor).cpu().numpy().data).hexdigest()


def sha256_of_all(tensors: Mapping[str, torch.Tensor]) -> str:
    """Over all tensors in order of name: each one's name and `sha256`."""
    lines = (f"{name} {sha256(tensors[name])}\n" for name in sorted(tensors))
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def ties(model: nn.Module, among: Container[str] | None = None) -> dict[str, str]:
    """Tensors that are an earlier one of the state dict, by its name; of those in `among`, if given."""
    first: dict[int, str] = {}
    tied = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        if among is None or name in among:
            earlier = first.setdefault(id(tensor), name)
            if earlier != name:
                tied[name] = earlier
    return tied


def raw(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor's bytes, row by row: (bytes,), uint8; the same memory if it is contiguous."""
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8)
