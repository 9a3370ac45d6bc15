"""From rows to scores: errors, levels, groups, paired tests."""

from __future__ import annotations

import itertools
import math
import tracemalloc
from dataclasses import replace
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given, strategies as st

from inheritune import scoring
from inheritune.scores import Row, TaskScores
from inheritune.scoring import (
    agrees,
    chance_of,
    line_of,
    majority_of,
    mcnemar,
    near,
    paired,
    rescaled,
    score_of,
    standard_error,
    value_of,
)

NAMES = ("one", "two")


def rows_of(right: list[float], **common: Any) -> tuple[Row, ...]:
    return tuple(Row(row, {"acc": value}, fingerprint=f"row {row}", **common) for row, value in enumerate(right))


def task_of(name: str, rows: tuple[Row, ...], metric: str = "acc", **changes: Any) -> TaskScores:
    task = TaskScores(
        task=name,
        version="1.0",
        shots=0,
        metrics={metric: value_of(rows, metric)},
        better={metric: "higher"},
        rows=rows,
        rows_in_split=len(rows),
        selection=None,
        settings={"dtype": "float32"},
        dataset={},
    )
    return replace(task, **changes)


def pages(losses: list[float], words: list[float], metric: str = "word_perplexity") -> tuple[Row, ...]:
    pairs = zip(losses, words, strict=True)
    return tuple(
        Row(row, {metric: -loss}, {metric: count}, fingerprint=f"page {row}") for row, (loss, count) in enumerate(pairs)
    )


def test_the_standard_error_of_a_mean() -> None:
    """Of 1, 0, 1, 1 the deviation is 1/2, of a mean of four 1/4."""
    assert value_of(rows_of([1, 0, 1, 1]), "acc") == 0.75
    assert standard_error(rows_of([1, 0, 1, 1]), "acc") == pytest.approx(0.25, rel=1e-15)


@given(st.lists(st.sampled_from([0.0, 1.0]), min_size=2, max_size=60))
def test_the_standard_error_of_an_accuracy(right: list[float]) -> None:
    p, n = sum(right) / len(right), len(right)
    assert standard_error(rows_of(right), "acc") == pytest.approx(math.sqrt(p * (1 - p) / (n - 1)), abs=1e-15)


def test_the_standard_error_is_the_harness_s() -> None:
    metrics = pytest.importorskip("lm_eval.api.metrics")
    shares = np.random.default_rng(0).random(300).tolist()
    for values in (shares, [float(share > 0.3) for share in shares]):
        assert standard_error(rows_of(values), "acc") == pytest.approx(metrics.mean_stderr(values), rel=1e-12)
        assert value_of(rows_of(values), "acc") == pytest.approx(metrics.mean(values), rel=1e-14)


def test_perplexities_are_the_harness_s() -> None:
    metrics = pytest.importorskip("lm_eval.api.metrics")
    generator = np.random.default_rng(0)
    losses, words = (100 * generator.random(50)).tolist(), generator.integers(1, 90, 50).astype(float).tolist()
    items = [(-loss, count) for loss, count in zip(losses, words, strict=True)]
    for metric in ("word_perplexity", "byte_perplexity"):
        assert value_of(pages(losses, words, metric), metric) == pytest.approx(metrics.weighted_perplexity(items))
    assert value_of(pages(losses, words, "bits_per_byte"), "bits_per_byte") == pytest.approx(
        metrics.bits_per_byte(items)
    )
    alone = tuple(Row(row, {"perplexity": -loss / 50}) for row, loss in enumerate(losses))
    assert value_of(alone, "perplexity") == pytest.approx(metrics.perplexity([-loss / 50 for loss in losses]))


def test_the_standard_error_of_a_ratio_and_of_its_functions() -> None:
    """Losses of 2 and 4 nats over 1 and 3 words: 1.5 a word, residuals 1/2 and -1/2, so 1/4 a word."""
    losses, words = [2.0, 4.0], [1.0, 3.0]
    value, error = math.exp(1.5), 0.25
    for metric in ("word_perplexity", "byte_perplexity", "perplexity"):
        assert value_of(pages(losses, words, metric), metric) == pytest.approx(value)
        assert standard_error(pages(losses, words, metric), metric) == pytest.approx(value * error)
    bits = pages(losses, words, "bits_per_byte")
    assert value_of(bits, "bits_per_byte") == pytest.approx(1.5 / math.log(2))
    assert standard_error(bits, "bits_per_byte") == pytest.approx(error / math.log(2))


