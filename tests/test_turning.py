"""How far blocks turn the hidden state, against angles worked out by hand, and the layers that this chooses."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import nn
from transformers import PreTrainedModel

from inheritune.errors import Failed, Refused
from inheritune.layerwise import (
    choose,
    first_batches,
    measure_turning,
    most_influential,
    outside_closest_stretch,
)
from inheritune.tokens import Prepared, TokenSet
from layered import FAMILIES, LAYERS, block_influence, held_out, llama, quarter_turn, seeded, steered


@pytest.fixture
def tokens(make_prepared: Callable[..., Prepared]) -> TokenSet:
    return held_out(make_prepared)


@pytest.mark.parametrize(
    ("change", "influence"),
    [
        (lambda x: x, 0.0),
        (lambda x: 4.0 * x, 0.0),
        (quarter_turn, 1.0),
        (lambda x: 3 * quarter_turn(x), 1.0),
        (lambda x: x + quarter_turn(x), 1 - math.sqrt(0.5)),
        (lambda x: -x, 2.0),
        (lambda x: -0.5 * x, 2.0),
        (torch.zeros_like, 1.0),
    ],
)
def test_influence_by_hand(change: Callable[[torch.Tensor], Any], influence: float) -> None:
    """Two layers, of which the first turns by a known angle and the second by none."""
    found = block_influence(steered(change, lambda x: x), [torch.arange(32).reshape(2, 16)], dtype=torch.float32)
    assert found[0] == pytest.approx(influence, abs=1e-6)
    assert found[1] == 0.0


def test_influence_is_the_mean_over_tokens_not_over_batches() -> None:
    def turn_token_0(x: torch.Tensor) -> torch.Tensor:
        """Every position but the first of every sequence is turned."""
        return torch.cat([x[:, :1], quarter_turn(x[:, 1:])], 1)

    ids = torch.arange(48).reshape(3, 16)
    (whole,) = block_influence(steered(turn_token_0), [ids], dtype=torch.float32)
    assert whole == pytest.approx(15 / 16, abs=1e-6)
    uneven = [ids[:1], ids[1:].flatten()[:4].reshape(2, 2)]  # 16 tokens with 15 turned, 4 with 2
    (mean,) = block_influence(steered(turn_token_0), uneven, dtype=torch.float32)
    assert mean == pytest.approx(17 / 20, abs=1e-6)


def test_two_zero_vectors_have_the_same_direction() -> None:
    found = block_influence(steered(torch.zeros_like, lambda x: x), [torch.arange(16)[None]], dtype=torch.float32)
    assert found == (1.0, 0.0)


def test_a_block_whose_output_projections_are_zero_has_no_influence(tokens: TokenSet) -> None:
    model = seeded(llama)
    block = model.model.layers[1]
    nn.init.zeros_(block.self_attn.o_proj.weight)
    nn.init.zeros_(block.mlp.down_proj.weight)
    found = block_influence(model, [tokens.read(0, 64).reshape(4, 16)], dtype=torch.float32)
    assert found[1] == 0.0
    assert min(found[0], found[2]) > 0.01


@pytest.mark.parametrize("family", FAMILIES)
def test_influence_is_one_minus_the_cosine_of_the_hidden_states(
    family: Callable[[int], PreTrainedModel], tokens: TokenSet
) -> None:
    model = seeded(family)
    ids = torch.from_numpy(tokens.read(0, 64).reshape(4, 16))
    found = block_influence(model, [ids[:3], ids[3:]], dtype=torch.float32)
    with torch.inference_mode():
        states = model(input_ids=ids, use_cache=False, output_hidden_states=True).hidden_states
    # the last of them is taken after the final norm, where there is one
    hidden = [state.double() for state in states[:-1]]
    for index in range(LAYERS - 1):
        cosine = nn.functional.cosine_similarity(hidden[index], hidden[index + 1], dim=-1)
        assert found[index] == pytest.approx(float((1 - cosine).mean()), rel=1e-5)


def test_small_angles_keep_their_digits_in_bfloat16() -> None:
    """The angle is 2^-6, which bfloat16 resolves; a cosine in bfloat16 would be 1."""
    model = steered(lambda x: x + quarter_turn(x) * 2**-6)
    for parameter in model.parameters():
        parameter.data = parameter.data.sign().bfloat16()
    (found,) = block_influence(model, [torch.arange(16)[None]], dtype=torch.float32)
    assert found == pytest.approx(1 - 1 / math.sqrt(1 + 2**-12), rel=1e-3)


def test_influence_of_nothing_is_refused() -> None:
    for batches in ([], [torch.zeros(2, 0, dtype=torch.int64)][:0]):
        with pytest.raises(Refused, match="no tokens"):
            block_influence(seeded(llama), batches, dtype=torch.float32)


def test_influence_of_a_model_that_overflows_fails() -> None:
    with pytest.raises(Failed, match="not finite"):
        block_influence(steered(lambda x: x / 0), [torch.arange(16)[None]], dtype=torch.float32)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda x: x.repeat(2, 1, 1), r"block 1 takes \(1, 16, 32\) and gives \(2, 16, 32\): how far it turns"),
        (lambda x: {"hidden": x}, "a block takes or gives no hidden state: how far it turns"),
    ],
)
def test_a_block_that_gives_no_hidden_state_of_its_inputs_shape_is_refused(
    change: Callable[[torch.Tensor], Any], reason: str
) -> None:
    model = steered(lambda x: x, change)
    with pytest.raises(Refused, match=reason):
        block_influence(model, [torch.arange(16)[None]], dtype=torch.float32)


@pytest.mark.parametrize(
    ("count", "indices"), [(1, (2,)), (2, (0, 2)), (3, (0, 2, 3)), (4, (0, 1, 2, 3)), (5, (0, 1, 2, 3, 4))]
)
def test_the_most_influential_are_ascending_and_ties_go_to_the_lower(count: int, indices: tuple[int, ...]) -> None:
    assert most_influential((0.5, 0.2, 0.9, 0.5, 0.2), count) == indices


@pytest.mark.parametrize("count", [0, -1, 6])
def test_more_layers_than_there_are_cannot_be_chosen(count: int) -> None:
    with pytest.raises(Refused, match=f"influence:{count}: the reference has 5 layers"):
        most_influential((0.5, 0.2, 0.9, 0.5, 0.2), count)


@pytest.mark.parametrize(
    ("sequence_length", "most_tokens", "shapes"),
    [
        (16, 1000, [(2, 16), (2, 16)]),  # 71 tokens: the tail fills no sequence
        (16, 50, [(2, 16), (1, 16)]),
        (16, 1, [(1, 16)]),
        (100, 1000, [(1, 71)]),
    ],
)
def test_influence_reads_the_beginning_of_a_set_in_order(
    sequence_length: int, most_tokens: int, shapes: list[tuple[int, int]], tokens: TokenSet
) -> None:
    batches = list(first_batches(tokens, sequence_length=sequence_length, batch_sequences=2, most_tokens=most_tokens))
    assert [batch.shape for batch in batches] == shapes
    read = np.concatenate([batch.flatten() for batch in batches])
    np.testing.assert_array_equal(read, tokens.read(0, len(read)))


# ---- stretches


def eighth_turn(x: torch.Tensor) -> torch.Tensor:
    """Every pair of neighbours turned by 45 degrees, and longer than it was."""
    return 3 * (x + quarter_turn(x))


IDS = torch.arange(32).reshape(2, 16)


def test_distances_by_hand() -> None:
    """Blocks that turn by 90, 45, 0 and 90 degrees in the same planes: the angles add up, and more than 180 go back."""
    turning = measure_turning(
        steered(quarter_turn, eighth_turn, lambda x: 2 * x, quarter_turn), [IDS], dtype=torch.float32
    )
    expected = [
        [0.00, 0.50, 0.75, 0.75, 0.75],
        [0.50, 0.00, 0.25, 0.25, 0.75],
        [0.75, 0.25, 0.00, 0.00, 0.50],
        [0.75, 0.25, 0.00, 0.00, 0.50],
        [0.75, 0.75, 0.50, 0.50, 0.00],
    ]
    np.testing.assert_allclose(turning.distances, expected, atol=1e-7)
    assert turning.distances[2, 3] == 0.0
    assert [len(row) for row in turning.stretches()] == [4, 3, 2, 1]
    assert turning.stretches()[1] == pytest.approx([0.75, 0.25, 0.5], abs=1e-7)
    assert turning.tokens == 32


def test_a_stretch_is_its_ends_not_the_sum_of_its_blocks() -> None:
    """Two blocks that undo each other go before one that turns by less than either of them."""
    there_and_back = [quarter_turn, lambda x: -quarter_turn(x)]
    turning = measure_turning(steered(eighth_turn, *there_and_back, eighth_turn), [IDS], dtype=torch.float32)
    assert choose(turning, "angular", 2) == (0, 3)
    assert choose(turning, "angular", 3) == (0, 1, 2)  # 45 degrees, as the first: of equals the last goes
    assert choose(turning, "influence", 2) == (1, 2)


def test_distances_are_means_over_tokens_of_all_batches() -> None:
    def turn_later(x: torch.Tensor) -> torch.Tensor:
        """Every position but the first of every sequence is turned."""
        return torch.cat([x[:, :1], quarter_turn(x[:, 1:])], 1)

    uneven = [
        IDS[:1],
        torch.empty(0, 4, dtype=torch.int64),
        IDS[1:, :4].reshape(2, 2),
    ]  # 16 tokens with 15 turned, 4 with 2
    turning = measure_turning(steered(turn_later), uneven, dtype=torch.float32)
    assert turning.distances[0, 1] == pytest.approx(17 / 20 / 2, abs=1e-7)
    assert turning.influence == pytest.approx((17 / 20,), abs=1e-6)
    assert turning.tokens == 20


def test_however_tokens_are_cut_into_chunks(monkeypatch: pytest.MonkeyPatch, tokens: TokenSet) -> None:
    model, batch = seeded(llama), tokens.read(0, 64).reshape(4, 16)
    whole = measure_turning(model, [batch], dtype=torch.float32)
    monkeypatch.setattr("inheritune.layerwise.turning._CHUNK_NUMBERS", 7 * 4 * 32)  # 7 tokens of 4 states of 32
    np.testing.assert_allclose(
        measure_turning(model, [batch], dtype=torch.float32).distances, whole.distances, atol=1e-7
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_distances_are_the_angles_between_hidden_states(
    family: Callable[[int], PreTrainedModel], tokens: TokenSet
) -> None:
    model = seeded(family)
    ids = torch.from_numpy(tokens.read(0, 64).reshape(4, 16))
    found = measure_turning(model, [ids[:3], ids[3:]], dtype=torch.float32).distances
    with torch.inference_mode():
        states = model(input_ids=ids, use_cache=False, output_hidden_states=True).hidden_states
    # the last of them is taken after the final norm, where there is one
    hidden = [state.double() for state in states[:-1]]
    assert len(found) == LAYERS + 1
    for a, one in enumerate(hidden):
        for b, other in enumerate(hidden):
            angle = nn.functional.cosine_similarity(one, other, dim=-1).clamp(-1, 1).acos() / math.pi
            assert found[a, b] == pytest.approx(float(angle.mean()), abs=1e-6)


def test_zero_vectors_are_at_right_angles_to_all_but_each_other() -> None:
    turning = measure_turning(steered(torch.zeros_like, lambda x: x), [IDS], dtype=torch.float32)
    np.testing.assert_array_equal(turning.distances, [[0, 0.5, 0.5], [0.5, 0, 0], [0.5, 0, 0]])


def test_the_head_is_not_applied(tokens: TokenSet) -> None:
    """With a large vocabulary it would be a good part of the pass, and its scores most of its memory."""
    model = seeded(llama)
    model.lm_head.register_forward_hook(lambda *_: 1 // 0)
    assert measure_turning(model, [tokens.read(0, 16)[None]], dtype=torch.float32).tokens == 16


TABLES = st.integers(1, 9).flatmap(
    lambda blocks: st.tuples(
        st.lists(st.floats(0, 1), min_size=(blocks + 1) ** 2, max_size=(blocks + 1) ** 2).map(
            lambda values: np.array(values).reshape(blocks + 1, blocks + 1)
        ),
        st.integers(1, blocks),
    )
)
"""Distances, of which the upper half counts, and how many blocks are kept."""


@settings(deadline=None)
@given(TABLES)
def test_what_is_dropped_is_the_closest_of_all_stretches(table: tuple[Any, int]) -> None:
    upper, count = np.triu(table[0], 1), table[1]
    distances, blocks = upper + upper.T, len(upper) - 1
    kept = outside_closest_stretch(distances, count)
    assert len(kept) == count
    assert list(kept) == sorted(set(kept))
    dropped = sorted(set(range(blocks)) - set(kept))
    if not dropped:
        return
    assert dropped == list(range(dropped[0], dropped[-1] + 1))
    candidates = [distances[start, start + len(dropped)] for start in range(count + 1)]
    assert distances[dropped[0], dropped[-1] + 1] == min(candidates)
    assert min(candidates) not in candidates[dropped[0] + 1 :]


@pytest.mark.parametrize("count", [0, -1, 5])
def test_a_stretch_leaves_at_least_one_layer(count: int) -> None:
    with pytest.raises(Refused, match=f"angular:{count}: the reference has 4 layers; ask for 1 to 4"):
        outside_closest_stretch(np.zeros((5, 5)), count)


def test_of_layers_that_all_do_nothing_the_first_stay() -> None:
    turning = measure_turning(steered(*[lambda x: x] * 5), [IDS], dtype=torch.float32)
    assert [choose(turning, measure, 2) for measure in ("influence", "angular")] == [(0, 1), (0, 1)]


def test_the_same_distances_as_short_transformers(tokens: TokenSet) -> None:
    """An independent program, on the same tokens. Its table has a row for stretches of 1, 2, … blocks, as ours has.

    Its own choice of a start reads the row after the one it wants (version 1.0.0: `result[block_size]`, where a stretch
    of 1 stands in row 0), so it takes the start of the closest stretch of one block more than it drops.
    """
    package, dist, utils = (pytest.importorskip(f"short_transformers{name}") for name in ("", ".dist", ".utils"))
    model = seeded(llama, 6)
    ids = torch.from_numpy(tokens.read(0, 64).reshape(4, 16))
    found = measure_turning(model, [ids], dtype=torch.float32)
    other = package.ShortTransformer.from_model(model, distance=dist.angular_distance_all_tokens)
    with torch.inference_mode():
        for sequence in ids:  # it reads one sequence at a time
            other(sequence[None], use_cache=False)
    table = other.memory.result
    for blocks, row in enumerate(found.stretches(), 1):
        np.testing.assert_allclose(row, table[blocks - 1, : len(row)], atol=1e-5)
        closest = int(np.argmin(table[blocks - 1, : len(row)]))
        if blocks < 6:
            dropped = set(range(6)) - set(choose(found, "angular", 6 - blocks))
            assert dropped == set(range(closest, closest + blocks))
        if blocks > 1:
            assert utils.get_best_pruning_start(table, blocks - 1) == closest
