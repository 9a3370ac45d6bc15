"""The growth decision: the bounds and what they are worth, the verdicts, what is foreseen."""

from __future__ import annotations

import dataclasses
import json
import math
import tracemalloc
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from inheritune import decision
from inheritune.comparison import Documents
from inheritune.decision import (
    Verdict,
    combined,
    decide,
    documents_needed,
    foreseen_half_width,
    t_quantile,
)


def pair(documents: int, mean: float = 0.0, seed: int = 0, spread: float = 0.08) -> dict[str, Any]:
    """Losses whose difference is `mean` in expectation."""
    draw = np.random.default_rng(seed)
    tokens = np.round(300 * np.exp(0.5 * draw.standard_normal(documents))) + 1
    reference = (3 + 0.5 * draw.standard_normal(documents)) * tokens
    target = reference + (mean + spread * draw.standard_normal(documents)) * tokens
    return {"target": target, "reference": reference, "tokens": tokens}


def moved(losses: dict[str, Any], by: float) -> dict[str, Any]:
    return losses | {"target": losses["target"] + by * losses["tokens"]}


def number(value: float | None) -> float:
    assert value is not None
    return value


LOSSES = pair(200)
BEST = pair(445, mean=-0.02)
PAIRS = [pair(60, seed=seed) for seed in range(50)]


@pytest.mark.parametrize(
    ("tail", "freedom", "value"),
    [  # Abramowitz & Stegun 1964, table 26.10, and its last row's limit, the normal distribution
        (0.05, 1, 6.314),
        (0.025, 5, 2.571),
        (0.005, 10, 3.169),
        (0.05, 29, 1.699),
        (0.025, 120, 1.980),
        (0.025, 10**7, 1.960),
        (0.0005, 30, 3.646),
    ],
)
def test_quantiles_of_t_are_those_of_the_tables(tail: float, freedom: int, value: float) -> None:
    assert t_quantile(tail, freedom) == pytest.approx(value, abs=6e-4)


@given(st.floats(1e-5, 0.5))
@settings(deadline=None)
def test_quantiles_of_t_for_1_and_2_degrees_of_freedom_are_known_in_closed_form(tail: float) -> None:
    assert t_quantile(tail, 1) == pytest.approx(1 / math.tan(math.pi * tail), rel=1e-7, abs=1e-7)
    assert t_quantile(tail, 2) == pytest.approx((1 - 2 * tail) / math.sqrt(2 * tail * (1 - tail)), rel=1e-7, abs=1e-7)


@given(st.floats(1e-4, 0.5), st.integers(1, 2000))
@settings(deadline=None)
def test_quantiles_of_t_have_the_tail_of_the_finite_sum(tail: float, half: int) -> None:
    """Abramowitz & Stegun 1964, 26.7.4, for an even number of degrees of freedom."""
    theta = math.atan(t_quantile(tail, 2 * half) / math.sqrt(2 * half))
    terms = [1.0]
    for index in range(1, half):
        terms.append(terms[-1] * (2 * index - 1) / (2 * index) * math.cos(theta) ** 2)
    assert 0.5 * (1 - math.sin(theta) * math.fsum(terms)) == pytest.approx(tail, abs=1e-9)


@pytest.mark.parametrize(("tail", "freedom"), [(0.0, 3), (0.6, 3), (0.1, 0), (math.nan, 3)])
def test_a_quantile_that_is_none_is_refused(tail: float, freedom: int) -> None:
    with pytest.raises(ValueError, match="no quantile"):
        t_quantile(tail, freedom)


def test_the_estimate_is_weighted_by_tokens() -> None:
    verdict = decide(np.array([2.0, 30.0]), np.array([1.0, 0.0]), np.array([1.0, 9.0]), margin=1.0)
    assert verdict.difference == pytest.approx(3.1)
    assert (verdict.documents, verdict.tokens) == (2, 10)


def test_the_t_bound_is_the_textbook_one_where_documents_are_equally_long() -> None:
    values = np.random.default_rng(1).standard_normal(25)
    verdict = decide(4 * values, 0 * values, np.full(25, 4.0), margin=1.0, alpha=0.05)
    expected = values.mean() + 1.7108821 * values.std(ddof=1) / 5  # 24 degrees of freedom
    assert verdict.upper_by_t == pytest.approx(expected, abs=1e-6)


