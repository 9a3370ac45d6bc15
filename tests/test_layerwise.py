"""What every prefix scores, against models built of the first layers."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel

from conftest import VOCABULARY
from inheritune.errors import Refused
from inheritune.layerwise import Scan, Turning, measure_turning, scan_prefixes, scan_record
from inheritune.reference import block_list
from inheritune.tokens import Prepared, TokenSet
from inheritune.validation import SetLosses, measure
from layered import (
    FAMILIES,
    LAYERS,
    SETTINGS,
    assert_same,
    block_influence,
    falcon,
    gpt2,
    held_out,
    llama,
    mixed_modes,
    mixtral,
    openai_gpt,
    prefix_losses,
    seeded,
    state,
    steered,
)


@pytest.fixture
def tokens(make_prepared: Callable[..., Prepared]) -> TokenSet:
    return held_out(make_prepared)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_prefix_scores_what_a_model_of_the_first_layers_scores(
    family: Callable[[int], PreTrainedModel], tokens: TokenSet
) -> None:
    reference = seeded(family)
    found = prefix_losses(reference, tokens, **SETTINGS)
    assert len(found) == LAYERS
    assert len({losses.loss for losses in found}) == LAYERS
    for count, losses in enumerate(found, 1):
        cut = family(count).eval()
        weights = reference.state_dict()
        cut.load_state_dict({name: weights[name] for name in cut.state_dict()})
        assert_same(losses, measure(cut, tokens, **SETTINGS))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_last_prefix_is_the_reference_measured_as_always(dtype: torch.dtype, tokens: TokenSet) -> None:
    model, settings = seeded(llama), SETTINGS | {"dtype": dtype}
    assert_same(prefix_losses(model, tokens, **settings)[-1], measure(model, tokens, **settings))


def test_the_bfloat16_of_a_scan_is_not_its_float32(tokens: TokenSet) -> None:
    first, other = (
        prefix_losses(seeded(llama), tokens, **SETTINGS | {"dtype": dtype})[0]
        for dtype in (torch.float32, torch.bfloat16)
    )
    assert first.loss != other.loss
    assert first.loss == pytest.approx(other.loss, abs=0.05)


def test_progress_is_told_after_every_batch(tokens: TokenSet) -> None:
    told: list[tuple[int, int]] = []
    prefix_losses(seeded(llama), tokens, **SETTINGS, progress=lambda done, total: told.append((done, total)))
    assert told == [(2, 5), (4, 5), (5, 5)]


@pytest.mark.parametrize("family", [llama, falcon, openai_gpt])
def test_a_block_that_changes_its_input_in_place_is_caught_as_any_other(
    family: Callable[[int], PreTrainedModel], tokens: TokenSet
) -> None:
    """Blocks that give tensors, tuples, lists."""
    plain, in_place = seeded(family), seeded(family)
    last: Any = block_list(in_place)[1][-1]
    computed = last.forward

    def forward(hidden: torch.Tensor, *arguments: Any, **keywords: Any) -> Any:
        output = computed(hidden, *arguments, **keywords)
        hidden.copy_(output if isinstance(output, torch.Tensor) else output[0])
        return hidden if isinstance(output, torch.Tensor) else type(output)([hidden])

    last.forward = forward
    for found, expected in zip(
        prefix_losses(in_place, tokens, **SETTINGS), prefix_losses(plain, tokens, **SETTINGS), strict=True
    ):
        assert_same(found, expected)
    first, second = (
        block_influence(model, [tokens.read(0, 16)[None]], dtype=torch.float32) for model in (in_place, plain)
    )
    assert first == second


def test_blocks_beyond_a_prefix_take_no_part_in_it(tokens: TokenSet) -> None:
    """Some families keep states of their own from block to block, which later blocks would add to."""
    model = seeded(llama)
    calls = [0] * LAYERS

    def count(index: int) -> Callable[..., None]:
        def hook(*_: Any) -> None:
            calls[index] += 1

        return hook

    for index, block in enumerate(model.model.layers):
        block.register_forward_hook(count(index))
    prefix_losses(model, tokens, **SETTINGS | {"batch_sequences": 5})
    assert calls == [3, 2, 1]


def test_dropout_is_off_whatever_the_models_mode(tokens: TokenSet) -> None:
    model = seeded(gpt2)
    batch = tokens.read(0, 16)[None]
    expected, influence = prefix_losses(model, tokens, **SETTINGS), block_influence(model, [batch], dtype=torch.float32)
    model.train()
    assert model.config.resid_pdrop > 0
    for found, losses in zip(prefix_losses(model, tokens, **SETTINGS), expected, strict=True):
        assert_same(found, losses)
    assert block_influence(model, [batch], dtype=torch.float32) == influence
    assert_same(measure(model, tokens, **SETTINGS), expected[-1])


def test_the_model_is_left_as_it_was(tokens: TokenSet) -> None:
    model = mixed_modes(seeded(llama))
    before = state(model)
    prefix_losses(model, tokens, **SETTINGS)
    block_influence(model, [tokens.read(0, 16)[None]], dtype=torch.float32)
    measure(model, tokens, **SETTINGS)
    assert state(model) == before
    assert sum(training for _, training, *_ in before) not in (0, len(before))


@pytest.mark.parametrize("failing_call", range(1, LAYERS + 1))
def test_the_model_is_left_as_it_was_when_a_pass_fails(failing_call: int, tokens: TokenSet) -> None:
    """The first call is the whole pass, the others run what stands after the blocks on a block's output."""
    model = mixed_modes(seeded(llama))
    calls = itertools.count(1)

    def fail(*_: Any) -> None:
        if next(calls) == failing_call:
            raise KeyboardInterrupt

    model.model.norm.register_forward_hook(fail)
    before = state(model)
    with pytest.raises(KeyboardInterrupt):
        prefix_losses(model, tokens, **SETTINGS)
    assert next(calls) == failing_call + 1
    assert state(model) == before


