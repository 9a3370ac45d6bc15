"""A model card with results: what the hub reads, and what stays as it was."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard, metadata_load
from huggingface_hub.repocard_data import model_index_to_eval_results
from hypothesis import example, given, settings, strategies as st

from inheritune.errors import Refused
from inheritune.report import card_with_results, markdown_evaluation, model_index
from inheritune.scores import Evaluation
from test_report_evaluation import MARKUP, evaluation, line, score, two, wikitext

CARD = """---
# a comment that is kept
license: "mit"
tags: [a, b]   # and another
---

# Title

Text.

## Use

More text.
"""
DATASETS = {"piqa": {"path": "baber/piqa", "name": None, "split": "validation", "source": "mirror"}}


def front(card: str) -> dict[str, Any]:
    known = yaml.safe_load(card.split("---")[1])
    assert isinstance(known, dict)
    return known


def read(card: str) -> Any:
    """The front matter as the hub's library has it."""
    return ModelCard(card).data


def section(found: Evaluation) -> str:
    return f"## Evaluation\n\n{markdown_evaluation(found)}"


def test_the_index_in_the_hubs_format() -> None:
    (entry,) = model_index(two(), "Target", DATASETS)
    assert entry["name"] == "Target"  # its directory's name
    piqa, wiki = entry["results"]
    assert piqa == {
        "task": {"type": "text-generation", "name": "Text generation"},
        "dataset": {"name": "piqa", "type": "baber/piqa", "split": "validation"},
        "metrics": [
            {
                "type": "acc",
                "value": 51.54,
                "name": "accuracy in %, piqa, 0-shot, standard error 1.17",
                "args": {
                    "num_few_shot": 0,
                    "standard_error": 1.17,
                    "rows": 1838,
                    "chance": 50.0,
                    "majority": 50.5,
                },
            },
            {
                "type": "acc_norm",
                "value": 52.0,
                "name": "normalised accuracy in %, piqa, 0-shot",
                "args": {"num_few_shot": 0, "rows": 1838},
            },
        ],
    }
    assert wiki["dataset"] == {"name": "wikitext", "type": "wikitext"}
    assert wiki["metrics"] == [
        {
            "type": "word_perplexity",
            "value": 1234.5,
            "name": "word perplexity, wikitext, 0-shot, standard error 12.3",
            "args": {"num_few_shot": 0, "standard_error": 12.34, "rows": 62, "rows_cut": 7},
        }
    ]


def test_what_is_limited_or_partial_says_so_in_name_and_arguments() -> None:
    lines = [
        line(selection="the first 9 rows", whole=False, rows=9, shots=5),
        line("mmlu", title="mmlu, 10 of 57 subjects", whole=False, rows=1200, rows_in_split=14042),
    ]
    (entry,) = model_index(evaluation(lines, {"a": {"piqa": score(0.5), "mmlu": score(0.3)}}), "a")
    first, second = entry["results"]
    assert first["dataset"]["name"] == "piqa, the first 9 rows"
    assert first["metrics"][0]["name"] == "accuracy in %, piqa, the first 9 rows, 5-shot, standard error 1.1"
    assert first["metrics"][0]["args"]["limited"] == "piqa, the first 9 rows"
    assert (first["metrics"][0]["args"]["rows"], first["metrics"][0]["args"]["rows_in_split"]) == (9, 1838)
    assert second["metrics"][0]["name"] == "accuracy in %, mmlu, 10 of 57 subjects, 0-shot, standard error 1.1"
    assert second["metrics"][0]["args"]["limited"] == "mmlu, 10 of 57 subjects"


def test_lines_on_one_data_set_share_an_entry_and_keep_their_names() -> None:
    lines = [line("piqa"), line("piqa:5", shots=5, tasks=("piqa",))]
    (entry,) = model_index(evaluation(lines, {"a": {"piqa": score(0.5), "piqa:5": score(0.6)}}), "a")
    (result,) = entry["results"]
    assert [metric["name"].split(", ")[1:3] for metric in result["metrics"]] == [
        ["piqa", "0-shot"],
        ["piqa:5", "5-shot"],
    ]


def test_a_group_has_no_configuration() -> None:
    """That of its first subject is not what was evaluated."""
    subjects = ("mmlu_anatomy", "mmlu_astronomy")
    data = {name: {"path": "cais/mmlu", "name": "anatomy", "split": "test"} for name in ("mmlu", "mmlu_anatomy")}
    lines = [line("mmlu", tasks=subjects), line("mmlu_anatomy", tasks=subjects[:1])]
    found = evaluation(lines, {"a": {"mmlu": score(0.3), "mmlu_anatomy": score(0.4)}})
    (entry,) = model_index(found, "a", data)
    assert [result["dataset"].get("config") for result in entry["results"]] == [None, "anatomy"]
    assert {result["dataset"]["type"] for result in entry["results"]} == {"cais/mmlu"}


