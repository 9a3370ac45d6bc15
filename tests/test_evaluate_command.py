"""`inheritune evaluate`: what it writes, whom it compares, and one line for what it refuses."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard

from evaluation_mirror import write_mirror
from inheritune.cli import main
from inheritune.errors import Failed, Refused
from inheritune.evaluation import evaluating, measuring
from inheritune.pipeline import evaluated_models, evaluation
from inheritune.pipeline.checkpoints import Saved
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


def record(directory: Path) -> Evaluation:
    return Evaluation.of(json.loads((directory / "evaluation.json").read_text(encoding="utf-8")))


def change(path: Path, **keys: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | keys), encoding="utf-8")


def pairs(found: Evaluation) -> set[tuple[str, str]]:
    return {(pair.first, pair.second) for pair in found.paired}


def test_a_run_is_its_target_reference_and_controls(
    run: Path, mirror: Path, llama_directory: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert evaluate(run, *SUITE, "--latex", mirror=mirror) == 0
    found = record(run)
    assert [(model.name, model.role, model.tokens_trained) for model in found.models] == [
        ("target", "target", 600_000),
        ("reference", "reference", None),
        ("random:2x", "control", 1_200_000),
    ]
    assert found.models[1].source == str(llama_directory)
    assert pairs(found) == {("target", "reference"), ("random:2x", "reference"), ("target", "random:2x")}
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


@pytest.mark.parametrize(
    ("recipe", "start"),
    [
        ("{}", "inherit"),
        ("{inherit: {init: stack}}", "stack"),
        ("{inherit: {init: attn}}", "inherit"),  # the cut has all parts
        ("{grow: {choice: first}}", "inherit@3"),
        ("{grow: {choice: last}}", "inherit@last-3"),
    ],
)
def test_the_cut_is_a_control(run: Path, mirror: Path, llama_directory: Path, recipe: str, start: str) -> None:
    (run / "recipe.yaml").write_text(recipe, encoding="utf-8")
    change(run / "result.json", target={"layers": 3}, controls={"cut": {"tokens_trained": 0}})
    shutil.copytree(llama_directory, run / "starts" / "inherit@4")  # of a control with other layers
    shutil.copytree(llama_directory, run / "starts" / start)
    assert evaluate(run, "--suite", "boolq", mirror=mirror) == 0
    found = record(run)
    target, reference, cut = found.models
    assert (cut.name, cut.role, cut.tokens_trained) == ("cut", "control", 0)
    assert cut.source == str(run / "starts" / start)
    assert ("target", "cut") in pairs(found)
    assert found.scores["cut"] == found.scores["reference"]  # the same files, here
    assert (target.role, reference.role) == ("target", "reference")


def test_a_control_that_cannot_be_had_is_left_out_and_said(
    run: Path, mirror: Path, llama_directory: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(llama_directory, run / "starts" / "inherit")
    (run / "starts" / "inherit" / "model.safetensors").unlink()
    shutil.rmtree(run / "controls")
    assert evaluate(run, "--suite", "boolq", mirror=mirror) == 0
    assert [model.name for model in record(run).models] == ["target", "reference"]
    told = capfd.readouterr().err
    assert f"the control cut of {run} is left out: {run}/starts/inherit" in told
    assert f"the control random:2x of {run} is left out: there is no {run}/controls/random-2x/model" in told


def test_published_and_other_models_beside_it(
    run: Path, mirror: Path, llama_directory: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    words = (run / "model", "--suite", "boolq", "--against", "published", llama_directory, "--out", out)
    assert evaluate(*words, mirror=mirror) == 0
    found = record(out)
    assert [model.name for model in found.models] == ["half", llama_directory.name]
    beside = found.published["lines"]["boolq"]
    assert beside["status"] == "not compared"  # nine rows are not the poster's 3270
    assert "rows: 9 here, 3270 published" in beside["reason"]
    assert beside["figures"]["OpenLLaMA-3B (1T)"]["printed"] == "67.18"
    assert "67.18" in (out / "evaluation.md").read_text(encoding="utf-8")
    assert not list(tmp_path.glob("half/evaluation*"))


def test_an_outside_baseline_stays_in_the_record(run: Path, mirror: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert evaluate(run, "--suite", "piqa", "--against", "smollm2-70m", mirror=mirror) == 0
    (beside,) = record(run).published["baselines"].values()
    assert beside["lines"]["piqa"]["reason"] == "other rows: 8 here, 1838 published"
    assert "54.84" in capfd.readouterr().out
    assert evaluate(run, "--suite", "boolq", "--against", "published", mirror=mirror) == 0
    found = record(run).published
    assert set(found["baselines"]["smollm2-70m"]["lines"]) == set(found["lines"]) == {"piqa", "boolq"}
    assert "Beside smollm2-70m" in (run / "evaluation.md").read_text(encoding="utf-8")


def test_an_outside_baseline_without_a_score_of_these_tasks(
    run: Path, mirror: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert evaluate(run, "--suite", "boolq", "--against", "smollm2-135m-instruct", mirror=mirror) == 0
    told = capfd.readouterr().err
    known = "piqa, arc_easy, arc_challenge, hellaswag"
    assert f"  smollm2-135m-instruct has no score of these tasks; it has of {known}\n" in told


@pytest.mark.parametrize(("word", "meant"), [("smollm2-70n", "smollm2-70m"), ("publishd", "published")])
def test_published_scores_of_another_name(
    word: str, meant: str, gpt2_directory: Path, mirror: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert evaluate(gpt2_directory, "--suite", "piqa", "--against", word, "--out", out, mirror=mirror) == 2
    line = f"inheritune: --against {word}: neither a directory nor published scores; did you mean '{meant}'?\n"
    assert capfd.readouterr().err == line
    assert not out.exists()


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


def test_several_runs_keep_their_names_and_are_judged_beside_their_own_references(
    run: Path, mirror: Path, gpt2_directory: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    shutil.copytree(run, other)
    change(other / "reference.json", source=str(gpt2_directory))
    assert evaluate(run, other, "--suite", "piqa", "--out", tmp_path / "out", mirror=mirror) == 0
    found = record(tmp_path / "out")
    names = ["target", "reference", "random:2x"]
    assert [model.name for model in found.models] == [f"{one}/{name}" for one in ("half", "other") for name in names]
    assert pairs(found) == {
        *((f"{one}/{name}", f"{one}/reference") for one in ("half", "other") for name in ("target", "random:2x")),
        *((f"{one}/target", f"{one}/random:2x") for one in ("half", "other")),
        ("half/target", "other/target"),
    }
    verdicts = {name: judged["verdict"] for name, judged in found.judged["piqa"].items()}
    assert verdicts["other/target"]["text"].endswith("not told apart from the reference")  # it is the same model
    difference = next(pair for pair in found.paired if pair.second == "other/reference")
    assert (difference.low, difference.high) == (0.0, 0.0)
    for one in (run, other):
        card = ModelCard.load(one / "model" / "README.md")
        assert card.data.model_name == one.name


def test_runs_of_one_reference_share_it(run: Path, mirror: Path, llama_directory: Path, tmp_path: Path) -> None:
    other = Path(shutil.copytree(run, tmp_path / "other"))
    moved = Path(shutil.copytree(llama_directory, tmp_path / "moved"))  # by another path, the same model
    change(other / "reference.json", source=str(moved))
    assert evaluate(run, other, "--suite", "piqa", "--out", tmp_path / "out", mirror=mirror) == 0
    found = record(tmp_path / "out")
    ours = ["half/target", "half/random:2x", "other/target", "other/random:2x"]
    assert [model.name for model in found.models] == [ours[0], "reference", *ours[1:]]
    assert {(name, "reference") for name in ours} < pairs(found)
    assert ("half/target", "other/target") in pairs(found)


def test_a_line_keeps_the_version_that_it_was_evaluated_with(
    run: Path, mirror: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert evaluate(run, "--suite", "piqa", mirror=mirror) == 0
    before = record(run).versions["lm_eval"]
    real = measuring.versions
    monkeypatch.setattr(evaluating, "versions", lambda: real() | {"lm_eval": "9.9"})
    assert evaluate(run, "--suite", "boolq", "--against", "smollm2-70m", mirror=mirror) == 0
    found = record(run)
    assert {line.name: line.harness for line in found.lines} == {"piqa": before, "boolq": "9.9"}
    assert found.versions["lm_eval"] == "9.9"


def test_runs_of_one_name_keep_their_paths(run: Path, mirror: Path, tmp_path: Path) -> None:
    other = Path(shutil.copytree(run, tmp_path / "elsewhere" / "half"))
    assert evaluate(run, other, "--suite", "piqa", "--out", tmp_path / "out", mirror=mirror) == 0
    names = [model.name for model in record(tmp_path / "out").models if model.role == "target"]
    assert names == [f"{run}/target", f"{other}/target"]


def test_a_path_from_home(run: Path, mirror: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(run.parent))
    monkeypatch.chdir(run / "controls")
    assert evaluate("~/half", "--suite", "piqa", mirror=mirror) == 0
    assert record(run).models[0].source == str(run / "model")
    assert [path.name for path in Path().iterdir()] == ["random-2x"]


@pytest.mark.parametrize("here", [True, False])
def test_a_relative_reference_is_found_from_here_or_from_the_run(
    here: bool, run: Path, mirror: Path, llama_directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "here"
    shutil.copytree(llama_directory, (place if here else run) / "models" / "first")
    place.mkdir(exist_ok=True)
    monkeypatch.chdir(place)
    change(run / "reference.json", source="models/first")
    assert evaluate(run, "--suite", "piqa", mirror=mirror) == 0
    assert record(run).models[1].source == ("models/first" if here else f"{run}/models/first")


@pytest.mark.parametrize(
    ("keys", "why"),
    [
        ({"source": "models/gone"}, "models/gone: no such directory"),
        ({"fingerprint": "0"}, "its weights changed since"),
    ],
)
def test_a_reference_that_is_gone_or_another_is_left_out(
    keys: dict[str, str], why: str, run: Path, mirror: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    change(run / "reference.json", **keys)
    assert evaluate(run, "--suite", "piqa", mirror=mirror) == 0
    assert [model.role for model in record(run).models] == ["target", "control"]
    (line,) = [one for one in capfd.readouterr().err.splitlines() if "the reference of" in one]
    assert line.startswith(f"  the reference of {run} is left out: ")
    assert why in line


def test_the_first_to_compare_with_is_the_reference(
    run: Path, mirror: Path, llama_directory: Path, gpt2_directory: Path, tmp_path: Path
) -> None:
    """Where no run brings one; of a run its target is taken."""
    out = tmp_path / "out"
    words = (llama_directory, "--suite", "piqa", "--against", run, gpt2_directory, "--out", out)
    assert evaluate(*words, mirror=mirror) == 0
    found = record(out)
    assert [(model.name, model.role, model.tokens_trained) for model in found.models] == [
        (llama_directory.name, "model", None),
        ("half", "reference", 600_000),
        (gpt2_directory.name, "model", None),
    ]
    assert found.models[1].source == str(run / "model")
    assert (llama_directory.name, "half") in pairs(found)
    assert found.judged["piqa"][llama_directory.name]["verdict"]["reference"] is not None
    assert evaluate(run, "--suite", "piqa", "--against", llama_directory, mirror=mirror) == 0
    assert [model.role for model in record(run).models] == ["target", "reference", "control", "model"]


def test_calls_are_gathered(run: Path, mirror: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert evaluate(run, "--suite", "piqa", "--latex", mirror=mirror) == 0
    first = record(run)
    capfd.readouterr()
    assert evaluate(run, "--suite", "boolq", mirror=mirror) == 0
    assert "piqa" not in capfd.readouterr().out
    found = record(run)
    assert [line.name for line in found.lines] == ["piqa", "boolq"]
    assert found.suite == "piqa,boolq"
    assert found.scores["target"]["piqa"] == first.scores["target"]["piqa"]
    assert {pair.line for pair in found.paired} == {"piqa", "boolq"}
    assert set(found.judged) == {"piqa", "boolq"}
    assert "boolq" in (run / "evaluation.tex").read_text(encoding="utf-8")
    assert "boolq" in (run / "evaluation.md").read_text(encoding="utf-8")
    assert evaluate(run, "--suite", "piqa", "--limit", "3", mirror=mirror) == 0
    assert "Not all rows" in capfd.readouterr().out
    assert record(run).lines == found.lines
    assert record(run).limited is None
    assert evaluate(run, "--suite", "piqa", mirror=mirror) == 0
    assert record(run) == found


def test_a_model_that_changed_keeps_nothing(run: Path, mirror: Path, llama_directory: Path) -> None:
    assert evaluate(run, "--suite", "piqa", mirror=mirror) == 0
    shutil.rmtree(run / "model")
    shutil.copytree(llama_directory, run / "model")
    assert evaluate(run, "--suite", "boolq", mirror=mirror) == 0
    found = record(run)
    assert set(found.scores["target"]) == {"boolq"}
    assert set(found.scores["reference"]) == {"boolq", "piqa"}
    assert not {pair.line for pair in found.paired if "target" in (pair.first, pair.second)} - {"boolq"}


@pytest.mark.parametrize("text", ['{"format": 1, "lines": 3}', '{"format": 99}', "null", "{"])
def test_a_record_that_cannot_be_read_is_kept_aside(
    text: str, run: Path, mirror: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (run / "evaluation.json").write_text(text, encoding="utf-8")
    assert evaluate(run, "--suite", "piqa", mirror=mirror) == 0
    said = "evaluation.json could not be read; it is kept as evaluation.json.unread-1, and written anew"
    assert said in capfd.readouterr().err
    assert (run / "evaluation.json.unread-1").read_text(encoding="utf-8") == text
    assert Evaluation.of(json.loads((run / "evaluation.json").read_text(encoding="utf-8"))).scores


def test_more_rows_are_not_replaced_by_fewer(run: Path, mirror: Path) -> None:
    def rows() -> dict[str, int]:
        record = json.loads((run / "evaluation.json").read_text(encoding="utf-8"))
        return {line.name: line.rows for line in Evaluation.of(record).lines}

    for limit, expected in (("5", 5), ("3", 5), ("6", 6)):
        assert evaluate(run, "--suite", "piqa", "--limit", limit, mirror=mirror) == 0
        assert rows() == {"piqa": expected}


def test_written_tasks_say_what_is_left_out(mirror: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert evaluate("--suite", "piqa,mmlu:0,wsc", "--write_tasks", tmp_path / "tasks", mirror=mirror) == 0
    shown, told = capfd.readouterr()
    assert shown.count("\n") == 1
    assert "mmlu: 55 of 57 tasks are left out: " in told
    assert "wsc is left out: aps/super_glue (wsc.fixed) is not whole in" in told
    assert told.count("\n") == 2
    (tmp_path / "file").write_text("", encoding="utf-8")
    assert evaluate("--suite", "piqa", "--write_tasks", "/proc/tasks", mirror=mirror) == 2
    assert "--write_tasks /proc/tasks: cannot be written" in capfd.readouterr().err


def test_a_card_that_cannot_be_written_is_a_line(
    run: Path, mirror: Path, gpt2_directory: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    cards = {}
    for name, content in {
        "latin": "# Modèle".encode("latin-1"),
        "broken": b"---\n- a\n---\n",
        "windows": b"# a\r\n",
    }.items():
        directory = Path(shutil.copytree(gpt2_directory, tmp_path / name))
        cards[name] = directory / "README.md"
        cards[name].write_bytes(content)
    directories = [card.parent for card in cards.values()]
    assert evaluate(*directories, "--suite", "piqa", "--card", "--out", tmp_path / "out", mirror=mirror) == 0
    shown, told = capfd.readouterr()
    assert "piqa" in shown
    assert f"{cards['latin']} is left without the results: 'utf-8' codec can't decode" in told
    assert f"{cards['broken']} is left without the results: the model card's front matter is no YAML mapping" in told
    assert cards["latin"].read_bytes() == "# Modèle".encode("latin-1")
    assert b"model-index" in cards["windows"].read_bytes()
    assert b"# a\r\n" in cards["windows"].read_bytes()


def test_the_table_is_shown_before_anything_can_fail_to_be_written(
    run: Path, mirror: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (run / "evaluation.json").mkdir()
    assert evaluate(run, "--suite", "piqa", mirror=mirror) == 1
    assert "piqa" in capfd.readouterr().out


def test_limits_are_said_in_everything_written(run: Path, mirror: Path) -> None:
    assert evaluate(run, "--suite", "piqa", "--limit", "3", "--latex", mirror=mirror) == 0
    for name in ("evaluation.md", "evaluation.tex", "model/README.md"):
        assert "the first 3 of 8 rows" in (run / name).read_text(encoding="utf-8"), name
    assert record(run).limited == "piqa: the first 3 of 8 rows"


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
        (("MODEL", "--device", "meta"), "--device meta: there is none"),
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
    assert {path.name for path in (tmp_path / "tasks").iterdir()} == {"piqa.yaml", "written.json"}


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


@pytest.fixture
def saved(
    gpt2_directory: Path, llama_directory: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[Path], dict[int, Path]]:
    """Gives a run two checkpoints that become the two models; says where each was exported last."""
    sources = {10: gpt2_directory, 20: llama_directory}

    def give(run: Path) -> dict[int, Path]:
        places: dict[int, Path] = {}
        found = [Saved(run / f"checkpoints/step_{step}", "target", None, step, step * 1000) for step in sources]
        for one in found:
            one.path.mkdir(parents=True)

        def export(one: Saved, out: Path) -> None:
            assert not any(place.exists() for place in places.values())  # one at a time
            if not one.path.exists():
                raise Failed(f"{one.path}: gone")
            places[one.step] = Path(shutil.copytree(sources[one.step], out))

        known[run], exporters[run] = found, export
        return places

    known: dict[Path, list[Saved]] = {}
    exporters: dict[Path, Callable[[Saved, Path], None]] = {}
    monkeypatch.setattr(evaluated_models, "checkpoint_directories", lambda run: known.get(run, []))
    monkeypatch.setattr(evaluated_models, "exporter", lambda run: exporters[run])
    return give


def test_checkpoints_are_a_curve(run: Path, mirror: Path, saved: Callable[[Path], dict[int, Path]]) -> None:
    """Each is exported, evaluated and drawn; what was exported is gone afterwards, what a killed call left as well."""
    places = saved(run)
    stale = run / "evaluation" / ".checkpoint-killed" / "model"
    stale.mkdir(parents=True)
    assert evaluate(run, "--suite", "piqa,boolq", "--checkpoints", mirror=mirror) == 0
    found = record(run)
    assert [(model.name, model.role, model.step, model.tokens_trained) for model in found.models] == [
        ("step 10", "checkpoint", 10, 10_000),
        ("step 20", "checkpoint", 20, 20_000),
        ("target", "target", None, 600_000),
        ("reference", "reference", None, None),
    ]
    assert [Path(model.source) for model in found.models[:2]] == [run / f"checkpoints/step_{n}" for n in (10, 20)]
    assert pairs(found) == {("target", "reference"), ("step 20", "reference")}
    assert "<svg" in (run / "evaluation.svg").read_text(encoding="utf-8")
    assert set(places) == {10, 20}
    assert {path.suffix for path in (run / "evaluation").iterdir() if path.name != ".lock"} == {".json"}


def test_checkpoints_and_controls_stay_beside_each_other(
    run: Path, mirror: Path, saved: Callable[[Path], dict[int, Path]]
) -> None:
    saved(run)
    assert evaluate(run, "--suite", "piqa", mirror=mirror) == 0
    assert evaluate(run, "--suite", "piqa,boolq", "--checkpoints", mirror=mirror) == 0
    found = record(run)
    assert {model.name for model in found.models} == {"step 10", "step 20", "target", "reference", "random:2x"}
    assert set(found.scores["random:2x"]) == {"piqa"}
    assert ("target", "random:2x") in pairs(found)
    drawn = (run / "evaluation.svg").read_text(encoding="utf-8")
    assert evaluate(run, "--suite", "boolq", "--limit", "3", "--checkpoints", mirror=mirror) == 0
    assert "the first 3 of 9 rows" in (run / "evaluation.svg").read_text(encoding="utf-8")  # of what was asked for
    assert record(run).lines == found.lines
    assert evaluate(run, "--suite", "piqa", mirror=mirror) == 0
    assert (run / "evaluation.svg").read_text(encoding="utf-8") == drawn  # rewritten from the record
    shutil.rmtree(run / "model")
    shutil.copytree(run / "controls" / "random-2x" / "model", run / "model")
    (run / "model" / "generation_config.json").write_text('{"temperature": 0.5}', encoding="utf-8")
    assert evaluate(run, "--suite", "piqa", mirror=mirror) == 0
    assert not (run / "evaluation.svg").exists()  # the checkpoints are of another training now


def test_checkpoints_of_runs_of_one_name(
    run: Path, mirror: Path, tmp_path: Path, saved: Callable[[Path], dict[int, Path]]
) -> None:
    other = Path(shutil.copytree(run, tmp_path / "elsewhere" / "half"))
    saved(run), saved(other)
    out = tmp_path / "out"
    assert evaluate(run, other, "--suite", "piqa", "--checkpoints", "--out", out, mirror=mirror) == 0
    names = [model.name for model in record(out).models]
    assert names[:4] == [f"{one}/step {step}" for one in (run, other) for step in (10, 20)]
    third = Path(shutil.copytree(run, tmp_path / "third", ignore=shutil.ignore_patterns("checkpoints")))
    saved(third)
    assert evaluate(run, third, "--suite", "piqa", "--checkpoints", "--out", out, mirror=mirror) == 0
    names = [model.name for model in record(out).models]
    assert names[:5] == ["half/step 10", "half/step 20", "third/step 10", "third/step 20", "half/target"]


def test_checkpoints_of_a_run_under_way(
    run: Path,
    mirror: Path,
    saved: Callable[[Path], dict[int, Path]],
    capfd: pytest.CaptureFixture[str],
) -> None:
    """Without a target; and a checkpoint that the run does not keep meanwhile is left out."""
    shutil.rmtree(run / "model")
    change(run / "result.json", state="running")
    saved(run)
    shutil.rmtree(run / "checkpoints" / "step_10")
    assert evaluate(run, "--suite", "piqa", "--checkpoints", mirror=mirror) == 0
    assert [model.name for model in record(run).models] == ["step 20", "reference"]
    assert pairs(record(run)) == {("step 20", "reference")}
    assert "step 10 is left out: the run went on, and did not keep it" in capfd.readouterr().err
    shutil.rmtree(run / "checkpoints" / "step_20")
    shutil.rmtree(run / "controls")
    (run / "reference.json").unlink()
    assert evaluate(run, "--suite", "piqa", "--checkpoints", mirror=mirror) == 1
    assert "--checkpoints: none is there any more, the run went on" in capfd.readouterr().err


def test_a_run_without_checkpoints(run: Path, mirror: Path) -> None:
    (run / "checkpoints").mkdir()
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
