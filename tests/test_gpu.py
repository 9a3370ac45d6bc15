"""What a GPU computes otherwise than a CPU: precision, kernels, compiled code, moments on the host.

Each test runs on the CPU, too, so that it is itself tried where there is no GPU.
"""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from inheritune.config import TrainConfig
from inheritune.distributed import World
from inheritune.memory import predicted
from inheritune.objective import Objective, Scores
from inheritune.optimizer import gradient_norm, make_optimizer, moments, take_step
from inheritune.parallel import compile_blocks, place
from inheritune.recomputation import recompute_blocks
from inheritune.run_directory import read_jsonl
from inheritune.tokens import Prepared
from inheritune.training import Trainer

DEVICES = [pytest.param("cpu", id="cpu"), pytest.param("cuda", marks=pytest.mark.gpu, id="gpu")]
on_both = pytest.mark.parametrize("device", DEVICES)
VOCABULARY, LENGTH = 320, 64


def config(**changes: Any) -> LlamaConfig:
    sizes: dict[str, Any] = {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 3}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 2048}
    return LlamaConfig(**({"vocab_size": VOCABULARY, "tie_word_embeddings": False} | sizes | heads | changes))


def model(device: str, **changes: Any) -> PreTrainedModel:
    torch.manual_seed(0)
    return place(LlamaForCausalLM(config(**changes)).train(), torch.device(device))


def ids(device: str) -> torch.Tensor:
    return torch.randint(VOCABULARY, (2, LENGTH), generator=torch.Generator().manual_seed(1)).to(device)


def gradients(network: PreTrainedModel, device: str, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """All gradients in one vector; the mean loss stands before them."""
    network.zero_grad()
    tokens = ids(device)
    loss = Objective(network, dtype)(tokens, tokens).minimised / tokens.numel()
    loss.backward()
    found = [parameter.grad for parameter in network.parameters() if parameter.grad is not None]
    assert len(found) == len(list(network.parameters()))
    assert {gradient.dtype for gradient in found} == {torch.float32}
    return torch.cat([loss.detach().reshape(1), *(gradient.flatten() for gradient in found)])


def assert_near(found: torch.Tensor, expected: torch.Tensor, relative: float) -> None:
    """By the norm of the difference: single gradients near 0 say nothing."""
    assert 0 < expected.norm() < float("inf")
    assert (found - expected).norm() <= relative * expected.norm()
    assert (found[0] - expected[0]).abs() <= relative * expected[0].abs()


@on_both
def test_bfloat16(device: str) -> None:
    network = model(device)
    exact, half = gradients(network, device), gradients(network, device, torch.bfloat16)
    assert not torch.equal(half, exact)
    assert_near(half, exact, 0.03)


@pytest.mark.gpu
def test_fused_attention_computes_as_plain() -> None:
    device = "cuda"  # on a CPU attention in bfloat16 is our own: tests/test_attention.py
    network = model(device)
    with sdpa_kernel(SDPBackend.MATH):
        plain = gradients(network, device, torch.bfloat16)
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION):  # an error where the kernel cannot be used, because of a mask, say
        fused = gradients(network, device, torch.bfloat16)
    assert not torch.equal(plain, fused)
    assert_near(fused, plain, 0.03)


@on_both
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_recomputed_activations(device: str, dtype: torch.dtype) -> None:
    network, other = model(device), model(device)
    recompute_blocks(other)
    expected, found = gradients(network, device, dtype), gradients(other, device, dtype)
    if device == "cpu":
        assert torch.equal(found, expected)
    assert_near(found, expected, 1e-5 if dtype == torch.float32 else 0.01)


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # dynamo looks into every module, which warns
@pytest.mark.skipif(shutil.which("g++") is None and shutil.which("clang++") is None, reason="needs a C++ compiler")
@on_both
@pytest.mark.parametrize("recompute", [False, True])
def test_compiled_blocks(device: str, recompute: bool) -> None:
    eager, compiled = model(device), model(device)
    assert compile_blocks(compiled, "always", torch.device(device), flops=0.0, report=pytest.fail)
    if recompute:
        recompute_blocks(compiled)
    assert_near(gradients(compiled, device), gradients(eager, device), 1e-4)
    half = gradients(compiled, device, torch.bfloat16)
    assert_near(half, gradients(eager, device, torch.bfloat16), 0.03)


@on_both
def test_the_loss_by_chunks_is_the_plain_loss(device: str) -> None:
    network, tokens = model(device), ids(device)
    objective = Objective(network, torch.float32, chunk_scores=9 * VOCABULARY)  # 128 tokens, 9 at a time
    objective(tokens, tokens).minimised.backward()
    chunked = [parameter.grad for parameter in network.parameters()]
    network.zero_grad()
    logits = network(input_ids=tokens, use_cache=False).logits
    losses = F.cross_entropy(logits.flatten(0, 1), tokens.flatten(), reduction="none")
    losses.sum().backward()
    for found, parameter in zip(chunked, network.parameters(), strict=True):
        torch.testing.assert_close(found, parameter.grad, rtol=1e-3, atol=1e-4)
    scores = objective(tokens, tokens, scored=True)
    assert isinstance(scores, Scores)
    torch.testing.assert_close(scores.nats.flatten(), losses.detach(), rtol=1e-4, atol=1e-5)


