"""How many rows a forward pass of an evaluation takes: decided before it runs, from what the logits will need."""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedModel

from inheritune.errors import Failed
from inheritune.hardware import available_memory_bytes

_SHARE_OF_FREE = 0.25
_MOST_ROWS = 128
_CPU_TOKENS = 4096
"""On a CPU more tokens at once are no faster, and their logits leave the caches."""


def batch_rows(model: PreTrainedModel, length: int) -> int:
    """Rows of `length` tokens at once, a power of two: as many as fit into a share of the memory that is free now.

    The harness's `auto` tries 64 rows of the whole context and waits to run out of memory, which on a CPU ends the
    process; one row at a time leaves a GPU idle.

    Args:
        model: on its device.
        length: tokens of the longest row.

    Raises:
        Failed: not even one fits.
    """
    free, logits = available_memory_bytes(model.device), length * model.dtype.itemsize * _head_rows(model)
    if logits > free:
        needed, there = (f"{size / 1e9:.1f} GB" for size in (logits, free))
        raise Failed(f"the scores of one row of {length:,} tokens take {needed} of memory, and {there} are free")
    return rows_that_fit(free, length, bytes_a_token(model), on_cpu=model.device.type == "cpu")


def rows_that_fit(free_bytes: int, length: int, token_bytes: int, *, on_cpu: bool) -> int:
    """A power of two, at least 1: rows of `length` tokens, of `token_bytes` each, within a share of what is free."""
    fit = int(_SHARE_OF_FREE * free_bytes) // max(1, length * token_bytes)
    most = min(_MOST_ROWS, fit, max(1, _CPU_TOKENS // max(1, length)) if on_cpu else _MOST_ROWS)
    return 1 << (max(1, most).bit_length() - 1)


def bytes_a_token(model: PreTrainedModel) -> int:
    """Bytes that a token of the input needs while the harness scores it.

    Its logits, their log-softmax and one copy between; the hidden state, the widest part of a block, and the keys and
    values that transformers keeps.
    """
    config = model.config.get_text_config()
    size = model.dtype.itemsize
    vocabulary = _head_rows(model)
    width = int(config.hidden_size)
    given: Any = getattr(config, "intermediate_size", None) or 4 * width
    inner = int(max(given) if isinstance(given, list) else given)  # a list: of every layer
    layers = int(config.num_hidden_layers)
    return size * (3 * vocabulary + 8 * width + 4 * inner + 2 * layers * width)


def _head_rows(model: PreTrainedModel) -> int:
    """Scores that the head gives for each token, those of no token among them."""
    output = model.get_output_embeddings()
    return int(output.weight.shape[0] if output is not None else model.config.get_text_config().vocab_size)
