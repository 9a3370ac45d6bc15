"""An evaluation as tables: every number, every mark, every format, any name."""

from __future__ import annotations

import io
import json
import re
from dataclasses import replace
from typing import Any

import pytest
from rich.console import Console

from inheritune.against import beside_published
from inheritune.report import latex_evaluation, markdown_evaluation, render_evaluation
from inheritune.report.evaluation import line_title, shown
from inheritune.scores import Evaluation, Line, Model, Paired, Role, Score

MARKUP = "<b>a|b</b>_*&%$x$[red]^~~c~~`\\"


def line(name: str = "piqa", **changes: Any) -> Line:
    """A whole line of 1,838 rows, two choices each."""
    known: dict[str, Any] = {"name": name, "title": name, "shots": 0, "metric": "acc", "better": "higher"}
    known |= {"tasks": (name,), "whole": True, "rows": 1838, "rows_in_split": 1838, "selection": None}
    return Line(**known | {"chance": 0.5, "majority": 0.505} | changes)


def wikitext(**changes: Any) -> Line:
    levels = {"metric": "word_perplexity", "better": "lower", "chance": None, "majority": None}
    return line("wikitext", **levels | {"rows": 62, "rows_in_split": 62} | changes)


def score(value: float, error: float | None = 0.011, **changes: Any) -> Score:
    known: dict[str, Any] = {"rescaled": None, "near": (), "cut_rows": 0, "beside": {}}
    return Score(value, error, **known | changes)


def model(name: str, role: Role = "model") -> Model:
    return Model(name, role, f"models/{name}", f"sha-{name}", 3_800_000, 4)


def evaluation(
    lines: list[Line], scores: dict[str, dict[str, Score]], paired: tuple[Paired, ...] = (), **changes: Any
) -> Evaluation:
    return Evaluation("quick", tuple(lines), tuple(map(model, scores)), scores, paired, **changes)


def two() -> Evaluation:
    """Two models on two tasks, one of them near chance, some rows cut, a difference of each kind."""
    reference = {
        "piqa": score(0.7715, rescaled=0.543, beside={"acc_norm": (0.79, 0.0095)}),
        "wikitext": score(12.504, 0.4216),
    }
    target = {
        "piqa": score(0.5154, 0.0117, rescaled=0.0308, near=("chance", "majority"), beside={"acc_norm": (0.52, None)}),
        "wikitext": score(1234.5, 12.34, cut_rows=7),
    }
    pairs = (
        Paired("piqa", "Reference", "Target", 1838, 0.2561, 0.231, 0.2799, 601, 130, 1e-9),
        Paired("wikitext", "Target", "Reference", 62, 1221.996, 1100.2, 1300.7),
    )
    return evaluation([line(), wikitext()], {"Reference": reference, "Target": target}, pairs)


def printed(found: Evaluation, width: int = 100) -> str:
    console = Console(file=io.StringIO(), width=width)
    console.print(render_evaluation(found, width=width))
    output = console.file
    assert isinstance(output, io.StringIO)
    return output.getvalue()


def words(text: str) -> str:
    return " ".join(text.split())


def tables(found: Evaluation) -> list[list[list[str]]]:
    """The Markdown's tables, each as rows of cells, the rule under the header left out."""
    blocks = re.findall(r"(?:^\|.*\n)+", markdown_evaluation(found), flags=re.MULTILINE)
    split = [[re.split(r" (?<!\\)\| ", row[2:-2]) for row in block.splitlines()] for block in blocks]
    return [[rows[0], *rows[2:]] for rows in split]


@pytest.mark.parametrize(
    ("metric", "value", "error", "text"),
    [
        ("acc", 0.2519, 0.017, "25.2 ±1.7"),
        ("acc_norm", 1.0, None, "100.0"),
        ("exact_match", 0.5, 0.0004, "50.0 ±0.0"),
        ("acc", -0.027, None, "−2.7"),
        ("acc", -0.0001, None, "0.0"),
        ("word_perplexity", 34.844, 0.5, "34.84 ±0.50"),
        ("perplexity", 345.67, 1.25, "345.7 ±1.2"),
        ("byte_perplexity", 1035.2, 12.0, "1,035 ±12"),
        ("bits_per_byte", 0.81234, 0.01, "0.812 ±0.010"),
        ("word_perplexity", float("inf"), None, "–"),
        ("acc", float("nan"), 0.1, "–"),
        ("acc", 0.5, float("nan"), "50.0"),
        ("acc", None, None, "–"),
    ],
)
def test_a_score_by_its_metric(metric: str, value: Any, error: Any, text: str) -> None:
    assert shown(metric, value, error) == text


