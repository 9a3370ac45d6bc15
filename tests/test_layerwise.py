"""What each layer is worth, against models built of the first layers, and against cosines worked out by hand."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from transformers import (
    CohereConfig,
    CohereForCausalLM,
    FalconConfig,
    FalconForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    OpenAIGPTConfig,
    OpenAIGPTLMHeadModel,
    OPTConfig,
    OPTForCausalLM,
    PreTrainedModel,
)

from conftest import VOCABULARY
from inheritune.errors import Failed, Refused
from inheritune.layerwise import block_influence, influence_batches, most_influential, prefix_losses, scan_record
from inheritune.reference import block_list
from inheritune.tokens import Prepared, TokenSet
from inheritune.validation import SetLosses, measure

LAYERS = 3
SHAPE: Any = {"vocab_size": VOCABULARY, "hidden_size": 32, "num_attention_heads": 4, "max_position_embeddings": 64}
GATED: Any = {**SHAPE, "intermediate_size": 48, "num_key_value_heads": 2, "pad_token_id": None}


def llama(layers: int) -> PreTrainedModel:
    return LlamaForCausalLM(LlamaConfig(**GATED, num_hidden_layers=layers))


def gpt2(layers: int) -> PreTrainedModel:
    return GPT2LMHeadModel(GPT2Config(vocab_size=VOCABULARY, n_embd=32, n_head=4, n_positions=64, n_layer=layers))


def gemma2(layers: int) -> PreTrainedModel:
    softcap: Any = {"head_dim": 8, "sliding_window": 8, "final_logit_softcapping": 0.05}
    return Gemma2ForCausalLM(Gemma2Config(**GATED, **softcap, num_hidden_layers=layers))


def opt(layers: int) -> PreTrainedModel:
    projected: Any = {"ffn_dim": 48, "word_embed_proj_dim": 16}
    return OPTForCausalLM(OPTConfig(**SHAPE, **projected, num_hidden_layers=layers))


def cohere(layers: int) -> PreTrainedModel:
    return CohereForCausalLM(CohereConfig(**GATED, logit_scale=0.25, num_hidden_layers=layers))


def mixtral(layers: int) -> PreTrainedModel:
    # with the routers' loss asked for, as some published configs do
    experts: Any = {"num_local_experts": 4, "output_router_logits": True}
    return MixtralForCausalLM(MixtralConfig(**GATED, **experts, num_hidden_layers=layers))


def falcon(layers: int) -> PreTrainedModel:
    """Its blocks give tuples."""
    return FalconForCausalLM(FalconConfig(**SHAPE, ffn_hidden_size=48, num_hidden_layers=layers))


def openai_gpt(layers: int) -> PreTrainedModel:
    """Its blocks give lists; it has no final norm."""
    shape: Any = {"n_embd": 32, "n_head": 4, "n_positions": 64, "n_layer": layers}
    return OpenAIGPTLMHeadModel(OpenAIGPTConfig(vocab_size=VOCABULARY, **shape))


FAMILIES = [llama, gpt2, gemma2, opt, cohere, mixtral, falcon, openai_gpt]


@pytest.fixture
def tokens(make_prepared: Callable[..., Prepared]) -> TokenSet:
    """71 tokens in 5 documents: the last block of 16 is not full."""
    random = np.random.default_rng(1)
    documents = [[*random.integers(0, 300, length).tolist(), VOCABULARY - 1] for length in (5, 1, 40, 17, 3)]
    return make_prepared({"train": documents, "held-out": documents}).set("held-out")


def seeded(family: Callable[[int], PreTrainedModel], layers: int = LAYERS) -> Any:
    """A model whose weights are large enough that its layers, and what stands after them, show in its losses."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = family(layers).eval()
        for parameter in model.parameters():
            nn.init.normal_(parameter, std=0.2)
    return model


SETTINGS: Any = {
    "sequence_length": 16,
    "context_token": VOCABULARY - 1,
    "batch_sequences": 2,
    "dtype": torch.float32,
}


