"""How far attention degenerates, by layer and head: to few directions, or to few columns.

Two measures of an attention matrix, whose row i says how much token i takes from each of the tokens that it sees
(Inheritune, Sanyal et al. 2024, arXiv 2404.08634, from version 2 on): how many singular values hold 90% of the squares
of all, and what share of the columns holds 90% of the squared norms of all. Rank 1 means that every token takes the
same mixture, a single column that every token takes the same one.

Both are of a head's own matrix on one sequence, and means are taken afterwards. The mean of many sequences' matrices
has a low rank whatever the heads do: what differs from text to text cancels, and what is left is where they look on
average.

A low rank alone does not tell a head that has collapsed from one that has learnt nothing. Attention to all visible
tokens alike has rank 6 of 256, with 26% of the columns, and from random init heads are close to that. Hence the
untrained network beside the reference.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode
from transformers import PreTrainedModel

from inheritune.errors import Failed, Refused
from inheritune.layerwise.passes import Pass
from inheritune.parallel import place
from inheritune.reference import block_list, eval_mode, fresh
from inheritune.tokens import Tokens
from inheritune.validation import logits_of

Record = dict[str, Any]
Measures = npt.NDArray[np.float64]

HELD = 0.9
"""The share of the squares that has to be held."""
_LOST = 1e-6
"""What float32 may lose of that share: of ten equal squares nine hold 90%, however they were rounded."""
_DIGITS = 6
_SEEN = ("sdpa", "eager", None)
"""Implementations of attention, by their names in configs, whose matrices can be had."""


@dataclass(frozen=True)
class Degeneracy:
    """Means over sequences, each an array of (layers, heads): query heads, where several share keys.

    NaN in the whole row of a layer that forms no attention matrix of tokens with tokens (Mamba, linear or compressed
    attention), and behind the last head of a layer that has fewer than others.
    """

    rank: Measures
    """How many singular values hold 90% of the squares of all: 1 to T."""
    column_share: Measures
    """The share of the T columns that holds 90% of the squared norms of all: 1 / T to 1."""
    sequences: int
    sequence_length: int
    """T, tokens."""

    @property
    def tokens(self) -> int:
        """How many were read."""
        return self.sequences * self.sequence_length


@torch.inference_mode()
def measure_degeneracy(
    model: PreTrainedModel,
    batches: Iterable[Tokens | torch.Tensor],
    *,
    dtype: torch.dtype = torch.float32,
    progress: Callable[[int, int], None] | None = None,
) -> Degeneracy:
    """Measure every head's attention on some sequences, each in a pass of its own, which computes what it always does.

    Matrices are formed in float32 from the queries, keys, mask and scale that torch's attention is called with, one
    head at a time: (T, T). Families that compute attention themselves (soft-capping, sinks, some with ALiBi) give
    theirs, in the pass's dtype, and a layer's are in memory at a time, as in any pass of theirs: (heads, T, T).
    Singular values take almost all of the time, which grows with T cubed; 256 tell layers apart.

    Each matrix is measured as it is. Its first row is always (1, 0, …): the first token sees itself alone.

    Args:
        model: on the device that it is to be run on, not compiled, with the implementation of attention `sdpa` or
            `eager`. It is left as it was.
        batches: token ids, (B, T), int64, of one T, 2 or more: no padding. They are all read before the first pass.
        dtype: of matrix products in the pass.
        progress: told after every sequence how many are done, and how many there are.

    Raises:
        Refused: no sequence, or sequences of several lengths or of one token; another implementation of attention;
            the model's passes do not run each block once, in order; no layer forms an attention matrix.
        Failed: a matrix is not finite.
    """
    name, rows = type(model).__name__, _rows(batches)
    implementation = model.config.get_text_config()._attn_implementation
    if implementation not in _SEEN:
        why = f"attention is computed by {implementation}, which shows no matrix"
        raise Refused(f"{name}: {why}; load the model with attn_implementation='sdpa'")
    blocks = block_list(model)[1]
    by_layer: list[list[Measures]] = [[] for _ in blocks]
    with eval_mode(model):
        for done, row in enumerate(rows, 1):
            with _watched(blocks, len(row), asked=implementation != "sdpa") as watch:
                logits_of(model, row[None].to(model.device), dtype)
            Pass(order=watch.order).check(model)
            for layer, heads in enumerate(watch.heads):
                by_layer[layer].append(np.array(heads, np.float64).reshape(-1, 2))
            if progress is not None:
                progress(done, len(rows))
    means = [np.mean(layer, 0) for layer in by_layer]  # each (heads, 2)
    if not any(map(len, means)):
        raise Refused(f"{name}: no layer forms an attention matrix, so there is nothing to measure")
    padded = np.full((len(means), max(map(len, means)), 2), np.nan)
    for layer, mean in enumerate(means):
        padded[layer, : len(mean)] = mean
    return Degeneracy(padded[..., 0], padded[..., 1], len(rows), len(rows[0]))


def untrained(model: PreTrainedModel, seed: int, *, trust_remote_code: bool = False) -> PreTrainedModel:
    """The same network from random init, in float32, on the same device: what to measure beside a trained one.

    The same seed gives the same network. It takes memory beside the model, 4 bytes a parameter.
    """
    return place(fresh(model.config, seed, trust_remote_code=trust_remote_code).float(), model.device)


def _rows(batches: Iterable[Tokens | torch.Tensor]) -> list[torch.Tensor]:
    """The batches' sequences, each (T,)."""
    rows = [row for batch in batches for row in torch.as_tensor(batch)]
    lengths = sorted({len(row) for row in rows})
    if not lengths:
        raise Refused("attention degeneracy: no tokens to measure it on; give at least one sequence")
    if len(lengths) > 1 or lengths[0] < 2:
        found = ", ".join(map(str, lengths))
        raise Refused(f"attention degeneracy: sequences of length {found}; give them one length, of 2 tokens or more")
    return rows