def test_the_bootstrap_is_that_of_a_plain_loop_over_draws() -> None:
    losses = pair(7, seed=3)
    differences, tokens = losses["target"] - losses["reference"], losses["tokens"]
    estimate = differences.sum() / tokens.sum()

    def error(d: Documents, w: Documents) -> float:
        return math.sqrt(7 / 6 * ((d - d.sum() / w.sum() * w) ** 2).sum()) / float(w.sum())

    ratios = []
    for drawn in np.random.default_rng(5).integers(7, size=(999, 7)):
        d, w = differences[drawn], tokens[drawn]
        ratios.append((d.sum() / w.sum() - estimate) / error(d, w))
    verdict = decide(**losses, margin=1.0, alpha=0.05, seed=5, resamples=999)
    assert verdict.upper == pytest.approx(estimate - sorted(ratios)[49] * error(differences, tokens), rel=1e-9)


def test_both_bounds_agree_where_documents_are_many_and_alike() -> None:
    verdict = decide(**pair(2000), margin=0.01, rounds=4)
    assert number(verdict.upper) == pytest.approx(number(verdict.upper_by_t), abs=0.03 * number(verdict.half_width))


def test_the_bound_holds_with_few_and_skewed_documents() -> None:
    """Of 400 bounds at 95% 20 should lie below the truth; of the percentile and Student's t 50 or more do."""
    below, below_by_t = 0, 0
    for seed in range(400):
        draw = np.random.default_rng([7, seed])
        tokens = 300 * np.exp(0.5 * draw.standard_normal(30))
        effects = 0.08 * (draw.exponential(1.0, 30) - 1)
        verdict = decide(tokens * effects, 0 * tokens, tokens, margin=1.0, resamples=999)
        below += number(verdict.upper) < 0
        below_by_t += number(verdict.upper_by_t) < 0
    assert below <= 40
    assert below_by_t >= 45


def test_a_difference_moves_estimate_and_bounds_by_itself() -> None:
    here, there = decide(**LOSSES, margin=0.01), decide(**moved(LOSSES, 0.25), margin=0.01)
    for name in ("difference", "upper", "upper_by_t"):
        assert getattr(there, name) == pytest.approx(getattr(here, name) + 0.25, abs=1e-9)
    assert there.half_width == pytest.approx(here.half_width, abs=1e-9)


def test_what_both_models_find_hard_does_not_count() -> None:
    hard = 50 * np.random.default_rng(2).standard_normal(200)
    harder = LOSSES | {name: LOSSES[name] + hard for name in ("target", "reference")}
    assert decide(**harder, margin=0.01).upper == pytest.approx(number(decide(**LOSSES, margin=0.01).upper))


def test_half_width_is_bound_less_estimate() -> None:
    verdict = decide(**LOSSES, margin=0.01)
    assert verdict.half_width == pytest.approx(number(verdict.upper) - verdict.difference)
    assert 0.005 < number(verdict.half_width) < 0.02  # 1.65 * 0.08 / sqrt(200), and somewhat for unequal lengths


def test_draws_are_the_seed_s() -> None:
    first, again, other = (decide(**LOSSES, margin=0.01, seed=seed).upper for seed in (0, 0, 1))
    assert first == again != other


def test_parts_of_the_draws_are_as_good_as_all_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = decide(**LOSSES, margin=0.01, resamples=999)
    monkeypatch.setattr(decision, "_CELLS", 1000)
    assert decide(**LOSSES, margin=0.01, resamples=999).upper == pytest.approx(number(whole.upper), rel=1e-12)


def test_memory_does_not_grow_with_the_draws() -> None:
    losses = pair(20_000)
    tracemalloc.start()
    decide(**losses, margin=0.01, resamples=400)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 50e6  # 400 x 20,000 counts alone are 64 MB


def test_rounds_share_alpha() -> None:
    split, alone = decide(**LOSSES, margin=0.01, alpha=0.05, rounds=4), decide(**LOSSES, margin=0.01, alpha=0.0125)
    assert (split.upper, split.upper_by_t) == (alone.upper, alone.upper_by_t)
    assert number(alone.upper) > number(decide(**LOSSES, margin=0.01, alpha=0.05).upper)
    assert (split.alpha, split.rounds) == (0.05, 4)


def test_ten_draws_at_least_lie_beyond_the_bound() -> None:
    few, enough = (decide(**LOSSES, margin=0.01, alpha=0.05, resamples=count).upper for count in (20, 200))
    assert few == enough


def test_a_target_that_is_no_worse_matches_and_one_that_is_does_not() -> None:
    assert decide(**BEST, margin=0.01, rounds=4).matched
    assert not decide(**moved(BEST, 0.06), margin=0.01, rounds=4).matched