def test_the_scores_in_markdown() -> None:
    assert tables(two())[0] == [
        ["Task", "Metric", "Shots", "Rows", "Chance", "Majority", "Reference", "Target"],
        ["piqa", "acc", "0", "1,838", "50.0", "50.5", "77.1 ±1.1", r"51.5 ±1.2 \~chance \~majority"],
        ["piqa", "acc, rescaled", "0", "1,838", "", "", "54.3", "3.1"],
        ["piqa", r"acc\_norm", "0", "1,838", "", "", "79.0 ±0.9", "52.0"],
        ["wikitext", r"word\_perplexity ↓", "0", "62", "–", "–", "12.50 ±0.42", "1,234 ±12"],
        ["wikitext", "rows cut", "0", "62", "", "", "0", "7"],
    ]


def test_the_paired_differences_in_markdown() -> None:
    assert tables(two())[1] == [
        ["Task", "Models", "Rows", "Difference (95% interval)", "Only first right", "Only second right", "p"],
        ["piqa (acc)", "Reference − Target", "1,838", "+25.6 (+23.1 to +28.0)", "601", "130", r"\<0.001"],
        [
            r"wikitext (word\_perplexity ↓)",
            "Target − Reference",
            "62",
            "+1,222 (+1,100 to +1,301)",
            "–",
            "–",
            "–",
        ],
    ]


def test_a_difference_below_zero_and_of_zero() -> None:
    pairs = (
        Paired("piqa", "a", "b", 10, -0.012, -0.05, 0.0, 3, 4, 0.0421),
        Paired("wikitext", "a", "b", 62, -1.5, -2.25, 120.0),
        Paired("gone", "a", "b", 62, -1.5, -2.25, 120.0),
    )
    found = replace(two(), paired=pairs)
    assert [row[3] for row in tables(found)[1][1:]] == ["−1.2 (−5.0 to +0.0)", "−1.5 (−2.2 to +120.0)"]
    assert [row[-1] for row in tables(found)[1][1:]] == ["0.042", "–"]
    assert "McNemar" not in markdown_evaluation(replace(found, paired=pairs[1:]))


def test_what_the_marks_mean_is_said_where_there_are_any() -> None:
    text = markdown_evaluation(two())
    for note in (
        "- Accuracies in percent, perplexities as they are, ± one standard error over rows.",
        "- ↓: lower is better.",
        r"- \~chance: within two standard errors of guessing at random, or worse.",
        r"- \~majority: within two standard errors of the best constant answer, or worse.",
        "- Rescaled: 0 is chance, 100 is all rows right.",
        "- Rows cut: their beginning did not fit into the model’s context.",
        "- p: McNemar’s exact two-sided test on the rows that one of the two alone answered right.",
    ):
        assert note in text.splitlines()
    plain = markdown_evaluation(evaluation([line()], {"a": score_on_piqa()}))
    assert plain.count("\n- ") == 1
    assert "- Accuracies in percent, ± one standard error over rows.\n" in plain


def score_on_piqa(**changes: Any) -> dict[str, Score]:
    return {"piqa": score(0.7, **changes)}


def test_without_a_standard_error_none_is_spoken_of() -> None:
    found = evaluation([line()], {"a": {"piqa": score(0.7, None)}})
    assert tables(found)[0][1][-1] == "70.0"
    assert "- Accuracies in percent.\n" in markdown_evaluation(found)
    assert "±" not in printed(found)


FORMATS = (printed, markdown_evaluation, latex_evaluation)


FILES = (markdown_evaluation, latex_evaluation)


@pytest.mark.parametrize("form", FILES)
def test_what_is_limited_says_so_in_every_table_of_a_file(form: Any) -> None:
    limited = line(selection="the first 100 rows", whole=False, rows=100)
    found = replace(two(), lines=(limited, wikitext()), limited="first 100 rows of each task")
    text = words(form(found))
    assert text.count("suite quick; first 100 rows of each task") == 2
    assert text.count("piqa, the first 100 rows") >= 2
    assert "100 of 1,838" in text


def drawn(name: str, rows: int, of: int, **changes: Any) -> Line:
    known: dict[str, Any] = {"whole": False, "rows": rows, "rows_in_split": of}
    return line(name, **known | {"selection": f"{rows:,} of {of:,} rows, drawn"} | changes)


