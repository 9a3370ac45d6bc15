"""Forecasts of a training's end: on curves of known law, on a real one, and how the study counts."""

from __future__ import annotations

import dataclasses
import importlib
import json
import math
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

import inheritune
from inheritune import abandonment
from inheritune.abandonment import Forecast, Schedule, cannot_reach, forecast
from inheritune.schedule import learning_rate

STUDY = Path(__file__).parents[1] / "studies" / "abandonment"
SCHEDULE = Schedule(steps=600, warmup_steps=30, peak=1e-3, final=1e-5)
Readings = list[tuple[int, float]]


def law(
    schedule: Schedule = SCHEDULE,
    *,
    drop: float = 0.3,
    power: float = 0.25,
    annealing: float = 0.05,
    noise: float = 0.0,
    every: int = 20,
    seed: int = 0,
) -> Readings:
    """A curve of the law that ends at 3 nats a token, with a bad start that no power of S1 describes."""
    decay = math.exp(-1 / (0.1 * schedule.steps))
    draw = np.random.default_rng(seed)
    curve = []
    for step in range(0, schedule.steps + 1, every):
        share = max(schedule.forward_area(step), 1e-9) / schedule.forward_area(schedule.steps)
        to_come = 1 - schedule.annealing_area(step, decay) / schedule.annealing_area(schedule.steps, decay)
        loss = 3 + drop * (min(share, 1) ** -power - 1) / power + annealing * to_come
        rate = learning_rate(step, steps=schedule.steps, warmup_steps=0, peak=1, final=0)
        curve.append((step, min(loss, 12.0) + 4 * math.exp(-step / 15) + noise * rate * draw.standard_normal()))
    return curve


def seen(curve: Readings, step: int) -> Readings:
    return [one for one in curve if one[0] <= step]


def found(
    curve: Readings,
    step: int,
    schedule: Schedule = SCHEDULE,
    *,
    earlier: list[tuple[Readings, Schedule]] | None = None,
    level: float = 0.99,
) -> Forecast:
    made = forecast(seen(curve, step), schedule, earlier=earlier or [], level=level)
    assert made is not None
    return made


def packaged() -> tuple[Readings, Schedule]:
    path = Path(inheritune.__file__).parent / "packaged" / "demo" / "training.jsonl"
    records = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    curve = [(one["step"], one["losses"]["held-out"]) for one in records if one["kind"] == "validation"]
    return curve, Schedule(steps=3418, warmup_steps=100, peak=2e-3, final=2e-5)


def test_areas_are_the_sums_that_the_paper_defines() -> None:
    schedule = Schedule(steps=12, warmup_steps=3, peak=1.0, final=0.1)
    rates = [learning_rate(step, steps=12, warmup_steps=3, peak=1.0, final=0.1) for step in range(12)]
    for step in (0, 1, 4, 7, 12):
        assert schedule.forward_area(step) == pytest.approx(sum(rates[:step]))
        falls = [0.0, *(max(0.0, rates[k - 1] - rates[k]) for k in range(1, step))]
        area = sum(falls[k] * 0.9 ** (i - k) for i in range(step) for k in range(i + 1))
        assert schedule.annealing_area(step, 0.9) == pytest.approx(area)


@pytest.mark.parametrize(
    "change",
    [{"steps": 0}, {"warmup_steps": -1}, {"peak": 0.0, "final": 0.0}, {"final": 1e-2}, {"final": -1e-5}],
)
def test_a_schedule_that_cannot_be_is_an_error(change: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="no schedule"):
        dataclasses.replace(SCHEDULE, **change)  # type: ignore[arg-type]


@pytest.mark.parametrize(("power", "annealing"), [(0.25, 0.05), (0.5, 0.15), (1.0, 0.0), (0.001, 0.3)])
def test_it_comes_to_the_end_of_a_curve_of_its_own_law(power: float, annealing: float) -> None:
    curve = law(power=power, annealing=annealing)
    early, late = found(curve, 300), found(curve, 540)
    assert early.low < 3 < early.high
    assert late.value == pytest.approx(3, abs=0.005)
    assert late.high - late.low < early.high - early.low