def test_a_match_is_strictly_below_the_margin() -> None:
    found = decide(**LOSSES, margin=0.01)
    larger = max(number(found.upper), number(found.upper_by_t))
    assert not decide(**LOSSES, margin=larger).matched
    assert decide(**LOSSES, margin=math.nextafter(larger, 1)).matched


def test_a_superior_target_is_better_than_its_reference() -> None:
    better, same = decide(**BEST, margin=0.0), decide(**moved(BEST, 0.02), margin=0.0)
    assert (better.matched, same.matched) == (True, False)
    assert ", below 0; this holds" in better.text
    assert ", not below 0; this holds" in same.text


@pytest.mark.parametrize("bootstrap_is_larger", [True, False])
def test_the_larger_bound_decides_and_says_that_they_disagree(bootstrap_is_larger: bool) -> None:
    losses = next(one for one in PAIRS if larger(one) == bootstrap_is_larger)
    found = decide(**losses, margin=1.0, rounds=4)
    between = (number(found.upper) + number(found.upper_by_t)) / 2
    verdict = decide(**losses, margin=between, rounds=4)
    assert not verdict.matched
    assert "bounds over 60 documents disagree" in verdict.text
    assert "the larger decides" in verdict.text
    assert "disagree" not in found.text


def larger(losses: dict[str, Any]) -> bool:
    """Whether the bootstrap's bound is."""
    found = decide(**losses, margin=1.0, rounds=4)
    return number(found.upper) > number(found.upper_by_t)


def test_the_sentence_of_a_match() -> None:
    verdict = decide(**BEST, margin=0.01, rounds=3)
    assert verdict.text == (
        f"matched: target - reference is at most {verdict.upper:.4f} nats a token (upper 98.33% bound over "
        f"445 documents), below the tolerance of 0.01; this holds for these weights"
    )


def test_the_sentence_of_a_miss() -> None:
    verdict = decide(**moved(BEST, 0.06), margin=0.01, rounds=4)
    assert verdict.text == (
        f"not matched: target - reference is {verdict.difference:.4f} nats a token and may be as much as "
        f"{verdict.upper:.4f} nats a token (upper 98.75% bound over 445 documents), not below the tolerance of 0.01; "
        f"this holds for these weights"
    )


def test_a_bound_is_never_shown_as_the_margin() -> None:
    bounds = decide(**BEST, margin=0.01)
    near = moved(BEST, 0.01 - max(number(bounds.upper), number(bounds.upper_by_t)) - 2e-6)
    text = decide(**near, margin=0.01).text
    assert text.startswith("matched: target - reference is at most 0.00999")


def test_one_document_matches_nothing() -> None:
    verdict = decide(np.array([1.0]), np.array([300.0]), np.array([100.0]), margin=0.01)
    assert (verdict.matched, verdict.upper, verdict.upper_by_t, verdict.half_width) == (False, None, None, None)
    assert "one validation document leaves no spread to judge by" in verdict.text
    json.dumps(dataclasses.asdict(verdict), allow_nan=False)


def test_too_few_documents_for_a_bound_match_nothing() -> None:
    verdict = decide(**pair(3, mean=-2.0), margin=0.01, rounds=4)
    assert (verdict.matched, verdict.upper, verdict.half_width) == (False, None, None)
    assert number(verdict.upper_by_t) < 0.01
    assert "3 documents are too few for an upper 98.75% bound" in verdict.text
    json.dumps(dataclasses.asdict(verdict), allow_nan=False)


@pytest.mark.parametrize("shift", [0.0, 0.25])
def test_models_without_any_spread_between_them(shift: float) -> None:
    same = moved(LOSSES | {"target": LOSSES["reference"]}, shift)
    verdict = decide(**same, margin=0.1)
    assert verdict.difference == pytest.approx(shift)
    assert verdict.upper == verdict.upper_by_t == verdict.difference
    assert verdict.matched == (shift == 0)
    assert not decide(**same, margin=0.0).matched


def test_documents_without_a_token_say_nothing() -> None:
    padded: dict[str, Any] = {name: np.concatenate([values, np.zeros(300)]) for name, values in LOSSES.items()}
    assert decide(**padded, margin=0.01) == decide(**LOSSES, margin=0.01)


