"""The bold rule as printed, what can honestly be said, and which published scores may be compared."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any

import pytest
from hypothesis import given, strategies as st

from inheritune import against
from inheritune.against import (
    PUBLISHED,
    BesideBaseline,
    Bold,
    averages,
    beside_baseline,
    beside_column,
    beside_published,
    beside_which,
    bold,
    judge,
    verdict,
)
from inheritune.published import BASELINES, NINE, OUTSIDE_BASELINES, REFERENCE, TABLE2, TARGET, agreement
from inheritune.scores import Evaluation, Line, Model, Paired, Role, Score
from inheritune.scoring import near


def line_of(name: str, **changes: Any) -> Line:
    line = Line(name, name, 0, "acc", "higher", (name,), True, 104, 104, None, 0.5, 66 / 104)
    return replace(line, **changes)


def score_of(line: Line, value: float, error: float | None = 0.01) -> Score:
    return Score(value, error, None, near(value, error, line.chance, line.majority, line.rows), 0, {})


def evaluation_of(lines: list[Line], scores: Mapping[str, tuple[Role, dict[str, float]]], **more: Any) -> Evaluation:
    by_name = {line.name: line for line in lines}
    return Evaluation(
        suite="table2",
        lines=tuple(lines),
        models=tuple(Model(name, role, name, name, 1, 1) for name, (role, _) in scores.items()),
        scores={
            name: {task: score_of(by_name[task], value) for task, value in values.items()}
            for name, (_, values) in scores.items()
        },
        **more,
    )


def the_poster_s(model: str) -> dict[str, float]:
    """By heading a model's shares of table 2, without gaps."""
    return {column.heading: value for column in TABLE2 if (value := column.value(model)) is not None}


def test_the_rule_over_table_2() -> None:
    ours, reference = the_poster_s(TARGET), the_poster_s(REFERENCE)
    found = {}
    for heading, value in ours.items():
        baselines = {name: the_poster_s(name)[heading] for name in BASELINES if heading in the_poster_s(name)}
        ruled = bold(value, reference[heading], baselines)
        assert ruled is not None
        found[heading] = (ruled.bold, round(ruled.share or 0, 3), len(ruled.beaten))
    assert found == {
        "Winograd": (True, 0.803, 3),
        "PIQA": (False, 0.753, 0),
        "Boolq": (True, 0.918, 2),
        "WinoGrande": (False, 0.83, 0),
        "Logiqa": (False, 0.887, 0),
        "MMLU(5)": (True, 0.943, 2),
        "WNLI": (True, 0.861, 2),
        "QNLI": (True, 0.963, 0),
        "MNLI": (True, 0.923, 0),
        "TruthfulQA": (True, 1.389, 4),
    }


def test_three_of_the_seven_bold_scores_are_no_better_than_a_coin() -> None:
    """What the module says of the rule."""
    coins = []
    for column in TABLE2:
        value = column.value(TARGET)
        if column.heading not in ("Winograd", "WNLI", "QNLI") or value is None:
            continue
        line = line_of(column.task, majority=None, rows=column.rows)
        error = math.sqrt(value * (1 - value) / (column.rows - 1))
        coins.append(verdict(line, score_of(line, value, error)).better_than_chance)
    assert coins == [False, False, False]


def test_the_rule_at_its_edges() -> None:
    assert bold(0.36, 0.4, {}) == Bold(True, 0.36 / 0.4, (), 0)
    assert bold(0.3599, 0.4, {}) == Bold(False, 0.3599 / 0.4, (), 0)
    assert bold(0.3, 1.0, {"a": 0.2, "b": 0.29, "c": 0.3}) == Bold(True, 0.3, ("a", "b"), 3)
    assert bold(0.3, 1.0, {"a": 0.2, "b": 0.3}) == Bold(False, 0.3, ("a",), 2)  # as good is not better
    assert bold(0.3, None, {"a": 0.2}) == Bold(False, None, ("a",), 1)
    assert bold(0.3, 0.0, {}) == Bold(True, None, (), 0)
    assert bold(0.3, None, {}) is None
    assert bold(20.0, 22.0, {"a": 25.0, "b": 30.0}, better="lower") is None


