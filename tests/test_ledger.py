"""What runs took: measured over restarts, summed over all that was trained, and set beside the poster's table 1."""

from __future__ import annotations

import dataclasses
import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from inheritune import consumption, energy, metering, pipeline
from inheritune.cli import main
from inheritune.consumption import Consumption, summed
from inheritune.errors import Interrupted, Refused
from inheritune.ledger import total
from inheritune.metrics import Progress
from inheritune.pipeline.shared import Run
from inheritune.report import latex_table1, markdown_table1, table1_sheet, write_report
from inheritune.report.sums import cell, sums_sheet
from inheritune.run_directory import read_json, read_jsonl, write_json
from inheritune.tokens import Prepared
from inheritune.trained import Trained
from test_pipeline import Silent, recipe, text
from test_training import data, train

__all__ = ["data", "text"]  # fixtures
Record = dict[str, Any]
HOUR = 3600.0
TAKEN = Consumption(
    starts=1,
    steps=10,
    tokens=1000,
    flops=6e9,
    step_seconds=1800.0,
    wall_seconds=HOUR,
    device_seconds=2 * HOUR,
    possible_flops=12e9,
    measured_joules=3.6e6,
    energy_sources=("nvml",),
    peak_memory_bytes=2**30,
    devices=("2 x NVIDIA H100: 989.5 TFLOP/s in bfloat16 (data sheet)",),
)


def entry(taken: Consumption | None = TAKEN, **changes: Any) -> Record:
    """A training's entry in a ledger."""
    known: Record = {"seconds": 1800.0, "steps": 10, "tokens": 1000, "unique_tokens": 500, "flops": 6e9, "ranks": 2}
    return known | ({} if taken is None else {"consumption": taken.record()}) | changes


def run_of(directory: Path, ledger: Record, **records: Record) -> Path:
    """A run directory of some records."""
    directory.mkdir(parents=True, exist_ok=True)
    for name, record in {"ledger": ledger, **records}.items():
        write_json(directory / f"{name}.json", record)
    return directory


# ---- over restarts


class Killed(BaseException):
    """What no code here expects."""


def killed_at(step: int) -> Callable[[Progress], None]:
    def told(progress: Progress) -> None:
        if progress.step == step:
            raise Killed

    return told


def kill(directory: Path, prepared: Prepared, step: int) -> None:
    """Begin or go on with a training, and let it die at a step; a checkpoint under way is still written."""
    with pytest.raises(Killed):
        train(directory, prepared, killed_at(step))
    for thread in threading.enumerate():
        if thread.name == "checkpoint":
            thread.join()


def test_what_a_training_takes_is_measured(tmp_path: Path, data: Prepared) -> None:
    _, trained = train(tmp_path / "run", data)
    taken = trained.consumption
    assert (taken.starts, taken.steps, taken.tokens, taken.flops) == (1, 7, trained.tokens, trained.flops)
    assert taken.step_seconds == pytest.approx(trained.seconds)
    assert taken.wall_seconds > taken.step_seconds, "validation and checkpoints take time, too"
    assert taken.device_seconds == taken.wall_seconds
    steps = [one for one in read_jsonl(tmp_path / "run" / "metrics.jsonl") if one["kind"] == "step"]
    possible = sum(trained.flops / trained.tokens * 16 * (8 if one["step"] < 7 else 4) / one["mfu"] for one in steps)
    assert taken.possible_flops == pytest.approx(possible)
    # the kernel counts a process's pages by CPU and adds them up late: two readings may differ by a little
    assert taken.peak_memory_bytes > 0.99 * max(one["memory_bytes"] for one in steps) > 0
    assert taken.whole
    assert consumption.read(tmp_path / "run") is not None


def test_work_that_a_kill_undid_is_counted_twice(
    tmp_path: Path, data: Prepared, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metering, "_EVERY_SECONDS", 0.0)
    kill(tmp_path / "run", data, 6)  # five steps are noted, the checkpoint is of four
    before = consumption.read(tmp_path / "run")
    assert before is not None
    assert before.steps == 5
    _, trained = train(tmp_path / "run", data)
    taken = trained.consumption
    assert trained.steps == 7
    assert (taken.starts, taken.steps) == (2, 5 + 3)
    assert taken.flops > trained.flops
    assert taken.wall_seconds > before.wall_seconds
    assert taken.energy_known
    assert taken.measured_joules + taken.estimated_joules > before.measured_joules + before.estimated_joules
    assert taken.whole