def test_what_is_limited_is_said_once_on_a_terminal() -> None:
    lines = [
        drawn("piqa", 200, 1838),
        drawn("boolq", 200, 3270),
        drawn("wnli", 5, 71),
        line("wsc"),
        line("qnli", whole=False, rows=9),
    ]
    scores: dict[str, dict[str, Score]] = {"a": {each.name: score(0.7) for each in lines}}
    pairs = tuple(Paired(each.name, "a", "b", 9, 0.1, 0.0, 0.2) for each in lines)
    limited = "piqa: 200 of 1,838 rows, drawn; boolq: 200 of 3,270 rows, drawn; wnli: 5 of 71 rows, drawn"
    text = words(printed(evaluation(lines, scores, pairs, limited=limited)))
    assert "Scores, suite quick Task" in text
    assert "piqa 200/1,838 50.0" in text
    assert "wsc 1,838 50.0" in text
    note = "Not all rows: piqa, boolq: 200 rows, drawn; wnli: 5 of 71 rows, drawn; qnli: 9 of 1,838 rows."
    assert text.count(note) == text.count("drawn;") - 1 == 1


def test_what_is_limited_and_no_line_says_is_said_as_it_is() -> None:
    assert "Not all rows: half of them." in printed(
        evaluation([line()], {"a": score_on_piqa()}, limited="half of them")
    )
    assert "Not all rows" not in printed(two())


@pytest.mark.parametrize("form", FORMATS)
def test_a_partial_group_says_so(form: Any) -> None:
    title = "mmlu, 10 of 57 subjects"
    found = evaluation([line("mmlu", title=title, whole=False)], {"a": {"mmlu": score(0.3)}})
    pair = Paired("mmlu", "a", "b", 10, 0.0, 0.0, 0.0)
    assert words(form(replace(found, paired=(pair,)))).count(title) == 2


@pytest.mark.parametrize(
    ("changes", "title"),
    [
        ({}, "piqa"),
        ({"whole": False, "selection": "the first 9 rows"}, "piqa, the first 9 rows"),
        ({"whole": False, "selection": "9 rows", "title": "piqa, 9 rows"}, "piqa, 9 rows"),
        ({"whole": False, "title": "piqa, 1 of 2 parts"}, "piqa, 1 of 2 parts"),
        ({"whole": False, "title": "piqa, 1 of 2 parts", "selection": "9 rows"}, "piqa, 1 of 2 parts, 9 rows"),
        ({"whole": False, "rows": 1000}, "piqa, 1,000 of 1,838 rows"),
        ({"whole": False, "rows": 0, "gap": "no data"}, "piqa"),
    ],
)
def test_a_line_that_is_not_whole_is_called_so(changes: dict[str, Any], title: str) -> None:
    assert line_title(line(**changes)) == title


@pytest.mark.parametrize("form", FORMATS)
def test_a_gap_is_a_dash_with_its_reason_below(form: Any) -> None:
    gap = line("winogrande", rows=0, gap="not in the mirror; hf download allenai/winogrande")
    text = form(evaluation([gap, line()], {"a": score_on_piqa(), "b": score_on_piqa()}))
    assert "winogrande was not evaluated: not in the mirror; hf download allenai/winogrande" in words(text)
    row = next(row for row in text.splitlines() if row.strip("| ").startswith("winogrande"))
    assert len(re.findall(r"(?<!-)(?:–|--)(?!-)", row)) == 3


def test_a_model_without_a_score_on_a_line() -> None:
    scores = {"a": score_on_piqa(rescaled=0.4, cut_rows=3, beside={"acc_norm": (0.7, 0.01)}), "b": {}}
    assert [row[-1] for row in tables(evaluation([line()], scores))[0][1:]] == ["–", "–", "–", "–"]


def test_a_group_with_gaps_keeps_its_rows_and_says_what_it_lacks() -> None:
    part = line("mmlu", title="mmlu, 10 of 57 subjects", whole=False, gap="no such file")
    found = evaluation([part], {"a": {"mmlu": score(0.3)}})
    assert tables(found)[0][1][3] == "1,838"
    assert "mmlu, 10 of 57 subjects was evaluated only in part: no such file" in markdown_evaluation(found)
    assert "mmlu was evaluated only in part: no such file" in printed(found)
    assert "mmlu, 10 of 57 subjects  1,838" in printed(found)


def test_gaps_in_all_lines() -> None:
    gaps = [line(name, tasks=(), metric="", rows=0, rows_in_split=0, chance=None, majority=None) for name in "abc"]
    reasons = ("not there", "not there", "unreadable")
    found = evaluation([replace(gap, gap=why) for gap, why in zip(gaps, reasons, strict=True)], {"Target": {}})
    assert printed(found, 80).splitlines() == [
        "Scores, suite quick",
        "Task  Rows  Chance  Majority  Target",
        "────────────────────────────────────",
        *(f"{name}        –       –         –       –" for name in "abc"),
        "",
        "a, b were not evaluated: not there",
        "c was not evaluated: unreadable",
    ]