@pytest.mark.parametrize(
    ("source", "name"),
    [("runs/half/model", "half"), ("runs/half/controls/random-2x/model", "random-2x"), ("models/mine/", "mine")],
)
def test_a_model_is_named_by_its_directory(source: str, name: str) -> None:
    found = two()
    models = tuple(replace(model, source=source) if model.name == "Target" else model for model in found.models)
    (entry,) = model_index(replace(found, models=models), "Target")
    assert entry["name"] == name
    (read_back,) = front(card_with_results(CARD, replace(found, models=models), "Target"))["model-index"]
    assert read_back["name"] == name


def test_gaps_and_what_is_no_number_are_left_out() -> None:
    lines = [line(gap="not there"), wikitext()]
    found = evaluation(lines, {"a": {"wikitext": score(math.inf, math.nan)}, "b": {}})
    assert model_index(found, "a") == []
    assert model_index(found, "b") == []
    card = card_with_results(CARD, found, "a")
    assert "model-index" not in front(card)
    assert "## Evaluation" in card


def test_a_model_that_is_not_there_is_refused() -> None:
    with pytest.raises(Refused, match=r"^Other: not a model of this evaluation, which has Reference, Target$"):
        card_with_results(CARD, two(), "Other")
    with pytest.raises(Refused, match="which has none"):
        model_index(evaluation([line()], {}), "a")


def test_the_hub_reads_it_back(tmp_path: Path) -> None:
    card = card_with_results(CARD, two(), "Target", DATASETS)
    path = tmp_path / "README.md"
    path.write_text(card, encoding="utf-8")
    data = metadata_load(path)
    assert data is not None
    name, results = model_index_to_eval_results(data["model-index"])
    assert name == "Target"
    known = read(card)
    assert known.eval_results == results
    assert (known.license, known.tags) == ("mit", ["a", "b"])
    assert [(one.dataset_type, one.metric_type, one.metric_value) for one in results] == [
        ("baber/piqa", "acc", 51.54),
        ("baber/piqa", "acc_norm", 52.0),
        ("wikitext", "word_perplexity", 1234.5),
    ]


def test_everything_else_stays_byte_for_byte() -> None:
    index = yaml.safe_dump({"model-index": model_index(two(), "Target")}, sort_keys=False, allow_unicode=True)
    top, _, text = CARD.partition("\n---\n")
    assert card_with_results(CARD, two(), "Target") == f"{top}\n{index}---\n{text}\n{section(two())}"


OLD = "model-index:\n- name: old\n  results:\n  - task: {type: x}\n    metrics: []"


@pytest.mark.parametrize(
    ("before", "old", "after"),
    [
        ("license: mit\n", OLD + "\n", ""),
        ("", OLD + "\n", "# a comment behind it\nlicense: mit\n"),
        ("license: mit\n\n", OLD + "   # its own\n", "\ntags: [a]\n"),
        ("a: 1\n", '"model-index": [{name: old,\n  results: []}]\n', "b: 2\n"),
        ("a: 1\n", "model-index: [\n  {name: old}\n]\n", "b: 2\n"),
        ("a: 1\n", "model-index:\n", "b: 2\n"),
        ("a: 1\n", "model-index: ~\n", "# end\n"),
        ("a: 1\n", "model-index:\n- name: |\n    old\n    text\n", "b: 2\n"),
        ("a: |\n  model-index: no\n", "model-index: []\n", "b: {model-index: no}\n"),
        ("a: 1\n", "", ""),
        ("# nothing but this\n", "", ""),
        ("", "", ""),
    ],
)
def test_an_index_takes_the_place_of_the_old_one(before: str, old: str, after: str) -> None:
    card = card_with_results(f"---\n{before}{old}{after}---\ntext\n", two(), "Target")
    index = yaml.safe_dump({"model-index": model_index(two(), "Target")}, sort_keys=False, allow_unicode=True)
    assert card == f"---\n{before}{index}{after}---\ntext\n\n{section(two())}"
    assert read(card).eval_results


def test_an_index_without_results_is_taken_out() -> None:
    card = card_with_results(f"---\na: 1\n{OLD}\nb: 2\n---\n", replace(two(), scores={}), "Target")
    assert card.startswith("---\na: 1\nb: 2\n---\n")


