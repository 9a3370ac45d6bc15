"""How many layers: the rule, probes at equal FLOPs, and the command."""

from __future__ import annotations

import io
import json
import math
import random
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
import yaml
from rich.console import Console as RichConsole

from inheritune import cli, layerwise, pipeline, recipe as recipes, surgery
from inheritune.console import Console
from inheritune.depth import (
    Behind,
    Budget,
    Contender,
    behind_by,
    depths_to_try,
    parse_bytes,
    recommend,
    runs,
)
from inheritune.errors import Failed, Refused
from inheritune.pipeline.depth_layers import show_layers
from inheritune.probing import Candidate, Rung, least_tokens_by_depth, rungs_by_depth
from inheritune.reference import find
from inheritune.report import candidates_table, depth_svg, layers_table
from inheritune.run_directory import read_json, read_jsonl, write_json
from inheritune.tokens import Prepared

TOKENS = np.full(40, 50.0)


def contender(
    name: str,
    layers: tuple[int, ...],
    losses: list[float | None],
    equal_tokens: list[float | None] | None = None,
    spread: float = 0.0,
    untrained: float | None = 9.0,
) -> Contender:
    """One whose documents' losses differ from its mean by turns of `spread`."""
    last = losses[-1] if losses else None
    turns = np.resize([1.0, -1.0], len(TOKENS))
    nats = None if last is None else TOKENS * (last + spread * turns)
    return Contender(name, layers, untrained, tuple(losses), tuple(equal_tokens or losses), nats)


def recommended(*contenders: Contender, rungs: int = 2, most: int = 4) -> tuple[str, str]:
    """The name, and the reasons as one text."""
    found = recommend(contenders, document_tokens=TOKENS, rungs=rungs, most=most, of_layers=8)
    return found.contender.name, " ".join(found.reasons)


# ---- the rule


def test_the_lowest_loss_at_equal_flops_is_taken() -> None:
    four = contender("first:4", (0, 1, 2, 3), [5.0, 4.0])
    two = contender("first:2", (0, 1), [5.5, 4.5])
    name, said = recommended(four, two)
    assert name == "first:4"
    assert "n = 4 of 8 layers (the most that are allowed)" in said
    assert "n = 2 (first:2), is behind by 0.500 nats a token (95% interval 0.500 to 0.500)" in said
    assert "its lead on n = 2 went from 0.500 to 0.500 nats a token." in said


def test_fewer_layers_win_where_they_do_better() -> None:
    name, said = recommended(
        contender("first:4", (0, 1, 2, 3), [5.0, 4.0]), contender("first:2", (0, 1), [4.8, 3.9]), most=5
    )
    assert name == "first:2"
    assert "up to 5 are allowed" in said
    assert "went from 0.200 to 0.100 nats a token: a longer training may turn it" in said


def test_fewer_layers_are_taken_where_the_difference_is_not_resolved() -> None:
    four = contender("first:4", (0, 1, 2, 3), [5.0, 4.0])
    three = contender("first:3", (0, 1, 2), [5.1, 4.02], spread=0.5)
    two = contender("first:2", (0, 1), [5.1, 4.03], spread=0.5)
    one = contender("first:1", (0,), [7.0, 6.0], spread=0.5)
    name, said = recommended(four, three, two, one)
    assert name == "first:2", "the fewest that are not resolved to be worse"
    assert "first:4 has the lowest loss; n = 2 (first:2) is behind by 0.030" in said
    assert "40 development documents that is not resolved" in said
    assert recommended(four, one)[0] == "first:4"


def test_more_layers_are_not_taken_for_what_is_not_resolved() -> None:
    two = contender("first:2", (0, 1), [5.0, 4.0])
    name, said = recommended(contender("first:4", (0, 1, 2, 3), [5.0, 4.001], spread=1.0), two)
    assert name == "first:2"
    assert "which is not resolved; it has more layers" in said


def test_only_what_went_to_the_last_round_is_compared() -> None:
    best_at_first = contender("last:2", (6, 7), [1.0])
    name, said = recommended(best_at_first, contender("first:2", (0, 1), [5.0, 4.5]))
    assert name == "first:2"
    assert "first:2 has the lowest loss of all" in said


