"""What a recipe costs, known before there is text or a weight: against arithmetic by hand, and against what is real."""

from __future__ import annotations

import dataclasses
import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, LlamaConfig

from inheritune import energy, hardware, surgery
from inheritune.cli import main
from inheritune.config import Recipe, TrainConfig
from inheritune.console import Console
from inheritune.costs import Data, Training, in_words, judged, spending
from inheritune.devices import ON_GPUS, SHEETS, Device, named
from inheritune.errors import Refused
from inheritune.memory import Memory, predicted
from inheritune.pipeline import Circumstances, make_plan, planned_memory, run
from inheritune.pipeline.planned_memory import Fitting, extrapolated
from inheritune.pipeline.planned_models import Planned, parameters_by_part
from inheritune.pipeline.step_timing import timed
from inheritune.recipe import load_recipe
from inheritune.reference import block_list, outline, prefix_parameters, weightless
from inheritune.report import render_plan, three_lines
from inheritune.rules import impossible
from inheritune.tokens import TrainingBlocks

SYSTEMS: dict[str, dict[str, Any]] = json.loads((Path(__file__).parent / "systems.json").read_text(encoding="utf-8"))
A6000 = Circumstances(device="a6000")
TINY: dict[str, Any] = {
    "model_type": "llama", "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 64, "tie_word_embeddings": True,
}  # fmt: skip


def recipe_of(path: Path, text: str, flags: tuple[str, ...] = ()) -> Recipe:
    """A recipe from its YAML."""
    file = path / "recipe.yaml"
    file.write_text(text, encoding="utf-8")
    return load_recipe(str(file), list(flags))


def tiny(path: Path, *flags: str, grow: str = "") -> Recipe:
    """An architecture of 4 layers, 32,769 tokens in sequences of 64, 8 of them a step."""
    text = f"architecture: {{config: {json.dumps(TINY)}, vocabulary: 300}}\n{grow}\n"
    text += (
        "data: {sources: [x.txt], tokens: 32769, sequence_length: 64, validation_tokens: 1K, development_tokens: 1K}\n"
    )
    text += "train: {batch_sequences: 8, micro_batch_sequences: 4, warmup_steps: 2, compile: never}\n"
    return recipe_of(path, text, flags)


class Counted:
    """A token set, as far as blocks are counted."""

    def __init__(self, tokens: int) -> None:
        self.tokens = tokens

    def expect_random_reads(self) -> None:
        """Nothing is read."""


def device(gibibytes: float = 1.0, **changes: Any) -> Device:
    """A GPU of so much memory."""
    made = Device("a6000", "a GPU", "bfloat16", 1e12, int(gibibytes * 2**30), 100.0, "a sheet", ON_GPUS)
    return dataclasses.replace(made, **changes)


# Devices, steps, and what arithmetic takes


def test_devices_are_those_by_which_utilisation_is_measured() -> None:
    called = {
        "a6000": "RTX A6000", "a100": "A100-SXM4-80GB", "h100": "H100 80GB HBM3", "h200": "H200",
        "rtx4090": "GeForce RTX 4090",
    }  # fmt: skip
    assert tuple(called) == SHEETS
    for name, title in called.items():
        ours = named(name, "bfloat16", cpu_memory_bytes=0)
        peak = next(one for one in hardware._PEAKS if re.fullmatch(one.name, title))
        assert ours.peak_flops == peak.half * 1e12
        assert named(name, "float32", cpu_memory_bytes=0).peak_flops == peak.float32 * 1e12


def test_a_cpu_has_the_cores_that_this_process_may_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0, 3, 5})
    found = named("cpu", "float32", cpu_memory_bytes=7)
    assert (found.title, found.peak_flops, found.memory_bytes) == ("CPU, 3 cores", 3 * 100e9, 7)


@pytest.mark.parametrize(
    ("tokens", "passes", "most"), [(1000, 1, None), (1001, 3, None), (64 * 7 + 1, 2, 2), (65, 5, 9)]
)
def test_steps_are_those_of_training(tokens: int, passes: int, most: int | None) -> None:
    blocks = TrainingBlocks(Counted(tokens), 64, passes, 4, 0)  # type: ignore[arg-type]
    data = Data(tokens, 64, 4)
    steps = min(blocks.steps, most or blocks.steps)
    assert data.steps(passes, most) == steps
    assert data.seen(steps, passes) == blocks.tokens_of(steps)


