"""Arithmetic of cost: what a model's parameters and tokens take in floating-point operations."""

from __future__ import annotations

from torch import nn
from transformers import PreTrainedModel


def matrix_parameters(model: PreTrainedModel) -> int:
    """Parameters that every token is multiplied by: the matrices of the blocks, and the head, even where it is tied.

    Look-ups (token and position embeddings) multiply nothing.
    """
    embeddings = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    head = model.get_output_embeddings()
    inside = sum(
        parameter.numel()
        for parameter in model.parameters()
        if parameter.dim() >= 2 and id(parameter) not in embeddings and (head is None or parameter is not head.weight)
    )
    return inside + (head.weight.numel() if head is not None else 0)


def training_flops_per_token(model: PreTrainedModel, sequence_length: int) -> float:
    """Floating-point operations that training takes a token: 6 a matrix parameter, plus attention.

    Attention's scores and their product with the values take 4 * width operations a pair of tokens in the forward pass
    and twice that in the backward pass; a causal mask leaves (sequence_length + 1) / 2 pairs a token. Source: Kaplan et
    al. 2020, section 2.1 (without the mask); Hoffmann et al. 2022, appendix F.
    """
    config = model.config.get_text_config()
    heads = int(config.num_attention_heads)
    width: int = heads * (getattr(config, "head_dim", None) or config.hidden_size // heads)
    attention = 12.0 * int(config.num_hidden_layers) * width * (sequence_length + 1) / 2
    return 6.0 * matrix_parameters(model) + attention
