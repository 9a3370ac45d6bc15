"""What the page shows beside results and curves: axes, evaluation, layers, attention, plan, commands; and damage."""

from __future__ import annotations

import copy
import json
import random
import shutil
from pathlib import Path
from typing import Any

import pytest

from inheritune.errors import Refused
from inheritune.report import write_report
from inheritune.report.axes import against, scales_of, units_of
from inheritune.report.content import Limits, read_run, run_content
from inheritune.report.curves import Panel, curves_pdf, panels_of
from inheritune.report.page import MOST_BYTES, templates
from inheritune.report.sections import commands
from report_runs import SPEED, degeneracy, full_run, layer_choice, plan
from test_report import MARKUP, Page, make_run

UNDRAWN = Limits(units=())


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return full_run(tmp_path / "run")


def shown(run: Path) -> dict[str, Any]:
    """What the page shows, without its curves."""
    return run_content(read_run(run), UNDRAWN)


def step(number: int, tokens: int, speed: float | None = SPEED) -> dict[str, Any]:
    return {"kind": "step", "step": number, "tokens": tokens, "loss": 3.0, "tokens_per_second": speed}


BEGUN = {"kind": "validation", "step": 0, "tokens": 0, "losses": {}}
STEPS = [BEGUN, step(1, 4096), step(2, 8192), step(3, 10_240, 2048.0)]


def panel(points: list[tuple[float, float]]) -> Panel:
    return Panel("held-out", ("target",), {"target": points}, {}, None, None, 2.0, 4.0)


def test_tokens_lie_where_the_records_say_on_every_axis() -> None:
    scales = scales_of({"target": STEPS}, {"target": 100.0})
    assert units_of(scales) == ["tokens", "steps", "FLOPs", "hours"]
    points = [(0.0, 4.0), (8192.0, 3.0), (9216.0, 2.9), (10_240.0, 2.8)]
    moved = {unit: against([panel(points)], scales, unit)[0] for unit in units_of(scales)}
    assert moved["tokens"].lines["target"] == points
    assert [x for x, _ in moved["steps"].lines["target"]] == [0, 2, 2.5, 3]
    assert [x for x, _ in moved["FLOPs"].lines["target"]] == [0, 819_200, 921_600, 1_024_000]
    seconds = [60 * x for x, _ in moved["hours"].lines["target"]]  # no training took an hour: minutes
    assert seconds == pytest.approx([0, 1.0, 1.5, 2.0])
    assert moved["hours"].across == "Training time, minutes"
    assert [y for _, y in moved["hours"].lines["target"]] == [4.0, 3.0, 2.9, 2.8]


def test_hours_are_hours_where_a_training_took_one() -> None:
    scales = scales_of({"target": [step(1, 4096), step(2, 8192, 0.5)]}, {})
    assert against([panel([(8192.0, 3.0)])], scales, "hours")[0].across == "Training time, hours"


def test_an_axis_that_was_not_recorded_is_not_offered() -> None:
    assert units_of(scales_of({"target": [step(1, 4096, None), step(2, 8192)]}, {})) == ["tokens", "steps"]
    assert units_of(scales_of({"target": []}, {"target": 1.0})) == ["tokens"]


def test_a_model_without_places_on_an_axis_is_named(run: Path) -> None:
    path = run / "controls" / "random" / "metrics.jsonl"
    path.write_text(path.read_text(encoding="utf-8").replace("tokens_per_second", "speed"), encoding="utf-8")
    figures = {figure.unit: figure for figure in run_content(read_run(run), Limits())["figures"]}
    assert figures["hours"].missing == ("Random init",)
    assert "Random init" not in figures["hours"].description
    assert figures["tokens"].missing == ()


def test_the_page_says_all_that_the_records_hold(run: Path) -> None:
    text = " ".join(Page(write_report(run)).text.split())
    for said in (
        "61.2±1.1",  # a score with its error
        "Scores in short, suite quick",
        "first:2+last:2 (chosen)",
        "Kept: layers 0–1, 6–7, counted from 0, chosen by short trainings.",
        "Attention by layer",
        "The plan against what happened",
        "the largest model that is trained: 2.50 GiB; at the peak of a step 3.00 GiB were in use",
        "git checkout 0123abc && make setup",
        f"inheritune evaluate {run.resolve()} --suite quick",
        "All trainings",
        "≥1 min 41 s",
        "abandoned after 40 of 100 steps",
    ):
        assert said in text
    assert "Gap:" not in text
    assert "<b>x" not in write_report(run).read_text(encoding="utf-8")