@given(st.integers(1, 9), st.integers(1, 2000))
def test_nine_tenths_are_nine_tenths(tenths: int, rows: int) -> None:
    found = bold(9 * tenths / (10 * rows), 10 * tenths / (10 * rows), {})
    assert found is not None
    assert found.bold


@pytest.mark.parametrize(
    ("value", "chance", "majority", "text"),
    [
        (0.90, 0.5, 0.62, "better than chance and the majority class"),
        (0.60, 0.5, 0.62, "better than chance, not than the majority class"),
        (0.51, 0.5, 0.62, "no better than chance or the majority class"),
        (0.90, 0.5, None, "better than chance"),
        (0.30, 0.5, None, "no better than chance"),
        (0.60, 0.75, 0.5, "better than the majority class, not than chance"),
        (0.30, None, None, "nothing to judge it by"),
    ],
)
def test_the_verdict_on_levels(value: float, chance: float | None, majority: float | None, text: str) -> None:
    line = line_of("wsc", chance=chance, majority=majority)
    assert verdict(line, score_of(line, value)).text == text


@pytest.mark.parametrize(
    ("value", "error", "standing"),
    [
        (0.60, 0.03, "within error"),
        (0.501, 0.03, "within error"),  # twice 0.05 below 0.6
        (0.499, 0.03, "worse"),
        (0.701, 0.03, "better"),
        (0.10, None, None),
    ],
)
def test_the_verdict_on_the_reference_by_both_errors(value: float, error: float | None, standing: str | None) -> None:
    line = line_of("wsc")
    found = verdict(line, score_of(line, value, error), (0.6, 0.04))
    assert (found.reference, found.paired) == (standing, False)
    lower = line_of("wikitext", better="lower", chance=None, majority=None)
    turned = {"better": "worse", "worse": "better"}
    assert verdict(lower, score_of(lower, value, error), (0.6, 0.04)).reference == turned.get(str(standing), standing)


@pytest.mark.parametrize(
    ("low", "high", "standing", "said"),
    [
        (-0.03, -0.01, "worse", "worse than the reference"),
        (-0.03, 0.01, "within error", "not told apart from the reference"),
        (0.01, 0.03, "better", "better than the reference"),
    ],
)
def test_the_difference_on_the_same_rows_decides(low: float, high: float, standing: str, said: str) -> None:
    line = line_of("wsc")
    pair = Paired("wsc", "target", "reference", 104, (low + high) / 2, low, high)
    found = verdict(line, score_of(line, 0.9), (0.6, 0.04), pair)
    assert (found.reference, found.paired) == (standing, True)
    assert found.text == f"better than chance and the majority class; {said}"


def test_models_of_an_evaluation_beside_each_other() -> None:
    line = line_of("wsc")
    scores: dict[str, tuple[Role, dict[str, float]]] = {
        "large": ("reference", {"wsc": 0.9}),
        "ours": ("target", {"wsc": 0.8}),
        "random": ("control", {"wsc": 0.1}),
        "one": ("model", {"wsc": 0.79}),
        "two": ("model", {"wsc": 0.78}),
        "none": ("model", {}),
    }
    # Recorded the other way round: the reference is at least 0.005 ahead.
    pair = Paired("wsc", "large", "ours", 104, 0.1, 0.005, 0.2, 20, 10, 0.1)
    judged = judge(evaluation_of([line], scores, paired=(pair,)), line)
    assert list(judged) == ["large", "ours", "random", "one", "two"]
    assert judged["ours"].bold == Bold(True, 0.8 / 0.9, ("one", "two"), 2)
    assert (judged["ours"].verdict.reference, judged["ours"].verdict.paired) == ("worse", True)
    # By its own errors: 0.11 is more than twice 0.014.
    assert (judged["one"].verdict.reference, judged["one"].verdict.paired) == ("worse", False)
    assert judged["one"].bold == Bold(False, 0.79 / 0.9, ("two",), 1)
    assert judged["large"].verdict.reference is None
    alone = evaluation_of([line], {"large": ("reference", {"wsc": 0.9})})
    assert judge(alone, line)["large"].bold is None
    assert judged["large"].bold == Bold(True, None, ("one", "two"), 2)