def test_what_remains_is_not_what_a_level_curve_would_leave() -> None:
    curve = law()
    made = found(curve, 300)
    assert seen(curve, 300)[-1][1] - made.value > 0.1


@settings(max_examples=12, deadline=None, derandomize=True)
@given(
    power=st.floats(0.05, 2),
    drop=st.floats(0, 1),
    annealing=st.floats(0, 0.25),
    noise=st.floats(0, 0.03),
    seed=st.integers(0, 99),
)
def test_no_look_abandons_a_curve_that_ends_within_a_hundredth(
    power: float, drop: float, annealing: float, noise: float, seed: int
) -> None:
    curve = law(power=power, drop=drop, annealing=annealing, noise=noise, seed=seed)
    final = curve[-1][1]
    for number in range(2, len(curve)):
        made = forecast(curve[:number], SCHEDULE)
        assert made is None or not cannot_reach(made, final + 0.01)


def test_a_packaged_training_ends_within_every_bound() -> None:
    curve, schedule = packaged()
    made = [forecast(curve[:number], schedule) for number in range(1, len(curve))]
    kept = [one for one in made if one is not None]
    assert len(kept) >= 8
    assert all(one.low <= curve[-1][1] <= one.high for one in kept)
    assert kept[-1].high - kept[-1].low < 0.1


def test_a_benchmark_out_of_reach_ends_it_and_one_in_reach_does_not() -> None:
    made = found(law(noise=0.01), 400)
    assert cannot_reach(made, 2.6)
    assert not cannot_reach(made, 3.0)
    assert not cannot_reach(dataclasses.replace(made, low=2.0), 2.0)


def test_a_bad_start_is_left_out() -> None:
    curve = law()
    worse = [(step, loss + (9.0 if step < 75 else 0.0)) for step, loss in curve]
    assert found(worse, 300) == found(curve, 300)
    assert found([(step, loss + (1.0 if step == 80 else 0)) for step, loss in curve], 300) != found(curve, 300)


def test_a_higher_level_goes_further_on_both_sides() -> None:
    curve = law(noise=0.02)
    narrow, wide = found(curve, 300, level=0.9), found(curve, 300, level=0.999)
    assert wide.low < narrow.low < narrow.value == wide.value < narrow.high < wide.high


def test_few_readings_have_long_tails() -> None:
    curve = law(every=40, noise=0.02)
    near, far = found(curve, 400, level=0.9), found(curve, 400, level=0.9999)
    assert far.value - far.low > 6 * (near.value - near.low)


def test_a_curve_without_noise_is_not_taken_at_its_word() -> None:
    made = found([(step, 3.0) for step in range(0, 601, 20)], 580)
    assert made.low < 2.994
    assert made.high > 3.006


def test_a_loss_that_rises_is_not_forecast_to_rise_on() -> None:
    made = found([(step, 3.0 + step / 1000) for step in range(0, 601, 20)], 300)
    assert made.value < 3.3


