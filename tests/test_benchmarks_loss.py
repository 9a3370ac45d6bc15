"""The benchmark of the chunked loss: the plain loss beside it, its arithmetic; nothing is timed."""

from __future__ import annotations

import functools
import importlib
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from transformers import AutoConfig, LlamaConfig, PreTrainedModel

from inheritune.objective import Objective
from inheritune.reference import fresh

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
D, VOCABULARY = 16, 4096


@pytest.fixture
def loss(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("loss")


@pytest.fixture
def model() -> PreTrainedModel:
    """Hardly more than a head: what a loss makes is most of a pass."""
    sizes: dict[str, Any] = {"hidden_size": D, "intermediate_size": D, "num_hidden_layers": 1, "num_attention_heads": 2}
    made = fresh(LlamaConfig(vocab_size=VOCABULARY, tie_word_embeddings=True, **sizes), 0)
    made.train()
    return made


def test_both_losses_are_the_same_work_and_the_plain_one_holds_every_score(
    loss: ModuleType, model: PreTrainedModel
) -> None:
    found = loss.compare(model, torch.float32, sequences=4, length=64, turns=2)
    assert found["losses"]["chunked"] == pytest.approx(found["losses"]["plain"], abs=1e-5)
    assert found["losses"]["plain"] == pytest.approx(torch.tensor(float(VOCABULARY)).log().item(), abs=0.1)
    assert 0 < found["gradient_difference"] < 1e-5
    assert {name: len(values) for name, values in found["seconds"].items()} == dict.fromkeys(loss.PASSES, 2)
    scores = 4 * 4 * 64 * VOCABULARY
    peaks = found["peak_bytes"]
    assert peaks["plain"] > 3 * scores  # scores, shares, gradient
    assert peaks["chunked"] > 2 * scores > peaks["decoder"]  # a single chunk here, its shares piece by piece
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_chunk_at_a_time_takes_less(
    loss: ModuleType, model: PreTrainedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = loss.compare(model, torch.float32, sequences=4, length=64, turns=1)["peak_bytes"]
    eighth = functools.partial(Objective, chunk_scores=32 * VOCABULARY)
    monkeypatch.setattr("inheritune.objective.Objective", eighth)
    chunked = loss.compare(model, torch.float32, sequences=4, length=64, turns=1)["peak_bytes"]
    assert chunked["plain"] == whole["plain"]
    assert chunked["chunked"] < whole["chunked"] / 2


def test_gradients_that_differ_would_be_seen(loss: ModuleType) -> None:
    ours, theirs = [torch.tensor([1.0, 0.0])], [torch.tensor([1.0, 0.5])]
    assert loss.relative_difference(theirs, theirs) == 0
    assert loss.relative_difference(ours, theirs) == pytest.approx(0.5 / 1.25**0.5)


def test_a_losses_own_time_is_a_pass_less_the_decoder(loss: ModuleType) -> None:
    seconds = {"chunked": [1.0, 1.5, 2.0], "plain": [1.5, 3.0, 3.0], "decoder": [0.5, 0.5, 1.0]}
    found = loss.ratios(seconds, {"chunked": 100, "plain": 250, "decoder": 50})
    assert found["own_seconds"] == {"chunked": [0.5, 1.0, 1.0], "plain": [1.0, 2.5, 2.0]}
    assert found["pass_ratio"] == {"median": 1.5, "low": 1.5, "high": 2.0}
    assert (found["own_ratio"], found["memory_ratio"]) == (2.0, 2.5)
    record = {
        "model": {"type": "llama", "parameters": 2e6, "layers": 1, "width": D, "vocabulary": VOCABULARY},
        "sequence_length": 64,
        "measurements": [
            {"dtype": "float32", "sequences": 8, "seconds": seconds, "losses": {"chunked": 8.3, "plain": 8.3},
             "peak_bytes": {"chunked": 2**20, "plain": 3 * 2**20, "decoder": 0}, "gradient_difference": 1e-7} | found
        ],
    }  # fmt: skip
    row = loss.table(record).splitlines()[-1]
    assert row.startswith("| 8, float32 | 1,500, 3,000, 500 | 1.50 (1.50 to 2.00) | 1,000, 2,000 | 2.0 | 1, 3, 0 |")


def test_a_model_in_a_directory_is_measured_and_recorded(
    loss: ModuleType, model: PreTrainedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model.save_pretrained(tmp_path / "model")
    out = tmp_path / "found.json"
    words = ["--sequence_length", "8", "--turns", "1", str(tmp_path / "model"), "--sequences", "1", "2"]
    monkeypatch.setattr(sys, "argv", ["loss.py", *words, "--dtype", "float32", "--out", str(out)])
    monkeypatch.setattr("inheritune.hardware.keep_freed_memory", lambda: False)  # of the tests' own process
    loss.main()
    record = json.loads(out.read_text(encoding="utf-8"))
    assert [one["sequences"] for one in record["measurements"]] == [1, 2]
    assert record["model"]["parameters"] == sum(one.numel() for one in model.parameters())
    assert str(tmp_path) not in json.dumps(record)
    assert record["command"] == (
        "python benchmarks/loss.py --sequence_length 8 --turns 1 MODEL --sequences 1 2 --dtype float32 --out FILE.json"
    )
    assert loss.command(["loss.py", "demo", "--turns", "1"], "demo") == "python benchmarks/loss.py demo --turns 1"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["demo", "--sequences", "4", "0"], "--sequences: 0; at least 1"),
        (["demo", "--turns", "0"], "--turns: 0; at least 1"),
        (["demo", "--dtype", "float16"], "invalid choice: 'float16'"),
        (["demo", "--out", "/nowhere/x.json"], "--out: no directory"),
        ([], "the following arguments are required: MODEL"),
    ],
)
def test_bad_options_are_one_line_and_exit_code_2(
    loss: ModuleType, capsys: pytest.CaptureFixture[str], words: list[str], said: str
) -> None:
    with pytest.raises(SystemExit) as stopped:
        loss.options(words)
    assert stopped.value.code == 2
    shown = capsys.readouterr().err
    assert said in shown
    assert shown.count("\n") == 1


def test_no_model_is_one_line_and_exit_code_2(
    loss: ModuleType, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(sys, "argv", ["loss.py", str(tmp_path / "absent")])
    with pytest.raises(SystemExit) as stopped:
        loss.main()
    assert stopped.value.code == 2
    shown = capsys.readouterr().err
    assert "absent" in shown
    assert shown.count("\n") == 1


def test_half_of_smollm2_is_the_shape(loss: ModuleType) -> None:
    shapes = importlib.import_module("training.shapes")
    shape = shapes.SHAPES["smollm2-15"]
    with torch.device("meta"):
        model = fresh(AutoConfig.for_model(**shape.config), 0)
    # embeddings; of a block 2 norms, query and output, key and value, the MLP; the last norm
    block = 2 * 576 + 2 * 576 * 576 + 2 * 576 * 192 + 3 * 576 * 1536
    assert sum(one.numel() for one in model.parameters()) == 49152 * 576 + 15 * block + 576 == 81_413_568
    assert (shape.batch_sequences, shape.sequence_length) == (8, 256)
