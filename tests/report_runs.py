"""Run directories for the tests of the page: with every record that it shows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from inheritune.scores import Evaluation, Line, Model, Score
from test_report import MARKUP, make_run

TOKENS_A_STEP = 4096
SPEED = 8192.0
"""Tokens a second: a step takes half of one."""


def with_speed(run: Path, every: float = SPEED) -> None:
    """Give every step of a run's trainings its speed and memory, as trainings record them."""
    for path in run.glob("**/metrics.jsonl"):
        records = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        for record in records:
            if record["kind"] == "step":
                record |= {"tokens_per_second": every, "memory_bytes": 3 * 2**30}
        path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")


def evaluation() -> dict[str, Any]:
    """An `evaluation.json` of two models on two tasks."""
    known: dict[str, Any] = {"better": "higher", "whole": True, "selection": None, "majority": None}
    part = known | {"whole": False}
    lines = (
        Line("piqa", "piqa", 0, "acc", rows=1838, rows_in_split=1838, chance=0.5, tasks=("piqa",), **known),
        Line("boolq", f"boolq {MARKUP}", 5, "acc", rows=100, rows_in_split=3270, chance=0.5, tasks=("boolq",), **part),
    )
    scores = {
        "target": {"piqa": score(0.612, 0.0114), "boolq": score(0.51, 0.05)},
        "reference": {"piqa": score(0.7, 0.0107)},
    }
    models = (
        Model("target", "target", "model", "0" * 64, 3_801_088, 4),
        Model("reference", "reference", f"org/{MARKUP}", "1" * 64, 7_340_032, 8),
    )
    return Evaluation("quick", lines, models, scores).record()


def score(value: float, error: float) -> Score:
    return Score(value, error, (value - 0.5) / 0.5, (), 0, {})


def layer_choice() -> dict[str, Any]:
    """A `layer_choice.json` of a probe."""
    candidates = [
        {"name": "first:4", "layers": [0, 1, 2, 3], "untrained": 5.044, "losses": [4.056], "steps": 6, "tokens": 24576},
        {"name": "first:2+last:2", "layers": [0, 1, 6, 7], "untrained": 3.677, "losses": [3.361, 3.215], "steps": 18},
        {"name": "first:3+last:1", "layers": [0, 1, 2, 7], "untrained": 3.834, "losses": [3.493, 3.328], "steps": 18},
    ]
    rungs = [{"candidates": 3, "steps": 6}, {"candidates": 2, "steps": 18}]
    probe = {"chosen": "first:2+last:2", "set": "development", "rungs": rungs, "tokens": 196_608, "flops": 5.0e12}
    return {
        "measure": "probe",
        "layers": [0, 1, 6, 7],
        "tokens": 196_608,
        "set": "train",
        "influence": [1.02, 0.16, 0.04, 0.05, 0.06, 0.05, 0.07, 0.08],
        "angular": [[0.5] * 8, [0.5] * 7, [0.5] * 6, [0.48, 0.29, 0.27, 0.288, 0.3]],
        "probe": {**probe, "candidates": candidates},
    }


def degeneracy() -> dict[str, Any]:
    """A `degeneracy.json`: three layers of two heads, one without attention."""
    ranks: list[Any] = [[1.0, 3.0], None, [16.0, 64.0]]
    shares = [None if heads is None else [rank / 256 for rank in heads] for heads in ranks]
    sizes = {"sequences": 8, "sequence_length": 256, "tokens": 2048}
    return {"set": "held-out", **sizes, "seed": None, "held": 0.9, "rank": ranks, "column_share": shares}


def plan() -> dict[str, Any]:
    """A `plan.json` of the target and random init."""
    hours = {"fastest": 0.02, "likely": 0.03, "slowest": 0.05}
    training = {"steps": 1000, "tokens": 4_096_000, "training_flops": 1.1e15, "hours": hours}
    return {
        "device": {"title": "this CPU", "count": 1},
        "state_bytes": 2.5 * 2**30,
        "models": [{"name": "target", **training}, {"name": "random", **training}, {"name": "stack", **training}],
    }


def growth() -> list[dict[str, Any]]:
    """The lines of a `growth.jsonl` of two rounds."""
    verdict = {"matched": True, "difference": 0.004, "upper": 0.01, "margin": 0.02, "alpha": 0.05, "rounds": 2}
    first = {"round": 1, "layers": 3, "seed": 0, "state": "abandoned", "steps": 40, "planned_steps": 100}
    second = {"round": 2, "layers": 4, "seed": 0, "state": "finished", "validation_loss": 2.583, "flops": 1e15}
    return [
        {**first, "curve": [[0, 9.9], [40, 5.2]]},
        {**second, "verdict": {**verdict, "text": MARKUP}, "curve": [[0, 9.9], [50, 3.1], [100, 2.6]]},
    ]


def full_run(run: Path) -> Path:
    """A finished run with every record that a page shows."""
    make_run(run)
    with_speed(run)
    records = {"evaluation": evaluation(), "layer_choice": layer_choice(), "degeneracy": degeneracy(), "plan": plan()}
    for name, record in records.items():
        (run / f"{name}.json").write_text(json.dumps(record), encoding="utf-8")
    lines = "".join(json.dumps(line) + "\n" for line in growth())
    (run / "growth.jsonl").write_text(lines, encoding="utf-8")
    return run
