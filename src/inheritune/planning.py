"""Arithmetic of cost: what a model's parameters and tokens take in floating-point operations.

What is counted is what no program can leave out, so that a time below it is impossible: of a mixture the experts that a
token goes to, of attention the pairs that its mask leaves. What recurrent layers compute beside their matrices is not
counted; it is little.
"""

from __future__ import annotations

from typing import Any

from torch import nn
from transformers import PretrainedConfig, PreTrainedModel

from inheritune.errors import Refused
from inheritune.reference import block_list

_EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")
_CHOSEN = ("num_experts_per_tok", "top_k_experts", "moe_top_k", "moe_topk", "moe_k")
"""What configs call a mixture's experts, and how many of them a token goes to."""
_WHOLE, _WINDOWED, _CHUNKED = ("full_attention", "attention"), "sliding_attention", "chunked_attention"
"""Kinds of layers whose pairs of tokens are known; of others none are counted."""


def matrix_parameters(model: PreTrainedModel) -> float:
    """Parameters that a token is multiplied by: the matrices of the blocks, and the head, even where it is tied.

    Look-ups (token and position embeddings) multiply nothing; of a mixture's experts the share counts that a token goes
    to, and of what a model has for images nothing.
    """
    embeddings = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    head, decoder = model.get_output_embeddings(), _decoder(model)
    experts, share = _mixture(model.config.get_text_config())
    own = {
        name: one
        for name, one in model.named_parameters()
        if name.startswith(decoder) and id(one) not in embeddings and _is_matrix(one)
    }
    inside = sum(
        one.numel() * (share if _of_experts(name, one, experts) else 1.0)
        for name, one in own.items()
        if head is None or one is not head.weight
    )
    return inside + (head.weight.numel() if head is not None else 0)


def training_flops_per_token(model: PreTrainedModel, sequence_length: int) -> float:
    """Floating-point operations that training takes a token: 6 a matrix parameter, plus attention.

    Sources: Kaplan et al. 2020, section 2.1; Hoffmann et al. 2022, appendix F.

    Args:
        model: with or without memory.
        sequence_length: tokens of a sequence.
    """
    return 6.0 * matrix_parameters(model) + attention_flops_per_token(model, sequence_length)


def attention_flops_per_token(model: PreTrainedModel, sequence_length: int) -> float:
    """Of training, those of attention's scores and of their product with the values.

    They take 2 operations a pair of tokens and channel each in the forward pass, and twice that in the backward pass.
    A causal mask leaves (sequence_length + 1) / 2 pairs a token, a window or chunks fewer. Layers without attention
    have none.

    Args:
        model: with or without memory.
        sequence_length: tokens of a sequence.
    """
    config = model.config.get_text_config()
    try:
        attends = [_has_attention(block) for block in block_list(model)[1]]
    except Refused:  # no cut is possible then, but a training is
        attends = [True] * (_count(config, "num_hidden_layers") or 0)
    return sum(_of_layer(config, index, sequence_length) for index, there in enumerate(attends) if there)


def _of_layer(config: PretrainedConfig, index: int, length: int) -> float:
    """Attention's operations a token in one layer."""
    layer = config.per_layer_config[index] if getattr(config, "is_heterogeneous", False) else config
    heads = _count(layer, "num_attention_heads")
    if heads is None:
        return 0.0
    head = _count(layer, "head_dim") or int(layer.hidden_size) // heads
    keys, values = (_count(layer, name) or head for name in ("qk_head_dim", "v_head_dim"))
    return 6.0 * heads * (keys + values) * _pairs(layer, index, length)


def _has_attention(block: nn.Module) -> bool:
    """Whether a block looks at pairs of tokens; what RWKV calls attention is a recurrence."""
    inner = (module for module in block.modules() if module is not block)
    return any("attention" in type(one).__name__.lower() and not hasattr(one, "receptance") for one in inner)


def _pairs(config: PretrainedConfig, index: int, length: int) -> float:
    """Pairs a token that a block's mask leaves, in the mean over a sequence."""
    types = getattr(config, "layer_types", None)
    kind = types[index] if isinstance(types, list) and index < len(types) and isinstance(types[index], str) else None
    if kind == _CHUNKED:
        size = min(_count(config, "attention_chunk_size") or length, length)
        whole, rest = divmod(length, size)
        return (whole * size * (size + 1) + rest * (rest + 1)) / 2 / length
    if kind in (None, _WINDOWED):
        window = min(_window(config, kind) or length, length)
        return (window * (window + 1) / 2 + (length - window) * window) / length
    return (length + 1) / 2 if kind in _WHOLE else 0.0


def _window(config: PretrainedConfig, kind: str | None) -> int | None:
    """Tokens that a block with a window sees; where no block's kind is said, those that all of them see."""
    if kind is None and getattr(config, "use_sliding_window", True) is False:
        return None
    return _count(config, "sliding_window") or _count(config, "attention_window_size")


def _decoder(model: PreTrainedModel) -> str:
    """The dotted name, with its dot, of what holds the text's blocks: a tower for images stands beside it."""
    try:
        return block_list(model)[0].rpartition(".")[0] + "."
    except Refused:
        return ""


def _is_matrix(parameter: nn.Parameter) -> bool:
    return sum(size > 1 for size in parameter.shape) >= 2


def _mixture(config: PretrainedConfig) -> tuple[int | None, float]:
    """How many experts a mixture has, and the share of them that a token goes to; None and 1 where there is none."""
    places = [config, getattr(config, "ffn_config", None)]
    experts = next((found for place in places for name in _EXPERTS if (found := _count(place, name))), None)
    chosen = next((found for place in places for name in _CHOSEN if (found := _count(place, name))), None)
    if experts is None or chosen is None or chosen > experts:
        return None, 1.0
    idle = _count(config, "zero_expert_num") or 0  # experts that compute nothing, which a token may go to as well
    return experts, max(0, chosen - idle) / experts


def _of_experts(name: str, parameter: nn.Parameter, experts: int | None) -> bool:
    """Whether a parameter belongs to a mixture's experts, of which a token goes to some."""
    if experts is None or "shared" in name:
        return False
    return ".experts." in name or (parameter.dim() == 3 and parameter.shape[0] == experts)


def _count(place: Any, name: str) -> int | None:
    """A config's number above 0; of several, one a layer, the smallest."""
    try:
        value = getattr(place, name, None)
    except RuntimeError:  # where transformers has a config a layer, it says so
        value = [getattr(layer, name, None) for layer in place.per_layer_config]
    if isinstance(value, list) and value and all(type(one) is int for one in value):
        value = min(value)
    return value if type(value) is int and value > 0 else None
