"""Activations that are computed again are the same ones, to the bit, and take less memory until then."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, PreTrainedModel

from inheritune.micro_batch import saved_bytes
from inheritune.objective import Objective
from inheritune.parallel import compile_blocks, uncompile_blocks
from inheritune.recomputation import recompute_blocks

CPU = torch.device("cpu")
IDS = torch.randint(320, (2, 24), generator=torch.Generator().manual_seed(1))


def llama(layers: int = 3) -> PreTrainedModel:
    torch.manual_seed(0)
    heads: dict[str, Any] = {"num_attention_heads": 4, "num_key_value_heads": 2}
    sizes: dict[str, Any] = {"vocab_size": 320, "hidden_size": 32, "intermediate_size": 64}
    model = LlamaForCausalLM(LlamaConfig(num_hidden_layers=layers, **sizes, **heads))
    model.train()
    return model


def gpt2(layers: int = 3) -> PreTrainedModel:
    """With dropout, as GPT-2 was trained."""
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(vocab_size=320, n_embd=32, n_layer=layers, n_head=4, n_positions=64))
    model.train()
    return model


def gradients(model: PreTrainedModel, dtype: torch.dtype) -> list[torch.Tensor]:
    torch.manual_seed(7)
    model.zero_grad()
    Objective(model, dtype)(IDS, IDS).minimised.backward()
    found = [parameter.grad for parameter in model.parameters()]
    return [gradient for gradient in found if gradient is not None] + [torch.rand(3)]  # where the numbers go on


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("make", [llama, gpt2])
def test_gradients_have_the_same_bits(make: Callable[[], PreTrainedModel], dtype: torch.dtype) -> None:
    plain, recomputing = make(), make()
    recompute_blocks(recomputing)
    expected = gradients(plain, dtype)
    found = gradients(recomputing, dtype)
    assert len(found) == len(expected) > 10
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(found, expected, strict=True))
    if make is gpt2:  # dropout is drawn, and each time anew
        assert not torch.equal(gradients(plain.eval(), dtype)[0], expected[0])


def kept(model: PreTrainedModel, dtype: torch.dtype) -> int:
    """Bytes that autograd keeps at the end of a forward pass."""
    held = list(model.parameters())

    def run() -> None:
        Objective(model, dtype)(IDS, IDS)

    return saved_bytes(run, held)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_only_one_block_keeps_what_it_computes(dtype: torch.dtype) -> None:
    def of(layers: int, recompute: bool) -> int:
        model = llama(layers)
        if recompute:
            recompute_blocks(model)
        return kept(model, dtype)

    each = of(5, False) - of(4, False)
    assert each > 50_000
    hidden_state = 4 * IDS.numel() * 32
    assert of(5, True) - of(4, True) == hidden_state < each / 10


def test_without_gradients_nothing_is_kept_back_for_them() -> None:
    model = llama().eval()
    expected = model(IDS).logits
    recompute_blocks(model)
    with pytest.MonkeyPatch.context() as patch, torch.no_grad():
        patch.setattr("inheritune.recomputation.checkpoint", lambda *_, **__: pytest.fail("recomputed"))
        assert torch.equal(model(IDS).logits, expected)


def test_autocasts_cache_is_used_again_behind_a_block() -> None:
    model = llama()
    recompute_blocks(model)
    seen: list[bool] = []
    for module in (model.model.layers[0].mlp, model.lm_head):
        module.register_forward_pre_hook(lambda *_: seen.append(torch.is_autocast_cache_enabled()))
    Objective(model, torch.bfloat16)(IDS, IDS).minimised.backward()
    assert seen == [False, True, False]  # the block, the head, the block again


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # dynamo looks into every module, which warns
def test_compiled_blocks_are_recomputed_too() -> None:
    plain, recomputing = llama(2), llama(2)
    lines: list[str] = []
    for model in (plain, recomputing):
        if not compile_blocks(model, "always", CPU, flops=0.0, report=lines.append):
            pytest.skip(lines[0])
    recompute_blocks(recomputing)
    for ours, theirs in zip(gradients(recomputing, torch.float32), gradients(plain, torch.float32), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-7)
    assert kept(recomputing, torch.float32) < kept(plain, torch.float32) / 2
    uncompile_blocks(recomputing)
    assert kept(recomputing, torch.float32) == kept(llama(2), torch.float32)