def test_another_metric_that_one_model_alone_has() -> None:
    scores = {"a": score_on_piqa(beside={"acc_norm": (0.71, 0.01)}), "b": score_on_piqa()}
    assert tables(evaluation([line()], scores))[0][2][-2:] == ["71.0 ±1.0", "–"]


@pytest.mark.parametrize("form", FORMATS)
def test_no_models_and_no_lines(form: Any) -> None:
    assert "piqa" in form(evaluation([line()], {}))
    assert "suite quick" in form(evaluation([], {}))
    assert "Target" in words(form(evaluation([], {"Target": {}})))


def test_what_is_shown_is_json() -> None:
    found = two()
    again = Evaluation.of(json.loads(json.dumps(found.record(), allow_nan=False)))
    assert markdown_evaluation(again) == markdown_evaluation(found)


@pytest.mark.parametrize("width", [60, 72, 80, 100, 120, 160])
@pytest.mark.parametrize("models", [0, 1, 2, 3, 7])
def test_no_number_is_cut_short_and_no_line_too_long(width: int, models: int) -> None:
    both = two()
    scores = {f"checkpoint-{number}000": both.scores["Target"] for number in range(models)}
    lines = [line(shots=5), wikitext(), line("mmlu", title="mmlu, 10 of 57 subjects", rows_in_split=14042)]
    text = printed(evaluation(lines, scores), width)
    assert max(map(len, text.splitlines())) <= width
    assert "…" not in text
    for cell in ("51.5±1.2", "1,234±12", " 52.0"):
        assert text.count(cell) == models
    assert (models == 0) == ("c, m:" not in text)
    assert "14,042" in text


def test_the_terminal_to_the_letter() -> None:
    assert printed(two(), 80).splitlines() == [
        "Scores, suite quick",
        "Task                         Rows  Chance  Majority   Reference       Target",
        "────────────────────────────────────────────────────────────────────────────",
        "piqa                        1,838    50.0      50.5    77.1±1.1  51.5±1.2 cm",
        "  rescaled                                                 54.3       3.1",
        "  acc_norm                                             79.0±0.9      52.0",
        "wikitext word_perplexity ↓     62       –         –  12.50±0.42  1,234±12",
        "  rows cut                                                    0         7",
        "",
        "Accuracies in percent, ± one standard error over rows, ↓ lower is better. c, m: ",
        "no more than two standard errors above chance, above the best constant answer. ",
        "Rescaled: 0 is chance, 100 all rows right. Rows cut: their beginning did not fit",
        "into the model’s context.",
        "",
        "Paired differences, suite quick",
        "Task      Models              Difference (95% interval)",
        "─────────────────────────────────────────────────────────────────",
        "piqa      Reference − Target     +25.6 (+23.1 to +28.0)  p <0.001",
        "wikitext  Target − Reference  +1,222 (+1,100 to +1,301)         –",
        "First − second on the same rows (accuracies: percentage points), paired ",
        "bootstrap; p: McNemar’s exact test.",
    ]


def five() -> Evaluation:
    """Five models on two tasks: rows drawn, perplexities beyond all bounds, judged, every pair there is with one."""
    lines = [drawn("lambada_openai", 200, 5153, chance=0.0, majority=None), drawn("piqa", 200, 1838, shots=5)]
    lines.append(wikitext())
    one = {
        "lambada_openai": score(0.005, 0.005, near=("chance",), beside={"perplexity": (11253918.6, 5085517.4)}),
        "piqa": score(0.52, 0.0354, rescaled=0.04, near=("chance", "majority"), cut_rows=2),
        "wikitext": score(304818.2, 203207.9),
    }
    names = ("target", "reference", "random", "random@1", "random:2x")
    roles: tuple[Role, ...] = ("target", "reference", "control", "control", "control")
    pairs = tuple(
        Paired(each.name, "target", other, 200, 0.005, -0.03, 0.04, 7, 6, 0.857)
        for other in names[1:]
        for each in lines
    )
    return Evaluation("quick", tuple(lines), tuple(map(model, names, roles)), dict.fromkeys(names, one), pairs)


