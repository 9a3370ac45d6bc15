"""Cross-entropy against the plain formula; bits a byte."""

from __future__ import annotations

import math

import pytest
import torch

from inheritune.loss import IGNORED, token_losses


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