def test_candidates_stand_in_the_order_in_which_they_came_in(run: Path) -> None:
    (sheet, measured) = shown(run)["layers"].sheets
    assert [row[0] for row in sheet.rows] == ["first:2+last:2 (chosen)", "first:3+last:1", "first:4"]
    assert sheet.rows[2][4:6] == ("4.056", "–")
    assert [row[1] for row in measured.rows] == ["kept", "kept", *["left out"] * 4, "kept", "kept"]
    assert measured.rows[3][3] == "0.288"  # of the stretch of four that begins with the fourth layer


def test_layers_by_a_measure_have_no_candidates(run: Path) -> None:
    record = layer_choice() | {"measure": "influence"}
    del record["probe"]
    (run / "layer_choice.json").write_text(json.dumps(record), encoding="utf-8")
    section = shown(run)["layers"]
    assert "chosen by block influence" in section.text
    assert [sheet.title for sheet in section.sheets] == ["What each layer does"]


@pytest.mark.parametrize("record", [{"degeneracy": degeneracy()}, {"layers": {"degeneracy": degeneracy()}}])
def test_attention_is_taken_from_the_choice_of_depth_too(run: Path, record: dict[str, Any]) -> None:
    (run / "degeneracy.json").unlink()
    (run / "depth.json").write_text(json.dumps(record), encoding="utf-8")
    section = shown(run)["attention"]
    assert [row[:2] for row in section.sheets[0].rows] == [("0", "2.0"), ("1", "–"), ("2", "40.0")]
    assert "<style" not in section.figure


def test_a_plan_stands_beside_what_was_taken(run: Path) -> None:
    target, _, stack = shown(run)["plan"].sheets[0].rows
    assert target[:7] == ("Target", "1,000", "–", "4.10M", "4.10M", "1.1e15", "1.2e15")
    assert target[7:] == ("1 min 48 s", "1 min 12 s to 3 min", "1 min 32 s")
    assert stack[2] == stack[4] == stack[6] == "–"
    (run / "plan.json").write_text(json.dumps(plan() | {"models": []}), encoding="utf-8")
    assert shown(run)["gaps"]["plan.json"] == "plan.json plans no training"


def test_rounds_rates_and_a_probe_meet_their_own_entries(run: Path) -> None:
    models = [
        {"name": "probe", "layers": 3, "steps": 5, "tokens": 50, "training_flops": 1.0},
        {"name": "round 1", "layers": 3, "steps": 10, "tokens": 100, "training_flops": 2.0},
        {"name": "round 3", "layers": 5, "steps": 10, "tokens": 100, "training_flops": 2.0},
    ]
    ledger = {
        "probe": {"tokens": 48, "flops": 1.5},
        "train round-3": {"steps": 9, "flops": 1.0, "all_rates": {"flops": 3.0, "seconds": 60}},
        "train round-5": {"steps": 8, "flops": 2.5},
    }
    (run / "plan.json").write_text(json.dumps(plan() | {"models": models}), encoding="utf-8")
    (run / "ledger.json").write_text(json.dumps(ledger), encoding="utf-8")
    probe, first, third = shown(run)["plan"].sheets[0].rows
    assert (probe[4], probe[6]) == ("48", "1.5e0")
    assert (first[2], first[6], first[9]) == ("9", "3.0e0", "1 min")
    assert (third[2], third[6]) == ("8", "2.5e0")


def test_the_commands_quote_what_a_shell_would_split(tmp_path: Path) -> None:
    found = dict(commands(tmp_path / "my run", {"commit": "0123abc+"}, None, recipe=True))
    path = tmp_path.resolve() / "my run"
    assert found["The whole run again, into a new directory:"] == f"inheritune run '{path}/recipe.yaml' --out NEW"
    changed = found["The source that made it, which had changes that were not committed:"]
    assert changed == "git checkout 0123abc && make setup"
    assert "The whole run again, into a new directory:" not in dict(commands(tmp_path, {}, None, recipe=False))


