"""The degeneracy of attention, against matrices that are materialised, and of attention that is known."""

from __future__ import annotations

import copy
import itertools
import json
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AutoModelForCausalLM, PreTrainedModel

from families import FAMILIES, Family, seeded
from inheritune.errors import Failed, Refused
from inheritune.layerwise import degeneracy_record, measure_degeneracy, untrained
from inheritune.reference import block_list
from layered import llama, mixed_modes, seeded as layered, state
from tiny import TOKENS, family, one_line

LENGTH = TOKENS.shape[1]
COMPARED = [
    # torch's attention: grouped, windows, latent heads, positions by rotation, by table and by bias
    *("gpt2", "gpt_neox", "opt", "phi", "llama", "mistral", "qwen2 window", "qwen3", "smollm3", "deepseek_v3"),
    *("gemma3_text", "falcon 7b", "falcon 40b", "doge"),
    # their own: GPT-1 on request alone, windows in every second layer, soft-capping, ALiBi, sinks
    *("openai-gpt", "gpt_neo", "gemma2", "bloom", "mpt", "gpt_oss"),
    # hybrids: attention beside Mamba in each layer, in some layers, in blocks that layers share
    *("falcon_h1", "granitemoehybrid", "jamba", "zamba", "qwen3_next"),
]
"""Falcon with ALiBi is not among them: in transformers 5.24 its eager attention adds the bias twice."""


def measures(matrix: Any) -> tuple[int, float]:
    """Rank and share of columns of one matrix, in float64."""
    exact = np.asarray(matrix, np.float64)
    columns = np.sort((exact**2).sum(0))[::-1]
    return held(np.linalg.svd(exact, compute_uv=False) ** 2), held(columns) / exact.shape[1]


def held(squares: Any) -> int:
    """How many squares, in descending order, reach 90% of their sum."""
    return next(n for n in range(1, len(squares) + 1) if squares[:n].sum() >= 0.9 * squares.sum() * (1 - 1e-6))


def materialised(model: PreTrainedModel, ids: torch.Tensor) -> list[Any]:
    """What every layer with attention shows in eager mode: (heads, 2), the mean over sequences."""
    eager = AutoModelForCausalLM.from_config(copy.deepcopy(model.config), attn_implementation="eager").eval()
    eager.load_state_dict(model.state_dict())
    with torch.no_grad():
        layers = eager(ids, use_cache=False, output_attentions=True).attentions
    found = [[[measures(head) for head in sequence] for sequence in layer] for layer in layers if layer is not None]
    return [np.mean(layer, 0) for layer in found]


@pytest.mark.parametrize("entry", [one for one in FAMILIES if one.name in COMPARED], ids=lambda one: one.name)
def test_it_measures_the_matrices_that_the_model_computes_with(entry: Family) -> None:
    model = seeded(entry)
    found, expected = measure_degeneracy(model, [TOKENS]), materialised(model, TOKENS)
    there = [layer for layer, row in enumerate(found.rank) if not np.isnan(row).all()]
    assert len(there) == len(expected) > 0
    for layer, values in zip(there, expected, strict=True):
        np.testing.assert_array_equal(found.rank[layer], values[:, 0])
        np.testing.assert_allclose(found.column_share[layer], values[:, 1])
    assert len({tuple(row) for row in found.column_share[there]}) > 1 or len(there) == 1


def test_every_family_that_is_compared_is_there() -> None:
    assert {one.name for one in FAMILIES} >= set(COMPARED)