def test_the_standard_error_of_a_perplexity_is_its_spread_over_samples() -> None:
    values, errors = [], []
    for seed in range(300):
        generator = np.random.default_rng(seed)
        words = generator.integers(20, 200, 60)
        losses = words * (3 + 0.5 * generator.standard_normal(60))
        rows = pages(losses.tolist(), words.astype(float).tolist())
        values.append(value_of(rows, "word_perplexity"))
        errors.append(standard_error(rows, "word_perplexity") or 0.0)
    # A deviation of 300 is known to 4%; the estimate over 60 rows is a few percent low.
    assert np.mean(errors) == pytest.approx(np.std(values, ddof=1), rel=0.12)


def test_one_row_has_no_standard_error() -> None:
    assert standard_error(rows_of([1]), "acc") is None
    assert score_of([task_of("t", rows_of([1.0], chance=0.5))], "acc").standard_error is None


def test_a_loss_beyond_a_float_s_perplexity_is_infinite() -> None:
    assert value_of(pages([5000.0, 6000.0], [1.0, 1.0]), "word_perplexity") == math.inf
    assert standard_error(pages([5000.0, 6000.0], [1.0, 1.0]), "word_perplexity") is None


@pytest.mark.parametrize(
    ("rows", "metric", "complaint"),
    [
        ((), "acc", "there are no rows"),
        (rows_of([1, 0]), "acc_norm", "acc_norm: a row has no such value; there are acc"),
        (pages([1.0], [0.0]), "word_perplexity", "spread over nothing"),
    ],
)
def test_what_has_no_value(rows: tuple[Row, ...], metric: str, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        value_of(rows, metric)


def test_chance_is_a_mean_over_rows_and_needs_all_of_them() -> None:
    rows = (Row(0, {}, chance=0.5), Row(1, {}, chance=0.25))
    assert chance_of(rows) == 0.375
    assert chance_of((*rows, Row(2, {}))) is None
    assert chance_of(()) is None


def test_the_majority_is_the_best_constant_answer() -> None:
    """The third choice is right twice in four, though one row has two choices only."""
    rows = [Row(0, {}, gold=2, choices=4), Row(1, {}, gold=2, choices=3), Row(2, {}, gold=0, choices=2)]
    rows.append(Row(3, {}, gold=1, choices=4))
    assert majority_of(rows) == 0.5
    assert majority_of([*rows, Row(4, {}, choices=4)]) is None
    assert majority_of([]) is None


def test_rescaled() -> None:
    assert rescaled(0.625, 0.25) == 0.5
    assert rescaled(0.25, 0.25) == 0.0
    assert rescaled(0.5, None) is None
    assert rescaled(1.0, 1.0) is None


@pytest.mark.parametrize(
    ("value", "error", "expected"),
    [
        (0.50, 0.05, ("chance", "majority")),
        (0.60, 0.05, ("chance", "majority")),
        (0.61, 0.05, ("majority",)),
        (0.72, 0.05, ("majority",)),
        (0.73, 0.05, ()),
        (0.20, 0.05, ("chance", "majority")),
        (0.90, None, ("chance", "majority")),
    ],
)
def test_near_is_within_two_standard_errors_or_below(
    value: float, error: float | None, expected: tuple[str, ...]
) -> None:
    assert near(value, error, 0.5, 0.62, 100) == expected
    assert near(value, error, None, None, 100) == ()


def test_rows_that_all_came_out_alike_are_judged_by_what_guessing_would_spread() -> None:
    assert near(1.0, 0.0, 0.5, 0.62, 2) == ("chance", "majority")
    assert near(1.0, 0.0, 0.5, 0.62, 200) == ()
    assert near(0.0, 0.0, 0.0, None, 200) == ("chance",)


def test_a_score_has_the_harness_s_value_and_everything_beside_it() -> None:
    rows = tuple(
        Row(n, {"acc": float(n % 4 > 0), "acc_norm": float(n % 2)}, gold=n % 2, choices=2, chance=0.5, cut=n < 3)
        for n in range(100)
    )
    task = task_of("piqa", rows, seconds=1.5)
    task = replace(task, metrics={"acc": 0.75 + 1e-12, "acc_norm": 0.5})
    score = score_of([task], "acc")
    assert score.value == 0.75 + 1e-12
    assert score.standard_error == pytest.approx(math.sqrt(0.75 * 0.25 / 99))
    assert score.rescaled == pytest.approx(0.5)
    assert score.near == ()
    assert score.cut_rows == 3
    ((other, (value, error)),) = score.beside.items()
    assert (other, value) == ("acc_norm", 0.5)
    assert error == pytest.approx(math.sqrt(0.25 / 99))
    assert score.seconds == 1.5
    assert score.settings == {"dtype": "float32"}


def test_a_metric_that_rows_do_not_give_has_neither_error_nor_levels() -> None:
    """An F1 is no mean over rows: an error computed as if it were would be wrong."""
    rows = tuple(Row(n, {"acc": float(n % 2), "f1": float(n % 2)}, gold=0, choices=2, chance=0.5) for n in range(10))
    task = replace(task_of("mrpc", rows), metrics={"acc": 0.5, "f1": 0.61})
    assert not agrees(task, "f1")
    assert agrees(task, "acc")
    assert score_of([task], "acc").beside == {"f1": (0.61, None)}
    score = score_of([task], "f1")
    assert (score.value, score.standard_error, score.rescaled, score.near) == (0.61, None, None, ())
    # An accuracy over something else than rows, such as questions of which all answers must be right.
    line = line_of("multirc", [replace(task, metrics={"acc": 0.1})], "acc")
    assert (line.chance, line.majority) == (None, None)


def test_a_perplexity_has_no_levels() -> None:
    rows = tuple(replace(row, chance=0.5, gold=0) for row in pages([2.0, 4.0], [1.0, 3.0]))
    task = task_of("wikitext", rows, "word_perplexity", better={"word_perplexity": "lower"})
    line = line_of("wikitext", [task], "word_perplexity")
    assert (line.better, line.chance, line.majority) == ("lower", None, None)
    assert line_of("wikitext", [replace(task, better={})], "word_perplexity").better == "lower"
    assert score_of([task], "word_perplexity").rescaled is None


def test_a_group_counts_every_row_the_same() -> None:
    small = task_of("mmlu_a", rows_of([1, 1], chance=0.25, gold=0), seconds=1.0, settings={"batch": 8, "dtype": "bf16"})
    large = task_of(
        "mmlu_b",
        rows_of([1, 0, 0, 0, 0, 0], chance=0.25, gold=1, cut=True),
        seconds=2.0,
        settings={"batch": 4, "dtype": "bf16"},
    )
    score, line = score_of([small, large], "acc"), line_of("mmlu", [small, large], "acc")
    assert score.value == 3 / 8
    assert score.standard_error == pytest.approx(math.sqrt(3 / 8 * 5 / 8 / 7))
    assert score.near == ("chance", "majority")
    assert score.cut_rows == 6
    assert score.seconds == 3.0
    assert score.settings == {"batch": [8, 4], "dtype": "bf16"}
    assert (line.chance, line.majority, line.rows, line.rows_in_split) == (0.25, 6 / 8, 8, 8)
    assert line.tasks == ("mmlu_a", "mmlu_b")


@given(st.lists(st.lists(st.sampled_from([0.0, 1.0]), min_size=1, max_size=8), min_size=2, max_size=5))
def test_a_group_is_its_rows_as_one_task(parts: list[list[float]]) -> None:
    group = [task_of(f"t{index}", rows_of(part, chance=0.5)) for index, part in enumerate(parts)]
    whole = task_of("all", rows_of([value for part in parts for value in part], chance=0.5))
    ours, alone = score_of(group, "acc"), score_of([whole], "acc")
    assert ours.value == pytest.approx(alone.value)
    assert ours.standard_error == pytest.approx(alone.standard_error)


def test_a_group_of_perplexities_is_pooled() -> None:
    one = task_of("a", pages([2.0], [1.0]), "word_perplexity")
    two = task_of("b", pages([4.0], [3.0]), "word_perplexity")
    assert score_of([one, two], "word_perplexity").value == pytest.approx(math.exp(1.5))


def test_a_group_that_is_not_whole_says_so() -> None:
    tasks = [task_of(f"mmlu_{index}", rows_of([1, 0])) for index in range(3)]
    line = line_of("mmlu", tasks, "acc", of=57, parts="subjects")
    assert line.title == "mmlu, 3 of 57 subjects"
    assert not line.whole
    everything = line_of("mmlu", tasks, "acc", of=3, parts="subjects")
    assert (everything.title, everything.whole, everything.selection) == ("mmlu", True, None)
    assert line_of("mmlu", tasks, "acc").whole


def test_a_selection_is_not_whole() -> None:
    first = task_of("a", rows_of([1, 0]), selection="the first 2 rows", rows_in_split=9)
    line = line_of("a", [first], "acc")
    assert (line.whole, line.rows, line.rows_in_split, line.selection) == (False, 2, 9, "the first 2 rows")
    # Even where the selection happens to be everything, and where rows are missing without a word.
    assert not line_of("a", [replace(first, rows_in_split=2)], "acc").whole
    assert not line_of("a", [replace(first, selection=None)], "acc").whole
    other = replace(first, task="b")
    assert line_of("g", [first, other], "acc").selection == "the first 2 rows of each task"
    entire = task_of("c", rows_of([1, 0]))
    assert line_of("g", [first, entire], "acc").selection == "at most the first 2 rows of each task"


def test_what_is_no_line() -> None:
    task = task_of("a", rows_of([1, 0]))
    for tasks, metric, complaint in [
        ([], "acc", "at least one task"),
        ([task, task], "acc", "a task comes twice: a"),
        ([task], "acc_norm", "a has no metric 'acc_norm'; it has acc"),
        ([task, replace(task, task="b", shots=5)], "acc", "b has 5 shots, a has 0"),
        ([task, replace(task, task="b", better={"acc": "lower"})], "acc", "b and a differ in which acc is better"),
    ]:
        with pytest.raises(ValueError, match=complaint):
            line_of("line", tasks, metric)
        with pytest.raises(ValueError, match=complaint):
            score_of(tasks, metric)


def of_tasks(first: list[float], second: list[float]) -> tuple[list[TaskScores], list[TaskScores]]:
    return [task_of("t", rows_of(first))], [task_of("t", rows_of(second))]


def test_a_paired_test_counts_what_one_alone_has_right() -> None:
    """9 rows that the first alone has right, 1 that the second alone has: 2 (1 + 10) / 2^10."""
    first, second = of_tasks([1.0] * 9 + [0.0] + [1.0] * 5 + [0.0] * 5, [0.0] * 9 + [1.0] + [1.0] * 5 + [0.0] * 5)
    found = paired(first, second, "acc", line="t", names=NAMES)
    assert (found.line, found.first, found.second, found.rows) == ("t", "one", "two", 20)
    assert (found.first_only, found.second_only) == (9, 1)
    assert found.p_value == 22 / 1024
    assert found.difference == pytest.approx(0.4)
    assert 0 < found.low < 0.4 < found.high


def test_the_interval_is_that_of_a_difference_of_pairs() -> None:
    generator = np.random.default_rng(3)
    hardness, n = generator.random(4000), 4000
    first, second = ((generator.random(n) > hardness * ease).astype(float) for ease in (0.8, 0.9))
    found = paired(*of_tasks(first.tolist(), second.tolist()), "acc", line="t", names=NAMES)
    error = np.std(first - second, ddof=1) / math.sqrt(n)
    assert found.low == pytest.approx(found.difference - 1.96 * error, abs=0.1 * error)
    assert found.high == pytest.approx(found.difference + 1.96 * error, abs=0.1 * error)


def test_pairing_leaves_out_what_both_find_hard() -> None:
    generator = np.random.default_rng(0)
    words = generator.integers(20, 200, 300).astype(float)
    hard = words * (3 + generator.standard_normal(300))
    first, second = (
        [task_of("w", pages((hard + words * d).tolist(), words.tolist()), "word_perplexity")] for d in (0, 0.1)
    )
    found = paired(first, second, "word_perplexity", line="w", names=NAMES)
    ours, theirs = value_of(first[0].rows, "word_perplexity"), value_of(second[0].rows, "word_perplexity")
    assert found.difference == pytest.approx(ours - theirs)
    assert found.low < found.difference < found.high < 0
    alone = standard_error(first[0].rows, "word_perplexity")
    assert alone is not None
    assert found.high - found.low < alone  # unpaired it would be about 5.5 of them
    assert (found.first_only, found.second_only, found.p_value) == (None, None, None)


def test_bits_a_byte_are_paired_in_their_own_unit() -> None:
    first, second = ([task_of("w", pages([s, 2 * s], [1, 2], "bits_per_byte"), "bits_per_byte")] for s in (2.0, 1.0))
    found = paired(first, second, "bits_per_byte", line="w", names=NAMES)
    assert (found.low, found.difference, found.high) == pytest.approx([1 / math.log(2)] * 3)


def test_shares_are_not_right_or_wrong() -> None:
    found = paired(*of_tasks([0.25, 1.0, 0.5], [0.5, 1.0, 0.0]), "acc", line="t", names=NAMES)
    assert found.p_value is None
    assert found.difference == pytest.approx(0.25 / 3)
    nats = [task_of("w", pages([1.0, 0.0], [1.0, 1.0]), "word_perplexity")]
    assert paired(nats, nats, "word_perplexity", line="w", names=NAMES).p_value is None


def test_only_rows_with_the_same_content_are_paired() -> None:
    ours, theirs = rows_of([1, 1, 1, 0]), rows_of([0, 1, 1, 0])
    changed = (replace(theirs[0], fingerprint="another text"), *theirs[1:])
    found = paired([task_of("t", ours)], [task_of("t", changed)], "acc", line="t", names=NAMES)
    assert (found.rows, found.difference) == (3, 0.0)
    # In another order, with a row of another number, and of another task.
    shuffled = (theirs[2], replace(theirs[3], row=7), theirs[0], theirs[1])
    found = paired([task_of("t", ours)], [task_of("t", shuffled)], "acc", line="t", names=NAMES)
    assert (found.rows, found.first_only, found.second_only) == (3, 1, 0)


def test_what_cannot_be_paired() -> None:
    ours = task_of("t", rows_of([1, 0, 1]))
    for theirs, complaint in [
        (replace(ours, task="u"), "one and two have no row in common"),
        (replace(ours, rows=ours.rows[:1]), "one and two have only one row in common"),
        (replace(ours, shots=5), "t: one had 0 shots, two 5"),
    ]:
        with pytest.raises(ValueError, match=complaint):
            paired([ours], [theirs], "acc", line="t", names=NAMES)
    infinite = [task_of("w", pages([5000.0, 1.0], [1.0, 1.0]), "word_perplexity")]
    with pytest.raises(ValueError, match="w: the difference between one and two is not finite"):
        paired(infinite, infinite, "word_perplexity", line="w", names=NAMES)


def test_a_comparison_repeats_and_its_seed_matters() -> None:
    generator = np.random.default_rng(0)
    first, second = of_tasks(generator.random(50).tolist(), generator.random(50).tolist())
    one, again = (paired(first, second, "acc", line="t", names=NAMES) for _ in range(2))
    assert one == again
    assert one != paired(first, second, "acc", line="t", names=NAMES, seed=1)


def test_draws_are_the_same_however_many_are_held_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = of_tasks(np.linspace(0, 1, 40).tolist(), np.linspace(0, 0.9, 40).tolist())
    at_once = paired(first, second, "acc", line="t", names=NAMES)
    monkeypatch.setattr(scoring, "_DRAWN_AT_ONCE", 300)
    few = paired(first, second, "acc", line="t", names=NAMES)
    assert (few.low, few.high) == pytest.approx((at_once.low, at_once.high), rel=1e-12)


def test_as_many_rows_as_mmlu_need_little_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """All draws' counts at once would be 225 MB, were every row of its own kind."""
    monkeypatch.setattr(scoring, "RESAMPLES", 400)
    terms = np.ones((14042, 4))
    terms[:, 0] = np.linspace(0, 1, 14042)
    tracemalloc.start()
    scoring._resampled_differences(terms, "acc", 0)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 3 * 16 * 2**20


@pytest.mark.parametrize(
    ("first_only", "second_only", "p"),
    [(0, 0, 1.0), (3, 3, 1.0), (0, 5, 2 / 32), (1, 9, 22 / 1024), (9, 1, 22 / 1024), (2, 8, 112 / 1024), (0, 1, 1.0)],
)
def test_mcnemar_by_hand(first_only: int, second_only: int, p: float) -> None:
    assert mcnemar(first_only, second_only) == p


@given(st.integers(0, 6), st.integers(0, 6))
def test_mcnemar_is_the_share_of_outcomes_as_uneven(first_only: int, second_only: int) -> None:
    """Every way in which the discordant rows could have fallen, counted."""
    n, uneven = first_only + second_only, abs(first_only - second_only)
    outcomes = itertools.product((0, 1), repeat=n)
    assert mcnemar(first_only, second_only) == sum(abs(2 * sum(o) - n) >= uneven for o in outcomes) / 2**n


@given(st.integers(0, 400), st.integers(0, 400))
def test_mcnemar_is_exact(first_only: int, second_only: int) -> None:
    n = first_only + second_only
    tail = sum(math.comb(n, right) for right in range(min(first_only, second_only) + 1))
    assert mcnemar(first_only, second_only) == float(min(Fraction(1), Fraction(2 * tail, 2**n)))


def test_mcnemar_of_thousands() -> None:
    assert mcnemar(7000, 7000) == 1.0
    assert mcnemar(0, 5000) == 0.0
    # The normal distribution with the correction for continuity, which is close at 14,000.
    assert mcnemar(6880, 7120) == pytest.approx(math.erfc(239 / math.sqrt(2 * 14000)), rel=1e-3)
    with pytest.raises(ValueError, match="not negative"):
        mcnemar(-1, 3)
