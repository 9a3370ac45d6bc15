"""Surgery: the cut, its account, its proof, and the directory that is saved."""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from inheritune.errors import Failed, InherituneError, Refused
from inheritune.surgery import (
    Account,
    cut_config,
    inherit,
    parse_layers,
    prove,
    random_like,
    save,
)

Make = Callable[[], PreTrainedModel]


def llama(*, tied: bool = False, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """4 layers, 4 query and 2 key-value heads; the dtype is that of the weights, as transformers loads them."""
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        tie_word_embeddings=tied,
        bos_token_id=0,
        eos_token_id=0,
    )
    model = seeded(LlamaForCausalLM, config)
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)
    return model


def gpt2() -> PreTrainedModel:
    """4 layers, tied; dropout is on, so train mode shows."""
    config = GPT2Config(vocab_size=64, n_embd=32, n_layer=4, n_head=4, n_positions=64, bos_token_id=0, eos_token_id=0)
    return seeded(GPT2LMHeadModel, config)


def seeded(model_class: type[PreTrainedModel], config: Any) -> PreTrainedModel:
    """Random weights, norms and biases too, so that no two tensors are alike."""
    generator = torch.Generator().manual_seed(0)
    model: PreTrainedModel = model_class(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.05)
    model.eval()
    return model


MODELS: dict[str, Make] = {
    "llama": llama,
    "llama tied": lambda: llama(tied=True),
    "llama bfloat16": lambda: llama(dtype=torch.bfloat16),
    "gpt2": gpt2,
}
TOKENS = torch.randint(64, (2, 24), generator=torch.Generator().manual_seed(1))  # (B, T)


@pytest.fixture(params=list(MODELS))
def model(request: pytest.FixtureRequest) -> PreTrainedModel:
    return MODELS[request.param]()


def one_line(error: pytest.ExceptionInfo[InherituneError]) -> str:
    text = str(error.value)
    assert "\n" not in text
    return text


