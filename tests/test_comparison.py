"""The share of the gap, its interval, and when it says nothing."""

from __future__ import annotations

import numpy as np
import pytest

from inheritune import comparison
from inheritune.comparison import Documents, resampled_means, share_of_gap, tokens_to_reach


def documents(mean: float, noise: float, seed: int, tokens: Documents) -> Documents:
    return np.asarray((mean + noise * np.random.default_rng(seed).standard_normal(len(tokens))) * tokens)


TOKENS = np.random.default_rng(9).integers(50, 500, 200).astype(np.float64)


def test_the_share_is_the_ratio_of_token_weighted_means() -> None:
    share = share_of_gap(6.0 * TOKENS, 3.0 * TOKENS, 2.0 * TOKENS, TOKENS)
    assert share.value == pytest.approx(0.75)
    assert share.low == pytest.approx(0.75)
    assert share.high == pytest.approx(0.75)


def test_the_interval_covers_the_truth_and_is_not_a_point() -> None:
    covered = 0
    for seed in range(40):
        c, t, r = (documents(mean, 0.8, 3 * seed + index, TOKENS) for index, mean in enumerate((6.0, 3.0, 2.0)))
        share = share_of_gap(c, t, r, TOKENS)
        assert share.low is not None
        assert share.high is not None
        assert 0.005 < share.high - share.low < 0.2
        covered += share.low <= 0.75 <= share.high
    assert covered >= 34  # 95% of 40 are 38; fewer than 34 has a chance below 2%


def test_draws_do_not_depend_on_how_many_are_made_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(0)
    tokens = random.integers(1, 90, 70).astype(float)
    losses = [tokens * random.normal(3, 1, 70) for _ in range(2)]
    whole = resampled_means(losses, tokens)
    monkeypatch.setattr(comparison, "_CELLS", 70 * 37)
    for one, other in zip(whole, resampled_means(losses, tokens), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-14)


def test_pairing_narrows_the_interval() -> None:
    hardness = documents(0.0, 2.0, 1, TOKENS)
    paired = share_of_gap(6 * TOKENS + hardness, 3 * TOKENS + hardness, 2 * TOKENS + hardness, TOKENS)
    assert paired.high is not None
    assert paired.low is not None
    assert paired.high - paired.low < 1e-9


def test_no_share_where_the_control_is_as_good_as_the_reference() -> None:
    control, reference = documents(3.0, 1.0, 1, TOKENS), documents(3.0, 1.0, 2, TOKENS)
    share = share_of_gap(control, 2.9 * TOKENS, reference, TOKENS)
    assert not share.shown
    assert share.value is None
    assert "this comparison shows nothing" in share.text


def test_one_document_has_no_spread() -> None:
    one = np.array([10.0])
    assert not share_of_gap(6 * one, 3 * one, 2 * one, one).shown


@pytest.mark.parametrize(
    ("loss", "tokens"),
    [(5.0, 0), (4.0, 100), (3.5, 150), (3.0, 200), (2.9, None)],
)
def test_tokens_to_reach_a_loss(loss: float, tokens: int | None) -> None:
    assert tokens_to_reach(loss, [(0, 5.0), (100, 4.0), (200, 3.0), (300, 3.2)]) == tokens