def test_five_models_stand_side_by_side_in_eighty_columns() -> None:
    rows = printed(five(), 80).splitlines()
    assert rows[1:14] == [
        "Task            Rows      target   reference      random    random@1   random:2x",
        "────────────────────────────────────────────────────────────────────────────────",
        "lambada_openai  200/  0.5±0.5 c   0.5±0.5 c   0.5±0.5 c   0.5±0.5 c   0.5±0.5 c",
        "  perplexity   5,153   1.13e7      1.13e7      1.13e7      1.13e7      1.13e7",
        "                       ±5.1e6      ±5.1e6      ±5.1e6      ±5.1e6      ±5.1e6",
        "piqa, 5-shot    200/ 52.0±3.5 cm 52.0±3.5 cm 52.0±3.5 cm 52.0±3.5 cm 52.0±3.5 cm",
        "  rescaled     1,838      4.0         4.0         4.0         4.0         4.0",
        "  rows cut                  2           2           2           2           2",
        "wikitext word_    62   3.05e5      3.05e5      3.05e5      3.05e5      3.05e5",
        "perplexity ↓           ±2.0e5      ±2.0e5      ±2.0e5      ±2.0e5      ±2.0e5",
        "",
        "Accuracies in percent, ± one standard error over rows, ↓ lower is better. c, m: ",
        "no more than two standard errors above chance, above the best constant answer. ",
    ]
    text = words(printed(five(), 80))
    assert "Chance: lambada_openai: 0.0; piqa: 50.0. Best constant answer: piqa: 50.5." in text
    assert "Chance:" not in printed(five(), 120)
    assert "3.05e5±2.0e5" in printed(five(), 100)


@pytest.mark.parametrize(
    ("value", "error", "text"),
    [
        (3.456, 0.5, "3.46±0.50"),
        (99.996, 1.0, "100.0±1.0"),
        (9999.6, 1234.5, "10,000±1,230"),
        (63622.4, 1234.5, "63,620±1,230"),
        (99999.0, None, "1.00e5"),
        (50000.0, 2e5, "50,000±2.0e5"),
        (1e300, 5.0, "1.00e300±5.0e0"),
        (1e300, 0.0, "1.00e300±0"),
        (float("inf"), float("nan"), "–"),
        (float("nan"), 1.0, "–"),
    ],
)
def test_a_perplexity_on_a_terminal(value: float, error: float | None, text: str) -> None:
    found = evaluation([wikitext()], {"a": {"wikitext": score(value, error)}})
    assert printed(found).splitlines()[3].split()[-1] == text


@pytest.mark.parametrize(
    ("near", "meaning"), [("chance", "above chance"), ("majority", "above the best constant answer")]
)
def test_only_marks_in_use_are_explained(near: str, meaning: str) -> None:
    text = printed(evaluation([line()], {"a": score_on_piqa(near=(near,))}), 160)
    assert f" {near[0]}: no more than two standard errors {meaning}.\n" in text
    assert f"70.0±1.1 {near[0]}\n" in text


def test_models_without_room_go_into_further_tables() -> None:
    scores = {f"model-{number}": score_on_piqa(near=("chance",)) for number in range(9)}
    text = printed(evaluation([line()], scores), 80)
    assert text.count("Scores, suite quick (continued)") == 1
    heads = [words(row) for row in text.splitlines() if "Task" in row]
    assert [len(head.split()) for head in heads] == [7, 6]
    assert re.findall(r"model-\d", text) == [f"model-{number}" for number in range(9)]
    assert text.count("Accuracies in percent") == 1
    assert "continued" not in printed(evaluation([line()], scores), 160)


def test_long_names_break_within_their_columns() -> None:
    scores = {f"checkpoints/inherit-{number}-every_other": score_on_piqa() for number in range(5)}
    assert printed(evaluation([line()], scores), 80).splitlines()[1:6] == [
        "            checkpoints/  checkpoints/  checkpoints/  checkpoints/  checkpoints/",
        "              inherit-0-    inherit-1-    inherit-2-    inherit-3-    inherit-4-",
        "Task  Rows   every_other   every_other   every_other   every_other   every_other",
        "────────────────────────────────────────────────────────────────────────────────",
        "piqa 1,838      70.0±1.1      70.0±1.1      70.0±1.1      70.0±1.1      70.0±1.1",
    ]


def test_marks_go_below_scores_only_where_there_is_no_room() -> None:
    lines = [line(), line("boolq")]
    both = {"piqa": score(0.52, near=("chance", "majority")), "boolq": score(0.6)}
    found = evaluation(lines, {f"m{number}": both for number in range(5)})
    assert printed(found, 80).count("52.0±1.1 cm") == 5
    rows = printed(found, 66).splitlines()
    place = next(place for place, row in enumerate(rows) if row.startswith("piqa"))
    assert rows[place].split()[2:] == ["52.0±1.1"] * 5
    assert rows[place + 1].split() == ["cm"] * 5


def judged(standing: str | None, *, chance: bool | None = False, bold: dict[str, Any] | None = None) -> dict[str, Any]:
    verdict = {"better_than_chance": chance, "better_than_majority": True, "reference": standing, "paired": True}
    return {"bold": bold, "verdict": verdict | {"text": "said"}}


