"""Tiny models of every decoder-only family of transformers: what surgery is tested on.

Here are the families that surgery promises by name; `more_families.py` and `recurrent_families.py` have the others.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from family_table import (
    EXPERTS,
    FULL,
    GATED_DELTA,
    GROUPED,
    GROUPS,
    LATENT_HEADS,
    LAYERS,
    LINEAR,
    MAMBA2,
    MIXTURE,
    PLAIN,
    ROUTED,
    SHARED_EXPERT,
    VOCABULARY,
    WIDE_HEADS,
    WINDOW,
    Family,
    rows,
)
from more_families import MORE
from recurrent_families import RECURRENT

__all__ = ["FAMILIES", "LAYERS", "VOCABULARY", "Family", "seeded"]

LISTED: list[Family] = [
    *rows("gpt2"),
    *rows("gpt2 layer scale", scale_attn_by_inverse_layer_idx=True, tying=(True,), note="attention / (index + 1)"),
    *rows("gpt_neo", attention_types=[[["global", "local"], 3]], window_size=8),
    *rows("gpt_neox", intermediate_size=48),
    *rows("gpt_neox sequential", intermediate_size=48, use_parallel_residual=False, tying=(False,)),
    *rows("opt", ffn_dim=48, word_embed_proj_dim=32),
    *rows("opt 350m", ffn_dim=48, word_embed_proj_dim=16, do_layer_norm_before=False),
    *rows("mpt", PLAIN | {"max_seq_len": 64}),
    *rows("falcon 7b", ffn_hidden_size=48, multi_query=True, parallel_attn=True),
    *rows("falcon 40b", ffn_hidden_size=48, new_decoder_architecture=True, num_kv_heads=2),
    *rows("falcon rw", ffn_hidden_size=48, alibi=True, bias=True, multi_query=False, parallel_attn=False),
    *rows("bloom"),
    *rows("llama", GROUPED),
    *rows("mistral", GROUPED | WINDOW),
    *rows("mixtral", MIXTURE),
    *rows("mixtral as many experts as layers", MIXTURE | {"num_local_experts": LAYERS}, tying=(False,)),
    *rows("qwen2", GROUPED),
    *rows("qwen2 window", GROUPED | WINDOW, use_sliding_window=True, max_window_layers=4),
    *rows("qwen3", WIDE_HEADS),
    *rows("qwen3 window", WIDE_HEADS | WINDOW, use_sliding_window=True, max_window_layers=4, tying=(False,)),
    *rows("qwen3_moe", WIDE_HEADS | EXPERTS),
    *rows("qwen3_moe sparse", WIDE_HEADS | EXPERTS, mlp_only_layers=[1, 4], decoder_sparse_step=2, tying=(False,)),
    *rows("gemma2", WIDE_HEADS | WINDOW, query_pre_attn_scalar=16),
    *rows("gemma3_text", WIDE_HEADS | WINDOW, query_pre_attn_scalar=16),
    *rows("phi3", GROUPED),
    *rows("phi3 window", GROUPED | WINDOW, tying=(False,)),
    *rows("olmo2", GROUPED),
    *rows("smollm3", GROUPED, no_rope_layers=[1, 0, 1, 1, 0, 1]),
    *rows("granite", GROUPED, embedding_multiplier=6.0, residual_multiplier=0.5, attention_multiplier=0.2),
    *rows("stablelm", GROUPED),
    *rows("cohere", GROUPED),
    *rows("cohere2", WIDE_HEADS | WINDOW),
    *rows("deepseek_v3", LATENT_HEADS | ROUTED | GROUPS, first_k_dense_replace=1),
    *rows("gpt_oss", MIXTURE | WINDOW, head_dim=16),
    *rows("qwen3_next", WIDE_HEADS | EXPERTS | SHARED_EXPERT | GATED_DELTA),
    *rows("falcon_h1", WIDE_HEADS | MAMBA2, mamba_d_ssm=64),
    *rows(
        "granitemoehybrid",
        MIXTURE | MAMBA2,
        shared_intermediate_size=16,
        layer_types=[LINEAR, LINEAR, FULL, LINEAR, LINEAR, FULL],
    ),
]

FAMILIES: tuple[Family, ...] = (*(replace(family, listed=True) for family in LISTED), *MORE, *RECURRENT)


def seeded(family: Family) -> PreTrainedModel:
    """The family's model in eval mode, float32, the same at every call; no two tensors alike, none trivial."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        model: PreTrainedModel = AutoModelForCausalLM.from_config(family.config(), dtype=torch.float32)
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape) * 0.1)
        parameters = dict(model.named_parameters(remove_duplicate=False))
        for name, buffer in model.state_dict(keep_vars=True).items():
            if name in parameters or buffer.min() != buffer.max():  # a table is computed from the config
                continue
            noise = torch.rand(buffer.shape) * 0.1 if buffer.is_floating_point() else torch.randint(2, buffer.shape)
            buffer.add_(noise)
    model.eval()
    return model
