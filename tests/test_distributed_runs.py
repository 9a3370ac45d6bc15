"""Whole commands over many ranks: a run, a rank that dies, what is refused.

Ranks are processes on this machine that reduce over gloo (see ranks.py).
"""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
import yaml
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
)

from inheritune import cli
from inheritune.console import Console
from inheritune.distributed import single
from inheritune.errors import Refused
from inheritune.pipeline import checks
from inheritune.run_directory import lock, read_json, read_jsonl
from ranks import Outcome, start


def command(*words: str) -> int:
    """On a rank: a command line; gives its exit code."""
    return cli.main(words)


def killed_command(step: int, *words: str) -> int:
    """On a rank: a command line; the last rank is killed after a step of its first training."""

    def progress(_console: Console, told: Any, later: int = 0) -> None:
        if told.step == step and os.environ["RANK"] == str(int(os.environ["WORLD_SIZE"]) - 1):
            os.kill(os.getpid(), signal.SIGKILL)

    mock.patch.object(Console, "progress", progress).start()
    return cli.main(words)


def codes(outcomes: list[Outcome]) -> list[Any]:
    for outcome in outcomes:
        assert outcome.error is None, outcome.trace + outcome.output
        assert "Traceback" not in outcome.output, outcome.output
    return [outcome.value for outcome in outcomes]


def said(outcomes: list[Outcome]) -> list[str]:
    """The lines of errors over all ranks."""
    lines = [line for outcome in outcomes for line in outcome.output.splitlines()]
    return [line for line in lines if line.startswith("inheritune:")]


WORDS = [first + second for first in "bdgklmnprst" for second in ("a", "ein", "olu")]


