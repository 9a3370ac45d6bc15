"""Steps, accumulation, resuming, stopping, records."""

from __future__ import annotations

import dataclasses
import importlib
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from inheritune import checkpoint, training
from inheritune.config import TrainConfig
from inheritune.errors import Failed, Interrupted
from inheritune.metrics import Progress
from inheritune.objective import Objective
from inheritune.optimizer import adamw, gradient_norm
from inheritune.reference import block_list
from inheritune.run_directory import read_jsonl
from inheritune.tokens import Prepared, TokenSet
from inheritune.trained import Trained
from inheritune.training import Trainer
from inheritune.validation import SetLosses

MakePrepared = Callable[..., Prepared]
LENGTH = 16
CONFIG = TrainConfig(
    batch_sequences=8,
    micro_batch_sequences=8,
    learning_rate=1e-2,
    warmup_steps=2,
    validate_every_steps=3,
    checkpoint_every_steps=2,
    compute_dtype="float32",
)


def model(seed: int = 0) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=320,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=64,
        tie_word_embeddings=True,
    )
    return LlamaForCausalLM(config)


@pytest.fixture
def data(make_prepared: MakePrepared) -> Prepared:
    """26 blocks: with 8 sequences a step, the last step of two passes holds only 4 (52 = 6 * 8 + 4)."""
    random = np.random.default_rng(0)

    def documents(count: int) -> list[list[int]]:
        return [[*random.integers(0, 40, 26).tolist(), 319] for _ in range(count)]

    return make_prepared({"train": documents(16), "development": documents(3), "held-out": documents(4)})


def train(
    directory: Path,
    data: Prepared,
    told: Callable[[Progress], None] | None = None,
    report: Callable[[str], None] = lambda _line: None,
    **changes: Any,
) -> Any:
    """Train a model from the same start; returns the model and what `run` gave."""
    directory.mkdir(parents=True, exist_ok=True)
    trainer = Trainer(
        model=model(),
        prepared=data,
        config=dataclasses.replace(CONFIG, **changes),
        directory=directory,
        sequence_length=LENGTH,
        passes=2,
        report=report,
        progress=told or (lambda _progress: None),
    )
    trained = trainer.run()
    return trainer.model, trained


def weights(trained_model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in trained_model.named_parameters()}


def test_tokens_that_a_source_repeated_are_not_unique(tmp_path: Path, data: Prepared) -> None:
    data.manifest["sets"]["train"]["unique_tokens"] = 100
    _, trained = train(tmp_path / "run", data)
    assert (trained.tokens, trained.unique_tokens) == (52 * 16, 100)


def test_it_learns_and_counts(tmp_path: Path, data: Prepared) -> None:
    _, trained = train(tmp_path / "run", data)
    assert isinstance(trained, Trained)
    assert (trained.steps, trained.tokens, trained.unique_tokens, trained.tail_tokens) == (7, 52 * 16, 26 * 16, 15)
    records = read_jsonl(tmp_path / "run" / "metrics.jsonl")
    steps = [record for record in records if record["kind"] == "step"]
    validations = [record for record in records if record["kind"] == "validation"]
    assert [record["step"] for record in steps] == list(range(1, 8))
    assert [record["tokens"] for record in steps][-2:] == [48 * 16, 52 * 16]
    assert [record["pass"] for record in steps] == [0, 0, 0, 1, 1, 1, 1]
    assert [record["step"] for record in validations] == [0, 3, 6, 7]
    assert set(validations[0]["losses"]) == {"development", "held-out"}
    assert validations[-1]["losses"]["held-out"] < validations[0]["losses"]["held-out"] - 0.5


@pytest.mark.parametrize("micro", [1, 3, 4])
def test_accumulation_equals_one_large_batch(tmp_path: Path, data: Prepared, micro: int) -> None:
    whole, _ = train(tmp_path / "whole", data)
    parts, _ = train(tmp_path / "parts", data, micro_batch_sequences=micro)
    for name, value in weights(whole).items():
        torch.testing.assert_close(dict(parts.named_parameters())[name], value, rtol=2e-4, atol=2e-5)


