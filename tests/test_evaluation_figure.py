"""Scores against tokens trained: what is averaged, what is a rule, what the picture says."""

from __future__ import annotations

import itertools
import math
import re
from dataclasses import replace
from typing import Any
from xml.etree import ElementTree

import pytest
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.text import Annotation

from inheritune.report import evaluation_svg
from inheritune.report.evaluation_figure import Point, ScorePanel, draw, score_panels
from inheritune.scores import Evaluation, Model, Score
from test_report_evaluation import MARKUP, line, score, wikitext

SVG = "{http://www.w3.org/2000/svg}"


def checkpoint(run: str, step: int, tokens: int | None = None) -> Model:
    known = 1000 * step if tokens is None else tokens
    return Model(f"{run}/{step}", "checkpoint", "", f"sha-{run}-{step}", 1, 4, known, step, run)


REFERENCE = Model("reference", "reference", "", "sha-reference", 1, 12)


def scores(piqa: float, boolq: float, perplexity: float) -> dict[str, Score]:
    return {"piqa": score(piqa, 0.03), "boolq": score(boolq, 0.04), "wikitext": score(perplexity, 1.0)}


LINES = (line("piqa"), line("boolq", chance=0.4), wikitext(), line("wnli", gap="not there"))


def evaluation() -> Evaluation:
    """Two runs, the first with two checkpoints, out of order."""
    models = (checkpoint("runs/one", 20), checkpoint("runs/one", 10), REFERENCE, checkpoint("runs/two", 10))
    values = [(0.7, 0.6, 30.0), (0.6, 0.5, 40.0), (0.8, 0.64, 25.0), (0.62, 0.58, 35.0)]
    found = {model.name: scores(*value) for model, value in zip(models, values, strict=True)}
    return Evaluation("quick", LINES, models, found)


def panel(title: str, found: Evaluation | None = None) -> ScorePanel:
    return next(panel for panel in score_panels(found or evaluation()) if panel.title.startswith(title))


def drawn(found: Evaluation | None = None) -> Figure:
    return draw(found or evaluation(), score_panels(found or evaluation()))


def texts(svg: str) -> list[str]:
    return ["".join(element.itertext()).strip() for element in ElementTree.fromstring(svg).iter(f"{SVG}text")]


def test_a_panel_for_each_line_with_scores_the_mean_first() -> None:
    assert [panel.title for panel in score_panels(evaluation())] == ["Mean of 2 tasks", "piqa", "boolq", "wikitext"]


def test_points_are_in_percent_in_the_order_of_training() -> None:
    found = panel("piqa")
    assert found.runs == {"one": [Point(10_000, 60, 3), Point(20_000, 70, 3)], "two": [Point(10_000, 62, 3)]}
    assert found.references == {"Reference": 80.0}
    assert (found.chance, found.unit) == (50.0, "acc, %")
    assert found.rules == {"Reference": 80.0, "Chance": 50.0}


def test_perplexities_are_as_they_are() -> None:
    found = panel("wikitext")
    assert found.runs["one"] == [Point(10_000, 40.0, 1.0), Point(20_000, 30.0, 1.0)]
    assert (found.rules, found.unit) == ({"Reference": 25.0}, "word_perplexity")


def test_the_mean_is_over_the_accuracies_that_every_model_has() -> None:
    found = panel("Mean")
    (first, second), (other,) = found.runs.values()
    assert (first.value, second.value, other.value) == pytest.approx((55, 65, 60))
    assert first.error == pytest.approx(100 * math.sqrt(0.03**2 + 0.04**2) / 2)
    assert found.rules == pytest.approx({"Reference": 72.0, "Chance": 45.0})


def without(found: Evaluation, model: str, task: str) -> Evaluation:
    left = {
        name: {key: one for key, one in by.items() if (name, key) != (model, task)} for name, by in found.scores.items()
    }
    return replace(found, scores=left)


@pytest.mark.parametrize("model", ["reference", "runs/two/10"])
def test_a_line_that_one_model_lacks_is_not_averaged(model: str) -> None:
    lines = (*LINES, line("wsc"))
    found = replace(evaluation(), lines=lines)
    for by_line in found.scores.values():
        by_line["wsc"] = score(0.5)
    assert panel("Mean", found).title == "Mean of 3 tasks"
    assert panel("Mean", without(found, model, "wsc")).title == "Mean of 2 tasks"
    left = without(without(found, model, "wsc"), model, "boolq")
    assert [panel.title for panel in score_panels(left)] == ["piqa", "boolq", "wikitext", "wsc"]