def test_a_pair_is_that_of_the_line_and_the_models() -> None:
    line = line_of("wsc")
    scores: dict[str, tuple[Role, dict[str, float]]] = {
        "large": ("reference", {"wsc": 0.9}),
        "ours": ("target", {"wsc": 0.89}),
    }
    pair = Paired("wsc", "ours", "large", 104, 0.1, 0.01, 0.2)
    for other in (replace(pair, line="piqa"), replace(pair, second="small")):
        found = judge(evaluation_of([line], scores, paired=(other,)), line)["ours"].verdict
        assert (found.reference, found.paired) == ("within error", False)
    found = judge(evaluation_of([line], scores, paired=(pair,)), line)["ours"].verdict
    assert (found.reference, found.paired) == ("better", True)


def test_a_pair_that_was_recorded_the_other_way_round_is_turned() -> None:
    line = line_of("wsc")
    pair = Paired("wsc", "large", "ours", 104, 0.1, 0.005, 0.2, 20, 10, 0.1)
    evaluation = evaluation_of([line], {"ours": ("target", {})}, paired=(pair,))
    turned = Paired("wsc", "ours", "large", 104, -0.1, -0.2, -0.005, 10, 20, 0.1)
    assert against._pair(evaluation, line, "ours", "large") == turned


def beside_ours(line: Line, value: float = 0.6) -> Any:
    return beside_column(evaluation_of([line], {"ours": ("target", {line.name: value})}), line)


def test_a_whole_line_is_compared_with_an_identified_column() -> None:
    found = beside_ours(line_of("wsc"), 0.5)
    assert (found.status, found.reason, found.table, found.heading) == ("compared", None, 2, "Winograd")
    reference = found.figures[REFERENCE]
    assert (reference.printed, reference.value, reference.right) == ("63.46", 0.6346, 66)
    assert reference.standard_error == pytest.approx(math.sqrt(0.6346 * 0.3654 / 103))
    judged = found.models["ours"]
    assert judged.bold.beaten == ("OPT-1.3B (300B)", "Pythia-1.4B (300B)", "Sheared LLaMA-1.3B (50B)")
    # 13.5 points, of an error of 4.8: what 104 rows tell.
    assert judged.verdict.text == "no better than chance or the majority class; worse than the poster's reference"
    assert beside_ours(line_of("wsc"), 0.56).models["ours"].verdict.reference == "within error"


def test_each_model_is_judged_beside_its_own_runs_reference() -> None:
    line = line_of("wsc")
    values = {"a": 0.60, "a's": 0.61, "b": 0.80, "b's": 0.81}
    roles: dict[str, Role] = {"a": "target", "a's": "reference", "b": "target", "b's": "reference"}
    found = evaluation_of([line], {name: (roles[name], {"wsc": value}) for name, value in values.items()})
    found = replace(found, models=tuple(replace(model, run=f"runs/{model.name[0]}") for model in found.models))
    judged = judge(found, line)
    standing = {name: one.verdict.reference for name, one in judged.items()}
    assert standing == {"a": "within error", "a's": None, "b": "within error", "b's": None}
    assert {name: one.bold.share for name, one in judged.items() if one.bold} == {
        "a": pytest.approx(60 / 61),
        "b": pytest.approx(80 / 81),
    }