@pytest.mark.parametrize("name", ["llama", "qwen2 window", "falcon rw", "gemma2", "openai-gpt", "falcon_h1"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_pass_computes_what_it_always_does_bit_for_bit(name: str, dtype: torch.dtype) -> None:
    model, given = seeded(family(name)), []
    watched = model.register_forward_hook(lambda _model, _ids, output: given.append(output.logits))
    measure_degeneracy(model, [TOKENS], dtype=dtype)
    watched.remove()
    assert len(given) == len(TOKENS)
    with torch.no_grad(), torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        for row, logits in zip(TOKENS, given, strict=True):
            assert torch.equal(logits, model(row[None], use_cache=False).logits)


def test_matrices_are_exact_where_products_are_rounded() -> None:
    """The second token takes 0.609 of the first: one column holds 89.97%, and 90.03% where bfloat16 rounds."""
    call = {"query": torch.tensor([[[[0.0], [math.log(0.609 / 0.391)]]]]), "key": torch.tensor([[[[1.0], [0.0]]]])}
    found = measure_degeneracy(attending({**call, "is_causal": True}), [ids_of(2)], dtype=torch.bfloat16)
    assert found.column_share[0, 0] == 1


# ---- attention that is known


class Attending(nn.Module):
    """A block with attention of its own, whatever the hidden state."""

    def __init__(self, *calls: dict[str, Any]) -> None:
        super().__init__()
        self.calls = calls
        self.inner: nn.Module = nn.Identity()  # a list of blocks is told by its entries being made of modules

    def forward(self, hidden_states: torch.Tensor, *_: Any, **__: Any) -> Any:
        for call in self.calls:
            scaled_dot_product_attention(value=torch.zeros_like(call["key"]), **call)
        return hidden_states


def attending(*calls: dict[str, Any]) -> Any:
    """A LLaMA whose one block calls torch's attention with given arguments."""
    model = layered(llama, 1)
    model.model.layers = nn.ModuleList([Attending(*calls)])
    return model


def ids_of(length: int) -> torch.Tensor:
    return torch.arange(length)[None] % 300


def formula(query: torch.Tensor, key: torch.Tensor, scale: float, added: torch.Tensor | None = None) -> torch.Tensor:
    """A causal attention matrix in float64: (T, T)."""
    scores = scale * query.double() @ key.double().mT
    scores = scores + (torch.full(scores.shape, -math.inf, dtype=torch.float64).triu(1) if added is None else added)
    return scores.softmax(-1)


def test_ranks_of_attention_that_is_known() -> None:
    """One column for all tokens; every token itself alone; all that it sees alike; at random."""
    length = 256
    itself = 100 * torch.eye(length)
    first, alike = torch.zeros(length, length), torch.zeros(length, length)
    first[0] = 100
    random = torch.randn(length, length, generator=torch.Generator().manual_seed(0))
    query = torch.stack([torch.full_like(itself, 100), itself, alike, random])[None]
    key = torch.stack([first, itself, alike, random.flip(0)])[None]
    found = measure_degeneracy(attending({"query": query, "key": key, "is_causal": True, "scale": 0.25}), [ids_of(256)])
    collapsed, diagonal, uniform, spread = found.rank[0]
    assert (collapsed, found.column_share[0, 0]) == (1, 1 / length)
    assert (diagonal, found.column_share[0, 1]) == (231, 231 / length)  # 90% of 256 equal squares
    assert (uniform, round(found.column_share[0, 2], 2)) == (6, 0.26)
    assert spread > 64


@pytest.mark.parametrize("count", [10, 20, 30, 50, 70, 100])
def test_what_holds_90_percent_exactly_is_enough(count: int) -> None:
    itself = {"query": 100 * torch.eye(count)[None, None], "key": torch.eye(count)[None, None], "scale": 1.0}
    found = measure_degeneracy(attending({**itself, "is_causal": True}), [ids_of(count)])
    assert (found.rank[0, 0], found.column_share[0, 0]) == (9 * count / 10, 0.9)


WINDOW = torch.ones(12, 12, dtype=torch.bool).tril() & torch.ones(12, 12, dtype=torch.bool).triu(-3)
BIAS = torch.where(WINDOW, torch.arange(12.0) / 4, torch.finfo(torch.float32).min)


@pytest.mark.parametrize(
    ("settings", "added"),
    [
        ({"is_causal": True}, None),
        ({"is_causal": True, "scale": 0.9}, None),
        ({"attn_mask": WINDOW}, torch.zeros(12, 12).masked_fill(~WINDOW, -math.inf)),
        ({"attn_mask": WINDOW[None, None]}, torch.zeros(12, 12).masked_fill(~WINDOW, -math.inf)),
        ({"attn_mask": torch.stack([BIAS, 2 * BIAS, 3 * BIAS, BIAS])[None]}, "by head"),
    ],
    ids=["causal", "scaled", "window", "window with heads", "bias by head"],
)
@pytest.mark.parametrize("groups", [4, 2, 1])
def test_masks_scales_and_shared_keys(settings: dict[str, Any], added: Any, groups: int) -> None:
    generator = torch.Generator().manual_seed(groups)
    query, key = (torch.randn(1, heads, 12, 8, generator=generator) for heads in (4, groups))
    call = {"query": query, "key": key, "enable_gqa": groups < 4, **settings}
    found = measure_degeneracy(attending(call), [ids_of(12)])
    scale = settings.get("scale", 8**-0.5)
    for head in range(4):
        own = settings["attn_mask"][0, head] if isinstance(added, str) else added
        expected = measures(formula(query[0, head], key[0, head * groups // 4], scale, own))
        assert (found.rank[0, head], found.column_share[0, head]) == expected


def test_a_model_in_bfloat16_has_its_bias_in_bfloat16() -> None:
    query = torch.randn(1, 1, 12, 8, generator=torch.Generator().manual_seed(0)).bfloat16()
    bias = BIAS.bfloat16()
    found = measure_degeneracy(attending({"query": query, "key": query, "attn_mask": bias}), [ids_of(12)])
    expected = measures(formula(query[0, 0], query[0, 0], 8**-0.5, bias.double()))
    assert (found.rank[0, 0], found.column_share[0, 0]) == expected


class Giving(nn.Module):
    """A module that gives something beside the hidden state."""

    def __init__(self, given: torch.Tensor) -> None:
        super().__init__()
        self.given = given

    def forward(self, hidden_states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return hidden_states, self.given


class GivenAttention(Attending):
    """A block with a module within that gives something beside the hidden state."""

    def __init__(self, given: torch.Tensor) -> None:
        super().__init__()
        self.inner = Giving(given)

    def forward(self, hidden_states: torch.Tensor, *_: Any, **__: Any) -> Any:
        return self.inner(hidden_states)[0]


@pytest.mark.parametrize("change", [(0, 1, 0.5), (1, 0, -0.5)], ids=["from later tokens", "negative"])
def test_what_only_has_the_shape_of_attention_is_not_taken_for_it(change: tuple[int, int, float]) -> None:
    model = attending()
    matrix = torch.eye(12).expand(1, 3, 12, 12).clone()
    model.model.layers = nn.ModuleList([GivenAttention(matrix)])
    assert measure_degeneracy(model, [ids_of(12)]).rank.tolist() == [[11.0] * 3]
    row, column, value = change
    matrix[0, 2, row, column] = value
    with pytest.raises(Refused, match="no layer forms an attention matrix"):
        measure_degeneracy(model, [ids_of(12)])


def test_a_mean_is_of_what_each_sequence_shows() -> None:
    model = seeded(family("llama"))
    both, *single = (measure_degeneracy(model, batches) for batches in ([TOKENS], [TOKENS[:1]], [TOKENS[1:]]))
    np.testing.assert_array_equal(both.rank, (single[0].rank + single[1].rank) / 2)
    np.testing.assert_allclose(both.column_share, (single[0].column_share + single[1].column_share) / 2)
    assert (single[0].rank != single[1].rank).any()
    assert (both.sequences, both.sequence_length, both.tokens) == (2, LENGTH, 2 * LENGTH)


def test_sequences_are_the_same_however_they_come_in_batches() -> None:
    model = seeded(family("llama"))
    together = measure_degeneracy(model, [TOKENS])
    apart = measure_degeneracy(model, (row[None].numpy() for row in TOKENS))
    np.testing.assert_array_equal(together.rank, apart.rank)


# ---- layers and heads


def test_layers_without_attention_are_marked_and_the_others_shown() -> None:
    model = seeded(family("granitemoehybrid"))
    record = degeneracy_record(measure_degeneracy(model, [TOKENS]), set_name="held-out")
    for measure in ("rank", "column_share"):
        assert [heads is not None for heads in record[measure]] == [False, False, True, False, False, True]
        assert [len(heads) for heads in record[measure] if heads] == [4, 4]


def test_layers_may_have_different_numbers_of_heads() -> None:
    model = attending()
    query = torch.randn(1, 3, LENGTH, 8, generator=torch.Generator().manual_seed(0))
    model.config.num_hidden_layers = 2
    model.model.layers = nn.ModuleList(
        [Attending({"query": query[:, :heads], "key": query[:, :heads], "is_causal": True}) for heads in (3, 2)]
    )
    found = measure_degeneracy(model, [TOKENS])
    assert np.isnan(found.rank).tolist() == [[False, False, False], [False, False, True]]
    record = degeneracy_record(found, set_name="held-out")
    assert [len(heads) for heads in record["rank"]] == [3, 2]


def test_matrices_used_twice_are_measured_once() -> None:
    """DiffLlama mixes two halves of its values by the same matrices."""
    assert measure_degeneracy(seeded(family("diffllama")), [TOKENS]).rank.shape == (6, 4)


def test_attention_outside_the_blocks_is_no_layers() -> None:
    model, query = layered(llama), torch.ones(1, 1, LENGTH, 8)
    model.model.norm = Attending({"query": query, "key": query, "is_causal": True})
    assert measure_degeneracy(model, [TOKENS]).rank.shape == (3, 4)


def test_a_model_without_attention_is_refused() -> None:
    with pytest.raises(Refused, match="no layer forms an attention matrix"):
        measure_degeneracy(seeded(family("mamba")), [TOKENS])


# ---- the untrained network, the record, what is left behind


def test_the_untrained_network_is_the_same_shape_from_a_seeded_init() -> None:
    model = seeded(family("llama")).bfloat16()
    model.config.dtype = torch.bfloat16
    first, again, other = (untrained(model, seed).state_dict() for seed in (0, 0, 1))
    own = model.state_dict()
    assert {name: tensor.shape for name, tensor in first.items()} == {name: x.shape for name, x in own.items()}
    assert {tensor.dtype for tensor in first.values()} == {torch.float32}
    name = "model.layers.0.self_attn.q_proj.weight"
    assert torch.equal(first[name], again[name])
    assert not torch.equal(first[name], other[name])
    assert not torch.equal(first[name], own[name].float())


def test_a_record_is_json() -> None:
    found = measure_degeneracy(seeded(family("jamba")), [TOKENS])
    record = degeneracy_record(found, set_name="held-out", seed=3)
    assert json.loads(json.dumps(record, allow_nan=False)) == record
    ranks, shares = record.pop("rank"), record.pop("column_share")
    assert record == {
        "set": "held-out",
        "sequences": 2,
        "sequence_length": LENGTH,
        "tokens": 2 * LENGTH,
        "seed": 3,
        "held": 0.9,
    }
    assert ranks[1] == found.rank[1].tolist()
    assert shares[1] == pytest.approx(found.column_share[1].tolist(), abs=1e-6)
    assert ranks[0] is None


def test_progress_is_told_after_every_sequence() -> None:
    told: list[tuple[int, int]] = []
    batches = [TOKENS, TOKENS[:1]]
    measure_degeneracy(seeded(family("llama")), batches, progress=lambda done, total: told.append((done, total)))
    assert told == [(1, 3), (2, 3), (3, 3)]


def test_dropout_is_off_whatever_the_models_mode() -> None:
    model = seeded(family("gpt2"))
    expected = measure_degeneracy(model, [TOKENS])
    assert model.config.attn_pdrop > 0
    found = measure_degeneracy(model.train(), [TOKENS])
    np.testing.assert_array_equal(found.rank, expected.rank)
    np.testing.assert_array_equal(found.column_share, expected.column_share)


@pytest.mark.parametrize("failing_call", [None, 1, 2])
def test_the_model_is_left_as_it_was(failing_call: int | None) -> None:
    model, calls = mixed_modes(layered(llama)), itertools.count(1)

    def fail(*_: Any) -> None:
        if next(calls) == failing_call:
            raise KeyboardInterrupt

    model.model.norm.register_forward_hook(fail)
    before = (state(model), str(model.config))
    if failing_call is None:
        measure_degeneracy(model, [TOKENS])
    else:
        with pytest.raises(KeyboardInterrupt):
            measure_degeneracy(model, [TOKENS])
    assert (state(model), str(model.config)) == before


# ---- what is refused


@pytest.mark.parametrize(
    ("batches", "complaint"),
    [
        ([], "no tokens to measure it on"),
        ([TOKENS[:0]], "no tokens to measure it on"),
        ([TOKENS, TOKENS[:, :7]], "sequences of length 7, 24; give them one length"),
        ([TOKENS[:, :1]], "sequences of length 1; give them one length, of 2 tokens or more"),
    ],
)
def test_sequences_that_cannot_be_measured_are_refused(batches: list[torch.Tensor], complaint: str) -> None:
    with pytest.raises(Refused, match=complaint) as error:
        measure_degeneracy(seeded(family("llama")), batches)
    one_line(error)


def test_an_implementation_that_shows_no_matrix_is_refused() -> None:
    config = family("llama").config()
    model = AutoModelForCausalLM.from_config(config, attn_implementation="flex_attention")
    with pytest.raises(Refused, match=r"computed by flex_attention, .* attn_implementation='sdpa'") as error:
        measure_degeneracy(model, [TOKENS])
    one_line(error)


def test_blocks_that_run_twice_are_refused() -> None:
    model = layered(llama)
    model.model.layers[2] = model.model.layers[1]
    with pytest.raises(Refused, match="cannot be told apart"):
        measure_degeneracy(model, [TOKENS])


@pytest.mark.parametrize("name", ["llama", "gemma2", "bloom"])
def test_attention_that_is_not_finite_fails_in_one_line(name: str) -> None:
    model = seeded(family(name))
    blocks: Any = block_list(model)[1]
    with torch.no_grad():
        next(iter(blocks[2].parameters())).fill_(math.nan)
    with pytest.raises(Failed, match="layer 2: its attention is not finite") as error:
        measure_degeneracy(model, [TOKENS])
    one_line(error)