def test_how_far_the_prefix_is_behind_is_told_at_its_own_round() -> None:
    name, said = recommended(
        contender("first:1+last:1", (0, 7), [4.5, 4.0]), contender("first:2", (0, 1), [5.25]), rungs=2
    )
    assert name == "first:1+last:1"
    assert "first:2 was behind by 0.750 nats a token in round 1" in said


def test_equal_tokens_are_said_to_choose_otherwise() -> None:
    four = contender("first:4", (0, 1, 2, 3), [5.0, 4.0], [5.0, 4.0])
    two = contender("first:2", (0, 1), [4.5, 3.5], [5.5, 4.25])
    name, said = recommended(four, two)
    assert name == "first:2"
    assert "At equal tokens first:4 is ahead of it, 4.000 to 4.250" in said
    assert "At equal tokens it is the best, too" in recommended(four, contender("first:2", (0, 1), [9.0, 9.0]))[1]


def test_equal_tokens_are_compared_among_all_of_the_last_round() -> None:
    four = contender("first:4", (0, 1, 2, 3), [5.0, 4.0], [5.0, 4.0])
    second = contender("first:3+last:1", (0, 1, 2, 7), [5.0, 4.1], [5.0, 3.9])
    name, said = recommended(four, second, contender("first:2", (0, 1), [9.0, 9.0]))
    assert name == "first:4"
    assert "At equal tokens first:3+last:1 is ahead of it, 3.900 to 4.000" in said


def test_a_lead_that_was_lost_is_said_to_go_on_shrinking() -> None:
    four = contender("first:4", (0, 1, 2, 3), [5.0, 4.0])
    two = contender("first:2", (0, 1), [4.9, 4.01], spread=0.5)
    name, said = recommended(four, two)
    assert name == "first:2"
    assert "it is behind by now, and a longer training may widen that" in said


def test_what_is_not_finite_is_told_apart() -> None:
    assert Behind(1.0, math.nan, math.nan).resolved


def test_what_diverged_is_not_taken() -> None:
    lost = contender("first:4", (0, 1, 2, 3), [5.0, None])
    assert recommended(lost, contender("first:2", (0, 1), [6.0, 5.0]))[0] == "first:2"


def test_without_training_the_most_layers_of_the_lowest_loss() -> None:
    name, said = recommended(
        contender("first:4", (0, 1, 2, 3), [], untrained=9.0),
        contender("first:2+last:2", (0, 1, 6, 7), [], untrained=8.0),
        contender("every-other:4", (0, 2, 4, 6), [], untrained=None),
        contender("first:2", (0, 1), [], untrained=7.0),
        rungs=0,
    )
    assert name == "first:2+last:2"
    assert "Nothing was trained" in said


def test_one_document_leaves_no_interval() -> None:
    one, other = (Contender(name, (0,), None, nats=np.array([nats])) for name, nats in (("a", 50.0), ("b", 40.0)))
    behind = behind_by(one, other, np.array([10.0]))
    assert (behind.value, behind.low, behind.resolved) == (1.0, None, True)
    assert "one document leaves no interval" in str(behind)


@pytest.mark.parametrize(
    ("most", "depths"),
    [(1, [1]), (2, [2, 1]), (3, [3, 2, 1]), (4, [4, 3, 2, 1]), (7, [7, 5, 4, 2]), (29, [29, 22, 15, 7])],
)
def test_the_numbers_of_layers_that_are_tried(most: int, depths: list[int]) -> None:
    assert depths_to_try(most) == depths


@pytest.mark.parametrize(
    ("text", "size"), [("24GB", 24 * 10**9), ("24g", 24 * 10**9), ("1.5GiB", 3 << 29), ("80 MiB", 80 << 20), ("7", 7)]
)
def test_amounts_of_memory(text: str, size: int) -> None:
    assert parse_bytes(text) == size


@pytest.mark.parametrize("text", ["", "GB", "-1GB", "1EB", "0", "0.1", "1e9", "nan"])
def test_what_is_no_amount_of_memory(text: str) -> None:
    with pytest.raises(ValueError, match="an amount of memory"):
        parse_bytes(text)


