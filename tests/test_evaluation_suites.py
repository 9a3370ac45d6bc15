"""The words of `--suite`."""

from __future__ import annotations

import pytest

from inheritune.errors import Refused
from inheritune.evaluation.suites import SUITES, Asked, chosen_rows, parse_suite, unknown_task


def test_suites_are_the_posters_tables() -> None:
    asked = {one.name: (one.shots, one.metric) for one in SUITES["table2"]}
    assert list(asked) == [
        *("wsc", "piqa", "boolq", "winogrande", "logiqa"),
        *("mmlu", "wnli", "qnli", "mnli", "truthfulqa_mc2"),
    ]
    assert {shots for name, (shots, _) in asked.items() if name != "mmlu"} == {0}
    assert asked["mmlu"] == (5, "acc")
    assert [(one.name, one.metric) for one in SUITES["table4"]] == [
        ("wikitext", "word_perplexity"),
        ("lambada_openai", "acc"),
    ]


def test_tasks_with_shots_and_suites_mixed() -> None:
    suite = parse_suite("arc_easy:25, hellaswag,table4")
    assert suite.asked[:2] == (Asked("arc_easy", 25), Asked("hellaswag", None))
    assert [one.name for one in suite.asked[2:]] == ["wikitext", "lambada_openai"]
    assert {one.suite for one in suite.asked[2:]} == {"table4"}


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("piqa:-1", "piqa:-1: shots must be 0 or more"),
        ("table2:5", "table2:5: a suite says its tasks' shots; give table2, or its tasks one by one"),
        ("piqa,,boolq", "'' is no task; give names apart by commas"),
        ("piqa:five", "'piqa:five' is no task"),
        ("piqa,table2", "piqa comes twice; name it once"),
        ("", "'' is no task"),
    ],
)
def test_refused(text: str, complaint: str) -> None:
    with pytest.raises(Refused) as error:
        parse_suite(text)
    assert complaint in str(error.value)


def test_an_unknown_task_gets_the_nearest_names() -> None:
    assert "did you mean 'boolq'?" in str(unknown_task("bolq", ["boolq", "piqa"]))
    assert "did you mean 'table2'?" in str(unknown_task("tabel2", ["boolq", "piqa"]))


def test_chosen_rows_are_the_same_for_everybody() -> None:
    assert chosen_rows("piqa", 6, 1838) == [584, 792, 946, 959, 1091, 1373]
    assert chosen_rows("piqa", 6, 1838) != chosen_rows("boolq", 6, 1838)
    assert set(chosen_rows("piqa", 5, 1838)) < set(chosen_rows("piqa", 6, 1838))  # a smaller choice is part of a larger
    assert chosen_rows("piqa", 9, 4) == [0, 1, 2, 3]