@pytest.fixture(scope="module")
def recipe(llama_directory: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recipe's file: 2 of 4 layers, 15 steps, and a control."""
    folder = tmp_path_factory.mktemp("recipe")
    random = np.random.default_rng(0)
    lines = [json.dumps({"text": " ".join(random.choice(WORDS, 60))}) for _ in range(100)]
    (folder / "text.jsonl").write_text("\n".join(lines))
    values_ = {
        "name": "tiny",
        "reference": str(llama_directory),
        "data": {
            "sources": [str(folder / "text.jsonl")],
            "tokens": 2000,
            "passes": 2,
            "sequence_length": 32,
            "validation_share": 0.1,
            "development_share": 0.1,
            "validation_tokens": 800,
            "development_tokens": 500,
            "workers": 1,
        },
        "train": {
            "batch_sequences": 8,
            "micro_batch_sequences": 4,
            "learning_rate": 5e-3,
            "warmup_steps": 2,
            "validate_every_steps": 10,
            "checkpoint_every_steps": 4,
            "compute_dtype": "float32",
            "compile": "never",
            "parallel": "fsdp",
        },
        "controls": ["random", "cut"],
    }
    (folder / "tiny.yaml").write_text(yaml.safe_dump(values_))
    return folder / "tiny.yaml"


@pytest.fixture(scope="module")
def alone(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The recipe's run by one rank."""
    out = tmp_path_factory.mktemp("alone") / "run"
    assert codes(start(1, command, "run", str(recipe), "--out", str(out))) == [0]
    return out


@pytest.fixture(scope="module")
def pair(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The recipe's run by two ranks."""
    out = tmp_path_factory.mktemp("pair") / "run"
    outcomes = start(2, command, "run", str(recipe), "--out", str(out))
    assert codes(outcomes) == [0, 0], outcomes[0].output
    assert "Training the target" in outcomes[0].output
    assert outcomes[1].output == ""
    return out


def files(directory: Path) -> list[str]:
    return sorted(str(path.relative_to(directory)) for path in directory.rglob("*") if path.is_file())


def test_a_whole_run_over_ranks_is_that_of_one(alone: Path, pair: Path) -> None:
    for folder in ("model", "controls/random/model"):
        assert files(pair / folder) == files(alone / folder)
        found, expected = (AutoModelForCausalLM.from_pretrained(run / folder) for run in (pair, alone))
        AutoTokenizer.from_pretrained(pair / folder)
        for name, value in expected.named_parameters():
            torch.testing.assert_close(found.get_parameter(name), value, rtol=1e-3, atol=1e-4)
        assert found.dtype == expected.dtype
    one, two = (read_json(run / "result.json") for run in (alone, pair))
    assert (one["state"], two["state"]) == ("done", "done")
    assert one["verdict"] == two["verdict"]
    assert two["target"]["validation_loss"] == pytest.approx(one["target"]["validation_loss"], rel=1e-4)
    trained = read_json(pair / "ledger.json")["train target"]
    assert (trained["ranks"], trained["parallel"]) == (2, "fsdp")
    assert {str(path) for path in files(pair) if "checkpoints" not in path} == {
        str(path) for path in files(alone) if "checkpoints" not in path
    }


def test_a_growth_over_ranks_is_that_of_one(recipe: Path, tmp_path: Path) -> None:
    """Pilot, a round that matches with two seeds, two learning rates, a distilled control."""
    grow = {"start": 1, "step": 2, "tolerance_nats": 0.5, "decision_seeds": 2, "pilot_steps": 2}
    flags = ["--grow", json.dumps(grow), "--train.learning_rate", "[1e-9, 1e-8]", "--controls", "[distill, cut]"]
    runs = []
    for ranks in (1, 2):
        out = tmp_path / str(ranks)
        assert codes(start(ranks, command, "run", str(recipe), *flags, "--out", str(out))) == [0] * ranks
        runs.append((read_json(out / "result.json"), read_jsonl(out / "growth.jsonl")))
    (one, rounds), (two, others) = runs
    assert [(record["layers"], record["seed"]) for record in rounds] == [(1, 0), (1, 1)]
    for record, other in zip(rounds, others, strict=True):
        for key in ("layers", "seed", "steps", "tokens", "learning_rate"):
            assert other[key] == record[key]
        assert other["verdict"]["difference"] == pytest.approx(record["verdict"]["difference"], abs=1e-4)
    assert (one["matched"], two["matched"]) == (True, True)
    assert two["controls"]["distill"]["validation_loss"] == pytest.approx(
        one["controls"]["distill"]["validation_loss"], rel=1e-4
    )


def test_a_killed_rank_ends_the_others_and_the_command_goes_on(pair: Path, recipe: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    main, lost = start(2, killed_command, 7, "run", str(recipe), "--out", str(out), seconds=60)
    assert lost.killed
    assert main.value == 1, main.trace + main.output
    assert "Traceback" not in main.output, main.output
    assert len(said([main])) == 1
    assert "another rank was lost; the same command goes on" in said([main])[0]
    assert read_json(out / "result.json")["state"] == "failed"
    outcomes = start(2, command, "run", str(recipe), "--out", str(out))
    assert codes(outcomes) == [0, 0]
    assert "Going on after step 4." in outcomes[0].output
    for file in ("model/model.safetensors", "controls/random/model/model.safetensors"):
        assert (out / file).read_bytes() == (pair / file).read_bytes()


def test_a_directory_in_use_ends_all_ranks(recipe: Path, tmp_path: Path) -> None:
    with lock(tmp_path / "run"):
        outcomes = start(2, command, "run", str(recipe), "--out", str(tmp_path / "run"))
    assert codes(outcomes) == [2, 2]
    (line,) = said(outcomes)
    assert "in use by another run" in line


def partly_refused_command(*words: str) -> int:
    """On a rank: a command line; what it names is not there on the last rank's machine."""

    def missing(*_arguments: Any) -> None:
        raise Refused("recipe: a file is missing on this machine")

    if os.environ["RANK"] == str(int(os.environ["WORLD_SIZE"]) - 1):
        mock.patch.object(checks, "check_recipe", missing).start()
    return cli.main(words)


def test_what_one_rank_refuses_ends_all(recipe: Path, tmp_path: Path) -> None:
    outcomes = start(3, partly_refused_command, "run", str(recipe), "--out", str(tmp_path / "run"))
    assert codes(outcomes) == [2, 2, 2]
    assert said(outcomes) == ["inheritune: recipe: a file is missing on this machine"]
    assert not (tmp_path / "run").exists()


def test_ranks_that_do_not_divide_are_refused(recipe: Path, tmp_path: Path) -> None:
    words = ("run", str(recipe), "--out", str(tmp_path / "run"), "--train.fsdp_ranks", "2")
    outcomes = start(3, command, *words)
    assert codes(outcomes) == [2, 2, 2]
    (line,) = said(outcomes)
    assert "train.fsdp_ranks: 2; allowed: a divisor of the 3 ranks" in line
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["inherit", "prepare"])
def test_commands_of_one_process_are_refused_under_a_launcher(
    name: str, recipe: Path, llama_directory: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    words = {
        "inherit": ["inherit", str(llama_directory), "--layers", "2"],
        "prepare": ["prepare", str(recipe.parent / "text.jsonl"), "--tokenizer", str(llama_directory)],
    }[name]
    outcomes = start(2, command, *words, "--out", str(out))
    assert codes(outcomes) == [2, 2]
    assert all("WORLD_SIZE=2: this command is done by one process" in line for line in said(outcomes))
    assert not out.exists()


def test_a_command_of_one_process_knows_its_world(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(Refused, match="WORLD_SIZE=2"):
        single()
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert single().size == 1
