"""`inheritune evaluate`: what it writes, whom it compares, and one line for what it refuses."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard

from evaluation_mirror import write_mirror
from inheritune.cli import main
from inheritune.errors import Refused
from inheritune.pipeline import evaluation
from inheritune.scores import Evaluation

SUITE = ("--suite", "piqa,boolq,wsc")


@pytest.fixture(scope="module")
def mirror(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_mirror(tmp_path_factory.mktemp("mirror"))


@pytest.fixture
def run(tmp_path: Path, llama_directory: Path, gpt2_directory: Path) -> Path:
    """A finished run's directory, as far as this command reads it."""
    directory = tmp_path / "half"
    shutil.copytree(gpt2_directory, directory / "model")
    (directory / "model" / "README.md").write_text("---\nlibrary_name: transformers\n---\n\n# half\n", encoding="utf-8")
    shutil.copytree(gpt2_directory, directory / "controls" / "random-2x" / "model")
    records = {
        "result.json": {
            "name": "half",
            "state": "done",
            "target": {"tokens_trained": 600_000},
            "controls": {"random:2x": {"tokens_trained": 1_200_000}, "cut": {}},
        },
        "reference.json": {"source": str(llama_directory)},
    }
    for name, record in records.items():
        (directory / name).write_text(json.dumps(record), encoding="utf-8")
    (directory / "recipe.yaml").write_text("name: half\n", encoding="utf-8")
    return directory


def evaluate(*words: str | Path, mirror: Path) -> int:
    return main(["evaluate", *map(str, words), "--datasets", str(mirror)])