def test_an_evaluation_s_calls_are_shown_as_they_were_given(run: Path) -> None:
    record = json.loads((run / "evaluation.json").read_text(encoding="utf-8"))
    calls = ["inheritune evaluate run --suite quick", "inheritune evaluate run --suite piqa --limit 100"]
    (run / "evaluation.json").write_text(json.dumps(record | {"commands": calls}), encoding="utf-8")
    assert [line for _, line in shown(run)["commands"] if " evaluate " in line] == calls


def test_the_time_of_a_training_is_that_from_its_start_to_its_end(run: Path) -> None:
    ledger = json.loads((run / "ledger.json").read_text(encoding="utf-8"))
    ledger["train target"]["consumption"] = {"wall_seconds": 125.0}
    (run / "ledger.json").write_text(json.dumps(ledger), encoding="utf-8")
    assert shown(run)["plan"].sheets[0].rows[0][9] == "2 min 5 s"


def test_a_foreign_file_among_the_controls_is_no_control(run: Path) -> None:
    (run / "result.json").write_text('{"name": "half", "state": "running"}', encoding="utf-8")
    shutil.rmtree(run / "controls")
    for name in ("target", "reference", "cut"):
        (run / "controls" / name).mkdir(parents=True)
        (run / "controls" / name / "metrics.jsonl").write_text(
            (run / "metrics.jsonl").read_text(encoding="utf-8"), encoding="utf-8"
        )
    (run / "controls" / "notes").write_text("mine", encoding="utf-8")
    found = shown(run)
    assert not found["control_files"]
    assert not [name for name in found["gaps"] if name.startswith("controls")]


def test_a_number_beyond_every_float_in_the_losses_is_a_gap(run: Path) -> None:
    (run / "losses").mkdir(exist_ok=True)
    losses = {"layers": 4, "sets": {"held-out": {"nats": [10**400], "correct": [1], "tokens": [1], "bytes": [1]}}}
    (run / "losses" / "target.json").write_text(json.dumps(losses), encoding="utf-8")
    assert write_report(run).exists()


def test_control_characters_are_shown_and_not_passed_on(run: Path) -> None:
    record = json.loads((run / "result.json").read_text(encoding="utf-8")) | {"name": "red \x1b[31m name"}
    (run / "result.json").write_text(json.dumps(record), encoding="utf-8")
    text = write_report(run).read_text(encoding="utf-8")
    assert "\x1b" not in text
    assert "red \N{REPLACEMENT CHARACTER}[31m name" in text


def test_a_run_that_goes_on_shows_what_was_measured_and_its_training_loss(tmp_path: Path) -> None:
    run = tmp_path / "run"
    (run / "losses").mkdir(parents=True)
    (run / "result.json").write_text('{"name": "half", "state": "running"}', encoding="utf-8")
    for name, nats in (("reference", 30.0), ("cut", 100.0), ("round-4", 50.0)):
        sets = {"held-out": {"nats": [nats], "correct": [1], "tokens": [10], "bytes": [30]}}
        record = {"layers": 8, "parameters": 1000, "sets": sets}
        (run / "losses" / f"{name}.json").write_text(json.dumps(record), encoding="utf-8")
    lines = [{"kind": "validation", "step": 0, "tokens": 0, "losses": {"held-out": 10.0}}]
    lines += [{"kind": "step", "step": step, "tokens": 100 * step, "loss": 9.0 - step} for step in range(1, 6)]
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    read = read_run(run)
    assert read.result["reference"]["validation_losses"] == {"held-out": 3.0}
    assert list(read.result["controls"]) == ["cut"]
    (panel,) = panels_of(read.result, read.metrics)
    assert (panel.reference, panel.cut) == (3.0, 10.0)
    assert panel.low < 3.0
    assert panel.high > 8.0, "the training loss is in the frame"
    text = Page(write_report(run)).text
    assert "3.000" in text
    assert "No verdict yet" in text


