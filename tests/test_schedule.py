"""The learning rate at named steps."""

from __future__ import annotations

import pytest

from inheritune.schedule import learning_rate, validation_interval


@pytest.mark.parametrize(
    ("step", "rate"),
    [(0, 0.2), (1, 0.4), (3, 0.8), (4, 1.0), (54, 0.55), (104, 0.1), (200, 0.1)],
)
def test_warmup_then_cosine(step: int, rate: float) -> None:
    found = learning_rate(step, steps=104, warmup_steps=4, peak=1.0, final=0.1)
    assert found == pytest.approx(rate, abs=1e-12)


def test_without_warmup_it_begins_at_the_peak() -> None:
    assert learning_rate(0, steps=10, warmup_steps=0, peak=3e-4, final=0.0) == 3e-4


def test_a_warmup_longer_than_the_run_never_reaches_the_peak() -> None:
    assert learning_rate(9, steps=10, warmup_steps=100, peak=1.0, final=0.0) < 0.1


@pytest.mark.parametrize(
    ("validation", "step", "interval"),
    [
        (2_000_000, 64 * 1024, 382),  # the defaults: 2M tokens at half of the cost, beside 382 steps of 65,536
        (88_000, 4096, 269),
        (10, 65_536, 1),
    ],
)
def test_validation_takes_a_twenty_fifth(validation: int, step: int, interval: int) -> None:
    found = validation_interval(validation, step)
    assert found == interval
    assert validation / 2 <= 0.04 * found * step
    assert found == 1 or validation / 2 > 0.04 * (found - 1) * step
