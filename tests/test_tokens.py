"""Blocks: every one once a pass, the same for the same step, neighbours sharing a token."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, strategies as st

from inheritune.errors import Failed, Refused
from inheritune.tokens import TokenSet, TrainingBlocks, open_prepared, pass_order, whole_set, whole_set_positions


def token_set(directory: Path, shards: list[list[list[int]]], token_bytes: int = 2) -> TokenSet:
    """Write shards of documents in datatrove's layout and open them."""
    directory.mkdir(parents=True, exist_ok=True)
    files = []
    for number, documents in enumerate(shards):
        name = f"{number:05d}.ds"
        tokens = np.array([token for document in documents for token in document], f"<u{token_bytes}")
        tokens.tofile(directory / name)
        np.cumsum([len(document) for document in documents]).astype("<u8").tofile(directory / f"{name}.index")
        np.array([2 * len(document) for document in documents], "<u8").tofile(directory / f"{name}.bytes")
        files.append({"name": name, "tokens": len(tokens), "documents": len(documents)})
    return TokenSet(directory, files, token_bytes)


def test_reading_across_shards(tmp_path: Path) -> None:
    tokens = token_set(tmp_path, [[[1, 2, 3], [4]], [[5, 6]], [[7, 70000 % 65536, 9]]])
    assert tokens.tokens == 9
    assert tokens.read(0, 9).tolist() == [1, 2, 3, 4, 5, 6, 7, 4464, 9]
    assert tokens.read(2, 6).tolist() == [3, 4, 5, 6]
    assert tokens.read(6, 7).tolist() == [7]
    assert tokens.document_ends.tolist() == [3, 4, 6, 9]
    assert tokens.document_bytes.tolist() == [6, 2, 4, 6]


def test_wide_tokens(tmp_path: Path) -> None:
    assert token_set(tmp_path, [[[70000, 3]]], token_bytes=4).read(0, 2).tolist() == [70000, 3]


def test_a_shard_of_another_length_is_refused(tmp_path: Path) -> None:
    token_set(tmp_path, [[[1, 2, 3]]])
    with (tmp_path / "00000.ds").open("ab") as file:
        file.write(b"xx")
    with pytest.raises(Failed, match="prepare the data again"):
        TokenSet(tmp_path, [{"name": "00000.ds", "tokens": 3, "documents": 1}], 2)


def test_reading_ends_where_the_stream_does(tmp_path: Path) -> None:
    assert token_set(tmp_path, [[[1, 2]], [[3]]]).read(1, 64).tolist() == [2, 3]


@pytest.mark.parametrize("ending", [".index", ".bytes"])
def test_a_cut_list_of_documents_is_refused(ending: str, tmp_path: Path) -> None:
    token_set(tmp_path, [[[1, 2, 3], [4, 5]]])
    file = tmp_path / f"00000.ds{ending}"
    file.write_bytes(file.read_bytes()[:-8])
    with pytest.raises(Failed, match="not the 16 bytes"):
        TokenSet(tmp_path, [{"name": "00000.ds", "tokens": 5, "documents": 2}], 2)


@given(st.integers(1, 400), st.integers(0, 2**63), st.integers(0, 50))
def test_a_pass_is_a_permutation(blocks: int, seed: int, pass_index: int) -> None:
    assert sorted(pass_order(blocks, seed, pass_index).tolist()) == list(range(blocks))


def test_passes_and_seeds_differ_and_orders_do_not_change_between_releases() -> None:
    orders = {tuple(pass_order(50, seed, index).tolist()) for seed in range(3) for index in range(3)}
    assert len(orders) == 9
    # Written down once: a resumed run depends on it.
    digest = hashlib.sha256(pass_order(1000, 7, 3).astype("<i8").tobytes()).hexdigest()
    assert digest[:16] == "5e97788ef2a49041"


