"""Which layers are kept in the matrix, and what a family says that cannot keep them."""

from __future__ import annotations

import re

import transformers

from family_table import LAYERS, Family

# Init, the layers that a user names, the layers that the target then has.
CHOICES: dict[str, tuple[str, tuple[int, ...], tuple[int, ...]]] = {
    "first 3": ("inherit", (0, 1, 2), (0, 1, 2)),
    "0, 2, 5": ("inherit", (0, 2, 5), (0, 2, 5)),
    "1, 4": ("inherit", (1, 4), (1, 4)),
    "stack": ("stack", (0, 1, 2), (0, 1, 0)),
    "all 6": ("inherit", tuple(range(LAYERS)), tuple(range(LAYERS))),
}

ALL = frozenset(CHOICES)
STACK = frozenset({"stack"})
CUT = ALL - {"all 6"}
NO_PREFIX = CUT - {"first 3"}
LAST_CUT = CUT - {"0, 2, 5"}
FIRST_CUT = frozenset({"1, 4"})

OLD = transformers.__version__.startswith("5.17")

SHARED_KEYS = "block [45] uses the keys and values that block [23] computes, and [23] is cut"
OUTSIDE = r"embed_tokens_per_layer\.weight has shape .* cannot be inherited as it is"
DEPENDENT = "would get other arguments .* keep the layers it depends on"
SAME_TENSOR = r"shared_transf.* is the same tensor as .*: blocks that share weights cannot be cut"

# Families, whether tied or not; choices; what the user reads. The first entry that fits counts.
REFUSED: list[tuple[str, frozenset[str], str]] = [
    # Each layer computes with its own index, or with the number of layers.
    ("gpt2 layer scale", NO_PREFIX, "scaling of attn of block"),
    ("diffllama", NO_PREFIX, "lambda_init of self_attn of block"),
    ("beam", NO_PREFIX, "attn_residual_add_idx of block"),
    ("minicpm3", CUT, "residual_scale of block"),
    ("minimax", CUT, "num_hidden_layers of self_attn of block . is 6"),
    # The first or the last layer is of another kind, whatever the config says.
    ("gpt_neox_japanese", LAST_CUT, "attention of block . has tensors .*dense_bias"),
    ("modernbert-decoder", FIRST_CUT | STACK, "attn_norm of block . is a"),
    ("rwkv", FIRST_CUT | STACK, "block . has (no )?pre_ln"),
    ("zaya", FIRST_CUT | STACK, r"mlp\.gate of block . has tensors .*balancing_biases"),
    ("gemma4_text( unshared)?", frozenset({"first 3", "stack"}), "is not homogeneous across layers"),
    ("gemma4_text unshared", FIRST_CUT, "is not homogeneous across layers"),
    ("gemma4_text experts", LAST_CUT, "is not homogeneous across layers"),
    ("gemma4_unified_text", LAST_CUT, "(is_sliding|sliding_window) of self_attn of block"),
    # A config says how many layers come first, or a period.
    ("deepseek_v[23]|dots1|glm4_moe|sarvam_m(la|oe)", STACK, r"block 1 has no mlp\.act_fn"),
    ("axk1", STACK if OLD else frozenset(), r"block 1 has no mlp\.act_fn"),
    ("jamba", frozenset({"0, 2, 5", "1, 4"}), r"block . has (no )?feed_forward\.act_fn"),
    ("recurrent_gemma", frozenset({"0, 2, 5", "stack"}), r"block . has (no )?temporal_block\.act_fn"),
    ("qwen4_exp_text", NO_PREFIX, "block . has (no )?ple"),
    ("olmo_hybrid", CUT, "OLMoHybrid expects at least one attention layer"),
    # Layers take something from earlier ones.
    ("gemma3n_text|gemma4_text", frozenset({"0, 2, 5", "1, 4"}), SHARED_KEYS),
    ("glm_moe_dsa|hy_v4", NO_PREFIX, DEPENDENT),
    ("glm_moe_dsa shared", frozenset({"0, 2, 5", "stack"}), DEPENDENT),
    ("glm_moe_dsa shared", FIRST_CUT, "the target does not run .*require top-k indices from a previous"),
    ("zaya", frozenset({"0, 2, 5"}), DEPENDENT),
    ("zamba2 tied", ALL, SAME_TENSOR),
    ("zamba2", frozenset({"0, 2, 5", "1, 4"}), "the target does not run"),
    # Layers share weights, or have some outside of the blocks.
    ("zamba tied", CUT - STACK, "cannot describe layers .*tie_weights_keys"),
    ("zamba tied", STACK | {"all 6"}, SAME_TENSOR),
    ("gemma3n_text", frozenset({"first 3", "stack"}), OUTSIDE),
    ("gemma3n_text unshared", CUT, OUTSIDE),
    ("gemma4_text unshared", frozenset({"0, 2, 5"}), OUTSIDE),
    ("inkling2(_loop)?_text", frozenset({"0, 2, 5"}), "is_block_boundary of block 5"),
    ("inkling2(_loop)?_text", FIRST_CUT | STACK, "block . has (no )?attention_input"),
    ("inkling2(_loop)?_text", frozenset({"first 3", "all 6"}), r"which number in .*attn_queries\.0 is the block's"),
    # Layers run more than once.
    ("dory", ALL - STACK, "blocks run . times in a pass, not once each"),
    ("hrm_text|longcat_flash", ALL, "which list holds the .. blocks is not clear; candidates: none"),
]


def refusal(family: Family, choice: str) -> str | None:
    """What a family's refusal of a choice must say; None if the choice is possible."""
    named = [entry for entry in REFUSED if re.fullmatch(f"({entry[0]})( tied)?", family.name)]
    return next((message for _, choices, message in named if choice in choices), None)