@pytest.mark.parametrize(
    ("matter", "reason"),
    [
        ("{a: 1, model-index: []}", "cannot be changed in one place"),
        ("a: &x [1]\nmodel-index: *x\nb: *x", "cannot be changed in one place"),
        ("model-index: &x [1]\nb: *x", "cannot be changed in one place"),
        ("- a", "is no YAML mapping: it is something else"),
        ("just text", "is no YAML mapping"),
        ("a: [", "is no YAML mapping: while parsing"),
        ("a: 1\na: b: c", "is no YAML mapping: mapping values"),
    ],
)
def test_front_matter_that_cannot_be_changed_is_refused(matter: str, reason: str) -> None:
    with pytest.raises(Refused, match=reason) as caught:
        card_with_results(f"---\n{matter}\n---\ntext\n", two(), "Target")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "text", ["", "# Title\n", "\n# Title\n", "text without an end", "a\n\n---\n\nb\n", "~~~~\ncode\n"]
)
def test_a_card_without_front_matter_gets_one(text: str) -> None:
    card = card_with_results(text, two(), "Target")
    assert card.startswith("---\nmodel-index:\n")
    assert "---\n\n\n" not in card  # a blank line that was there is not doubled
    assert read(card).eval_results
    body = ModelCard(card).text
    assert body.lstrip("\n").startswith(text.lstrip("\n") or section(two()))
    assert body.endswith(section(two()))


@pytest.mark.parametrize(
    ("before", "old", "after"),
    [
        ("# Title\n\n", "## Evaluation\n\nold\n\n### Inner\n\nold\n\n", "## Use\n\ntext\n"),
        ("# Title\n\n", "## Evaluation\nold\n\n", "# Next\n"),
        ("", "## Evaluation ##  \nold\n\n", "Setext\n======\n"),
        ("", "## Evaluation\n```\n## Not a heading\n```\n\n", "Setext\n---\n"),
        ("```\n## Evaluation\n```\n\n", "## Evaluation\n~~~~\n```\n## Not\n~~~\n~~~~\n\n", "##  Use\n"),
        ("```\n``` is no end\n## Evaluation\n```\n\n", "## Evaluation\n", ""),
        ("## Evaluation of others\n\n### Evaluation\n\n", "## Evaluation\n", ""),
        ("## Evaluation of others\n\n", "", ""),
    ],
)
def test_the_section_takes_the_place_of_the_old_one(before: str, old: str, after: str) -> None:
    card = card_with_results(f"---\na: 1\n---\n{before}{old}{after}", two(), "Target")
    between = "\n" if after else ""
    assert card.partition("---\n")[2].partition("---\n")[2] == f"{before}{section(two())}{between}{after}"


def test_a_card_that_is_front_matter_alone() -> None:
    card = card_with_results("---\na: 1\n---", two(), "Target")
    assert front(card)["a"] == 1
    assert card.endswith(f"\n---\n{section(two())}")


def test_line_endings_and_a_mark_at_the_beginning_are_kept() -> None:
    card = card_with_results("\ufeff" + CARD.replace("\n", "\r\n"), two(), "Target")
    assert card.startswith("\ufeff---\r\n# a comment")
    assert card.count("\n") == card.count("\r\n") > 40
    assert card_with_results(CARD, two(), "Target") == card.removeprefix("\ufeff").replace("\r\n", "\n")


def test_any_name_is_read_back() -> None:
    found = evaluation([line(), wikitext(gap=f"no {MARKUP}")], {MARKUP: {"piqa": score(0.7)}})
    name = MARKUP.replace("/", "")  # a directory's
    found = replace(found, models=tuple(replace(model, source=f"models/{name}") for model in found.models))
    card = card_with_results(CARD, found, MARKUP)
    assert read(card).model_name == name
    assert card_with_results(card, found, MARKUP) == card


PIECES = st.lists(
    st.sampled_from(
        ["---\n", "a: 1\n", "model-index: []\n", "# T\n", "## Evaluation\n", "## Use\n", "```\n", "x\n", "\n", "==\n"]
    ),
    max_size=9,
)


@settings(deadline=None, max_examples=150)
@given(PIECES, st.booleans())
@example(["## Evaluation\n", "```\n", "```\n", "---\n"], False)  # a rule below code, which is no heading
def test_twice_gives_the_same_as_once(pieces: list[str], ended: bool) -> None:
    text = "".join(pieces) if ended else "".join(pieces).rstrip("\n")
    found = evaluation([line()], {"a": {"piqa": score(0.7)}})
    try:
        once = card_with_results(text, found, "a")
    except Refused:
        return
    assert card_with_results(once, found, "a") == once
    assert read(once).eval_results
    other = evaluation([line()], {"a": {"piqa": score(0.8)}})
    assert card_with_results(card_with_results(once, other, "a"), found, "a") == once
