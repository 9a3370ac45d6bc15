"""Half the width: what becomes half and what stays, for every family; a model that is trained, saved and loaded."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from families import FAMILIES, LAYERS, VOCABULARY, Family
from family_table import WIDE_HEADS, WINDOW
from inheritune.errors import Refused
from inheritune.reference import Reference, block_list, fresh, parameters, weightless
from inheritune.surgery.narrow import half_width, half_width_config
from tiny import TOKENS, content, family, loaded, one_line, saved

# transformers 5.17 scripts parts of GPT BigCode
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")

FEW = TOKENS[:1, :12]
Make = Callable[..., Reference]

WIDTH = {"hidden_size": 16}
HEADS = {"num_attention_heads": 2}
INNER = {"intermediate_size": 24}
GROUPED = WIDTH | HEADS | INNER | {"num_key_value_heads": 1}
EXPERTS = {"moe_intermediate_size": 8}
LATENT = WIDTH | HEADS | INNER | {"num_key_value_heads": 2, "q_lora_rank": 8, "kv_lora_rank": 4}
GATED_DELTA = {"linear_num_key_heads": 1, "linear_num_value_heads": 2}

# All that changes in a config. Before it is 32 wide, 48 within MLPs, with 4 heads, most with 2 of keys and values.
CHANGED: dict[str, dict[str, Any]] = {
    "gpt2": {"n_embd": 16, "n_head": 2},
    "gpt_neo": {"hidden_size": 16, "num_heads": 2},
    "gpt_neox": WIDTH | HEADS | INNER,
    "gptj": {"n_embd": 16, "n_head": 2},  # the rotary dimension stays
    "opt": WIDTH | HEADS | {"ffn_dim": 24, "word_embed_proj_dim": 16},
    "opt 350m": WIDTH | HEADS | {"ffn_dim": 24, "word_embed_proj_dim": 8},
    "mpt": {"d_model": 16, "n_heads": 2},
    "bloom": {"hidden_size": 16, "n_head": 2},
    "falcon 7b": WIDTH | HEADS | {"ffn_hidden_size": 24, "num_kv_heads": 2},
    "falcon 40b": WIDTH | HEADS | {"ffn_hidden_size": 24, "num_kv_heads": 1},
    "ctrl": {"n_embd": 16, "n_head": 2, "dff": 24},
    **dict.fromkeys(["llama", "mistral", "qwen2", "qwen3", "phi", "phi3", "starcoder2", "mixtral", "gpt_oss"], GROUPED),
    **dict.fromkeys(["gemma2", "gemma3_text", "granite"], GROUPED),
    "minicpm3": LATENT,  # the base that its scores are scaled by stays
    "qwen3_moe": GROUPED | EXPERTS,
    "deepseek_v3": LATENT | EXPERTS,
    "qwen3_next": GROUPED | EXPERTS | GATED_DELTA | {"shared_expert_intermediate_size": 8},
    "falcon_h1": GROUPED | {"mamba_d_ssm": 32, "mamba_n_heads": 2, "mamba_n_groups": 1},
    "mamba": WIDTH | HEADS | {"intermediate_size": 32, "time_step_rank": 2},  # the states' size stays
    "nemotron_h": GROUPED | EXPERTS | {"moe_shared_expert_intermediate_size": 8, "mamba_num_heads": 2, "n_groups": 1},
    "recurrent_gemma": GROUPED | {"lru_width": 16},
    "rwkv": WIDTH | HEADS | INNER | {"attention_hidden_size": 16},
    "xlstm": WIDTH | HEADS | {"embedding_dim": 16, "num_heads": 2},
    "gemma3n_text": GROUPED
    | {"intermediate_size": [24, 20, 16, 24, 20, 16], "hidden_size_per_layer_input": 4, "laurel_rank": 2},
    "laguna": GROUPED
    | EXPERTS
    | {"shared_expert_intermediate_size": 8, "num_attention_heads_per_layer": [2, 2, 1, 2, 2, 1]},
    "dbrx": {"d_model": 16, "n_heads": 2, "num_key_value_heads": 1, "attn_config.kv_n_heads": 1}
    | {"ffn_config.hidden_size": 16, "ffn_config.ffn_hidden_size": 8},
    "dots3_note_text": LATENT
    | EXPERTS
    | {"index_n_heads": 4, "shared_experts_intermediate_size": 8}
    | {
        f"per_layer_config.{layer}.{name}": 1
        for layer in "234"
        for name in ("num_attention_heads", "num_key_value_heads")
    }
    | {f"per_layer_config.{layer}.q_lora_rank": 4 for layer in "234"},
}
NO_REFERENCE = {"hrm_text", "longcat_flash"}
"""Families whose blocks cannot be found."""
CHANGES = {"diffllama": {"num_key_value_heads": 4}}
"""What a tiny family needs to have a half: here two heads of keys and values."""
TIED = {"gpt2 tied", "opt 350m tied", "gemma2 tied"}
ROWS = [one for one in FAMILIES if one.name in TIED or not one.name.endswith(" tied")]


@pytest.fixture(scope="module")
def make(tmp_path_factory: pytest.TempPathFactory) -> Make:
    """A function from a family, or a config, and changes of its values, to a reference that is nowhere on disk."""
    found = saved("llama", tmp_path_factory.mktemp("llama"))

    def reference(one: Family | PretrainedConfig, **changes: Any) -> Reference:
        config: Any = one.config() if isinstance(one, Family) else one
        for name, value in changes.items():
            setattr(config, name, value)
        return replace(found, config=config, skeleton=weightless(config))

    return reference


def flat(values: dict[Any, Any], prefix: str = "") -> dict[str, Any]:
    """A config's values by dotted name, but for the version that wrote them."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, dict):
            found |= flat(value, f"{prefix}{name}.")
        elif name != "transformers_version":
            found[f"{prefix}{name}"] = value
    return found