def test_clipping_bounds_the_step(tmp_path: Path, data: Prepared) -> None:
    # The recorded norm is the one before clipping; what AdamW was given shows in its first moment.
    train(tmp_path / "clipped", data, gradient_clip=1e-3, max_steps=1, checkpoint_every_steps=1)
    train(tmp_path / "free", data, gradient_clip=0.0, max_steps=1, checkpoint_every_steps=1)
    norms = {}
    for name in ("clipped", "free"):
        file = "shard-00001-model-00001-of-00001.safetensors"
        held = load_file(tmp_path / name / "checkpoints" / "step_00000001" / file)
        first = [value for key, value in held.items() if key.startswith("optimizer.exp_avg.")]
        norms[name] = float(torch.cat([value.flatten() for value in first]).norm()) / (1 - CONFIG.beta1)
    recorded = read_jsonl(tmp_path / "free" / "metrics.jsonl")[1]["gradient_norm"]
    assert norms["free"] == pytest.approx(recorded, rel=1e-3)
    assert norms["clipped"] == pytest.approx(1e-3, rel=1e-2)


def test_decay_is_on_matrices_alone() -> None:
    network = model()
    decayed, free = adamw(network, CONFIG).param_groups
    assert decayed["weight_decay"] == CONFIG.weight_decay
    assert free["weight_decay"] == 0.0
    assert {parameter.dim() for parameter in decayed["params"]} == {2}
    assert {parameter.dim() for parameter in free["params"]} == {1}
    assert len(decayed["params"]) + len(free["params"]) == len(list(network.parameters()))


def test_weights_are_float32_whatever_came_in(tmp_path: Path, data: Prepared) -> None:
    trainer = Trainer(
        model().bfloat16(),
        data,
        CONFIG,
        tmp_path,
        LENGTH,
        1,
        report=lambda _line: None,
        progress=lambda _progress: None,
    )
    trainer.run()
    assert {parameter.dtype for parameter in trainer.model.parameters()} == {torch.float32}


@pytest.mark.parametrize("stop_after", [1, 2, 4, 6])
def test_a_stopped_run_goes_on_to_the_same_weights(tmp_path: Path, data: Prepared, stop_after: int) -> None:
    straight, _ = train(tmp_path / "straight", data)

    def stop(progress: Progress) -> None:
        if progress.step == stop_after:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Interrupted, match=f"stopped after step {stop_after} of 7, checkpoint written") as stopped:
        train(tmp_path / "stopped", data, told=stop)
    assert stopped.value.exit_code == 143
    assert checkpoint.checkpoints(tmp_path / "stopped" / "checkpoints")[-1].name == f"step_{stop_after:08d}"
    resumed, trained = train(tmp_path / "stopped", data)
    for name, value in weights(straight).items():
        assert torch.equal(dict(resumed.named_parameters())[name], value), name
    assert trained.steps == 7


SAVING: dict[str, dict[str, Any]] = {
    "8-bit": {"optimizer": "adamw_8bit"},
    "offloaded": {"offload_optimizer": True},
    "recomputing": {"activation_checkpointing": True},
}


@pytest.mark.parametrize("name", SAVING)
def test_settings_that_save_memory_are_resumed_too(tmp_path: Path, data: Prepared, name: str) -> None:
    if name == "8-bit":
        pytest.importorskip("torchao")
    changes = SAVING[name]
    plain, _ = train(tmp_path / "plain", data)
    straight, _ = train(tmp_path / "straight", data, **changes)

    def stop(progress: Progress) -> None:
        if progress.step == 4:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Interrupted):
        train(tmp_path / "stopped", data, told=stop, **changes)
    resumed, _ = train(tmp_path / "stopped", data, **changes)
    expected = weights(straight)
    assert all(torch.equal(value, expected[key]) for key, value in weights(resumed).items())
    same = all(torch.equal(value, expected[key]) for key, value in weights(plain).items())
    assert same == (name != "8-bit")
    replaced = {block._compiled_call_impl is not None for block in block_list(straight)[1]}
    assert replaced == {name == "recomputing"}


def test_a_run_may_change_where_its_moments_are(tmp_path: Path, data: Prepared) -> None:
    straight, _ = train(tmp_path / "straight", data)

    def stop(progress: Progress) -> None:
        if progress.step in (2, 4):
            os.kill(os.getpid(), signal.SIGTERM)

    for offloaded in (False, True):
        with pytest.raises(Interrupted):
            train(tmp_path / "run", data, told=stop, offload_optimizer=offloaded)
    resumed, _ = train(tmp_path / "run", data)
    assert all(torch.equal(value, weights(straight)[key]) for key, value in weights(resumed).items())


def test_ctrl_c_exits_130(tmp_path: Path, data: Prepared) -> None:
    with pytest.raises(Interrupted) as stopped:
        train(tmp_path / "run", data, told=lambda _progress: os.kill(os.getpid(), signal.SIGINT))
    assert stopped.value.exit_code == 130


