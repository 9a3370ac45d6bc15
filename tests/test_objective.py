"""The loss taken chunk by chunk against the plain one: values, gradients, the size of what exists at a time.

`INHERITUNE_ALL_FAMILIES=1` compares all of surgery's families, else those whose tails differ.
"""

from __future__ import annotations

import os
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from transformers import PreTrainedModel

from families import FAMILIES, VOCABULARY, Family, seeded
from family_table import GROUPED, WIDE_HEADS, WINDOW, rows
from inheritune.attention import banded
from inheritune.config import DistillConfig
from inheritune.loss import IGNORED, distillation_losses, token_losses
from inheritune.objective import Losses, Objective, Scores
from tiny import family

# transformers 5.17 scripts parts of GPT BigCode
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")

CHUNK = 5  # tokens; of 24 in all, so that chunks are of 4 and of 5
UNSPLIT = ("hrm_text", "longcat_flash", "llama4_text", "modernbert-decoder")

NAMES = [
    "gpt2",
    "gpt2 tied",
    "opt tied",
    "opt 350m",
    "opt 350m tied",
    "bloom tied",
    "falcon 7b tied",
    "mpt tied",
    "llama",
    "llama tied",
    "gemma2 tied",
    "cohere tied",
    "phi",  # its head has a bias
    "gptj",  # likewise
    "mixtral",
    "biogpt tied",
    "gemma3n_text tied",
    "mamba",
    "rwkv",
    "recurrent_gemma tied",
    "qwen3_next",
    "xlstm",
    "hrm_text",
    "longcat_flash",
    "llama4_text",
    "modernbert-decoder tied",
]
# Scores scaled and capped so much that a tail without it would be seen.
STRONG = [
    *rows("gemma2 capped", WIDE_HEADS | WINDOW, final_logit_softcapping=1.0),
    *rows("granite scaled", GROUPED, logits_scaling=8.0),
    *rows("cohere scaled", GROUPED, logit_scale=0.5),
]
ALL = os.environ.get("INHERITUNE_ALL_FAMILIES") == "1"
TRIED = [*(one for one in FAMILIES if ALL or one.name in NAMES), *STRONG]

Gradients = dict[str, torch.Tensor | None]