def test_verdicts_are_of_the_first_model_on_a_terminal_and_of_all_in_files() -> None:
    bold = {"bold": False, "share": 0.881, "beaten": [], "baselines": 0}
    of = {
        "lambada_openai": {"target": judged("within error", bold=bold), "random": judged("worse")},
        "wikitext": {"target": judged("worse", chance=None)},
        "gone": {"target": judged("worse")},
    }
    text = printed(replace(five(), judged=of, paired=()), 80)
    assert text[text.index("Verdicts") :].splitlines() == [
        "Verdicts, suite quick: target",
        "Task           Than chance Than majority Than reference Of reference Bold rule",
        "──────────────────────────────────────────────────────────────────────────────",
        "lambada_openai no better   better        not told apart        88.1% not bold",
        "wikitext       –           better        worse                     – –",
        "Bold rule, as printed: at least 90% of the reference’s score, or better than two",
        "baselines. evaluation.md has those of all models.",
    ]
    assert [row[:2] for row in tables(replace(five(), judged=of, paired=()))[1][1:]] == [
        [r"lambada\_openai, 200 of 5,153 rows, drawn", "target"],
        [r"lambada\_openai, 200 of 5,153 rows, drawn", "random"],
        ["wikitext", "target"],
    ]


def test_verdicts_of_a_single_model_without_a_rule() -> None:
    found = replace(two(), judged={"piqa": {"Target": judged(None)}}, paired=())
    assert printed(found, 80).splitlines()[-4:] == [
        "Verdicts, suite quick: Target",
        "Task  Than chance  Than majority",
        "────────────────────────────────",
        "piqa  no better    better",
    ]


def test_of_many_pairs_a_terminal_shows_those_with_the_reference() -> None:
    some = five()
    text = printed(replace(some, paired=some.paired[:12]), 80)
    assert text.count("target − ") == 12
    assert "other pairs" not in text
    many = replace(some, paired=(*some.paired, some.paired[-1]))
    text = printed(many, 80)
    assert text.count("target − reference") == text.count("target − ") == 3
    assert "evaluation.md has the other pairs." in text
    assert "piqa target − reference +0.5 (−3.0 to +4.0) p 0.86" in words(text)
    assert len(tables(many)[1]) == 14
    nobody = replace(many, models=tuple(replace(each, role="model") for each in many.models))
    assert printed(nobody, 80).count("target − ") == 13


def test_a_large_difference_has_an_exponent() -> None:
    pair = Paired("wikitext", "a", "b", 62, 167520.9, 52583.8, 374473.3)
    assert "+1.68e5 (+52,600 to +3.74e5)" in printed(replace(two(), paired=(pair,)))


def hostile() -> Evaluation:
    found = evaluation([line(), line("boolq", gap=f"no {MARKUP}")], {MARKUP: score_on_piqa(), "b": {}})
    return replace(found, paired=(Paired("piqa", MARKUP, "b", 9, 0.1, 0.0, 0.2, 1, 0, 1.0),), limited=f"only {MARKUP}")


def test_names_are_shown_as_they_are_on_a_terminal() -> None:
    text = printed(hostile(), 220)
    assert text.count(MARKUP) == 4  # a file says what is limited above each table


def test_names_are_shown_as_they_are_in_markdown() -> None:
    text = markdown_evaluation(hostile())
    there = r"\<b\>a\|b\</b\>\_\*\&%\$x\$\[red\]^\~\~c\~\~\`" + "\\\\"
    assert text.count(there) == 5
    assert MARKUP not in text
    assert {len(row) for row in tables(hostile())[0]} == {8}
    assert {len(row) for row in tables(hostile())[1]} == {7}


def test_names_are_shown_as_they_are_in_latex() -> None:
    text = latex_evaluation(hostile())
    there = (
        r"\textless{}b\textgreater{}a\textbar{}b\textless{}/b\textgreater{}\_{*}\&\%\$x\${[}red{]}"
        r"\textasciicircum{}\textasciitilde{}\textasciitilde{}c\textasciitilde{}\textasciitilde{}"
        r"\textasciigrave{}\textbackslash{}"
    )
    assert text.count(there) == 5


@pytest.mark.parametrize(("name", "there"), [("a--b", "a-{}-b"), ("{x}#", r"\{x\}\#"), ("*a", "{*}a"), ("a\nb", "a b")])
def test_what_latex_would_take_for_something_else(name: str, there: str) -> None:
    assert f"Majority & {there} \\\\\n" in latex_evaluation(evaluation([line()], {name: score_on_piqa()}))