def trained(model: PreTrainedModel) -> set[str]:
    """The parameters that one step's gradient reaches; it is finite."""
    loss = model.train()(input_ids=FEW, labels=FEW, use_cache=False).loss
    assert loss.isfinite()
    loss.backward()
    reached = {name: one.grad for name, one in model.named_parameters() if one.grad is not None}
    assert all(gradient.isfinite().all() for gradient in reached.values())
    return set(reached)


# ---- the config


@pytest.mark.parametrize("name", [one.name for one in FAMILIES if one.name in CHANGED])
def test_what_becomes_half_and_nothing_else(name: str, make: Make) -> None:
    reference = make(family(name))
    before = copy.deepcopy(reference.config.__dict__)
    half = half_width_config(reference)
    assert reference.config.__dict__ == before
    assert type(half) is type(reference.config)
    was, now = flat(reference.config.to_dict()), flat(half.to_dict())
    assert was.keys() == now.keys()
    assert {key: value for key, value in now.items() if value != was[key]} == CHANGED[name]


@pytest.mark.parametrize(
    ("heads", "shared", "expected"), [(8, 2, (4, 1)), (8, 4, (4, 2)), (8, 1, (4, 1)), (6, 3, (3, 3)), (8, 8, (4, 4))]
)
def test_heads_that_share_keys_and_values(heads: int, shared: int, expected: tuple[int, int], make: Make) -> None:
    reference = make(family("llama"), hidden_size=48, num_attention_heads=heads, num_key_value_heads=shared, head_dim=8)
    half = half_width_config(reference)
    assert (half.num_attention_heads, half.num_key_value_heads, half.head_dim) == (*expected, 8)


def test_sizes_within_are_rounded_up_and_what_is_derived_stays_so(make: Make) -> None:
    assert half_width_config(make(family("llama"), intermediate_size=49)).intermediate_size == 25
    assert half_width_config(make(family("gpt2"), n_inner=96)).n_inner == 48
    assert half_width_config(make(family("gpt2"))).n_inner is None
    latent = make(family("nemotron_h"), moe_latent_size=8)
    assert half_width_config(latent).moe_latent_size == 4


def test_the_text_model_of_several_becomes_half(make: Make) -> None:
    text = WIDE_HEADS | WINDOW
    vision = {"hidden_size": 20, "intermediate_size": 20, "num_hidden_layers": 1, "num_attention_heads": 2}
    vision |= {"image_size": 28, "patch_size": 14}
    reference = make(AutoConfig.for_model("gemma3", text_config=text, vision_config=vision))
    was, now = flat(reference.config.to_dict()), flat(half_width_config(reference).to_dict())
    changed = {key: value for key, value in now.items() if value != was[key]}
    assert changed == {f"text_config.{name}": value for name, value in GROUPED.items()}
    assert half_width(reference, 0)(input_ids=TOKENS).logits.shape == (*TOKENS.shape, VOCABULARY)


def test_it_inherits_nothing(make: Make) -> None:
    reference = make(family("llama"), inheritune={"layers_kept": [0]})
    assert not hasattr(half_width_config(reference), "inheritune")
    assert reference.config.inheritune == {"layers_kept": [0]}


# ---- what is refused


@pytest.mark.parametrize(
    ("name", "changes", "said"),
    [
        ("llama", {"num_attention_heads": 3, "num_key_value_heads": 1}, "num_attention_heads is 3, which has no half"),
        ("gpt2", {"n_embd": 33, "n_head": 3}, "hidden_size is 33, which has no half"),
    ],
)
def test_what_has_no_half_is_refused(name: str, changes: dict[str, int], said: str, make: Make) -> None:
    with pytest.raises(Refused) as error:
        half_width_config(make(family(name), **changes))
    text = one_line(error)
    assert text.startswith(f"half-width: {said}")
    assert text.endswith("; leave this control out")