class _Watch(TorchFunctionMode):
    """Measures attention matrices while a pass computes; what it computes stays as it is.

    Args:
        length: tokens of the sequence.
        layers: how many blocks there are.
    """

    def __init__(self, length: int, layers: int) -> None:
        super().__init__()
        self.order: list[int] = []
        """The blocks' indices, in the order in which they ran."""
        self.heads: list[list[tuple[int, float]]] = [[] for _ in range(layers)]
        """Rank and share of columns of every matrix, by layer."""
        self._length = length
        self._inside = False
        self._given: torch.Tensor | None = None

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is nn.functional.scaled_dot_product_attention and self._inside:
            self._attended(*args, **kwargs)
        return func(*args, **kwargs)

    def _attended(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attn_mask: torch.Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        **settings: Any,
    ) -> None:
        """Measure what torch's attention, whose arguments these are, multiplies the values with."""
        # DiffLlama calls it for each half of the values, with the same matrices
        if query is self._given:
            return
        self._given = query
        for matrix in _matrices(query, key, attn_mask, is_causal, settings.get("scale")):
            self._add(matrix)

    def enter(self, index: int) -> None:
        """A block begins."""
        self.order.append(index)
        self._inside = True

    def leave(self) -> None:
        """A block ends."""
        self._inside, self._given = False, None

    def see(self, output: Any) -> None:
        """Look for matrices, (1, heads, T, T), among what a module within a block gives."""
        if not self._inside or not isinstance(output, tuple | list):
            return
        for value in output:
            # modules hand on what those within them gave
            if value is not self._given and _is_attention(value, self._length):
                self._given = value
                for matrix in value[0]:
                    self._add(matrix.float())

    def _add(self, matrix: torch.Tensor) -> None:
        layer = self.order[-1]
        if not matrix.isfinite().all():
            raise Failed(f"layer {layer}: its attention is not finite, so it cannot be measured; try another dtype")
        rank = _fewest(torch.linalg.svdvals(matrix).square())
        columns = _fewest(matrix.square().sum(0))
        self.heads[layer].append((rank, columns / matrix.shape[1]))


