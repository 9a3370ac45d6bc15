"""The shapes that are trained: a transformers config each, and how many sequences of which length make a step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Shape:
    """A model's shape and its batch."""

    config: dict[str, Any]
    """Keys of a transformers config."""
    sequence_length: int
    """Tokens of input a sequence."""
    batch_sequences: int
    """Sequences a step."""
    micro_batch_sequences: int
    """Sequences a forward pass."""
    device: str
    """`cpu` or `cuda`: where it is run unless shapes are named."""


def _llama(**keys: int | bool) -> dict[str, Any]:
    """A LLaMA whose special tokens lie within any vocabulary."""
    return {"model_type": "llama", "bos_token_id": 0, "eos_token_id": 0, **keys}


def _gpt2(layers: int, width: int, heads: int, sequence_length: int) -> dict[str, Any]:
    """A GPT-2 without dropout; GELU is the exact one, as in nanoGPT, and there are as many positions as are used."""
    return {
        "model_type": "gpt2", "n_layer": layers, "n_embd": width, "n_head": heads, "vocab_size": 50257,
        "n_positions": sequence_length, "activation_function": "gelu", "resid_pdrop": 0.0, "embd_pdrop": 0.0,
        "attn_pdrop": 0.0, "bos_token_id": 0, "eos_token_id": 0,
    }  # fmt: skip


def _small_llama(vocabulary: int) -> Shape:
    """The demo's target with a vocabulary of so many entries."""
    config = _llama(
        num_hidden_layers=4, hidden_size=256, intermediate_size=704, num_attention_heads=4, num_key_value_heads=2,
        vocab_size=vocabulary, max_position_embeddings=256, tie_word_embeddings=True,
    )  # fmt: skip
    return Shape(config, sequence_length=256, batch_sequences=16, micro_batch_sequences=16, device="cpu")


SMOLLM2_15 = _llama(
    num_hidden_layers=15, hidden_size=576, intermediate_size=1536, num_attention_heads=9, num_key_value_heads=3,
    vocab_size=49152, max_position_embeddings=256, tie_word_embeddings=True,
)  # fmt: skip
"""Half the layers of SmolLM2-135M, by its sizes alone: a third of the products are the head's."""

SHAPES = {
    "demo": _small_llama(4096),
    "wide-vocabulary": _small_llama(32000),
    "gpt2-small": Shape(_gpt2(12, 768, 12, 256), 256, batch_sequences=4, micro_batch_sequences=4, device="cpu"),
    "smollm2-15": Shape(SMOLLM2_15, 256, batch_sequences=8, micro_batch_sequences=8, device="cpu"),
    "open-llama-3b-13": Shape(
        _llama(
            num_hidden_layers=13, hidden_size=3200, intermediate_size=8640, num_attention_heads=32,
            num_key_value_heads=32, vocab_size=32000, max_position_embeddings=2048, tie_word_embeddings=False,
        ),
        2048, batch_sequences=8, micro_batch_sequences=8, device="cuda",
    ),
    "gpt2-medium": Shape(_gpt2(24, 1024, 16, 1024), 1024, batch_sequences=32, micro_batch_sequences=16, device="cuda"),
    "gpt2-large": Shape(_gpt2(36, 1280, 20, 1024), 1024, batch_sequences=32, micro_batch_sequences=8, device="cuda"),
}  # fmt: skip
