"""The arithmetic of cost against torch's own count of operations."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM

from inheritune.planning import matrix_parameters, training_flops_per_token
from inheritune.reference import parameters


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