def assert_same(found: SetLosses, expected: SetLosses) -> None:
    for name in ("nats", "correct", "tokens", "bytes"):
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_prefix_scores_what_a_model_of_the_first_layers_scores(
    family: Callable[[int], PreTrainedModel], tokens: TokenSet
) -> None:
    reference = seeded(family)
    found = prefix_losses(reference, tokens, **SETTINGS)
    assert len(found) == LAYERS
    assert len({losses.loss for losses in found}) == LAYERS
    for count, losses in enumerate(found, 1):
        cut = family(count).eval()
        weights = reference.state_dict()
        cut.load_state_dict({name: weights[name] for name in cut.state_dict()})
        assert_same(losses, measure(cut, tokens, **SETTINGS))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_last_prefix_is_the_reference_measured_as_always(dtype: torch.dtype, tokens: TokenSet) -> None:
    model, settings = seeded(llama), SETTINGS | {"dtype": dtype}
    assert_same(prefix_losses(model, tokens, **settings)[-1], measure(model, tokens, **settings))


def test_the_bfloat16_of_a_scan_is_not_its_float32(tokens: TokenSet) -> None:
    first, other = (
        prefix_losses(seeded(llama), tokens, **SETTINGS | {"dtype": dtype})[0]
        for dtype in (torch.float32, torch.bfloat16)
    )
    assert first.loss != other.loss
    assert first.loss == pytest.approx(other.loss, abs=0.05)


def test_progress_is_told_after_every_batch(tokens: TokenSet) -> None:
    told: list[tuple[int, int]] = []
    prefix_losses(seeded(llama), tokens, **SETTINGS, progress=lambda done, total: told.append((done, total)))
    assert told == [(2, 5), (4, 5), (5, 5)]


@pytest.mark.parametrize("family", [llama, falcon, openai_gpt])
def test_a_block_that_changes_its_input_in_place_is_caught_as_any_other(
    family: Callable[[int], PreTrainedModel], tokens: TokenSet
) -> None:
    """Blocks that give tensors, tuples, lists."""
    plain, in_place = seeded(family), seeded(family)
    last: Any = block_list(in_place)[1][-1]
    computed = last.forward

    def forward(hidden: torch.Tensor, *arguments: Any, **keywords: Any) -> Any:
        output = computed(hidden, *arguments, **keywords)
        hidden.copy_(output if isinstance(output, torch.Tensor) else output[0])
        return hidden if isinstance(output, torch.Tensor) else type(output)([hidden])

    last.forward = forward
    for found, expected in zip(
        prefix_losses(in_place, tokens, **SETTINGS), prefix_losses(plain, tokens, **SETTINGS), strict=True
    ):
        assert_same(found, expected)
    first, second = (
        block_influence(model, [tokens.read(0, 16)[None]], dtype=torch.float32) for model in (in_place, plain)
    )
    assert first == second


def test_blocks_beyond_a_prefix_take_no_part_in_it(tokens: TokenSet) -> None:
    """Some families keep states of their own from block to block, which later blocks would add to."""
    model = seeded(llama)
    calls = [0] * LAYERS

    def count(index: int) -> Callable[..., None]:
        def hook(*_: Any) -> None:
            calls[index] += 1

        return hook

    for index, block in enumerate(model.model.layers):
        block.register_forward_hook(count(index))
    prefix_losses(model, tokens, **SETTINGS | {"batch_sequences": 5})
    assert calls == [3, 2, 1]


def test_dropout_is_off_whatever_the_models_mode(tokens: TokenSet) -> None:
    model = seeded(gpt2)
    batch = tokens.read(0, 16)[None]
    expected, influence = prefix_losses(model, tokens, **SETTINGS), block_influence(model, [batch], dtype=torch.float32)
    model.train()
    assert model.config.resid_pdrop > 0
    for found, losses in zip(prefix_losses(model, tokens, **SETTINGS), expected, strict=True):
        assert_same(found, losses)
    assert block_influence(model, [batch], dtype=torch.float32) == influence
    assert_same(measure(model, tokens, **SETTINGS), expected[-1])