@pytest.mark.parametrize(
    "run",
    [
        lambda model, tokens: measure(model, tokens, **SETTINGS),
        lambda model, tokens: block_influence(model, [tokens.read(0, 16)[None]], dtype=torch.float32),
    ],
)
def test_the_model_is_left_as_it_was_when_anything_fails(run: Callable[..., Any], tokens: TokenSet) -> None:
    model = mixed_modes(seeded(llama))
    model.model.norm.register_forward_hook(lambda *_: 1 // 0)
    before = state(model)
    with pytest.raises(ZeroDivisionError):
        run(model, tokens)
    assert state(model) == before


def test_blocks_that_run_twice_are_refused(tokens: TokenSet) -> None:
    model = seeded(llama)
    model.model.layers[2] = model.model.layers[1]
    with pytest.raises(Refused, match=r"runs its blocks in the order \[0, 1, 2, 1, 2\]"):
        prefix_losses(model, tokens, **SETTINGS)
    with pytest.raises(Refused, match="cannot be told apart"):
        block_influence(model, [tokens.read(0, 16)[None]], dtype=torch.float32)


def losses_of(nats: list[float], correct: list[int]) -> SetLosses:
    return SetLosses(*(np.array(x, np.float64) for x in (nats, correct, [10, 20, 30], [40, 80, 0])))


def scan_of(losses: list[SetLosses], **other: Any) -> Scan:
    """A scan of a set of 60 tokens and 120 bytes, of which nothing else is known."""
    return Scan(**{"prefixes": losses, "turning": None, "tokens": 60, "bytes": 120, "seed": None} | other)


def test_a_scans_record() -> None:
    losses = [losses_of([30.0, 60.0, 90.0], [1, 2, 3]), losses_of([10.0, 50.0, 30.0], [5, 10, 15])]
    turning = Turning((0.5, 0.25), np.array([[0.0, 0.5, 0.75], [0.5, 0.0, 0.25], [0.75, 0.25, 0.0]]), 60)
    record = scan_record(scan_of(losses, turning=turning), set_name="held-out", parameters=[7, 11], vocabulary=320)
    first, second = record.pop("prefixes")
    assert record == {
        "set": "held-out",
        "documents": 3,
        "tokens": 60,
        "bytes": 120,
        "positions": 60,
        "sample_seed": None,
        "vocabulary": 320,
        "uniform_guess": math.log(320),
        "influence": [0.5, 0.25],
        "angular": [[0.5, 0.25], [0.75]],
    }
    # Every document of the first has 3 nats a token: no draw of documents differs.
    assert first == {
        "layers": 1,
        "parameters": 7,
        "loss": 3.0,
        "standard_error": pytest.approx(0.0),
        "low": pytest.approx(3.0),
        "high": pytest.approx(3.0),
        "bits_per_byte": pytest.approx(180 / math.log(2) / 120),
        "accuracy": 0.1,
    }
    assert second["loss"] == 1.5
    assert 1.0 <= second["low"] < 1.5 < second["high"] <= 2.5
    # of three documents with 1, 2.5 and 1 nats a token: by the delta method sqrt(5^2 + 20^2 + 15^2) / 60
    assert second["standard_error"] == pytest.approx(math.sqrt(650) / 60, rel=0.15)
    assert (second["layers"], second["parameters"], second["accuracy"]) == (2, 11, 0.5)


def test_a_record_without_an_interval_or_a_loss_is_json_still() -> None:
    single = [SetLosses(*(np.array([x], np.float64) for x in (30.0, 5, 10, 40)))]
    alone = scan_record(scan_of(single), set_name="held-out", parameters=[7], vocabulary=320)["prefixes"][0]
    assert (alone["loss"], alone["low"], alone["high"]) == (3.0, None, None)
    infinite = losses_of([30.0, math.inf, 90.0], [1, 2, 3])
    overflown = scan_record(scan_of([infinite]), set_name="held-out", parameters=[7], vocabulary=320)
    assert json.loads(json.dumps(overflown, allow_nan=False)) == overflown
    entry = overflown["prefixes"][0]
    assert [entry[key] for key in ("loss", "standard_error", "low", "high", "bits_per_byte")] == [None] * 5
    assert (overflown["influence"], overflown["angular"]) == (None, None)


# ---- both measures from the scan's pass, and the sample that the head is applied to


@pytest.mark.parametrize("family", [llama, falcon, mixtral])
def test_a_scan_also_measures_how_far_blocks_turn(family: Callable[[int], PreTrainedModel], tokens: TokenSet) -> None:
    """Of the set's own tokens alone: the last of five sequences has 7, and padding behind them."""
    model = seeded(family)
    stream = np.concatenate([[VOCABULARY - 1], tokens.read(0, 70)])
    rows = [stream[start : start + 16][None] for start in range(0, 71, 16)]
    assert [row.shape[1] for row in rows] == [16, 16, 16, 16, 7]
    alone = measure_turning(model, rows, dtype=torch.float32)
    for positions in (None, 5):
        turning = scan_prefixes(model, tokens, **SETTINGS, positions=positions).turning
        assert turning is not None
        assert turning.tokens == alone.tokens == 71
        assert turning.influence == pytest.approx(alone.influence, rel=1e-4)
        np.testing.assert_allclose(turning.distances, alone.distances, atol=1e-5)


def test_a_scan_of_a_model_that_overflows_has_no_angles(tokens: TokenSet) -> None:
    scan = scan_prefixes(steered(lambda x: x, lambda x: x / 0), tokens, **SETTINGS)
    assert scan.turning is None
    assert math.isfinite(scan.prefixes[0].loss)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_sample_scores_its_positions_as_the_whole_does(
    family: Callable[[int], PreTrainedModel], tokens: TokenSet
) -> None:
    """Token by token: the sum over each document's drawn tokens, of every prefix."""
    model = seeded(family)
    drawn = np.sort(np.random.default_rng(3).choice(71, 40, replace=False))
    scan = scan_prefixes(model, tokens, **SETTINGS, positions=40, seed=3)
    ends = tokens.document_ends.tolist()
    inside = [[x for x in drawn if start <= x < end] for start, end in zip([0, *ends[:-1]], ends, strict=True)]
    assert (scan.seed, scan.positions, scan.tokens) == (3, 40, 71)
    for count, losses in enumerate(scan.prefixes, 1):
        nats, correct = by_token(model, count, tokens)
        assert losses.tokens.tolist() == [len(places) for places in inside]
        assert losses.nats == pytest.approx([nats[places].sum() for places in inside], rel=1e-4, abs=1e-4)
        assert losses.correct.tolist() == [correct[places].sum() for places in inside]
        assert losses.bytes == pytest.approx(tokens.document_bytes * losses.tokens / np.diff(ends, prepend=0))


def by_token(model: PreTrainedModel, count: int, tokens: TokenSet) -> tuple[Any, Any]:
    """What a model's first blocks score on each token of a set, (tokens,): losses, and whether it was the likeliest."""
    name, blocks = block_list(model)
    owner, attribute = model.get_submodule(name.rpartition(".")[0]), name.rpartition(".")[2]
    setattr(owner, attribute, blocks[:count])
    stream = np.full(81, VOCABULARY - 1)
    stream[1:72] = tokens.read(0, 71)
    ids, labels = torch.from_numpy(stream[:80].reshape(5, 16)), torch.from_numpy(stream[1:81])
    with torch.inference_mode():
        logits = model(input_ids=ids, use_cache=False).logits.flatten(0, 1).float()
    setattr(owner, attribute, blocks)
    nats = torch.nn.functional.cross_entropy(logits, labels, reduction="none")
    return nats[:71].numpy(), (logits.argmax(-1) == labels)[:71].numpy()


def test_the_head_sees_the_sample_alone(tokens: TokenSet) -> None:
    """For each prefix, once a batch; where a batch has none of the sample, not at all."""
    model, seen = seeded(llama), []
    model.lm_head.register_forward_hook(lambda _module, arguments, _output: seen.append(arguments[0].shape[1]))
    drawn = np.random.default_rng(2).choice(71, 3, replace=False)
    batches = {int(place) // 32 for place in drawn}
    assert len(batches) == 2, "of three batches"
    scan_prefixes(model, tokens, **SETTINGS, positions=3, seed=2)
    assert sum(seen) == 3 * LAYERS
    assert len(seen) == len(batches) * LAYERS


def test_a_sample_as_large_as_the_set_is_the_set(tokens: TokenSet) -> None:
    model = seeded(llama)
    whole = scan_prefixes(model, tokens, **SETTINGS)
    for positions in (71, 1000):
        scan = scan_prefixes(model, tokens, **SETTINGS, positions=positions)
        assert (scan.seed, scan.positions) == (None, 71)
        for found, expected in zip(scan.prefixes, whole.prefixes, strict=True):
            assert_same(found, expected)


def test_a_sample_is_its_seeds(tokens: TokenSet) -> None:
    model = seeded(llama)
    first, again, other = (scan_prefixes(model, tokens, **SETTINGS, positions=20, seed=seed) for seed in (1, 1, 2))
    assert_same(first.prefixes[0], again.prefixes[0])
    assert first.prefixes[0].loss != other.prefixes[0].loss


def test_a_samples_record_says_so_and_is_as_unsure_as_it_is() -> None:
    random = np.random.default_rng(0)
    nats = random.exponential(3, (200, 50))
    whole = SetLosses(nats.sum(1), np.full(200, 5.0), np.full(200, 50.0), np.full(200, 100.0))
    few = SetLosses(nats[:, :2].sum(1), np.full(200, 0.2), np.full(200, 2.0), np.full(200, 4.0))
    few = dataclasses.replace(few, tokens=np.where(np.arange(200) < 100, 2.0, 0.0))
    few = dataclasses.replace(few, nats=few.nats * (few.tokens > 0), bytes=few.bytes * (few.tokens > 0))
    scans = [scan_of([losses], tokens=10_000, bytes=20_000) for losses in (whole, few)]
    scans[1] = dataclasses.replace(scans[1], seed=7)
    records = [scan_record(scan, set_name="held-out", parameters=[7], vocabulary=320) for scan in scans]
    assert [record["positions"] for record in records] == [10_000, 200]
    assert [record["tokens"] for record in records] == [10_000] * 2
    assert [record["documents"] for record in records] == [200] * 2
    assert [record["sample_seed"] for record in records] == [None, 7]
    # exponential: one token's loss spreads by its mean, so the standard errors are 3 / sqrt(tokens)
    errors = [record["prefixes"][0]["standard_error"] for record in records]
    assert errors == pytest.approx([3 / 100, 3 / math.sqrt(200)], rel=0.3)
    bits = records[1]["prefixes"][0]["bits_per_byte"]
    assert bits == pytest.approx(records[1]["prefixes"][0]["loss"] / math.log(2) / 2)