def batch(seed: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and labels, (2, 12); some labels do not count, and among these a whole chunk."""
    generator = torch.Generator().manual_seed(seed)
    ids, labels = torch.randint(VOCABULARY, (2, 2, 12), generator=generator)
    labels[0, 2] = IGNORED
    labels[1, 3:] = IGNORED
    return ids, labels


def objective(model: PreTrainedModel, dtype: torch.dtype = torch.float32, **settings: Any) -> Objective:
    return Objective(model, dtype, chunk_scores=VOCABULARY * CHUNK, **settings)


def gradients(model: nn.Module, loss: torch.Tensor) -> Gradients:
    """The gradient of every parameter."""
    model.zero_grad()
    loss.backward()
    return {name: parameter.grad for name, parameter in model.named_parameters()}


def check_gradients(found: Gradients, expected: Gradients, tolerance: float = 2e-5) -> None:
    """A parameter's gradient may differ by a share of its largest entry; none and zero are the same."""
    assert found.keys() == expected.keys()
    assert any(gradient is not None and gradient.any() for gradient in expected.values())
    for name, gradient in expected.items():
        zero = torch.zeros(())
        ours, theirs = zero if found[name] is None else found[name], zero if gradient is None else gradient
        assert ours is not None
        difference = (ours.float() - theirs.float()).abs().max()
        # some gradients are sums that cancel, such as those of attention's key biases
        assert difference <= tolerance * theirs.abs().max() + 1e-6, f"{name}: {difference} of {theirs.abs().max()}"


def test_the_families_are_found() -> None:
    assert {one.name for one in TRIED} >= set(NAMES)
    assert len(STRONG) == 6


@pytest.mark.parametrize("one", TRIED, ids=lambda one: one.name)
def test_chunks_give_the_plain_loss_and_its_gradients(one: Family) -> None:
    model = seeded(one).train()
    (ids, labels), tried = batch(), objective(model)
    torch.manual_seed(9)  # of dropout
    losses = tried(ids, labels)
    # the factor is what accumulation scales a micro-batch's sum by
    found = gradients(model, losses.minimised * 0.25)
    torch.manual_seed(9)
    routers = {"output_router_logits": False} if hasattr(model.config, "output_router_logits") else {}
    plain = token_losses(model(input_ids=ids, use_cache=False, **routers).logits, labels).sum()
    check_gradients(found, gradients(model, plain * 0.25))
    torch.testing.assert_close(losses.minimised, plain, rtol=1e-5, atol=0)
    assert losses.nats == losses.minimised
    assert losses.divergence == 0
    assert not losses.nats.requires_grad


@pytest.mark.parametrize("one", TRIED, ids=lambda one: one.name)
def test_scores_exist_for_a_chunk_at_a_time(one: Family) -> None:
    model, seen = seeded(one), []
    head = model.get_output_embeddings()
    assert isinstance(head, nn.Module)
    head.register_forward_hook(lambda _head, _given, scores: seen.append(scores[..., 0].numel()))
    ids, labels = batch()
    chunks = [24] if one.name.split()[0] in UNSPLIT else [4, 5, 5, 5, 5]
    tried = objective(model)
    tried(ids, labels).minimised.backward()
    assert seen == chunks
    seen.clear()
    with torch.no_grad():
        found = tried(ids, labels, scored=True)
        assert seen == chunks
        logits = model(input_ids=ids, use_cache=False).logits
    assert isinstance(found, Scores)
    torch.testing.assert_close(found.nats, token_losses(logits, labels), rtol=1e-5, atol=1e-5)
    best = logits.topk(2).values
    clear = best[..., 0] - best[..., 1] > 1e-4  # not where rounding decides
    assert clear.sum() > 12
    assert torch.equal(found.correct[clear], (logits.argmax(-1) == labels)[clear])


def test_the_most_likely_token_counts_as_correct() -> None:
    model = seeded(family("llama"))
    ids, _ = batch()
    with torch.no_grad():
        labels = model(input_ids=ids, use_cache=False).logits.argmax(-1)
        labels[1, 4] = (labels[1, 4] + 1) % VOCABULARY
        correct = objective(model)(ids, labels, scored=True).correct
    assert correct.dtype == torch.bool
    assert (~correct).nonzero().tolist() == [[1, 4]]


def test_the_model_is_whole_again_and_needs_no_gradient() -> None:
    model = seeded(family("gpt2 tied"))
    base, (ids, labels) = model.transformer, batch()
    names = list(model.state_dict())
    tried = objective(model)
    head = model.get_output_embeddings()
    with torch.no_grad():
        alone = tried(ids, labels)
    assert not alone.minimised.requires_grad
    torch.testing.assert_close(alone, Losses(*(value.detach() for value in tried(ids, labels))))
    hook = head.register_forward_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        tried(ids, labels)
    hook.remove()
    assert model.transformer is base
    assert list(model.state_dict()) == names


def test_micro_batches_add_up_and_frozen_parameters_get_nothing() -> None:
    model = seeded(family("llama tied"))
    model.model.norm.weight.requires_grad_(False)
    tried, (ids, labels) = objective(model), batch()
    whole = gradients(model, tried(ids, labels).minimised)
    model.zero_grad()
    for row in range(2):
        tried(ids[row : row + 1], labels[row : row + 1]).minimised.backward()
    check_gradients({name: parameter.grad for name, parameter in model.named_parameters()}, whole)
    assert model.model.norm.weight.grad is None
    model.requires_grad_(False)
    model.lm_head.weight.requires_grad_(True)  # and with it the embedding
    check_gradients(
        {"one": gradients(model, tried(ids, labels).minimised)["model.embed_tokens.weight"]},
        {"one": whole["model.embed_tokens.weight"]},
    )


def test_a_frozen_head_is_only_computed_with() -> None:
    model, (ids, labels) = seeded(family("phi")), batch()
    whole = gradients(model, objective(model)(ids, labels).minimised)
    model.lm_head.weight.requires_grad_(False)
    found = gradients(model, objective(model)(ids, labels).minimised)
    assert found["lm_head.weight"] is None
    check_gradients(found, whole | {"lm_head.weight": None})


def test_routers_are_not_asked_for_what_nobody_reads() -> None:
    model, asked = seeded(family("mixtral")), list[bool]()
    model.config.output_router_logits = True
    for part in (model, model.model):
        part.register_forward_pre_hook(
            lambda _part, _arguments, given: asked.append(given["output_router_logits"]), with_kwargs=True
        )
    objective(model)(*batch())
    assert asked == [False] * 6


@pytest.mark.parametrize("name", ["llama", "gpt2 tied", "gemma2 tied", "mixtral", "llama4_text"])
@pytest.mark.parametrize("distilled", [False, True], ids=["alone", "distilled"])
def test_in_bfloat16_chunks_are_close_to_plain_autocast(name: str, distilled: bool) -> None:
    model, teacher = seeded(family(name)), seeded(family("bloom tied")) if distilled else None
    distill = DistillConfig(temperature=2.0, weight=0.5) if distilled else None
    ids, labels = batch()
    losses = objective(model, torch.bfloat16, distill=distill, teacher=teacher)(ids, labels)
    found = gradients(model, losses.minimised)
    # with the objective's own attention, whose rounding tests/test_attention.py looks at
    with torch.autocast("cpu", torch.bfloat16), banded(torch.device("cpu")):
        logits = model(input_ids=ids, use_cache=False).logits
        assert logits.dtype == torch.bfloat16
        plain = token_losses(logits, labels).sum()
        if teacher is not None:
            with torch.no_grad():
                theirs = teacher(input_ids=ids, use_cache=False).logits
            plain = 0.5 * plain + 0.5 * distillation_losses(logits, theirs, labels, 2.0).sum()
    # the head's gradient is a sum over chunks, each rounded to bfloat16 (8 bits)
    check_gradients(found, gradients(model, plain), tolerance=2**-6)
    torch.testing.assert_close(losses.minimised, plain, rtol=1e-3, atol=0)
    exact = objective(model, torch.float32, distill=distill, teacher=teacher)(ids, labels).minimised
    assert losses.minimised != exact


@pytest.mark.parametrize(("temperature", "weight"), [(1.0, 0.6), (2.5, 0.3), (2.0, 1.0)])
@pytest.mark.parametrize(
    ("student", "teacher"),
    [("llama", "gpt2 tied"), ("opt 350m tied", "gemma2 tied"), ("llama", "llama4_text"), ("llama4_text", "llama")],
)
def test_distillation_against_the_plain_formula(student: str, teacher: str, temperature: float, weight: float) -> None:
    model, reference = seeded(family(student)), seeded(family(teacher))
    ids, labels = batch()
    tried = objective(model, distill=DistillConfig(temperature=temperature, weight=weight), teacher=reference)
    losses = tried(ids, labels)
    found = gradients(model, losses.minimised)
    counted = labels != IGNORED
    ours = model(input_ids=ids, use_cache=False).logits[counted]
    theirs = reference(input_ids=ids, use_cache=False).logits[counted].detach()
    nats = F.cross_entropy(ours, labels[counted], reduction="sum")
    probabilities = (theirs / temperature).softmax(-1)
    ratio = (theirs / temperature).log_softmax(-1) - (ours / temperature).log_softmax(-1)
    divergence = temperature**2 * (probabilities * ratio).sum()
    minimised = (1 - weight) * nats + weight * divergence
    for value, expected in zip(losses, (minimised, nats, divergence), strict=True):
        torch.testing.assert_close(value, expected, rtol=2e-5, atol=0)
    assert divergence > 1
    check_gradients(found, gradients(model, minimised))
    assert not losses.nats.requires_grad
    assert not losses.divergence.requires_grad
    assert all(parameter.grad is None for parameter in reference.parameters())


def test_the_teacher_is_no_part_of_the_objective() -> None:
    model, teacher = seeded(family("llama")), seeded(family("gpt2"))
    tried = objective(model, distill=DistillConfig(), teacher=teacher)
    assert {id(one) for one in tried.parameters()} == {id(one) for one in model.parameters()}
    assert list(tried.state_dict()) == [f"model.{name}" for name in model.state_dict()]
    assert not set(tried.modules()) & set(teacher.modules())
    tried.train()
    assert not teacher.training


def test_equal_scores_have_no_divergence_and_ignored_labels_none_either() -> None:
    generator = torch.Generator().manual_seed(0)
    ours, theirs = torch.randn(2, 2, 5, 11, generator=generator)
    labels = torch.zeros(2, 5, dtype=torch.int64)
    # scores are as good as any that differ by a constant
    same = distillation_losses(ours, ours + 3, labels, 0.7)
    torch.testing.assert_close(same, torch.zeros(2, 5), rtol=0, atol=1e-5)
    labels[1, 2:4] = IGNORED
    found = distillation_losses(ours, theirs, labels, 2.0)
    assert found.shape == (2, 5)
    assert (found == 0).nonzero().tolist() == [[1, 2], [1, 3]]
    assert (found[labels != IGNORED] > 0).all()
    assert distillation_losses(ours.bfloat16(), theirs.bfloat16(), labels, 2.0).dtype == torch.float32
    one = theirs[0, 1].double().div(2).softmax(-1)
    by_hand = 4 * (one * (one.log() - ours[0, 1].double().div(2).log_softmax(-1))).sum()
    assert float(found[0, 1]) == pytest.approx(float(by_hand), abs=1e-5)