def test_a_name_of_several_lines_stays_on_one_in_markdown() -> None:
    assert tables(evaluation([line()], {"a\n# b": score_on_piqa()}))[0][0][-1] == "a # b"


def test_the_latex_tables() -> None:
    text = latex_evaluation(two())
    assert text.startswith("% \\usepackage[T1]{fontenc} \\usepackage{booktabs}\n\\begin{table}\n")
    assert text.count(r"\begin{table}") == text.count(r"\end{table}") == 2
    assert text.count(r"\toprule") == text.count(r"\midrule") == text.count(r"\bottomrule") == 2
    assert r"\caption{Scores, suite quick.}" in text
    assert r"\begin{tabular}{llrrrrrr}" in text
    row = r"piqa & acc & 0 & 1,838 & 50.0 & 50.5 & 77.1 $\pm$1.1 & 51.5 $\pm$1.2 \textasciitilde{}chance "
    assert row + "\\textasciitilde{}majority \\\\\n" in text
    assert (
        "wikitext & word\\_perplexity $\\downarrow$ & 0 & 62 & -- & -- & 12.50 $\\pm$0.42 & 1,234 $\\pm$12 \\\\\n"
        in text
    )
    assert "{\\footnotesize Accuracies in percent, perplexities as they are, $\\pm$ one standard error" in text
    text.encode("ascii")


def beside() -> Evaluation:
    """Beside the poster's columns: one that is compared, one that is not identified, one of table 4, one of none."""
    lines = [
        line("wsc", rows=104, rows_in_split=104, majority=0.6346),
        line("piqa"),
        wikitext(),
        line("arc_easy"),
        line("boolq", rows=3270, rows_in_split=3270),
        line("qnli", rows=5463, rows_in_split=5463),
        *(line(name, gap="not there") for name in ("wnli", "winogrande", "mnli")),
    ]
    scores = {"Target": {"wsc": score(0.5288, 0.049, near=("chance", "majority")), "boolq": score(0.62, 0.008)}}
    found = evaluation(lines, scores)
    return replace(found, published=beside_published(found))


def test_published_figures_are_shown_as_printed() -> None:
    _, table2, table4, judged = tables(beside())
    assert table2[0][:3] == ["Task", "OpenLLaMA-3B (1T)", "OPT-1.3B (300B)"]
    assert table2[1] == ["wsc (Winograd)", "63.46", "38.46", "36.54", "63.46", "36.54", "50.96"]
    assert ["mnli (MNLI)", "37.3", "–", "–", "–", "–", "34.42"] in table2
    assert table4[0] == ["Published model", "wikitext (Wikitext)"]
    assert table4[1] == ["GPT-2 Large, 36 layers, rand init, 100K steps", "34.84"]
    said = {
        name: beside().published["lines"][name]["models"]["Target"]["verdict"]["text"].replace("*", r"\*")
        for name in ("wsc", "boolq")
    }
    assert judged == [
        ["Task", "Model", "Verdict", "Of the reference", "Baselines beaten", "Bold rule"],
        ["wsc", "Target", said["wsc"], "83.3%", "3/4", "bold"],
        ["boolq", "Target", said["boolq"], "92.3%", "2/4", "bold"],
    ]


@pytest.mark.parametrize("form", FORMATS)
def test_what_is_not_compared_says_why_and_the_source_is_named_once(form: Any) -> None:
    text = words(form(beside()))
    assert "piqa is not compared: acc and acc" in text
    assert f"wnli is not compared: {beside().published['lines']['wnli']['reason']}" in text
    assert "arc_easy is not compared" not in text
    assert text.count("arXiv 2404.08634") == 1
    assert "at least 90% of the reference" in text.replace(r"\%", "%")


def test_published_figures_on_a_terminal() -> None:
    text = printed(beside(), 100)
    assert "GPT-2 Large, 36 layers, rand init, 100K steps 34.84" in words(text)
    assert "GPT-2 Large, 18 layers, rand init, 200K steps" not in text  # of this line it has no figure
    assert "wsc (Winograd)" in text
    assert "Beside the published scores: Target\n" in text
    assert "3/4" in text
    assert max(map(len, printed(beside(), 60).splitlines())) <= 60


def test_many_published_models_are_left_to_the_file() -> None:
    record = {"table": 4, "heading": "P", "figures": {f"m{number}": {"printed": "1"} for number in range(9)}}
    found = evaluation([line()], {"a": score_on_piqa()}, published={"lines": {"piqa": record}})
    assert printed(found).splitlines()[-1] == "Published, table 4: 9 models; evaluation.md has them."
    assert "m8" not in printed(found)
    record["figures"] = {f"m{number}": {"printed": "1" if number < 8 else None} for number in range(9)}
    assert "m7" in printed(found)
    assert "m8" not in printed(found)


