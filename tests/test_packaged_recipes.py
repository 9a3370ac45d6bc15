"""The poster's ten systems at their real size, without weights: what their recipes say is what their configs give.

`systems.json` holds each config as it is on the hub, trimmed to what defines the model, and how its parameters add up:
those of one layer and those outside the layers, part by part, worked out by hand from the formula beside them.
"""

from __future__ import annotations

import json
import tempfile
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from inheritune.corpus import check_sources
from inheritune.planning import matrix_parameters, training_flops_per_token
from inheritune.recipe import load_recipe, packaged_recipes
from inheritune.surgery import cut_config

SYSTEMS: dict[str, dict[str, Any]] = json.loads((Path(__file__).parent / "systems.json").read_text(encoding="utf-8"))
LOW_DATA = [name for name in SYSTEMS if not name.startswith("gpt2")]
SMOLLM2 = ["smollm2", "smollm2_gpu"]
A6000_FLOPS_A_SECOND = 155e12
"""Dense, bfloat16, at its peak."""


def comment(name: str) -> str:
    """A recipe's opening comment as one line."""
    text = (resources.files("inheritune") / "recipes" / f"{name}.yaml").read_text(encoding="utf-8")
    lines = text.splitlines()
    opening = lines[: next(number for number, line in enumerate(lines) if not line.startswith("#"))]
    return " ".join(" ".join(line.removeprefix("#") for line in opening).split())


def words(count: int) -> str:
    """A number of parameters as the comments state it."""
    return f"{count / 1e9:.2f}B" if count >= 1e9 else f"{count / 1e6:.0f}M"


def kept(name: str) -> int:
    """How many layers a system's recipe keeps."""
    layers = load_recipe(name).inherit.layers
    return SYSTEMS[name]["layers"] // 2 if layers == "half" else int(layers)


@cache
def config_of(name: str) -> PretrainedConfig:
    """The config as transformers reads it, legacy keys and all, from a file like the hub's."""
    system = SYSTEMS[name]
    with tempfile.TemporaryDirectory() as directory:
        (Path(directory) / "config.json").write_text(json.dumps(system.get("built_as", system["config"])))
        config: PretrainedConfig = AutoConfig.from_pretrained(directory)
    return config


def without_memory(config: PretrainedConfig) -> PreTrainedModel:
    with torch.device("meta"):
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config)
    return model


def parameters(module: torch.nn.Module) -> int:
    """All parameters, a tied one once."""
    return sum(parameter.numel() for parameter in module.parameters())


def added_up(name: str, layers: int, *, built: bool = False) -> int:
    """A system's parameters by arithmetic; `built`: without those that transformers' own class does not have."""
    system = SYSTEMS[name]
    absent = system.get("built_without", []) if built else []
    one: int = sum(count for part, count in system["layer"].items() if part not in absent)
    outside: int = sum(system["outside"].values())
    return layers * one + outside


def test_there_is_a_recipe_for_each_system() -> None:
    assert len(SYSTEMS) == 10
    others = ["demo", "demo_reference", "growth_demo", *SMOLLM2]
    assert sorted([*SYSTEMS, *others]) == packaged_recipes()
    for name, system in SYSTEMS.items():
        recipe = load_recipe(name)
        assert recipe.reference == system["reference"]
        check_sources(recipe.data)


@pytest.mark.parametrize("name", SYSTEMS)
def test_the_config_has_as_many_parameters_as_add_up(name: str) -> None:
    system = SYSTEMS[name]
    assert added_up(name, system["layers"]) == system["parameters"]
    model = without_memory(config_of(name))
    assert model.config.num_hidden_layers == system["layers"]
    assert parameters(model) == added_up(name, system["layers"], built=True)
    assert all(parameter.device.type == "meta" for parameter in model.parameters())


@pytest.mark.parametrize("name", SYSTEMS)
def test_so_has_the_target_of_the_recipe_s_layers(name: str) -> None:
    system, layers = SYSTEMS[name], kept(name)
    assert layers == system["layers_after"]
    assert added_up(name, layers) == system["parameters_after"]
    before = config_of(name).to_dict()
    target = without_memory(cut_config(config_of(name), tuple(range(layers))))
    assert target.config.num_hidden_layers == layers
    assert parameters(target) == added_up(name, layers, built=True)
    assert config_of(name).to_dict() == before


@pytest.mark.parametrize("name", SYSTEMS)
def test_the_comment_states_these_numbers(name: str) -> None:
    system, said = SYSTEMS[name], comment(name)
    assert f"{system['layers']} layers, {words(system['parameters'])} parameters" in said
    assert f"first {system['layers_after']} layers, {words(system['parameters_after'])} parameters" in said
    assert f"{16 * system['parameters_after'] / 1e9:.0f} GB for weights, gradients and AdamW's moments" in said


def test_what_arithmetic_says_of_the_poster_s_headline() -> None:
    target = without_memory(cut_config(config_of("open_llama_3b"), tuple(range(13))))
    entries = matrix_parameters(target)
    flops = 6 * entries * 10**9
    said = comment("open_llama_3b")
    assert "1.82B parameters, not the poster's 1.5B" in said
    assert f"{entries / 1e9:.2f}B entries of its matrices, are {flops / 1e19:.1f}e19 FLOPs" in said
    assert f"{flops / A6000_FLOPS_A_SECOND / 3600:.0f} hours" in said


