"""Tensors as bytes, and what a difference between two is called."""

from __future__ import annotations

import hashlib

import pytest
import torch

from families import seeded
from inheritune.errors import Failed
from inheritune.reference import parameters
from inheritune.surgery.bits import same_bits, sha256, sha256_of_all, ties
from inheritune.surgery.proof import difference
from tiny import content, family


def test_bits_are_compared_and_not_values() -> None:
    one = torch.tensor([0.0, float("nan"), 1.0])
    assert same_bits(one, one.clone())
    assert not same_bits(torch.tensor([0.0]), torch.tensor([-0.0]))
    assert not same_bits(one, one.double())
    assert not same_bits(one, one[:, None])
    assert not same_bits(one.int(), one.int().view(torch.float32))
    turned = torch.arange(6).view(2, 3).t()
    assert same_bits(turned, turned.contiguous())
    assert same_bits(torch.tensor(3), torch.tensor(3))
    assert same_bits(torch.empty(0), torch.empty(0))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float8_e4m3fn, torch.int64, torch.bool])
def test_a_checksum_is_that_of_the_bytes_row_by_row(dtype: torch.dtype) -> None:
    tensor = torch.tensor([[0, 1, 0], [1, 0, 0]]).to(dtype).t()
    assert sha256(tensor) == hashlib.sha256(content(tensor)).hexdigest()
    assert sha256(tensor) != sha256(tensor.t())


def test_the_checksum_of_all_depends_on_names_and_values_not_on_order() -> None:
    one, two = torch.zeros(2), torch.ones(2)
    assert sha256_of_all({"a": one, "b": two}) == sha256_of_all({"b": two, "a": one})
    assert sha256_of_all({"a": one, "b": two}) != sha256_of_all({"a": two, "b": one})


def test_ties_are_one_tensor_under_two_names() -> None:
    tied, untied = seeded(family("llama tied")), seeded(family("llama"))
    assert ties(tied) == {"lm_head.weight": "model.embed_tokens.weight"}
    assert ties(tied, among={"lm_head.weight", "model.norm.weight"}) == {}
    assert ties(untied) == {}
    assert parameters(untied) - parameters(tied) == 64 * 32


def test_a_difference_says_what_and_how_large() -> None:
    assert difference("x", torch.ones(2), torch.ones(2)) == {"equal": True, "max_abs_difference": 0.0}
    with pytest.raises(Failed, match=r"proof: x differs from the reference's by up to 0\.25; it must be equal"):
        difference("x", torch.ones(2), torch.tensor([1.0, 0.75]))
    with pytest.raises(Failed, match=r"proof: x: \(3,\) torch\.float32, not \(2,\) torch\.float32"):
        difference("x", torch.ones(2), torch.ones(3))
    with pytest.raises(Failed, match=r"torch\.bfloat16, not \(2,\) torch\.float32"):
        difference("x", torch.ones(2), torch.ones(2).bfloat16())
    with pytest.raises(Failed, match="by up to 0;"):
        difference("x", torch.tensor([0.0]), torch.tensor([-0.0]))
