"""What the tables of families are made of: arguments that many share, and the entry."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from transformers import AutoConfig, PreTrainedConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

LAYERS = 6
VOCABULARY = 64

SLIDING, FULL, LINEAR = "sliding_attention", "full_attention", "linear_attention"  # layer types

# Names that every config knows, some by its attribute map.
PLAIN: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 1,
}
GROUPED = PLAIN | {"intermediate_size": 48, "num_key_value_heads": 2}
WIDE_HEADS = GROUPED | {"head_dim": 16}  # the heads together are wider than the model
UNGROUPED = PLAIN | {"intermediate_size": 48, "num_key_value_heads": 4}
LATENT_HEADS = UNGROUPED | {
    "q_lora_rank": 16,
    "kv_lora_rank": 8,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 4,
    "v_head_dim": 8,
}
MIXTURE = GROUPED | {"num_local_experts": 4, "num_experts_per_tok": 2}

# Additions.
WINDOW = {"sliding_window": 8}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
MAMBA2 = {"mamba_n_heads": 4, "mamba_d_head": 16, "mamba_d_state": 8, "mamba_n_groups": 2, "mamba_chunk_size": 8}
GATED_DELTA = {
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
}
ROUTED = {"n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
GROUPS = {"n_group": 2, "topk_group": 1}
SHARED_EXPERT = {"shared_expert_intermediate_size": 16}


@dataclass(frozen=True)
class Family:
    """One entry of the matrix.

    Attributes:
        name: unique; the model type, a variant's words, and "tied" where a family has both heads.
        config: makes a new config.
        tied: whether the head is the embedding.
        listed: whether surgery promises the family by name.
        shared: whether layers share weights, keys or values, so that a layer is not whole without another.
        note: what a test has to know.
    """

    name: str
    config: Callable[[], PreTrainedConfig]
    tied: bool
    listed: bool = False
    shared: bool = False
    note: str = ""


def _make(model_type: str, arguments: dict[str, Any]) -> PreTrainedConfig:
    return AutoConfig.for_model(model_type, **copy.deepcopy(arguments))


def rows(
    name: str,
    base: dict[str, Any] | None = None,
    *,
    tying: tuple[bool, ...] = (False, True),
    shared: bool = False,
    note: str = "",
    **arguments: Any,
) -> list[Family]:
    """The entries of one family: untied, tied, or both; none if this transformers does not have it.

    The first word of the name is the model type.
    """
    model_type = name.split(maxsplit=1)[0]
    if model_type not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        return []
    arguments = (PLAIN if base is None else base) | arguments
    return [
        Family(
            name=f"{name} tied" if tied and len(tying) > 1 else name,
            config=partial(_make, model_type, arguments | {"tie_word_embeddings": tied}),
            tied=tied,
            shared=shared,
            note=note,
        )
        for tied in tying
    ]