@pytest.mark.parametrize(("passes", "batch"), [(1, 4), (3, 4), (3, 7), (2, 100)])
def test_every_block_comes_once_a_pass_and_the_tail_is_counted(tmp_path: Path, passes: int, batch: int) -> None:
    length = 5
    tokens = token_set(tmp_path, [[list(range(60))], [list(range(60, 64))]])
    blocks = TrainingBlocks(tokens, length, passes, batch, seed=1)
    assert blocks.blocks == 12
    assert blocks.tail_tokens == 64 - 1 - 60
    seen = [index for step in range(blocks.steps) for index in blocks.indices(step)]
    assert len(seen) == passes * 12
    for number in range(passes):
        assert sorted(seen[number * 12 : number * 12 + 12]) == list(range(12))
    inputs, labels = blocks.rows(blocks.indices(0))
    for row, index in enumerate(blocks.indices(0)):
        assert inputs[row].tolist() == list(range(index * length, index * length + length))
        assert labels[row].tolist() == list(range(index * length + 1, index * length + length + 1))


@pytest.mark.parametrize("count", [1, 4, 5, 6, 11])
def test_a_whole_set_has_every_token_as_a_label_once(tmp_path: Path, count: int) -> None:
    tokens = token_set(tmp_path, [[list(range(1, count + 1))]])
    inputs, labels = whole_set(tokens, 5, context_token=0, ignored_label=-100)
    assert inputs.shape == labels.shape
    counted = labels.flatten() != -100
    assert labels.flatten()[counted].tolist() == list(range(1, count + 1))
    assert inputs.flatten()[counted].tolist() == list(range(count))


def test_an_unfinished_preparation_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Refused, match=r"no manifest\.json"):
        open_prepared(tmp_path)


END = 99  # end-of-text
SHARDS = st.lists(st.lists(st.integers(0, 9).map(lambda size: [*range(1, size + 1), END]), min_size=1), min_size=1)


def walked(ids: list[int]) -> list[int]:
    """Places in documents as one reads them: end-of-text begins a document, and so does the sequence."""
    places: list[int] = []
    for token in ids:
        places.append(0 if token == END or not places else places[-1] + 1)
    return places


def test_places_in_documents(tmp_path: Path) -> None:
    tokens = token_set(tmp_path, [[[1, 2, END], [END]], [[5, 6, END], [7, 8, END]]])
    assert tokens.read(0, 10).tolist() == [1, 2, END, END, 5, 6, END, 7, 8, END]
    assert tokens.positions(0, 9).tolist() == [0, 1, 0, 0, 1, 2, 0, 1, 2]
    assert tokens.positions(1, 3).tolist() == [0, 0]
    assert tokens.positions(4, 6).tolist() == [0, 1]  # begins within a document
    assert tokens.positions(5, 9).tolist() == [0, 0, 1, 2]
    assert tokens.positions(0, 9).dtype == np.int64