def test_the_mean_without_an_error_or_a_chance_level_of_one_of_them() -> None:
    found = evaluation()
    found.scores["runs/two/10"]["piqa"] = score(0.62, None)
    found = replace(found, lines=(replace(LINES[0], chance=None), *LINES[1:]))
    mean = panel("Mean", found)
    assert [point.error is None for point in mean.runs["two"]] == [True]
    assert mean.runs["one"][0].error is not None
    assert mean.rules == pytest.approx({"Reference": 72.0})


def test_what_is_limited_says_so() -> None:
    limited = replace(LINES[0], selection="the first 9 rows", whole=False)
    found = replace(evaluation(), lines=(limited, *LINES[1:]), limited="first 9 rows")
    assert [panel.title for panel in score_panels(found)][:2] == [
        "Mean of 2 tasks, not all of them whole",
        "piqa, the first 9 rows",
    ]
    shown = texts(evaluation_svg(found) or "")
    assert "Suite quick; first 9 rows; bars: ± 2 standard errors" in shown
    assert "piqa, the first 9 rows (acc, %)" in shown


def test_steps_where_tokens_are_not_known_of_all() -> None:
    found = evaluation()
    first, *others = found.models
    models = (replace(first, tokens_trained=None), *others)
    assert [point.x for point in panel("piqa", replace(found, models=models)).runs["one"]] == [10, 20]
    assert "Steps" in texts(evaluation_svg(replace(found, models=models)) or "")
    models = (replace(first, tokens_trained=None, step=None), *others)
    assert [point.x for point in panel("piqa", replace(found, models=models)).runs["one"]] == [10]


def test_the_finished_target_ends_its_runs_curve_once() -> None:
    found = evaluation()
    target = Model("target", "target", "", "sha-target", 1, 4, 30_000, None, "runs/one")
    other = Model("other", "target", "", "sha-other", 1, 4, 30_000, None, "runs/three")
    known = found.scores | {"target": scores(0.75, 0.61, 28.0), "other": scores(0.1, 0.1, 99.0)}
    longer = replace(found, models=(target, other, *found.models), scores=known)
    runs = panel("piqa", longer).runs
    assert {name: [point.x for point in points] for name, points in runs.items()} == {
        "one": [10_000, 20_000, 30_000],
        "two": [10_000],
    }
    same = replace(longer, models=(replace(target, tokens_trained=20_000), *found.models))
    assert panel("piqa", same).runs["one"] == panel("piqa").runs["one"]


def test_one_reference_of_two_runs_is_one_rule_and_two_are_told_apart() -> None:
    found = evaluation()
    again = replace(REFERENCE, name="two/reference")
    known = found.scores | {"two/reference": scores(0.9, 0.9, 20.0)}
    same = replace(found, models=(*found.models, again), scores=known)
    assert panel("piqa", same).references == {"Reference": 80.0}
    different = replace(same, models=(*found.models, replace(again, fingerprint="sha-other")))
    assert panel("piqa", different).references == {"reference": 80.0, "two/reference": 90.0}


def test_runs_of_one_name_keep_their_folders() -> None:
    found = evaluation()
    models = (*found.models, checkpoint("elsewhere/two", 10))
    known = found.scores | {"elsewhere/two/10": scores(0.5, 0.5, 50.0)}
    assert [*panel("piqa", replace(found, models=models, scores=known)).runs] == ["one", "runs/two", "elsewhere/two"]


@pytest.mark.parametrize(
    "found",
    [
        Evaluation("quick", LINES, (), {}),
        Evaluation("quick", LINES, (REFERENCE,), {"reference": scores(0.8, 0.64, 25.0)}),
        Evaluation("quick", LINES, (checkpoint("a", 1),), {}),
        Evaluation("quick", (), (checkpoint("a", 1),), {"a/1": {}}),
        Evaluation("quick", LINES, (checkpoint("a", 1),), {"a/1": {"wikitext": score(math.inf)}}),
    ],
)
def test_nothing_to_draw_is_no_figure(found: Evaluation) -> None:
    assert score_panels(found) == []
    assert evaluation_svg(found) is None


def test_one_checkpoint_without_a_reference_or_an_error() -> None:
    known = {"a/0": {"piqa": score(0.5, None)}}
    found = Evaluation("quick", (line("piqa", chance=None),), (checkpoint("a", 0),), known)
    assert panel("piqa", found).rules == {}
    assert "Tokens trained" in texts(evaluation_svg(found) or "")


def test_the_same_evaluation_gives_the_same_bytes() -> None:
    svg = evaluation_svg(evaluation())
    assert svg is not None
    assert svg == evaluation_svg(evaluation())
    assert not re.search(r"\d{4}-\d\d-\d\d", svg)


