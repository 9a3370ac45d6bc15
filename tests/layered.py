"""Models whose layers can be told apart, and models whose blocks do a given thing to the hidden state."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import (
    CohereConfig,
    CohereForCausalLM,
    FalconConfig,
    FalconForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    OpenAIGPTConfig,
    OpenAIGPTLMHeadModel,
    OPTConfig,
    OPTForCausalLM,
    PreTrainedModel,
)

from conftest import VOCABULARY
from inheritune.layerwise import measure_turning, scan_prefixes
from inheritune.tokens import Prepared, TokenSet
from inheritune.validation import SetLosses

LAYERS = 3
SHAPE: Any = {"vocab_size": VOCABULARY, "hidden_size": 32, "num_attention_heads": 4, "max_position_embeddings": 64}
GATED: Any = {**SHAPE, "intermediate_size": 48, "num_key_value_heads": 2, "pad_token_id": None}


def llama(layers: int) -> PreTrainedModel:
    return LlamaForCausalLM(LlamaConfig(**GATED, num_hidden_layers=layers))


def gpt2(layers: int) -> PreTrainedModel:
    return GPT2LMHeadModel(GPT2Config(vocab_size=VOCABULARY, n_embd=32, n_head=4, n_positions=64, n_layer=layers))


def gemma2(layers: int) -> PreTrainedModel:
    softcap: Any = {"head_dim": 8, "sliding_window": 8, "final_logit_softcapping": 0.05}
    return Gemma2ForCausalLM(Gemma2Config(**GATED, **softcap, num_hidden_layers=layers))


def opt(layers: int) -> PreTrainedModel:
    projected: Any = {"ffn_dim": 48, "word_embed_proj_dim": 16}
    return OPTForCausalLM(OPTConfig(**SHAPE, **projected, num_hidden_layers=layers))


def cohere(layers: int) -> PreTrainedModel:
    return CohereForCausalLM(CohereConfig(**GATED, logit_scale=0.25, num_hidden_layers=layers))


def mixtral(layers: int) -> PreTrainedModel:
    # with the routers' loss asked for, as some published configs do
    experts: Any = {"num_local_experts": 4, "output_router_logits": True}
    return MixtralForCausalLM(MixtralConfig(**GATED, **experts, num_hidden_layers=layers))


def falcon(layers: int) -> PreTrainedModel:
    """Its blocks give tuples."""
    return FalconForCausalLM(FalconConfig(**SHAPE, ffn_hidden_size=48, num_hidden_layers=layers))


def openai_gpt(layers: int) -> PreTrainedModel:
    """Its blocks give lists; it has no final norm."""
    shape: Any = {"n_embd": 32, "n_head": 4, "n_positions": 64, "n_layer": layers}
    return OpenAIGPTLMHeadModel(OpenAIGPTConfig(vocab_size=VOCABULARY, **shape))


FAMILIES = [llama, gpt2, gemma2, opt, cohere, mixtral, falcon, openai_gpt]


def held_out(make_prepared: Callable[..., Prepared]) -> TokenSet:
    """71 tokens in 5 documents: the last block of 16 is not full."""
    random = np.random.default_rng(1)
    documents = [[*random.integers(0, 300, length).tolist(), VOCABULARY - 1] for length in (5, 1, 40, 17, 3)]
    return make_prepared({"train": documents, "held-out": documents}).set("held-out")


def seeded(family: Callable[[int], PreTrainedModel], layers: int = LAYERS) -> Any:
    """A model whose weights are large enough that its layers, and what stands after them, show in its losses."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = family(layers).eval()
        for parameter in model.parameters():
            nn.init.normal_(parameter, std=0.2)
    return model


SETTINGS: Any = {
    "sequence_length": 16,
    "context_token": VOCABULARY - 1,
    "batch_sequences": 2,
    "dtype": torch.float32,
}


def prefix_losses(model: PreTrainedModel, tokens: TokenSet, **settings: Any) -> list[SetLosses]:
    return scan_prefixes(model, tokens, **settings).prefixes


def block_influence(model: PreTrainedModel, batches: Any, *, dtype: torch.dtype) -> tuple[float, ...]:
    return measure_turning(model, batches, dtype=dtype).influence


def assert_same(found: SetLosses, expected: SetLosses) -> None:
    for name in ("nats", "correct", "tokens", "bytes"):
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))


def state(model: PreTrainedModel) -> list[tuple[Any, ...]]:
    """What a scan changes for a while: modes, blocks, forwards, hooks."""
    return [
        (
            *(name, module.training, id(module), vars(module).get("forward"), *module._modules),
            *(*module._forward_hooks, *module._forward_pre_hooks),
        )
        for name, module in model.named_modules()
    ]


def mixed_modes(model: PreTrainedModel) -> PreTrainedModel:
    """A model in train mode with a block in eval mode and one with a forward of its own."""
    model.train()
    model.model.layers[1].eval()
    model.model.layers[0].forward = model.model.layers[0].forward
    return model


class Steered(nn.Module):
    """A block that does a given thing to the hidden state."""

    def __init__(self, change: Callable[[torch.Tensor], Any]) -> None:
        super().__init__()
        self.change = change
        self.inner = nn.Identity()  # a list of blocks is told by its entries being made of modules

    def forward(self, hidden_states: torch.Tensor, *_: Any, **__: Any) -> Any:
        return self.change(hidden_states)


def quarter_turn(x: torch.Tensor) -> torch.Tensor:
    """Every pair of neighbours (a, b) as (-b, a): orthogonal to what it was."""
    return torch.stack([-x[..., 1::2], x[..., ::2]], -1).flatten(-2)


def steered(*changes: Callable[[torch.Tensor], Any]) -> Any:
    """A LLaMA with blocks that do given things."""
    model = seeded(llama, len(changes))
    model.model.layers = nn.ModuleList([Steered(change) for change in changes])
    return model
