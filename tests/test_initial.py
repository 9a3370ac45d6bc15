"""Inits: what is random, what is inherited, and what the account says of either."""

from __future__ import annotations

import copy
import hashlib
import json
import re
from collections import Counter
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, PreTrainedModel

from families import FAMILIES, Family
from inheritune.config import PARTS
from inheritune.errors import Refused
from inheritune.reference import Reference, block_list, find, fresh, weightless
from inheritune.surgery import inherit, parts, random_like, start, tensor_records
from tiny import TOKENS, content, family, file_sums, loaded, one_line, saved

KEPT = (1, 4)
BLOCK = {"self_attn": "attention", "mlp": "mlp", "input_layernorm": "block_norms"}
LLAMA_BLOCK = BLOCK | {"post_attention_layernorm": "block_norms"}
LLAMA_OUTSIDE = {
    "model.embed_tokens.weight": "embeddings",
    "model.norm.weight": "final_norm",
    "lm_head.weight": "head",
}

# What belongs to which part: of a block by its child, outside by the tensor's name.
BY_HAND: dict[str, tuple[dict[str, str], dict[str, str]]] = {
    "llama": (LLAMA_BLOCK, LLAMA_OUTSIDE),
    "mixtral": (LLAMA_BLOCK, LLAMA_OUTSIDE),
    "qwen3_next": (LLAMA_BLOCK | {"linear_attn": "attention"}, LLAMA_OUTSIDE),
    "gpt2": (
        {"ln_1": "block_norms", "attn": "attention", "ln_2": "block_norms", "mlp": "mlp"},
        {
            "transformer.wte.weight": "embeddings",
            "transformer.wpe.weight": "embeddings",
            "transformer.ln_f.weight": "final_norm",
            "transformer.ln_f.bias": "final_norm",
            "lm_head.weight": "head",
        },
    ),
    "opt": (
        {
            "self_attn": "attention",
            "self_attn_layer_norm": "block_norms",
            "fc1": "mlp",
            "fc2": "mlp",
            "final_layer_norm": "block_norms",
        },
        {
            "model.decoder.embed_tokens.weight": "embeddings",
            "model.decoder.embed_positions.weight": "embeddings",
            "model.decoder.final_layer_norm.weight": "final_norm",
            "model.decoder.final_layer_norm.bias": "final_norm",
            "lm_head.weight": "head",
        },
    ),
    "mpt": (
        {"norm_1": "block_norms", "attn": "attention", "norm_2": "block_norms", "ffn": "mlp"},
        {
            "transformer.wte.weight": "embeddings",
            "transformer.norm_f.weight": "final_norm",
            "lm_head.weight": "head",
        },
    ),
    "falcon_h1": (
        BLOCK | {"mamba": "attention", "feed_forward": "mlp", "pre_ff_layernorm": "block_norms"},
        {
            "model.embed_tokens.weight": "embeddings",
            "model.final_layernorm.weight": "final_norm",
            "lm_head.weight": "head",
        },
    ),
}
BY_HAND["falcon_h1"][0].pop("mlp")


# ---- parts


@pytest.mark.parametrize("name", BY_HAND)
def test_parts_by_hand(name: str) -> None:
    in_block, outside = BY_HAND[name]
    model = weightless(family(name).config())
    blocks = re.escape(block_list(model)[0])
    found: dict[str, set[str]] = {}
    for tensor, part in parts(model).items():
        inside = re.match(rf"{blocks}\.[0-9]+\.(\w+)", tensor)
        found.setdefault(inside.group(1) if inside else tensor, set()).add(part)
    assert found == {key: {part} for key, part in (in_block | outside).items()}


@pytest.mark.parametrize("one", [one for one in FAMILIES if one.listed], ids=lambda one: one.name)
def test_every_tensor_of_a_listed_family_has_a_part(one: Family) -> None:
    model = weightless(one.config())
    found = parts(model)
    assert found.keys() == model.state_dict().keys()
    assert set(found.values()) <= set(PARTS)
    name, blocks = block_list(model)
    for index in range(len(blocks)):
        in_block = {part for tensor, part in found.items() if tensor.startswith(f"{name}.{index}.")}
        assert in_block == {"attention", "mlp", "block_norms"}
    outside = {part for tensor, part in found.items() if not tensor.startswith(f"{name}.")}
    assert {"embeddings", "head"} <= outside <= {"embeddings", "head", "final_norm"}