def test_mpt_is_told_from_transformers_own() -> None:
    system, said = SYSTEMS["mpt_1_3b"], comment("mpt_1_3b")
    hub, built = system["config"], system["built_as"]
    for key in ("vocab_size", "d_model", "n_heads", "n_layers", "max_seq_len", "no_bias"):
        assert hub[key] == built[key]
    assert hub["attn_qk_ln"]
    assert system["built_without"] == ["query_and_key_norms"]
    assert f"{system['parameters']:,} parameters" in said
    assert f"{system['layer']['query_and_key_norms']:,} parameters a layer" in said
    assert load_recipe("mpt_1_3b").trust_remote_code
    assert not any(load_recipe(name).trust_remote_code for name in SYSTEMS if name != "mpt_1_3b")


@pytest.mark.parametrize("name", ["open_llama_7b", "llama2_7b"])
def test_the_depth_that_the_poster_does_not_name_comes_nearest_to_its_size(name: str) -> None:
    sizes = {layers: abs(added_up(name, layers) - 1.5e9) for layers in range(1, 33)}
    assert min(sizes, key=sizes.__getitem__) == kept(name)


@pytest.mark.parametrize("name", LOW_DATA)
def test_the_low_data_settings_are_the_poster_s(name: str) -> None:
    recipe = load_recipe(name)
    data, train = recipe.data, recipe.train
    weights = {source.path.rpartition("/")[2].split("_")[0]: source.weight for source in data.sources}
    assert weights == {
        "arxiv": 2.5, "book": 4.5, "c4": 15, "cc": 67, "github": 4.5, "stackexchange": 2, "wikipedia": 4.5,
    }  # fmt: skip
    assert (data.tokens, data.passes, data.sequence_length) == (10**9, 8, 2048)
    assert train.batch_sequences * data.sequence_length == 131_072
    assert (train.learning_rate, train.warmup_steps, train.weight_decay) == (3e-4, 1000, 0.1)
    assert train.compute_dtype == "bfloat16"


@pytest.mark.parametrize("name", ["gpt2_medium", "gpt2_large"])
def test_the_full_data_settings_are_the_poster_s(name: str) -> None:
    recipe = load_recipe(name)
    data, train = recipe.data, recipe.train
    assert data.sequence_length == config_of(name).max_position_embeddings == 1024
    assert 45_000 < train.batch_sequences * data.sequence_length < 55_000
    assert (train.max_steps, train.warmup_steps) == (100_000, 2000)
    assert (train.learning_rate, train.final_learning_rate) == (2e-4, 1e-5)
    assert (train.beta1, train.beta2, train.weight_decay, train.gradient_clip) == (0.9, 0.95, 0.1, 1.0)
    assert config_of(name).vocab_size == 50_257
    assert "50,257 rows" in comment(name)
    assert "50,304 rows" in comment(name)


@pytest.mark.parametrize("name", SYSTEMS)
def test_a_recipe_s_sequences_and_batches_fit(name: str) -> None:
    recipe, config = load_recipe(name), SYSTEMS[name]["config"]
    positions = config.get("max_position_embeddings") or config.get("n_positions") or config["max_seq_len"]
    assert recipe.data.sequence_length <= positions
    assert recipe.train.micro_batch_sequences != "auto"
    assert recipe.train.batch_sequences % recipe.train.micro_batch_sequences == 0


# ---- the real model that a laptop can train


def smollm2_config() -> PretrainedConfig:
    """SmolLM2-135M's shape, as its config on the hub gives it."""
    return AutoConfig.for_model(
        "llama",
        vocab_size=49_152,
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        max_position_embeddings=8192,
        tie_word_embeddings=True,
    )


@pytest.mark.parametrize("name", SMOLLM2)
def test_smollm2_s_recipes_keep_the_poster_s_own_half(name: str) -> None:
    recipe, whole = load_recipe(name), smollm2_config()
    assert (recipe.reference, recipe.inherit.layers) == ("HuggingFaceTB/SmolLM2-135M", "half")
    assert recipe.controls == ["random", "cut"]
    target = without_memory(cut_config(whole, tuple(range(15))))
    assert (parameters(without_memory(whole)), parameters(target)) == (134_515_008, 81_413_568)
    assert "30 layers, 135M parameters; its first 15 layers: 81M" in comment(name)
    assert "--inherit.layers probe:15" in comment(name)
    check_sources(recipe.data)


def test_smollm2_s_steps_are_what_the_comments_state() -> None:
    for name in SMOLLM2:
        data, train = load_recipe(name).data, load_recipe(name).train
        assert data.tokens is not None
        step = train.batch_sequences * data.sequence_length
        steps = -(-(data.tokens // data.sequence_length * data.passes) // train.batch_sequences)
        text = (resources.files("inheritune") / "recipes" / f"{name}.yaml").read_text(encoding="utf-8")
        assert f"{step:,} tokens a step, {steps:,} steps" in text


def test_smollm2_on_a_gpu_stays_within_a_hundredth_of_the_outside_baseline_s_tokens() -> None:
    data = load_recipe("smollm2_gpu").data
    assert data.tokens is not None
    trained = data.tokens * data.passes
    assert trained <= 0.01 * 30.6e9
    model = without_memory(cut_config(smollm2_config(), tuple(range(15))))
    flops = training_flops_per_token(model, data.sequence_length) * trained
    said = comment("smollm2_gpu")
    assert (
        f"{flops / 1e17:.1f}e17 FLOPs a model, {flops / (0.4 * 312e12) / 60:.0f} minutes at 40% of an A100's peak"
        in said
    )
    assert f"{16 * parameters(model) / 1e9:.1f} GB for weights" in said
