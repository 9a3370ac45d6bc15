"""Layers chosen by training: the candidates, the rungs, what a probe leaves behind, and that it goes on when killed."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from transformers import Lfm2Config, Lfm2ForCausalLM, LlamaConfig, LlamaForCausalLM

from inheritune import cli, pipeline, probing, recipe as recipes, surgery
from inheritune.config import InheritConfig, Recipe, TrainConfig
from inheritune.console import Console
from inheritune.distributed import World
from inheritune.errors import Failed, Interrupted, Refused
from inheritune.pipeline import layer_choice
from inheritune.pipeline.probing import layers_asked, most_parameters, possible
from inheritune.probing import Candidate, Probe, Rung, candidates, in_words, least_tokens, rungs
from inheritune.reference import find
from inheritune.run_directory import read_json, read_jsonl, write_json
from inheritune.tokens import Prepared
from ranks import start as start_ranks

MakePrepared = Callable[..., Prepared]
LENGTH, BATCH = 16, 4
STEP_TOKENS = LENGTH * BATCH


# ---- which candidates


def test_candidates_are_the_posters_own_splits_and_what_is_measured() -> None:
    measured = {"influence:15": [0, 1, *range(17, 30)], "angular:15": range(15)}
    found = candidates(30, [15], measured)
    assert {one.name: one.layers for one in found} == {
        "first:15": tuple(range(15)),
        "first:14+last:1": (*range(14), 29),
        "first:12+last:3": (*range(12), 27, 28, 29),
        "first:7+last:8": (*range(7), *range(22, 30)),
        "every-other:15": tuple(range(0, 30, 2)),
        "influence:15": (0, 1, *range(17, 30)),
    }, "angular:15 is first:15 here, and named so"
    assert found[0].name == "first:15"


@pytest.mark.parametrize(("total", "count", "names"), [(1, 1, 1), (4, 4, 1), (4, 1, 1), (4, 2, 3), (30, 29, 4)])
def test_candidates_differ_and_are_of_the_size_asked_for(total: int, count: int, names: int) -> None:
    found = candidates(total, [count])
    assert len(found) == len({one.layers for one in found}) == names
    assert all(len(one.layers) == count and list(one.layers) == sorted(set(one.layers)) for one in found)
    assert all(one.layers[0] >= 0 and one.layers[-1] < total for one in found)


def test_their_words_are_words_for_layers() -> None:
    for one in candidates(30, [15, 20]):
        if not one.name.startswith("every-other"):
            assert surgery.parse_layers(one.name, 30) == one.layers


def test_candidates_of_several_counts() -> None:
    found = candidates(8, [2, 4])
    assert {len(one.layers) for one in found} == {2, 4}
    assert found[0].name == "first:2"


# ---- rungs


@pytest.mark.parametrize("count", range(2, 20))
@pytest.mark.parametrize("tokens", [100_000, 1_234_567])
def test_half_go_on_and_the_rungs_share_the_budget(count: int, tokens: int) -> None:
    planned = rungs(count, tokens, 1000)
    assert planned[0].candidates == count
    assert planned[-1].candidates == 2
    before, spent = 0, []
    for rung, after in zip(planned, [*planned[1:], None], strict=True):
        spent.append(rung.candidates * (rung.steps - before) * 1000)
        before = rung.steps
        assert after is None or after.candidates == (rung.candidates + 1) // 2
    assert sum(spent) <= tokens
    assert min(spent) > tokens / len(planned) - 1000 * count, "no rung wastes more than a step of each"


def test_the_smallest_budget_is_a_step_for_each_in_each_rung() -> None:
    for count in range(2, 12):
        least = least_tokens(count, 1000)
        assert rungs(count, least, 1000)[0].steps == 1
        assert rungs(count, least - 1, 1000)[0].steps == 0
    assert rungs(1, 1000, 10) == []


# ---- a probe


def model(seed: int) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=320,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=64,
        tie_word_embeddings=True,
    )
    return LlamaForCausalLM(config)


@pytest.fixture
def data(make_prepared: MakePrepared) -> Prepared:
    random = np.random.default_rng(0)

    def documents(count: int) -> list[list[int]]:
        return [[*random.integers(0, 40, 26).tolist(), 319] for _ in range(count)]

    return make_prepared({"train": documents(60), "development": documents(3), "held-out": documents(4)})


def made(name: str, layers: tuple[int, ...]) -> Candidate:
    return Candidate(name, layers)


CANDIDATES = [made("first:1", (0,)), made("last:1", (3,)), made("every:1", (1,)), made("two", (2,)), made("five", (5,))]


def probe_of(directory: Path, data: Prepared, **changes: Any) -> Probe:
    def start(candidate: Candidate) -> LlamaForCausalLM:
        started = model(candidate.layers[0])
        if candidate.name == "two":  # a start from which nothing is learnt soon
            with torch.no_grad():
                started.model.embed_tokens.weight.mul_(200)
        return started

    config = TrainConfig(
        batch_sequences=BATCH,
        micro_batch_sequences=BATCH,
        learning_rate=[3e-2, 1e-2, 1e-3],
        final_learning_rate=1e-4,
        warmup_steps=100,
        compute_dtype="float32",
    )
    settings: dict[str, Any] = {
        "candidates": CANDIDATES,
        "prepared": data,
        "config": config,
        "tokens": 30 * STEP_TOKENS,
        "directory": directory,
        "sequence_length": LENGTH,
        "passes": 1,
        "start": start,
        "report": lambda _line: None,
        "progress": lambda _progress, _later: None,
        "world": World(rank=0, size=1, device=torch.device("cpu")),
    }
    return Probe(**settings | changes)


def without_times(record: dict[str, Any]) -> dict[str, Any]:
    entries = [{**one, "seconds": None, "consumption": None} for one in record["candidates"]]
    return {**record, "seconds": None, "candidates": entries}


def test_the_better_half_goes_on_and_the_best_is_taken(tmp_path: Path, data: Prepared) -> None:
    record = probe_of(tmp_path / "probe", data).run()
    assert [Rung(**rung) for rung in record["rungs"]] == rungs(5, 30 * STEP_TOKENS, STEP_TOKENS)
    assert [rung["candidates"] for rung in record["rungs"]] == [5, 3, 2]
    by_name = {one["name"]: one for one in record["candidates"]}
    assert sorted(len(one["losses"]) for one in by_name.values()) == [1, 1, 2, 3, 3]
    for number, going_on in enumerate([3, 2]):
        here = {name: one["losses"][number] for name, one in by_name.items() if len(one["losses"]) > number}
        better = sorted(here, key=lambda name: here[name])[:going_on]
        assert {name for name, one in by_name.items() if len(one["losses"]) > number + 1} == set(better)
    last = {name: one["losses"][2] for name, one in by_name.items() if len(one["losses"]) == 3}
    assert record["chosen"] == min(last, key=lambda name: last[name])
    assert record["layers"] == by_name[record["chosen"]]["layers"]
    assert len(by_name["two"]["losses"]) == 1, "the worst start is the first to go"
    assert record["tokens"] == sum(one["tokens"] for one in by_name.values()) <= 30 * STEP_TOKENS
    for name, one in by_name.items():
        steps = record["rungs"][len(one["losses"]) - 1]["steps"]
        assert (one["steps"], one["tokens"]) == (steps, steps * STEP_TOKENS), name
        assert one["untrained"] is not None
    assert f"{record['chosen']} is best of 5 candidates" in in_words(record)


def test_one_training_goes_on_over_the_rungs(tmp_path: Path, data: Prepared) -> None:
    record = probe_of(tmp_path / "probe", data).run()
    metrics = read_jsonl(tmp_path / "probe" / record["chosen"].replace(":", "-") / "metrics.jsonl")
    steps = [one for one in metrics if one["kind"] == "step"]
    assert [one["step"] for one in steps] == list(range(1, record["rungs"][-1]["steps"] + 1))
    warmup = record["rungs"][0]["steps"] // 2
    assert [one["learning_rate"] for one in steps[warmup:]] == [1e-2] * (len(steps) - warmup), "the middle of three"
    measured = [one for one in metrics if one["kind"] == "validation"]
    assert [one["step"] for one in measured] == [0, *(rung["steps"] for rung in record["rungs"])]
    assert all(set(one["losses"]) == {"development"} for one in measured), "no validation set is looked at"


def test_checkpoints_do_not_stay(tmp_path: Path, data: Prepared) -> None:
    out: list[list[str]] = []

    def report(line: str) -> None:
        out.append([path.parent.name for path in (tmp_path / "probe").glob("*/checkpoints")])

    probe_of(tmp_path / "probe", data, report=report).run()
    assert max(len(names) for names in out) <= 4, "those that are out give their room to those that come"
    assert not list((tmp_path / "probe").glob("*/checkpoints"))


@pytest.mark.parametrize("told", [1, 2, 5, 6, 8, 9])
def test_it_goes_on_where_it_was_killed(tmp_path: Path, data: Prepared, told: int) -> None:
    straight = probe_of(tmp_path / "straight", data).run()
    lines: list[str] = []

    def report(line: str) -> None:
        if "nats a token" in line:
            lines.append(line)
            if len(lines) == told:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        probe_of(tmp_path / "killed", data, report=report).run()
    resumed = probe_of(tmp_path / "killed", data, report=report)
    assert without_times(resumed.run()) == without_times(straight)
    assert len(lines) == len(set(lines)) == 10, "no rung of a candidate is trained twice"


def test_a_record_that_was_lost_comes_out_the_same(tmp_path: Path, data: Prepared) -> None:
    straight = probe_of(tmp_path / "straight", data).run()
    told: list[str] = []

    def report(line: str) -> None:
        told.extend([line] if "nats a token" in line else [])
        if len(told) == 9:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        probe_of(tmp_path / "killed", data, report=report).run()
    (tmp_path / "killed" / "probe.json").unlink()  # weights of the last rung are still there
    again = probe_of(tmp_path / "killed", data).run()
    losses = [{one["name"]: one["losses"] for one in record["candidates"]} for record in (straight, again)]
    assert losses[0] == losses[1]


def test_every_training_is_told_when_it_is_over(tmp_path: Path, data: Prepared) -> None:
    over: list[None] = []

    def start(candidate: Candidate) -> LlamaForCausalLM:
        started = model(candidate.layers[0])
        if candidate.name == "two":
            with torch.no_grad():
                started.model.norm.weight.fill_(math.nan)
        return started

    record = probe_of(tmp_path / "probe", data, start=start, over=lambda: over.append(None)).run()
    assert {one["name"]: one["losses"][0] for one in record["candidates"]}["two"] is None
    assert len(over) == 5 + 3 + 2


def test_a_candidate_that_diverges_is_the_last(tmp_path: Path, data: Prepared) -> None:
    def start(candidate: Candidate) -> LlamaForCausalLM:
        started = model(0)
        if candidate.name in broken:
            with torch.no_grad():
                started.model.norm.weight.fill_(torch.nan)
        return started

    broken = ["first:1", "last:1", "every:1"]
    record = probe_of(tmp_path / "some", data, start=start).run()
    assert record["chosen"] in ("two", "five")
    assert json.dumps(record, allow_nan=False)
    by_name = {one["name"]: one for one in record["candidates"]}
    assert by_name["first:1"]["losses"][-1] is None
    broken = [one.name for one in CANDIDATES]
    with pytest.raises(Failed, match="every candidate diverged"):
        probe_of(tmp_path / "all", data, start=start).run()


def test_of_one_candidate_there_is_nothing_to_find_out(tmp_path: Path, data: Prepared) -> None:
    record = probe_of(tmp_path / "probe", data, candidates=CANDIDATES[:1]).run()
    assert (record["chosen"], record["layers"], record["tokens"], record["rungs"]) == ("first:1", [0], 0, [])
    assert in_words(record) == "first:1 is the only candidate: layers 0"


# ---- in a run


class Silent(Console):
    def __init__(self) -> None:
        super().__init__(silent=True)

    def table(self, table: Any) -> None:
        """Nothing is shown."""


@pytest.fixture(scope="module")
def written(llama_directory: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recipe's file: probe:2 of 4 layers, 16 steps, the control every-other."""
    folder = tmp_path_factory.mktemp("recipe")
    random = np.random.default_rng(0)
    words = [first + second for first in "bdgklmnprst" for second in ("a", "ein", "olu")]
    lines = [json.dumps({"text": " ".join(random.choice(words, 60))}) for _ in range(120)]
    (folder / "text.jsonl").write_text("\n".join(lines))
    values = {
        "name": "tiny",
        "reference": str(llama_directory),
        "data": {
            "sources": [str(folder / "text.jsonl")],
            "tokens": 4000,
            "sequence_length": 32,
            "validation_share": 0.1,
            "development_share": 0.1,
            "validation_tokens": 800,
            "development_tokens": 500,
            "workers": 1,
        },
        "inherit": {"layers": "probe:2"},
        "train": {
            "batch_sequences": 8,
            "micro_batch_sequences": 4,
            "learning_rate": 5e-3,
            "warmup_steps": 2,
            "compute_dtype": "float32",
        },
        "controls": ["cut", "every-other", "last"],
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(values))
    return folder / "recipe.yaml"