def test_the_losses_that_were_given_stay_as_they_were() -> None:
    kept = {name: values.copy() for name, values in LOSSES.items()}
    decide(**LOSSES, margin=0.01)
    assert all((LOSSES[name] == kept[name]).all() for name in kept)


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"target": np.ones(3)}, "a value a document"),
        ({"tokens": np.ones((200, 1))}, "a value a document"),
        (dict.fromkeys(LOSSES, np.ones((200, 1))), "a value a document"),
        ({"target": np.full(200, math.nan)}, "not finite"),
        ({"reference": np.full(200, math.inf)}, "not finite"),
        ({"tokens": np.zeros(200)}, "at least one in all"),
        ({"tokens": np.array([-1.0] + 199 * [3.0])}, "none below 0"),
        ({"margin": math.nan}, "margin"),
        ({"alpha": 0.0}, "alpha"),
        ({"alpha": 0.5}, "alpha"),
        ({"rounds": 0}, "rounds"),
        ({"resamples": 0}, "resamples"),
    ],
)
def test_what_makes_no_decision_is_an_error(changes: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        decide(**({"margin": 0.01} | LOSSES | changes))


def test_the_width_foreseen_is_that_of_the_bound_that_will_decide() -> None:
    either = [next(one for one in PAIRS if larger(one) == is_larger) for is_larger in (True, False)]
    for losses in either:
        foreseen = foreseen_half_width(**losses, alpha=0.05, rounds=4)
        found = decide(**losses, margin=0.01, alpha=0.05, rounds=4)
        assert foreseen == pytest.approx(max(number(found.upper), number(found.upper_by_t)) - found.difference)


def test_the_pilot_s_own_difference_plays_no_role_in_what_is_foreseen() -> None:
    near, far = (foreseen_half_width(**moved(LOSSES, by), alpha=0.05, rounds=4) for by in (0.0, 3.0))
    assert far == pytest.approx(near, rel=1e-9)


def test_one_document_foresees_nothing() -> None:
    one = np.array([5.0])
    assert foreseen_half_width(2 * one, one, one, alpha=0.05, rounds=1) == math.inf


@given(st.floats(1e-4, 1.0), st.integers(2, 10_000), st.floats(1e-3, 0.1))
def test_the_documents_needed_are_just_enough(width: float, documents: int, margin: float) -> None:
    needed = documents_needed(width, documents, margin)
    aim = 0.7 * margin
    assert width * math.sqrt(documents / needed) <= aim * (1 + 1e-9)
    assert needed == 2 or width * math.sqrt(documents / (needed - 1)) >= aim * (1 - 1e-9)


def test_the_documents_needed_bring_the_width_down_indeed() -> None:
    width = foreseen_half_width(**LOSSES, alpha=0.05, rounds=4)
    needed = documents_needed(width, 200, 0.008)
    assert 0.75 < foreseen_half_width(**pair(needed, seed=9), alpha=0.05, rounds=4) / (0.7 * 0.008) < 1.25


@pytest.mark.parametrize("given_", [(math.inf, 9, 0.1), (-0.1, 9, 0.1), (0.1, 0, 0.1), (0.1, 9, 0.0)])
def test_no_documents_make_up_for_nonsense(given_: tuple[float, int, float]) -> None:
    with pytest.raises(ValueError, match="no number of documents"):
        documents_needed(*given_)


def verdicts(*means: float) -> list[Verdict]:
    return [decide(**moved(BEST, 0.02 + mean), margin=0.01, rounds=4) for mean in means]


@pytest.mark.parametrize(("means", "matched"), [((-0.03, -0.02, -0.04), True), ((-0.03, 0.03, -0.04), False)])
def test_several_seeds_match_if_every_one_does(means: tuple[float, ...], matched: bool) -> None:
    seeds = verdicts(*means)
    found = combined(seeds)
    assert found.matched is matched
    assert found.verdicts == tuple(seeds)
    assert found.difference == pytest.approx(seeds[0].difference - means[0] + sum(means) / 3)
    assert found.spread == pytest.approx(float(np.std(means, ddof=1)))
    said = "matched: 3 of 3" if matched else "not matched: 2 of 3"
    assert found.text == (
        f"{said} training seeds match, target - reference is {found.difference:.4f} nats a token in the mean over "
        f"seeds, with a standard deviation of {found.spread:.4f}; this holds for the weights of these seeds"
    )


def test_one_seed_is_its_own_verdict() -> None:
    (verdict,) = verdicts(-0.03)
    found = combined([verdict])
    assert (found.matched, found.difference, found.spread, found.text) == (True, verdict.difference, None, verdict.text)


def test_verdicts_by_different_rules_have_nothing_in_common() -> None:
    with pytest.raises(ValueError, match="all by the same"):
        combined([*verdicts(-0.03), decide(**BEST, margin=0.01, rounds=3)])
    with pytest.raises(ValueError, match="verdicts: at least one"):
        combined([])