def copies(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


# ---- words for layers


@pytest.mark.parametrize(
    ("word", "total", "kept"), [(3, 5, 3), ("3", 5, 3), (" 5 ", 5, 5), (1, 1, 1), ("half", 5, 2), ("half", 26, 13)]
)
def test_layers_are_parsed(word: int | str, total: int, kept: int) -> None:
    assert parse_layers(word, total) == tuple(range(kept))


@pytest.mark.parametrize(
    "word", [0, 6, -1, "0", "6", "-1", "", "three", "2.0", 2.5, "1e0", "0x2", "²", "9" * 5000, True, None]
)
def test_layers_out_of_range_or_no_number_are_refused(word: Any) -> None:
    with pytest.raises(Refused) as error:
        parse_layers(word, 5)
    assert "from 1 to 5" in one_line(error)


def test_half_of_one_layer_is_refused() -> None:
    with pytest.raises(Refused, match="from 1 to 1"):
        parse_layers("half", 1)


# ---- configs


def test_every_list_with_an_entry_a_layer_is_cut() -> None:
    config = Qwen2Config(
        num_hidden_layers=4,
        layer_types=["full_attention", "sliding_attention", "full_attention", "sliding_attention"],
        sliding_window=8,
        use_sliding_window=True,
        eos_token_id=[1, 2, 3, 4],
    )
    config.widths = [10, 11, 12, 13]
    config.five = [1, 2, 3, 4, 5]
    before = config.to_dict()
    cut = cut_config(config, (1, 2, 3))
    assert cut.num_hidden_layers == 3
    assert cut.layer_types == ["sliding_attention", "full_attention", "sliding_attention"]
    assert cut.widths == [11, 12, 13]
    assert cut.five == [1, 2, 3, 4, 5]
    assert cut.eos_token_id == [1, 2, 3, 4]
    assert config.to_dict() == before


def test_a_family_with_its_own_word_for_layers_is_cut() -> None:
    cut = cut_config(GPT2Config(n_layer=4), (0, 1))
    assert (cut.n_layer, cut.num_hidden_layers) == (2, 2)


def test_layer_types_of_a_target_load_again(tmp_path: Path) -> None:
    config = Qwen2Config(
        vocab_size=64,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=3,
        num_attention_heads=2,
        num_key_value_heads=1,
        sliding_window=4,
        use_sliding_window=True,
        layer_types=["full_attention", "sliding_attention", "full_attention"],
    )
    reference = seeded(Qwen2ForCausalLM, config)
    target, _ = inherit(reference, (0, 1))
    prove(reference, target, (0, 1), TOKENS)
    save(target, None, tmp_path / "out", {"initialisation": "inherited"})
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert again.config.layer_types == ["full_attention", "sliding_attention"]


# ---- the cut


@pytest.mark.parametrize("indices", [(0,), (0, 1), (0, 1, 2, 3), (0, 3), (1, 2)])
def test_every_tensor_is_the_references(model: PreTrainedModel, indices: tuple[int, ...]) -> None:
    target, account = inherit(model, indices)
    theirs, ours = model.state_dict(), target.state_dict()
    assert [record.name for record in account.tensors] == list(ours)
    blocks = "transformer.h." if isinstance(model, GPT2LMHeadModel) else "model.layers."
    for record in account.tensors:
        source = record.name
        if source.startswith(blocks):
            position, _, rest = source.removeprefix(blocks).partition(".")
            source = f"{blocks}{indices[int(position)]}.{rest}"
        assert torch.equal(ours[record.name], theirs[source])
        assert record.status == (
            "tied" if record.name == "lm_head.weight" and model.config.tie_word_embeddings else "inherited"
        )
        assert record.source == (source if record.status == "inherited" else next(iter(ours)))
        assert (record.shape, record.dtype) == (
            tuple(theirs[source].shape),
            str(theirs[source].dtype).removeprefix("torch."),
        )
        assert record.sha256 == hashlib.sha256(bytes(theirs[source].contiguous().view(torch.uint8).numpy())).hexdigest()
    assert account.parameters_after == sum(parameter.numel() for parameter in target.parameters())
    assert account.parameters_before == sum(parameter.numel() for parameter in model.parameters())
    assert account.counts["fresh"] == 0
    assert sum(account.counts.values()) == len(ours)


def test_the_account_is_json() -> None:
    _, account = inherit(llama(tied=True), (0, 2))
    assert isinstance(account, Account)
    record = json.loads(json.dumps(account.record()))
    assert (record["layers_kept"], record["reference_layers"]) == ([0, 2], 4)
    assert record["counts"] == {"inherited": 20, "tied": 1, "fresh": 0}
    assert record["tensors"][-1]["shape"] == [64, 32]


def test_the_reference_is_not_mutated(model: PreTrainedModel) -> None:
    model.train()
    tensors, config, state = copies(model), copy.deepcopy(model.config.to_dict()), torch.get_rng_state()
    target, _ = inherit(model, (0, 1))
    prove(model, target, (0, 1), TOKENS)
    with torch.no_grad():
        for parameter in target.parameters():
            parameter.add_(1.0)
    target.config.num_hidden_layers = 17
    assert model.config.to_dict() == config
    assert all(torch.equal(tensor, tensors[name]) for name, tensor in model.state_dict().items())
    assert all(module.training for module in model.modules())
    assert torch.equal(torch.get_rng_state(), state)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


class Drawing(LlamaForCausalLM):
    """A model that draws random numbers whenever it is built."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__(config)
        torch.rand(1)


def test_building_a_target_draws_nothing_from_the_callers_generator() -> None:
    reference = seeded(Drawing, llama().config)
    state = torch.get_rng_state()
    inherit(reference, (0, 1))
    assert torch.equal(torch.get_rng_state(), state)


def test_a_tied_head_stays_tied_and_an_untied_one_untied(model: PreTrainedModel) -> None:
    target, _ = inherit(model, (0, 1))
    head, embedding = target.get_output_embeddings(), target.get_input_embeddings()
    assert head is not None
    assert (head.weight is embedding.weight) == model.config.tie_word_embeddings


def test_a_head_that_only_the_config_calls_tied_is_kept(tmp_path: Path) -> None:
    reference = llama(tied=False)
    reference.config.tie_word_embeddings = True
    target, account = inherit(reference, (0, 1))
    assert account.counts["tied"] == 0
    assert torch.equal(target.state_dict()["lm_head.weight"], reference.state_dict()["lm_head.weight"])
    save(target, None, tmp_path / "out", {"initialisation": "inherited"})
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "out").config.tie_word_embeddings is False


def test_a_target_may_have_another_dtype() -> None:
    reference = llama()
    target, account = inherit(reference, (0, 1), torch.bfloat16)
    assert {record.dtype for record in account.tensors} == {"bfloat16"}
    assert target.config.dtype == torch.bfloat16
    assert torch.equal(target.state_dict()["lm_head.weight"], reference.state_dict()["lm_head.weight"].bfloat16())


def test_a_tensor_that_the_reference_lacks_is_not_made_up() -> None:
    reference = llama()
    del reference.model.layers[1].mlp.up_proj
    with pytest.raises(Failed) as error:
        inherit(reference, (0, 1))
    assert "model.layers.1.mlp.up_proj.weight" in one_line(error)


def test_a_tensor_of_another_shape_is_not_made_up() -> None:
    reference = llama()
    reference.model.norm.weight = torch.nn.Parameter(torch.ones(31))
    with pytest.raises(Failed) as error:
        inherit(reference, (0, 1))
    assert "model.norm.weight" in one_line(error)


def test_a_tensor_that_the_target_has_no_place_for_is_not_lost() -> None:
    reference = llama()
    reference.model.extra = torch.nn.Linear(2, 2)
    with pytest.raises(Failed) as error:
        inherit(reference, (0, 1))
    assert "model.extra.weight" in one_line(error)


def test_the_generation_config_is_the_references() -> None:
    reference = llama()
    assert reference.generation_config is not None
    reference.generation_config.max_new_tokens = 7
    target, _ = inherit(reference, (0, 1))
    assert target.generation_config is not None
    assert target.generation_config.max_new_tokens == 7
    assert target.generation_config is not reference.generation_config


def test_the_control_has_the_targets_shape_and_not_its_values() -> None:
    target, _ = inherit(llama(dtype=torch.bfloat16), (0, 2))
    control, again = random_like(target, 1), random_like(target, 1)
    ours, theirs = target.state_dict(), control.state_dict()
    assert {name: (tensor.shape, tensor.dtype) for name, tensor in ours.items()} == {
        name: (tensor.shape, tensor.dtype) for name, tensor in theirs.items()
    }
    assert all(torch.equal(tensor, again.state_dict()[name]) for name, tensor in theirs.items())
    assert not any(torch.equal(tensor, ours[name]) for name, tensor in theirs.items())


# ---- the proof


@pytest.mark.parametrize("layers", [1, 2, 3, 4])
def test_the_first_layers_are_proven(model: PreTrainedModel, layers: int) -> None:
    indices = tuple(range(layers))
    target, _ = inherit(model, indices)
    proof = prove(model, target, indices, TOKENS)
    assert proof["tokens"] == TOKENS.numel()
    assert proof["hidden_state_before_final_norm"] == {"equal": True, "max_abs_difference": 0.0}
    assert proof["logits"] == ({"equal": True, "max_abs_difference": 0.0} if layers == 4 else None)
    assert [block["source"] for block in proof["blocks"]] == list(indices)
    json.dumps(proof, allow_nan=False)


@pytest.mark.parametrize("layers", [1, 2, 3])
def test_a_target_is_the_reference_left_early(model: PreTrainedModel, layers: int) -> None:
    """The proof's claim, checked without its hooks: below the last, transformers' hidden states are not normed."""
    target, _ = inherit(model, tuple(range(layers)))
    with torch.no_grad():
        early = model(TOKENS, output_hidden_states=True).hidden_states[layers]
        norm = target.get_submodule("transformer.ln_f" if isinstance(model, GPT2LMHeadModel) else "model.norm")
        head = target.get_output_embeddings()
        assert head is not None
        assert torch.equal(head(norm(early)), target(TOKENS).logits)


def test_any_choice_of_layers_is_proven_block_by_block(model: PreTrainedModel) -> None:
    target, _ = inherit(model, (3, 0, 2))
    proof = prove(model, target, (3, 0, 2), TOKENS)
    assert proof["hidden_state_before_final_norm"] is None
    assert [(block["block"], block["source"], block["equal"]) for block in proof["blocks"]] == [
        (0, 3, True),
        (1, 0, True),
        (2, 2, True),
    ]


@pytest.mark.parametrize("indices", [(0, 1), (0, 2)])
def test_the_proof_sees_one_changed_weight_of_a_block(model: PreTrainedModel, indices: tuple[int, ...]) -> None:
    target, _ = inherit(model, indices)
    name = next(name for name, _ in target.named_parameters() if ".1." in name and name.endswith("weight"))
    with torch.no_grad():
        target.get_parameter(name).flatten()[0] += 1.0
    with pytest.raises(Failed) as error:
        prove(model, target, indices, TOKENS)
    assert "bit for bit" in one_line(error)


def test_the_proof_sees_another_embedding_and_another_head() -> None:
    reference = llama()
    for changed, layers in (("model.embed_tokens.weight", 2), ("lm_head.weight", 4), ("model.norm.weight", 4)):
        target, _ = inherit(reference, tuple(range(layers)))
        with torch.no_grad():
            target.get_parameter(changed).add_(0.125)
        with pytest.raises(Failed, match="differs"):
            prove(reference, target, tuple(range(layers)), TOKENS)


def test_numbers_that_are_not_finite_prove_nothing() -> None:
    reference = llama()
    with torch.no_grad():
        reference.get_parameter("model.layers.0.mlp.down_proj.weight").fill_(float("nan"))
    target, _ = inherit(reference, (0, 1))
    with pytest.raises(Failed, match="not finite"):
        prove(reference, target, (0, 1), TOKENS)


def test_models_that_compute_differently_are_not_compared() -> None:
    reference = llama()
    target, _ = inherit(reference, (0, 1), torch.bfloat16)
    with pytest.raises(Failed, match="dtype differs"):
        prove(reference, target, (0, 1), TOKENS)
    target, _ = inherit(reference, (0, 1))
    target.set_attn_implementation("eager")
    with pytest.raises(Failed, match="attention differs"):
        prove(reference, target, (0, 1), TOKENS)
