"""Cross-entropy against the plain formula; bits a byte."""

from __future__ import annotations

import math

import pytest
import torch

from inheritune import loss
from inheritune.loss import IGNORED, summed_loss, token_losses


def test_token_losses_are_minus_log_probabilities() -> None:
    logits = torch.randn(2, 5, 11, generator=torch.Generator().manual_seed(0))
    labels = torch.randint(0, 11, (2, 5), generator=torch.Generator().manual_seed(1))
    labels[1, 3] = IGNORED
    found = token_losses(logits, labels)
    for row in range(2):
        for column in range(5):
            label = int(labels[row, column])
            if label == IGNORED:
                assert found[row, column] == 0
            else:
                probabilities = torch.exp(logits[row, column].double()) / torch.exp(logits[row, column].double()).sum()
                assert float(found[row, column]) == pytest.approx(-math.log(float(probabilities[label])), abs=1e-5)


def test_losses_are_float32_whatever_the_logits_are() -> None:
    logits = torch.randn(1, 3, 7).bfloat16()
    assert token_losses(logits, torch.zeros(1, 3, dtype=torch.int64)).dtype == torch.float32


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("piece", [1, 11 * 4, 1 << 19], ids=["a row", "four rows", "whole"])
def test_the_sum_and_its_gradient_are_those_of_the_token_losses(
    dtype: torch.dtype, piece: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loss, "_PIECE_SCORES", piece)
    generator = torch.Generator().manual_seed(0)
    logits = (5 * torch.randn(2, 7, 11, generator=generator)).to(dtype).requires_grad_()
    labels = torch.randint(0, 11, (2, 7), generator=generator)
    labels[0, 3] = labels[1, 4:] = IGNORED
    total, gradient = summed_loss(logits, labels)
    plain = token_losses(logits, labels).sum()
    (expected,) = torch.autograd.grad(plain, logits)
    assert total.dtype == torch.float32
    assert (gradient.dtype, gradient.shape) == (dtype, logits.shape)
    torch.testing.assert_close(total, plain, rtol=1e-5, atol=0)
    torch.testing.assert_close(gradient, expected, rtol=1e-5 if dtype == torch.float32 else 0.01, atol=1e-6)
    assert not gradient[labels == IGNORED].any()
    assert not total.requires_grad


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_scores_that_are_not_finite_are_seen(bad: float) -> None:
    logits = torch.zeros(1, 2, 3)
    logits[0, 1, 2] = bad
    total, gradient = summed_loss(logits, torch.tensor([[0, 1]]))
    assert not total.isfinite()
    assert not gradient[0, 1].isfinite().all()
    assert gradient[0, 0].isfinite().all()


def test_where_no_label_counts_there_is_nothing() -> None:
    total, gradient = summed_loss(torch.randn(1, 4, 5), torch.full((1, 4), IGNORED))
    assert total == 0
    assert not gradient.any()