@pytest.mark.parametrize("task", ["piqa", "logiqa", "mmlu", "mnli", "truthfulqa_mc2", "wikitext", "lambada_openai"])
def test_a_column_that_is_not_identified_is_unknown(task: str) -> None:
    found = beside_ours(line_of(task, shots=5 if task == "mmlu" else 0))
    assert found.status == "unknown"
    assert found.reason
    assert found.figures
    assert not found.models
    assert all(figure.standard_error is None and figure.right is None for figure in found.figures.values())


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"whole": False, "rows": 50, "selection": "the first 50 rows"}, "wsc, the first 50 rows (50 of 104 rows)"),
        ({"whole": False, "title": "wsc, 1 of 2 tasks"}, "not whole: wsc, 1 of 2 tasks, 104 of 104 rows"),
        ({"shots": 5}, "other shots: 5 here, 0 published"),
        ({"metric": "acc_norm"}, "other metric: acc_norm here, acc published"),
        ({"rows": 105, "rows_in_split": 105}, "other rows: 105 here, 104 published"),
        ({"tasks": (), "gap": "the mirror has no validation split"}, "no scores: the mirror has no validation split"),
    ],
)
def test_what_is_of_something_else_is_not_compared(changes: dict[str, Any], reason: str) -> None:
    found = beside_ours(line_of("wsc", **changes))
    assert found.status == "not compared"
    assert found.reason is not None
    assert reason in found.reason
    assert found.figures[TARGET].printed == "50.96"
    assert not found.models


def test_a_task_that_the_poster_has_not() -> None:
    found = beside_ours(line_of("hellaswag"))
    assert (found.status, found.reason, found.figures) == ("not compared", "the poster has no such column", {})


def test_gaps_and_figures_that_leave_counts_open() -> None:
    mnli = beside_ours(line_of("mnli"))
    assert mnli.figures[BASELINES[0]].printed is None
    qnli = beside_ours(line_of("qnli", rows=5463, rows_in_split=5463))
    assert qnli.status == "compared"
    assert (qnli.figures[REFERENCE].printed, qnli.figures[REFERENCE].right) == ("51.3", None)
    assert qnli.figures[TARGET].right == 2699


def test_published_errors_are_of_the_counts_that_were_found() -> None:
    """Every share that has an error is one that its rows can give."""
    for column in TABLE2:
        line = line_of(column.task, shots=column.shots, rows=column.rows, rows_in_split=column.rows)
        found = beside_ours(line)
        assert (found.status == "compared") == (column.unknown is None)
        if found.status == "compared":
            assert agreement(column).holds
            for figure in found.figures.values():
                assert figure.right is None or abs(figure.right / column.rows - figure.value) < 1e-4


def test_figure_1_needs_all_nine_whole() -> None:
    lines = [line_of(column.task, shots=column.shots) for column in TABLE2]
    values = {line.name: index / 10 for index, line in enumerate(lines)}
    whole = evaluation_of(lines, {"ours": ("target", values), "none": ("model", {})})
    ours, none = averages(whole)["ours"], averages(whole)["none"]
    assert ours.nine == pytest.approx(sum(values[column.task] for column in NINE) / 9)
    assert (ours.mmlu, ours.reason) == (values["mmlu"], None)
    assert (none.nine, none.mmlu) == (None, None)
    boolq = line_of("boolq")
    for broken in (replace(boolq, whole=False), replace(boolq, shots=1)):
        changed = [broken if line.name == "boolq" else line for line in lines]
        found = averages(replace(whole, lines=tuple(changed)))["ours"]
        assert (found.nine, found.mmlu) == (None, values["mmlu"])
        assert found.reason == "no score over all rows, with the poster's shots, for boolq"
    changed = [replace(line, whole=False) if line.name == "mmlu" else line for line in lines]
    found = averages(replace(whole, lines=tuple(changed)))["ours"]
    assert found.nine == ours.nine
    assert (found.mmlu, found.reason) == (None, "no score over all rows, with the poster's shots, for mmlu")


def test_what_is_recorded_is_read_back_equal() -> None:
    lines = [line_of("wsc"), line_of("piqa"), line_of("hellaswag")]
    evaluation = evaluation_of(lines, {"ours": ("target", {"wsc": 0.6, "piqa": 0.5, "hellaswag": 0.3})})
    record = beside_published(evaluation)
    found = replace(evaluation, published=record)
    assert Evaluation.of(json.loads(json.dumps(found.record()))) == found
    assert {name: line["status"] for name, line in record["lines"].items()} == {
        "wsc": "compared",
        "piqa": "unknown",
        "hellaswag": "not compared",
    }
    assert record["lines"]["wsc"] == json.loads(json.dumps(asdict(beside_column(evaluation, lines[0]))))
    assert "2404.08634" in record["source"]
    assert record["figure_1"]["models"]["ours"]["nine"] is None


