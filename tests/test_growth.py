"""The loop over rounds: which come, which are not repeated, where it ends."""

from __future__ import annotations

from collections.abc import Set as AbstractSet
from typing import Any

import pytest
from hypothesis import given, strategies as st

from inheritune.config import GrowConfig
from inheritune.errors import Refused
from inheritune.growth import Growth, Next, grow, planned_depths

Record = dict[str, Any]


@pytest.mark.parametrize(
    ("settings", "total", "depths"),
    [
        ({}, 12, (6, 8, 10, 12)),
        ({}, 7, (3, 5, 7)),
        ({"start": 12, "step": 2}, 24, (12, 14, 16, 18, 20, 22, 24)),
        ({"start": 2, "step": 3, "most": 6}, 8, (2, 5)),
        ({"start": 8}, 8, (8,)),
        ({"start": 1, "step": 100}, 8, (1,)),
    ],
)
def test_planned_depths(settings: dict[str, Any], total: int, depths: tuple[int, ...]) -> None:
    assert planned_depths(GrowConfig(**settings), total) == depths


@pytest.mark.parametrize(
    ("settings", "total", "said"),
    [
        ({"start": 9}, 8, "grow.start: 9 is not possible, the reference has 8 layers; give 1 to 8"),
        ({}, 1, "grow.start: 0"),
        ({"start": 4, "most": 3}, 8, "grow.most: 3 is not possible, the first round has 4 layers"),
        ({"most": 9}, 8, "grow.most: 9"),
        ({"start": 2}, 1, "the reference has 1 layer; give 1 to 1"),
        ({"start": 1, "most": 9}, 8, "the first round has 1 layer and the reference 8"),
    ],
)
def test_impossible_depths(settings: dict[str, Any], total: int, said: str) -> None:
    with pytest.raises(Refused, match=said):
        planned_depths(GrowConfig(**settings), total)


class World:
    """Trainings whose outcome is known: of each depth the loss, and the seeds with which it matches."""

    def __init__(self, matching: dict[int, set[int]], abandoned: AbstractSet[int] = frozenset()) -> None:
        self.matching = matching
        self.abandoned = abandoned
        self.played: list[tuple[int, int]] = []

    def play(self, coming: Next) -> Record:
        self.played.append((coming.layers, coming.seed))
        record: Record = {"round": coming.round, "layers": coming.layers, "seed": coming.seed}
        if coming.layers in self.abandoned:
            return record | {"state": "abandoned", "verdict": None}
        matched = coming.seed in self.matching.get(coming.layers, set())
        loss = 3.0 + 1 / coming.layers
        return record | {"state": "finished", "verdict": {"matched": matched}, "validation_loss": loss}


def test_it_ends_at_the_first_match() -> None:
    world = World({4: {0}, 6: {0}})
    grown = grow((2, 4, 6), 1, [], world.play)
    assert world.played == [(2, 0), (4, 0)]
    assert grown.matched is not None
    assert grown.matched["layers"] == 4
    assert grown.best == grown.matched


def test_without_a_match_the_best_is_the_lowest_loss() -> None:
    world = World({}, abandoned={6})
    grown = grow((2, 4, 6), 1, [], world.play)
    assert world.played == [(2, 0), (4, 0), (6, 0)]
    assert grown.matched is None
    assert grown.best is not None
    assert grown.best["layers"] == 4
    assert Growth().best is None
    assert grow((2,), 1, [], World({}, abandoned={2}).play).best is None


def test_a_match_is_repeated_with_every_seed() -> None:
    world = World({2: {0, 1}, 4: {0, 1, 2}})
    grown = grow((2, 4, 6), 3, [], world.play)
    assert world.played == [(2, 0), (2, 1), (2, 2), (4, 0), (4, 1), (4, 2)]
    assert grown.matched is not None
    assert (grown.matched["layers"], grown.matched["seed"]) == (4, 0)


@given(
    st.dictionaries(st.sampled_from([2, 4, 6, 8]), st.sets(st.integers(0, 2))),
    st.sets(st.sampled_from([2, 4, 6])),
    st.integers(1, 3),
    st.integers(0, 12),
)
def test_stopped_anywhere_it_goes_on_and_repeats_nothing(
    matching: dict[int, set[int]], abandoned: set[int], seeds: int, stop: int
) -> None:
    depths = (2, 4, 6, 8)
    straight = World(matching, abandoned)
    whole = grow(depths, seeds, [], straight.play)
    later = World(matching, abandoned)
    resumed = grow(depths, seeds, whole.records[:stop], later.play)
    assert resumed == whole
    assert later.played == straight.played[stop:]
