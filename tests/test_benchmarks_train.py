"""The training benchmark's options and arithmetic; nothing is timed."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def benchmarks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))


def _measurement(peer: str, turn: int, speed: float, first_loss: float = 8.0) -> dict[str, Any]:
    return {
        "shape": "demo", "dtype": "float32", "turn": turn, "peer": peer, "variant": "compiled",
        "tokens_per_second": speed, "memory_bytes": 2, "steady_memory_bytes": 1, "first_step_seconds": 3.0,
        "losses": [first_loss],
    }  # fmt: skip


def _record(*measurements: dict[str, Any]) -> dict[str, Any]:
    shape = {
        "flops_per_token": 10.0, "parameters": 1, "batch_sequences": 2, "sequence_length": 4,
        "left_out": {"nanogpt": "GPT-2 only"},
    }  # fmt: skip
    return {
        "shapes": {"demo": shape},
        "peers": {"inheritune": {}, "litgpt": {}, "bare": {}},
        "tuning": [],
        "matmul": [{"shape": "demo", "dtype": "float32", "turn": turn, "flops_per_second": 4000.0} for turn in (0, 1)],
        "measurements": list(measurements),
    }


def test_ratios_are_taken_turn_by_turn_against_the_fastest_peer(benchmarks: None) -> None:
    summary = importlib.import_module("training.summary")
    record = _record(
        _measurement("inheritune", 0, 200), _measurement("litgpt", 0, 100), _measurement("bare", 0, 160),
        _measurement("inheritune", 1, 100), _measurement("litgpt", 1, 100), _measurement("bare", 1, 125),
    )  # fmt: skip
    (entry,) = summary.summarise(record)
    assert entry["best_peer"] == "bare"
    assert entry["ratio_to_best_peer"] == {"median": pytest.approx(1.025), "low": 0.8, "high": 1.25}
    assert entry["peers"]["inheritune"]["mfu"]["high"] == pytest.approx(0.5)
    assert summary.overall([entry]) == pytest.approx(1.025)
    shown = summary.table(record, [entry])
    assert "| bare | compiled | 2 |" in shown
    assert "nanogpt left out: GPT-2 only." in shown


def test_a_peer_whose_first_loss_differs_did_other_work_and_does_not_count(benchmarks: None) -> None:
    summary = importlib.import_module("training.summary")
    record = _record(
        _measurement("inheritune", 0, 200), _measurement("litgpt", 0, 100), _measurement("bare", 0, 160, 8.1)
    )
    (entry,) = summary.summarise(record)
    assert entry["best_peer"] == "litgpt"
    assert "not the same work" in summary.table(record, [entry])


def test_failures_are_shown_and_do_not_stop_the_rest(benchmarks: None) -> None:
    summary = importlib.import_module("training.summary")
    failed = {"shape": "demo", "dtype": "float32", "turn": 0, "peer": "bare", "variant": "eager", "failed": "exit 1: X"}
    record = _record(_measurement("inheritune", 0, 200), _measurement("litgpt", 0, 100), failed)
    entries = summary.summarise(record)
    assert summary.overall(entries) == 2.0
    assert "failed: bare (eager), demo, float32: exit 1: X" in summary.table(record, entries)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--shapes", "huge"], "--shapes: 'huge' is none of demo"),
        (["--peers", "nobody"], "--peers: 'nobody' is none of"),
        (["--steps", "0"], "--steps: 0; at least 1"),
        (["--litgpt", "/nowhere/python"], "--litgpt: no interpreter"),
        (["--nanogpt", "/nowhere"], "does not hold train.py"),
        (["--out", "/nowhere/x.json"], "--out: no directory"),
        (["--frob"], "unrecognized arguments"),
    ],
)
def test_bad_options_are_one_line_and_exit_code_2(
    benchmarks: None, capsys: pytest.CaptureFixture[str], words: list[str], said: str
) -> None:
    train = importlib.import_module("train")
    with pytest.raises(SystemExit) as stopped:
        train.options(words)
    assert stopped.value.code == 2
    shown = capsys.readouterr().err
    assert said in shown
    assert shown.count("\n") == 1