def test_a_child_of_no_known_part_is_refused() -> None:
    model = weightless(family("llama").config())
    model.get_submodule("model.layers.3").add_module("gizmo", nn.Linear(2, 2, device="meta"))
    with pytest.raises(Refused) as error:
        parts(model)
    said = "init: LlamaForCausalLM: whether a block's gizmo (Linear) is attention or MLP cannot be told"
    assert one_line(error) == said


def test_a_childs_class_tells_what_its_name_does_not() -> None:
    class SlowAttention(nn.Linear):
        pass

    class BigMLP(nn.Linear):
        pass

    class GizmoNorm(nn.Linear):
        pass

    model = weightless(family("llama").config())
    block = model.get_submodule("model.layers.3")
    # a norm is one whatever its name; otherwise the name comes before the class
    children = {"one": SlowAttention, "two": BigMLP, "attn_three": GizmoNorm, "attn_four": BigMLP}
    for name, kind in children.items():
        block.add_module(name, kind(2, 2, bias=False, device="meta"))
    found = parts(model)
    assert [found[f"model.layers.3.{name}.weight"] for name in children] == [
        "attention", "mlp", "block_norms", "attention",
    ]  # fmt: skip


# ---- start


class Prepared(NamedTuple):
    """A reference, layers 1 and 4 of it as a target, the values of that target, and its record."""

    reference: Reference
    target: Path
    values: dict[str, torch.Tensor]
    record: dict[str, Any]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A function from a family's name, and a dtype, to what inits start from."""

    @cache
    def prepare(name: str, dtype: torch.dtype = torch.float32) -> Prepared:
        directory = tmp_path_factory.mktemp(name.replace(" ", "-"))
        reference = saved(name, directory / "reference", lambda model: nn.Module.to(model, dtype))
        record = inherit(reference, KEPT, directory / "target", token_ids=TOKENS)
        return Prepared(reference, directory / "target", loaded(directory / "target").state_dict(), record)

    return prepare


def at_random(target: Path, seed: int) -> dict[str, torch.Tensor]:
    """The state dict of a model of a target's config as transformers initialises it in float32."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model: nn.Module = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(target), dtype=torch.float32)
    return model.state_dict()


def llama_part(name: str) -> str:
    """The part of a LLaMA's tensor, by its name."""
    child = name.split(".")[3] if ".layers." in name else None
    return LLAMA_BLOCK[child] if child else LLAMA_OUTSIDE[name]


def assert_same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in found.items():
        assert tensor.dtype == expected[name].dtype
        assert content(tensor) == content(expected[name]), name


@pytest.mark.parametrize(
    "wanted",
    [set(), *({part} for part in PARTS), {"attention", "mlp"}, {"attention", "block_norms"}, set(PARTS)],
    ids=lambda wanted: "+".join(sorted(wanted)) or "random",
)
def test_parts_are_inherited_and_the_rest_is_random(wanted: set[str], prepared: Any) -> None:
    reference, target, values, _ = prepared("llama")
    model, taken = start(target, reference, frozenset(wanted), seed=3)
    random = at_random(target, seed=3)
    assert taken == {name for name in values if llama_part(name) in wanted}
    assert_same(model.state_dict(), {name: values[name] if name in taken else random[name] for name in values})
    assert all(content(values[name]) != content(random[name]) for name in values), "nothing would tell them apart"
    assert not model.training


def test_parts_are_of_the_layers_kept(prepared: Any) -> None:
    reference, target, *_ = prepared("llama")
    model, _ = start(target, reference, frozenset({"attention"}), seed=0)
    files = load_file(Path(reference.path) / "model.safetensors")
    for position, index in enumerate(KEPT):
        for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
            got = model.state_dict()[f"model.layers.{position}.self_attn.{name}.weight"]
            assert content(got) == content(files[f"model.layers.{index}.self_attn.{name}.weight"])


