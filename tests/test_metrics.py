"""Records of a training: what a killed run wrote beyond its checkpoint goes, and trackers get numbers alone."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from inheritune.errors import Failed
from inheritune.metrics import Metrics
from inheritune.run_directory import keep_records, read_jsonl


def step(number: int, loss: float = 1.5, **more: Any) -> dict[str, Any]:
    return {"kind": "step", "step": number, "loss": loss, **more}


def validation(number: int) -> dict[str, Any]:
    return {"kind": "validation", "step": number, "tokens": 640, "losses": {"development": 2.5, "held-out": 3}}


class Noted:
    """A tracker that remembers."""

    def __init__(self) -> None:
        self.logged: list[tuple[dict[str, float], int]] = []
        self.closed = 0

    def log(self, values: dict[str, float], step: int) -> None:
        self.logged.append((values, step))

    def close(self) -> None:
        self.closed += 1


def test_records_after_the_resumed_step_are_dropped(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    first = Metrics(path, 0)
    records = [validation(0), step(1), step(2), validation(2), step(3), validation(3), step(4)]
    for record in records:
        first.append(record)
    first.close()
    assert read_jsonl(path) == records
    resumed = Metrics(path, 2)
    assert read_jsonl(path) == records[:4]
    resumed.append(step(3, 0.5))
    resumed.close()
    assert read_jsonl(path) == [*records[:4], step(3, 0.5)]


def test_a_new_training_begins_an_empty_file(tmp_path: Path) -> None:
    Metrics(tmp_path / "metrics.jsonl", 0).close()
    assert (tmp_path / "metrics.jsonl").read_bytes() == b""
    assert os.listdir(tmp_path) == ["metrics.jsonl"]


def test_a_tracker_gets_numbers_under_their_kind(tmp_path: Path) -> None:
    tracker = Noted()
    metrics = Metrics(tmp_path / "metrics.jsonl", 0, tracker)
    metrics.append(validation(0))
    metrics.append(step(1, skipped=True, note="text", nothing=None))
    scores = {"piqa.acc": 0.5, "wikitext.word_perplexity": None}
    beside = {"errors": {"piqa.acc": 0.1}, "lines": {"piqa": {"rows": 20}}, "gaps": {"wsc": "no data"}}
    metrics.append({"kind": "evaluation", "step": 1, "tokens": 640, "scores": scores, **beside})
    assert tracker.logged == [
        ({"validation/development": 2.5, "validation/held-out": 3.0}, 0),
        ({"step/loss": 1.5, "step/skipped": 1.0}, 1),
        ({"evaluation/piqa.acc": 0.5}, 1),
    ]
    assert all(type(value) is float for values, _ in tracker.logged for value in values.values())
    assert tracker.closed == 0
    metrics.close()
    assert tracker.closed == 1


def test_without_a_file_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    metrics = Metrics(None, 0)
    metrics.append(step(1))
    metrics.close()
    assert os.listdir(tmp_path) == []


def test_what_a_kill_cut_short_goes_with_the_records_that_are_not_wanted(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    lines = [json.dumps(step(number, note="ü")) for number in (1, 2, 3)]
    path.write_text("\n".join([*lines, '{"kind": "st']), encoding="utf-8")
    keep_records(path, lambda record: record["step"] != 2)
    assert read_jsonl(path) == [step(1, note="ü"), step(3, note="ü")]
    assert path.read_bytes().endswith(b"}\n")
    assert os.listdir(tmp_path) == ["metrics.jsonl"]


def test_a_file_of_wanted_records_is_left_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    keep_records(path, lambda _record: False)
    assert not path.exists()
    path.write_text('{"step":1}\n{ "step": 2 }\n', encoding="utf-8")
    before = (path.stat().st_ino, path.read_bytes())
    keep_records(path, lambda record: record["step"] < 3)
    assert (path.stat().st_ino, path.read_bytes()) == before


def test_a_damaged_file_is_said_and_left(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\nnonsense\n{"step": 9}\n', encoding="utf-8")
    with pytest.raises(Failed, match=r"metrics\.jsonl:2: not JSON"):
        Metrics(path, 1)
    assert path.read_text(encoding="utf-8").count("\n") == 3


@pytest.mark.parametrize("line", ['{"kind": "train"}', '{"step": "x"}', '{"step": true}'])
def test_a_record_without_its_step_is_named(line: str, tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n' + line + "\n", encoding="utf-8")
    with pytest.raises(Failed, match=r"metrics\.jsonl:2: a record without its step"):
        Metrics(path, 1)