def test_the_picture_holds_curves_bars_and_rules_at_their_heights() -> None:
    axes = drawn().axes[1]
    assert axes.get_title("left") == "piqa (acc, %)"
    (first, _, first_bars), (second, _, _) = (container.lines for container in axes.containers)  # type: ignore[attr-defined]
    assert list(first.get_xdata()) == [10_000, 20_000]
    assert list(first.get_ydata()) == [60, 70]
    assert list(second.get_ydata()) == [62]
    ends = [[point[1] for point in segment] for segment in first_bars[0].get_segments()]
    assert ends == [[54, 66], [64, 76]]
    level: list[Any] = [rule.get_ydata() for rule in axes.lines]
    assert {80.0, 50.0} <= {ends[0] for ends in level if len(ends) == 2 and ends[0] == ends[1]}
    low, high = axes.get_ylim()
    assert low < 50
    assert high > 80


def test_runs_differ_in_colour_and_mark_and_the_legend_names_them() -> None:
    figure = drawn()
    one, two = (container.lines[0] for container in figure.axes[1].containers)  # type: ignore[attr-defined]
    assert to_hex(one.get_color()) != to_hex(two.get_color())
    assert one.get_marker() != two.get_marker()
    shown = texts(evaluation_svg(evaluation()) or "")
    assert shown.index("Suite quick; bars: ± 2 standard errors") < shown.index("one") < shown.index("two")
    assert {"Reference 80.0", "Chance 50.0", "Reference 25.00", "Reference 72.0", "Chance 45.0"} <= set(shown)


@pytest.mark.parametrize(("values", "logarithmic"), [((5000.0, 40.0), True), ((60.0, 40.0), False)])
def test_a_perplexity_that_falls_far_is_on_a_logarithmic_axis(values: tuple[float, float], logarithmic: bool) -> None:
    found = evaluation()
    for name, value in zip(("runs/one/10", "runs/one/20"), values, strict=True):
        found.scores[name]["wikitext"] = score(value, value)  # so that bars would reach below zero
    assert panel("wikitext", found).logarithmic == logarithmic
    axes = drawn(found).axes[3]
    assert axes.get_yscale() == ("log" if logarithmic else "linear")
    if logarithmic:
        low, high = axes.get_ylim()
        assert 0 < low <= 4
        assert high > 15_000
    assert not panel("piqa", found).logarithmic


@pytest.mark.parametrize("levels", [(0.5, 0.5), (0.5, 0.501), (0.01, 0.0), (0.999, 1.0)])
def test_labels_of_rules_do_not_collide(levels: tuple[float, float]) -> None:
    found = evaluation()
    found.scores["reference"]["piqa"] = score(levels[0])
    found = replace(found, lines=(replace(LINES[0], chance=levels[1]), *LINES[1:]))
    for axes in drawn(found).axes:
        heights = sorted(text.xy[1] for text in axes.texts if isinstance(text, Annotation))  # of the frame
        frame = axes.get_position().height * axes.figure.get_figheight() * 72  # type: ignore[union-attr]
        assert len(heights) == (1 if "word_perplexity" in axes.get_title("left") else 2)
        assert all(0 <= height <= 1 for height in heights)
        assert all(frame * (high - low) > 14 for low, high in itertools.pairwise(heights))


def test_names_are_shown_as_they_are() -> None:
    name = MARKUP.replace("/", "")
    models = tuple(replace(model, run=name) if model.run == "runs/one" else model for model in evaluation().models)
    svg = evaluation_svg(replace(evaluation(), models=models, suite="a$x$<b>"))
    assert svg is not None
    assert name in texts(svg)
    assert "Suite a$x$<b>; bars: ± 2 standard errors" in texts(svg)
    assert (
        f"piqa (acc, %): {name} from 60 to 70, two from 62 to 62, Reference 80, Chance 50."
        in (ElementTree.fromstring(svg).attrib["aria-label"])
    )


def test_a_long_name_and_a_long_title_are_kept_within_the_picture() -> None:
    run = "x" * 200 + "end"
    models = tuple(replace(model, run=run) if model.run == "runs/one" else model for model in evaluation().models)
    limited = replace(LINES[0], selection="100 rows, drawn at random from seed 0 and then sorted", whole=False)
    svg = evaluation_svg(replace(evaluation(), models=models, lines=(limited, *LINES[1:])))
    shown = texts(svg or "")
    assert f"…{'x' * 86}end" in shown
    assert "piqa, 100 rows, drawn at random from" in shown
    assert max(map(len, shown)) <= 90


def test_many_runs_come_in_as_many_looks() -> None:
    known: dict[str, Any] = {f"run-{number}/1": scores(0.6, 0.5, 30.0) for number in range(20)}
    models = tuple(checkpoint(f"run-{number}", 1) for number in range(20))
    axes = drawn(Evaluation("quick", LINES, models, known)).axes[1]
    looks = {(to_hex(one.lines[0].get_color()), one.lines[0].get_marker()) for one in axes.containers}  # type: ignore[attr-defined]
    assert len(looks) == 20