@pytest.mark.parametrize(
    ("wanted", "both"), [({"embeddings"}, True), ({"head"}, True), ({"attention", "final_norm"}, False)], ids=str
)
def test_a_tied_head_is_inherited_with_the_embedding(wanted: set[str], both: bool, prepared: Any) -> None:
    reference, target, values, record = prepared("gpt2 tied")
    model, taken = start(target, reference, frozenset(wanted), seed=3)
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    assert embedding is not None
    assert head is not None
    assert head.weight is embedding.weight
    assert {"transformer.wte.weight", "lm_head.weight"} & taken == (
        {"transformer.wte.weight", "lm_head.weight"} if both else set()
    )
    assert ("transformer.wpe.weight" in taken) is ("embeddings" in wanted)
    origin = values if both else at_random(target, seed=3)
    assert content(model.state_dict()["lm_head.weight"]) == content(origin["transformer.wte.weight"])
    records = {one.name: one for one in tensor_records(model, taken, record)}
    assert (records["lm_head.weight"].status, records["lm_head.weight"].source) == ("tied", "transformer.wte.weight")
    assert records["transformer.wte.weight"].status == ("inherited" if both else "fresh")


def test_the_seed_decides_what_is_random_and_that_alone(prepared: Any) -> None:
    reference, target, *_ = prepared("llama")
    wanted = frozenset({"mlp"})
    one, again, other = (start(target, reference, wanted, seed=seed)[0].state_dict() for seed in (1, 1, 2))
    assert_same(one, again)
    drawn = {name for name in one if llama_part(name) not in ("mlp", "block_norms", "final_norm")}
    assert {name for name in one if content(one[name]) != content(other[name])} == drawn


def test_what_is_drawn_does_not_depend_on_the_dtype_of_the_weights(prepared: Any) -> None:
    reference, target, values, _ = prepared("llama", torch.bfloat16)
    assert values["lm_head.weight"].dtype == torch.bfloat16
    model, taken = start(target, reference, frozenset({"head"}), seed=3)
    expected = at_random(target, seed=3) | {"lm_head.weight": values["lm_head.weight"].float()}
    assert taken == {"lm_head.weight"}
    assert_same(model.state_dict(), expected)


def test_the_account_of_an_init(prepared: Any) -> None:
    reference, target, _, whole = prepared("mixtral")
    model, taken = start(target, reference, frozenset({"attention", "mlp"}), seed=0)
    state = model.state_dict()
    records = tensor_records(model, taken, whole)
    assert [record.name for record in records] == list(state)
    for record in records:
        name = record.name
        source = None
        if ".self_attn." in name or ".mlp." in name:  # of experts that are fused, the first in the files
            source = re.sub(r"layers\.([01])", lambda match: f"layers.{KEPT[int(match.group(1))]}", name)
            source = source.replace("mlp", "block_sparse_moe").replace("experts.gate_up_proj", "experts.0.w1.weight")
            source = source.replace("experts.down_proj", "experts.0.w2.weight")
            assert source in reference.stored
        assert (record.status, record.source) == ("fresh" if source is None else "inherited", source)
        assert (record.module, record.shape, record.dtype) == ((name,), tuple(state[name].shape), "float32")
        assert record.sha256 == hashlib.sha256(content(state[name])).hexdigest()


# ---- models from random init


def test_fresh_leaves_the_callers_generator_and_config_alone() -> None:
    config = LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    before, state = copy.deepcopy(config.__dict__), torch.get_rng_state()
    one, again, other = (fresh(config, seed) for seed in (5, 5, 6))
    assert config.__dict__ == before
    assert torch.equal(torch.get_rng_state(), state)
    assert_same(one.state_dict(), again.state_dict())
    assert content(one.state_dict()["lm_head.weight"]) != content(other.state_dict()["lm_head.weight"])


def test_random_like_leaves_the_callers_generator_and_config_alone(prepared: Any) -> None:
    reference, target, *_ = prepared("llama", torch.bfloat16)
    config = AutoConfig.from_pretrained(target)
    before, state = copy.deepcopy(config.__dict__), torch.get_rng_state()
    model = random_like(config, reference, 5)
    assert config.__dict__ == before
    assert config.dtype == torch.bfloat16
    assert config.inheritune["layers_kept"] == list(KEPT)
    assert torch.equal(torch.get_rng_state(), state)
    assert not hasattr(model.config, "inheritune"), "it inherits nothing"
    assert_same(model.state_dict(), at_random(target, 5))