def test_hours_energy_and_money_by_hand() -> None:
    found = spending(3600e12, device(), 2, price=1.5, extra_flops=3600e12)
    assert found.floor_hours == pytest.approx(0.5)
    assert found.hours == pytest.approx((1 / 0.55, 1 / 0.40, 1 / 0.25))
    assert found.kilowatt_hours == pytest.approx(2.5 * 2 * 0.1)
    assert found.money == pytest.approx(2.5 * 2 * 1.5)
    assert spending(1.0, device(watts=None), 1).kilowatt_hours is None
    assert spending(1.0, device(), 1).money is None


@pytest.mark.parametrize(
    ("tokens", "said"), [(999.7e6, "1.00B"), (8e9, "8.00B"), (619.8e6, "620M"), (12_345, "12.3K"), (999, "999")]
)
def test_numbers_of_tokens_have_three_digits(tokens: float, said: str) -> None:
    assert in_words(tokens) == said


# Claims


def test_the_poster_s_headline_beats_the_peak() -> None:
    """Half a day on one A6000 for OpenLLaMA-3B's first 13 layers and 1B tokens."""
    entries = 13 * (4 * 3200**2 + 3 * 3200 * 8640) + 32000 * 3200
    attention = 12 * 13 * 3200 * 2049 / 2
    one_pass = (6 * entries + attention) * 1e9 / 154.8e12 / 3600
    assert one_pass == pytest.approx(19.4, abs=0.1)
    with pytest.raises(Refused) as error:
        make_plan(load_recipe("open_llama_3b"), dataclasses.replace(A6000, claim_hours=12), quick=True)
    said = str(error.value)
    assert "\n" not in said
    assert f"even one pass over 1.00B {one_pass:.3g} (18.4 without attention): 12 hours cannot be" in said
    assert f"{8 * one_pass:.3g} hours at the dense peak of 1 NVIDIA RTX A6000" in said
    assert f"{math.ceil(8 * one_pass / 12)} of them at their peak" in said
    assert f"{math.ceil(8 * one_pass / 12 * 154.8 / 989.5 / 0.4)} NVIDIA H100" in said
    assert "at most 620M tokens" in said