def outside(lines: list[Line], values: dict[str, float], **changes: Any) -> BesideBaseline:
    """What a model of these scores, each with an error of 0.01, comes to beside the 70M baseline."""
    found = evaluation_of(lines, {"ours": ("target", values)})
    models = (replace(found.models[0], **changes),)
    return beside_baseline(
        replace(found, models=models, versions={"lm_eval": "0.4.13"}), OUTSIDE_BASELINES["smollm2-70m"]
    )


def whole(task: str, **changes: Any) -> Line:
    """A whole line of a task that the baseline has, in the metric of the baseline."""
    score = OUTSIDE_BASELINES["smollm2-70m"].score_of(task)
    assert score is not None
    return line_of(task, **{"metric": score.metric, "rows": score.rows, "rows_in_split": score.rows} | changes)


def test_the_difference_to_an_outside_score_has_the_error_of_both() -> None:
    line = outside([whole("winogrande")], {"winogrande": 0.5204}).lines["winogrande"]
    theirs = math.sqrt(0.5004 * 0.4996 / 1266)
    assert (line.reason, line.printed) == (None, "50.04")
    assert line.standard_error == pytest.approx(theirs)
    found = line.differences["ours"]
    assert found.value == pytest.approx(0.02)
    assert found.standard_error == pytest.approx(math.sqrt(0.01**2 + theirs**2))


def test_tasks_that_both_only_guess_are_left_out_of_the_mean() -> None:
    """Who says yes more often is ahead on BoolQ, be it a network of random init."""
    lines = [whole("piqa", chance=0.5, majority=0.505), whole("boolq", chance=0.5, majority=0.622)]
    found = outside(lines, {"piqa": 0.55, "boolq": 0.6})
    assert found.lines["boolq"].differences["ours"].standing == "better"
    assert (found.models["ours"].tasks, found.models["ours"].left_out) == (("piqa",), ("boolq",))
    assert found.models["ours"].mean == found.lines["piqa"].differences["ours"]
    better = outside(lines, {"piqa": 0.55, "boolq": 0.7})  # better than always yes
    assert (better.models["ours"].tasks, better.models["ours"].left_out) == (("piqa", "boolq"), ())


@pytest.mark.parametrize(
    ("value", "standing"),
    [
        (0.5004 + 0.0346, "better"),
        (0.5004 + 0.0342, "within error"),
        (0.5004 - 0.0342, "within error"),
        (0.4658, "worse"),
    ],
)
def test_an_outside_score_is_beaten_by_two_standard_errors(value: float, standing: str) -> None:
    """The error of both is 0.0172."""
    found = outside([whole("winogrande")], {"winogrande": value})
    assert found.lines["winogrande"].differences["ours"].standing == standing
    assert found.models["ours"].mean.standing == standing


def test_the_mean_over_the_tasks_at_hand() -> None:
    lines = [whole("piqa"), whole("boolq"), line_of("wsc")]
    found = outside(lines, {"piqa": 0.5484 + 0.03, "boolq": 0.3966 - 0.01, "wsc": 0.9})
    assert list(found.lines) == ["piqa", "boolq"]
    assert found.missing == (
        *("winogrande", "arc_easy", "arc_challenge", "hellaswag", "sciq", "openbookqa", "truthfulqa_mc2", "mmlu"),
    )
    mine = found.models["ours"]
    errors = [found.lines[task].differences["ours"].standard_error or 0.0 for task in ("piqa", "boolq")]
    assert mine.tasks == ("piqa", "boolq")
    assert mine.mean.value == pytest.approx(0.01)
    assert mine.mean.standard_error == pytest.approx(math.sqrt(errors[0] ** 2 + errors[1] ** 2) / 2)
    assert mine.mean.standing == "within error"  # 0.01 of an error of 0.0102