@given(shards=SHARDS, length=st.integers(1, 12))
def test_places_in_documents_are_those_that_one_reads(
    shards: list[list[list[int]]], length: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    tokens = token_set(tmp_path_factory.mktemp("set"), shards)
    blocks = TrainingBlocks(tokens, length, 1, 4, seed=1)
    for index in range(blocks.blocks):
        inputs, _ = blocks.rows([index])
        assert blocks.rows_apart([index], 99)[2].tolist() == [walked(inputs[0].tolist())]
    inputs, labels = whole_set(tokens, length, END, -100)
    places = whole_set_positions(tokens, length)
    assert places.shape == inputs.shape
    for row, counted, found in zip(inputs.tolist(), (labels != -100).tolist(), places.tolist(), strict=True):
        assert found[: sum(counted)] == walked(row)[: sum(counted)]
        assert all(place >= 0 for place in found)


def test_places_of_blocks_come_in_their_order(tmp_path: Path) -> None:
    tokens = token_set(tmp_path, [[[1, 2, 3, 4, END], [6, 7, END], [9, END]]])
    blocks = TrainingBlocks(tokens, 3, 1, 4, seed=1)
    assert blocks.rows([2, 0, 1])[0].tolist() == [[7, END, 9], [1, 2, 3], [4, END, 6]]
    assert blocks.rows_apart([2, 0, 1], 99)[2].tolist() == [[0, 0, 1], [0, 1, 2], [0, 0, 1]]
    # a set is read from the token before its first: as that of the stream, but one later
    assert whole_set(tokens, 4, END, -100)[0].tolist() == [[END, 1, 2, 3], [4, END, 6, 7], [END, 9, END, END]]
    assert whole_set_positions(tokens, 4)[:, :2].tolist() == [[0, 1], [0, 0], [0, 1]]
    assert whole_set_positions(tokens, 4)[:2].tolist() == [[0, 1, 2, 3], [0, 0, 1, 2]]


@pytest.mark.parametrize(
    ("sequences", "ranks", "sizes"),
    [
        (3, 1, [[3, 3, 3, 1]]),
        (10, 1, [[10]]),
        (64, 1, [[10]]),
        (1, 2, [[1] * 5, [1] * 5]),
        (4, 2, [[4, 2], [4, 0]]),
        (3, 3, [[3, 1], [3, 0], [3, 0]]),
        (5, 4, [[5], [5], [0], [0]]),
    ],
)
def test_a_step_is_dealt_to_the_ranks(tmp_path: Path, sequences: int, ranks: int, sizes: list[list[int]]) -> None:
    blocks = TrainingBlocks(token_set(tmp_path, [[list(range(64))]]), 3, 2, 10, seed=1)
    parts = [blocks.micro_batches(1, sequences, rank, ranks) for rank in range(ranks)]
    assert [[len(part) for part in of_rank] for of_rank in parts] == sizes
    dealt = [block for turn in zip(*parts, strict=True) for part in turn for block in part]
    assert dealt == blocks.indices(1)


def test_the_last_step_is_dealt_as_far_as_it_goes(tmp_path: Path) -> None:
    blocks = TrainingBlocks(token_set(tmp_path, [[list(range(64))]]), 3, 1, 10, seed=1)  # 21 blocks
    last = blocks.indices(2)
    assert len(last) == 1
    assert [blocks.micro_batches(2, 2, rank, 2) for rank in range(2)] == [[last], [[]]]


def test_a_document_cut_short_is_no_context_for_the_next(tmp_path: Path) -> None:
    end = 99
    tokens = token_set(tmp_path, [[[1, 2, end], [3, 4], [5, 6, end]]])  # the second was cut: it lacks its end
    blocks = TrainingBlocks(tokens, 7, passes=1, batch_sequences=1, seed=0)
    inputs, labels, places = blocks.rows_apart([0], end)
    assert inputs.tolist() == [[1, 2, end, 3, end, 5, 6]]
    assert labels.tolist() == [[2, end, 3, 4, 5, 6, end]]
    assert places.tolist() == [[0, 1, 0, 1, 0, 1, 2]]
    inputs, labels = whole_set(tokens, 8, end, -100, apart=True)
    assert inputs.tolist() == [[end, 1, 2, end, 3, end, 5, 6]]
    assert labels.tolist() == [[1, 2, end, 3, 4, 5, 6, end]]
    assert whole_set_positions(tokens, 8).tolist() == [[0, 1, 2, 0, 1, 0, 1, 2]]
    assert whole_set(tokens, 8, end, -100)[0].tolist() == [[end, 1, 2, end, 3, 4, 5, 6]]


def test_documents_that_stand_in_both_sets_are_counted(tmp_path: Path) -> None:
    long = [list(range(first, first + 20)) for first in range(0, 100, 20)]
    train = token_set(tmp_path / "train", [[*long[:3], [1, 2, 3], [*long[3], 7, 7]]])
    held_out = [
        long[0],  # the same
        long[1][:12],  # the beginning of one, cut
        [*long[2], 5],  # longer than its like
        [*long[3][:12], 9],  # another after the first tokens
        long[4],  # not there
        [1, 2, 3],  # too short to tell
    ]
    other = token_set(tmp_path / "held-out", [held_out])
    assert other.shared_documents(train) == 2
    assert train.shared_documents(train) == 4
    assert other.shared_documents(other) == 5


def test_shared_documents_are_found_across_shards(tmp_path: Path) -> None:
    made = np.random.default_rng(0)
    documents = [made.integers(0, 300, size).tolist() for size in made.integers(8, 40, 50)]
    train = token_set(tmp_path / "train", [documents[:20], documents[20:]])
    assert train.shared_documents(train) == 50
    assert len(set(train.beginnings(8).tolist())) == 50
    assert (train.beginnings(30) == 0).tolist() == [len(one) < 30 for one in documents]
