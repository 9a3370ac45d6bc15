"""Which GGUF files are whole decoder-only language models, by their headers alone."""

from __future__ import annotations

import math

from inheritune.errors import Refused
from inheritune.reference.gguf_header import Header, plain
from inheritune.reference.internals import gguf_architectures

_MOST_BLOCKS = 1024
"""More than any model has: building as many modules as a number says takes long."""
_ABOVE_ZERO = (
    *("context_length", "embedding_length", "feed_forward_length", "vocab_size", "rope.freq_base"),
    *("attention.head_count", "attention.head_count_kv"),
    *("attention.layer_norm_rms_epsilon", "attention.layer_norm_epsilon"),
)
"""What a header says of a model's shape by single numbers, where it says it at all."""
SPECIAL = {"bos": "bos", "eos": "eos", "unknown": "unk", "padding": "pad"}
"""Special tokens: their names in files, and in transformers."""


def check_model(source: str, header: Header) -> None:
    """Refuse what is no whole decoder-only language model that transformers converts.

    Args:
        source: what errors call the reference.
        header: the file's.

    Raises:
        Refused: it is a vocabulary, an adapter, an embedding model, one of several parts, or of another architecture.
    """
    architecture, kind = header.text("general.architecture"), header.text("general.type")
    if architecture is None:
        raise Refused(f"{source}: no model: its header names no general.architecture")
    shown = plain(architecture)
    if kind is not None and kind != "model":
        raise Refused(f"{source}: no language model but GGUF of type {plain(kind)}; give the model's own file")
    parts = header.integer("split.count") or 1
    if parts > 1:
        raise Refused(
            f"{source}: one of {parts} parts of a model; join them first (llama.cpp: llama-gguf-split --merge)"
        )
    if not header.tensors:
        raise Refused(f"{source}: a vocabulary alone ({shown}): it holds no tensor; give the model's own file")
    if header.integer(f"{architecture}.pooling_type") or "bert" in architecture:
        raise Refused(f"{source}: an embedding model ({shown}); give a decoder-only language model")
    possible = gguf_architectures()
    if architecture not in possible:
        raise Refused(
            f"{source}: its architecture is {shown}, and transformers converts decoders of these from GGUF: "
            f"{', '.join(possible)}; give the model as a Hugging Face directory"
        )
    if "token_embd.weight" not in {tensor.name for tensor in header.tensors}:
        raise Refused(f"{source}: no whole language model ({shown}): it has no token_embd.weight")
    blocks = header.integer(f"{architecture}.block_count")
    if blocks is None or not 0 < blocks <= min(len(header.tensors), _MOST_BLOCKS):
        raise Refused(
            f"{source}: damaged: {shown}.block_count is {or_none(blocks)}, and it holds {len(header.tensors)} tensors"
        )
    _check_sizes(source, header, architecture)
    _check_tokens(source, header)


def _check_sizes(source: str, header: Header, architecture: str) -> None:
    """What the header says of the model's shape is above zero and finite, as far as it is one number."""
    for name in _ABOVE_ZERO:
        key = f"{architecture}.{name}"
        value = header.metadata.get(key)
        if isinstance(value, int | float) and not 0 < value < math.inf:
            raise Refused(f"{source}: damaged: {plain(key)} is {value}, and must be above 0; copy it again")


def _check_tokens(source: str, header: Header) -> None:
    """The arrays of the tokenizer are of the types that they must be, and special ids are ids."""
    for name, integers in (("tokens", False), ("merges", False), ("token_type", True)):
        key = f"tokenizer.ggml.{name}"
        array = header.array(key)
        if key in header.metadata and (array is None or not (array.of_integers if integers else array.of_strings)):
            raise Refused(f"{source}: damaged: {key} is no array of {'integers' if integers else 'strings'}")
    tokens = header.array("tokenizer.ggml.tokens")
    for name in SPECIAL:
        key = f"tokenizer.ggml.{name}_token_id"
        identity = header.integer(key)
        if key in header.metadata and (identity is None or (tokens and not 0 <= identity < tokens.count)):
            held = tokens.count if tokens else 0
            raise Refused(f"{source}: damaged: {key} is {header.metadata[key]!r:.40}, and it has {held:,} tokens")


def or_none(value: int | None) -> str:
    """A number, or the word for there being none."""
    return "none" if value is None else str(value)
