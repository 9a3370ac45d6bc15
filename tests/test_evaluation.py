"""Evaluation on the harness: the same numbers as its own command, what stands beside them, and what goes wrong."""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from evaluation_mirror import DATA, write_mirror
from inheritune import reference as references
from inheritune.errors import Failed, Interrupted, Refused
from inheritune.evaluation import batch, evaluating, measuring
from inheritune.evaluation.batch import bytes_a_token, rows_that_fit
from inheritune.evaluation.evaluating import Candidate, Plan, Settings, evaluate, find, fingerprint, plan
from inheritune.evaluation.language_model import EvaluatedModel
from inheritune.evaluation.measuring import measure
from inheritune.evaluation.suites import Asked, parse_suite
from inheritune.evaluation.tasks import Harness, Task, quiet
from inheritune.evaluation.writing import list_datasets, write_tasks
from inheritune.scores import Evaluation, TaskScores

CPU = torch.device("cpu")
ALL = "piqa,boolq,winogrande,logiqa,lambada_openai,wikitext"


@pytest.fixture(scope="module")
def mirror(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_mirror(tmp_path_factory.mktemp("mirror"))


@pytest.fixture(scope="module")
def planned(mirror: Path) -> Plan:
    return plan(parse_suite(ALL), datasets=mirror, limit=None)


def driven(directory: Path, batch_size: int | None = None, dtype: torch.dtype | None = None) -> EvaluatedModel:
    found = references.find(str(directory))
    assert found.tokenizer is not None
    with quiet():
        return EvaluatedModel(references.load(found, dtype), found.tokenizer, batch_size=batch_size)


def on(model: EvaluatedModel, planned: Plan) -> dict[str, TaskScores]:
    return {task.name: measure(model, task) for task in planned.tasks}


def run(directories: list[Path], planned: Plan, kept: Path, **settings: Any) -> Evaluation:
    how = Settings(device=CPU, **settings)
    candidates = [Candidate(path.name, str(path)) for path in directories]
    return evaluate(find(candidates, how), planned, settings=how, kept=kept)


def noting(done: list[str]) -> Callable[[EvaluatedModel, Task], TaskScores]:
    """What measures, and notes what."""

    def noted(model: EvaluatedModel, task: Task) -> TaskScores:
        done.append(task.name)
        return measure(model, task)

    return noted


def test_equal_to_the_harness_own_command(planned: Plan, mirror: Path, llama_directory: Path, tmp_path: Path) -> None:
    """To the last digit, by its command and the files that are written for it; the context cuts rows there, too."""
    groups = plan(parse_suite("piqa,lambada_openai,wikitext,mmlu:2"), datasets=mirror, limit=None)
    command = write_tasks(groups, tmp_path / "tasks")
    assert command == f"lm_eval run --include_path {tmp_path / 'tasks'} --tasks piqa,lambada_openai,wikitext,mmlu"
    scores = on(driven(llama_directory, batch_size=4), groups)
    for names in (
        "piqa",
        "lambada_openai",
        "wikitext",
        "mmlu",
    ):  # one by one, for rows of several tasks would share batches
        words = ["-m", "lm_eval", "run", "--include_path", str(tmp_path / "tasks"), "--tasks", names]
        words += ["--model", "hf", "--model_args", f"pretrained={llama_directory}", "--device", "cpu"]
        words += ["--batch_size", "4", "--output_path", str(tmp_path / "out" / names)]
        subprocess.run([sys.executable, *words], check=True, capture_output=True)
        found = json.loads(next((tmp_path / "out" / names).rglob("results*.json")).read_text(encoding="utf-8"))
        ours = [one for one in scores.values() if one.task == names or one.task.startswith(f"{names}_")]
        for one in ours:
            theirs = found["results"][one.task]
            if names != "mmlu":
                assert {metric: theirs[f"{metric},none"] for metric in one.metrics} == one.metrics
            assert found["n-shot"][one.task] == one.shots
            assert found["n-samples"][one.task]["effective"] == len(one.rows)
        if names == "mmlu":
            right = sum(row.values["acc"] for one in ours for row in one.rows)
            assert found["results"]["mmlu"]["acc,none"] == pytest.approx(right / sum(len(one.rows) for one in ours))
            assert found["results"]["mmlu"]["alias"] == "mmlu, 2 of 57 tasks"
    assert scores["piqa"].cut_rows == 0
    assert scores["mmlu_anatomy"].cut_rows == len(scores["mmlu_anatomy"].rows)


def test_batch_size_changes_rounding_alone(planned: Plan, llama_directory: Path) -> None:
    one, many = (on(driven(llama_directory, batch_size=rows), planned) for rows in (1, 16))
    for name, scores in one.items():
        assert scores.settings["batch_size"] == 1
        assert many[name].settings["batch_size"] == 16
        assert many[name].metrics == pytest.approx(scores.metrics, rel=1e-6)
        for ours, theirs in zip(many[name].rows, scores.rows, strict=True):
            assert ours.values == pytest.approx(theirs.values, rel=1e-5)


def test_wikitext_is_a_plain_sliding_computation(planned: Plan, llama_directory: Path) -> None:
    """A page by hand: windows of the context's length, each token predicted once, the last window reaching back."""
    scores = on(driven(llama_directory), planned)["wikitext"]
    page = DATA["EleutherAI/wikitext_document_level"]["wikitext-2-raw-v1"]["test"][2]["page"]
    text = page.replace("\n ", "\n")  # what the task's detokeniser makes of such a page
    model = AutoModelForCausalLM.from_pretrained(llama_directory)
    tokenizer = AutoTokenizer.from_pretrained(llama_directory)
    tokens, length = tokenizer.encode(text), model.config.max_position_embeddings
    stream = [tokenizer.eos_token_id, *tokens]  # no start token: the end token stands before the text
    nats = 0.0
    for first in range(0, len(tokens), length):
        last = min(first + length, len(tokens))
        begin = max(0, last - length)
        with torch.no_grad():
            logits = model(torch.tensor([stream[begin:last]])).logits[0].double().log_softmax(-1)
        nats -= sum(float(logits[i - begin, stream[i + 1]]) for i in range(first, last))
    assert len(tokens) > 2 * length
    row = scores.rows[2]
    assert row.values["word_perplexity"] == pytest.approx(-nats, rel=1e-5)
    assert row.units["word_perplexity"] == len(re.split(r"\s+", page))
    assert row.units["byte_perplexity"] == len(page.encode())
    assert not row.cut
    total = sum(one.values["word_perplexity"] for one in scores.rows)
    words = sum(one.units["word_perplexity"] for one in scores.rows)
    assert scores.metrics["word_perplexity"] == pytest.approx(math.exp(-total / words))


def test_rows_keep_what_chance_and_majority_are_made_of(planned: Plan, llama_directory: Path) -> None:
    scores = on(driven(llama_directory), planned)
    assert [row.gold for row in scores["boolq"].rows] == [int(n % 3 > 0) for n in range(9)]
    assert [row.gold for row in scores["winogrande"].rows] == [0, 1, 0, 1]
    assert {(row.choices, row.chance) for row in scores["logiqa"].rows} == {(4, 0.25)}
    assert {(row.gold, row.choices, row.chance) for row in scores["lambada_openai"].rows} == {(None, None, 0.0)}
    assert scores["piqa"].better == {"acc": "higher", "acc_norm": "higher"}
    assert scores["wikitext"].better["word_perplexity"] == "lower"
    assert len({row.fingerprint for row in scores["piqa"].rows}) == 8


def test_a_table_says_what_it_is_made_of(
    planned: Plan, llama_directory: Path, gpt2_directory: Path, tmp_path: Path
) -> None:
    found = run([llama_directory, gpt2_directory], planned, tmp_path)
    lines = {line.name: line for line in found.lines}
    assert lines["boolq"].chance == 0.5
    assert lines["boolq"].majority == pytest.approx(6 / 9)
    assert lines["wikitext"].metric == "word_perplexity"  # the task's first
    assert all(line.whole and line.rows == line.rows_in_split for line in found.lines)
    assert [model.name for model in found.models] == [llama_directory.name, gpt2_directory.name]
    assert {pair.line for pair in found.paired} == set(lines)
    assert all(pair.rows == lines[pair.line].rows for pair in found.paired)
    assert Evaluation.of(json.loads(json.dumps(found.record()))) == found
    assert found.limited is None


def test_what_was_evaluated_is_not_repeated(
    planned: Plan, llama_directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped after two tasks it goes on with the third; given again it repeats none."""
    done: list[str] = []
    real = measure

    def stopping(model: EvaluatedModel, task: Task) -> TaskScores:
        if len(done) == 2:
            raise KeyboardInterrupt
        done.append(task.name)
        return real(model, task)

    monkeypatch.setattr(evaluating, "measure", stopping)
    with pytest.raises(KeyboardInterrupt):
        run([llama_directory], planned, tmp_path)
    assert len(list(tmp_path.glob("*.json"))) == 2
    first = list(done)
    monkeypatch.setattr(evaluating, "measure", noting(done))
    whole = run([llama_directory], planned, tmp_path)
    assert done == [task.name for task in planned.tasks]
    assert done[:2] == first
    again = run([llama_directory], planned, tmp_path)
    assert len(done) == len(planned.tasks)
    assert again.scores == whole.scores
    victim = next(tmp_path.glob("piqa-*.json"))
    victim.write_text(victim.read_text(encoding="utf-8")[:-40], encoding="utf-8")
    assert run([llama_directory], planned, tmp_path).scores.keys() == whole.scores.keys()
    assert done[len(planned.tasks) :] == ["piqa"]


def test_other_settings_are_other_scores(
    planned: Plan, mirror: Path, llama_directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Dtype, batch size asked for, rows, data and model all count; where the data lies does not."""
    done: list[str] = []
    monkeypatch.setattr(evaluating, "measure", noting(done))

    def evaluated(planned: Plan, directory: Path = llama_directory, **settings: Any) -> bool:
        before = len(done)
        run([directory], planned, tmp_path / "kept", **settings)
        return len(done) > before

    piqa = plan(parse_suite("piqa"), datasets=mirror, limit=None)
    assert evaluated(piqa)
    assert not evaluated(piqa)
    moved = tmp_path / "moved"
    shutil.copytree(mirror, moved)
    assert not evaluated(plan(parse_suite("piqa"), datasets=moved, limit=None))
    assert evaluated(plan(parse_suite("piqa"), datasets=mirror, limit=3))
    assert evaluated(piqa, dtype=torch.bfloat16)
    assert evaluated(piqa, batch_size=2)
    rows = [dict(row) for row in DATA["baber/piqa"]["default"]["validation"]]
    rows[0]["goal"] = "boil two eggs"
    other = write_mirror(tmp_path / "other", {"baber/piqa": {"default": {"validation": rows}}})
    assert evaluated(plan(parse_suite("piqa"), datasets=other, limit=None))
    copy = tmp_path / "copy"
    shutil.copytree(llama_directory, copy)
    assert not evaluated(piqa, copy)
    text = (copy / "tokenizer.json").read_text(encoding="utf-8")
    (copy / "tokenizer.json").write_text(text.replace('"add_prefix_space": false', '"add_prefix_space": true'), "utf-8")
    assert evaluated(piqa, copy)


def test_the_fingerprint_is_of_all_that_counts(llama_directory: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(llama_directory, copy)
    known = fingerprint(references.find(str(llama_directory)))
    assert fingerprint(references.find(str(copy))) == known
    config = json.loads((copy / "config.json").read_text(encoding="utf-8"))
    (copy / "config.json").write_text(json.dumps(config | {"rms_norm_eps": 1e-3}), encoding="utf-8")
    assert fingerprint(references.find(str(copy))) != known


def test_limits_are_marked_everywhere(mirror: Path, llama_directory: Path, tmp_path: Path) -> None:
    limited = plan(parse_suite("piqa,boolq"), datasets=mirror, limit=3)
    found = run([llama_directory], limited, tmp_path)
    assert [line.selection for line in found.lines] == ["the first 3 of 8 rows", "the first 3 of 9 rows"]
    assert not any(line.whole for line in found.lines)
    assert found.limited == "piqa: the first 3 of 8 rows; boolq: the first 3 of 9 rows"
    kept = TaskScores.of(json.loads(next(tmp_path.glob("piqa-*.json")).read_text(encoding="utf-8")))
    assert [row.row for row in kept.rows] == [0, 1, 2]
    assert kept.selection == "the first 3 of 8 rows"


def test_a_seeded_choice_keeps_the_rows_own_numbers(
    mirror: Path, llama_directory: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    suite = parse_suite("quick")
    few = dataclasses.replace(
        suite, asked=tuple(dataclasses.replace(one, rows=3) for one in suite.asked if one.name in ("piqa", "boolq"))
    )
    chosen = plan(few, datasets=mirror, limit=None)
    whole = on(driven(llama_directory, batch_size=1), plan(parse_suite("piqa,boolq"), datasets=mirror, limit=None))
    for name, scores in on(driven(llama_directory, batch_size=1), chosen).items():
        assert len(scores.rows) == 3
        known = {row.row: row for row in whole[name].rows}
        assert all(known[row.row] == row for row in scores.rows)
    command = write_tasks(chosen, tmp_path / "tasks")
    assert command.endswith(f"--samples {tmp_path / 'tasks' / 'samples.json'}")
    samples = json.loads((tmp_path / "tasks" / "samples.json").read_text(encoding="utf-8"))
    assert samples == {task.name: list(task.selected or ()) for task in chosen.tasks}


def test_what_cannot_run_is_a_gap(mirror: Path, llama_directory: Path, tmp_path: Path) -> None:
    """A part of MMLU is named so, a task without data says how to get it; the others are evaluated."""
    some = plan(parse_suite("mmlu:1,wsc,piqa"), datasets=mirror, limit=None)
    found = run([llama_directory], some, tmp_path)
    lines = {line.name: line for line in found.lines}
    assert list(lines) == ["mmlu", "wsc", "piqa"]
    assert lines["mmlu"].title == "mmlu, 2 of 57 subjects"
    assert lines["mmlu"].tasks == ("mmlu_anatomy", "mmlu_astronomy")
    assert (lines["mmlu"].rows, lines["mmlu"].whole, lines["mmlu"].shots) == (13, False, 1)
    assert "and 54 more of its tasks" in str(lines["mmlu"].gap)
    assert str(lines["wsc"].gap).startswith("aps/super_glue (wsc.fixed) is not whole in ")
    assert "hf download --repo-type dataset aps/super_glue --local-dir" in str(lines["wsc"].gap)
    scores = found.scores[llama_directory.name]
    assert set(scores) == {"mmlu", "piqa"}
    right = [row.values["acc"] for task in lines["mmlu"].tasks for row in _kept(tmp_path, task).rows]
    assert scores["mmlu"].value == pytest.approx(sum(right) / 13)


def _kept(directory: Path, task: str) -> TaskScores:
    return TaskScores.of(json.loads(next(directory.glob(f"{task}-*.json")).read_text(encoding="utf-8")))


def test_nothing_can_run(mirror: Path) -> None:
    with pytest.raises(Refused) as error:
        plan(parse_suite("wsc,qnli"), datasets=mirror, limit=None)
    assert "no data to evaluate on: wsc: aps/super_glue (wsc.fixed)" in str(error.value)
    assert "(and 1 more)" in str(error.value)


@pytest.mark.parametrize(
    ("suite", "said"),
    [
        ("bolq", "no task of the harness; did you mean 'boolq'?"),
        ("truthfulqa_mc2:3", "its prompt has its own examples; leave :3 out"),
        ("mmlu:6", "mmlu_anatomy:6: it has 5 worked examples; ask for at most so many"),
        ("mmlu:5,mmlu_anatomy:0", "mmlu_anatomy comes twice, in mmlu and by itself; name it once"),
        ("wnli,glue", "wnli comes twice, by itself and in glue; name it once"),
    ],
)
def test_refused(suite: str, said: str, mirror: Path) -> None:
    with pytest.raises(Refused) as error:
        plan(parse_suite(suite), datasets=mirror, limit=None)
    assert said in str(error.value)


def test_a_corrupted_file_is_a_gap(mirror: Path, tmp_path: Path) -> None:
    copy = tmp_path / "mirror"
    shutil.copytree(mirror, copy)
    file = next((copy / "baber/piqa").rglob("*.parquet"))
    file.write_bytes(file.read_bytes()[:200])
    found = plan(parse_suite("piqa,boolq"), datasets=copy, limit=None)
    assert [gap.name for gap in found.gaps] == ["piqa"]
    assert found.gaps[0].reason.startswith("baber/piqa cannot be read: ")
    assert "\n" not in found.gaps[0].reason


def test_rows_longer_than_the_context_are_counted(mirror: Path, llama_directory: Path, tmp_path: Path) -> None:
    """Contexts are cut as the harness does; a longer answer, where the harness stops, is cut and counted, too."""
    rows = [dict(row) for row in DATA["baber/piqa"]["default"]["validation"]]
    rows[1]["goal"] = "a long goal " * 60
    rows[2]["sol2"] = "a long answer " * 60
    long = write_mirror(tmp_path / "long", {"baber/piqa": {"default": {"validation": rows}}})
    scores = on(driven(llama_directory), plan(parse_suite("piqa"), datasets=long, limit=None))["piqa"]
    assert [row.row for row in scores.rows if row.cut] == [1, 2]
    assert scores.cut_rows == 2
    assert scores.settings["context"] == 128


def test_a_padded_vocabulary_changes_nothing(planned: Plan, llama_directory: Path, tmp_path: Path) -> None:
    """Rows of the head that stand for no token, with scores so low that the softmax does not see them."""
    padded = tmp_path / "padded"
    shutil.copytree(llama_directory, padded)
    model = AutoModelForCausalLM.from_pretrained(llama_directory)
    head = model.lm_head.weight.detach().clone()
    model.resize_token_embeddings(384, mean_resizing=False)
    with torch.no_grad():
        model.lm_head.weight[: head.shape[0]] = head
        model.lm_head.weight[head.shape[0] :] = 0.0
    model.save_pretrained(padded)
    before, after = (on(driven(path, batch_size=4), planned) for path in (llama_directory, padded))
    lost = math.log(384 / 320)  # of nearly uniform scores, the share that goes to the padding
    ours, theirs = (one["wikitext"].rows[0].values["word_perplexity"] for one in (before, after))
    tokens = len(
        AutoTokenizer.from_pretrained(llama_directory).encode(
            DATA["EleutherAI/wikitext_document_level"]["wikitext-2-raw-v1"]["test"][0]["page"].replace("\n ", "\n")
        )
    )
    assert ours - theirs == pytest.approx(lost * tokens, rel=0.05)


def test_without_start_or_end_token(planned: Plan, llama_directory: Path, tmp_path: Path) -> None:
    """The config's token stands before a text; where there is none either, one line says so."""
    bare = tmp_path / "bare"
    shutil.copytree(llama_directory, bare)
    tokenizer = AutoTokenizer.from_pretrained(bare)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend_tokenizer).save_pretrained(bare)
    assert AutoTokenizer.from_pretrained(bare).eos_token_id is None
    model = driven(bare)
    assert model.prefix == 319
    assert on(model, planned)["wikitext"].settings["prefix_token"] == 319
    config = json.loads((bare / "config.json").read_text(encoding="utf-8"))
    (bare / "config.json").write_text(json.dumps(config | {"bos_token_id": None, "eos_token_id": None}), "utf-8")
    with pytest.raises(Refused) as error:
        driven(bare)
    assert "neither its tokenizer nor its config has a start or end token" in str(error.value)


def test_a_model_without_a_tokenizer_is_refused(llama_directory: Path, tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    shutil.copytree(llama_directory, bare, ignore=shutil.ignore_patterns("tokenizer*", "special*", "vocab*"))
    with pytest.raises(Refused) as error:
        find([Candidate("bare", str(bare))], Settings(device=CPU))
    assert "has no tokenizer" in str(error.value)


def test_a_task_that_fails_is_a_gap_and_the_others_go_on(
    planned: Plan, llama_directory: Path, gpt2_directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(model: EvaluatedModel, task: Task) -> TaskScores:
        if task.name == "boolq" and "LLaMA" in type(model.model).__name__.replace("Llama", "LLaMA"):
            raise Failed("boolq: it could not be evaluated: math range error")
        return measure(model, task)

    monkeypatch.setattr(evaluating, "measure", failing)
    found = run([llama_directory, gpt2_directory], planned, tmp_path)
    name = llama_directory.name
    assert found.failed == {name: {"boolq": "boolq: it could not be evaluated: math range error"}}
    assert set(found.scores[name]) == {line.name for line in found.lines} - {"boolq"}
    assert "boolq" in found.scores[gpt2_directory.name]
    assert next(line for line in found.lines if line.name == "boolq").rows == 9
    assert {pair.line for pair in found.paired} == set(found.scores[name])
    assert Evaluation.of(json.loads(json.dumps(found.record()))) == found


def test_whatever_a_task_raises_is_one_line(
    planned: Plan, llama_directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Overflow in a mean of perplexities, a missing package of a metric: but a stop is a stop."""
    model, task = driven(llama_directory), planned.tasks[0]
    for error in (OverflowError("math range error"), ImportError("no module\nnamed x"), AssertionError()):
        monkeypatch.setattr(measuring, "_scores", lambda *_, error=error: (_ for _ in ()).throw(error))
        with pytest.raises(Failed) as failed:
            measure(model, task)
        assert str(failed.value).startswith("piqa: it could not be evaluated: ")
        assert "\n" not in str(failed.value)
    stop = Interrupted("stopped by SIGTERM", 143)
    monkeypatch.setattr(measuring, "_scores", lambda *_: (_ for _ in ()).throw(stop))
    with pytest.raises(Interrupted):
        measure(model, task)


def test_a_failing_model_is_one_line(
    planned: Plan, llama_directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        EvaluatedModel, "_model_call", lambda *_args, **_kwargs: (_ for _ in ()).throw(RuntimeError("out of\nmemory"))
    )
    with pytest.raises(Failed) as error:
        run([llama_directory], planned, tmp_path)
    assert str(error.value) == "piqa: it could not be evaluated: out of memory"


def test_a_model_of_no_numbers_has_no_score(planned: Plan, llama_directory: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(llama_directory, broken)
    tensors = load_file(broken / "model.safetensors")
    tensors["model.norm.weight"][3] = math.nan
    save_file(tensors, broken / "model.safetensors", {"format": "pt"})
    with pytest.raises(Failed, match="its logits are NaN, so it has no score"):
        run([broken], planned, tmp_path)


def test_what_a_group_changes_of_its_tasks_counts() -> None:
    """The harness's `openllm` asks for 25 shots of one task and 5 of another; the shots asked for here go before."""
    asked = Asked("openllm")
    harness = Harness((asked,))
    shots = {name: harness.config(asked, name).get("num_fewshot") for name in harness.members(asked)}
    assert shots["arc_challenge"] == 25
    assert shots["hellaswag"] == 10
    assert shots["winogrande"] == 5
    assert shots["mmlu_anatomy"] == 5
    assert not harness.is_one_line(asked)


def test_pairs_are_numbers_of_likelihoods_alone() -> None:
    """Of an F1 a row holds what is right and what was said, for the whole task's score."""
    assert measuring._number("word_perplexity", (-12.5, 3)) == (-12.5, 3.0)
    assert measuring._number("acc", True) == (1.0, None)
    for metric, value in (("f1", (1, 0)), ("bleu", ("a", "b")), ("f1", ([1], 0)), ("exact", None), ("x", "text")):
        assert measuring._number(metric, value) is None


def test_a_definition_has_no_memory_addresses(planned: Plan) -> None:
    """Or a task with a partial function would be another one in every process."""
    task = dataclasses.replace(planned.tasks[0])
    before = task.definition
    assert before == dataclasses.replace(task).definition

    class Built:
        def dump_config(self) -> dict[str, Any]:
            return {"process_docs": functools.partial(print, object())}

    assert dataclasses.replace(task, built=Built()).definition == dataclasses.replace(task, built=Built()).definition


def test_a_group_is_one_data_set(mirror: Path, llama_directory: Path, tmp_path: Path) -> None:
    found = run([llama_directory], plan(parse_suite("mmlu:0"), datasets=mirror, limit=2), tmp_path)
    (line,) = found.lines
    assert line.dataset["name"] is None
    assert line.dataset["path"] == "cais/mmlu"
    assert line.dataset["fingerprint"] not in {_kept(tmp_path, name).dataset["fingerprint"] for name in line.tasks}
    assert line.selection == "the first 2 rows of each task"
    assert set(line.changed) == {"dataset_path", "dataset_kwargs"}


def test_not_even_one_row_fits(llama_directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = AutoModelForCausalLM.from_pretrained(llama_directory)
    monkeypatch.setattr(batch, "available_memory_bytes", lambda _device: 100_000)
    with pytest.raises(Failed) as error:
        batch.batch_rows(model, 128)
    assert "the scores of one row of 128 tokens take 0.0 GB of memory" in str(error.value)
    assert batch.batch_rows(model, 64) == 1


@pytest.mark.parametrize(
    ("free", "length", "token_bytes", "on_cpu", "rows"),
    [
        (8 << 30, 512, 3 * 50_000 * 4, True, 4),  # 0.25 of 8 GiB hold 6 rows of 307 MB
        (8 << 30, 512, 1_000, True, 8),  # no more than 4,096 tokens at once on a CPU
        (8 << 30, 4096, 1_000, True, 1),
        (80 << 30, 2048, 3 * 128_256 * 2, False, 8),
        (80 << 30, 128, 1_000, False, 128),
        (1 << 20, 4096, 1_000_000, False, 1),  # at least one, whatever is free
    ],
)
def test_rows_at_once(free: int, length: int, token_bytes: int, on_cpu: bool, rows: int) -> None:
    assert rows_that_fit(free, length, token_bytes, on_cpu=on_cpu) == rows


def test_a_tokens_memory_counts_the_padded_vocabulary(llama_directory: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(llama_directory)
    before = bytes_a_token(model)
    model.resize_token_embeddings(1344, mean_resizing=False)
    assert bytes_a_token(model) - before == 3 * 1024 * 4


def test_what_a_mirror_must_hold(planned: Plan) -> None:
    needed = {one.dataset: one for one in list_datasets(planned.harness)}
    assert set(needed) == set(DATA) - {"cais/mmlu"}
    assert needed["EleutherAI/logiqa"].splits == ("test",)
    assert needed["aps/super_glue"].names == ("boolq",)
    assert needed["baber/piqa"].command == "hf download --repo-type dataset baber/piqa --local-dir DIR/baber/piqa"


def test_write_tasks_leaves_other_directories_alone(planned: Plan, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine", encoding="utf-8")
    with pytest.raises(Refused) as error:
        write_tasks(planned, tmp_path)
    assert "holds other files" in str(error.value)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]