def test_the_last_checkpoints_are_kept(tmp_path: Path, data: Prepared) -> None:
    train(tmp_path / "run", data, keep_checkpoints=2)
    names = [path.name for path in checkpoint.checkpoints(tmp_path / "run" / "checkpoints")]
    assert names == ["step_00000006", "step_00000007"]


def test_what_a_kill_left_half_written_goes(tmp_path: Path, data: Prepared) -> None:
    (tmp_path / "run" / "checkpoints" / ".step_00000099.tmp").mkdir(parents=True)
    train(tmp_path / "run", data, max_steps=3)
    assert not list((tmp_path / "run" / "checkpoints").glob(".*"))


def test_a_loss_that_is_no_number_ends_the_run(tmp_path: Path, data: Prepared) -> None:
    with pytest.raises(Failed, match=r"gradient norm (nan|inf).*lower train\.learning_rate"):
        train(tmp_path / "run", data, learning_rate=1e30, gradient_clip=0.0, warmup_steps=0, skipped_in_a_row=3)
    last = read_jsonl(tmp_path / "run" / "metrics.jsonl")[-1]
    assert (last["gradient_norm"], last["skipped"]) == (None, True)


def test_a_loss_that_is_no_number_at_the_end_is_no_success(tmp_path: Path, data: Prepared) -> None:
    network = model()
    torch.nn.init.constant_(network.lm_head.weight, float("nan"))
    config = dataclasses.replace(CONFIG, skipped_in_a_row=30)
    trainer = Trainer(network, data, config, tmp_path, LENGTH, 2, report=lambda _: None, progress=lambda _: None)
    with pytest.raises(Failed, match="loss nan at the last step"):
        trainer.run()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stop_while_the_last_step_is_validated_is_heard(
    tmp_path: Path, data: Prepared, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    straight, trained = train(tmp_path / "straight", data)
    real = training.Trainer._validate

    def told(self: Trainer, metrics: Any) -> None:
        if self._state.step == trained.steps:
            os.kill(os.getpid(), number)
        real(self, metrics)

    monkeypatch.setattr(training.Trainer, "_validate", told)
    with pytest.raises(Interrupted) as stop:
        train(tmp_path / "run", data)
    assert f"stopped after step {trained.steps} of {trained.steps}, checkpoint written" in str(stop.value)
    assert stop.value.exit_code == 128 + number
    model_, again = train(tmp_path / "run", data)
    assert again.steps == trained.steps
    assert all(torch.equal(value, weights(straight)[name]) for name, value in weights(model_).items())


def test_a_full_disk_keeps_the_older_checkpoint(
    tmp_path: Path, data: Prepared, monkeypatch: pytest.MonkeyPatch
) -> None:
    straight, _ = train(tmp_path / "straight", data)
    real, calls = HuggingFaceStorageWriter.write_data, []
    kept: list[str] = []
    lines: list[str] = []
    checkpoints = tmp_path / "run" / "checkpoints"

    def full(writer: HuggingFaceStorageWriter, *arguments: Any) -> Any:
        calls.append(writer)
        if len(calls) == 2:
            kept.extend(path.name for path in checkpoint.checkpoints(checkpoints))
            raise OSError(28, "No space left on device")
        return real(writer, *arguments)

    monkeypatch.setattr(HuggingFaceStorageWriter, "write_data", full)
    went_on, _ = train(tmp_path / "run", data, report=lines.append)
    assert kept == ["step_00000002"]
    assert [line for line in lines if "No space left on device" in line and "what is there is kept" in line]
    assert [path.name for path in checkpoint.checkpoints(checkpoints)] == ["step_00000006", "step_00000007"]
    assert not list(checkpoints.glob(".*"))
    for name, value in weights(straight).items():
        assert torch.equal(dict(went_on.named_parameters())[name], value)


def test_the_best_weights_are_those_of_the_lowest_development_loss(
    tmp_path: Path, data: Prepared, monkeypatch: pytest.MonkeyPatch
) -> None:
    development = iter([5.0, 4.0, 3.0, 3.5, 3.2, 3.1, 3.3, 3.4])
    seen = []

    def measured(objective: Objective, tokens: TokenSet, *_: Any, **__: Any) -> SetLosses:
        one = np.ones(1)
        if tokens.name == "development":
            seen.append(weights(objective.model))
            return SetLosses(one * next(development), one, one, one)
        # the held-out set is best at the end: it must not be what decides
        return SetLosses(one / (len(seen) + 1), one, one, one)

    monkeypatch.setattr(training, "measure_objective", measured)
    final, trained = train(tmp_path / "run", data, export="best", validate_every_steps=1)
    assert trained.best_step == 2
    for name, value in weights(final).items():
        assert torch.equal(seen[2][name], value)
        assert not torch.equal(seen[7][name], value)


def test_max_steps_ends_the_run_and_its_schedule(tmp_path: Path, data: Prepared) -> None:
    train(tmp_path / "run", data, max_steps=5)
    steps = [r for r in read_jsonl(tmp_path / "run" / "metrics.jsonl") if r["kind"] == "step"]
    assert len(steps) == 5
    assert steps[-1]["learning_rate"] < 0.4 * CONFIG.peak_learning_rate


def test_tensorboard_gets_the_same_numbers(tmp_path: Path, data: Prepared) -> None:
    pytest.importorskip("tensorboard")
    train(tmp_path / "run", data, tracker="tensorboard", max_steps=2)
    accumulator = importlib.import_module("tensorboard.backend.event_processing.event_accumulator")
    events = accumulator.EventAccumulator(str(tmp_path / "run" / "tensorboard")).Reload()
    recorded = [r["loss"] for r in read_jsonl(tmp_path / "run" / "metrics.jsonl") if r["kind"] == "step"]
    assert [event.value for event in events.Scalars("step/loss")] == pytest.approx(recorded, rel=1e-6)
    assert "validation/held-out" in events.Tags()["scalars"]


def test_dropout_is_resumed_too(tmp_path: Path, data: Prepared) -> None:
    def run(name: str, told: Callable[[Progress], None] = lambda _: None) -> dict[str, torch.Tensor]:
        torch.manual_seed(0)
        config = GPT2Config(vocab_size=320, n_embd=16, n_layer=1, n_head=2, n_positions=64, resid_pdrop=0.5)
        network = GPT2LMHeadModel(config)
        (tmp_path / name).mkdir(exist_ok=True)
        torch.manual_seed(len(name))  # whatever the process drew before
        Trainer(network, data, CONFIG, tmp_path / name, LENGTH, 2, report=lambda _: None, progress=told).run()
        return weights(network)

    def stop(progress: Progress) -> None:
        if progress.step == 3:
            os.kill(os.getpid(), signal.SIGTERM)

    straight = run("straight")
    with pytest.raises(Interrupted):
        run("stopped", stop)
    for name, value in run("stopped").items():
        assert torch.equal(straight[name], value), name


def test_steps_without_a_gradient_end_the_run_with_its_weights(
    tmp_path: Path, data: Prepared, monkeypatch: pytest.MonkeyPatch
) -> None:
    def poisoned(parameters: Any) -> torch.Tensor:
        for parameter in parameters:
            parameter.grad.fill_(float("nan"))
        return torch.tensor(float("nan"))

    monkeypatch.setattr(training, "gradient_norm", poisoned)
    config = dataclasses.replace(CONFIG, skipped_in_a_row=3)
    trainer = Trainer(model(), data, config, tmp_path, LENGTH, 1, report=lambda _: None, progress=lambda _: None)
    with pytest.raises(Failed, match=r"3 steps in a row were skipped, up to step 3 .*gradient norm nan"):
        trainer.run()
    for name, value in weights(trainer.model).items():
        assert torch.equal(value, weights(model())[name])


def test_one_bad_step_is_skipped_and_counted(tmp_path: Path, data: Prepared, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def spoilt(parameters: Any) -> torch.Tensor:
        norm = gradient_norm(parameters)
        calls.append(norm)
        return norm if len(calls) != 3 else torch.tensor(float("inf"))

    monkeypatch.setattr(training, "gradient_norm", spoilt)
    _, trained = train(tmp_path / "run", data)
    assert trained.skipped_steps == 1
    steps = [r for r in read_jsonl(tmp_path / "run" / "metrics.jsonl") if r["kind"] == "step"]
    assert [record["step"] for record in steps if record.get("skipped")] == [3]


@pytest.mark.parametrize("late", [False, True])
def test_reading_late_changes_nothing_but_when_it_is_read(tmp_path: Path, data: Prepared, late: bool) -> None:
    directory = tmp_path / "run"
    directory.mkdir()
    trainer = Trainer(
        model(), data, CONFIG, directory, LENGTH, 2, report=lambda _: None, progress=lambda _: None, read_late=late
    )
    trainer.run()
    straight, _ = train(tmp_path / "straight", data)
    for name, value in weights(straight).items():
        assert torch.equal(weights(trainer.model)[name], value)
    found, expected = (
        [(r["step"], r["loss"]) for r in read_jsonl(tmp_path / name / "metrics.jsonl") if r["kind"] == "step"]
        for name in ("run", "straight")
    )
    assert found == expected