def test_killed_before_its_first_checkpoint_it_goes_on_counting(
    tmp_path: Path, data: Prepared, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metering, "_EVERY_SECONDS", 0.0)
    kill(tmp_path / "run", data, 2)
    _, trained = train(tmp_path / "run", data)
    assert (trained.consumption.starts, trained.consumption.steps, trained.consumption.whole) == (2, 1 + 7, True)


def test_without_its_note_a_resumed_training_says_that_something_is_missing(tmp_path: Path, data: Prepared) -> None:
    kill(tmp_path / "run", data, 6)
    (tmp_path / "run" / consumption.FILE).unlink()
    _, trained = train(tmp_path / "run", data)
    assert (trained.consumption.steps, trained.consumption.whole) == (3, False)
    _, again = train(tmp_path / "run", data)
    assert again.consumption == trained.consumption, "a training that is over takes nothing more"


@pytest.mark.parametrize("damage", ["{", "[]", '{"starts": -1}', "{}"])
def test_a_damaged_note_is_none(tmp_path: Path, data: Prepared, damage: str) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / consumption.FILE).write_text(damage)
    assert consumption.read(tmp_path / "run") is None
    _, trained = train(tmp_path / "run", data)
    assert not trained.consumption.whole


def test_energy_is_measured_where_a_counter_is(tmp_path: Path, data: Prepared, monkeypatch: pytest.MonkeyPatch) -> None:
    joules = iter(range(10, 10_000))
    counter = energy.Counter("host/0", "rapl", lambda: float(next(joules)))
    monkeypatch.setattr(energy, "counters", lambda _gpu: [counter])
    _, trained = train(tmp_path / "run", data)
    taken = trained.consumption
    assert taken.measured_joules == next(joules) - 1 - 10, "from the first reading to the last"
    assert (taken.estimated_joules, taken.energy_sources) == (0.0, ("rapl",))


