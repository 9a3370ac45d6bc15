"""Table 4 and the story of a growth run: its numbers, its words, its figure, and what is missing."""

from __future__ import annotations

import itertools
import json
import math
import re
from collections.abc import Callable
from dataclasses import asdict, astuple
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, strategies as st
from rich.console import Console

from inheritune import scores
from inheritune.comparison import resampled_means
from inheritune.ledger import name_of_stem
from inheritune.report import markdown_table4, render_table4, table4_rows, write_report
from inheritune.report.curves import draw_curves
from inheritune.report.growth_figure import curve, growth_panel, round_curves, rule, story
from inheritune.report.records import Records, file_stem, records_of
from inheritune.report.table4 import Line

Record = dict[str, Any]
MARKUP = '<b>x</b>&"[red]'
STEPS, DOCUMENTS = 2000, 60
TOKENS = np.random.default_rng(0).integers(50, 500, DOCUMENTS)
REFERENCE = {"layers": 12, "validation_loss": 2.6, "flops": 4e15, "steps": STEPS, "initialisation": "random"}
CONTROLS = {"random": (2.93, 1, 8), "random:2x": (2.79, 2, 8), "random@4": (3.06, 1, 4), "stack": (2.72, 1, 8)}
LOSSES = {4: 2.95, 8: 2.598}


def losses(run: Path, name: str, loss: float, layers: int, tokens: Any = TOKENS) -> None:
    """Write a model's losses by document: hard for every model on the same ones, and somewhat its own."""
    hard, own = (np.random.default_rng(seed).normal(0, size, len(tokens)) for seed, size in ((1, 0.3), (layers, 0.03)))
    nats = (3 + hard + own) * tokens
    nats *= loss * tokens.sum() / nats.sum()
    sets = {
        "development": {"nats": [1.0], "tokens": [1]},
        "held-out": {"nats": nats.tolist(), "tokens": tokens.tolist()},
    }
    (run / "losses").mkdir(exist_ok=True)
    (run / "losses" / f"{name}.json").write_text(json.dumps({"layers": layers, "sets": sets}), encoding="utf-8")


def points(end: float, steps: int = STEPS, until: int | None = None) -> list[list[float]]:
    """A curve that falls from 8 to `end`."""
    return [[step, end + (8 - end) * math.exp(-step / 250)] for step in range(0, (until or steps) + 1, 100)]


