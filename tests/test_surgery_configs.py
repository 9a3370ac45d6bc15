"""Configs of targets: whatever has to do with layers is cut, counted anew or renumbered, or the choice is refused."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig, PreTrainedModel

from families import FAMILIES, LAYERS
from inheritune.errors import Refused
from inheritune.reference import LINEAGE_KEY, Reference
from inheritune.surgery import cut_config, fitting_config
from inheritune.surgery.configs import kinds
from tiny import family, one_line, saved

Find = Callable[[str], Reference]
LOCAL, GLOBAL, CONVOLUTION = "sliding_attention", "full_attention", "conv"


@pytest.fixture(scope="module")
def references(tmp_path_factory: pytest.TempPathFactory) -> Find:
    """References of families, each saved once."""
    return lru_cache(maxsize=None)(lambda name: saved(name, tmp_path_factory.mktemp("reference")))


def config_with(**values: Any) -> LlamaConfig:
    """A config of six layers that has these values too."""
    return LlamaConfig(num_hidden_layers=6, **values)


# ---- how values are read


@pytest.mark.parametrize(
    ("name", "value", "indices", "cut"),
    [
        # a list with an entry a layer
        ("widths", [10, 11, 12, 13, 14, 15], (1, 4), [11, 14]),
        ("widths", (10, 11, 12, 13, 14, 15), (0, 1, 0), [10, 11, 10]),  # as a file would have it
        ("layer_kinds", ["a", "b", "a", "b", "a", "b"], (0, 2, 5), ["a", "a", "b"]),
        ("no_rope_layers", [1, 0, 1, 1, 0, 1], (1, 4), [0, 0]),
        ("widths", [10, 11, 12, 13, 14], (1, 4), [10, 11, 12, 13, 14]),
        ("sizes_ids", [1, 2, 3, 4, 5, 6], (0, 1), [1, 2]),
        ("eos_token_id", [1, 2, 3, 4, 5, 6], (0, 1), [1, 2, 3, 4, 5, 6]),
        # a list of layers' indices
        ("mlp_only_layers", [1, 4], (0, 1, 4), [1, 2]),
        ("mlp_only_layers", [1, 4], (0, 2, 5), []),
        ("mlp_only_layers", [1, 4], (1, 0, 1), [0, 2]),
        ("mlp_only_layers", [0, 1, 2, 3, 4, 5], (2, 5), [0, 1]),
        ("full_attn_idxs", [0, 5], (5,), [0]),
        ("mlp_only_layers", [4, 1], (0, 1, 4), [4, 1]),
        ("mlp_only_layers", [1, 6], (0, 1, 4), [1, 6]),
        ("mrope_section", [1, 4], (0, 1, 4), [1, 4]),
        # run lengths
        ("attention_types", [[["global", "local"], 3]], (0, 2, 5), [[["global"], 1], [["global"], 1], [["local"], 1]]),
        ("attention_types", [[["a"], 2], [["b"], 4]], (1, 2), [[["a"], 1], [["b"], 1]]),
        ("attention_types", [[["a"], 2], [["b"], 2]], (1, 2), [[["a"], 2], [["b"], 2]]),
        # a letter a layer
        ("hybrid_override_pattern", "M*M-M*", (1, 3, 5), "*-*"),
        ("hybrid_override_pattern", "M*", (1, 3), "M*"),
        ("torch_name", "abcdef", (1, 3), "abcdef"),
        # a count from the beginning, or from the end
        ("first_k_dense_replace", 2, (0, 1, 4), 2),
        ("first_k_dense_replace", 2, (1, 4), 1),
        ("first_k_dense_replace", 2, (4, 5), 0),
        ("max_window_layers", 4, (0, 2, 5), 2),
        ("num_kv_shared_layers", 2, (0, 1, 4), 1),
        ("num_kv_shared_layers", 2, (0, 1), 0),
        ("num_dense_layers", 7, (0, 1), 7),
        # a period; a number of something else; a switch
        ("decoder_sparse_step", 2, (0, 2, 5), 2),
        ("attn_layer_period", 3, (0, 1), 3),
        ("num_experts", 4, (0, 1), 4),
        ("num_attention_heads", 4, (0, 1), 4),
        ("use_layer_norms", True, (0, 1), True),
    ],
)
def test_a_value_is_read_by_its_form(name: str, value: Any, indices: tuple[int, ...], cut: Any) -> None:
    config = config_with(**{name: value})
    before = copy.deepcopy(config.to_dict())
    found = cut_config(config, indices)
    assert getattr(found, name) == cut
    assert type(getattr(found, name)) is type(cut)
    assert found.num_hidden_layers == len(indices)
    assert config.to_dict() == before


def test_dictionaries_by_index_are_renumbered_at_any_depth() -> None:
    config = config_with(
        by_layer={"0": {"width": 1}, "3": {"width": 2}, "5": {"width": 3}},
        inner={"by_layer": {0: "a", 4: "b"}, "widths": {"a": 1}},
        far={"0": 1, "6": 2},
        id2label={0: "no", 1: "yes"},
    )
    cut = cut_config(config, (3, 5, 0))
    assert cut.by_layer == {"0": {"width": 2}, "1": {"width": 3}, "2": {"width": 1}}
    assert cut.inner == {"by_layer": {2: "a"}, "widths": {"a": 1}}
    assert cut.far == {"0": 1, "6": 2}
    assert cut.id2label == {0: "no", 1: "yes"}
    assert config.by_layer["3"] == {"width": 2}


def test_a_family_with_its_own_word_for_layers_is_cut() -> None:
    cut = cut_config(GPT2Config(n_layer=4), (0, 1))
    assert (cut.n_layer, cut.num_hidden_layers) == (2, 2)


def test_the_references_own_lineage_is_not_the_targets() -> None:
    config = config_with(**{LINEAGE_KEY: {"layers_kept": [0, 1, 2, 3, 4, 5], "chain": []}})
    assert not hasattr(cut_config(config, (0, 1)), LINEAGE_KEY)
    assert getattr(config, LINEAGE_KEY)["layers_kept"] == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize("name", ["qwen2 window", "cohere2", "gemma3_text", "qwen3_next"])
def test_every_choice_of_layers_keeps_their_types(name: str) -> None:
    config = family(name).config()
    for count in range(1, LAYERS + 1):
        for indices in itertools.combinations(range(LAYERS), count):
            assert cut_config(config, indices).layer_types == [config.layer_types[index] for index in indices]


# ---- whether the reading fits


@pytest.mark.parametrize(
    ("name", "indices", "values"),
    [
        ("gpt_neo", (0, 2, 5), {"attention_layers": ["global", "global", "local"], "num_layers": 3}),
        ("gpt_neo", (1, 0, 1), {"attention_layers": ["local", "global", "local"]}),
        ("qwen3_moe sparse", (0, 1, 4), {"mlp_only_layers": [1, 2], "decoder_sparse_step": 2}),
        ("deepseek_v3", (0, 2, 5), {"first_k_dense_replace": 1}),
        ("deepseek_v3", (1, 4), {"first_k_dense_replace": 0}),
        ("afmoe", (1, 4), {"num_dense_layers": 1, "layer_types": [LOCAL, LOCAL]}),
        ("qwen2 window", (1, 4), {"max_window_layers": 1, "layer_types": [GLOBAL, LOCAL]}),
        ("smollm3", (1, 4), {"no_rope_layers": [0, 0]}),
        ("bamba", (2, 3), {"attn_layer_indices": [0]}),
        ("lfm2", (1, 2, 4), {"layer_types": [GLOBAL, CONVOLUTION, GLOBAL]}),
        ("granite_swa", (1, 4), {"layer_rope_theta": [2e4, 5e4]}),
        ("gemma4_text experts", (0, 1), {"per_layer_config": {"1": {"head_dim": 32}}}),
        # the first reading does not fit, another does: period 2 has its experts in layers 1, 3 and 5
        ("qwen3_moe sparse", (0, 2, 5), {"mlp_only_layers": [], "decoder_sparse_step": 3}),
        ("jamba", (3, 4, 5), {"expert_layer_offset": 0, "attn_layer_offset": 1}),
        ("ernie4_5_moe", (0, 1, 5), {"moe_layer_end_index": 1}),
        ("xlstm", (1, 4), {"num_blocks": 2}),
        # keys and values are shared: with those of the same type that they come from
        ("gemma3n_text", (2, 4), {"num_kv_shared_layers": 1, "intermediate_size": [32, 40]}),
        ("gemma3n_text", (0, 2, 4), {"num_kv_shared_layers": 1}),
        ("gemma3n_text", (0, 1), {"num_kv_shared_layers": 0}),
    ],
)
def test_a_config_fits_the_layers_that_are_kept(
    name: str, indices: tuple[int, ...], values: dict[str, Any], references: Find
) -> None:
    if not any(one.name == name for one in FAMILIES):
        pytest.skip("this transformers does not have it")
    reference = references(name)
    before = copy.deepcopy(reference.config.to_dict())
    config, model = fitting_config(reference, indices)
    found = config.to_dict()
    assert {name: found[name] for name in values} == values
    assert reference.config.to_dict() == before
    assert {tensor.device.type for tensor in model.state_dict().values()} == {"meta"}
    theirs, ours = kinds(reference.skeleton), kinds(model)
    for position, index in enumerate(indices):
        assert [(path, kind, shapes) for path, (kind, _, shapes) in ours[position].items()] == [
            (path, kind, shapes) for path, (kind, _, shapes) in theirs[index].items()
        ]


@pytest.mark.parametrize(
    ("name", "indices", "setting"),
    [
        ("gpt2 layer scale", (1, 4), "scaling of attn of block 1 is 0.17"),
        ("diffllama", (0, 2), "lambda_init of self_attn of block 2 is 0.47"),
        ("minicpm3", (0, 1), "residual_scale of block 0 is"),
        ("modernbert-decoder", (1, 2), "attn_norm of block 1 is a LayerNorm, the target's a Identity"),
        ("deepseek_v3", (1, 0), "block 1 has no mlp.act_fn, block 0 of the target differs"),
        ("gpt_neox_japanese", (0, 1), "attention of block 1 has tensors {}, the target's {'dense_bias'"),
    ],
)
def test_a_choice_that_no_config_can_express_is_refused_by_its_setting(
    name: str, indices: tuple[int, ...], setting: str, references: Find
) -> None:
    reference = references(name)
    with pytest.raises(Refused) as error:
        fitting_config(reference, indices)
    model_type, layers = name.split(maxsplit=1)[0], ", ".join(map(str, indices))
    text = one_line(error)
    assert text.startswith(f"layers: a {model_type} config cannot describe layers {layers}: {setting}")
    assert text.endswith("; choose others, such as the first ones")


@pytest.mark.parametrize(
    ("name", "indices", "block", "source"),
    [
        ("gemma3n_text", (0, 1, 4), 4, 2),
        ("gemma3n_text", (0, 2, 5), 5, 3),
        ("gemma3n_text", (5,), 5, 3),
        ("gemma4_text", (1, 4), 4, 2),
        ("gemma4_text", (2, 3, 4, 5), None, None),
    ],
)
def test_shared_keys_and_values_need_the_block_that_computes_them(
    name: str, indices: tuple[int, ...], block: int | None, source: int | None, references: Find
) -> None:
    if block is None:
        config, _ = fitting_config(references(name), indices)
        assert config.num_kv_shared_layers == 2
        return
    with pytest.raises(Refused) as error:
        fitting_config(references(name), indices)
    assert one_line(error) == (
        f"layers: block {block} uses the keys and values that block {source} computes, and {source} is cut; "
        "keep both, or neither"
    )


def test_readings_that_make_no_sense_are_silent(references: Find, recwarn: pytest.WarningsRecorder) -> None:
    with pytest.raises(Refused):
        fitting_config(references("deepseek_v3"), (0, 1, 0))  # among what is tried: no experts, tensors of no element
    assert not recwarn.list


def test_kinds_tell_blocks_apart() -> None:
    def changed(change: Callable[[nn.Module], object]) -> bool:
        with torch.device("meta"):
            model: PreTrainedModel = AutoModelForCausalLM.from_config(family("llama").config())
        before = kinds(model)
        assert before[0] != before[1]  # by the index that attention has
        change(model.get_submodule("model.layers.1"))
        return [one != other for one, other in zip(before, kinds(model), strict=True)] == [
            place == 1 for place in range(LAYERS)
        ]

    assert changed(lambda block: setattr(block.get_submodule("self_attn"), "scaling", 0.5))
    assert changed(lambda block: setattr(block.get_submodule("mlp"), "act_fn", nn.Identity()))
    assert changed(lambda block: setattr(block.get_submodule("mlp"), "extra", nn.Identity()))
    assert changed(lambda block: setattr(block, "mlp", nn.Identity()))
    assert changed(lambda block: block.register_buffer("table", torch.ones(2)))
    assert changed(lambda block: setattr(block.get_submodule("mlp"), "down_proj", nn.Linear(48, 32)))