def test_energy_is_estimated_where_none_is(tmp_path: Path, data: Prepared, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(energy, "counters", lambda _gpu: [])
    monkeypatch.setattr(energy, "rated_power", lambda _gpu, _threads: (50.0, "a data sheet"))
    _, trained = train(tmp_path / "run", data)
    taken = trained.consumption
    assert 0 < taken.estimated_joules <= 50 * taken.wall_seconds
    assert (taken.measured_joules, taken.energy_sources) == (0.0, ("estimated: 50 W, a data sheet",))


def test_energy_that_nobody_knows_is_no_zero(tmp_path: Path, data: Prepared, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(energy, "counters", lambda _gpu: [])
    monkeypatch.setattr(energy, "rated_power", lambda _gpu, _threads: None)
    _, trained = train(tmp_path / "run", data)
    assert not trained.consumption.energy_known
    sums = total(run_of(tmp_path / "made", {"train target": trained.entry()}))["training"]
    assert sums["energy_kwh"] is None
    assert sums["gaps"]["energy_kwh"] == ["train target"]


# ---- sums


def test_a_consumption_is_what_it_was_as_json() -> None:
    assert Consumption.of(json.loads(json.dumps(TAKEN.record()))) == TAKEN
    assert TAKEN.mfu == 0.5


def test_consumptions_add_up() -> None:
    other = dataclasses.replace(TAKEN, peak_memory_bytes=5, energy_sources=("estimated: 1 W",), whole=False)
    both = summed([TAKEN, other])
    assert (both.starts, both.tokens, both.wall_seconds, both.measured_joules) == (2, 2000, 2 * HOUR, 7.2e6)
    assert (both.peak_memory_bytes, both.devices) == (2**30, TAKEN.devices)
    assert both.energy_sources == ("nvml", "estimated: 1 W")
    assert not both.whole
    assert summed([]) == Consumption()


def test_all_that_was_trained_is_in_the_sum(tmp_path: Path) -> None:
    """Target, controls, reference, every learning rate, probe, pilot, rounds, one of them abandoned."""
    taken = dataclasses.replace(TAKEN, starts=3)
    ledger = {
        "prepare": {"seconds": HOUR},
        "train reference": entry(unique_tokens=400),
        "probe": {"seconds": 9.0, "steps": 10, "tokens": 1000, "flops": 6e9, "candidates": 2, "trainings": 2}
        | {"consumption": taken.record()},
        "pilot": entry(),
        "train round-2": entry(abandoned=True),
        "train round-4 at 0.1": entry(),
        "train round-4 at 0.01": entry(dataclasses.replace(TAKEN, starts=2)),
        "train round-4": entry(learning_rate=0.1, all_rates={"tokens": 2000}),
        "train round-4-seed-1": entry(),
        "train random:2x": entry(unique_tokens=800),
        "train other-data": entry(unique_tokens=1000),
        "measure target": {"seconds": HOUR / 2},
        "total": {"training": {"tokens": 10**9}},
    }
    run = run_of(tmp_path / "run", ledger, result={"growth": {}, "target": {"layers": 4}})
    found = total(run, price_per_device_hour=1.5)
    sums = found["training"]
    assert (sums["trainings"], sums["tokens"], sums["flops"], sums["steps"]) == (10, 9000, 54e9, 90)
    assert (sums["wall_hours"], sums["device_hours"], sums["money"]) == (9, 18, 27)
    assert (sums["mfu"], sums["energy_kwh"], sums["peak_memory_bytes"]) == (0.5, 9, 2**30)
    assert sums["restarts"] == 2, "one of the probe's, one of a learning rate's"
    assert (sums["unique_tokens"], sums["passes"]) == (800 + 1000, 9000 / 1800)
    assert found["wall_hours"] == 9 + 1.5
    assert found["other_seconds"] == {"prepare": HOUR, "measure target": HOUR / 2}
    assert sums["gaps"] == found["gaps"] == {}
    kinds = {name: (arm["kind"], arm["state"], arm["trainings"]) for name, arm in found["arms"].items()}
    assert kinds == {
        "reference": ("reference", "finished", 1),
        "probe": ("probe", "finished", 2),
        "pilot": ("pilot", "finished", 1),
        "round-2": ("round", "abandoned", 1),
        "round-4": ("target", "finished", 2),
        "round-4-seed-1": ("round", "finished", 1),
        "random:2x": ("control", "finished", 1),
        "other-data": ("control", "finished", 1),
    }
    assert found["arms"]["round-4"]["passes"] == 2


def test_seeds_within_a_pass_see_tokens_of_their_own(tmp_path: Path) -> None:
    ledger = {"train round-4": entry(unique_tokens=1000), "train round-4-seed-1": entry(unique_tokens=1000)}
    assert total(run_of(tmp_path / "run", ledger))["training"]["gaps"] == {"unique_tokens": ["round-4-seed-1"]}


def test_without_a_price_there_is_no_money(tmp_path: Path) -> None:
    assert "money" not in total(run_of(tmp_path / "run", {"train target": entry()}))["training"]


def test_what_an_older_record_lacks_is_a_gap_and_its_time_a_lower_bound(tmp_path: Path) -> None:
    ledger = {"train target": entry(), "train random": entry(None)}
    sums = total(run_of(tmp_path / "run", ledger), price_per_device_hour=1)["training"]
    assert (sums["tokens"], sums["flops"]) == (2000, 12e9)
    assert (sums["wall_hours"], sums["device_hours"]) == (1.5, 3.0), "of the older one the time in steps"
    assert (sums["mfu"], sums["energy_kwh"]) == (0.5, 1), "of the newer one alone"
    lacking = ("restarts", "wall_hours", "device_hours", "mfu", "energy_kwh", "peak_memory_bytes", "money")
    assert sums["gaps"] == {name: ["train random"] for name in lacking}
    assert cell(sums, "wall_hours") == "≥1 h 30 min"
    assert cell(sums, "tokens") == "2,000"


def test_an_older_records_metrics_say_peak_and_memory(tmp_path: Path) -> None:
    run = run_of(tmp_path / "run", {"train target": entry(None)})
    steps = [{"kind": "step", "step": n, "tokens": 500 * n, "tokens_per_second": 50.0} for n in (1, 2)]
    (run / "metrics.jsonl").write_text(
        "\n".join(
            json.dumps(one | {"mfu": mfu, "memory_bytes": 7}) for one, mfu in zip(steps, (0.5, 0.25), strict=True)
        )
    )
    sums = total(run)["training"]
    assert sums["mfu"] == pytest.approx(1000 / (500 / 0.5 + 500 / 0.25))
    assert sums["peak_memory_bytes"] == 7


def test_a_diverged_training_of_an_older_run_is_found_in_its_directory(tmp_path: Path) -> None:
    run = run_of(tmp_path / "run", {"train target at 0.1": entry(), "train target": entry(learning_rate=0.1)})
    lost = run / "learning_rates" / "10"
    lost.mkdir(parents=True)
    (lost / "metrics.jsonl").write_text('{"kind": "step", "step": 1, "tokens": 100, "tokens_per_second": 50.0}\n')
    sums = total(run)["training"]
    assert (sums["tokens"], sums["steps"]) == (1100, 11)
    assert sums["gaps"]["flops"] == ["train target at 10"]


@pytest.mark.parametrize("where", [".", "controls/random-2x", "rounds/4", "reference", "probe/first-4"])
def test_a_training_that_is_under_way_counts_as_far_as_it_came(tmp_path: Path, where: str) -> None:
    run = run_of(tmp_path / "run", {"prepare": {"seconds": 1.0}})
    (run / where).mkdir(parents=True, exist_ok=True)
    consumption.write(run / where, TAKEN)
    found = total(run)
    ((name, arm),) = found["arms"].items()
    assert name == {
        ".": "target",
        "controls/random-2x": "random:2x",
        "rounds/4": "round-4",
        "probe/first-4": "probe",
    }.get(where, where)
    assert (arm["state"], arm["tokens"], arm["wall_hours"]) == ("under way", 1000, 1)
    assert found["training"]["energy_kwh"] == 1


@pytest.mark.parametrize(
    "damage", ["[]", "{", '{"train target": 7, "prepare": null}', '{"train target": {"tokens": "x"}}']
)
def test_a_damaged_ledger_is_a_gap(tmp_path: Path, damage: str) -> None:
    run = run_of(tmp_path / "run", {})
    (run / "ledger.json").write_text(damage)
    sums = total(run)["training"]
    assert sums["tokens"] is sums["flops"] is sums["energy_kwh"] is None
    if "target" in damage:
        assert sums["gaps"]["tokens"] == ["train target"]


def test_nothing_was_recorded(tmp_path: Path) -> None:
    found = total(tmp_path)
    assert (found["arms"], found["wall_hours"]) == ({}, None)
    assert sums_sheet(found) is None


# ---- a run


@pytest.fixture(scope="module")
def finished(llama_directory: Path, text: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two learning rates and a control; stopped once on the way."""
    out = tmp_path_factory.mktemp("run") / "run"
    flags = ("--controls", "[random]", "--train.learning_rate", "[5e-3, 1e-4]", "--train.max_steps", "8")
    made = recipe(llama_directory, text, *flags)
    with pytest.raises(Interrupted):
        pipeline.run(made, out, console=Silent(stop_after=12))
    pipeline.run(made, out, console=Silent())
    return out


def test_a_run_ends_with_its_sums(finished: Path) -> None:
    ledger = read_json(finished / "ledger.json")
    found = ledger["total"]
    assert found == total(finished)
    trained = [entry for name, entry in ledger.items() if name.startswith("train ") and " at " in name]
    assert len(trained) == 4
    sums = found["training"]
    assert sums["trainings"] == 4
    for name in ("steps", "tokens", "flops"):
        assert sums[name] == sum(one[name] for one in trained)
    assert sums["restarts"] == 1
    assert sums["gaps"] == found["gaps"] == {}
    walls = [one["consumption"]["wall_seconds"] for one in trained]
    assert sums["wall_hours"] * HOUR == pytest.approx(sum(walls))
    assert "prepare" in found["other_seconds"]
    assert found["wall_hours"] > sums["wall_hours"]


def test_a_stage_that_is_done_again_makes_the_sums_stale(finished: Path, tmp_path: Path) -> None:
    write_json(tmp_path / "ledger.json", read_json(finished / "ledger.json"))
    run: Any = dataclasses.make_dataclass("Stub", ["directory"])(tmp_path)
    Run.note(run, "measure cut", {"seconds": 1.0})
    assert "total" not in read_json(tmp_path / "ledger.json")


def test_the_page_has_the_sums_and_no_stage_total(finished: Path) -> None:
    page = write_report(finished).read_text(encoding="utf-8")
    assert "All trainings" in page
    assert '<th scope="row">total</th>' not in page
    assert "consumption:" not in page
    assert page.count("Device hours") == 1


def test_a_training_that_diverged_stands_in_the_ledger(llama_directory: Path, text: Path, tmp_path: Path) -> None:
    flags = ("--controls", "[]", "--train.learning_rate", "[1e-3, 1e12]", "--train.max_steps", "8")
    pipeline.run(recipe(llama_directory, text, *flags), tmp_path / "run", console=Silent())
    ledger = read_json(tmp_path / "run" / "ledger.json")
    assert ledger["train target at 1e+12"]["diverged"] is True
    taken = ledger["train target at 1e+12"]["consumption"]
    assert taken["steps"] == ledger["train target at 1e+12"]["steps"] > 0
    assert taken["wall_seconds"] > taken["step_seconds"] > 0
    assert ledger["total"]["arms"]["target"]["trainings"] == 2
    assert ledger["total"]["arms"]["target"]["state"] == "finished"


# ---- table 1


def row(sheet: Any, start: str) -> dict[str, str]:
    (found,) = [one for one in sheet.rows if one[0].startswith(start)]
    return dict(zip(sheet.header, found, strict=True))


def test_the_posters_rows_and_the_device_hours_that_follow(tmp_path: Path) -> None:
    sheet = table1_sheet([run_of(tmp_path / "run", {"train target": entry()})])
    assert row(sheet, "MPT-1.3B") | {"Time": "half d", "Device hours": "5,280"} == row(sheet, "MPT-1.3B")
    assert row(sheet, "OpenLLaMA-3B")["Device hours"] == f"{256 * 10 * 24:,}"
    assert row(sheet, "OpenLLaMA-3B")["Devices"] == "256 TPU v4"
    assert row(sheet, "OPT-1.3B")["Device hours"] == "–"
    assert row(sheet, "Our-1.5B")["Device hours"] == "~12"
    assert any("18 hours at the dense peak of an A6000" in note for note in sheet.notes)


def test_a_run_beside_them(tmp_path: Path) -> None:
    result = {"name": "half", "state": "done", "target": {"layers": 13, "parameters": 1_820_000_000}}
    reference = {"source": "openlm-research/open_llama_3b", "layers": 26, "parameters": 3_430_000_000}
    ledger = {"train target": entry(), "train random": entry(), "prepare": {"seconds": 90.0}}
    run = run_of(tmp_path / "run", ledger, result=result, reference=reference)
    sheet = table1_sheet([run], price_per_device_hour=2)
    target = row(sheet, "half: target")
    assert target == {
        "Model": "half: target",
        "Devices": "2 x NVIDIA H100",
        "Layers": "13",
        "Parameters": "1.82B",
        "Unique tokens": "500",
        "Tokens": "1,000",
        "FLOPs": "6.0e9",
        "Time": "1 h",
        "Device hours": "2",
        "MFU": "50.0%",
        "kWh": "1",
        "Peak GiB": "1.00",
        "Price": "4",
    }
    whole = row(sheet, "half: all trainings")
    assert (whole["Tokens"], whole["Device hours"], whole["Price"]) == ("2,000", "4", "8")
    own = row(sheet, "half: reference’s own")
    assert (own["Tokens"], own["Device hours"], own["Layers"]) == ("1.00T", "61,440", "26")
    assert any(note.startswith("half: 1 min 30 s of other work") for note in sheet.notes)


def test_energy_that_is_estimated_says_so(tmp_path: Path) -> None:
    guess = dataclasses.replace(
        TAKEN, measured_joules=0.0, estimated_joules=3.6e6, energy_sources=("estimated: 300 W, a data sheet",)
    )
    sheet = table1_sheet([run_of(tmp_path / "run", {"train target": entry(guess)}, result={"name": "x"})])
    assert row(sheet, "x: target")["kWh"] == "1 est."
    assert any("estimated: 300 W, a data sheet" in note for note in sheet.notes)
    assert any(note.startswith("est.:") for note in sheet.notes)


def test_a_reference_that_another_run_trained_brings_its_ledger(tmp_path: Path) -> None:
    made = run_of(tmp_path / "made", {"train reference": entry()})
    (made / "reference" / "model").mkdir(parents=True)
    reference = {"source": str(made / "reference" / "model"), "layers": 8}
    run = run_of(tmp_path / "run", {"train target": entry()}, result={"name": "x"}, reference=reference)
    own = row(table1_sheet([run]), "x: reference’s own")
    assert (own["Tokens"], own["Device hours"], own["FLOPs"]) == ("1,000", "2", "6.0e9")


def test_a_reference_that_the_run_trained_is_in_its_sum(tmp_path: Path) -> None:
    ledger = {"train reference": entry(), "train target": entry()}
    run = run_of(tmp_path / "run", ledger, result={"name": "x"}, reference={"source": "reference/model"})
    sheet = table1_sheet([run])
    assert row(sheet, "x: all")["Tokens"] == "2,000"
    assert not [one for one in sheet.rows if "reference’s own" in one[0]]


def test_a_run_that_is_not_over_is_marked(tmp_path: Path) -> None:
    run = run_of(tmp_path / "run", {}, result={"name": "x", "state": "preempted"})
    consumption.write(run, TAKEN)
    sheet = table1_sheet([run])
    assert row(sheet, "x: target")["Model"] == "x: target (under way)"
    assert row(sheet, "x: the same")["Model"].endswith("(so far: preempted)")
    assert row(sheet, "x: target")["Unique tokens"] == "–"


def test_runs_of_one_name_are_told_apart(tmp_path: Path) -> None:
    runs = [run_of(tmp_path / name, {"train target": entry()}, result={"name": "x"}) for name in "ab"]
    names = [cells[0] for cells in table1_sheet(runs).rows]
    assert f"x in {runs[0]}: target" in names
    assert f"x in {runs[1]}: target" in names


def test_the_command_prints_it(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {path: path.stat().st_mtime_ns for path in finished.rglob("*")}
    assert main(["report", "--table1", str(finished), "--price", "1.2"]) == 0
    printed = capsys.readouterr().out
    assert "OpenLLaMA-3B" in printed
    assert "tiny: target" in printed
    assert max(map(len, printed.splitlines())) <= 80
    assert "Left out for want of room" in printed
    assert main(["report", "--table1", str(finished), "--markdown"]) == 0
    assert capsys.readouterr().out == markdown_table1(table1_sheet([finished]))
    assert main(["report", "--table1", str(finished), "--latex"]) == 0
    printed = capsys.readouterr().out
    assert printed == latex_table1(table1_sheet([finished]))
    assert r"\toprule" in printed
    assert {path: path.stat().st_mtime_ns for path in finished.rglob("*")} == before, "nothing is written"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--table1", "{empty}"], "not a run directory"),
        (["--table1", "{empty}/none"], "not a run directory"),
        (["--table1", "{run}", "--price", "-1"], "--price -1: give 0 or more"),
        (["--table1", "{run}", "--price", "nan"], "--price cannot be 'nan'"),
        (["--table1", "{run}", "--price", "much"], "--price"),
        (["--table1", "{run}", "--markdown", "--latex"], "give one of them"),
        (["{run}", "--table1", "--svg"], "--table1 prints one table; leave out --svg"),
        (["{run}", "--price", "0"], "--price belongs to --table1"),
    ],
)
def test_what_cannot_be_is_refused_in_a_line(
    words: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    run = run_of(tmp_path / "run", {"train target": entry()})
    given = [word.format(empty=tmp_path / "empty", run=run) for word in words]
    assert main(["report", *given]) == 2
    captured = capsys.readouterr()
    assert said in captured.err
    assert captured.err.count("\n") == 1
    assert captured.out == ""
    assert not (run / "report.html").exists()


def test_an_entry_is_what_was_before_and_its_consumption() -> None:
    known: Record = {"steps": 1, "tokens": 2, "unique_tokens": 2, "tail_tokens": 0, "flops": 3.0, "seconds": 4.0}
    known |= {"skipped_steps": 0, "best_step": None, "compiled": False, "compute_dtype": "float32", "ranks": 1}
    known |= {"micro_batch_sequences": 1, "parallel": "none"}
    made = Trained(**known, consumption=TAKEN)
    assert made.entry() == known | {"consumption": TAKEN.record()}
    assert dataclasses.replace(made, abandoned=True).entry()["abandoned"] is True


def test_a_price_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(Refused, match="give 0 or more"):
        table1_sheet([tmp_path], price_per_device_hour=float("inf"))