@contextlib.contextmanager
def _watched(blocks: nn.ModuleList, length: int, asked: bool) -> Iterator[_Watch]:
    """Measure the attention of a pass over one sequence.

    Args:
        blocks: the model's.
        length: tokens of the sequence.
        asked: whether blocks are asked for their matrices: GPT-1's give them on request alone. The model is not asked:
            it would keep those of all layers.
    """
    watch = _Watch(length, len(blocks))

    def enter(index: int, _block: nn.Module, given: Any, settings: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        watch.enter(index)
        return given, settings | {"output_attentions": True} if asked and "output_attentions" in settings else settings

    with contextlib.ExitStack() as hooks:
        for index, block in enumerate(blocks):
            hooks.callback(block.register_forward_pre_hook(partial(enter, index), with_kwargs=True).remove)
        # a module that several blocks share is among them once
        for module in blocks.modules():
            hooks.callback(module.register_forward_hook(lambda _module, _given, output: watch.see(output)).remove)
        for block in blocks:
            hooks.callback(block.register_forward_hook(lambda *_: watch.leave()).remove)
        with watch:
            yield watch


def _matrices(
    query: torch.Tensor,
    key: torch.Tensor,
    attn_mask: torch.Tensor | None = None,
    is_causal: bool = False,
    scale: float | None = None,
) -> Iterator[torch.Tensor]:
    """The attention matrix of each query head, (T, S), in float32: what torch's attention makes of an identity.

    Args:
        query: (1, H, T, D).
        key: (1, G, S, D), G dividing H: head h reads the group h // (H / G).
        attn_mask: what can be expanded to (1, H, T, S): bool, true where a token is seen, or added to the scores.
        is_causal: whether token i sees the first i + 1 alone.
        scale: of the scores; without it one by the root of D.
    """
    heads, length, places = query.shape[1], query.shape[2], key.shape[2]
    identity = torch.eye(places, device=key.device)[None, None]
    mask = None
    if attn_mask is not None:
        added = attn_mask.dtype != torch.bool
        mask = (attn_mask.float() if added else attn_mask).expand(1, heads, length, places)
    for head in range(heads):
        group = head * key.shape[1] // heads
        # by torch's plain formula: other kernels may round products of float32 to fewer bits
        with torch.autocast(key.device.type, enabled=False), sdpa_kernel(SDPBackend.MATH):
            matrix = nn.functional.scaled_dot_product_attention(
                query[:, head, None].float(),
                key[:, group, None].float(),
                identity,
                attn_mask=None if mask is None else mask[:, head, None],
                is_causal=is_causal,
                scale=scale,
            )
        yield matrix[0, 0]


def _is_attention(value: Any, length: int) -> bool:
    """Whether a value is the attention matrices of one sequence: nothing negative, nothing from later tokens."""
    if not isinstance(value, torch.Tensor) or value.dim() != 4 or not value.is_floating_point():
        return False
    if value.shape[0] != 1 or value.shape[2:] != (length, length):
        return False
    numbers = value.nan_to_num()  # one that is not finite is an error, not something else
    return bool((numbers >= 0).all()) and not bool(numbers.triu(1).any())


def _fewest(squares: torch.Tensor) -> int:
    """How many of the largest of some squares, (n,), hold 90% of their sum."""
    held = squares.double().sort(descending=True).values.cumsum(0)
    return int((held < (HELD - _LOST) * held[-1]).sum()) + 1


def degeneracy_record(found: Degeneracy, *, set_name: str, seed: int | None = None) -> Record:
    """What was measured, as JSON; `report.degeneracy` shows it.

    Args:
        found: as `measure_degeneracy` gives it.
        set_name: of the set that the sequences are of.
        seed: of the network's random init; None for one that was trained.

    Returns:
        `set`, `sequences`, `sequence_length`, `tokens`, `seed`, `held` (0.9); `rank` and `column_share`, for each layer
        a list of its heads' values, or None where it forms no attention matrix.
    """
    return {
        "set": set_name,
        "sequences": found.sequences,
        "sequence_length": found.sequence_length,
        "tokens": found.tokens,
        "seed": seed,
        "held": HELD,
        "rank": _listed(found.rank),
        "column_share": _listed(found.column_share),
    }


def _listed(values: Measures) -> list[list[float] | None]:
    """Each layer's values, without those that are none."""
    return [[round(x, _DIGITS) for x in row[~np.isnan(row)].tolist()] or None for row in values]