def stepped(device: str, **changes: Any) -> tuple[PreTrainedModel, torch.optim.Optimizer]:
    """A model after five steps, of which the third was skipped."""
    network = model(device)
    optimizer = make_optimizer(network, TrainConfig(learning_rate=1e-3, **changes), compiled=device == "cuda")
    for number in range(5):
        gradients(network, device)
        norm = gradient_norm(list(network.parameters()))
        take_step(optimizer, torch.tensor(float(number == 2), device=device), norm, 1.0)
    return network, optimizer


def weights(network: PreTrainedModel) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in network.parameters()])


@on_both
@pytest.mark.parametrize("kind", ["offloaded", "8-bit"])
@pytest.mark.filterwarnings("default")  # torchao's step is compiled on a GPU
def test_optimisers_that_save_memory(device: str, kind: str) -> None:
    changes: dict[str, Any] = {"offload_optimizer": True}
    if kind == "8-bit":
        pytest.importorskip("torchao")
        changes = {"optimizer": "adamw_8bit"}
    plain, _ = stepped(device)
    network, optimizer = stepped(device, **changes)
    start = weights(model(device))
    assert_near(weights(network) - start, weights(plain) - start, 1e-3 if kind == "offloaded" else 0.1)
    names = {parameter: name for name, parameter in network.named_parameters()}
    places = {tensor.device.type for tensor in moments(optimizer, names).values()}
    assert places == {"cpu" if kind == "offloaded" else device}
    assert {parameter.device.type for parameter in network.parameters()} == {device}


@pytest.fixture
def data(make_prepared: Callable[..., Prepared]) -> Prepared:
    random = np.random.default_rng(0)

    def documents(count: int) -> list[list[int]]:
        return [[*random.integers(0, 40, 90).tolist(), VOCABULARY - 1] for _ in range(count)]

    return make_prepared({"train": documents(24), "development": documents(3), "held-out": documents(4)})


@on_both
@pytest.mark.parametrize("resumed", [False, True])
def test_a_training_that_saves_memory(device: str, resumed: bool, tmp_path: Path, data: Prepared) -> None:
    plain = TrainConfig(
        batch_sequences=8,
        micro_batch_sequences=4,
        learning_rate=1e-3,
        warmup_steps=1,
        max_steps=4,
        checkpoint_every_steps=2,
        compute_dtype="float32",
        compile="never",
    )
    saving = dataclasses.replace(plain, activation_checkpointing=True, offload_optimizer=True)
    losses = {}
    for name, settings in {"plain": plain, "saving": saving}.items():
        directory = tmp_path / name
        directory.mkdir()
        world = World(rank=0, size=1, device=torch.device(device))

        def run(settings: TrainConfig, directory: Path = directory, world: World = world) -> None:
            network = model("cpu")
            Trainer(network, data, settings, directory, LENGTH, 1, lambda _: None, lambda _: None, world=world).run()

        run(settings)
        if resumed:  # the last checkpoint is taken away, so that it goes on from the one before
            shutil.rmtree(directory / "checkpoints" / "step_00000004")
            run(settings)
        losses[name] = [record["loss"] for record in read_jsonl(directory / "metrics.jsonl") if "loss" in record]
    assert losses["saving"] == pytest.approx(losses["plain"], rel=1e-4 if device == "cuda" else 0)


@pytest.mark.gpu
@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_memory_is_as_predicted(dtype: torch.dtype, recompute: bool) -> None:
    sizes = {"hidden_size": 1024, "intermediate_size": 2816, "num_hidden_layers": 6, "vocab_size": 8000}
    settings = TrainConfig(batch_sequences=8, activation_checkpointing=recompute, compile="never")
    expected = predicted(config(**sizes), settings, sequence_length=1024, micro_batch=4, dtype=dtype)
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated()
    network = model("cuda", **sizes)
    if recompute:
        recompute_blocks(network)
    objective, tokens = Objective(network, dtype), torch.zeros((4, 1024), dtype=torch.int64, device="cuda")
    optimizer = make_optimizer(network, settings, compiled=False)
    for _ in range(2):
        torch.cuda.reset_peak_memory_stats()
        for _ in range(2):
            objective(tokens, tokens).minimised.backward()
        norm = gradient_norm(list(network.parameters()))
        take_step(optimizer, torch.zeros((), device="cuda"), norm, 1.0)
    assert torch.cuda.max_memory_allocated() - before == pytest.approx(expected.total, rel=0.1)
