"""The arithmetic of cost against torch's own count of operations."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from families import FAMILIES, Family, seeded
from inheritune.planning import attention_flops_per_token, matrix_parameters, training_flops_per_token
from inheritune.reference import parameters, weightless


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_flops_are_those_that_torch_counts(family: str, llama_directory: Path, gpt2_directory: Path) -> None:
    directory = {"llama": llama_directory, "gpt2": gpt2_directory}[family]
    # eager attention: torch's counter knows its products, and the whole square of scores is computed, mask or no mask
    model = AutoModelForCausalLM.from_pretrained(directory, attn_implementation="eager")
    batch, length = 2, 64
    with FlopCounterMode(display=False) as counter:
        model(torch.zeros(batch, length, dtype=torch.int64), use_cache=False).logits.sum().backward()
    counted = counter.get_total_flops() / (batch * length)
    config = model.config
    masked_half = 12.0 * config.num_hidden_layers * config.hidden_size * (length - 1) / 2
    assert training_flops_per_token(model, length) + masked_half == pytest.approx(counted, rel=0.01)


def test_a_tied_head_counts_once_as_a_parameter_and_once_as_a_product(
    llama_directory: Path, gpt2_directory: Path
) -> None:
    tied = AutoModelForCausalLM.from_pretrained(gpt2_directory)
    vectors = sum(p.numel() for p in tied.parameters() if p.dim() < 2)
    assert matrix_parameters(tied) == parameters(tied) - vectors - 128 * 32  # without position embeddings
    untied = AutoModelForCausalLM.from_pretrained(llama_directory)
    vectors = sum(p.numel() for p in untied.parameters() if p.dim() < 2)
    assert matrix_parameters(untied) == parameters(untied) - vectors - 320 * 32  # without the look-up


@pytest.mark.parametrize("family", [one for one in FAMILIES if one.tied], ids=lambda one: one.name)
def test_no_family_computes_less_than_is_counted(family: Family) -> None:
    model = seeded(family)
    model.config.get_text_config()._experts_implementation = "eager"  # others' products the counter does not know
    batch, length = 2, 16
    ids = torch.randint(2, 60, (batch, length), generator=torch.Generator().manual_seed(0))
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(ids, use_cache=False).logits.sum().backward()
    counted = counter.get_total_flops() / (batch * length)
    assert training_flops_per_token(model, length) <= 1.01 * counted


def llama_like(kind: str = "llama", **more: object) -> PreTrainedModel:
    """A model of 4 layers, 2 heads of 8 channels, without memory."""
    shape = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 4, "num_attention_heads": 2}
    return weightless(AutoConfig.for_model(kind, **shape, vocab_size=40, num_key_value_heads=2, **more))


def test_a_window_leaves_fewer_pairs() -> None:
    whole = attention_flops_per_token(llama_like(), 64)
    assert whole == 4 * 12 * 16 * 65 / 2
    pairs = (8 * 9 / 2 + 56 * 8) / 64
    assert attention_flops_per_token(llama_like("mistral", sliding_window=8), 64) == 4 * 12 * 16 * pairs
    assert attention_flops_per_token(llama_like("mistral", sliding_window=100), 64) == whole
    kinds = ["sliding_attention", "full_attention"] * 2
    mixed = llama_like("gemma2", head_dim=8, sliding_window=8, layer_types=kinds)
    assert attention_flops_per_token(mixed, 64) == 2 * 12 * 16 * pairs + whole / 2


def test_of_a_mixture_a_token_goes_to_some_experts() -> None:
    sizes = {"num_local_experts": 8, "num_experts_per_tok": 2}
    one, other = llama_like("mixtral", **sizes), llama_like("mixtral", **(sizes | {"num_experts_per_tok": 8}))
    experts = 4 * 8 * 3 * 16 * 24
    assert matrix_parameters(other) - matrix_parameters(one) == pytest.approx(0.75 * experts)


def test_layers_without_attention_have_none() -> None:
    mamba = weightless(AutoConfig.for_model("mamba", hidden_size=16, num_hidden_layers=2, state_size=4, vocab_size=40))
    assert attention_flops_per_token(mamba, 64) == 0
    assert training_flops_per_token(mamba, 64) == 6 * matrix_parameters(mamba) > 0


def test_what_a_model_has_for_images_is_not_counted() -> None:
    text = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    text |= {"num_key_value_heads": 2, "head_dim": 8, "vocab_size": 40}
    eye = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    eye |= {"image_size": 16, "patch_size": 8}
    both = weightless(AutoConfig.for_model("gemma3", text_config=text, vision_config=eye, mm_tokens_per_image=4))
    alone = weightless(AutoConfig.for_model("gemma3_text", **text))
    assert parameters(both) > parameters(alone)
    assert training_flops_per_token(both, 32) == training_flops_per_token(alone, 32)