@pytest.mark.parametrize(
    ("name", "changes", "reading", "said"),
    [
        ("llama", {}, {"_SIZES": "hidden_size"}, "block 0 keeps 40% of its matrices, not about a quarter"),
        ("llama", {}, {"_SIZES": "n_size|e_size|head_dim"}, "self_attn.head_dim of block 0 is 8 and becomes 4"),
        ("llama", {}, {"_SIZES": "size"}, "an embedding of [64, 32] becomes one of [32, 16]"),
        ("llama", {}, {"_SIZES": "intermediate"}, "an embedding of [64, 32] becomes one of [64, 32]"),
        ("opt", {}, {"_SIZES": "hidden_size|ffn"}, "only one of the two has model.decoder.project_in.weight"),
        ("gpt_neox_japanese", {}, {"_SIZES": "hidden_size|multiple"}, "block 0 keeps 19% of its matrices, not about a"),
        ("gpt2", {}, {"_HEADS": "^$"}, "attn.head_dim of block 0 is 8 and becomes 4"),
        ("gpt2", {"n_embd": 12}, {"_HEADS": "^$"}, "`embed_dim` must be divisible by num_heads (got `embed_dim`: 6"),
    ],
)
def test_a_wrong_reading_is_seen(
    name: str, changes: dict[str, int], reading: dict[str, str], said: str, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    reference = make(family(name), **changes)
    half_width_config(reference)
    for pattern, instead in reading.items():
        monkeypatch.setattr(f"inheritune.surgery.narrow.{pattern}", re.compile(instead))
    with pytest.raises(Refused) as error:
        half_width_config(reference)
    text = one_line(error)
    assert text.startswith(f"half-width: how to halve a {name} of this shape cannot be told: {said}")
    assert text.endswith("; leave this control out")


# ---- the model


@pytest.mark.parametrize("one", ROWS, ids=lambda one: one.name)
def test_every_family(one: Family, make: Make, tmp_path: Path) -> None:
    reference = make(one, **CHANGES.get(one.name, {}))
    if one.name.split()[0] in NO_REFERENCE:
        with pytest.raises(Refused, match=r"which list holds the [0-9]+ blocks is not clear"):
            half_width_config(reference)
        return
    model = half_width(reference, seed=3)
    # in this one's tiny blocks keys and values of one head are large
    check_widths(reference.skeleton, model, 0.45 if one.name == "deepseek_v4" else 0.35)
    reached = trained(model)
    unreached = {name for name, _ in model.named_parameters()} - reached
    if unreached:  # an indexer of attention, say, which is trained in another way
        assert not one.listed
        whole = fresh(reference.config, 0)
        assert unreached == {name for name, _ in whole.named_parameters()} - trained(whole)
    if one.listed:
        model.save_pretrained(tmp_path)
        again = loaded(tmp_path).state_dict()
        assert again.keys() == model.state_dict().keys()
        assert all(content(again[name]) == content(tensor) for name, tensor in model.state_dict().items())


def check_widths(reference: PreTrainedModel, model: PreTrainedModel, most: float) -> None:
    """As many layers and tokens, each tensor half as wide, each block with about a quarter of the weights."""
    theirs, ours = reference.state_dict(), model.state_dict()
    assert theirs.keys() == ours.keys()
    for name, tensor in theirs.items():
        for before, after in zip(tensor.shape, ours[name].shape, strict=True):
            assert before <= 2 * after <= 2 * before, name
    embeddings = [one.get_input_embeddings() for one in (reference, model)]
    wide, narrow = (tuple(embedding.weight.shape) for embedding in embeddings if isinstance(embedding, nn.Embedding))
    assert wide == (narrow[0], 2 * narrow[1])
    (_, before), (_, after) = block_list(reference), block_list(model)
    assert len(before) == len(after) == LAYERS
    for one, other in zip(before, after, strict=True):
        assert 0.2 < parameters(other) / parameters(one) < most


def test_parameters_of_a_llama_by_hand(make: Make) -> None:
    width, inner, head = 16, 24, 8  # 2 heads that share one of keys and values
    attention = 2 * width * 2 * head + 2 * width * head
    block = attention + 3 * width * inner + 2 * width
    expected = 2 * VOCABULARY * width + LAYERS * block + width
    assert parameters(half_width(make(family("llama")), 0)) == expected


def test_parameters_of_a_gpt2_by_hand(make: Make) -> None:
    width, inner, positions = 16, 64, 64
    attention = width * 3 * width + 3 * width + width * width + width
    block = attention + width * inner + inner + inner * width + width + 4 * width
    expected = (VOCABULARY + positions) * width + LAYERS * block + 2 * width
    assert parameters(half_width(make(family("gpt2 tied")), 0)) == expected


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_it_is_as_transformers_initialises_it_whatever_the_dtype(dtype: torch.dtype, make: Make) -> None:
    reference = make(family("llama"), dtype=dtype)
    config = half_width_config(reference)
    assert config.dtype == dtype
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        expected = AutoModelForCausalLM.from_config(config, dtype=torch.float32).state_dict()
    one, other = (half_width(reference, seed).state_dict() for seed in (5, 6))
    assert {name: content(tensor) for name, tensor in one.items()} == {
        name: content(tensor) for name, tensor in expected.items()
    }
    assert {tensor.dtype for tensor in one.values()} == {torch.float32}
    assert content(one["lm_head.weight"]) != content(other["lm_head.weight"])