def test_the_share_of_an_outside_baselines_tokens() -> None:
    values = {"piqa": 0.6}
    trained = outside([whole("piqa")], values, tokens_trained=306_000_000).models["ours"]
    assert trained.tokens_trained == 306_000_000
    assert trained.token_share == pytest.approx(0.01)
    unknown = outside([whole("piqa")], values).models["ours"]
    assert (unknown.tokens_trained, unknown.token_share) == (None, None)


def test_an_outside_score_is_compared_in_its_own_metric() -> None:
    """PIQA's is acc_norm, which stands beside the line's acc."""
    line = whole("piqa", metric="acc")
    found = evaluation_of([line], {"ours": ("target", {"piqa": 0.9}), "other": ("model", {"piqa": 0.9})})
    scores = found.scores | {"ours": {"piqa": replace(found.scores["ours"]["piqa"], beside={"acc_norm": (0.6, 0.02)})}}
    beside = beside_baseline(replace(found, scores=scores), OUTSIDE_BASELINES["smollm2-70m"])
    assert list(beside.lines["piqa"].differences) == list(beside.models) == ["ours"]
    assert beside.lines["piqa"].differences["ours"].value == pytest.approx(0.6 - 0.5484)
    without = beside_baseline(found, OUTSIDE_BASELINES["smollm2-70m"])
    assert without.lines["piqa"].reason == "other metric: acc here, acc_norm published"
    assert without.models == {}


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        (
            {"whole": False, "rows": 50, "selection": "the first 50 rows"},
            "not whole: piqa, the first 50 rows (50 of 1838",
        ),
        ({"shots": 5}, "other shots: 5 here, 0 published"),
        ({"rows": 1837, "rows_in_split": 1837}, "other rows: 1837 here, 1838 published"),
        ({"tasks": (), "gap": "no data"}, "no scores: no data"),
    ],
)
def test_what_is_of_something_else_is_not_set_beside_an_outside_score(changes: dict[str, Any], reason: str) -> None:
    found = outside([whole("piqa", **changes)], {"piqa": 0.6})
    assert (found.lines["piqa"].reason or "").startswith(reason)
    assert not found.lines["piqa"].differences
    assert not found.models
    assert outside([whole("piqa")], {}).lines["piqa"].reason == "no model has a score"


def test_a_score_without_an_error_is_beaten_by_nothing() -> None:
    lines = [whole("piqa"), whole("boolq")]
    found = evaluation_of(lines, {"ours": ("target", {"piqa": 0.9, "boolq": 0.9})})
    found.scores["ours"]["piqa"] = replace(found.scores["ours"]["piqa"], standard_error=None)
    beside = beside_baseline(found, OUTSIDE_BASELINES["smollm2-70m"])
    assert beside.lines["piqa"].differences["ours"].standing is None
    assert (beside.models["ours"].mean.standard_error, beside.models["ours"].mean.standing) == (None, None)


def test_an_outside_score_that_a_constant_answer_has_as_well_is_known() -> None:
    found = outside(
        [whole("boolq", majority=0.6217), whole("piqa", majority=0.5), whole("sciq", chance=0.25, majority=0.25)], {}
    )
    assert {name: line.near for name, line in found.lines.items()} == {
        "boolq": ("chance", "majority"),
        "piqa": (),
        "sciq": (),
    }


def test_what_is_set_beside_an_outside_baseline_is_read_back_equal() -> None:
    lines = [whole("piqa"), line_of("wsc")]
    found = evaluation_of(lines, {"ours": ("target", {"piqa": 0.6, "wsc": 0.5})}, versions={"lm_eval": "0.4.13"})
    for names in ([], ["published"], ["smollm2-70m"], [*PUBLISHED]):
        with_it = replace(found, published=beside_published(found, names))
        assert Evaluation.of(json.loads(json.dumps(with_it.record()))) == with_it
        assert beside_which(with_it.published) == set(names)
    record = beside_published(found, ["smollm2-70m"])["baselines"]["smollm2-70m"]
    assert (record["baseline"]["model"], record["harness"]) == ("codelion/SmolLM2-70M", "0.4.13")
    assert record["lines"]["piqa"]["differences"]["ours"]["value"] == pytest.approx(0.0516)
