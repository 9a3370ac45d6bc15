"""Bytes that a backward needs, counted by hand; micro-batches that fit, and what training makes of them."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st

from inheritune import micro_batch, training
from inheritune.config import TrainConfig
from inheritune.distributed import World
from inheritune.micro_batch import largest_micro_batch, saved_bytes
from inheritune.objective import Objective
from inheritune.run_directory import read_json, read_jsonl, write_json
from inheritune.tokens import Prepared, TrainingBlocks
from inheritune.training import Trainer
from test_training import model

CPU = World(rank=0, size=1, device=torch.device("cpu"))
GPU = World(rank=0, size=1, device=torch.device("cuda"))  # nothing here computes on it


def leaf(count: int) -> torch.Tensor:
    return torch.ones(count, requires_grad=True)


def test_what_is_kept_counts_once() -> None:
    def run() -> None:
        one = leaf(100).exp()  # keeps its output
        two = one[:50].sin() + one[50:].cos()  # each keeps a view of it
        (two * two).sum().backward()  # two, twice

    assert saved_bytes(run) == 4 * (100 + 50)


def test_it_is_the_most_at_a_time() -> None:
    def run() -> None:
        for count in (30, 100, 70):
            leaf(count).exp().sum().backward()
        kept = leaf(20).exp()
        leaf(90).exp().sum().backward()
        kept.sum().backward()

    assert saved_bytes(run) == 4 * 110


def test_what_is_held_costs_nothing() -> None:
    weight, given = leaf(200), leaf(200)

    def run() -> None:
        (weight * given).sum().backward()  # each for the other's gradient

    assert saved_bytes(run) == 4 * 400
    assert saved_bytes(run, [weight]) == 4 * 200
    assert saved_bytes(run, [weight, given[3:]]) == 0  # storages count, whatever part of them is known
    assert saved_bytes(lambda: None) == 0


def test_gradients_are_the_same_while_counting() -> None:
    given = leaf(10)
    saved_bytes(lambda: given.exp().sum().backward())
    assert given.grad is not None
    torch.testing.assert_close(given.grad, torch.full((10,), math.e))


EACH, FIXED, LATER = 4_000, 12_000, 50_000  # bytes


def run(sequences: int) -> None:
    """A pass that keeps `EACH` bytes a sequence and `FIXED` in any case."""
    (leaf(sequences * EACH // 4).exp().sum() + leaf(FIXED // 4).exp().sum()).backward()


def found(
    sequences: float, most: int, batch: int, world: World = CPU, one: Callable[[int], None] = run, ranks: int = 1
) -> int:
    """What is found where so many sequences, and what else training needs, fit on each of the ranks of a memory."""
    needed = ranks * (LATER + FIXED + sequences * EACH)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(micro_batch, "available_memory_bytes", lambda _device: needed / micro_batch._USABLE + 1)
        return largest_micro_batch(one, world, most=most, batch_sequences=batch, later_bytes=LATER)


def test_it_grows_with_memory_up_to_the_most() -> None:
    memory = (-100, 0, 1, 2, 3, 3.9, 4, 7.9, 8, 9, 1e6)
    assert [found(sequences, most=8, batch=8) for sequences in memory] == [1, 1, 1, 2, 3, 3, 4, 4, 8, 8, 8]
    assert [found(sequences, most=1, batch=1) for sequences in (-100, 0.5, 1, 50)] == [1, 1, 1, 1]


def test_what_is_held_leaves_room() -> None:
    weight = leaf(FIXED // 4)

    def held(sequences: int) -> None:
        run(sequences)
        (weight * weight).sum().backward()
        weight.grad = None

    with pytest.MonkeyPatch.context() as patch:
        needed = LATER + FIXED + 3 * EACH
        patch.setattr(micro_batch, "available_memory_bytes", lambda _device: needed / micro_batch._USABLE + 1)
        keywords: dict[str, Any] = {"most": 9, "batch_sequences": 9, "later_bytes": LATER}
        assert largest_micro_batch(held, CPU, held=[weight], **keywords) == 3


class Ranks(World):
    """The first of some ranks, where all find the same."""

    def gathered(self, value: Any) -> list[Any]:
        return [value] * self.size


class Unequal(Ranks):
    """The first of some ranks, the last of which has room for 2 sequences."""

    def gathered(self, value: Any) -> list[Any]:
        return [*super().gathered(value)[1:], 2]


def test_ranks_of_a_cpu_share_its_memory() -> None:
    ranks = Ranks(rank=0, size=4, device=torch.device("cpu"))
    assert [found(sequences, most=8, batch=32, world=ranks, ranks=4) for sequences in (0, 1, 2, 4, 8, 20)] == [
        1, 1, 2, 4, 8, 8
    ]  # fmt: skip


def test_the_rank_with_the_least_room_decides() -> None:
    ranks = Unequal(rank=0, size=4, device=torch.device("cpu"))
    assert found(100, most=8, batch=32, world=ranks, ranks=4) == 2


def test_on_a_gpu_what_does_not_fit_is_halved() -> None:
    tried = []

    def out_of_memory(sequences: int) -> None:
        tried.append(sequences)
        if sequences > 4:
            raise torch.OutOfMemoryError("too large")
        run(sequences)

    assert found(1e6, most=25, batch=30, world=GPU, one=out_of_memory) == 4
    assert tried == [1, 2, 25, 13, 7, 4]
    # on many, until it fits everywhere
    ranks = Ranks(rank=0, size=2, device=torch.device("cuda"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Ranks, "gathered", lambda _self, value: [value, False if value is True else value])
        assert found(8, most=8, batch=16, world=ranks) == 1


@pytest.mark.parametrize("world", [CPU, GPU])
def test_where_one_sequence_alone_fits(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(micro_batch, "available_memory_bytes", lambda _: 10**9)

    def run(sequences: int) -> None:
        if sequences > 1:
            raise torch.OutOfMemoryError
        leaf(8).exp().sum().backward()

    assert largest_micro_batch(run, world, most=8, batch_sequences=8, later_bytes=0) == 1


@settings(max_examples=40, deadline=None)
@given(batch=st.integers(1, 70), sequences=st.integers(0, 80), size=st.integers(1, 5), blocks=st.integers(1, 90))
def test_the_batch_stays_whole_and_padding_small(batch: int, sequences: int, size: int, blocks: int) -> None:
    most = math.ceil(batch / size)
    ranks = Ranks(rank=0, size=size, device=torch.device("cpu"))
    largest = found(sequences, most, batch, world=ranks, ranks=size)
    assert 1 <= largest <= most
    assert largest <= max(1, sequences)
    rounds = math.ceil(batch / (largest * size))
    assert rounds == math.ceil(batch / (min(most, max(1, sequences)) * size))  # no more of them than without
    assert rounds * largest * size - batch < rounds * size  # less than a row of padding each
    dealt = TrainingBlocks(Stream(blocks), 1, 2, batch, seed=3)  # type: ignore[arg-type]
    for step in range(dealt.steps):
        parts = [dealt.micro_batches(step, largest, rank, size) for rank in range(size)]
        assert sorted(block for part in parts for one in part for block in one) == sorted(dealt.indices(step))
        assert len({len(part) for part in parts}) == 1
        assert all(len(one) <= largest for part in parts for one in part)


@dataclasses.dataclass
class Stream:
    """A set of so many blocks of one token."""

    blocks: int

    @property
    def tokens(self) -> int:
        return self.blocks + 1

    def expect_random_reads(self) -> None: ...


LENGTH = 16
CONFIG = TrainConfig(
    batch_sequences=9,
    micro_batch_sequences="auto",
    learning_rate=1e-2,
    warmup_steps=2,
    max_steps=4,
    validate_every_steps=2,
    compute_dtype="float32",
)


@pytest.fixture
def data(make_prepared: Callable[..., Prepared]) -> Prepared:
    random = np.random.default_rng(0)

    def documents(count: int) -> list[list[int]]:
        return [[*random.integers(0, 40, 26).tolist(), 319] for _ in range(count)]

    return make_prepared({"train": documents(24), "development": documents(3), "held-out": documents(4)})


def losses(directory: Path, data: Prepared, reports: list[str], **changes: Any) -> list[float]:
    """Train; every loss that was recorded, of steps and of validations."""
    directory.mkdir(exist_ok=True)
    config = dataclasses.replace(CONFIG, **changes)
    trainer = Trainer(model(), data, config, directory, LENGTH, 1, report=reports.append, progress=lambda _: None)
    trained = trainer.run()
    reports.append(f"trained by {trained.micro_batch_sequences}")
    records = read_jsonl(directory / "metrics.jsonl")
    return [value for one in records for value in ([one["loss"]] if "loss" in one else one["losses"].values())]


def memory_for(sequences: int) -> int:
    """Free bytes that let so many sequences of the tiny model be run at a time."""
    network = model().train()

    def one(count: int) -> None:
        ids = torch.zeros((count, LENGTH), dtype=torch.int64)
        Objective(network, torch.float32)(ids, ids).minimised.backward()
        network.zero_grad()

    held = list(network.parameters())
    first, second = saved_bytes(lambda: one(1), held), saved_bytes(lambda: one(2), held)
    state = 12 * sum(parameter.numel() for parameter in held)
    return int((state + first + (sequences - 0.5) * (second - first)) / micro_batch._USABLE)


def test_a_training_that_finds_its_micro_batch(tmp_path: Path, data: Prepared, monkeypatch: pytest.MonkeyPatch) -> None:
    fixed = losses(tmp_path / "fixed", data, [], micro_batch_sequences=9)
    assert not (tmp_path / "fixed" / "micro_batch.json").exists()
    free, reports = memory_for(4), list[str]()
    monkeypatch.setattr(micro_batch, "available_memory_bytes", lambda _device: free)
    file = tmp_path / "auto" / "micro_batch.json"
    found = losses(file.parent, data, reports)
    # 4 would fit, and 3 come out even
    assert found == pytest.approx(fixed, rel=1e-5)
    assert len(found) == 4 + 2 * 3
    setting = {"ranks": 1, "device": "cpu", "parallel": "none"}
    assert read_json(file) == {"sequences": 3, "setting": setting}
    assert [line for line in reports if "icro" in line] == ["Micro-batches of 3 sequences a rank."]
    assert reports[-1] == "trained by 3"


def test_what_was_found_is_kept_for_the_same_ranks(
    tmp_path: Path, data: Prepared, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = list[int]()

    def largest(_run: object, _world: World, *, most: int, **_rest: object) -> int:
        asked.append(most)
        return 2

    monkeypatch.setattr(training, "largest_micro_batch", largest)
    (tmp_path / "run").mkdir()
    file = tmp_path / "run" / "micro_batch.json"
    setting = {"ranks": 1, "device": "cpu", "parallel": "none"}
    write_json(file, {"sequences": 5, "setting": setting})
    reports = list[str]()
    losses(file.parent, data, reports, max_steps=1)
    assert (asked, reports[-1]) == ([], "trained by 5")
    write_json(file, {"sequences": 5, "setting": setting | {"ranks": 2}})
    losses(file.parent, data, reports, max_steps=2)
    assert (asked, reports[-1]) == ([9], "trained by 2")
    assert read_json(file) == {"sequences": 2, "setting": setting}


@pytest.mark.parametrize("document_mask", [False, True])
def test_the_pass_that_is_measured_is_one_of_the_training(
    document_mask: bool, tmp_path: Path, data: Prepared, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted = list[int]()

    def largest(run: Callable[[int], None], _world: World, **rest: Any) -> int:
        counted.append(saved_bytes(lambda: run(2), rest["held"]))
        assert rest["later_bytes"] == 12 * sum(parameter.numel() for parameter in network.parameters())
        assert all(parameter.grad is None for parameter in network.parameters())
        return 2

    monkeypatch.setattr(training, "largest_micro_batch", largest)
    network, config = model(), dataclasses.replace(CONFIG, max_steps=1)
    trainer = Trainer(
        network, data, config, tmp_path, LENGTH, 1, lambda _: None, lambda _: None, document_mask=document_mask
    )
    trainer.run()
    ids = torch.zeros((2, LENGTH), dtype=torch.int64)
    positions = torch.arange(LENGTH).expand(2, -1) % 5 if document_mask else None
    objective = Objective(network, torch.float32)

    def one() -> None:
        objective(ids, ids, positions).minimised.backward()

    # a mask is kept as well, and what attention computes by it
    assert counted == [saved_bytes(one, network.parameters())]


def test_a_storage_that_is_emptied_while_it_is_kept_is_counted_once() -> None:
    def run() -> None:
        weight = torch.ones(1000, requires_grad=True)
        kept = torch.ones(1000)
        product = (weight * kept).sum()  # keeps `kept` for the backward pass
        kept.untyped_storage().resize_(0)  # as FSDP does with gathered weights
        del product

    assert saved_bytes(run) >= 4000