def state(model: PreTrainedModel) -> list[tuple[Any, ...]]:
    """What a scan changes for a while: modes, blocks, forwards, hooks."""
    return [
        (
            *(name, module.training, id(module), vars(module).get("forward"), *module._modules),
            *(*module._forward_hooks, *module._forward_pre_hooks),
        )
        for name, module in model.named_modules()
    ]


def mixed_modes(model: PreTrainedModel) -> PreTrainedModel:
    """A model in train mode with a block in eval mode and one with a forward of its own."""
    model.train()
    model.model.layers[1].eval()
    model.model.layers[0].forward = model.model.layers[0].forward
    return model


def test_the_model_is_left_as_it_was(tokens: TokenSet) -> None:
    model = mixed_modes(seeded(llama))
    before = state(model)
    prefix_losses(model, tokens, **SETTINGS)
    block_influence(model, [tokens.read(0, 16)[None]], dtype=torch.float32)
    measure(model, tokens, **SETTINGS)
    assert state(model) == before
    assert sum(training for _, training, *_ in before) not in (0, len(before))


@pytest.mark.parametrize("failing_call", range(1, LAYERS + 1))
def test_the_model_is_left_as_it_was_when_a_pass_fails(failing_call: int, tokens: TokenSet) -> None:
    """The first call is the whole pass, the others run what stands after the blocks on a block's output."""
    model = mixed_modes(seeded(llama))
    calls = itertools.count(1)

    def fail(*_: Any) -> None:
        if next(calls) == failing_call:
            raise KeyboardInterrupt

    model.model.norm.register_forward_hook(fail)
    before = state(model)
    with pytest.raises(KeyboardInterrupt):
        prefix_losses(model, tokens, **SETTINGS)
    assert next(calls) == failing_call + 1
    assert state(model) == before