def test_later_readings_weigh_more() -> None:
    curve = law()
    early, late = (
        found([(step, loss + (0.02 * (-1) ** (step // 20) if lo <= step < hi else 0.0)) for step, loss in curve], 400)
        for lo, hi in ((100, 200), (300, 400))
    )
    assert late.value - late.low > 1.2 * (early.value - early.low)


def test_more_readings_than_count_do_not_narrow_it() -> None:
    sparse, dense = found(law(every=5, noise=0.02), 400), found(law(every=1, noise=0.02), 400)
    assert dense.value - dense.low > 0.7 * (sparse.value - sparse.low)


@pytest.mark.parametrize(
    ("curve", "schedule"),
    [
        ([], SCHEDULE),
        (seen(law(every=4), 148), SCHEDULE),  # before a quarter of the steps
        (seen(law(every=40), 320), SCHEDULE),  # 7 readings are left
        (law(), SCHEDULE),  # nothing remains
        (seen(law(every=4), 200), dataclasses.replace(SCHEDULE, warmup_steps=220)),
        (seen(law(), 500), dataclasses.replace(SCHEDULE, warmup_steps=900)),
        ([*seen(law(), 400), (420, math.nan)], SCHEDULE),
        ([*seen(law(), 400), (420, math.inf)], SCHEDULE),
    ],
)
def test_nothing_is_said_where_too_little_is_seen(curve: Readings, schedule: Schedule) -> None:
    assert forecast(curve, schedule) is None


def test_the_first_that_is_enough() -> None:
    assert forecast(seen(law(every=4), 152), SCHEDULE) is not None
    assert forecast(seen(law(every=40), 400), SCHEDULE) is not None


def test_order_and_repeated_steps_do_not_matter() -> None:
    curve = seen(law(), 300)
    assert forecast([(200, 99.0), *reversed(curve)], SCHEDULE) == forecast(curve, SCHEDULE)


@pytest.mark.parametrize("step", [-1, 601])
def test_a_step_outside_the_schedule_is_an_error(step: int) -> None:
    with pytest.raises(ValueError, match="in a training of 600"):
        forecast([*seen(law(), 300), (step, 3.0)], SCHEDULE)


@pytest.mark.parametrize("level", [0.5, 1.0])
def test_a_level_that_bounds_nothing_is_an_error(level: float) -> None:
    with pytest.raises(ValueError, match="level"):
        forecast(law()[:16], SCHEDULE, level=level)


def test_a_learning_rate_that_stays_is_forecast_without_annealing() -> None:
    schedule = dataclasses.replace(SCHEDULE, final=SCHEDULE.peak)
    curve = [(step, 3 + 0.3 * ((schedule.forward_area(step) or 1e-4) / schedule.forward_area(600)) ** -0.5 - 0.3)
             for step in range(0, 601, 20)]  # fmt: skip
    made = found(curve, 400, schedule)
    assert made.value == pytest.approx(3, abs=0.01)


def test_earlier_rounds_narrow_it_towards_their_annealing() -> None:
    curve = law(annealing=0.02, noise=0.005)
    alone = found(curve, 300)
    known = found(curve, 300, earlier=[(law(annealing=0.02, noise=0.005, drop=0.2, seed=1), SCHEDULE)])
    assert known.value - known.low < 0.7 * (alone.value - alone.low)
    assert abs(known.value - 3) < abs(alone.value - 3)
    assert (alone.calibrated_by, known.calibrated_by) == (0, 1)
    assert known.text.endswith(", calibrated by 1 earlier round")


def test_an_earlier_round_of_another_length_counts_by_its_share_of_the_steps() -> None:
    """It lost so much more that this is what bounds the round."""
    longer = dataclasses.replace(SCHEDULE, steps=1800)
    curve, before = law(drop=0.05), law(longer, drop=1.0, every=60)
    made = found(curve, 300, earlier=[(before, longer)])
    assert made.low == pytest.approx(dict(curve)[300] - (dict(before)[900] - before[-1][1]))


def test_an_earlier_round_without_its_end_says_nothing() -> None:
    curve = law()
    whole = law(seed=1, annealing=0.0)
    assert found(curve, 300, earlier=[(whole[:-1], SCHEDULE)]) == found(curve, 300)
    assert found(curve, 300, earlier=[([], SCHEDULE)]) == found(curve, 300)
    assert found(curve, 300, earlier=[([*whole[:-1], (600, math.nan)], SCHEDULE)]) == found(curve, 300)
    assert found(curve, 300, earlier=[(whole, SCHEDULE)]) != found(curve, 300)


def test_what_an_earlier_round_still_lost_this_one_may_lose() -> None:
    curve = law(annealing=0.0)
    kinked = [(step, loss - (2.0 if step > 500 else 0.0)) for step, loss in law(annealing=0.0, seed=1)]
    made = found(curve, 300, earlier=[(kinked, SCHEDULE)])
    lost = dict(kinked)[300] - kinked[-1][1]
    assert lost > 2
    assert made.low <= dict(curve)[300] - lost + 1e-9


@pytest.mark.parametrize("times", [1, 3])
def test_a_bound_that_failed_an_earlier_round_is_widened(times: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its fall at the end breaks the bound that stood at 400, and is less than what would bind by itself."""
    curve = law(noise=0.002)
    schedule = dataclasses.replace(SCHEDULE, steps=600 * times, warmup_steps=30 * times)
    before = law(schedule, noise=0.002, drop=0.05, seed=1, every=20 * times)
    broken = [(step, loss - (0.06 if step > 500 * times else 0.0)) for step, loss in before]
    widened = found(curve, 400, earlier=[(broken, schedule)])
    monkeypatch.setattr(abandonment, "_excesses", lambda *_: [])
    plain = found(curve, 400, earlier=[(broken, schedule)])
    assert plain.value == widened.value
    assert widened.value - widened.low > 1.2 * (plain.value - plain.low)
    assert widened.high - widened.value > 1.2 * (plain.high - plain.value)


def test_a_forecast_is_what_json_can_hold() -> None:
    made = found(law(), 300, earlier=[(law(seed=1), SCHEDULE)])
    assert json.loads(json.dumps(dataclasses.asdict(made))) == dataclasses.asdict(made)
    assert made.text.startswith(f"after 300 of 600 steps a final loss of {made.value:.4f} nats a token is expected")


@pytest.fixture
def judge(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ModuleType:
    """The study's program, with nothing that it was fitted on."""
    monkeypatch.syspath_prepend(str(STUDY))
    module = importlib.import_module("judge")
    (tmp_path / "fitted.txt").write_text("# none\n\n", encoding="utf-8")
    monkeypatch.setattr(module, "FITTED", tmp_path / "fitted.txt")
    return module


@pytest.mark.parametrize(
    ("k", "m", "interval"),
    [  # zero: 1 - 0.025^(1/m); 2 of 10 from the tables of the binomial distribution
        (0, 72, (0.0, 1 - 0.025 ** (1 / 72))),
        (5, 5, (0.025 ** (1 / 5), 1.0)),
        (2, 10, (0.02521, 0.55610)),
    ],
)
def test_the_interval_is_clopper_and_pearsons(judge: ModuleType, k: int, m: int, interval: tuple[float, float]) -> None:
    assert judge.exact_interval(k, m) == pytest.approx(interval, abs=1e-5)


def write_run(folder: Path, curve: Readings, schedule: Schedule = SCHEDULE, *, recipe: bool = True) -> None:
    folder.mkdir(parents=True)
    train = {"learning_rate": [3e-3, schedule.peak], "final_learning_rate": schedule.final}
    if recipe:
        (folder / "recipe.yaml").write_text(
            json.dumps({"train": {**train, "warmup_steps": schedule.warmup_steps}}), encoding="utf-8"
        )
    records: list[dict[str, object]] = [
        {"kind": "validation", "step": step, "losses": {"held-out": loss, "development": 9.0}} for step, loss in curve
    ]
    rates = dataclasses.asdict(schedule)
    records += [
        {"kind": "step", "step": step, "learning_rate": learning_rate(step - 1, **rates)}
        for step in range(10, curve[-1][0] + 1, 10)
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(one) + "\n" for one in records), encoding="utf-8")


def test_the_study_reads_runs_and_tells_what_it_leaves_out(judge: ModuleType, tmp_path: Path) -> None:
    run = tmp_path / "run"
    write_run(run, law(seed=1))
    write_run(run / "controls" / "random", law(noise=0.01), recipe=False)
    write_run(run / "controls" / "killed", law()[:-3], recipe=False)
    for layers in (8, 12):
        write_run(run / "rounds" / str(layers), law(drop=layers / 30), recipe=False)
    write_run(run / "rounds" / "8-seed-1", law(drop=0.77), recipe=False)
    write_run(run / "copy", law(drop=12 / 30), recipe=False)
    write_run(tmp_path / "elsewhere", law(seed=3), recipe=False)
    curves, left_out = judge.collected([run, tmp_path / "elsewhere"], None)
    assert {one.name: len(one.earlier) for one in curves} == {
        "run/rounds/8": 0, "run/rounds/8-seed-1": 1, "run/rounds/12": 1, "run": 0, "run/controls/random": 0,
    }  # fmt: skip
    assert curves[-1].schedule == SCHEDULE
    assert [line.split(": ", 1)[1] for line in left_out] == [
        "the same curve as another",
        "its learning rates are not those of a training that ends at step 540",
        "no recipe.yaml above it",
    ]


def test_the_packaged_training_is_read_with_its_own_recipe(judge: ModuleType) -> None:
    curves, left_out = judge.collected([Path(inheritune.__file__).parent / "packaged" / "demo"], None)
    assert left_out == []
    assert (curves[0].readings, curves[0].schedule) == packaged()


def test_a_curve_counts_once_and_none_that_was_fitted(
    judge: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for seed in range(3):
        write_run(tmp_path / f"run{seed}", law(seed=seed, noise=0.01))
    fitted = judge.Curve("any", [(step, round(loss, 12)) for step, loss in law(seed=1, noise=0.01)], SCHEDULE).digest
    judge.FITTED.write_text(f"{fitted} the one of seed 1\n", encoding="utf-8")
    runs = [str(tmp_path / f"run{seed}") for seed in range(3)]
    monkeypatch.setattr("sys.argv", ["judge.py", *runs, "--simulated", "2", "--out", str(tmp_path / "out.json")])
    judge.main()
    printed = capsys.readouterr().out
    record = json.loads((tmp_path / "out.json").read_text(encoding="utf-8"))
    assert [one["m"] for one in record["real"]["false_abandonments"]] == [2, 2, 2, 2]
    assert [one["fitted"] for one in record["curves"]] == [False, True, False]
    assert "run1 (fitted)" in printed
    assert printed.index("SIMULATED") > printed.index("Not counted, since the rule was fitted on them: 1.")


def test_any_look_is_enough_to_have_abandoned(judge: ModuleType) -> None:
    curve = judge.Curve("c", [(0, 4.0), (100, 3.0)], Schedule(100, 0, 1.0, 0.0))
    bounds: list[tuple[int, float]] = [(40, 2.5), (60, 3.04), (80, 2.0)]
    curve.looks = [Forecast(step, 3.0, low, 3.5, 0.99, 0, "") for step, low in bounds]
    unseen = judge.Curve("u", [(0, 4.0), (100, 3.0)], Schedule(100, 0, 1.0, 0.0))
    record = judge.judged([curve, unseen])
    assert [(one["k"], one["m"]) for one in record["false_abandonments"]] == [(1, 1), (1, 1), (1, 1), (0, 1)]
    assert [one["saved_share"] for one in record["savings"]] == pytest.approx([0.4, 0.4, 0.4, 0.4])
    assert record["too_little_seen"] == ["u"]
    assert judge.held(curve.looks[0], 3.0)
    assert not judge.held(curve.looks[1], 3.0)
    assert curve.at(0.75) is curve.looks[1]


def test_simulated_curves_differ_and_repeat(judge: ModuleType) -> None:
    first, again = judge.simulated(3), judge.simulated(3)
    assert [one.readings for one in first] == [one.readings for one in again]
    assert len({one.final for one in first}) == 3
