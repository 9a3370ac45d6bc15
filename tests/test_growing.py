"""The full-data recipe on a tiny reference: rounds, verdicts, going on, controls, and what it refuses."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from inheritune import cli, pipeline
from inheritune.abandonment import Forecast
from inheritune.config import Recipe
from inheritune.decision import Verdict, decide
from inheritune.errors import Failed, Interrupted, Refused
from inheritune.pipeline import growing
from inheritune.report import table4_rows, table_rows
from inheritune.report.numbers import duration
from inheritune.report.records import records_of
from inheritune.run_directory import read_json, read_jsonl
from test_pipeline import Silent, recipe, text

__all__ = ["text"]  # a fixture

KEYS = {
    "model_type": "llama",
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 32,
    "tie_word_embeddings": True,
}
STILL = ("--train.learning_rate", "1e-12")
"""A target stays what it inherits, so only the whole reference matches itself."""
BESIDE = ("--controls", "[random, cut, last, random@2]")
"""Where all layers are inherited, the last are the target's own: that control is left out."""


@pytest.fixture(scope="module")
def taught(text: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A reference of 4 layers that has learnt something."""
    flags = ["--reference", "null", "--controls", "[]", "--architecture.vocabulary", "300", "--data.tokens", "8000"]
    made = recipe(text, text, *flags, "--architecture.config", json.dumps(KEYS), "--train.learning_rate", "1e-2")
    out = tmp_path_factory.mktemp("taught") / "run"
    pipeline.run(made, out, console=Silent())
    return out / "model"


def growing_recipe(reference: Path, text: Path, *flags: str, **grow: Any) -> Recipe:
    """The tiny recipe, as one that grows."""
    settings = {"start": 2, "step": 1, "tolerance_nats": 1e-4, "pilot_steps": 0, **grow}
    return recipe(reference, text, "--grow", json.dumps(settings), "--controls", "[]", *flags)


def tensors(directory: Path) -> dict[str, torch.Tensor]:
    return dict(AutoModelForCausalLM.from_pretrained(directory).state_dict())


def forced(monkeypatch: pytest.MonkeyPatch, *matched: bool) -> None:
    """Let the verdicts be these, one after the other."""
    answers = iter(matched)

    def judge(*losses: Any, **settings: Any) -> Verdict:
        return dataclasses.replace(decide(*losses, **settings), matched=next(answers))

    monkeypatch.setattr(growing, "decide", judge)


@pytest.fixture(scope="module")
def grown(taught: Path, text: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that fails with 2 and 3 layers, and matches with all 4."""
    out = tmp_path_factory.mktemp("grown") / "run"
    pipeline.run(growing_recipe(taught, text, *STILL, *BESIDE), out, console=Silent())
    return out


def test_it_grows_until_the_reference_is_matched(grown: Path) -> None:
    result, records = read_json(grown / "result.json"), read_jsonl(grown / "growth.jsonl")
    assert [record["layers"] for record in records] == [2, 3, 4]
    assert [record["verdict"]["matched"] for record in records] == [False, False, True]
    assert (result["matched"], result["target"]["layers"]) == (True, 4)
    assert result["benchmark"] == result["reference"]["validation_loss"]
    assert result["target"]["validation_loss"] == pytest.approx(result["benchmark"], abs=1e-4)
    assert [record["validation_loss"] for record in records] == [
        one["validation_loss"] for one in result["growth"]["rounds"]
    ]
    assert (
        "4 of 4 layers match the reference, after 3 rounds: it is as deep as the reference, nothing was cut;"
        in (result["verdict"])
    )
    assert "these weights" in result["verdict"]


def test_a_round_is_recorded_with_its_curve_and_its_cost(grown: Path) -> None:
    ledger = read_json(grown / "ledger.json")
    for record in read_jsonl(grown / "growth.jsonl"):
        entry = ledger[f"train round-{record['layers']}"]
        assert (record["steps"], record["tokens"], record["flops"]) == (31, entry["tokens"], entry["flops"])
        assert [step for step, _ in record["curve"]] == [0, 10, 20, 30, 31]
        assert record["parameters"] > 0
        losses = read_json(grown / "losses" / f"round-{record['layers']}.json")["sets"]["held-out"]
        assert record["validation_loss"] == pytest.approx(sum(losses["nats"]) / sum(losses["tokens"]))
    result = read_json(grown / "result.json")
    assert result["growth"]["flops"] == sum(r["flops"] for r in read_jsonl(grown / "growth.jsonl"))


def test_the_table_has_the_targets_training_time(grown: Path) -> None:
    ledger = read_json(grown / "ledger.json")
    (row,) = [one for one in table_rows(read_json(grown / "result.json"), ledger) if one.label == "Training time"]
    assert duration(ledger["train round-4"]["seconds"]) in row.cells
    assert row.cells.count("–") == 2, "the reference's and the cut's"


def test_the_verdict_is_about_the_documents(grown: Path) -> None:
    import numpy as np

    record = read_jsonl(grown / "growth.jsonl")[0]
    sets = [read_json(grown / "losses" / f"{name}.json")["sets"]["held-out"] for name in ("round-2", "reference")]
    target, reference, tokens = (np.asarray(x, float) for x in (sets[0]["nats"], sets[1]["nats"], sets[0]["tokens"]))
    assert record["verdict"]["difference"] == pytest.approx((target - reference).sum() / tokens.sum())
    assert (record["verdict"]["rounds"], record["verdict"]["margin"]) == (3, 1e-4)
    assert record["verdict"] == dataclasses.asdict(decide(target, reference, tokens, margin=1e-4, rounds=3))


def test_the_target_is_the_round_that_matched(grown: Path, taught: Path) -> None:
    ours, theirs = tensors(grown / "model"), tensors(taught)
    assert all(torch.allclose(ours[name], theirs[name], atol=1e-6) for name in theirs)
    assert (grown / "metrics.jsonl").read_bytes() == (grown / "rounds" / "4" / "metrics.jsonl").read_bytes()
    account = read_json(grown / "inheritance.json")
    assert account["lineage"]["layers_kept"] == [0, 1, 2, 3]
    assert not list(grown.glob("rounds/*/checkpoints"))


def test_controls_stand_beside_the_last_depth_or_their_own(grown: Path) -> None:
    controls = read_json(grown / "result.json")["controls"]
    assert {name: control["layers"] for name, control in controls.items()} == {"random": 4, "cut": 4, "random@2": 2}
    assert (grown / "report.html").exists()


def test_stopped_anywhere_it_ends_in_the_same_bytes(grown: Path, taught: Path, text: Path, tmp_path: Path) -> None:
    made = growing_recipe(taught, text, *STILL, *BESIDE)
    for steps in (7, 40, 31, 31):
        with pytest.raises(Interrupted):
            pipeline.run(made, tmp_path / "run", console=Silent(stop_after=steps))
    console = Silent()
    pipeline.run(made, tmp_path / "run", console=console)
    for file in ("result.json", "model/model.safetensors"):
        assert (tmp_path / "run" / file).read_bytes() == (grown / file).read_bytes()
    told = [
        [
            {key: value for key, value in record.items() if key != "seconds"}
            for record in read_jsonl(out / "growth.jsonl")
        ]
        for out in (tmp_path / "run", grown)
    ]
    assert told[0] == told[1]
    assert not any("Training the target of 2 layers" in line for line in console.lines)


def test_no_match_is_said_and_the_best_kept(taught: Path, text: Path, tmp_path: Path) -> None:
    made = growing_recipe(taught, text, *STILL, most=3)
    result = pipeline.run(made, tmp_path / "run", console=Silent())
    assert result["matched"] is False
    losses = {one["layers"]: one["validation_loss"] for one in read_jsonl(tmp_path / "run" / "growth.jsonl")}
    best = min(losses, key=lambda layers: losses[layers])
    assert result["target"]["layers"] == best
    assert (
        f"No target matches the reference (2, 3 of 4 layers were tried); the best has {best} layers"
        in result["verdict"]
    )


def test_a_match_with_all_layers_is_no_smaller_model(taught: Path, text: Path, tmp_path: Path) -> None:
    console = Silent()
    made = growing_recipe(taught, text, "--train.max_steps", "3", start=4, tolerance_nats=9.0)
    pipeline.run(made, tmp_path / "run", console=console, until="train")
    assert "matched by 4 layers (all that it has, so nothing was cut): " in console.lines[-1]


def test_a_superior_target_must_be_better(taught: Path, text: Path, tmp_path: Path) -> None:
    made = growing_recipe(taught, text, *STILL, start=4, margin="superior")
    assert pipeline.run(made, tmp_path / "run", console=Silent())["matched"] is False


def test_a_match_is_repeated_with_other_seeds(
    taught: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forced(monkeypatch, True, True, False, True, True, True)
    made = growing_recipe(taught, text, "--train.max_steps", "4", decision_seeds=3)
    result = pipeline.run(made, tmp_path / "run", console=Silent())
    records = read_jsonl(tmp_path / "run" / "growth.jsonl")
    assert [(one["layers"], one["seed"]) for one in records] == [(2, 0), (2, 1), (2, 2), (3, 0), (3, 1), (3, 2)]
    assert result["target"]["layers"] == 3
    assert result["growth"]["seeds"]["matched"]
    assert "3 of 3 training seeds match" in result["verdict"]
    assert len({one["validation_loss"] for one in records if one["layers"] == 3}) == 3, "another order of the data"
    same = tensors(tmp_path / "run" / "model"), tensors(tmp_path / "run" / "rounds" / "3" / "model")
    assert all(torch.equal(same[0][name], same[1][name]) for name in same[0])


def test_the_runs_model_is_that_of_its_round_even_if_it_was_another(
    taught: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forced(monkeypatch, True)
    made, run = growing_recipe(taught, text), tmp_path / "run"
    pipeline.run(made, run, console=Silent())
    weights = run / "model" / "model.safetensors"
    expected = weights.read_bytes()
    weights.unlink()  # it is linked with the round's
    weights.write_bytes(expected[:-1] + b"!")
    (run / "result.json").unlink()
    pipeline.run(made, run, console=Silent())
    assert weights.read_bytes() == expected


def test_warm_growth_keeps_what_was_trained(
    taught: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forced(monkeypatch, False, True)
    made = growing_recipe(taught, text, growth="warm", warm_steps=9)
    target = pipeline.run(made, tmp_path / "run", console=Silent())["target"]
    records = read_jsonl(tmp_path / "run" / "growth.jsonl")
    assert [(one["growth"], one["steps"]) for one in records] == [("cold", 31), ("warm", 9)]
    # its weights went through both rounds
    assert (target["steps"], target["tokens_trained"]) == (40, sum(one["tokens"] for one in records))
    assert target["flops"] == sum(one["flops"] for one in records)
    assert target["passes"] == target["tokens_trained"] / target["unique_tokens"]
    # what the second round starts from, composed here: the first round's model with the reference's third block
    whole = AutoModelForCausalLM.from_pretrained(taught)
    below = AutoModelForCausalLM.from_pretrained(tmp_path / "run" / "rounds" / "2" / "model")
    whole.model.layers = torch.nn.ModuleList([*below.model.layers, whole.model.layers[2]])
    whole.model.embed_tokens, whole.model.norm, whole.lm_head = (
        below.model.embed_tokens,
        below.model.norm,
        below.lm_head,
    )
    import numpy as np

    tokens = np.fromfile(tmp_path / "run" / "data" / "held-out" / "00000.ds", "<u2").astype(np.int64)
    end = read_json(tmp_path / "run" / "data" / "manifest.json")["tokenizer"]["end_of_text"]
    stream, total = np.concatenate([[end], tokens]), 0.0
    for start in range(0, len(tokens), 32):
        piece = torch.from_numpy(stream[start : start + 33])[None]
        with torch.no_grad():
            logits = whole(piece[:, :-1], use_cache=False).logits.float()
        total += float(torch.nn.functional.cross_entropy(logits[0], piece[0, 1:], reduction="sum"))
    assert records[1]["curve"][0] == [0, pytest.approx(total / len(tokens), rel=1e-5)]


@pytest.mark.parametrize("growth", ["cold", "warm"])
def test_a_round_without_hope_is_abandoned(
    growth: str, taught: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[int, int, float]] = []

    def foretold(curve: Any, schedule: Any, *, earlier: Any) -> Forecast:
        seen.append((curve[-1][0], schedule.steps, len(earlier)))
        return Forecast(curve[-1][0], 9.0, 8.0, 10.0, 0.99, len(earlier), "will end at 8.0 at least")

    monkeypatch.setattr(growing, "forecast", foretold)
    monkeypatch.setattr(growing, "cannot_reach", lambda _found, _wanted: len(seen) == 2)
    forced(monkeypatch, True)
    made = growing_recipe(taught, text, abandon="auto", growth=growth)
    result = pipeline.run(made, tmp_path / "run", console=Silent())
    first, second = read_jsonl(tmp_path / "run" / "growth.jsonl")
    assert (first["state"], first["verdict"], first["steps"], first["planned_steps"]) == ("abandoned", None, 20, 31)
    assert first["forecast"]["text"] == "will end at 8.0 at least"
    assert first["tokens"] == 20 * 8 * 32
    assert first["curve"][-1][0] == 20
    assert first["flops"] < 0.8 * second["flops"] or growth == "warm"
    assert (tmp_path / "run" / "rounds" / "2" / "stopped").exists() == (growth == "warm")
    assert not (tmp_path / "run" / "losses" / "round-2.json").exists()
    assert result["target"]["layers"] == 3
    assert second["growth"] == growth


def test_if_every_round_is_abandoned_it_says_so(
    taught: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        growing, "forecast", lambda curve, *_, **__: Forecast(curve[-1][0], 9.0, 8.0, 10.0, 0.99, 0, "no")
    )
    monkeypatch.setattr(growing, "cannot_reach", lambda *_: True)
    flags = ("--controls", "[random, cut]")
    for until in ("report", "train"):
        with pytest.raises(Failed, match="every round was abandoned"):
            pipeline.run(
                growing_recipe(taught, text, *flags, abandon="auto"), tmp_path / "run", console=Silent(), until=until
            )


def test_killed_after_a_checkpoint_the_watch_is_asked_first(
    taught: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Validation and checkpoint fall on one step; SIGTERM comes with it, and going on must not train on unasked."""
    hopeless = Forecast(10, 9.0, 8.0, 10.0, 0.99, 0, "no")
    monkeypatch.setattr(growing, "forecast", lambda *_, **__: hopeless)
    monkeypatch.setattr(growing, "cannot_reach", lambda *_: True)
    forced(monkeypatch, True)
    flags = ("--train.checkpoint_every_steps", "10")
    made = growing_recipe(taught, text, *flags, abandon="auto", most=2)
    with pytest.raises(Interrupted):
        pipeline.run(made, tmp_path / "run", console=Silent(stop_after=10))
    with pytest.raises(Failed, match="every round was abandoned"):
        pipeline.run(made, tmp_path / "run", console=Silent())
    record = read_jsonl(tmp_path / "run" / "growth.jsonl")[0]
    assert (record["state"], record["steps"]) == ("abandoned", 10)


def test_inits_other_than_inherit_grow_too(taught: Path, text: Path, tmp_path: Path) -> None:
    for init in ("stack", "attention+block_norms"):
        cut = ("--controls", "[cut]") if init == "stack" else ()
        made = growing_recipe(taught, text, *cut, "--inherit.init", init, "--train.max_steps", "4", tolerance_nats=9.0)
        result = pipeline.run(made, tmp_path / init, console=Silent())
        account = read_json(tmp_path / init / "inheritance.json")
        assert (account["init"], result["target"]["layers"]) == (init, 2)
        assert ("fresh" in {tensor["status"] for tensor in account["tensors"]}) == (init != "stack")


def test_data_that_ends_before_max_steps_is_the_schedule(
    taught: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    monkeypatch.setattr(growing, "forecast", lambda _curve, schedule, **_: seen.append(schedule.steps))
    made = growing_recipe(taught, text, "--train.max_steps", "999", abandon="auto", tolerance_nats=9.0)
    pipeline.run(made, tmp_path / "run", console=Silent(), until="train")
    assert set(seen) == {31}
    assert read_jsonl(tmp_path / "run" / "growth.jsonl")[0]["planned_steps"] == 31


def test_from_an_architecture_the_reference_is_trained_first(text: Path, tmp_path: Path) -> None:
    flags = ["--reference", "null", "--architecture.vocabulary", "300", "--architecture.config", json.dumps(KEYS)]
    made = growing_recipe(text, text, *flags, "--controls", "[random]", tolerance_nats=1e-9, pilot_steps=99)
    reusable = f"another --out, with reference: {tmp_path / 'run' / 'reference' / 'model'} instead of the architecture"
    with pytest.raises(Refused, match=re.escape(reusable)):
        pipeline.run(made, tmp_path / "run", console=Silent())
    assert read_json(tmp_path / "run" / "ledger.json")["pilot"]["steps"] == 31, "a pilot is no longer than T"
    other = dataclasses.replace(made, train=dataclasses.replace(made.train, learning_rate=1e-3))
    with pytest.raises(Refused, match=r"train.learning_rate: 0.005 there, 0.001 here"):
        pipeline.run(other, tmp_path / "run", console=Silent())
    made = growing_recipe(text, text, *flags, "--controls", "[random]", tolerance_nats=2.0)
    result = pipeline.run(made, tmp_path / "run", console=Silent())
    assert (result["reference"]["layers"], result["target"]["layers"]) == (4, 2)
    assert result["reference"]["flops"] > result["target"]["flops"]
    assert result["reference"]["steps"] == result["target"]["steps"] == 31
    assert result["reference"]["initialisation"] == "random"
    last = [one for one in read_jsonl(tmp_path / "run" / "reference" / "metrics.jsonl") if one["kind"] == "validation"][
        -1
    ]
    assert last["losses"]["held-out"] == pytest.approx(result["benchmark"], rel=1e-4)
    (tmp_path / "run" / "result.json").unlink()
    shutil.rmtree(tmp_path / "run" / "reference" / "model")
    with pytest.raises(Failed, match=r"reference/model: this run trained its reference there, and it is gone"):
        pipeline.run(made, tmp_path / "run", console=Silent())


def test_the_layers_of_a_round_under_way_stay_what_they_are(taught: Path, text: Path, tmp_path: Path) -> None:
    class Stopping(Silent):
        def progress(self, step: Any, later: int = 0) -> None:
            if step.step == 3:
                os.kill(os.getpid(), signal.SIGINT)

    run = tmp_path / "run"
    with pytest.raises(Interrupted):
        pipeline.run(growing_recipe(taught, text), run, console=Stopping())
    assert list(run.glob("rounds/*/metrics.jsonl"))
    with pytest.raises(Refused, match=r"grow\.choice: 'first' there, 'last' here, and a round is under way"):
        pipeline.run(growing_recipe(taught, text, choice="last"), run, console=Silent())


def test_a_pilot_foresees_what_can_be_resolved(taught: Path, text: Path, tmp_path: Path) -> None:
    made = growing_recipe(taught, text, tolerance_nats=1e-6, pilot_steps=4)
    with pytest.raises(
        Refused,
        match=r"grow.tolerance_nats: 1e-06 is too small: \d+ documents of .*; [\d.]+ goes on in this directory, 1e-06 "
        r"takes about [\d,]+ documents \(data.validation_share, .*\) in another --out$",
    ):
        pipeline.run(made, tmp_path / "run", console=Silent())
    # what was prepared is kept, and the same directory takes another tolerance
    prepared = (tmp_path / "run" / "data" / "manifest.json").stat().st_mtime_ns
    made = growing_recipe(taught, text, tolerance_nats=0.5, pilot_steps=4)
    console = Silent()
    pipeline.run(made, tmp_path / "run", console=console, until="train")
    assert (tmp_path / "run" / "data" / "manifest.json").stat().st_mtime_ns == prepared
    with pytest.raises(Refused, match="another recipe"):
        pipeline.run(
            growing_recipe(taught, text, tolerance_nats=0.4, pilot_steps=4), tmp_path / "run", console=Silent()
        )
    pilot = read_json(tmp_path / "run" / "pilot.json")
    assert 0 < pilot["half_width"] < 0.5
    assert not (tmp_path / "run" / "pilot").exists()
    assert read_json(tmp_path / "run" / "ledger.json")["pilot"]["steps"] == 4
    assert any("resolve differences of about" in line for line in console.lines)


@pytest.mark.parametrize(
    ("grow", "flags", "said"),
    [
        ({"start": 5}, (), "grow.start: 5 is not possible, the reference has 4 layers"),
        ({"step": 0}, (), "grow.step is 0"),
        ({"tolerance_nats": 0}, (), "grow.tolerance_nats is 0"),
        ({"tolerance_nats": -1}, (), "grow.tolerance_nats is -1"),
        ({}, ("--train.max_steps", "0"), "train.max_steps is 0"),
        ({"most": 1}, (), "grow.most: 1"),
        ({"growth": "warm", "choice": "last"}, (), "cold with grow.choice last"),
        ({"growth": "warm"}, ("--inherit.init", "stack"), "cold with inherit.init stack"),
        ({"warm_steps": 9}, (), "grow.warm_steps is 9; allowed: null where grow.growth is cold"),
        ({"growth": "warm", "warm_steps": 2}, (), "grow.warm_steps is 2; allowed: more than train.warmup_steps"),
        ({}, ("--inherit.layers", "2"), "inherit.layers is 2"),
        ({}, ("--controls", "[random@5]"), "controls: random@5 is not possible, the reference has 4 layers"),
        ({"decision_seeds": 0}, (), "grow.decision_seeds is 0"),
        ({"alpha": 0}, (), "grow.alpha is 0"),
        ({"margin": "equal"}, (), "grow"),
        ({}, ("--train.max_steps", "2"), "train.warmup_steps is 2; allowed: fewer than train.max_steps (2)"),
        ({"growth": "warm"}, ("--train.max_steps", "5"), "left out it is half of train.max_steps, 2"),
        ({"growth": "warm", "warm_steps": 7}, ("--train.max_steps", "6"), "at most train.max_steps (6)"),
    ],
)
def test_what_is_refused_leaves_nothing(
    grow: dict[str, Any], flags: tuple[str, ...], said: str, taught: Path, text: Path, tmp_path: Path
) -> None:
    with pytest.raises(Refused) as refused:
        pipeline.run(growing_recipe(taught, text, *flags, **grow), tmp_path / "run", console=Silent())
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "run").exists()


def test_a_late_refusal_keeps_what_was_prepared(taught: Path, text: Path, tmp_path: Path) -> None:
    unknown = ("--data.tokens", "null")  # how many there are, and so how many steps, is known once they are prepared
    made = growing_recipe(taught, text, *unknown, growth="warm", warm_steps=10**6)
    with pytest.raises(Refused, match=r"at most the [0-9]+ of the first round") as refused:
        pipeline.run(made, tmp_path / "run", console=Silent())
    steps = int(str(refused.value).rpartition("at most the ")[2].split()[0])
    prepared = (tmp_path / "run" / "data" / "manifest.json").stat().st_mtime_ns
    made = growing_recipe(taught, text, *unknown, "--train.warmup_steps", str(steps // 2 + 1), growth="warm")
    said = f"warm_steps: {steps // 2}, half of the first round's where none is given, is not possible"
    with pytest.raises(Refused, match=said):
        pipeline.run(made, tmp_path / "run", console=Silent())
    made = growing_recipe(taught, text, *unknown, growth="warm", warm_steps=4, tolerance_nats=9.0)
    assert pipeline.run(made, tmp_path / "run", console=Silent())["matched"]
    assert (tmp_path / "run" / "data" / "manifest.json").stat().st_mtime_ns == prepared
    flags = (*unknown, "--train.warmup_steps", "3")
    made = growing_recipe(taught, text, *flags, growth="warm", warm_steps=4, tolerance_nats=9.0)
    with pytest.raises(Refused, match=r"train.warmup_steps: 2 there, 3 here"):
        pipeline.run(made, tmp_path / "run", console=Silent())


@pytest.mark.parametrize(("documents", "said"), [(1, "1 validation document says"), (3, "3 validation documents say")])
def test_documents_too_few_for_any_tolerance(documents: int, said: str, taught: Path, text: Path) -> None:
    run: Any = SimpleNamespace(recipe=growing_recipe(taught, text))
    growth = growing.Growing(run, Any, Any, (2,), 31, 1)  # type: ignore[arg-type]
    with pytest.raises(Refused, match=f"{said} nothing of others; give many more .* in another --out"):
        growth._check_resolution({"half_width": None, "documents": documents})


def test_another_reference_in_the_directory_is_refused(grown: Path, llama_directory: Path, text: Path) -> None:
    before = (grown / "result.json").read_bytes()
    with pytest.raises(Refused, match="another recipe"):
        pipeline.run(growing_recipe(llama_directory, text, *STILL), grown, console=Silent())
    assert (grown / "result.json").read_bytes() == before


def test_growth_is_said_first_of_what_a_directory_holds(grown: Path, taught: Path, text: Path, tmp_path: Path) -> None:
    alone = recipe(taught, text, "--train.max_steps", "7")
    with pytest.raises(Refused, match=r"run: holds a run that grows; choose another --out"):
        pipeline.run(alone, grown, console=Silent())
    pipeline.run(alone, tmp_path / "run", console=Silent(), until="prepare")
    with pytest.raises(Refused, match=r"run: holds a run without growth; choose another --out"):
        pipeline.run(growing_recipe(taught, text), tmp_path / "run", console=Silent())


def going_on(grown: Path, out: Path) -> Path:
    """A copy of the run that has its rounds and its controls, and no result yet."""
    shutil.copytree(grown, out)
    (out / "result.json").unlink()
    return out


def append(run: Path) -> None:
    with (run / "growth.jsonl").open("a") as file:
        file.write('{"round": 3}\n')


def elsewhere(run: Path) -> None:
    """A record whose directory lies outside of the run."""
    records = read_jsonl(run / "growth.jsonl")
    records[1]["directory"] = ".."
    (run / "growth.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))


def no_losses(run: Path) -> None:
    (run / "losses" / "reference.json").write_text("{}")


def a_value_less(run: Path) -> None:
    record = read_json(run / "losses" / "reference.json")
    record["sets"]["held-out"]["nats"].pop()
    (run / "losses" / "reference.json").write_text(json.dumps(record))


def not_a_number(run: Path) -> None:
    record = read_json(run / "losses" / "round-3.json")
    record["sets"]["held-out"]["nats"][0] = float("nan")
    (run / "losses" / "round-3.json").write_text(json.dumps(record))


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (append, r"growth.jsonl:4: no record of a round, \w+ is missing; remove the line"),
        (elsewhere, r"growth.jsonl:2: no record of a round, directory is damaged; remove the line"),
        (no_losses, r"losses/reference.json: damaged, .*; delete it and give the same command again"),
        (a_value_less, r"losses/reference.json: damaged, nats of held-out is no list of \d+ values, .*; delete it"),
        (not_a_number, r"losses/round-3.json: damaged, nats of held-out holds what is no number; delete it"),
    ],
)
def test_a_damaged_record_is_named_before_anything_is_trained(
    spoil: Callable[[Path], None], said: str, grown: Path, taught: Path, text: Path, tmp_path: Path
) -> None:
    run = going_on(grown, tmp_path / "run")
    spoil(run)
    console = Silent()
    with pytest.raises(Failed, match=said):
        pipeline.run(growing_recipe(taught, text, *STILL, *BESIDE), run, console=console)
    assert not any("Training" in line for line in console.lines)


def test_what_was_damaged_is_made_again(grown: Path, taught: Path, text: Path, tmp_path: Path) -> None:
    run = going_on(grown, tmp_path / "run")
    (run / "result.json").write_text('{"state": "done", "target": 1, "differences": {"random": {}}}')
    for name in ("reference", "round-4"):
        (run / "losses" / f"{name}.json").unlink()
    lines = (run / "growth.jsonl").read_text().splitlines(keepends=True)
    (run / "growth.jsonl").write_text("".join([lines[0], lines[2]]))
    console = Silent()
    pipeline.run(growing_recipe(taught, text, *STILL, *BESIDE), run, console=console)
    assert (run / "result.json").read_bytes() == (grown / "result.json").read_bytes()
    assert not any("Training" in line for line in console.lines)


def test_a_warm_round_whose_model_is_gone_is_trained_again(
    taught: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forced(monkeypatch, False, False, True)
    run, made = tmp_path / "run", growing_recipe(taught, text, "--train.max_steps", "6", growth="warm")
    with pytest.raises(Interrupted):
        pipeline.run(made, run, console=Silent(stop_after=8))
    before = tensors(run / "rounds" / "2" / "model")
    shutil.rmtree(run / "rounds" / "2" / "model")
    line = r"delete .*rounds/2 and remove line 1 of .*growth.jsonl, and round 1 is trained again"
    with pytest.raises(Failed, match=rf"rounds/2/model: is gone; {line}"):
        pipeline.run(made, run, console=Silent())
    (run / "growth.jsonl").unlink()
    pipeline.run(made, run, console=Silent())
    after = tensors(run / "rounds" / "2" / "model")
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert [record["layers"] for record in read_jsonl(run / "growth.jsonl")] == [2, 3]


def test_a_reference_that_is_gone(taught: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(taught, tmp_path / "org" / "model")
    made = growing_recipe(Path("org/model"), text)
    pipeline.run(made, tmp_path / "run", console=Silent(), until="prepare")
    shutil.rmtree(tmp_path / "org")
    with pytest.raises(Refused) as refused:
        pipeline.run(made, tmp_path / "run", console=Silent())
    gone = f"began with the reference {tmp_path / 'org' / 'model'}, which is gone; put it back"
    assert str(refused.value) == f"{tmp_path / 'run'}: {gone}"


def test_controls_that_are_one_training_at_the_depth_found(taught: Path, text: Path, tmp_path: Path) -> None:
    controls = ("--controls", "[random, random@1, stack]", "--train.max_steps", "3")
    console = Silent()
    made = growing_recipe(taught, text, *controls, start=1, tolerance_nats=9.0)
    result = pipeline.run(made, tmp_path / "run", console=console)
    assert list(result["controls"]) == ["random"]
    assert [line.partition(" would be ")[::2] for line in console.lines if "left out" in line] == [
        ("The random@1 control", "the random control again at this depth; it is left out."),
        ("The stack control", "the target again at this depth; it is left out."),
    ]
    assert [line.model for line in table4_rows(records_of(tmp_path / "run"))] == [
        "Reference",
        "Random init",
        "Final model →",
    ]


def test_the_command_grows_without_controls(taught: Path, text: Path, tmp_path: Path) -> None:
    import yaml

    from inheritune import recipe as recipes

    made = recipes.as_dict(recipe(taught, text, "--train.max_steps", "4"))
    (tmp_path / "r.yaml").write_text(yaml.safe_dump(made))
    flags = ["--grow.tolerance_nats", "9", "--grow.pilot_steps", "0", "--out", str(tmp_path / "run")]
    assert cli.main(["grow", str(tmp_path / "r.yaml"), *flags]) == 0
    found = read_json(tmp_path / "run" / "result.json")
    assert (found["state"], found["matched"], found["layers"]) == ("trained", True, 2)
    assert [one["layers"] for one in read_jsonl(tmp_path / "run" / "growth.jsonl")] == [2]
    assert not (tmp_path / "run" / "controls").exists()
    (tmp_path / "g.yaml").write_text(yaml.safe_dump(made | {"grow": {"start": 2}}))
    assert cli.main(["train", str(tmp_path / "g.yaml"), "--out", str(tmp_path / "other")]) == 2