def test_a_run_is_its_target_reference_and_controls(
    run: Path, mirror: Path, llama_directory: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert evaluate(run, *SUITE, "--latex", mirror=mirror) == 0
    found = Evaluation.of(json.loads((run / "evaluation.json").read_text(encoding="utf-8")))
    assert [(model.name, model.role, model.tokens_trained) for model in found.models] == [
        ("target", "target", 600_000),
        ("reference", "reference", None),
        ("random:2x", "control", 1_200_000),
    ]
    assert found.models[1].source == str(llama_directory)
    assert {(pair.first, pair.second) for pair in found.paired} == {("target", "reference"), ("target", "random:2x")}
    equal = [pair for pair in found.paired if pair.second == "random:2x"]  # the same weights
    assert all((pair.difference, pair.low, pair.high, pair.p_value) == (0.0, 0.0, 0.0, 1.0) for pair in equal)
    assert set(found.judged) == {"piqa", "boolq"}
    verdict = found.judged["piqa"]["target"]["verdict"]
    assert verdict["paired"] is True
    shown, told = capfd.readouterr()
    assert "piqa" in shown
    assert "wsc is left out: aps/super_glue (wsc.fixed) is not whole in" in told
    assert "| target |" in (run / "evaluation.md").read_text(encoding="utf-8")
    assert r"\toprule" in (run / "evaluation.tex").read_text(encoding="utf-8")
    card = ModelCard.load(run / "model" / "README.md")
    assert {result.metric_type for result in card.data.eval_results or []} == {"acc", "acc_norm"}
    assert {result.dataset_type for result in card.data.eval_results or []} == {"baber/piqa", "aps/super_glue"}
    assert "# half" in card.text
    assert not (Path(found.models[1].source) / "README.md").exists()


def test_published_and_other_models_beside_it(
    run: Path, mirror: Path, llama_directory: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    words = (run / "model", "--suite", "boolq", "--against", "published", llama_directory, "--out", out)
    assert evaluate(*words, mirror=mirror) == 0
    found = Evaluation.of(json.loads((out / "evaluation.json").read_text(encoding="utf-8")))
    assert [model.name for model in found.models] == ["half", llama_directory.name]
    beside = found.published["lines"]["boolq"]
    assert beside["status"] == "not compared"  # nine rows are not the poster's 3270
    assert "rows: 9 here, 3270 published" in beside["reason"]
    assert beside["figures"]["OpenLLaMA-3B (1T)"]["printed"] == "67.18"
    assert "67.18" in (out / "evaluation.md").read_text(encoding="utf-8")
    assert not list(tmp_path.glob("half/evaluation*"))


def test_cards_of_other_models_on_demand(gpt2_directory: Path, mirror: Path, tmp_path: Path) -> None:
    model = tmp_path / "mine"
    shutil.copytree(gpt2_directory, model)
    assert evaluate(model, "--suite", "piqa", "--out", tmp_path / "out", mirror=mirror) == 0
    assert not (model / "README.md").exists()
    assert evaluate(model, "--suite", "piqa", "--out", tmp_path / "out", "--card", mirror=mirror) == 0
    text = (model / "README.md").read_text(encoding="utf-8")
    assert "model-index" in text
    assert evaluate(model, "--suite", "piqa", "--out", tmp_path / "out", "--card", mirror=mirror) == 0
    assert (model / "README.md").read_text(encoding="utf-8") == text


def test_several_runs_keep_their_names(run: Path, mirror: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(run, other)
    assert evaluate(run, other, "--suite", "piqa", "--out", tmp_path / "out", mirror=mirror) == 0
    found = Evaluation.of(json.loads((tmp_path / "out" / "evaluation.json").read_text(encoding="utf-8")))
    assert [model.name for model in found.models][:4] == [
        "half/target",
        "half/reference",
        "half/random:2x",
        "other/target",
    ]
    for one in (run, other):
        assert "model-index" in (one / "model" / "README.md").read_text(encoding="utf-8")


def test_limits_are_said_in_everything_written(run: Path, mirror: Path) -> None:
    assert evaluate(run, "--suite", "piqa", "--limit", "3", "--latex", mirror=mirror) == 0
    for name in ("evaluation.md", "evaluation.tex", "model/README.md"):
        assert "the first 3 of 8 rows" in (run / name).read_text(encoding="utf-8"), name
    record = json.loads((run / "evaluation.json").read_text(encoding="utf-8"))
    assert record["limited"] == "piqa: the first 3 of 8 rows"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "evaluate: MODEL is missing"),
        (("nowhere/at/all",), "nowhere/at/all: no such directory, and no hub id"),
        (("MODEL", "--suite", "tabel2"), "--suite: tabel2: no suite (table2, table4, quick) and no task"),
        (("MODEL", "--suite", "piqa:-1"), "piqa:-1: shots must be 0 or more"),
        (("MODEL", "--suite", "piqa:3"), "baber/piqa has no split train"),
        (("MODEL", "--limit", "0"), "--limit 0: rows of a task must be 1 or more"),
        (("MODEL", "--batch_size", "0"), "--batch_size 0: must be 1 or more"),
        (("MODEL", "--dtype", "int8"), "--dtype int8: not one of bfloat16, float16, float32"),
        (("MODEL", "--device", "abacus"), "--device abacus: there is none"),
        (("MODEL", "--checkpoints"), "is no run directory, so it has no checkpoints"),
        (("MODEL", "MODEL"), "named twice; once is enough"),
        (("MODEL", "--revision", "main"), "a directory has no revision"),
        (("EMPTY",), "no model"),
        (("UNDER_WAY",), "has no finished model yet (it is running); let it end"),
    ],
)
def test_bad_input_is_one_line(
    words: tuple[str, ...], said: str, mirror: Path, models: dict[str, str], capfd: pytest.CaptureFixture[str]
) -> None:
    here = Path()
    before = sorted(here.rglob("*"))
    assert evaluate(*(models.get(word, word) for word in words), mirror=mirror) == 2
    shown, told = capfd.readouterr()
    assert said in told
    assert shown == ""
    assert told.count("\n") == 1
    assert sorted(here.rglob("*")) == before


