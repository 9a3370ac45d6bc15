"""Documents packed into one sequence that must not see each other: the loss of each is the one it has alone."""

from __future__ import annotations

import pytest
import torch

from families import VOCABULARY, seeded
from inheritune.config import DistillConfig
from inheritune.loss import IGNORED
from inheritune.objective import Objective, keeps_documents_apart
from tiny import family

LENGTHS = ((11, 9, 12), (1, 28, 3))  # tokens; the window of the tiny Mistral is 8


def packed() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Ids, labels and positions of two sequences of three documents each, (2, 32)."""
    generator = torch.Generator().manual_seed(5)
    ids, labels = torch.randint(VOCABULARY, (2, 2, 32), generator=generator)
    labels[0, 13] = IGNORED
    positions = torch.stack([torch.cat([torch.arange(length) for length in row]) for row in LENGTHS])
    return ids, labels, positions


@pytest.mark.parametrize("name", ["llama", "gpt2 tied", "mistral", "mixtral"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_packed_documents_are_as_if_alone(name: str, dtype: torch.dtype) -> None:
    model = seeded(family(name))
    tried = Objective(model, dtype, chunk_scores=VOCABULARY * 7)
    ids, labels, positions = packed()
    relative, absolute = (1e-4, 1e-5) if dtype == torch.float32 else (0.02, 0.05)
    together = tried(ids, labels, positions)
    together.minimised.backward()
    found = {key: parameter.grad for key, parameter in model.named_parameters()}
    with torch.no_grad():
        scores = tried(ids, labels, positions, scored=True)
        blind = tried(ids, labels, scored=True)
    model.zero_grad(set_to_none=True)
    alone, total = torch.zeros(2, 32), torch.zeros(())
    for row, lengths in enumerate(LENGTHS):
        for start, length in zip((0, lengths[0], sum(lengths[:2])), lengths, strict=True):
            place = (slice(row, row + 1), slice(start, start + length))
            losses = tried(ids[place], labels[place])
            losses.minimised.backward()
            total += losses.nats
            with torch.no_grad():
                alone[place] = tried(ids[place], labels[place], scored=True).nats
    torch.testing.assert_close(together.nats, total, rtol=1e-3 if dtype == torch.bfloat16 else 1e-5, atol=0)
    torch.testing.assert_close(scores.nats, alone, rtol=relative, atol=absolute)
    for key, parameter in model.named_parameters():
        expected, gradient = parameter.grad, found[key]
        assert gradient is not None
        assert expected is not None
        share = 1e-4 if dtype == torch.float32 else 0.05
        assert (gradient - expected).abs().max() <= share * expected.abs().max() + 1e-5, key
    # whoever sees the documents before has other scores, from the second document on
    seen = (blind.nats - alone).abs() > 1e-2
    assert not seen[0, : LENGTHS[0][0]].any() or dtype == torch.bfloat16
    assert seen[0, LENGTHS[0][0] :].any()
    assert seen[1, 1:].any()


def test_the_teacher_sees_documents_apart_as_well() -> None:
    model, teacher = seeded(family("llama")), seeded(family("gpt2 tied"))
    tried = Objective(
        model, torch.float32, distill=DistillConfig(weight=1.0), teacher=teacher, chunk_scores=VOCABULARY * 7
    )
    ids, labels, positions = packed()
    with torch.no_grad():
        together = tried(ids, labels, positions).divergence
        alone = sum(
            tried(ids[row : row + 1, start : start + length], labels[row : row + 1, start : start + length]).divergence
            for row, lengths in enumerate(LENGTHS)
            for start, length in zip((0, lengths[0], sum(lengths[:2])), lengths, strict=True)
        )
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=0)


@pytest.mark.parametrize(
    ("name", "apart"),
    [
        ("llama", True),
        ("gpt2 tied", True),
        ("mistral", True),
        ("gemma2 tied", True),
        ("bloom tied", False),  # ALiBi counts from the sequence's start
        ("mpt tied", False),
        ("mamba", False),
        ("falcon_h1", False),  # takes positions, which its recurrence ignores
    ],
)
def test_which_models_keep_documents_apart(name: str, apart: bool) -> None:
    model = seeded(family(name))
    assert keeps_documents_apart(model.train()) is apart
    assert model.training


def test_attention_over_everything_does_not_keep_them_apart() -> None:
    model = seeded(family("gpt2 tied"))
    kept = model.forward
    model.forward = lambda input_ids, position_ids=None, **settings: kept(
        input_ids=input_ids, attention_mask=torch.ones_like(input_ids), position_ids=position_ids, **settings
    )
    assert not keeps_documents_apart(model)