def test_a_budget_bounds_both() -> None:
    assert Budget().allows(10**12, None)
    assert Budget(parameters=5).allows(5, None)
    assert not Budget(parameters=5).allows(6, None)
    assert not Budget(memory_bytes=5).allows(1, 6)
    assert not Budget(memory_bytes=5).allows(1, None), "what cannot be predicted is not within it"


@pytest.mark.parametrize("layers", [(0,), (0, 1, 2), (3,), (0, 1, 6, 7), (0, 2, 4), (1, 2, 3, 5)])
def test_layers_as_a_recipe_takes_them(layers: tuple[int, ...]) -> None:
    assert surgery.parse_layers(runs(layers), 8) == layers


# ---- rounds at equal FLOPs


@pytest.mark.parametrize("seed", range(20))
def test_each_number_of_layers_halves_its_own_and_rounds_cost_alike(seed: int) -> None:
    draw = random.Random(seed)
    depths = [depth for depth in range(1, 5) for _ in range(draw.randint(1, 7))]
    least = least_tokens_by_depth(depths, 1000)
    assert rungs_by_depth(depths, least - 1, 1000)[0].steps == 0
    tokens = least * draw.randint(1, 9) + draw.randint(0, 999)
    planned = rungs_by_depth(depths, tokens, 1000)
    assert planned[0].candidates == len(depths)
    sizes, before, spent = [depths.count(depth) for depth in range(1, 5)], 0, []
    for rung in planned:
        assert rung.candidates == sum(sizes)
        assert rung.steps % planned[0].steps == 0
        spent.append(rung.candidates * (rung.steps - before))
        before, sizes = rung.steps, [(size + 1) // 2 for size in sizes]
    assert max(sizes) == 1
    assert sum(spent) * 1000 <= tokens
    assert max(spent) <= 1.5 * min(spent)


def test_of_one_candidate_alone_there_is_nothing_to_find_out() -> None:
    assert rungs_by_depth([3], 10**6, 1000) == []
    assert rungs_by_depth([3, 2], 10_000, 1000) == [Rung(2, 5)]


def test_the_first_documents_of_a_set(make_prepared: Callable[..., Prepared]) -> None:
    documents = [[1, 2, 3], [4, 5], [6, 7, 8, 9]]
    whole = make_prepared({"train": documents, "development": documents})
    for tokens, count in ((1, 1), (3, 1), (4, 1), (5, 2), (9, 3), (100, 3)):
        short = whole.shortened("development", tokens).only("development").set("development")
        assert len(short.document_ends) == len(short.document_bytes) == count
        assert short.read(0, 100).tolist() == [token for one in documents[:count] for token in one]
    assert whole.shortened("development", 3).set("train").tokens == whole.set("development").tokens == 9


# ---- the command


class Kept(Console):
    """Keeps what would be shown."""

    def __init__(self) -> None:
        super().__init__(silent=True)
        self.lines: list[str] = []

    def line(self, text: str) -> None:
        """Keep a line."""
        self.lines.append(text)

    def table(self, table: Any) -> None:
        """Keep a table as text."""
        console = RichConsole(file=io.StringIO(), width=120)
        console.print(table)
        assert isinstance(console.file, io.StringIO)
        self.lines.append(console.file.getvalue())

    @property
    def text(self) -> str:
        return "\n".join(self.lines)


SETTINGS: dict[str, Any] = {"sequence_length": 32, "batch_sequences": 4, "learning_rate": 5e-3}
STEP_TOKENS = 32 * 4
BUDGET: dict[str, Any] = {"probe_tokens": 120 * STEP_TOKENS}


@pytest.fixture(scope="module")
def shards(tokenizer_directory: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Prepared text of the tiny references' tokenizer: a training set of 6,000 tokens, a development set."""
    folder = tmp_path_factory.mktemp("shards")
    draw = np.random.default_rng(0)
    words = [first + second for first in "bdgklmnprst" for second in ("a", "ein", "olu")]
    lines = [json.dumps({"text": " ".join(draw.choice(words, 60))}) for _ in range(150)]
    (folder / "text.jsonl").write_text("\n".join(lines))
    flags = ["--tokens", "6000", "--validation_share", "0.1", "--development_share", "0.15", "--workers", "1"]
    words = [str(folder / "text.jsonl"), "--tokenizer", str(tokenizer_directory), "--out", str(folder / "data")]
    assert cli.main(["prepare", *words, *flags]) == 0
    return folder / "data"


@pytest.fixture(scope="module")
def answered(llama_directory: Path, shards: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A directory that `depth` wrote, and what it showed."""
    out, console = tmp_path_factory.mktemp("depth") / "out", Kept()
    pipeline.choose_depth(str(llama_directory), shards, out=out, console=console, **SETTINGS, **BUDGET)
    return out, console.text


def test_what_is_written_is_what_was_measured(answered: tuple[Path, str], llama_directory: Path) -> None:
    out, _ = answered
    record = read_json(out / "depth.json")
    assert (record["of_layers"], record["most_layers"], record["set"]) == (4, 3, "development")
    assert len(record["layers"]["influence"]) == len(record["layers"]["prefixes"]) == 4
    for measured in ("degeneracy", "untrained"):
        assert [len(heads) for heads in record["layers"][measured]["rank"]] == [4] * 4
    reference = find(str(llama_directory))
    assert {len(row["layers"]) for row in record["candidates"]} == {1, 2, 3}
    for row in record["candidates"]:
        assert row["parameters"] == surgery.plan_cut(reference, tuple(row["layers"])).parameters
        assert row["memory_bytes"] > 16 * row["parameters"], "weights, gradients and two moments in float32"
    recommended = record["recommended"]
    rungs = len(record["probe"]["rungs"])
    last = {row["name"]: row["losses"][-1] for row in record["candidates"] if len(row["losses"]) == rungs}
    assert recommended["lowest_loss"] == min(last, key=lambda name: last[name])
    assert sorted(path.name for path in out.iterdir()) == [
        *(".lock", "asked.json", "degeneracy.svg", "depth.json", "depth.svg"),
        *("layers.json", "losses", "probe", "scan.svg"),
    ]


def test_all_are_trained_for_equal_flops_and_measured_at_equal_tokens(answered: tuple[Path, str]) -> None:
    out, _ = answered
    record = read_json(out / "depth.json")
    planned = [Rung(**rung) for rung in record["probe"]["rungs"]]
    dearest = max(row["flops_per_token"] for row in record["candidates"])
    assert record["probe"]["flops"] <= BUDGET["probe_tokens"] * dearest
    for row in record["candidates"]:
        last = planned[len(row["losses"]) - 1]
        asked = last.steps * STEP_TOKENS * dearest
        assert 0 <= asked - row["tokens"] * row["flops_per_token"] < STEP_TOKENS * row["flops_per_token"]
        metrics = read_jsonl(out / "probe" / row["name"].replace(":", "-") / "metrics.jsonl")
        measured = {one["step"]: one["losses"]["development"] for one in metrics if one["kind"] == "validation"}
        assert row["equal_tokens"] == [measured[rung.steps] for rung in planned[: len(row["losses"])]]
        assert row["losses"][-1] == measured[max(measured)]
        noted = read_json(out / "losses" / f"{row['name'].replace(':', '-')}.json")
        assert (noted is not None) == (len(row["losses"]) == len(planned))
        if noted is None:
            continue
        assert sum(noted["nats"]) / sum(noted["tokens"]) == pytest.approx(row["losses"][-1], abs=1e-5)
    fewest = min(record["candidates"], key=lambda row: len(row["layers"]))
    assert fewest["tokens"] > planned[len(fewest["losses"]) - 1].steps * STEP_TOKENS


def test_the_last_round_has_every_number_of_layers(answered: tuple[Path, str]) -> None:
    record = read_json(answered[0] / "depth.json")
    rungs = len(record["probe"]["rungs"])
    for depth in (1, 2, 3):
        rows = [row for row in record["candidates"] if len(row["layers"]) == depth]
        for number in range(rungs - 1):
            here = sorted((row for row in rows if len(row["losses"]) > number), key=lambda row: row["losses"][number])
            on = [row for row in here if len(row["losses"]) > number + 1]
            assert on == here[: len(on)]
            assert len(on) == (len(here) + 1) // 2


def test_what_is_shown_ends_in_reasons_and_lines_for_a_recipe(answered: tuple[Path, str], shards: Path) -> None:
    out, text = answered
    found = read_json(out / "depth.json")["recommended"]
    for reason in found["reasons"]:
        assert f"  {reason}" in text
    assert "left of the probe" in text
    assert "at this device's peak" in text
    pasted = yaml.safe_load(found["recipe"])
    flags = ["--inherit.layers", str(pasted["inherit"]["layers"])]
    assert recipes.load_recipe("demo", flags).inherit.layers == pasted["inherit"]["layers"]
    assert surgery.parse_layers(pasted["inherit"]["layers"], 4) == tuple(found["layers"])


def test_killed_it_goes_on(answered: tuple[Path, str], llama_directory: Path, shards: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"

    class Stopping(Kept):
        def line(self, text: str) -> None:
            super().line(text)
            if sum("nats a token after" in line for line in self.lines) == 3:
                raise KeyboardInterrupt

    def answer(console: Console) -> dict[str, Any]:
        record = pipeline.choose_depth(str(llama_directory), shards, out=out, console=console, **SETTINGS, **BUDGET)
        return {**record, "probe": {**record["probe"], "seconds": 0}}

    with pytest.raises(KeyboardInterrupt):
        answer(Stopping())
    resumed = Kept()
    record = answer(resumed)
    straight = read_json(answered[0] / "depth.json")
    assert record == {**straight, "probe": {**straight["probe"], "seconds": 0}}
    assert "Measuring" not in resumed.text
    again = Kept()
    assert answer(again) == record
    assert "nats a token after" not in again.text.replace("nats a token after equal", "")
    with pytest.raises(Refused, match=r"begun with another learning_rate \(0.005 there, 0.1 here\)"):
        pipeline.choose_depth(
            str(llama_directory), shards, out=out, console=Kept(), **{**SETTINGS, "learning_rate": 0.1}, **BUDGET
        )
    write_json(out / "asked.json", read_json(out / "asked.json") | {"device": "cuda, bfloat16"})
    with pytest.raises(Refused, match=r"begun with another device \(cuda, bfloat16 there, cpu, [a-z]+[0-9]+ here\)"):
        answer(Kept())


def test_losses_that_were_lost_are_asked_for(
    answered: tuple[Path, str], llama_directory: Path, shards: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    shutil.copytree(answered[0], out)
    (out / "depth.json").unlink()
    best = read_json(answered[0] / "depth.json")["recommended"]["lowest_loss"]
    (out / "losses" / f"{best.replace(':', '-')}.json").unlink()
    with pytest.raises(Failed, match=f"lacks those of {re.escape(best)}.*delete"):
        pipeline.choose_depth(str(llama_directory), shards, out=out, console=Kept(), **SETTINGS, **BUDGET)
    (out / "asked.json").write_text("{")
    with pytest.raises(Refused, match=r"asked\.json: damaged; restore it, or choose another"):
        pipeline.choose_depth(str(llama_directory), shards, out=out, console=Kept(), **SETTINGS, **BUDGET)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("depth.json", "{}"),
        ("depth.json", "[]"),
        ("depth.json", '{"layers": {}, "candidates": [], "probe": {}, "recommended": {}}'),
        ("layers.json", "{}"),
        ("layers.json", "[]"),
        ("layers.json", '{"prefixes": [1], "influence": [1], "chosen": {}, "degeneracy": null, "untrained": null}'),
        ("losses", "[]"),
        ("losses", "{}"),
        ("losses", '{"nats": [1.0], "correct": [1.0], "tokens": [1.0], "bytes": [1.0]}'),
    ],
)
def test_a_record_of_another_form_is_said(
    name: str, content: str, answered: tuple[Path, str], llama_directory: Path, shards: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    shutil.copytree(answered[0], out)
    if name != "depth.json":
        (out / "depth.json").unlink()
    best = read_json(answered[0] / "depth.json")["recommended"]["lowest_loss"].replace(":", "-")
    place = out / name if name != "losses" else out / "losses" / f"{best}.json"
    assert place.exists()
    place.write_text(content)
    with pytest.raises(Failed, match=f"{place.name}: damaged; delete it"):
        pipeline.choose_depth(str(llama_directory), shards, out=out, console=Kept(), **SETTINGS, **BUDGET)


def test_attention_that_is_not_finite_leaves_the_rest(
    llama_directory: Path, shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lost(*_: Any, **__: Any) -> Any:
        raise Failed("block 1: attention is not finite")

    monkeypatch.setattr(layerwise, "measure_degeneracy", lost)
    settings = {**SETTINGS, "probe_tokens": 0}
    record = pipeline.choose_depth(str(llama_directory), shards, out=tmp_path / "out", console=Kept(), **settings)
    assert record["layers"]["no_degeneracy"] == "block 1: attention is not finite"
    assert record["recommended"]["layers"]


def test_one_that_was_killed_as_it_began_is_begun_anew(llama_directory: Path, shards: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / ".asked.json.123.tmp").write_text("{")
    settings = {**SETTINGS, "probe_tokens": 0}
    assert pipeline.choose_depth(str(llama_directory), shards, out=tmp_path / "out", console=Kept(), **settings)


def test_without_training_choices_are_measured_alone(llama_directory: Path, shards: Path, tmp_path: Path) -> None:
    reference = find(str(llama_directory))
    two = surgery.plan_cut(reference, (0, 1)).parameters
    console = Kept()
    record = pipeline.choose_depth(
        str(llama_directory),
        shards,
        out=tmp_path / "out",
        max_parameters=two,
        probe_tokens=0,
        console=console,
        **SETTINGS,
    )
    assert record["most_layers"] == 2
    assert {len(row["layers"]) for row in record["candidates"]} == {1, 2}
    by_name = {row["name"]: row for row in record["candidates"]}
    best = min((row for row in record["candidates"] if len(row["layers"]) == 2), key=lambda row: row["untrained"])
    assert record["recommended"]["name"] == best["name"]
    scan = record["layers"]["prefixes"]
    for count in (1, 2):  # the scan runs the reference, this the cut
        assert by_name[f"first:{count}"]["untrained"] == pytest.approx(scan[count - 1]["loss"], abs=1e-4)
    assert not (tmp_path / "out" / "probe").exists()
    assert "Nothing was trained" in console.text


def test_a_budget_of_memory(llama_directory: Path, shards: Path, tmp_path: Path, answered: tuple[Path, str]) -> None:
    rows = {row["name"]: row for row in read_json(answered[0] / "depth.json")["candidates"]}
    most = rows["first:2"]["memory_bytes"]
    assert rows["first:1"]["memory_bytes"] < most < rows["first:3"]["memory_bytes"]
    record = pipeline.choose_depth(
        str(llama_directory), shards, out=tmp_path / "out", max_memory=most, probe_tokens=0, console=Kept(), **SETTINGS
    )
    assert record["most_layers"] == 2
    assert max(row["memory_bytes"] for row in record["candidates"]) <= most


def test_a_reference_without_attention_shows_the_rest(shards: Path, tmp_path: Path, tokenizer_directory: Path) -> None:
    from transformers import MambaConfig, MambaForCausalLM

    config = MambaConfig(
        vocab_size=320, hidden_size=16, num_hidden_layers=2, state_size=4, bos_token_id=319, eos_token_id=319
    )
    config.num_attention_heads = 1
    MambaForCausalLM(config).save_pretrained(tmp_path / "mamba")
    shutil.copytree(tokenizer_directory, tmp_path / "mamba", dirs_exist_ok=True)
    console = Kept()
    record = pipeline.choose_depth(
        str(tmp_path / "mamba"), shards, out=tmp_path / "out", probe_tokens=0, console=console, **SETTINGS
    )
    assert record["layers"]["degeneracy"] is None
    assert "nothing to look at in attention" in console.text
    assert len(record["layers"]["influence"]) == 2
    assert not (tmp_path / "out" / "degeneracy.svg").exists()


def test_a_layer_without_attention_is_said(answered: tuple[Path, str]) -> None:
    layers = read_json(answered[0] / "layers.json")
    for measured in ("degeneracy", "untrained"):
        layers[measured]["rank"][1] = layers[measured]["column_share"][1] = None
    console = Kept()
    show_layers(layers, console)
    assert "layers without attention of tokens to tokens: 1; the others are shown" in console.text
    assert "no attention" in console.text


# ---- what is refused


def flags_of(values: dict[str, Any]) -> list[str]:
    return [word for name, value in values.items() for word in (f"--{name}", str(value))]


BAD: list[tuple[dict[str, Any], list[str]]] = [
    ({"max_parameters": "1K"}, ["--max_parameters 1,000", "one layer of", "parameters", "give more"]),
    ({"max_memory": "90KB"}, ["--max_memory 90,000", "a training step that takes", "give more"]),
    ({"max_parameters": "lots"}, ["--max_parameters", "'lots'", "1.5B"]),
    ({"max_memory": "1EB"}, ["--max_memory", "'1EB'", "24GB"]),
    ({"max_parameters": "0"}, ["--max_parameters", "1 or more"]),
    ({"probe_tokens": "1000"}, ["--probe_tokens 1,000", "give", "or 0"]),
    ({"probe_tokens": "-1"}, ["--probe_tokens"]),
    ({"sequence_length": 4096}, ["sequence_length", "too long"]),
    ({"sequence_length": 1}, ["--sequence_length", "2 or more"]),
    ({"batch_sequences": 0}, ["--batch_sequences", "1 or more"]),
    ({"learning_rate": 0}, ["--learning_rate", "above 0"]),
    ({"seed": -1}, ["--seed"]),
    ({"layers": 2}, ["--layers", "--help"]),
    ({"data": "nowhere"}, ["nowhere", "inheritune prepare"]),
    ({"reference_file": "x.gguf"}, ["x.gguf"]),
]


@pytest.mark.parametrize(("values", "words"), BAD)
def test_bad_input_is_one_line_and_nothing_is_written(
    values: dict[str, Any],
    words: list[str],
    llama_directory: Path,
    shards: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    given = {"data": shards, "sequence_length": 32, "batch_sequences": 4, "out": tmp_path / "a" / "out", **values}
    assert cli.main(["depth", str(llama_directory), *flags_of(given)]) == 2
    said = capsys.readouterr().err.strip().splitlines()[-1]
    for word in words:
        assert word in said
    assert list(tmp_path.iterdir()) == []


def test_data_is_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["depth", "packaged:demo"]) == 2
    assert "--data missing" in capsys.readouterr().err


def refused(tmp_path: Path, reference: Path | str, data: Path) -> str:
    """What is said, and that nothing was written."""
    out = tmp_path / "b" / "out"
    with pytest.raises(Refused) as error:
        pipeline.choose_depth(str(reference), data, out=out, console=Kept(), **SETTINGS, **BUDGET)
    assert not out.parent.exists()
    assert "\n" not in str(error.value)
    return str(error.value)


def test_shards_without_a_development_set_are_refused(
    llama_directory: Path, make_prepared: Callable[..., Prepared], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("inheritune.pipeline.direct.check_tokenizer", lambda *_: None)
    data = make_prepared({"train": [[1] * 100], "held-out": [[1] * 9]}).directory
    assert "holds no development set to choose by" in refused(tmp_path, llama_directory, data)
    short = make_prepared({"train": [[1] * 20], "development": [[1] * 9]}, "short").directory
    assert "20 training tokens fill no block of 32" in refused(tmp_path, llama_directory, short)


def test_shards_of_another_tokenizer_are_refused(shards: Path, tmp_path: Path) -> None:
    said = refused(tmp_path, "packaged:demo", shards)
    assert "prepared with another tokenizer than packaged:demo's" in said


def test_a_reference_of_one_layer_is_refused(llama_directory: Path, shards: Path, tmp_path: Path) -> None:
    surgery.inherit(find(str(llama_directory)), (0,), tmp_path / "one")
    assert "has 1 layer" in refused(tmp_path, tmp_path / "one", shards)


def test_a_directory_of_something_else_is_left_alone(llama_directory: Path, shards: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("mine")
    with pytest.raises(Refused, match="not empty, and nothing that `inheritune depth` began"):
        pipeline.choose_depth(str(llama_directory), shards, out=tmp_path / "out", console=Kept(), **SETTINGS)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["mine.txt"]


def test_what_is_refused_late_leaves_nothing(
    llama_directory: Path, shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_arguments: Any, **_settings: Any) -> None:
        raise Refused("blocks run twice")

    monkeypatch.setattr("inheritune.layerwise.scan_prefixes", refuse)
    assert refused(tmp_path, llama_directory, shards) == "blocks run twice"


def test_a_choice_that_cannot_be_proven_is_left_out(
    llama_directory: Path, shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inherit = surgery.inherit

    def some(reference: Any, layers: tuple[int, ...], out: Path) -> Any:
        if layers == (0, 1, 2):
            raise Refused("block 2 needs block 3")
        return inherit(reference, layers, out)

    monkeypatch.setattr(surgery, "inherit", some)
    console = Kept()
    record = pipeline.choose_depth(
        str(llama_directory), shards, out=tmp_path / "out", probe_tokens=0, console=console, **SETTINGS
    )
    assert "first:3 is left out: block 2 needs block 3" in console.text
    assert "first:3" not in [row["name"] for row in record["candidates"]]
    assert Candidate("first:3", (0, 1, 2)).layers not in [tuple(row["layers"]) for row in record["candidates"]]


# ---- what is shown


def printed(table: Any, width: int) -> str:
    console = RichConsole(file=io.StringIO(), width=width)
    console.print(table)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


@pytest.mark.parametrize("width", [72, 80, 99, 100, 120])
def test_tables_fit_and_cut_no_number(answered: tuple[Path, str], width: int) -> None:
    record = read_json(answered[0] / "depth.json")
    for text in (
        printed(candidates_table(record, width=width), width),
        printed(layers_table(record["layers"], width=width), width),
    ):
        assert "…" not in text
        assert max(map(len, text.splitlines())) <= width
    text = printed(candidates_table(record, width=width), width)
    (row,) = (line.split() for line in text.splitlines() if "→" in line)
    assert row[1] == record["recommended"]["name"]
    assert ("GB" in text) == (width >= 100)


def test_the_figure_is_drawn_to_scale(answered: tuple[Path, str]) -> None:
    record = read_json(answered[0] / "depth.json")
    svg = ElementTree.fromstring((answered[0] / "depth.svg").read_text())
    space = "{http://www.w3.org/2000/svg}"
    same, equal = [
        [tuple(map(float, pair.split(","))) for pair in line.attrib["points"].split()]
        for line in svg.findall(f"{space}polyline")
    ]
    rungs = len(record["probe"]["rungs"])
    rows = [row for row in record["candidates"] if len(row["losses"]) == rungs]
    shown = []
    for points, key in ((same, "equal_tokens"), (equal, "losses")):
        best = [min(row[key][-1] for row in rows if len(row["layers"]) == depth) for depth in (1, 2, 3)]
        shown += [(loss, y) for loss, (_, y) in zip(best, points, strict=True)]
    (least, low), (most, high) = min(shown), max(shown)
    assert high < low, "less is lower"
    for loss, y in shown:
        assert y == pytest.approx(low + (high - low) * (loss - least) / (most - least), abs=0.3)
    assert same[-1] == equal[-1], "the most layers see equal tokens at equal FLOPs"
    (ring,) = (one for one in svg.findall(f"{space}circle") if one.attrib["r"] == "6")
    assert (float(ring.attrib["cx"]), float(ring.attrib["cy"])) in equal
    assert f"Recommended: {record['recommended']['name']}" in svg.attrib["aria-label"]


def test_the_figure_without_training(answered: tuple[Path, str]) -> None:
    record = read_json(answered[0] / "depth.json")
    record["probe"]["rungs"] = []
    for row in record["candidates"]:
        row["losses"] = row["equal_tokens"] = []
    svg = depth_svg(record)
    assert "First n, untrained" in svg
    assert "nothing was trained" in printed(candidates_table(record), 120)