# ---- to a directory


def expected_of(one: Prepared, model: PreTrainedModel, wanted: set[str], seed: int) -> dict[str, torch.Tensor]:
    """The values of an init's directory, in the reference's dtype; of a tied tensor as its first name says."""
    random, belongs = at_random(one.target, seed), parts(model)
    first: dict[int, str] = {}
    named = {name: first.setdefault(id(tensor), name) for name, tensor in model.state_dict(keep_vars=True).items()}
    inherited = {named[name] for name in named if belongs[name] in wanted}
    return {
        name: one.values[name] if earlier in inherited else random[name].to(tensor.dtype)
        for (name, earlier), tensor in zip(named.items(), one.values.values(), strict=True)
    }


@pytest.mark.parametrize("init", ["random", "attention+mlp", "block_norms+embeddings"])
@pytest.mark.parametrize(
    ("name", "dtype"),
    [("llama", "bfloat16"), ("gpt2 tied", "float32"), ("mixtral", "float32"), ("deepseek_v3 tied", "bfloat16")],
)
def test_an_inits_directory_is_read_by_plain_transformers(
    name: str, dtype: str, init: str, prepared: Any, tmp_path: Path
) -> None:
    one = prepared(name, getattr(torch, dtype))
    wanted = set() if init == "random" else set(init.split("+"))
    lines: list[str] = []
    record = inherit(
        one.reference, KEPT, tmp_path / "out", init=init, parts=frozenset(wanted), seed=7, report=lines.append
    )
    assert [path.name for path in tmp_path.iterdir()] == ["out"], "nothing else is left"
    model = loaded(tmp_path / "out")
    assert_same(model.state_dict(), expected_of(one, model, wanted, seed=7))
    assert model.config.dtype == getattr(torch, dtype)
    assert json.loads((tmp_path / "out" / "inheritance.json").read_text()) == record

    tied = {"lm_head.weight"} if name.endswith("tied") else set()
    belongs, statuses = parts(model), {entry["name"]: entry["status"] for entry in record["tensors"]}
    assert statuses == {
        key: "tied" if key in tied else "inherited" if part in wanted else "fresh" for key, part in belongs.items()
    }
    assert record["counts"] == {"inherited": 0, "tied": 0, "fresh": 0} | Counter(statuses.values())
    assert (record["init"], record["proof"], record["layers_kept"]) == (init, None, list(KEPT))
    lineage = model.config.inheritune
    assert (lineage["init"], lineage["seed"], lineage["layers_kept"]) == (init, 7, list(KEPT))
    assert len(lines) == 1
    assert lines[0].startswith(f"init {init}: {record['parameters_after']:,} parameters; tensors: ")


def test_a_refused_init_leaves_nothing(prepared: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("inheritune.surgery.initial._MLP", re.compile("^nothing$"))
    with pytest.raises(Refused, match=r"a block's mlp \(LlamaMLP\) is attention or MLP cannot be told") as error:
        inherit(prepared("llama").reference, KEPT, tmp_path / "out", init="mlp", parts=frozenset({"mlp"}))
    one_line(error)
    assert list(tmp_path.iterdir()) == []


def test_a_stack_repeats_the_first_half_as_tensors_of_their_own(prepared: Any, tmp_path: Path) -> None:
    reference = prepared("llama").reference
    record = inherit(reference, (0, 2, 3, 4, 5), tmp_path / "out", init="stack", token_ids=TOKENS)
    layers = (0, 2, 3, 0, 2)
    assert (record["init"], record["layers_kept"]) == ("stack", list(layers))
    before, after = file_sums(Path(reference.path)), file_sums(tmp_path / "out")
    expected = {name: value for name, value in before.items() if ".layers." not in name}
    for position, index in enumerate(layers):
        block = f"model.layers.{index}."
        expected |= {
            f"model.layers.{position}.{name.removeprefix(block)}": value
            for name, value in before.items()
            if name.startswith(block)
        }
    assert after == expected
    assert record["counts"] == {"inherited": len(expected), "tied": 0, "fresh": 0}
    state = loaded(tmp_path / "out").state_dict(keep_vars=True)
    assert len({tensor.data_ptr() for tensor in state.values()}) == len(state)
    assert find(str(tmp_path / "out")).layers == len(layers)