@pytest.fixture
def models(gpt2_directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Directories by a word, in a working directory of their own: a model, an empty one, a run under way."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    under_way = tmp_path / "under_way"
    under_way.mkdir()
    (under_way / "recipe.yaml").write_text("name: x\n", encoding="utf-8")
    (under_way / "result.json").write_text(json.dumps({"name": "x", "state": "running"}), encoding="utf-8")
    return {"MODEL": str(gpt2_directory), "EMPTY": "empty", "UNDER_WAY": "under_way"}


def test_no_mirror_and_no_network(gpt2_directory: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    words = ["evaluate", str(gpt2_directory), "--suite", "piqa", "--out", str(tmp_path / "out")]
    assert main(words) == 2
    told = capfd.readouterr().err
    assert "piqa: baber/piqa cannot be read: " in told
    assert "hf download --repo-type dataset baber/piqa --local-dir DIR/baber/piqa and --datasets DIR" in told
    assert main([*words, "--datasets", str(tmp_path / "nowhere")]) == 2
    assert "no such directory; give one that holds data sets" in capfd.readouterr().err
    assert not (tmp_path / "out").exists()


def test_data_sets_are_listed_and_tasks_written(
    mirror: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(["evaluate", "--suite", "table4", "--list_datasets"]) == 0
    lines = capfd.readouterr().out.splitlines()
    assert lines[0] == "# wikitext: EleutherAI/wikitext_document_level (wikitext-2-raw-v1), test"
    assert lines[1].startswith("hf download --repo-type dataset EleutherAI/wikitext_document_level --local-dir DIR/")
    assert evaluate("--suite", "piqa", "--write_tasks", tmp_path / "tasks", mirror=mirror) == 0
    assert capfd.readouterr().out.strip() == f"lm_eval run --include_path {tmp_path / 'tasks'} --tasks piqa"
    assert [path.name for path in (tmp_path / "tasks").iterdir()] == ["piqa.yaml"]


def test_no_more_than_one_at_a_time_in_a_directory(run: Path, mirror: Path, capfd: pytest.CaptureFixture[str]) -> None:
    from inheritune.run_directory import lock

    with lock(run / "evaluation"):
        assert evaluate(run, "--suite", "piqa", mirror=mirror) == 2
    assert "in use by another run" in capfd.readouterr().err
    with lock(run):  # the run itself may go on
        assert evaluate(run, "--suite", "piqa", mirror=mirror) == 0


def test_without_the_harness_one_line_says_how_to_get_it(
    run: Path, mirror: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    import importlib.util

    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name == "lm_eval" else real(name, *a))
    assert evaluate(run, mirror=mirror) == 2
    assert "evaluation needs lm_eval; give: pip install lm-eval accelerate" in capfd.readouterr().err


def test_checkpoints_are_a_curve(
    run: Path, mirror: Path, gpt2_directory: Path, llama_directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each saved checkpoint is exported, evaluated and drawn; what was exported is gone afterwards."""
    from inheritune.pipeline.checkpoints import Saved

    saved = [Saved(run / f"checkpoints/step_{step}", "target", None, step, step * 1000) for step in (10, 20)]
    sources = {10: gpt2_directory, 20: llama_directory}

    def export(_run: Path, one: Saved, out: Path) -> None:
        shutil.copytree(sources[one.step], out)

    monkeypatch.setattr(evaluation, "checkpoint_directories", lambda _run: saved)
    monkeypatch.setattr(evaluation, "export_checkpoint", export)
    assert evaluate(run, "--suite", "piqa,boolq", "--checkpoints", mirror=mirror) == 0
    found = Evaluation.of(json.loads((run / "evaluation.json").read_text(encoding="utf-8")))
    assert [(model.name, model.role, model.step, model.tokens_trained) for model in found.models] == [
        ("step 10", "checkpoint", 10, 10_000),
        ("step 20", "checkpoint", 20, 20_000),
        ("target", "target", None, 600_000),
        ("reference", "reference", None, None),
    ]
    assert "<svg" in (run / "evaluation.svg").read_text(encoding="utf-8")
    assert {path.suffix for path in (run / "evaluation").iterdir() if path.name != ".lock"} == {".json"}
    monkeypatch.setattr(evaluation, "checkpoint_directories", lambda _run: [])
    with pytest.raises(Refused) as error:
        evaluation.evaluate([str(run)], evaluation.Asked(datasets=mirror), checkpoints=True)
    assert "has kept none" in str(error.value)


def test_offline_stays_offline(run: Path, mirror: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a mirror nothing is asked of the network, whatever the environment says."""
    import socket

    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)

    def refuse(*_: Any) -> None:
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    assert evaluate(run, "--suite", "piqa", mirror=mirror) == 0
    assert os.environ.get("HF_HUB_OFFLINE") is None