@pytest.mark.parametrize(
    "run",
    [
        lambda model, tokens: measure(model, tokens, **SETTINGS),
        lambda model, tokens: block_influence(model, [tokens.read(0, 16)[None]], dtype=torch.float32),
    ],
)
def test_the_model_is_left_as_it_was_when_anything_fails(run: Callable[..., Any], tokens: TokenSet) -> None:
    model = mixed_modes(seeded(llama))
    model.lm_head.register_forward_hook(lambda *_: 1 // 0)
    before = state(model)
    with pytest.raises(ZeroDivisionError):
        run(model, tokens)
    assert state(model) == before


def test_blocks_that_run_twice_are_refused(tokens: TokenSet) -> None:
    model = seeded(llama)
    model.model.layers[2] = model.model.layers[1]
    with pytest.raises(Refused, match=r"runs its blocks in the order \[0, 1, 2, 1, 2\]"):
        prefix_losses(model, tokens, **SETTINGS)
    with pytest.raises(Refused, match="cannot be told apart"):
        block_influence(model, [tokens.read(0, 16)[None]], dtype=torch.float32)


class Steered(nn.Module):
    """A block that does a given thing to the hidden state."""

    def __init__(self, change: Callable[[torch.Tensor], Any]) -> None:
        super().__init__()
        self.change = change
        self.inner = nn.Identity()  # a list of blocks is told by its entries being made of modules

    def forward(self, hidden_states: torch.Tensor, *_: Any, **__: Any) -> Any:
        return self.change(hidden_states)


def quarter_turn(x: torch.Tensor) -> torch.Tensor:
    """Every pair of neighbours (a, b) as (-b, a): orthogonal to what it was."""
    return torch.stack([-x[..., 1::2], x[..., ::2]], -1).flatten(-2)


def steered(*changes: Callable[[torch.Tensor], Any]) -> Any:
    """A LLaMA with blocks that do given things."""
    model = seeded(llama, len(changes))
    model.model.layers = nn.ModuleList([Steered(change) for change in changes])
    return model


@pytest.mark.parametrize(
    ("change", "influence"),
    [
        (lambda x: x, 0.0),
        (lambda x: 4.0 * x, 0.0),
        (quarter_turn, 1.0),
        (lambda x: 3 * quarter_turn(x), 1.0),
        (lambda x: x + quarter_turn(x), 1 - math.sqrt(0.5)),
        (lambda x: -x, 2.0),
        (lambda x: -0.5 * x, 2.0),
        (torch.zeros_like, 1.0),
    ],
)
def test_influence_by_hand(change: Callable[[torch.Tensor], Any], influence: float) -> None:
    """Two layers, of which the first turns by a known angle and the second by none."""
    found = block_influence(steered(change, lambda x: x), [torch.arange(32).reshape(2, 16)], dtype=torch.float32)
    assert found[0] == pytest.approx(influence, abs=1e-6)
    assert found[1] == 0.0


def test_influence_is_the_mean_over_tokens_not_over_batches() -> None:
    def turn_token_0(x: torch.Tensor) -> torch.Tensor:
        """Every position but the first of every sequence is turned."""
        return torch.cat([x[:, :1], quarter_turn(x[:, 1:])], 1)

    ids = torch.arange(48).reshape(3, 16)
    (whole,) = block_influence(steered(turn_token_0), [ids], dtype=torch.float32)
    assert whole == pytest.approx(15 / 16, abs=1e-6)
    uneven = [ids[:1], ids[1:].flatten()[:4].reshape(2, 2)]  # 16 tokens with 15 turned, 4 with 2
    (mean,) = block_influence(steered(turn_token_0), uneven, dtype=torch.float32)
    assert mean == pytest.approx(17 / 20, abs=1e-6)


def test_two_zero_vectors_have_the_same_direction() -> None:
    found = block_influence(steered(torch.zeros_like, lambda x: x), [torch.arange(16)[None]], dtype=torch.float32)
    assert found == (1.0, 0.0)


def test_a_block_whose_output_projections_are_zero_has_no_influence(tokens: TokenSet) -> None:
    model = seeded(llama)
    block = model.model.layers[1]
    nn.init.zeros_(block.self_attn.o_proj.weight)
    nn.init.zeros_(block.mlp.down_proj.weight)
    found = block_influence(model, [tokens.read(0, 64).reshape(4, 16)], dtype=torch.float32)
    assert found[1] == 0.0
    assert min(found[0], found[2]) > 0.01


@pytest.mark.parametrize("family", FAMILIES)
def test_influence_is_one_minus_the_cosine_of_the_hidden_states(
    family: Callable[[int], PreTrainedModel], tokens: TokenSet
) -> None:
    model = seeded(family)
    ids = torch.from_numpy(tokens.read(0, 64).reshape(4, 16))
    found = block_influence(model, [ids[:3], ids[3:]], dtype=torch.float32)
    with torch.inference_mode():
        states = model(input_ids=ids, use_cache=False, output_hidden_states=True).hidden_states
    # the last of them is taken after the final norm, where there is one
    hidden = [state.double() for state in states[:-1]]
    for index in range(LAYERS - 1):
        cosine = nn.functional.cosine_similarity(hidden[index], hidden[index + 1], dim=-1)
        assert found[index] == pytest.approx(float((1 - cosine).mean()), rel=1e-5)


def test_small_angles_keep_their_digits_in_bfloat16() -> None:
    """The angle is 2^-6, which bfloat16 resolves; a cosine in bfloat16 would be 1."""
    model = steered(lambda x: x + quarter_turn(x) * 2**-6)
    for parameter in model.parameters():
        parameter.data = parameter.data.sign().bfloat16()
    (found,) = block_influence(model, [torch.arange(16)[None]], dtype=torch.float32)
    assert found == pytest.approx(1 - 1 / math.sqrt(1 + 2**-12), rel=1e-3)


def test_influence_of_nothing_is_refused() -> None:
    for batches in ([], [torch.zeros(2, 0, dtype=torch.int64)][:0]):
        with pytest.raises(Refused, match="no tokens"):
            block_influence(seeded(llama), batches, dtype=torch.float32)


def test_influence_of_a_model_that_overflows_fails() -> None:
    with pytest.raises(Failed, match="not finite"):
        block_influence(steered(lambda x: x / 0), [torch.arange(16)[None]], dtype=torch.float32)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda x: x.repeat(2, 1, 1), r"block 1 takes \(1, 16, 32\) and gives \(2, 16, 32\): its influence"),
        (lambda x: {"hidden": x}, "a block takes or gives no hidden state: its influence"),
    ],
)
def test_a_block_that_gives_no_hidden_state_of_its_inputs_shape_is_refused(
    change: Callable[[torch.Tensor], Any], reason: str
) -> None:
    model = steered(lambda x: x, change)
    with pytest.raises(Refused, match=reason):
        block_influence(model, [torch.arange(16)[None]], dtype=torch.float32)


