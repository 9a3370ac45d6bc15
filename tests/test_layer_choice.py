"""A choice of layers as a record: in words, and found again under either of its names."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from inheritune.layerwise import Turning
from inheritune.pipeline import layer_choice
from inheritune.pipeline.layer_choice import in_words, record_of

TURNING = Turning((0.75, 0.25, 0.5), np.array([[0, 3, 5, 7], [3, 0, 4, 2], [5, 4, 0, 6], [7, 2, 6, 0]]) / 8, 65_536)


@pytest.mark.parametrize(
    ("measure", "count", "layers", "words"),
    [
        ("influence", 2, [0, 2], "layers 0, 2, the blocks of the greatest influence"),
        ("angular", 2, [1, 2], "layers 1, 2, outside the stretch that turns least"),
        ("angular", 1, [0], "layers 0, outside the stretch that turns least"),
    ],
)
def test_a_choice_is_spelled_out(measure: str, count: int, layers: list[int], words: str) -> None:
    record = record_of(TURNING, (measure, count), "train")
    assert record == {
        "measure": measure,
        "layers": layers,
        "tokens": 65_536,
        "set": "train",
        "influence": [0.75, 0.25, 0.5],
        "angular": [[0.375, 0.5, 0.75], [0.625, 0.25], [0.875]],
    }
    assert json.loads(json.dumps(record)) == record
    assert in_words(record) == f"{measure} on 65,536 tokens: {words}"


def test_a_choice_is_found_under_its_earlier_name(tmp_path: Path) -> None:
    assert layer_choice.read(tmp_path) is None
    earlier = {"layers": [0, 2], "influence": [0.75, 0.25, 0.5], "tokens": 100, "set": "train"}
    (tmp_path / "influence.json").write_text(json.dumps(earlier))
    assert layer_choice.read(tmp_path) == earlier
    assert in_words(earlier) == "influence on 100 tokens: layers 0, 2, the blocks of the greatest influence"
    record = record_of(TURNING, ("angular", 2), "train")
    layer_choice.write(tmp_path, record)
    assert layer_choice.read(tmp_path) == record
