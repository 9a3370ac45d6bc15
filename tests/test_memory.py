"""What is predicted of a training step's memory: counted by hand, and found when the step is taken."""

from __future__ import annotations

import dataclasses
import importlib
import os
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from transformers import GPT2Config, LlamaConfig, MixtralConfig, PretrainedConfig

from inheritune.config import TrainConfig
from inheritune.errors import Refused
from inheritune.memory import Live, Memory, forward_and_backward, predicted
from inheritune.objective import Objective
from inheritune.optimizer import gradient_norm
from inheritune.recomputation import recompute_blocks
from inheritune.reference import fresh

LENGTH, MICRO_BATCH, D, VOCABULARY = 48, 2, 64, 320
TOKENS = LENGTH * MICRO_BATCH
BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """benchmarks/memory.py."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("memory")


def llama(**changes: Any) -> LlamaConfig:
    sizes: dict[str, Any] = {"hidden_size": D, "intermediate_size": 3 * D, "num_hidden_layers": 4}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "tie_word_embeddings": False}
    return LlamaConfig(**({"vocab_size": VOCABULARY} | sizes | heads | changes))


def gpt2(**changes: Any) -> GPT2Config:
    return GPT2Config(vocab_size=VOCABULARY, n_embd=D, n_layer=4, n_head=4, n_positions=64, **changes)


def foretold(
    config: PretrainedConfig,
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
    *,
    loss: Any = Objective,
    compiled_blocks: bool = False,
    **train: Any,
) -> Memory:
    changes: dict[str, Any] = {"batch_sequences": 2 * MICRO_BATCH, "compile": "never"} | train
    return predicted(
        config,
        TrainConfig(**changes),
        sequence_length=LENGTH,
        micro_batch=MICRO_BATCH,
        dtype=dtype,
        device=device,
        loss=loss,
        compiled_blocks=compiled_blocks,
    )


def found(
    config: PretrainedConfig, dtype: torch.dtype, recompute: bool, rounds: int, loss: Any = Objective
) -> dict[str, int]:
    """The same parts, of a step that is really taken, up to the optimiser."""
    model = fresh(config, 0).float().train()
    if recompute:
        recompute_blocks(model)
    objective, live = loss(model, dtype), Live()
    ids = torch.randint(VOCABULARY, (MICRO_BATCH, LENGTH))
    with live.watching(model):
        for _ in range(rounds):
            forward_and_backward(objective, ids, live)
        gradient_norm(list(model.parameters()))
    return live.peak


@pytest.mark.parametrize("rounds", [1, 2])
@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("config", [llama(), gpt2(), llama(tie_word_embeddings=True)], ids=["llama", "gpt2", "tied"])
def test_a_real_step_takes_what_was_predicted(
    config: PretrainedConfig, dtype: torch.dtype, recompute: bool, rounds: int
) -> None:
    batch = rounds * MICRO_BATCH
    expected = dataclasses.asdict(
        foretold(config, "cpu", dtype, activation_checkpointing=recompute, batch_sequences=batch)
    )
    del expected["host"]
    measured = found(config, dtype, recompute, rounds)
    assert sum(expected.values()) - expected["optimizer"] == pytest.approx(sum(measured.values()), rel=0.001)
    for part, size in measured.items():
        if part != "optimizer":
            assert expected[part] == pytest.approx(size, rel=0.001, abs=64), part


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_plain_loss_takes_what_was_predicted(benchmark: ModuleType, dtype: torch.dtype, recompute: bool) -> None:
    plain, tied = benchmark.loss_of({"plain_loss": True}), llama(tie_word_embeddings=True)
    expected = foretold(tied, "cpu", dtype, loss=plain, activation_checkpointing=recompute, batch_sequences=MICRO_BATCH)
    measured = found(tied, dtype, recompute, 1, plain)
    assert expected.total - expected.optimizer == pytest.approx(sum(measured.values()), rel=0.001)


def test_the_plain_loss_holds_every_score(benchmark: ModuleType) -> None:
    losses = (benchmark.loss_of({"plain_loss": True}), Objective)
    wide = [foretold(llama(vocab_size=100 * VOCABULARY), loss=loss) for loss in losses]
    scores = 4 * TOKENS * 100 * VOCABULARY
    assert wide[0].logits + wide[0].working > 3 * scores  # scores, shares, gradient
    assert wide[0].total > wide[1].total


@pytest.mark.skipif(not os.access("/proc/self/clear_refs", os.W_OK), reason="resets VmHWM, which only Linux has")
@pytest.mark.parametrize("micro_batches", [1, 2])
@pytest.mark.parametrize("changes", [{}, {"plain_loss": True}, {"activation_checkpointing": True}], ids=str)
def test_the_benchmark_measures_by_torchs_allocator(
    benchmark: ModuleType, changes: dict[str, Any], micro_batches: int
) -> None:
    shape = {"model_type": "llama"} | {key: getattr(llama(), key) for key in ("hidden_size", "intermediate_size")}
    shape |= {"vocab_size": 40 * VOCABULARY, "num_hidden_layers": 2, "num_attention_heads": 4}
    case = benchmark.Case(shape, LENGTH, MICRO_BATCH, "float32", "cpu", micro_batches)
    assert benchmark.settings(case, changes).batch_sequences == micro_batches * MICRO_BATCH
    expected, measured = benchmark.predict(case, changes), benchmark.measure(case, changes)
    assert expected["total"] == pytest.approx(measured["total"], rel=0.001)
    assert expected["total"] == pytest.approx(measured["allocated"], rel=0.01)


def test_the_benchmark_trains_half_of_smollm2_whole_and_in_halves(benchmark: ModuleType) -> None:
    cases = [case for title, case in benchmark.CPU_CASES.items() if title.startswith("smollm2-15")]
    assert [(case.dtype, case.micro_batch, case.micro_batches) for case in cases] == [
        ("bfloat16", 4, 2),
        ("bfloat16", 8, 1),
        ("float32", 8, 1),
    ]


def parameters(config: PretrainedConfig) -> int:
    return sum(parameter.numel() for parameter in fresh(config, 0).parameters())


@pytest.mark.parametrize("config", [llama(), gpt2()], ids=["llama", "gpt2"])
def test_weights_gradients_and_moments_by_hand(config: PretrainedConfig) -> None:
    plain, count = foretold(config), parameters(config)
    assert plain.weights == pytest.approx(4 * count, abs=2000)  # rotary frequencies
    assert plain.gradients == 4 * count
    assert plain.optimizer == 8 * count
    assert plain.host == 0
    offloaded = foretold(config, offload_optimizer=True)
    assert (offloaded.optimizer, offloaded.host) == (0, 8 * count + 16 * VOCABULARY * D)
    assert offloaded.total == plain.total - plain.optimizer
    eighth = foretold(config, optimizer="adamw_8bit", compile="always")
    assert 2 * count < eighth.optimizer < 2.5 * count


def test_the_step_of_a_large_head_can_take_most() -> None:
    wide = llama(vocab_size=100 * VOCABULARY, num_hidden_layers=1)
    eager, compiled = (foretold(wide, optimizer="adamw_8bit", compile=setting) for setting in ("never", "always"))
    assert eager.working == 53 * 100 * VOCABULARY * D
    assert eager.activations == 0
    assert compiled.total < eager.total


def test_activations_grow_by_the_layer_and_the_token() -> None:
    by_layers = [foretold(llama(num_hidden_layers=layers)).activations for layers in (4, 5, 6)]
    assert by_layers[1] - by_layers[0] == by_layers[2] - by_layers[1] > 10 * 4 * TOKENS * D
    again = [
        foretold(llama(num_hidden_layers=layers), activation_checkpointing=True).activations for layers in (4, 5, 6)
    ]
    assert again[1] - again[0] == again[2] - again[1] == 4 * TOKENS * D  # a hidden state


def test_on_a_gpu_attention_with_dropout_keeps_no_scores() -> None:
    scores = 4 * MICRO_BATCH * 4 * LENGTH * LENGTH  # heads
    on_cpu, on_gpu = (foretold(gpt2(), device).activations for device in ("cpu", "cuda"))
    assert on_cpu - on_gpu > 4 * scores
    recomputing = foretold(gpt2(), "cuda", activation_checkpointing=True)
    assert recomputing.total < foretold(gpt2(), "cuda").total
    without = gpt2(attn_pdrop=0.0)
    assert foretold(without, "cpu").activations == foretold(without, "cuda").activations


def test_on_a_gpu_short_sequences_in_bfloat16_keep_no_scores() -> None:
    for recompute in (False, True):
        on_cpu, on_gpu = (
            foretold(llama(), device, torch.bfloat16, activation_checkpointing=recompute) for device in ("cpu", "cuda")
        )
        assert on_gpu.total < on_cpu.total
    scores = 2 * MICRO_BATCH * 4 * LENGTH * LENGTH  # heads; bfloat16
    plain = [foretold(llama(), device, torch.bfloat16).activations for device in ("cpu", "cuda")]
    assert plain[0] - plain[1] > 4 * scores


def test_one_micro_batch_a_step_has_its_gradients_later() -> None:
    once = foretold(llama(), batch_sequences=MICRO_BATCH)
    assert once.total < foretold(llama()).total
    assert once.gradients < 4 * parameters(llama())


def test_what_depends_on_values_is_refused() -> None:
    heads: dict[str, Any] = {"num_attention_heads": 4, "num_key_value_heads": 2, "num_local_experts": 4}
    config = MixtralConfig(vocab_size=VOCABULARY, hidden_size=D, intermediate_size=D, num_hidden_layers=2, **heads)
    config._experts_implementation = "eager"
    with pytest.raises(Refused, match=r"^mixtral: its memory cannot be predicted, because what it computes depends on"):
        foretold(config)


def test_a_storage_is_counted_from_its_making_to_its_end() -> None:
    live = Live()
    with live:
        first = torch.ones(100)
        view = first[:10].reshape(5, 2)
        live.part = "logits"
        second = first + 1
        assert (live.now["activations"], live.now["logits"]) == (400, 400)
        first.add_(1)
        del first
        assert live.now["activations"] == 400  # the view keeps it
        del view
        assert live.now["activations"] == 0
        live.note(second, "gradients")
        assert (live.now["logits"], live.now["gradients"]) == (0, 400)
        live.add("working", 1000)
        live.add("working", -1000)
    assert sum(live.peak.values()) == 1400
    assert live.peak["working"] == 1000


def test_without_a_partitioner_eager_blocks_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    config = llama()
    eager, compiled = (foretold(config, compiled_blocks=kept) for kept in (False, True))
    assert compiled.activations < eager.activations
    assert compiled.weights == eager.weights
    assert compiled.logits == eager.logits
    for name in ("torch._functorch.partitioners", "torch._dynamo.backends.common"):
        with monkeypatch.context() as hidden:
            hidden.setitem(sys.modules, name, None)
            assert foretold(config, compiled_blocks=True) == eager
