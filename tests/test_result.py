"""The outcome from records: scores, share, verdict, tokens to match."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from inheritune.result import (
    OwnTraining,
    assemble,
    bits_per_byte,
    difference,
    title_of,
    tokens_to_match,
    validation_curve,
    verdict,
)

RECORDS = Path(__file__).parent.parent / "docs" / "records"

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


def outline(value: Any) -> Any:
    """The keys of a record in their order, at every depth, without the values."""
    return [(key, outline(inner)) for key, inner in value.items()] if isinstance(value, dict) else None


@pytest.mark.parametrize("name", ["demo", "stories"])
def test_a_run_of_cut_and_random_has_the_record_that_it_always_had(name: str) -> None:
    recorded = json.loads((RECORDS / name / "result.json").read_text(encoding="utf-8"))
    added_by_the_pipeline = {key: recorded.pop(key) for key in ("sets", "model")}
    assert list(added_by_the_pipeline["sets"]) == ["train", "held-out", "development"]
    result = run([6.0, 6.1, 5.9])
    assert list(result["before"]) == list(recorded["before"])
    result["before"] = recorded["before"]  # measured on other sets
    assert outline(result) == outline(recorded)
    assert verdict(recorded) == recorded["verdict"]


def with_controls(nats: dict[str, list[float]], **more: Any) -> dict[str, Any]:
    """The result of a run whose target has 3.0, 3.1, 2.9 nats a token, and a control for each entry of `nats`."""
    measured = {"reference": [2.0, 2.1, 1.9], "cut": [7.0, 7.0, 7.0], "target": [3.0, 3.1, 2.9], **nats}
    return assemble(
        "x",
        losses={name: losses(4 if name == "reference" else 2, value) for name, value in measured.items()},
        ledger={f"train {name}": TRAINED for name in measured},
        metrics={name: metrics((0, 8.0), (600, 6.0)) for name in ("target", *nats)},
        own_training=OwnTraining("ref", 10_000, [], True),
        main_set="held-out",
        **more,
    )


def test_every_trained_control_has_its_record_and_a_difference() -> None:
    result = with_controls({"stack": [3.5, 3.6, 3.4], "random": [6.0, 6.1, 5.9], "attention+mlp": [3.0, 3.3, 2.7]})
    assert list(result["controls"]) == ["random", "cut", "stack", "attention+mlp"]
    assert list(result["before"]) == ["target", "stack", "random", "attention+mlp"]
    assert result["controls"]["stack"]["tokens_trained"] == 600
    assert result["controls"]["attention+mlp"]["flops"] == 1e6
    assert list(result["differences"]) == ["random", "stack", "attention+mlp"]
    stack = result["differences"]["stack"]
    assert (stack["value"], stack["low"], stack["high"]) == pytest.approx((0.5, 0.5, 0.5))
    assert stack["text"] == "Stack - target: 0.500 nats a token (95% interval 0.500 to 0.500, over 3 documents)."
    other = result["differences"]["attention+mlp"]
    assert other["value"] == pytest.approx((30 * 0.2 - 20 * 0.2) / 60)
    assert other["low"] == pytest.approx(-0.2)
    assert other["high"] == pytest.approx(0.2)
    assert (other["documents"], other["set"]) == (3, "held-out")


def test_the_share_is_of_random_init_alone() -> None:
    stack, random = [3.5, 3.6, 3.4], [6.0, 6.1, 5.9]
    assert with_controls({"stack": stack, "random": random})["share"] == run(random)["share"]
    alone = with_controls({"stack": stack})
    assert "share" not in alone
    assert alone["verdict"].endswith("reach 3.017 nats a token on held-out text; the reference has 2.017.")


def test_an_interval_pairs_the_documents() -> None:
    """Documents that differ far more than the models do not widen it."""
    nats = [1.0, 5.0, 9.0]
    control, target = losses(2, [n + 0.1 for n in nats])["sets"], losses(2, nats)["sets"]
    found = difference("stack", control, target, "held-out")
    assert (found["low"], found["high"]) == pytest.approx((0.1, 0.1))


def test_one_document_has_a_difference_without_interval() -> None:
    one = {"held-out": {"nats": [30.0], "tokens": [10]}}
    found = difference("mlp", {"held-out": {"nats": [35.0], "tokens": [10]}}, one, "held-out")
    assert (found["value"], found["low"], found["high"]) == (0.5, None, None)
    assert (
        found["text"] == "MLP only - target: 0.500 nats a token (one validation document leaves no spread to judge by)."
    )


def test_another_init_is_named_in_the_verdict() -> None:
    result = with_controls({"inherit": [2.9, 3.0, 2.8]}, init="stack")
    assert result["init"] == "stack"
    assert result["verdict"].startswith(
        "2 layers (init: stack; the reference has 4), trained on 200 tokens in 3 passes,"
    )


@pytest.mark.parametrize(
    ("name", "title"),
    [
        ("random", "Random init"),
        ("stack", "Stack"),
        ("mlp", "MLP only"),
        ("final_norm", "Final norm only"),
        ("attention+mlp+block_norms", "Attention + MLP + block norms"),
        ("attention+mlp+block_norms+final_norm", "All but embeddings, head"),
        ("attention+block_norms+embeddings+final_norm+head", "All but MLP"),
        ("another_kind", "Another kind"),
    ],
)
def test_titles(name: str, title: str) -> None:
    assert title_of(name) == title


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


def test_a_control_trained_for_longer_counts_in_tokens_to_match() -> None:
    short, longer, longest = ([(0, 8.0), (tokens, loss)] for tokens, loss in ((600, 6.0), (1200, 4.0), (1800, 3.5)))
    found = tokens_to_match(5.0, short, [], True, [longer, longest])
    assert (found["tokens"], found["source"]) == (900, "control")
    assert found["text"].startswith("From random init the same network, trained for more steps, reached")
    assert (
        "not reached the target's loss after 1,800 tokens"
        in tokens_to_match(3, short, [], True, [longer, longest])["text"]
    )
    nats = {"random": [6.0, 6.1, 5.9], "random:3x": [4.0] * 3, "random:2x": [4.5] * 3, "random:4x@3": [2.0] * 3}
    measured = {"reference": [2.0, 2.1, 1.9], "target": [3.0, 3.1, 2.9], **nats}
    result = assemble(
        "x",
        losses={name: losses(2, value) for name, value in measured.items()},
        ledger={f"train {name}": TRAINED for name in measured},
        metrics={name: metrics((0, 8.0), (600, values[0] - 1.5)) for name, values in nats.items()},
        own_training=OwnTraining("ref", 10_000, [], True),
        main_set="held-out",
    )
    # random ends at 4.5, random:2x at 3.0, random:3x at 2.5; the target has 3.017
    assert result["tokens_to_match"]["tokens"] == 598
    assert "trained for more steps" in result["tokens_to_match"]["text"]


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