def test_figure_1_is_shown_where_a_model_has_its_averages() -> None:
    averages = {"nine": 0.5123, "mmlu": None, "reason": "no score for mmlu"}
    figure = {"assumption": "a plain mean", "models": {"Target": averages, "b": {}}}
    found = replace(beside(), published={"figure_1": figure})
    assert tables(found)[1] == [["Model", "Mean of nine", "MMLU"], ["Target", "51.2%", "–"], ["b", "–", "–"]]
    assert "- Assumed: a plain mean.\n- Target: no score for mmlu.\n" in markdown_evaluation(found)
    assert len(tables(replace(found, published={"figure_1": {"models": {"Target": {}}}}))) == 1


@pytest.mark.parametrize(
    "published", [{}, {"lines": None}, {"lines": {"gone": {"figures": {"a": {}}}}}, {"lines": {"wsc": 1}}]
)
def test_published_figures_that_are_not_there(published: dict[str, Any]) -> None:
    assert len(tables(replace(beside(), published=published))) == 1


def beside_70m(models: int = 1, tokens: int | None = 306_000_000) -> Evaluation:
    """Models of one score on piqa and boolq, and on the first 50 rows of sciq, beside the 70M baseline."""
    part = line("sciq", whole=False, rows=50, rows_in_split=1000, selection="the first 50 rows")
    lines = [line(chance=0.5, majority=0.5), line("boolq", rows=3270, rows_in_split=3270, majority=0.62), part]
    scores = {"piqa": score(0.6, beside={"acc_norm": (0.61, 0.011)}), "boolq": score(0.3966, 0.009)}
    names = [f"model {number}" for number in range(models)]
    found = evaluation(lines, dict.fromkeys(names, scores), versions={"lm_eval": "0.4.13"})
    found = replace(found, models=tuple(replace(one, tokens_trained=tokens) for one in found.models))
    return replace(found, published=beside_published(found, ["smollm2-70m"]))


def test_an_outside_baseline_in_markdown() -> None:
    found = beside_70m()
    assert tables(found)[-1] == [
        ["Task", "Published", "model 0"],
        [r"piqa (acc\_norm)", "54.84 ±1.2", "+6.2 ±1.6"],
        ["boolq (acc)", "39.66 ±0.9", r"+0.0 ±1.2 \~"],
        [r"sciq (acc\_norm)", "45.20 ±1.6", "–"],
        ["Mean", "", "+6.2 ±1.6"],
    ]
    text = markdown_evaluation(found)
    beaten = "model 0 beats smollm2-70m by more than two standard errors: +6.2 ±1.6 points over 1 task"
    assert f"{beaten}, trained on 306M tokens to its 30.6B (1%)." in text
    assert "lm-evaluation-harness 0.4.11, here 0.4.13." in text
    assert "no better than guessing or the best constant answer: boolq, sciq." in text
    assert "sciq is not compared: not whole: sciq, the first 50 rows (50 of 1000 rows)" in text
    assert r"Not evaluated here: winogrande, arc\_easy," in text
    assert "own training" not in markdown_evaluation(beside_70m(tokens=None))


def test_many_models_beside_an_outside_baseline_go_down() -> None:
    rows = tables(beside_70m(models=4))[-1]
    assert rows[0] == ["Model", r"piqa (acc\_norm)", "boolq (acc)", r"sciq (acc\_norm)", "Mean"]
    assert rows[1] == ["published", "54.84 ±1.2", "39.66 ±0.9", "45.20 ±1.6", ""]
    assert rows[5] == ["model 3", "+6.2 ±1.6", r"+0.0 ±1.2 \~", "–", "+6.2 ±1.6"]


def test_an_outside_baseline_on_a_terminal_and_in_latex() -> None:
    found = beside_70m()
    assert "Beside smollm2-70m" in printed(found, 80)
    assert all(len(row) <= 80 for row in printed(found, 80).splitlines())
    assert "model 0 beats smollm2-70m" in words(printed(found, 80))
    assert r"+6.2 $\pm$1.6" in latex_evaluation(found)
    without = replace(found, published=beside_published(replace(found, lines=()), ["smollm2-70m"]))
    assert "smollm2" not in printed(without)


def test_files_have_an_exponent_where_numbers_are_long() -> None:
    assert shown("perplexity", 1.42943e23, 3.4745e22) == "1.429e23 ±3.5e22"
    assert shown("word_perplexity", 25285.0, 23437.0) == "25,285 ±23,437"
