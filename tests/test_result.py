"""The outcome from records: scores, share, verdict, tokens to match."""

from __future__ import annotations

import math
from typing import Any

import pytest

from inheritune.result import OwnTraining, assemble, bits_per_byte, tokens_to_match, validation_curve

TOKENS = [10, 30, 20]


def losses(layers: int, nats: list[float]) -> dict[str, Any]:
    """A `losses/NAME.json`: nats a token by document."""
    record = {
        "nats": [n * t for n, t in zip(nats, TOKENS, strict=True)],
        "correct": [t // 2 for t in TOKENS],
        "tokens": TOKENS,
        "bytes": [4 * t for t in TOKENS],
    }
    return {"layers": layers, "parameters": 100 * layers, "sets": {"held-out": record, "development": record}}


def metrics(*points: tuple[int, float]) -> list[dict[str, Any]]:
    return [
        {"kind": "validation", "step": tokens // 10, "tokens": tokens, "losses": {"held-out": loss}}
        for tokens, loss in points
    ]


TRAINED = {"tokens": 600, "unique_tokens": 200, "flops": 1e6, "seconds": 3.0}
LEDGER = {"train target": TRAINED, "train random": TRAINED}


def run(control: list[float], own: OwnTraining | None = None) -> dict[str, Any]:
    return assemble(
        "x",
        losses={
            "reference": losses(4, [2.0, 2.1, 1.9]),
            "cut": losses(2, [7.0, 7.0, 7.0]),
            "target": losses(2, [3.0, 3.1, 2.9]),
            "random": losses(2, control),
        },
        ledger=LEDGER,
        metrics={"target": metrics((0, 7.0), (600, 3.0)), "random": metrics((0, 8.0), (600, 6.0))},
        own_training=own or OwnTraining("ref", 10_000, metrics((0, 8.0), (1000, 4.0), (2000, 2.0)), True),
        main_set="held-out",
    )


def test_scores_are_token_weighted() -> None:
    target = run([6.0, 6.1, 5.9])["target"]
    loss = (10 * 3.0 + 30 * 3.1 + 20 * 2.9) / 60
    assert target["validation_loss"] == pytest.approx(loss)
    assert target["bits_per_byte"]["held-out"] == pytest.approx(loss * 60 / math.log(2) / 240)
    assert target["accuracy"]["held-out"] == pytest.approx(0.5)
    assert (target["passes"], target["unique_tokens"]) == (3, 200)


def test_a_clear_gap_is_a_share_in_the_verdict() -> None:
    result = run([6.0, 6.1, 5.9])
    assert result["share"]["value"] == pytest.approx(0.75)
    assert "2 of 4 layers, trained on 200 tokens in 3 passes, close 75% of the gap" in result["verdict"]
    assert result["before"] == {"target": {"held-out": 7.0}, "random": {"held-out": 8.0}}
    assert result["controls"]["cut"]["tokens_trained"] == 0
    assert result["reference"]["tokens_trained"] == 10_000


def test_a_control_as_good_as_the_reference_shows_nothing() -> None:
    result = run([2.0, 2.0, 2.0])
    assert not result["share"]["shown"]
    assert result["verdict"].startswith("The control is as good as the reference: this comparison shows nothing")


def test_tokens_to_match_come_from_the_control_or_from_the_reference() -> None:
    own = metrics((0, 8.0), (1000, 4.0), (2000, 2.0))
    curve = validation_curve(own, "held-out")
    assert curve == [(0, 8.0), (1000, 4.0), (2000, 2.0)]
    assert tokens_to_match(6.0, curve, [], True) | {"text": ""} == {"tokens": 500, "source": "control", "text": ""}
    found = tokens_to_match(3.0, [(0, 8.0), (600, 6.0)], curve, True)
    assert (found["tokens"], found["source"]) == (1500, "reference")
    assert "had not reached the target's loss after 600 tokens" in found["text"]
    assert "on the same documents" in found["text"]
    assert "its own held-out documents" in tokens_to_match(3.0, [], curve, False)["text"]
    assert tokens_to_match(1.0, curve, curve, True)["tokens"] is None


def test_a_step_measured_again_after_a_restart_counts_once() -> None:
    records = [*metrics((0, 8.0), (100, 5.0)), *metrics((100, 4.9), (200, 4.0))]
    assert validation_curve(records, "held-out") == [(0, 8.0), (100, 4.9), (200, 4.0)]


def test_without_a_reference_there_is_no_share() -> None:
    result = assemble(
        "x",
        losses={"target": losses(2, [3.0, 3.1, 2.9])},
        ledger=LEDGER,
        metrics={"target": []},
        own_training=None,
        main_set="held-out",
    )
    assert result["reference"] is None
    assert "share" not in result
    assert "from random init on 600 tokens" in result["verdict"]


def test_a_uniform_guess_over_bytes_costs_eight_bits() -> None:
    assert bits_per_byte(100 * math.log(256), 100) == pytest.approx(8.0)