def loaded(written: Path, *flags: str) -> Recipe:
    return recipes.load_recipe(str(written), flags)


@pytest.fixture(scope="module")
def probed(written: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("probed") / "run"
    pipeline.run(loaded(written), out, console=Silent())
    return out


def test_a_run_keeps_the_layers_that_its_probe_found(probed: Path) -> None:
    choice = read_json(probed / "layer_choice.json")
    assert (choice["measure"], choice["layers"]) == ("probe", choice["probe"]["layers"])
    assert len(choice["influence"]) == 4
    assert len(choice["angular"]) == 4
    inheritance = read_json(probed / "inheritance.json")
    assert (inheritance["layers_kept"], inheritance["layers_word"]) == (choice["layers"], "probe:2")
    names = [one["name"] for one in choice["probe"]["candidates"]]
    assert names[:3] == ["first:2", "first:1+last:1", "every-other:2"]
    found = {one["name"]: one["layers"] for one in choice["probe"]["candidates"]}
    by_influence = sorted(sorted(range(4), key=lambda layer: -choice["influence"][layer])[:2])
    assert by_influence in found.values()


def test_a_kill_at_the_very_end_costs_nothing(probed: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(probed, run)
    recipe = recipes.load_recipe(str(run / "recipe.yaml"))
    whole = {name: (run / name).read_bytes() for name in ("ledger.json", "model/README.md")}
    assert b"## Results" in whole["model/README.md"]
    ledger = read_json(run / "ledger.json")
    del ledger["total"]
    write_json(run / "ledger.json", ledger)
    (run / "model" / "README.md").write_bytes(whole["model/README.md"].partition(b"## Results")[0])
    pipeline.run(recipe, run, console=Silent())
    assert (run / "ledger.json").read_bytes() == whole["ledger.json"]
    assert b"## Results" in (run / "model" / "README.md").read_bytes()


def begun(run: Path, probed: Path, *gone: str) -> None:
    """A run that was killed after its probe, some of its files gone."""
    shutil.copytree(probed, run)
    for name in ("result.json", *gone):
        (run / name).unlink()


def test_the_models_that_it_began_with_go_even_after_a_kill(probed: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    begun(run, probed)
    (run / "probe" / "starts" / "first-2").mkdir(parents=True)
    pipeline.run(recipes.load_recipe(str(run / "recipe.yaml")), run, console=Silent(), until="inherit")
    assert not (run / "probe" / "starts").exists()


@pytest.mark.parametrize(
    ("name", "record", "gone"),
    [
        ("layer_choice.json", {}, []),
        ("layer_choice.json", {"measure": "probe", "tokens": 9, "layers": [1, 0]}, []),
        ("layer_choice.json", {"measure": "guess", "tokens": 9, "layers": [0, 1]}, []),
        ("probe/turning.json", {"chosen": {"influence:2": [None]}}, ["layer_choice.json"]),
        ("probe/turning.json", [], ["layer_choice.json"]),
        ("probe/probe.json", {"candidates": [{"name": "first:2"}]}, ["layer_choice.json"]),
        ("probe/probe.json", [], ["layer_choice.json"]),
    ],
)
def test_a_damaged_record_is_named(probed: Path, tmp_path: Path, name: str, record: Any, gone: list[str]) -> None:
    run = tmp_path / "run"
    begun(run, probed, *gone)
    write_json(run / name, record)
    with pytest.raises(Failed, match=f"{name}: damaged, .*; delete it and give the same command again"):
        pipeline.run(recipes.load_recipe(str(run / "recipe.yaml")), run, console=Silent(), until="inherit")


def test_a_candidate_that_cannot_be_proven_is_left_out(
    written: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, all_of_them = surgery.inherit, False

    def inherit(reference: Any, indices: Any, out: Path, **settings: Any) -> Any:
        if "probe" in out.parts and (indices == (0, 1) or all_of_them):
            raise Refused(f"blocks {indices} depend on others")
        return real(reference, indices, out, **settings)

    monkeypatch.setattr(surgery, "inherit", inherit)
    out = tmp_path / "run"
    pipeline.run(loaded(written), out, console=Silent(), until="inherit")
    names = [one["name"] for one in read_json(out / "layer_choice.json")["probe"]["candidates"]]
    assert "first:2" not in names
    assert len(names) >= 2
    all_of_them = True
    out = tmp_path / "none"
    with pytest.raises(Failed, match="the prepared data is kept"):
        pipeline.run(loaded(written), out, console=Silent(), until="inherit")
    assert (out / "data" / "manifest.json").exists()


def test_a_budget_that_was_too_large_can_be_lowered_in_the_same_directory(written: Path, tmp_path: Path) -> None:
    with pytest.raises(Failed, match="give fewer"):
        pipeline.run(loaded(written, "--inherit.probe_tokens", "100K"), tmp_path / "run", console=Silent())
    flags = ("--inherit.probe_tokens", "6K")
    assert pipeline.run(loaded(written, *flags), tmp_path / "run", console=Silent(), until="inherit")


def test_what_probing_costs_stands_in_the_ledger(probed: Path) -> None:
    entry, probe = read_json(probed / "ledger.json")["probe"], read_json(probed / "layer_choice.json")["probe"]
    taken = entry.pop("consumption")
    assert entry == {
        "seconds": probe["seconds"],
        "tokens": probe["tokens"],
        "flops": probe["flops"],
        "steps": sum(one["steps"] for one in probe["candidates"]),
        "candidates": len(probe["candidates"]),
        "trainings": len(probe["candidates"]),
    }
    assert (taken["tokens"], taken["flops"], taken["steps"]) == (entry["tokens"], entry["flops"], entry["steps"])
    assert taken["starts"] == len(probe["candidates"]), "a rung that begins is no restart"
    assert read_json(probed / "ledger.json")["total"]["arms"]["probe"]["restarts"] == 0
    target = read_json(probed / "ledger.json")["train target"]
    assert entry["flops"] / entry["tokens"] == pytest.approx(target["flops"] / target["tokens"])
    assert entry["tokens"] == sum(one["tokens"] for one in probe["candidates"]) > 0


def test_a_probe_leaves_its_records_alone(probed: Path) -> None:
    assert not (probed / "probe" / "starts").exists()
    assert not list((probed / "probe").glob("**/*.safetensors"))
    assert (probed / "probe" / "first-2" / "metrics.jsonl").exists()


def test_a_control_that_takes_the_layers_found_is_left_out(written: Path, tmp_path: Path) -> None:
    """Whatever is found: with controls of the same layers as each candidate one of them is the target again."""
    out = tmp_path / "run"
    result = pipeline.run(
        loaded(written, "--controls", "[every-other, last]", "--inherit.layers", "probe:1"), out, console=Silent()
    )
    layers = read_json(out / "layer_choice.json")["layers"]
    same = {(0,): "every-other", (3,): "last"}.get(tuple(layers))
    assert set(result["controls"]) == {"every-other", "last"} - {same}


def test_a_run_that_was_stopped_while_it_probed_goes_on(written: Path, tmp_path: Path, probed: Path) -> None:
    class Stopping(Silent):
        seen = 0

        def line(self, text: str) -> None:
            """Stop after the second candidate."""
            Stopping.seen += "nats a token after" in text
            if Stopping.seen == 2:
                raise KeyboardInterrupt

    out = tmp_path / "run"
    with pytest.raises(Interrupted):
        pipeline.run(loaded(written), out, console=Stopping())
    assert read_json(out / "result.json")["state"] == "preempted"
    pipeline.run(loaded(written), out, console=Silent())
    assert (out / "result.json").read_bytes() == (probed / "result.json").read_bytes()
    again = (read_json(path / "layer_choice.json")["probe"] for path in (out, probed))
    assert without_times(next(again)) == without_times(next(again))


def test_a_reference_that_changes_while_it_is_probed_is_noticed(
    written: Path, tmp_path: Path, llama_directory: Path
) -> None:
    class Stopping(Silent):
        def line(self, text: str) -> None:
            if "nats a token after" in text:
                raise KeyboardInterrupt

    reference, out = tmp_path / "reference", tmp_path / "run"
    shutil.copytree(llama_directory, reference)
    recipe = loaded(written, "--reference", str(reference))
    with pytest.raises(Interrupted):
        pipeline.run(recipe, out, console=Stopping())
    weights = reference / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"!")
    with pytest.raises(Refused, match="its weights changed since this run began"):
        pipeline.run(recipe, out, console=Silent())
    assert (out / "data" / "manifest.json").exists()


def test_what_a_pass_over_tokens_refuses_leaves_the_data(
    written: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> Any:
        raise Refused("its layers cannot be told apart")

    monkeypatch.setattr(layer_choice, "measured_turning", refuse)
    with pytest.raises(Failed, match=r"cannot be told apart; the prepared data is kept, name it as data\.prepared"):
        pipeline.run(loaded(written, "--inherit.layers", "influence:2"), tmp_path / "run", console=Silent())
    assert (tmp_path / "run" / "data" / "manifest.json").exists()


def command(*words: str) -> int:
    """On a rank: a command line; gives its exit code."""
    return cli.main(words)


def test_ranks_probe_together(written: Path, tmp_path: Path, probed: Path) -> None:
    words = ("run", str(written), "--train.micro_batch_sequences", "2", "--out", str(tmp_path / "run"))
    outcomes = start_ranks(2, command, *words)
    assert [one.value for one in outcomes] == [0, 0], outcomes[0].trace + outcomes[0].output
    one, other = (read_json(path / "layer_choice.json")["probe"] for path in (tmp_path / "run", probed))
    assert one["chosen"] == other["chosen"]
    for mine, theirs in zip(one["candidates"], other["candidates"], strict=True):
        assert mine["losses"] == pytest.approx(theirs["losses"], abs=1e-4)


# ---- how many layers


def test_a_budget_in_parameters_is_the_most_layers_within_it(llama_directory: Path, written: Path) -> None:
    reference = find(str(llama_directory))
    sizes = [surgery.plan_cut(reference, tuple(range(count))).parameters for count in (1, 2, 3, 4)]
    for count, size in enumerate(sizes, 1):
        for word, expected in ((f"probe:{count}", count), (f"probe:{size / 1e3:.3f}K", count)):
            assert layers_asked(loaded(written, "--inherit.layers", word).inherit, reference) == expected
    word = f"probe:{(sizes[2] - 1) / 1e3:.3f}K"
    assert layers_asked(loaded(written, "--inherit.layers", word).inherit, reference) == 2


def test_no_candidate_is_larger_than_the_budget(tmp_path: Path) -> None:
    """Blocks that differ in size: as many layers as a prefix has within the budget may elsewhere be more."""
    config = Lfm2Config(
        vocab_size=320,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=6,
        num_attention_heads=2,
        num_key_value_heads=1,
        layer_types=["full_attention"] * 3 + ["conv"] * 3,
    )
    Lfm2ForCausalLM(config).save_pretrained(tmp_path)
    reference = find(str(tmp_path))
    among = candidates(6, [3])
    sizes = {one.name: surgery.plan_cut(reference, one.layers).parameters for one in among}
    most = sizes["first:3"]
    assert max(sizes.values()) > most
    assert {one.name for one in possible(reference, among)} == set(sizes)
    kept = {one.name for one in possible(reference, among, most)}
    assert kept == {name for name, size in sizes.items() if size <= most} < set(sizes)
    assert most_parameters(InheritConfig(layers="probe:1.5B")) == 1_500_000_000
    assert most_parameters(InheritConfig(layers="probe:3")) is None


BAD = [
    (["--inherit.layers", "probe:5"], ["layers", "probe:5", "4 layers"]),
    (["--inherit.layers", "probe:0"], ["layers", "probe:0"]),
    (["--inherit.layers", "probe:many"], ["layers", "probe:many", "probe:N with 1 to 4 layers"]),
    (["--inherit.layers", "probe:1K"], ["layers", "probe:1K", "one layer of", "parameters"]),
    (["--inherit.probe_tokens", "1000"], ["inherit.probe_tokens", "1,000 tokens are not enough", "give 5,376 or more"]),
    (["--inherit.layers", "2", "--inherit.probe_tokens", "9K"], ["inherit.probe_tokens", "no probe:N"]),
    (["--inherit.init", "random", "--controls", "[]"], ["inherit.layers", "inherit.init"]),
    (["--data.development_share", "0"], ["inherit.layers: probe:2", "development set"]),
]


@pytest.mark.parametrize(("flags", "words"), BAD)
def test_bad_input_is_one_line(
    written: Path, tmp_path: Path, flags: list[str], words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    assert cli.main(["run", str(written), *flags, "--out", str(out)]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert all(word in line for word in words), line
    assert not out.exists()


def test_a_cut_by_itself_cannot_be_probed(llama_directory: Path, tmp_path: Path, capsys: Any) -> None:
    out = tmp_path / "target"
    assert cli.main(["inherit", str(llama_directory), "--layers", "probe:2", "--out", str(out)]) == 2
    assert "put it into a recipe" in capsys.readouterr().err
    assert not out.exists()


def test_a_budget_that_trains_candidates_longer_than_the_target_is_refused(written: Path, tmp_path: Path) -> None:
    flags = ("--inherit.probe_tokens", "6K", "--train.max_steps", "3")
    with pytest.raises(Failed, match="give fewer, or train the target longer"):
        pipeline.run(loaded(written, *flags), tmp_path / "run", console=Silent())
    assert probing.MOST_OF_A_COUNT == 7
    with pytest.raises(Failed, match=r"steps, the target for 1; train the target longer"):
        pipeline.run(
            loaded(written, "--train.max_steps", "1", "--train.warmup_steps", "0"), tmp_path / "other", console=Silent()
        )