def metrics(path: Path, end: float, steps: int = STEPS) -> None:
    path.mkdir(parents=True)
    lines = [
        {"kind": "validation", "step": step, "tokens": 4096 * step, "losses": {"development": 1.0, "held-out": loss}}
        for step, loss in points(end, steps)
    ]
    (path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")


def played(number: int, layers: int, **changes: Any) -> Record:
    """A round's line of `growth.jsonl`."""
    loss = LOSSES.get(layers, 2.7)
    verdict = {"matched": loss < 2.6, "difference": loss - 2.6, "upper": loss - 2.59, "margin": 0.01, "alpha": 0.05}
    return {
        "round": number,
        "layers": layers,
        "seed": 0,
        "growth": "cold",
        "state": "finished",
        "steps": STEPS,
        "planned_steps": STEPS,
        "flops": layers * 1e14,
        "validation_loss": loss,
        "curve": points(loss),
        "verdict": {**verdict, "rounds": 3, "documents": DOCUMENTS, "text": f"{layers} layers, decided {MARKUP}"},
        "forecast": None,
        **changes,
    }


def abandoned(number: int, layers: int) -> Record:
    forecast = {"value": 2.75, "text": "forecast above the benchmark"}
    changes = {"state": "abandoned", "steps": 1200, "validation_loss": None, "verdict": None, "forecast": forecast}
    return played(number, layers, curve=points(2.8, until=1200), **changes)


ROUNDS = [played(1, 4), abandoned(2, 6), played(3, 8)]


def write_rounds(run: Path, rounds: list[Record], end: str = "\n") -> None:
    text = "\n".join(json.dumps(line) for line in rounds)
    (run / "growth.jsonl").write_text(text + end if rounds else "", encoding="utf-8")


def change(run: Path, **changes: Any) -> None:
    record = json.loads((run / "result.json").read_text(encoding="utf-8")) | changes
    (run / "result.json").write_text(json.dumps(record), encoding="utf-8")


def make_run(run: Path) -> Path:
    """A run directory as a growth that matched at its third round leaves it."""
    run.mkdir()
    losses(run, "reference", 2.6, 12)
    for one in ROUNDS:
        (run / "rounds" / str(one["layers"])).mkdir(parents=True)
        if one["validation_loss"] is not None:
            losses(run, f"round-{one['layers']}", one["validation_loss"], one["layers"])
    controls = {}
    for name, (loss, times, layers) in CONTROLS.items():
        stem = name.replace(":", "-")
        losses(run, stem, loss, layers)
        metrics(run / "controls" / stem, loss, times * STEPS)
        controls[name] = {"layers": layers, "validation_loss": loss, "steps": times * STEPS, "flops": times * 8e14}
    write_rounds(run, ROUNDS)
    short = [{key: value for key, value in one.items() if key != "curve"} for one in ROUNDS]
    target = {"layers": 8, "validation_loss": 2.598, "steps": STEPS, "flops": 8e14}
    result = {"name": "grown", "state": "done", "verdict": "8 of 12 layers match.", "matched": True, "benchmark": 2.6}
    result |= {"reference": REFERENCE, "target": target, "controls": controls, "growth": {"rounds": short}}
    (run / "result.json").write_text(json.dumps(result), encoding="utf-8")
    return run


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return make_run(tmp_path / "run")


def rows(run: Path) -> dict[str, Line]:
    """The lines by model."""
    return {line.model: line for line in table4_rows(records_of(run))}


def printed(run: Path, width: int = 80) -> list[str]:
    console = Console(width=width)
    with console.capture() as captured:
        console.print(render_table4(run, width=width))
    return captured.get().splitlines()


def test_the_posters_rows_in_the_posters_order(run: Path) -> None:
    lines = [(*astuple(line)[:5], *astuple(line)[10:]) for line in table4_rows(records_of(run))]
    assert lines == [
        ("Reference", "12", "rand init", "2,000", "2.600", "4.0e15", "4.0e15", "4.0e15", False),
        ("Random init", "8", "rand init", "2,000", "2.930", "8.0e14", "8.0e14", "8.0e14", False),
        ("Random init, 2x steps", "8", "rand init", "4,000", "2.790", "1.6e15", "1.6e15", "1.6e15", False),
        ("Random init, 4 layers", "4", "rand init", "2,000", "3.060", "8.0e14", "8.0e14", "8.0e14", False),
        ("Stack", "8", "stack", "2,000", "2.720", "8.0e14", "8.0e14", "4.8e15", False),
        ("Round 1", "4", "Ours", "2,000", "2.950", "4.0e14", "4.0e14", "4.4e15", False),
        ("Round 2", "6", "Ours", "1,200 of 2,000", "–", "6.0e14", "1.0e15", "5.0e15", False),
        ("Final model →", "8", "Ours", "2,000", "2.598", "8.0e14", "1.8e15", "5.8e15", True),
    ]


def test_intervals_are_a_bootstrap_over_documents_paired_with_the_reference(run: Path) -> None:
    found = {name: json.loads((run / "losses" / f"{name}.json").read_text()) for name in ("reference", "round-4")}
    nats = [np.asarray(record["sets"]["held-out"]["nats"]) for record in found.values()]
    drawn = resampled_means([nats[1], nats[1] - nats[0]], TOKENS.astype(float))
    own, paired = ("{:.3f} to {:.3f}".format(*np.percentile(means, [2.5, 97.5])) for means in drawn)
    line = rows(run)["Round 1"]
    assert (line.interval, line.difference, line.difference_interval) == (own, "0.350", paired)
    reference = rows(run)["Reference"]
    assert re.fullmatch(r"2\.5\d\d to 2\.6\d\d", reference.interval)
    assert reference.difference == reference.difference_interval == "–"


def test_other_documents_give_no_interval(run: Path) -> None:
    losses(run, "stack", 2.72, 8, TOKENS[::-1])
    losses(run, "random", 2.93, 8, TOKENS[:-1])
    (run / "losses" / "random-2x.json").write_text('{"sets": {"held-out": {"nats": "x", "tokens": [1]}}}')
    found = rows(run)
    for name, difference in (("Stack", "0.120"), ("Random init", "0.330"), ("Random init, 2x steps", "0.190")):
        line = found[name]
        assert (line.interval, line.difference, line.difference_interval) == ("–", difference, "–")
    assert found["Round 1"].difference_interval != "–"


@pytest.mark.parametrize(
    ("sets", "judge"),
    [
        (["development", "general", "held-out"], "held-out"),
        (["development", "general", "other"], "general"),
        (["development"], "held-out"),
        ([], "held-out"),
    ],
)
def test_the_judging_set(sets: list[str], judge: str) -> None:
    measured = {name: {"nats": [3.0, 5.0], "tokens": [1, 1]} for name in sets}
    records = Records(losses={"random": {}, "reference": {"sets": measured}})
    assert records.judge == judge
    assert (records.documents("reference") is None) == (judge not in sets)


@pytest.mark.parametrize(
    ("nats", "tokens"),
    [
        ([3.0, math.nan], [1, 1]),
        ([3.0, 5.0], [1, 0]),
        ([3.0], [1, 1]),
        ([[3.0]], [[1]]),
        ([], []),
        ([[3.0], 1], [1, 1]),
    ],
)
def test_damaged_losses_are_none(nats: Any, tokens: Any) -> None:
    records = Records(losses={"reference": {"sets": {"held-out": {"nats": nats, "tokens": tokens}}}})
    assert records.documents("reference") is None
    assert records.benchmark is None


def test_one_document_gives_no_interval(run: Path) -> None:
    for name in ("reference", "round-4"):
        losses(run, name, 2.6, 4, TOKENS[:1])
    assert rows(run)["Round 1"].interval == "–"


@pytest.mark.parametrize(
    ("name", "word"),
    [
        ("random:3x@2", "rand init"),
        ("last", "last n"),
        ("every-other@4", "every other"),
        ("distill", "rand init, distilled"),
        ("half-width", "rand init, half width"),
        ("attention+mlp", "Attention + MLP"),
        ("inherit", "Ours"),
        ("cut", "stack, untrained"),
        ("other-data", "stack"),
    ],
)
def test_words_for_what_a_control_starts_from(name: str, word: str) -> None:
    result = {"reference": REFERENCE, "target": {"layers": 8}, "init": "stack", "controls": {name: {"layers": 8}}}
    lines = table4_rows(Records(result=result))
    assert [line.initialisation for line in lines] == ["rand init", word, "stack"]


@pytest.mark.parametrize("name", ["half-width", "random@2"])
def test_what_takes_nothing_from_the_reference_costs_nothing_of_it(name: str) -> None:
    result = {"reference": REFERENCE, "controls": {name: {"flops": 1e14}, "distill": {"flops": 1e14}}}
    assert [line.flops_with_reference for line in table4_rows(Records(result=result))] == ["4.0e15", "1.0e14", "4.1e15"]


def test_a_reference_that_was_not_trained_here(run: Path) -> None:
    change(run, reference={"layers": 12, "validation_loss": 2.6})
    found = rows(run)
    assert found["Reference"].initialisation == "pre-trained"
    assert found["Final model →"].flops_so_far == "1.8e15"
    assert found["Final model →"].flops_with_reference == "–"
    assert found["Random init"].flops_with_reference == "8.0e14"


def test_a_reference_that_was_trained_here_while_the_run_goes_on(tmp_path: Path) -> None:
    losses(tmp_path, "reference", 2.6, 12)
    assert rows(tmp_path)["Reference"].initialisation == "pre-trained"
    (tmp_path / "ledger.json").write_text(json.dumps({"train reference": {"flops": 1e14}}), encoding="utf-8")
    assert rows(tmp_path)["Reference"].initialisation == "rand init"


def test_a_warm_round_is_grown_and_unknown_flops_stay_unknown(run: Path) -> None:
    write_rounds(run, [ROUNDS[0], abandoned(2, 6) | {"flops": None}, played(3, 8, growth="warm")])
    found = rows(run)
    assert [line.initialisation for line in found.values()][-3:] == ["Ours", "Ours", "Ours, grown"]
    assert [line.flops_so_far for line in found.values()][-3:] == ["4.0e14", "–", "–"]


def test_seeds_are_counted_and_the_match_comes_last(run: Path) -> None:
    write_rounds(run, [*ROUNDS, played(3, 8, seed=1)])
    found = table4_rows(records_of(run))[-2:]
    expected = [("Round 3, seed 1", "2.6e15", False), ("Final model →", "2.6e15", True)]
    assert [(line.model, line.flops_so_far, line.final) for line in found] == expected
    write_rounds(run, [*ROUNDS[:2], played(3, 8, seed=1), ROUNDS[2]])
    change(run, growth=None)
    assert [line.model for line in table4_rows(records_of(run))[-2:]] == ["Round 3, seed 1", "Final model →"]


def test_without_a_match_the_best_round_stays_in_its_place(run: Path) -> None:
    change(run, matched=False, target={"layers": 4})
    found = table4_rows(records_of(run))
    assert [(line.model, line.final) for line in found[-3:]] == [
        ("Round 1", True),
        ("Round 2", False),
        ("Round 3", False),
    ]


def test_a_low_data_run_has_its_table(tmp_path: Path) -> None:
    folder = Path(__file__).parent.parent / "docs" / "records" / "demo"
    found = rows(folder)
    assert list(found) == ["Reference", "Random init", "Cut", "Target"]
    assert [line.steps for line in found.values()] == ["–", "147", "0", "147"]
    assert [line.difference for line in found.values()] == ["–", "3.789", "2.522", "0.936"]
    assert [line.final for line in found.values()] == [False, False, False, True]
    alone = {"state": "done", "reference": None, "target": {"layers": 4, "flops": 1e14}}
    (line,) = table4_rows(Records(result=alone))
    assert (line.initialisation, line.flops_with_reference) == ("rand init", "1.0e14")


def evaluated(run: Path, **changes: Any) -> None:
    """Write `evaluation.json`: reference, target, a round and a control, some without a score."""
    wikitext = scores_line("wikitext", "word_perplexity", 62)
    lambada = scores_line("lambada_openai", "acc", 5153)
    names = {"meta/reference": "reference", "target": "target", "round-4": "model", "Random init": "control"}
    models = [scores.Model(name, role, "", f"sha-{name}", 1, 4) for name, role in names.items()]  # type: ignore[arg-type]
    found: dict[str, dict[str, scores.Score]] = {
        "meta/reference": {"wikitext": score(34.844), "lambada_openai": score(0.3414)},
        "target": {"wikitext": score(1035.2)},
        "round-4": {"lambada_openai": score(0.25)},
        "Random init": {"wikitext": score(math.inf), "lambada_openai": score(0.1)},
    }
    record = scores.Evaluation("table4", (wikitext, lambada), tuple(models), found).record() | changes
    (run / "evaluation.json").write_text(json.dumps(record), encoding="utf-8")


def scores_line(task: str, metric: str, rows: int, **changes: Any) -> scores.Line:
    better = "higher" if metric == "acc" else "lower"
    known: Record = {"name": task, "title": task, "shots": 0, "metric": metric, "better": better, "tasks": (task,)}
    known |= {"whole": True, "rows": rows, "rows_in_split": rows, "selection": None, "chance": None, "majority": None}
    return scores.Line(**known | changes)


def score(value: float, **beside: tuple[float, None]) -> scores.Score:
    return scores.Score(value, None, None, (), 0, dict(beside))


def test_scores_where_models_were_evaluated(run: Path) -> None:
    evaluated(run)
    found = rows(run)
    assert (found["Reference"].wikitext, found["Reference"].lambada) == ("34.84", "34.1%")
    assert (found["Final model →"].wikitext, found["Final model →"].lambada) == ("1,035.20", "–")
    assert (found["Round 1"].wikitext, found["Round 1"].lambada) == ("–", "25.0%")
    assert (found["Random init"].wikitext, found["Random init"].lambada) == ("–", "10.0%")
    assert "*" not in " ".join(printed(run, 140))


def test_scores_of_some_rows_are_marked(run: Path) -> None:
    limited = scores_line("wikitext", "word_perplexity", 10, whole=False, rows_in_split=62, selection="the first 10")
    lambada = scores_line("lambada_openai", "acc", 5153)
    evaluated(run, lines=[asdict(limited), asdict(lambada)])
    found = rows(run)
    assert found["Reference"].wikitext == "34.84 (10 of 62 rows)"
    assert found["Reference"].lambada == "34.1%"
    assert "34.84 (10 of 62 rows)" in markdown_table4(run)
    assert "34.84 (10 of 62 rows)" in write_report(run).read_text(encoding="utf-8")
    text = printed(run, 140)
    assert [line.split()[-5] for line in text if line.split()[:1] == ["Reference"]] == ["34.84*"]
    assert "* Wikitext: 10 of 62 rows." in " ".join(" ".join(text).split())


def test_a_metric_may_stand_beside_the_lines_own(run: Path) -> None:
    lambada = scores_line("lambada_openai", "perplexity", 5153)
    wikitext = scores_line("wikitext", "byte_perplexity", 62)
    known = {"target": {"lambada_openai": score(40.0, acc=(0.3, None)), "wikitext": score(3.0)}}
    evaluated(run, lines=[asdict(lambada), asdict(wikitext)], scores={"target": asdict_all(known["target"])})
    assert (rows(run)["Final model →"].lambada, rows(run)["Final model →"].wikitext) == ("30.0%", "–")


def asdict_all(known: dict[str, scores.Score]) -> Record:
    return {name: asdict(one) for name, one in known.items()}


@pytest.mark.parametrize(
    "changes",
    [{"tasks": ("wikitext", "c4")}, {"shots": 5}, {"tasks": ("paloma_wikitext_103",)}],
)
def test_other_lines_are_not_the_tables(run: Path, changes: Any) -> None:
    evaluated(run, lines=[asdict(scores_line("wikitext", "word_perplexity", 62, **changes))])
    assert rows(run)["Reference"].wikitext == "–"


@pytest.mark.parametrize(
    "changes", [{"format": 0}, {"scores": []}, {"models": None}, {"lines": [{"name": "x"}]}, {"scores": {"target": 1}}]
)
def test_a_damaged_evaluation_is_no_score(run: Path, changes: Any) -> None:
    evaluated(run, **changes)
    assert {line.wikitext for line in rows(run).values()} == {"–"}


def test_a_running_growth_shows_what_there_is(run: Path) -> None:
    (run / "result.json").write_text('{"name": "grown", "state": "running"}', encoding="utf-8")
    for name in ("random", "random@4", "round-8"):
        (run / "losses" / f"{name}.json").unlink()
    losses(run, "target", 2.95, 4)
    write_rounds(run, ROUNDS[:2])
    records = records_of(run)
    lines = [(line.model, line.layers, line.loss, line.difference, line.final) for line in table4_rows(records)]
    assert lines == [
        ("Reference", "12", "2.600", "–", False),
        ("Random init, 2x steps", "8", "2.790", "0.190", False),
        ("Stack", "8", "2.720", "0.120", False),
        ("Round 1", "4", "2.950", "0.350", False),
        ("Round 2", "6", "–", "–", False),
    ]
    assert records.benchmark == pytest.approx(2.6)


def test_a_round_under_way_is_in_the_story_and_the_figure(run: Path) -> None:
    (run / "result.json").write_text('{"name": "grown", "state": "running"}', encoding="utf-8")
    write_rounds(run, ROUNDS[:1])
    (run / "rounds" / "6").rmdir()
    (run / "rounds" / "8").rmdir()
    metrics(run / "rounds" / "10", 2.9, 700)
    (run / "rounds" / "..x").mkdir()
    records = records_of(run)
    curves = round_curves(run, records)
    assert list(curves) == ["round-4", "round-10"]
    last = story(records, curves)[-1]
    assert (last.title, last.layers, last.loss, last.verdict) == ("–", "10", "–", "not over, 700 steps measured")
    panel = growth_panel(records, curves, {})
    assert panel is not None
    assert panel.lines["round-10"][-1][0] == 700


def test_the_story_tells_loss_difference_bound_and_verdict(run: Path) -> None:
    records = records_of(run)
    told = [(one.title, one.layers, one.loss, one.difference, one.bound, one.verdict) for one in story(records)]
    assert told == [
        ("1", "4", "2.950", "0.3500", "0.3600", "no match"),
        ("2", "6", "–", "–", "–", "abandoned after 1,200 of 2,000 steps"),
        ("3", "8", "2.598", "-0.0020", "0.0080", "matches"),
    ]
    assert [one.text for one in story(records)][1:] == ["forecast above the benchmark", f"8 layers, decided {MARKUP}"]
    assert [one.final for one in story(records)] == [False, False, True]
    expected = (
        "A match: target − reference lies below 0.01 nats a token at its one-sided 98.3% bound over 60 documents."
    )
    assert rule(records) == expected


@pytest.mark.parametrize(
    ("spoil", "gap", "models"),
    [
        (lambda run: (run / "growth.jsonl").unlink(), "growth.jsonl is not in the run directory", 3),
        (lambda run: write_rounds(run, ROUNDS[::2]), "growth.jsonl lacks round 2", 3),
        (
            lambda run: write_rounds(run, ROUNDS[:2], '\n{"round": 3, "la'),
            "growth.jsonl lacks round 3; the last line",
            3,
        ),
        (lambda run: (run / "growth.jsonl").write_text("x\n{}\n"), "growth.jsonl cannot be read: ", 3),
        (lambda run: (run / "growth.jsonl").write_text('{"round": 1e300}\n'), "growth.jsonl lacks round 1, 2, 3, 4", 4),
    ],
)
def test_what_growth_jsonl_lacks_is_named_and_taken_from_the_result(
    run: Path, spoil: Callable[[Path], object], gap: str, models: int
) -> None:
    spoil(run)
    gaps: dict[str, str] = {}
    records = records_of(run, gaps=gaps)
    assert gaps["growth.jsonl"].startswith(gap)
    assert len(records.rounds) == models
    assert rows(run)["Final model →"].loss == "2.598"


def test_whole_records_have_no_gap(run: Path) -> None:
    gaps: dict[str, str] = {}
    records_of(run, gaps=gaps)
    assert gaps == {}


DAMAGED = st.one_of(st.none(), st.booleans(), st.text(max_size=3), st.just([]), st.just({"a": []}), st.just(-1e300))


@given(st.dictionaries(st.sampled_from([*ROUNDS[0], "curve"]), DAMAGED, min_size=1), DAMAGED, DAMAGED)
def test_damaged_values_are_dashes(changes: Record, model: Any, growth: Any) -> None:
    result = {"state": "done", "reference": model, "target": {"layers": model}, "controls": {"random": model}}
    losses_ = {"reference": {"layers": model, "sets": {"held-out": {"nats": growth, "tokens": [1]}}}}
    one = ROUNDS[0] | changes
    records = Records(result=result | {"benchmark": growth, "growth": growth}, rounds=(one,), losses=losses_)
    for line in table4_rows(records):
        assert all(isinstance(cell, str) for cell in astuple(line)[:-1])
    curves = round_curves(Path("nowhere"), records)
    assert len(story(records, curves)) == 1
    panel = growth_panel(records, curves, {"random": [changes]})
    assert panel is None or panel.low < panel.high


def test_a_line_a_model_and_the_benchmark_across(run: Path) -> None:
    records = records_of(run)
    controls = {name: [json.loads(line) for line in text.splitlines()] for name, text in control_texts(run).items()}
    panel = growth_panel(records, round_curves(run, records), controls)
    assert panel is not None
    assert list(panel.lines) == [*sorted(CONTROLS), "round-4", "round-6", "target"]
    assert (panel.title("target"), panel.reference, panel.unit) == ("8 layers", 2.6, "steps")
    assert panel.lines["random:2x"][-1][0] == 4000
    assert panel.low < 2.598
    # from a fifth of the longest training on, and the end of what was abandoned
    assert panel.high == pytest.approx(3.27, abs=0.05)
    figure = draw_curves([panel])
    assert re.search(r'fill: currentColor"[^>]*>Reference 2\.600<', figure)
    assert re.search(r'fill: var\(--target, #\w+\)"[^>]*>8 layers 2\.600<', figure)
    assert "Random init, 2x" in figure
    assert ">Steps<" in figure
    leading = re.findall(r"stroke-dasharray: 0\.9,2\.7", figure)
    assert len(leading) == 6  # every line but that of twice the steps ends before the frame does


def control_texts(run: Path) -> dict[str, str]:
    paths = sorted((run / "controls").iterdir())
    return {name_of_stem(path.name): (path / "metrics.jsonl").read_text(encoding="utf-8") for path in paths}


@pytest.mark.parametrize("narrow", [False, True])
def test_labels_do_not_collide(narrow: bool) -> None:
    """Eleven models within a hundredth of one another."""
    rounds = {f"round-{layers}": [(0.0, 8.0), (100.0, 2.6 + layers / 1000)] for layers in range(1, 11)}
    panel = growth_panel(Records(result={"benchmark": 2.605}), rounds, {})
    assert panel is not None
    figure = draw_curves([panel], narrow=narrow)
    places = re.findall(r'<text [^>]*y="([\d.]+)"[^>]*>(?:\d+ layers?|Reference) [\d.]+<', figure)
    heights = sorted(map(float, places))
    assert len(heights) == 11
    assert min(high - low for low, high in itertools.pairwise(heights)) > (11 if narrow else 12)


def test_early_points_are_above_the_frame_and_a_short_line_is_within() -> None:
    rounds = {"round-4": [(0.0, 8.0), (1000.0, 2.9)], "round-6": [(0.0, 8.0), (100.0, 4.0)]}
    panel = growth_panel(Records(), rounds, {"random": []})
    assert panel is not None
    assert 4.0 < panel.high < 8.0
    assert panel.above == ["4 layers from 8.00", "6 layers from 8.00"]
    assert panel.models == ("random", "round-4", "round-6")
    assert growth_panel(Records(), {"round-4": []}, {}) is None
    below = growth_panel(Records(result={"benchmark": 2.5}), rounds, {})
    assert below is not None
    assert below.low < 2.5 < panel.low


def test_of_a_step_measured_twice_the_last_record_counts() -> None:
    lines: list[Any] = [
        {"kind": "validation", "step": step, "losses": {"a": loss}} for step, loss in ((5, 3.0), (0, 4.0))
    ]
    lines += [
        {"kind": "validation", "step": 5, "losses": {"a": 2.0}},
        {"kind": "step", "step": 7, "losses": {"a": 1.0}},
    ]
    assert curve([*lines, 3, {"kind": "validation", "losses": {"a": 1.0}}], "a") == [(0, 4.0), (5, 2.0)]


def test_the_page_of_a_growth(run: Path) -> None:
    page = write_report(run)
    source = page.read_text(encoding="utf-8")
    text = re.sub(r"<[^>]*>", " ", source[source.index("<main>") :])
    assert re.search(r"3 +8 +2\.598 +-0\.0020 +0\.0080 +matches +8\.0e14", text)
    assert "Final model →" in text
    assert source.count('aria-label="Table 4"') == 1
    assert "Above the frame: Random init, 2x steps from 8.00," in text
    assert "A match: target − reference lies below 0.01" in text
    assert "<b>" not in source
    assert source.count("decided &lt;b&gt;x&lt;/b&gt;&amp;&#34;[red]") == 2
    assert not re.search(r"Gap: (growth|rounds|no )", text)
    ids = re.findall(r'\bid="([^"]+)"', source)
    assert len(ids) == len(set(ids))
    assert "prefers-color-scheme:dark" in (run / "growth.svg").read_text(encoding="utf-8")
    both = page.read_bytes(), (run / "growth.svg").read_bytes()
    write_report(run)
    assert (page.read_bytes(), (run / "growth.svg").read_bytes()) == both


def test_the_page_of_a_growth_that_is_going_on_names_its_gaps(run: Path) -> None:
    (run / "result.json").write_text('{"name": "grown", "state": "running"}', encoding="utf-8")
    write_rounds(run, [played(1, 4, curve=None)], "\n{")
    text = write_report(run).read_text(encoding="utf-8")
    for gap in (
        "the last line of growth.jsonl is cut short",
        "no curve was recorded of: 4 layers; 6 layers; 8 layers",
        "which round becomes the target is not known yet; metrics.jsonl is that round’s",
    ):
        assert f"Gap: {gap}." in text
    assert "not over" in text
    (run / "growth.jsonl").unlink()
    (run / "metrics.jsonl").write_text(control_texts(run)["stack"], encoding="utf-8")
    assert "Gap: no round is over yet." in write_report(run).read_text(encoding="utf-8")
    assert "Target" not in (run / "growth.svg").read_text(encoding="utf-8")


def test_a_low_data_page_has_the_table_folded_and_no_growth(tmp_path: Path) -> None:
    record = {"state": "done", "reference": REFERENCE, "target": {"layers": 8, "validation_loss": 2.7}}
    (tmp_path / "result.json").write_text(json.dumps(record), encoding="utf-8")
    source = write_report(tmp_path).read_text(encoding="utf-8")
    folded = source[source.index("<summary>Table 4") :]
    assert "Ours</td>" in folded[: folded.index("</details>")]
    assert 'id="growth"' not in source
    assert not (tmp_path / "growth.svg").exists()


def test_controls_are_read_where_their_names_say_and_nowhere_else(run: Path) -> None:
    metrics(run / "elsewhere", 1.234)
    controls = json.loads((run / "result.json").read_text(encoding="utf-8"))["controls"]
    change(run, controls=controls | {"random/../../elsewhere": {"layers": 8}, MARKUP: {"layers": 8}})
    source = write_report(run).read_text(encoding="utf-8")
    assert "Random init, 2x steps: from 8.000 at 0 to 2.790 at 4,000 steps" in source
    assert "for 2x the steps" in source
    assert "to 1.234 at" not in source
    assert "<b>" not in source
    assert "random/../../elsewhere" in source.lower()


@given(st.from_regex(r"[a-z_+-]+(:[1-9][0-9]{0,2}x)?(@[0-9]{1,4})?", fullmatch=True))
def test_a_name_comes_back_from_its_file(name: str) -> None:
    stem = file_stem(name)
    assert stem is not None
    assert not set(stem) & set(":/.")
    assert name_of_stem(stem) == name


@pytest.mark.parametrize("name", ["a/b", "..", "", "random:x", "A", "random@4/..", "ran\ndom"])
def test_no_name_leads_elsewhere(name: str) -> None:
    assert file_stem(name) is None


def test_the_terminal_table_fits_eighty_columns(run: Path) -> None:
    lines = printed(run)
    assert max(map(len, lines)) <= 80
    found = r"8 Ours +2,000 2\.598 2\.5\d\d–2\.6\d\d +-0\.002 1\.8e15 5\.8e15"
    assert any(re.search(found, line) for line in lines), "the difference has the room of scores that no model has"
    told = " ".join(" ".join(lines).split())
    assert "Val loss: nats a token on held-out, 95% interval over 60 documents." in told
    left_out = "the interval of the difference, Wikitext (no score yet), LAMBADA (no score yet), own FLOPs"
    assert f"Left out for want of room: {left_out}." in told
    assert sum(line.startswith(" Random init ") for line in lines) == 3  # their steps and layers are in their columns


def test_scores_take_the_room_of_what_can_be_summed_up(run: Path) -> None:
    evaluated(run, scores={"meta/reference": asdict_all({"wikitext": score(34.844)})})
    change(run, reference=REFERENCE | {"initialisation": None})
    lines = printed(run)
    assert max(map(len, lines)) <= 80
    assert any(re.search(r"Reference +12 pre-trained +2,000 2\.600 \S+ 34\.84 4\.0e15 4\.0e15", line) for line in lines)
    told = " ".join(" ".join(lines).split())
    assert "Left out for want of room: the difference to the reference, LAMBADA (no score yet), own FLOPs." in told


def test_a_wide_terminal_has_every_column(run: Path) -> None:
    lines = printed(run, 160)
    assert "Left out" not in " ".join(lines)
    narrower = " ".join(" ".join(printed(run, 95)).split())
    left_out = "the interval of the difference, Wikitext (no score yet), LAMBADA (no score yet)"
    assert f"Left out for want of room: {left_out}." in narrower
    assert any(re.search(r"Final model → .* -0\.002 -?0\.\d+ to 0\.\d+ +– +– 8\.0e14", line) for line in lines)


def test_names_are_text_on_the_terminal_and_in_markdown(run: Path) -> None:
    change(run, controls={"[red]x|y": {"layers": 8}})
    assert any("[red]x|y" in line for line in printed(run, 160))
    lines = markdown_table4(run).splitlines()
    assert lines[0].startswith("| Model | Layers | Initialisation | Steps | Val loss | 95% interval |")
    assert lines[1].startswith("| --- | ---: | --- | ---: |")
    assert lines[3].startswith(r"| \[red\]x\|y | 8 |")
    assert lines[-1].startswith("| **Final model →** | **8** | **Ours** | **2,000** | **2.598** |")
    assert len({len(re.findall(r"(?<!\\)\|", line)) for line in lines}) == 1