@pytest.mark.parametrize(
    ("count", "indices"), [(1, (2,)), (2, (0, 2)), (3, (0, 2, 3)), (4, (0, 1, 2, 3)), (5, (0, 1, 2, 3, 4))]
)
def test_the_most_influential_are_ascending_and_ties_go_to_the_lower(count: int, indices: tuple[int, ...]) -> None:
    assert most_influential((0.5, 0.2, 0.9, 0.5, 0.2), count) == indices


@pytest.mark.parametrize("count", [0, -1, 6])
def test_more_layers_than_there_are_cannot_be_chosen(count: int) -> None:
    with pytest.raises(Refused, match=f"influence:{count}: the reference has 5 layers"):
        most_influential((0.5, 0.2, 0.9, 0.5, 0.2), count)


@pytest.mark.parametrize(
    ("sequence_length", "most_tokens", "shapes"),
    [
        (16, 1000, [(2, 16), (2, 16)]),  # 71 tokens: the tail fills no sequence
        (16, 50, [(2, 16), (1, 16)]),
        (16, 1, [(1, 16)]),
        (100, 1000, [(1, 71)]),
    ],
)
def test_influence_reads_the_beginning_of_a_set_in_order(
    sequence_length: int, most_tokens: int, shapes: list[tuple[int, int]], tokens: TokenSet
) -> None:
    batches = list(
        influence_batches(tokens, sequence_length=sequence_length, batch_sequences=2, most_tokens=most_tokens)
    )
    assert [batch.shape for batch in batches] == shapes
    read = np.concatenate([batch.flatten() for batch in batches])
    np.testing.assert_array_equal(read, tokens.read(0, len(read)))


def losses_of(nats: list[float], correct: list[int]) -> SetLosses:
    return SetLosses(*(np.array(x, np.float64) for x in (nats, correct, [10, 20, 30], [40, 80, 0])))


def test_a_scans_record() -> None:
    losses = [losses_of([30.0, 60.0, 90.0], [1, 2, 3]), losses_of([10.0, 50.0, 30.0], [5, 10, 15])]
    record = scan_record(losses, set_name="held-out", parameters=[7, 11], vocabulary=320)
    first, second = record.pop("prefixes")
    assert record == {
        "set": "held-out",
        "documents": 3,
        "tokens": 60,
        "bytes": 120,
        "vocabulary": 320,
        "uniform_guess": math.log(320),
    }
    # Every document of the first has 3 nats a token: no draw of documents differs.
    assert first == {
        "layers": 1,
        "parameters": 7,
        "loss": 3.0,
        "low": pytest.approx(3.0),
        "high": pytest.approx(3.0),
        "bits_per_byte": pytest.approx(180 / math.log(2) / 120),
        "accuracy": 0.1,
    }
    assert second["loss"] == 1.5
    assert 1.0 <= second["low"] < 1.5 < second["high"] <= 2.5
    assert (second["layers"], second["parameters"], second["accuracy"]) == (2, 11, 0.5)


def test_a_record_without_an_interval_or_a_loss_is_json_still() -> None:
    single = [SetLosses(*(np.array([x], np.float64) for x in (30.0, 5, 10, 40)))]
    alone = scan_record(single, set_name="held-out", parameters=[7], vocabulary=320)["prefixes"][0]
    assert (alone["loss"], alone["low"], alone["high"]) == (3.0, None, None)
    infinite = losses_of([30.0, math.inf, 90.0], [1, 2, 3])
    overflown = scan_record([infinite], set_name="held-out", parameters=[7], vocabulary=320)
    assert json.loads(json.dumps(overflown, allow_nan=False)) == overflown
    entry = overflown["prefixes"][0]
    assert [entry[key] for key in ("loss", "low", "high", "bits_per_byte")] == [None] * 4