def test_enough_devices_or_hours_or_fewer_tokens_keep_it() -> None:
    training = Training(10**9, 10**9, 1e3, 0.0)
    needed = 1e12 / 1e12 / 3600
    assert judged(needed * 1.01, device(), 1, training).utilisation == pytest.approx(1 / 1.01)
    with pytest.raises(Refused):
        judged(needed * 0.99, device(), 1, training)
    assert "50% of the peak; 25% to 55% are usual" in judged(needed, device(), 2, training).verdict
    assert judged(needed / 2, device(), 1, dataclasses.replace(training, tokens=10**9 // 4)).utilisation < 0.6
    assert "would take 80%" in judged(needed / 0.8, device(), 1, training).verdict


def test_a_device_s_name_is_known_in_capitals_too(tmp_path: Path) -> None:
    assert make_plan(tiny(tmp_path), Circumstances("A100"), quick=True)["device"]["name"] == "a100"


def test_steps_that_would_all_be_warm_up_are_refused_before_there_is_data(tmp_path: Path) -> None:
    with pytest.raises(Refused, match=r"allowed: fewer than the steps that data.tokens last for \(5\)"):
        load_recipe("demo", ["--data.tokens", "20K", "--data.passes", "1"])
    flags = ["--data.tokens", "20K", "--data.passes", "1", "--train.warmup_steps", "2"]
    assert load_recipe("demo", flags).train.warmup_steps == 2


def test_a_mixture_is_planned_and_its_memory_is_said_not_to_be_predicted(tmp_path: Path) -> None:
    shape = {key: value for key, value in TINY.items() if key != "model_type"}
    config = AutoConfig.for_model("mixtral", **shape, num_local_experts=4, vocab_size=300)
    config.save_pretrained(tmp_path / "mixture")
    text = f"reference: {tmp_path / 'mixture'}\ndata: {{sources: [x], tokens: 1M, sequence_length: 64}}\n"
    plan = make_plan(recipe_of(tmp_path, text), A6000)
    assert plan["memory"] is None
    assert any("memory cannot be predicted" in note for note in plan["notes"])


def test_a_rate_that_is_no_bound_refuses_no_claim(tmp_path: Path) -> None:
    training = Training(10**9, 10**9, 1e3, 0.0)
    found = judged(0.5e12 / 1e12 / 3600, device(bounds=False, source="measured"), 1, training)
    assert "would take 200% of a rate that is no bound (measured)" in found.verdict
    for name in ("cpu", "measured"):
        plan = make_plan(tiny(tmp_path), Circumstances(device=name, claim_hours=1e-9), quick=True)
        assert "no bound" in plan["claim"]["verdict"]
    with pytest.raises(Refused, match="cannot be"):
        make_plan(tiny(tmp_path), Circumstances(device="a6000", claim_hours=1e-9), quick=True)


def test_devices_without_a_sequence_make_nothing_faster(tmp_path: Path) -> None:
    eight, many = (make_plan(tiny(tmp_path), Circumstances("h100", count, price=1.0), quick=True) for count in (8, 64))
    assert many["total"]["hours"] == eight["total"]["hours"]
    assert many["total"]["money"] == pytest.approx(8 * eight["total"]["money"])
    assert "8 of 64 devices work" in many["notes"][0]
    assert not [note for note in eight["notes"] if "devices work" in note]


def test_a_growth_s_claim_is_about_its_first_round_and_tells_of_its_last(tmp_path: Path) -> None:
    grow = "grow: {start: 1, step: 1, most: 3, pilot_steps: 0}"
    found = make_plan(tiny(tmp_path, grow=grow), Circumstances("a6000", claim_hours=1.0), quick=True)
    cost = {one["name"]: one["floor_hours"] for one in found["models"]}
    assert found["claim"]["floor_hours"] == pytest.approx(cost["round 1"])
    assert "if the first round of 1 layers matches" in found["claim"]["verdict"]
    assert f"{cost['round 3']:.0%} if it is the last, of 3 layers" in found["claim"]["verdict"]
    with pytest.raises(Refused, match="cannot be"):
        make_plan(tiny(tmp_path, grow=grow), Circumstances("a6000", claim_hours=0.9 * cost["round 1"]), quick=True)


def test_this_machine_s_power_is_that_of_its_ledger(tmp_path: Path) -> None:
    plan = make_plan(tiny(tmp_path), quick=True)
    power = energy.rated_power(None, torch.get_num_threads())
    assert power is not None
    assert plan["device"]["watts"] == power[0]
    assert plan["total"]["kilowatt_hours"] == pytest.approx(power[0] / 1000 * plan["total"]["hours"]["likely"])


# Models


def test_packaged_configs_are_those_that_are_tested() -> None:
    assert {system["reference"] for system in SYSTEMS.values()} == {load_recipe(name).reference for name in SYSTEMS}
    for system in SYSTEMS.values():
        found, origin = outline(system["reference"], fetch=False)
        assert "this package" in origin
        assert found.layers == system["layers"]


@pytest.mark.parametrize("name", SYSTEMS)
def test_a_packaged_recipe_is_planned_without_a_network(name: str) -> None:
    system, plan = SYSTEMS[name], make_plan(load_recipe(name), A6000, quick=True)
    models = {one["name"]: one for one in plan["models"]}
    target = next(one for key, one in models.items() if key in ("target", "round 1"))
    absent = sum(system["layer"][part] for part in system.get("built_without", []))
    assert plan["reference"]["parameters"] == system["parameters"] - system["layers"] * absent
    if "target" in models:
        assert target["parameters"] == system["parameters_after"] - system["layers_after"] * absent
    for one in models.values():
        assert sum(one["parts"].values()) == one["parameters"]
        assert "other" not in one["parts"]
    assert len(three_lines(plan)) == 3


@pytest.mark.parametrize("name", ["smollm2", "smollm2_gpu"])
def test_half_of_smollm2_is_planned_without_a_network(name: str) -> None:
    plan = make_plan(load_recipe(name), Circumstances(device="a100"), quick=True)
    sizes = {one["name"]: one["parameters"] for one in plan["models"]}
    assert (plan["reference"]["parameters"], sizes) == (134_515_008, {"target": 81_413_568, "random": 81_413_568})


def test_parts_by_hand() -> None:
    config = LlamaConfig(**{key: value for key, value in TINY.items() if key != "model_type"}, vocab_size=300)
    tied = parameters_by_part(weightless(config))
    assert tied == {
        "embeddings": 300 * 32,
        "attention": 4 * (32 * 32 * 2 + 2 * 32 * 16),
        "mlp": 4 * 3 * 32 * 64,
        "norms": 9 * 32,
        "head": 0,
    }
    config.tie_word_embeddings = False
    assert parameters_by_part(weightless(config)) == tied | {"head": 300 * 32}


def test_a_reference_that_is_nowhere_says_how_to_fetch_its_config() -> None:
    with pytest.raises(Refused, match=r"hf download some/model config\.json"):
        outline("some/model")
    with pytest.raises(Refused, match=r"hf download some/model model\.gguf"):
        outline("some/model", reference_file="model.gguf")


def test_a_directory_needs_its_config_alone(tmp_path: Path, llama_directory: Path) -> None:
    (tmp_path / "config.json").write_bytes((llama_directory / "config.json").read_bytes())
    text = f"reference: {tmp_path}\ndata: {{sources: [x], tokens: 1M, sequence_length: 128}}\ncontrols: [random, cut]"
    plan = make_plan(recipe_of(tmp_path, text), A6000, quick=True)
    assert [(one["name"], one["layers"]) for one in plan["models"]] == [("target", 2), ("random", 2)]


def test_twice_the_steps_and_several_rates_cost_as_much_more(tmp_path: Path, llama_directory: Path) -> None:
    text = f"reference: {llama_directory}\ndata: {{sources: [x], tokens: 1M, sequence_length: 128}}\n"
    text += 'controls: [random, "random:2x", distill, half-width]\ntrain: {learning_rate: [1e-4, 3e-4]}'
    models = {one["name"]: one for one in make_plan(recipe_of(tmp_path, text), A6000, quick=True)["models"]}
    target = models["target"]
    assert target["training_flops"] == pytest.approx(2 * target["tokens"] * target["flops_per_token"])
    assert models["random:2x"]["training_flops"] == pytest.approx(2 * target["training_flops"], rel=0.01)
    assert models["half-width"]["layers"] == 4
    assert models["half-width"]["parts"]["embeddings"] == target["parts"]["embeddings"] / 2
    whole = make_plan(recipe_of(tmp_path, text, ("--inherit.layers", "4")), A6000, quick=True)["models"][0]
    assert models["distill"]["other"]["teacher"] == pytest.approx(whole["training_flops"] / 3)
    assert "teacher" not in target["other"]


def test_a_growth_s_total_by_hand(tmp_path: Path) -> None:
    grow = "grow: {start: 1, step: 1, most: 3, pilot_steps: 0, decision_seeds: 2}\ncontrols: [random@1, random]"
    plan = make_plan(tiny(tmp_path, grow=grow), A6000, quick=True)
    cost = {one["name"]: one["training_flops"] for one in plan["models"]}
    by_depth = [cost[f"round {number}"] for number in (1, 2, 3)]
    assert list(cost) == ["reference", "round 1", "round 2", "round 3", "random@1", "random"]
    totals = []
    for number, last in enumerate(by_depth, 1):
        # of the first depth `random@1` would be `random` again
        controls = last + (cost["random@1"] if number > 1 else 0)
        totals.append(cost["reference"] + sum(by_depth[:number]) + last + controls)
    growth = plan["growth"]
    assert growth["first_matches"]["training_flops"] == pytest.approx(totals[0])
    assert growth["last_matches"]["training_flops"] == pytest.approx(totals[2])
    assert growth["expected"]["training_flops"] == pytest.approx(sum(totals) / 3)


def test_a_warm_round_takes_half_the_steps_and_a_pilot_is_counted(tmp_path: Path) -> None:
    plan = make_plan(tiny(tmp_path, grow="grow: {start: 2, growth: warm, pilot_steps: 8}"), A6000, quick=True)
    models = {one["name"]: one for one in plan["models"]}
    assert (models["round 1"]["steps"], models["round 2"]["steps"]) == (64, 32)
    cost = {name: one["training_flops"] for name, one in models.items()}
    pilot = models["round 2"]["flops_per_token"] * 8 * 8 * 64
    first = cost["reference"] + cost["round 1"] + pilot
    assert plan["growth"]["first_matches"]["training_flops"] == pytest.approx(first)


def test_recomputing_costs_a_forward_pass_of_the_blocks(tmp_path: Path) -> None:
    plan = make_plan(tiny(tmp_path, "--train.activation_checkpointing", "true"), A6000, quick=True)
    target = plan["models"][0]
    blocks = target["flops_per_token"] - 6 * 300 * 32
    assert target["other"]["recomputation"] == pytest.approx(target["tokens"] * blocks / 3)


def test_validation_is_counted(tmp_path: Path) -> None:
    plan = make_plan(tiny(tmp_path, "--train.validate_every_steps", "16"), A6000, quick=True)
    target = plan["models"][0]
    assert target["steps"] == 64
    # before, after 16, 32, 48 and 64 steps, and once more what was exported
    assert target["other"]["validation"] == pytest.approx(6 * 2000 * target["flops_per_token"] / 3)


# Memory


DEEP: dict[str, dict[str, Any]] = {
    "llama": TINY | {"num_hidden_layers": 7},
    "gpt2": {"model_type": "gpt2", "n_embd": 32, "n_layer": 7, "n_head": 4, "n_positions": 64},
    # one layer of three sees everything, the others a window
    "gemma2": TINY
    | {"model_type": "gemma2", "num_hidden_layers": 20, "head_dim": 8, "sliding_window": 8}
    | {"layer_types": [("full" if layer % 3 == 2 else "sliding") + "_attention" for layer in range(20)]},
}


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("kind", ["llama", "gpt2", "gemma2"])
def test_a_deep_model_s_memory_is_that_of_a_few_shallow_ones(kind: str, checkpointing: bool) -> None:
    model = weightless(AutoConfig.for_model(**DEEP[kind], vocab_size=300))
    train = TrainConfig(activation_checkpointing=checkpointing, batch_sequences=8)
    settings: dict[str, Any] = {"sequence_length": 32, "micro_batch": 2, "dtype": torch.float32, "device": "cpu"}
    ours = extrapolated(model, train, trust_remote_code=False, **settings)
    real = predicted(model.config, train, **settings)
    assert ours.total == pytest.approx(real.total, rel=0.02)
    assert (ours.weights, ours.gradients, ours.optimizer) == (real.weights, real.gradients, real.optimizer)


@pytest.mark.parametrize(
    ("kind", "run"), [("llama", [[2], [4]]), ("gemma2", [[4], [6], [6]])], ids=["of one kind", "of two"]
)
def test_shallow_models_have_two_layers_of_each_kind_and_two_more(
    kind: str, run: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[list[int]] = []

    def counted(config: Any, *_: Any, **__: Any) -> Memory:
        seen.append([config.num_hidden_layers])
        return Memory(**dict.fromkeys((one.name for one in dataclasses.fields(Memory)), 100 * config.num_hidden_layers))

    monkeypatch.setattr("inheritune.pipeline.planned_memory.predicted", counted)
    model = weightless(AutoConfig.for_model(**DEEP[kind], vocab_size=300))
    found = extrapolated(model, TrainConfig(), trust_remote_code=False, micro_batch=4)
    assert seen == run
    assert found.activations == 100 * model.config.num_hidden_layers


def test_layers_that_are_all_unlike_are_predicted_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []

    def counted(config: Any, *_: Any, **__: Any) -> Memory:
        seen.append(config.num_hidden_layers)
        return Memory(1, 1, 1, 1, 1, 1)

    monkeypatch.setattr("inheritune.pipeline.planned_memory.predicted", counted)
    model = weightless(AutoConfig.for_model(**DEEP["llama"], vocab_size=300))
    extrapolated(model, TrainConfig(batch_sequences=4), trust_remote_code=False, micro_batch=4)
    assert seen == [7], "without accumulation"
    monkeypatch.setattr(surgery, "forms", lambda model: list(map(str, range(len(block_list(model)[1])))))
    extrapolated(model, TrainConfig(), trust_remote_code=False, micro_batch=4)
    assert seen == [7, 7]


def fitting(usable: int, *, count: int = 1, **changes: Any) -> Fitting:
    """A small LLaMA's training on a device with so many bytes for it; its matrices are large enough to be quantised."""
    shape = TINY | {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2}
    config = LlamaConfig(**{key: value for key, value in shape.items() if key != "model_type"}, vocab_size=300)
    train = TrainConfig(batch_sequences=32, micro_batch_sequences=8, compile="never", **changes)
    return Fitting(Planned("target", weightless(config), steps=1), train, 64, _Sized(usable), count)


class _Sized(Device):
    """A GPU of which all is usable."""

    def __init__(self, usable: int) -> None:
        super().__init__(**vars(device(usable / 2**30)))

    @property
    def usable_bytes(self) -> int:
        return self.memory_bytes


def test_the_largest_micro_batch_is_the_largest() -> None:
    sizes = {count: fitting(0).need(fitting(0).train, count).total for count in (1, 5, 6)}
    assert fitting(sizes[5]).largest(fitting(0).train) == 5
    assert fitting(sizes[6] - 1).largest(fitting(0).train) == 5
    assert fitting(sizes[1] - 1).largest(fitting(0).train) == 0


def test_it_fits_where_it_does_and_says_what_would_do() -> None:
    needed = fitting(0).record()["total_bytes"]
    assert fitting(needed).record()["fits"]
    assert fitting(needed).record()["would_fit"] == []
    tight = fitting(needed - 1).record()
    assert not tight["fits"]
    assert {"train": {"micro_batch_sequences": 7}} in tight["would_fit"]
    assert {"train": {"activation_checkpointing": True, "micro_batch_sequences": 8}} in tight["would_fit"]
    assert fitting(1000).record()["would_fit"] == []


@pytest.mark.parametrize(
    "changes", [{}, {"optimizer": "adamw_8bit"}, {"offload_optimizer": True}, {"parallel": "fsdp"}], ids=str
)
@pytest.mark.parametrize("room", [0.1, 0.5, 0.8])
def test_what_would_do_is_what_a_recipe_may_say(changes: dict[str, Any], room: float) -> None:
    needed = fitting(0, **changes).record()["total_bytes"]
    train = fitting(0, **changes).train
    for one in fitting(int(room * needed), **changes).record()["would_fit"]:
        assert not [*impossible(Recipe(train=dataclasses.replace(train, **one["train"])))], one


def test_ranks_that_share_the_state_hold_a_part_of_it() -> None:
    alone, two = fitting(10**9).record(), fitting(10**9, count=2, parallel="fsdp").record()
    assert (alone["shared_by"], two["shared_by"]) == (1, 2)
    for part in ("weights", "gradients", "optimizer"):
        assert two["parts_bytes"][part] == alone["parts_bytes"][part] // 2
    assert two["parts_bytes"]["gathered"] > 0
    assert fitting(10**9, count=2, parallel="ddp").record()["shared_by"] == 1


def test_moments_in_8_bits_and_on_the_host() -> None:
    plain = fitting(10**9).record()
    eight = fitting(10**9, optimizer="adamw_8bit").record()
    host = fitting(10**9, offload_optimizer=True).record()
    assert 0 < eight["parts_bytes"]["optimizer"] < plain["parts_bytes"]["optimizer"] / 3
    assert host["parts_bytes"]["optimizer"] == 0
    assert host["host_bytes"] > plain["parts_bytes"]["optimizer"]


# The whole


def test_steps_are_timed_and_hours_are_by_them(tmp_path: Path) -> None:
    before = torch.random.get_rng_state()
    plan = make_plan(tiny(tmp_path), Circumstances())
    assert torch.equal(before, torch.random.get_rng_state())
    target, step = plan["models"][0], plan["step_seconds"]
    assert step["median"] > 0
    assert len(step["seconds"]) >= 3
    validated = 1 + target["other"]["validation"] / target["training_flops"]
    assert 3600 * target["hours"]["likely"] == pytest.approx(64 * step["median"] * validated, rel=1e-6)
    assert plan["device"]["name"] == "measured"
    assert plan["memory"]["fits"]


def test_what_is_timed_is_a_training(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two micro-batches a step, weights changed by it."""
    config = LlamaConfig(**{key: value for key, value in TINY.items() if key != "model_type"}, vocab_size=300)
    steps: list[float] = []
    real = torch.optim.AdamW.step

    def counted(self: torch.optim.AdamW, *arguments: Any) -> Any:
        weight = self.param_groups[0]["params"][0]
        earlier = weight.detach().clone()
        result = real(self, *arguments)
        steps.append(float((weight.detach() - earlier).abs().max()))
        return result

    monkeypatch.setattr(torch.optim.AdamW, "step", counted)
    found = timed(
        config,
        TrainConfig(batch_sequences=5, micro_batch_sequences=4, compile="never"),
        sequence_length=16,
        micro_batch=4,
        dtype=torch.float32,
        device=torch.device("cpu"),
        flops=0.0,
        trust_remote_code=False,
        report=print,
    )
    assert len(steps) == 2 + len(found.seconds)
    assert min(steps) > 0
    assert not found.compiled


def test_quick_predicts_no_activations(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planned_memory, "predicted", lambda *_, **__: pytest.fail("it takes too long"))
    plan = make_plan(tiny(tmp_path), A6000, quick=True)
    assert (plan["memory"], plan["step_seconds"]) == (None, None)
    assert plan["state_bytes"] == 16 * plan["models"][0]["parameters"]
    what, takes, needs = three_lines(plan)
    assert "4 layers" in what
    assert "64 steps of 512" in what
    assert "NVIDIA RTX A6000" in takes
    assert "48 GiB for weights, gradients and moments" in needs


def test_disk_by_hand(tmp_path: Path) -> None:
    plan = make_plan(tiny(tmp_path, "--train.checkpoint_every_steps", "20"), A6000, quick=True)
    parameters, disk = plan["models"][0]["parameters"], plan["disk"]
    assert disk["shards_bytes"] == 2 * (32769 + 2000)
    assert disk["checkpoints_bytes"] == 3 * 12 * parameters, "two are kept, and one goes when the next is whole"
    assert disk["total_bytes"] == sum(disk[f"{name}_bytes"] for name in ("shards", "checkpoints", "models"))


def test_other_data_takes_room_and_must_last(tmp_path: Path, llama_directory: Path) -> None:
    text = f"reference: {llama_directory}\ndata: {{sources: [x], tokens: 40K, sequence_length: 64}}\n"
    text += "train: {warmup_steps: 2}\n"
    plain = make_plan(recipe_of(tmp_path, text), A6000, quick=True)["disk"]["shards_bytes"]
    other = make_plan(recipe_of(tmp_path, text + "compare: {tokens: 50K}"), A6000, quick=True)
    assert other["disk"]["shards_bytes"] == plain + 2 * 50_000
    with pytest.raises(Refused, match="compare: 5,000 tokens in 1 passes are"):
        make_plan(recipe_of(tmp_path, text + "compare: {tokens: 5K}"), A6000, quick=True)


def test_the_command_prints_tables_or_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tiny(tmp_path)
    words = ["plan", str(tmp_path / "recipe.yaml"), "--device", "h100", "--devices", "2", "--price", "2.5"]
    assert main(words) == 0
    shown = " ".join(capsys.readouterr().out.split())
    for said in ("2 NVIDIA H100 80GB SXM", "NVIDIA H100 data sheet, SXM", "Embeddings", "Floor", "Price", "It fits"):
        assert said in shown
    assert main([*words, "--json", "--data.passes", "3"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan["data"]["passes"] == 3
    assert plan["device"]["count"] == 2
    assert plan["total"]["money"] > 0
    assert list(tmp_path.iterdir()) == [tmp_path / "recipe.yaml"]


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--device", "a600"], "'a600': no such device; did you mean 'a6000'?; known: a6000, a100"),
        (["--devices", "0"], "--devices 0: give 1 to 1,000,000,000"),
        (["--price", "-1"], "--price -1: give 0 or more"),
        (["--claim", "0"], "--claim 0: give the hours"),
        (["--device", "h200", "--claim", "1e-9"], "hours cannot be"),
        (["--data.tokens", "null"], "data.tokens is not set"),
        (["--data.tokens", "64"], "64 fill no block"),
        (["--data.sequence_length", "65"], "has 64 positions"),
        (["--nonsense", "1"], "nonsense"),
    ],
)
def test_bad_input_is_one_line(flags: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tiny(tmp_path)
    assert main(["plan", str(tmp_path / "recipe.yaml"), *flags]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1


def test_max_steps_stand_for_tokens(tmp_path: Path) -> None:
    recipe = tiny(tmp_path, "--data.tokens", "null", "--train.max_steps", "10")
    assert make_plan(recipe, A6000, quick=True)["models"][0]["tokens"] == 10 * 8 * 64


@pytest.mark.parametrize("width", [76, 120])
def test_tables_fit_the_terminal(width: int) -> None:
    plan = make_plan(load_recipe("growth_demo"), dataclasses.replace(A6000, price=1.0), quick=True)
    tables = [line.plain for line in render_plan(plan, width=width).renderables if hasattr(line, "plain")]
    rows = [line for line in tables if re.search(r"^(all|round|random)", line)]
    assert len(rows) > 10
    assert max(map(len, rows)) <= width
    assert any("starting its kernels" in line for line in tables)


class Heard(Console):
    """Keeps what is printed."""

    def __init__(self) -> None:
        super().__init__(silent=True)
        self.lines: list[str] = []

    def line(self, text: str) -> None:
        self.lines.append(text)

    def stage(self, text: str) -> None:
        self.lines.append(text)


@pytest.fixture
def text_file(tmp_path: Path) -> Path:
    """Documents enough for sets of every kind."""
    path = tmp_path / "texts.jsonl"
    lines = [json.dumps({"text": f"Document {number} of some words. " * 20}) for number in range(200)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def test_a_run_says_first_what_it_will_take(tmp_path: Path, text_file: Path, llama_directory: Path) -> None:
    text = f"reference: {llama_directory}\ntrain: {{warmup_steps: 1}}\n"
    text += f"data: {{sources: [{text_file}], tokens: 10K, sequence_length: 64, workers: 1, validation_share: 0.2}}\n"
    heard = Heard()
    run(recipe_of(tmp_path, text), tmp_path / "out", console=heard, until="prepare")
    assert heard.lines[0].startswith("Plan: 2 of 4 layers")
    assert "FLOPs, and" in heard.lines[1]
    assert heard.lines[2].strip().startswith("Memory:")
    kept = (tmp_path / "out" / "plan.json").read_bytes()
    assert [one["name"] for one in json.loads(kept)["models"]] == ["target"]
    run(recipe_of(tmp_path, text), tmp_path / "out", console=heard, until="prepare")
    assert (tmp_path / "out" / "plan.json").read_bytes() == kept, "what was foreseen first stays"


@pytest.mark.parametrize(("word", "budget"), [("probe:3", None), ("probe:3", 100_000), ("probe:{}", None)])
def test_a_probe_is_counted(word: str, budget: int | None, tmp_path: Path, llama_directory: Path) -> None:
    whole = outline(str(llama_directory), fetch=False)[0].skeleton
    sizes = prefix_parameters(whole)
    text = (
        f"reference: {llama_directory}\n"
        "data: {sources: [x.txt], tokens: 131073, sequence_length: 64, validation_tokens: 1K, development_tokens: 1K}\n"
        "train: {batch_sequences: 8, micro_batch_sequences: 4, warmup_steps: 2, compile: never}\n"
    )
    flags = ["--inherit.layers", word.format(f"{sizes[2] / 1000:.3f}K")]
    flags += ["--inherit.probe_tokens", str(budget)] if budget else []
    plan = make_plan(recipe_of(tmp_path, text, tuple(flags)), A6000, quick=True)
    models = {one["name"]: one for one in plan["models"]}
    assert (models["target"]["layers"], models["target"]["parameters"]) == (3, sizes[2])
    assert models["probe"]["tokens"] == (budget or 131_072 // 2)
    assert models["probe"]["training_flops"] / models["probe"]["tokens"] == models["target"]["flops_per_token"]
    assert plan["total"]["training_flops"] == sum(one["training_flops"] for one in plan["models"])
    assert any("measured on text" in note for note in plan["notes"])
