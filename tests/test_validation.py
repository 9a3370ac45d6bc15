"""Losses by document against the plain computation."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from inheritune.tokens import Prepared
from inheritune.validation import SetLosses, measure


@pytest.fixture
def data(make_prepared: Callable[..., Prepared]) -> Prepared:
    random = np.random.default_rng(1)
    documents = [[*random.integers(0, 300, length).tolist(), 319] for length in (5, 1, 40, 17, 3)]
    return make_prepared({"train": documents, "held-out": documents})


@pytest.fixture
def losses(data: Prepared, llama_directory: str) -> Callable[..., SetLosses]:
    model = AutoModelForCausalLM.from_pretrained(llama_directory)

    def run(batch_sequences: int, dtype: torch.dtype = torch.float32) -> SetLosses:
        return measure(
            model,
            data.set("held-out"),
            sequence_length=16,
            context_token=data.context_token,
            batch_sequences=batch_sequences,
            dtype=dtype,
        )

    return run


def test_sums_by_document_are_those_of_a_plain_loop(
    data: Prepared, losses: Callable[..., SetLosses], llama_directory: str
) -> None:
    found = losses(2)
    model = AutoModelForCausalLM.from_pretrained(llama_directory)
    stream = [319, *data.set("held-out").read(0, 71).tolist()]
    nats, correct = [], []
    for start in range(0, len(stream) - 1, 16):
        piece = torch.tensor([stream[start : start + 17]])
        with torch.no_grad():
            scores = torch.log_softmax(model(piece[:, :-1]).logits[0].double(), -1)
        labels = piece[0, 1:]
        nats += [-float(scores[i, label]) for i, label in enumerate(labels)]
        correct += [int(scores[i].argmax()) == int(label) for i, label in enumerate(labels)]
    ends = [6, 8, 49, 67, 71]
    assert found.tokens.tolist() == [6, 2, 41, 18, 4]
    assert found.bytes.tolist() == [18, 6, 123, 54, 12]
    for document, (start, end) in enumerate(itertools.pairwise([0, *ends])):
        assert found.nats[document] == pytest.approx(sum(nats[start:end]), rel=1e-5)
        assert found.correct[document] == sum(correct[start:end])
    assert found.loss == pytest.approx(sum(nats) / 71, rel=1e-5)


def test_the_batch_size_does_not_matter(losses: Callable[..., SetLosses]) -> None:
    np.testing.assert_allclose(losses(1).nats, losses(5).nats, rtol=1e-5)


def test_bfloat16_is_close(losses: Callable[..., SetLosses]) -> None:
    assert losses(4, torch.bfloat16).loss == pytest.approx(losses(4).loss, abs=0.02)