def test_a_directory_without_any_record_is_no_run(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(Refused, match="not a run directory"):
        write_report(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_a_ledger_without_totals_is_a_gap(run: Path) -> None:
    ledger = json.loads((run / "ledger.json").read_text(encoding="utf-8"))
    del ledger["total"]
    (run / "ledger.json").write_text(json.dumps(ledger), encoding="utf-8")
    assert "ledger.json has no totals" in shown(run)["gaps"]["total"]


def test_a_page_that_would_be_too_large_leaves_out_what_is_said(run: Path) -> None:
    tensor = {"name": "n" * 400, "status": "inherited", "source": "s" * 400, "shape": [1], "sha256": "0" * 64}
    record = {"layers_kept": [0], "tensors": [tensor] * 4000}
    (run / "inheritance.json").write_text(json.dumps(record), encoding="utf-8")
    path = write_report(run)
    assert path.stat().st_size < MOST_BYTES
    assert "3700 more tensors are left out" in path.read_text(encoding="utf-8")


def test_a_pdf_of_the_curves_repeats() -> None:
    drawn = [panel([(0.0, 4.0), (4096.0, 3.0)])]
    assert curves_pdf(drawn).startswith(b"%PDF")
    assert curves_pdf(drawn) == curves_pdf(drawn)


FOREIGN = (b"\xff\xfe\x00\x01", b"{", b"[]", b"null", b'{"a": "\\ud800"}', b"")


@pytest.mark.parametrize("name", ["evaluation", "layer_choice", "degeneracy", "plan", "ledger", "result"])
def test_a_foreign_file_is_a_gap(run: Path, name: str) -> None:
    for content in FOREIGN:
        (run / f"{name}.json").write_bytes(content)
        found = shown(run)
        said = found["evaluation_gap"] if name == "evaluation" else found["gaps"].get(f"{name}.json", "")
        assert name in said or content == FOREIGN[4]
    (run / f"{name}.json").unlink()
    (run / f"{name}.json").mkdir()
    assert shown(run)["name"]


VALUES: list[Any] = [None, -1, "x", [], {}, [None], {"a": 1}, 10**400, 1e308, True, [[]], {"a": {"b": []}}, "\ud800"]


def test_no_value_of_any_record_ends_in_a_traceback(run: Path) -> None:
    draw, body = random.Random(0), templates().get_template("run.html.j2")
    files = [path for path in sorted(run.rglob("*")) if path.suffix in (".json", ".jsonl")]
    for _ in range(60):
        path = draw.choice(files)
        kept = path.read_text(encoding="utf-8")
        records = [json.loads(line) for line in kept.splitlines()] if path.suffix == ".jsonl" else json.loads(kept)
        place = draw.choice([*places(records)])
        changed = replaced(records, place, draw.choice(VALUES))
        lines = changed if path.suffix == ".jsonl" and isinstance(changed, list) else [changed]
        path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
        assert body.render(shown(run), level=2).encode(), (path, place)
        path.write_text(kept, encoding="utf-8")


def places(value: Any, here: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every place in a record, of lists the first few."""
    inner = value.items() if isinstance(value, dict) else enumerate(value[:4]) if isinstance(value, list) else ()
    return [here, *(place for key, one in inner for place in places(one, (*here, key)))]


def replaced(value: Any, place: tuple[Any, ...], by: Any) -> Any:
    if not place:
        return by
    value = copy.copy(value)
    value[place[0]] = replaced(value[place[0]], place[1:], by)
    return value


def test_a_name_with_markup_stays_text_in_every_section(tmp_path: Path) -> None:
    run = full_run(tmp_path / "run")
    record = layer_choice() | {"measure": MARKUP, "set": MARKUP}
    record["probe"]["candidates"][0]["name"] = MARKUP
    (run / "layer_choice.json").write_text(json.dumps(record), encoding="utf-8")
    (run / "degeneracy.json").write_text(json.dumps(degeneracy() | {"set": MARKUP}), encoding="utf-8")
    device = {"title": MARKUP, "count": 1}
    (run / "plan.json").write_text(json.dumps(plan() | {"device": device}), encoding="utf-8")
    page = write_report(run)
    assert "<b>x" not in page.read_text(encoding="utf-8")
    assert "b" not in {tag for tag, _ in Page(page).tags}
    assert Page(page).text.count(MARKUP) >= 5


def test_a_run_that_has_just_begun_is_shown(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    for path in run.iterdir():
        if path.name not in ("recipe.yaml", "result.json", "controls", "model"):
            path.unlink()
    (run / "result.json").write_text('{"name": "half", "state": "running"}', encoding="utf-8")
    found = shown(run)
    assert found["state"] == "This run is still going on."
    assert "metrics.jsonl is not in the run directory" in found["gaps"]["metrics.jsonl"]
