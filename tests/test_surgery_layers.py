"""Words for layers: every form, every refusal."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings, strategies as st

from inheritune.errors import Refused
from inheritune.surgery import is_probe, kept, measured, parse_layers, spelled
from tiny import one_line

CHOSEN = st.integers(2, 200).flatmap(
    lambda total: st.tuples(st.just(total), st.sets(st.integers(0, total - 1), min_size=1).map(sorted))
)
"""How many layers there are, and which of them."""


@pytest.mark.parametrize(
    ("word", "total", "indices"),
    [
        (3, 5, (0, 1, 2)),
        (1, 1, (0,)),
        ("3", 5, (0, 1, 2)),
        (" 5 ", 5, (0, 1, 2, 3, 4)),
        ("half", 5, (0, 1)),
        ("half", 4, (0, 1)),
        ("first:3", 5, (0, 1, 2)),
        ("last:2", 5, (3, 4)),
        ("last:5", 5, (0, 1, 2, 3, 4)),
        ("every:1", 3, (0, 1, 2)),
        ("every:2", 5, (0, 2, 4)),
        ("every:2", 6, (0, 2, 4)),
        ("every:5", 5, (0,)),
        ("1-3", 5, (1, 2, 3)),
        ("4-4", 5, (4,)),
        ("1,3", 5, (1, 3)),
        ("0-2,4", 5, (0, 1, 2, 4)),
        ("first:2+last:1", 5, (0, 1, 4)),
        ("half+last:1", 5, (0, 1, 4)),
        ("2+last:1", 5, (0, 1, 4)),
        ("1-2+4-4", 5, (1, 2, 4)),
        ("first:1 + 2, 3 + last:1", 5, (0, 2, 3, 4)),
        ("first:12+last:1", 26, (*range(12), 25)),
        ("0-11,25", 26, (*range(12), 25)),
    ],
)
def test_a_word_means_these_layers(word: int | str, total: int, indices: tuple[int, ...]) -> None:
    assert parse_layers(word, total) == indices


@pytest.mark.parametrize(
    "word",
    [
        *(0, 6, -1, "0", "6", "-1", "", "three", "2.0", 2.5, "1e0", "0x2", "²", "٣", "9" * 5000, True, None),
        *("first:0", "first:6", "first:", "first:x", "first:-1", "first:1,2", "first", "first:half", "first:1:2"),
        *("last:0", "last:6", "last:", "every:0", "every:6", "every:", "half:1", ":3", "quarter", "Half"),
        *("+", "3+", "+3", "3++last:1", "first:1+", "1-", "-3", "1--2", "1,", ",1", "1,,2", "1;2", "[1, 2]"),
        *("influence:0", "influence:6", "influence:", "influence:x", "influence:2+last:1", "last:1+influence:2"),
        *(
            "angular:0",
            "angular:6",
            "angular:",
            "angular:x",
            "angular:-1",
            "angular:2+last:1",
            "last:1+angular:2",
            "angular",
        ),
    ],
)
def test_what_is_no_such_word_is_refused(word: Any) -> None:
    with pytest.raises(Refused) as error:
        parse_layers(word, 5)
    text = one_line(error)
    assert text.startswith("layers: ")
    assert "the reference has 5 layers; give a number from 1 to 5, or half (2), or a form such as 13 (" in text


@pytest.mark.parametrize(
    ("word", "complaint"),
    [
        ("0,5", "'0,5' is not possible: the reference has layers 0 to 4"),
        ("1 3", "'1 3' is not possible: put a comma between layers"),
        ("first:1 2", "put a comma between layers"),
        ("5-6", "the reference has layers 0 to 4"),
        ("0-9999999", "the reference has layers 0 to 4"),
        ("3-1", "3-1 holds no layer; both ends are included"),
        ("1,1", "'1,1' keeps layer 1 twice; name each layer once"),
        ("0-2,1", "keeps layer 1 twice"),
        ("0-2,0-2", "keeps layer 0 twice"),
        ("first:3+every:2", "keeps layer 0 twice"),
        ("half+1-2", "keeps layer 1 twice"),
        ("3,1", "'3,1' names layer 1 after layer 3; name them in ascending order"),
        ("last:1+first:1", "names layer 0 after layer 4"),
        ("2,4,3", "names layer 3 after layer 4"),
    ],
)
def test_layers_out_of_place_are_named(word: str, complaint: str) -> None:
    with pytest.raises(Refused) as error:
        parse_layers(word, 5)
    assert complaint in one_line(error)


def test_first_and_last_layers_that_overlap_are_refused() -> None:
    with pytest.raises(Refused, match=r"'first:20\+last:15' keeps layer 15 twice; name each layer once"):
        parse_layers("first:20+last:15", 30)
    assert parse_layers("first:15+last:15", 30) == tuple(range(30))


def test_half_of_one_layer_is_refused() -> None:
    with pytest.raises(Refused, match="from 1 to 1, or a form"):
        parse_layers("half", 1)


@pytest.mark.parametrize(
    ("word", "measure", "count"),
    [
        ("influence:3", "influence", 3),
        ("influence: 5", "influence", 5),
        (" angular:1 ", "angular", 1),
        ("angular:5", "angular", 5),
    ],
)
def test_what_is_measured_waits_for_tokens(word: str, measure: str, count: int) -> None:
    assert parse_layers(word, 5) is None
    assert measured(word, 5) == (measure, count)


@pytest.mark.parametrize("word", ["probe:3", " probe :3", "probe: 90M"])
def test_what_is_probed_is_known_by_its_word(word: str) -> None:
    assert is_probe(word)
    assert parse_layers(word, 5) is None


@pytest.mark.parametrize(
    ("indices", "words"),
    [
        ((), ""),
        ((4,), "4"),
        ((0, 1), "0, 1"),
        ((0, 1, 2, 3), "0 to 3"),
        ((*range(12), 25), "0 to 11, 25"),
        ((0, 2, 3, 4, 9), "0, 2 to 4, 9"),
        ((0, 1, 0, 1), "0, 1, 0, 1"),
        ((0, 1, 2, 0, 1, 2), "0 to 2, 0 to 2"),
    ],
)
def test_layers_are_spelled(indices: tuple[int, ...], words: str) -> None:
    assert spelled(indices) == words


@settings(deadline=None)
@given(CHOSEN)
def test_spelled_layers_mean_themselves(chosen: tuple[int, list[int]]) -> None:
    total, indices = chosen
    word = spelled(tuple(indices)).replace(" to ", "-")
    if len(indices) == 1:
        word = f"{word}-{word}"  # a number alone is how many of the first
    assert parse_layers(word, total) == tuple(indices)


@settings(deadline=None)
@given(CHOSEN)
def test_layers_named_one_by_one_mean_themselves(chosen: tuple[int, list[int]]) -> None:
    total, indices = chosen
    assert parse_layers("+".join(f"{index}-{index}" for index in indices), total) == tuple(indices)


@settings(deadline=None)
@given(st.text(alphabet="0123456789-,+: firstlaevyhn", max_size=20) | st.text(), st.integers(1, 99))
def test_any_text_is_layers_in_order_or_refused(text: str, total: int) -> None:
    indices, refused = None, ""
    try:
        indices = parse_layers(text, total)
    except Refused as error:
        refused = str(error)
    assert refused.startswith("layers: ") == (refused != "")
    assert "\n" not in refused
    assert indices is None or (list(indices) == sorted(set(indices)) and set(indices) <= set(range(total)))
    assert indices != ()


@pytest.mark.parametrize(
    ("chosen", "taken"),
    [
        ((4,), (4,)),
        ((0, 1), (0, 0)),
        ((0, 1, 2), (0, 1, 0)),
        ((0, 1, 2, 3), (0, 1, 0, 1)),
        ((0, 2, 5, 6, 7), (0, 2, 5, 0, 2)),
    ],
)
def test_a_stack_is_the_first_half_repeated(chosen: tuple[int, ...], taken: tuple[int, ...]) -> None:
    assert kept(chosen, "stack") == taken
    assert kept(chosen, "inherit") == chosen
    assert kept(chosen, "attention+mlp") == chosen
