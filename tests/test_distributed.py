"""Many ranks: the same training as one rank's, checkpoints over any number of ranks, and what happens when one dies.

Ranks are processes on this machine that reduce over gloo (see ranks.py). A test's first lines are run in pytest's own
process; functions whose first argument is a world, or that join one, are run on every rank.
"""

from __future__ import annotations

import dataclasses
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter
from torch.distributed.tensor import DTensor
from transformers import (
    CohereConfig,
    CohereForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GraniteConfig,
    GraniteForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PhiConfig,
    PhiForCausalLM,
    PreTrainedModel,
)

from inheritune.config import DistillConfig, ObjectiveConfig, TrainConfig
from inheritune.distributed import World, joined
from inheritune.errors import Interrupted, Refused
from inheritune.metrics import Progress
from inheritune.objective import Objective
from inheritune.parallel import distribute, share_blocks
from inheritune.run_directory import read_jsonl
from inheritune.tokens import Prepared, open_prepared
from inheritune.training import Trainer
from inheritune.validation import measure_objective
from ranks import start, values

MakePrepared = Callable[..., Prepared]
Record = dict[str, Any]
LENGTH = 16
ALONE = World(rank=0, size=1, device=torch.device("cpu"))
# Rounding grows where AdamW divides a gradient by its own size: a large epsilon keeps what is compared to rounding.
CONFIG = TrainConfig(
    batch_sequences=8,
    micro_batch_sequences=3,
    learning_rate=1e-2,
    warmup_steps=2,
    epsilon=1e-3,
    validate_every_steps=3,
    compute_dtype="float32",
    compile="never",
)
# Float32 has 24 bits, 6e-8 of a value: sums of some thousand terms in another order, over 7 steps.
LOSS: Record = {"rtol": 2e-6, "atol": 0.0}
NORM: Record = {"rtol": 2e-5, "atol": 0.0}
WEIGHT: Record = {"rtol": 0.0, "atol": 2e-6}

SIZES: Record = {
    "vocab_size": 320,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 319,
    "eos_token_id": 319,
}
FAMILIES: dict[str, Callable[[], PreTrainedModel]] = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**SIZES, tie_word_embeddings=False)),
    "llama tied": lambda: LlamaForCausalLM(LlamaConfig(**SIZES, tie_word_embeddings=True)),
    "gemma2": lambda: Gemma2ForCausalLM(Gemma2Config(**SIZES, head_dim=8, final_logit_softcapping=2.0)),
    "cohere": lambda: CohereForCausalLM(CohereConfig(**SIZES, logit_scale=0.3)),
    "granite": lambda: GraniteForCausalLM(GraniteConfig(**SIZES, logits_scaling=3.0)),
    "phi": lambda: PhiForCausalLM(PhiConfig(**SIZES)),
}


def model(family: str = "llama", seed: int = 0) -> PreTrainedModel:
    torch.manual_seed(seed)
    made = FAMILIES[family]()
    with torch.no_grad():
        for parameter in made.parameters():  # norms and biases, too, and large enough for scales to matter
            parameter.add_(torch.randn(parameter.shape) * 0.1)
    return made


@pytest.fixture
def data(make_prepared: MakePrepared) -> Prepared:
    """26 blocks of 16: with 8 sequences a step, the last step of two passes holds only 4 (52 = 6 * 8 + 4)."""
    random = np.random.default_rng(0)

    def documents(count: int) -> list[list[int]]:
        return [[*random.integers(0, 40, 26).tolist(), 319] for _ in range(count)]

    return make_prepared({"train": documents(16), "development": documents(3), "held-out": documents(4)})


@dataclasses.dataclass(frozen=True)
class Case:
    """A training: a family, and how it differs from CONFIG and the like."""

    family: str = "llama"
    config: Record = dataclasses.field(default_factory=dict)
    document_mask: bool = False
    learn: bool = False
    """Whether it learns from a teacher, too."""
    stop_after: int | None = None
    """The last rank gets SIGTERM after this step; training sees it in the next."""
    full_disk: int | None = None
    """The last rank's disk is full at this save, counted from 1."""


@dataclasses.dataclass(frozen=True)
class Training:
    """What a training came to."""

    losses: list[float]
    divergences: list[float]
    norms: list[float]
    places: list[tuple[int, int, int]]
    """By step: tokens, pass, block."""
    validation: list[float]
    weights: dict[str, np.ndarray[Any, np.dtype[np.float32]]]
    parallel: str
    lines: list[str]


def train(world: World, directory: Path, data: Path, case: Case) -> Training:
    directory.mkdir(parents=True, exist_ok=True)
    lines: list[str] = []
    distill = DistillConfig(weight=0.5, temperature=2.0) if case.learn else None
    last = world.rank == world.size - 1

    def told(progress: Progress) -> None:
        if progress.step == case.stop_after and last:
            os.kill(os.getpid(), signal.SIGTERM)

    if case.full_disk is not None and last:
        _fill_disk(case.full_disk)
    trainer = Trainer(
        model(case.family),
        open_prepared(data),
        dataclasses.replace(CONFIG, objective=ObjectiveConfig(distill=distill), **case.config),
        directory,
        LENGTH,
        2,
        report=lines.append,
        progress=told,
        world=world,
        document_mask=case.document_mask,
        teacher=model(case.family, seed=1) if case.learn else None,
    )
    result = trainer.run()
    weights = {name: value.numpy().copy() for name, value in trainer.exported()}
    records = read_jsonl(directory / "metrics.jsonl")
    steps = [record for record in records if record["kind"] == "step"]
    return Training(
        [record["loss"] for record in steps],
        [record.get("divergence", 0.0) for record in steps],
        [record["gradient_norm"] for record in steps],
        [(record["tokens"], record["pass"], record["block"]) for record in steps],
        [record["losses"]["held-out"] for record in records if record["kind"] == "validation"],
        weights,
        result.parallel,
        lines,
    )


def _fill_disk(save: int) -> None:
    """Let this process's writes of one save fail."""
    real, calls = HuggingFaceStorageWriter.write_data, []

    def write(writer: HuggingFaceStorageWriter, *arguments: Any) -> Any:
        calls.append(writer)
        if len(calls) == save:
            raise OSError(28, "No space left on device")
        return real(writer, *arguments)

    mock.patch.object(HuggingFaceStorageWriter, "write_data", write).start()


def train_all(directory: Path, data: Path, cases: dict[str, Case]) -> dict[str, Training]:
    """On a rank: several trainings, one after the other, in one group."""
    with joined() as world:
        return {name: train(world, directory / name, data, case) for name, case in cases.items()}


def train_one(directory: Path, data: Path, case: Case) -> Training:
    """On a rank: one training."""
    with joined() as world:
        return train(world, directory, data, case)


def assert_same(found: Training, expected: Training) -> None:
    assert found.places == expected.places
    assert len(found.losses) == 7
    np.testing.assert_allclose(found.losses, expected.losses, **LOSS)
    np.testing.assert_allclose(found.divergences, expected.divergences, **LOSS)
    np.testing.assert_allclose(found.norms, expected.norms, **NORM)
    np.testing.assert_allclose(found.validation, expected.validation, **LOSS)
    assert found.weights.keys() == expected.weights.keys()
    for name, value in expected.weights.items():
        np.testing.assert_allclose(found.weights[name], value, err_msg=name, **WEIGHT)


MODES: dict[str, Record] = {"ddp": {"parallel": "ddp"}, "fsdp": {"parallel": "fsdp"}}
HYBRID: Record = {"parallel": "fsdp", "fsdp_ranks": 2}
SAVING: Record = {"parallel": "fsdp", "checkpoint_every_steps": 2}


@pytest.mark.parametrize("family", FAMILIES)
def test_ranks_change_nothing_but_rounding(tmp_path: Path, data: Prepared, family: str) -> None:
    one = train(ALONE, tmp_path / "one", data.directory, Case(family))
    assert one.parallel == "none"
    assert abs(one.losses[0] - one.losses[-1]) > 0.05
    cases = {name: Case(family, config) for name, config in MODES.items()}
    ranks = values(2, train_all, tmp_path, data.directory, cases)
    for name in MODES:
        assert ranks[0][name].parallel == name
        assert_same(ranks[0][name], one)
        for key, value in ranks[0][name].weights.items():
            np.testing.assert_array_equal(ranks[1][name].weights[key], value)


def test_settings_that_save_memory_over_ranks(tmp_path: Path, data: Prepared) -> None:
    saving: Record = {"activation_checkpointing": True, "offload_optimizer": True}
    one = train(ALONE, tmp_path / "one", data.directory, Case())
    stopped = Case("llama", SAVING | saving, stop_after=3)
    outcomes = start(2, train_one, tmp_path / "fsdp", data.directory, stopped)
    assert [outcome.error for outcome in outcomes] == ["Interrupted", "Interrupted"], outcomes[0].trace
    cases = {"ddp": Case("llama", MODES["ddp"] | saving), "fsdp": Case("llama", SAVING | saving)}
    for found in values(2, train_all, tmp_path, data.directory, cases)[0].values():
        assert_same(found, one)


def test_four_ranks_and_two_copies_change_nothing_but_rounding(tmp_path: Path, data: Prepared) -> None:
    cases = {
        "hybrid": Case("llama", HYBRID),
        "hybrid, one by one": Case("llama", {**HYBRID, "micro_batch_sequences": 1}),
        "ddp": Case("llama", MODES["ddp"]),
        "tied": Case("llama tied", HYBRID),
    }
    found = values(4, train_all, tmp_path, data.directory, cases)[0]
    for name, case in cases.items():
        one = train(ALONE, tmp_path / "one" / name, data.directory, Case(case.family, {"micro_batch_sequences": 8}))
        assert_same(found[name], one)


@pytest.mark.parametrize("case", [Case(document_mask=True), Case(learn=True), Case("gemma2", {}, True, True)])
def test_document_mask_and_distillation_over_ranks(tmp_path: Path, data: Prepared, case: Case) -> None:
    one = train(ALONE, tmp_path / "one", data.directory, case)
    plain = train(ALONE, tmp_path / "plain", data.directory, Case(case.family))
    assert abs(one.norms[0] - plain.norms[0]) > 1e-4
    assert not case.learn or min(one.divergences) > 1e-3
    cases = {name: dataclasses.replace(case, config=config) for name, config in MODES.items()}
    for found in values(2, train_all, tmp_path, data.directory, cases)[0].values():
        assert_same(found, one)


def test_the_best_weights_are_exported_whole_over_ranks(tmp_path: Path, data: Prepared) -> None:
    """The rate is too high, so the best are those at the start; the embedding and the norm are with FSDP's root."""
    config: Record = {"export": "best", "learning_rate": 20.0, "warmup_steps": 0, "validate_every_steps": 1}
    cases = {name: Case("llama tied", config | mode) for name, mode in MODES.items()}
    begun = dict(model("llama tied").named_parameters())
    for found in values(2, train_all, tmp_path, data.directory, cases)[0].values():
        assert min(found.validation[1:]) > found.validation[0]
        for name, value in found.weights.items():
            np.testing.assert_array_equal(value, begun[name].detach().numpy(), err_msg=name)


def read_over_ranks() -> list[int]:
    """On a rank: how much of a shared teacher's blocks it holds before and after a pass."""
    with joined() as world:
        teacher = model().eval()
        share_blocks(teacher, world)

        def held() -> int:
            found = teacher.get_decoder().layers.parameters()
            return sum((one.to_local() if isinstance(one, DTensor) else one).numel() for one in found)

        before = held()
        with torch.no_grad():
            teacher(torch.zeros(1, 8, dtype=torch.int64))
        return [before, held()]


def test_a_shared_teacher_stays_shared() -> None:
    whole = sum(one.numel() for one in model().get_decoder().layers.parameters())
    for before, after in values(2, read_over_ranks):
        assert before == after < 0.6 * whole


def measured(data: Path, shard: bool) -> list[Any]:
    """On a rank: losses by document of both sets."""
    with joined() as world:
        made = model()
        objective = Objective(made, torch.float32)
        distribute(objective, made, world, shard=shard)
        return _measured(objective, data, world)


def _measured(objective: Objective, data: Path, world: World) -> list[Any]:
    prepared = open_prepared(data)
    return [
        measure_objective(
            objective, prepared.set(name), world, sequence_length=LENGTH, context_token=319, batch_sequences=3
        )
        for name in ("development", "held-out")  # 6 and 7 blocks: 2 and 3 batches, so one rank repeats another's last
    ]


@pytest.mark.parametrize("shard", [False, True])
def test_validation_over_ranks_is_the_same_to_the_bit(data: Prepared, shard: bool) -> None:
    alone = _measured(Objective(model(), torch.float32), data.directory, ALONE)
    for rank in values(2, measured, data.directory, shard):
        for found, expected in zip(rank, alone, strict=True):
            assert expected.nats.min() > 0
            np.testing.assert_array_equal(found.nats, expected.nats)
            np.testing.assert_array_equal(found.correct, expected.correct)


def test_a_run_goes_on_over_another_number_of_ranks(tmp_path: Path, data: Prepared) -> None:
    straight = train(ALONE, tmp_path / "straight", data.directory, Case())
    run = tmp_path / "run"
    for count, config, stop_after in (
        (2, MODES["fsdp"], 1),
        (4, HYBRID, 3),
        (2, MODES["ddp"], 5),
    ):
        stopped = start(count, train_one, run, data.directory, Case(config=config, stop_after=stop_after))
        text = f"stopped after step {stop_after + 1} of 7, checkpoint written"
        for outcome in stopped:
            assert (outcome.error, outcome.exit_code) == ("Interrupted", 143), outcome.trace + outcome.output
            assert text in outcome.text
    found = train(ALONE, run, data.directory, Case())
    assert found.lines == [
        "Going on after step 6.",
        "The checkpoint was written by 2 ranks of 1 threads, now 1 of 1: the same data, but sums may round otherwise.",
    ]
    assert_same(found, straight)


def test_a_damaged_shard_of_one_rank_is_seen_by_all(tmp_path: Path, data: Prepared) -> None:
    straight = values(2, train_one, tmp_path / "straight", data.directory, Case(config=SAVING))[0]
    run = tmp_path / "run"
    start(2, train_one, run, data.directory, Case(config=SAVING, stop_after=4))
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == ["step_00000004", "step_00000005"]
    (shard,) = (run / "checkpoints" / "step_00000005").glob("shard-00002-*")
    content = bytearray(shard.read_bytes())
    content[-9] ^= 1
    shard.write_bytes(content)
    for found in values(2, train_one, run, data.directory, Case(config=SAVING)):
        assert found.lines == [
            f"{shard}: damaged, its checksum differs; the checkpoint before it is used.",
            "Going on after step 4.",
        ]
        for name, value in straight.weights.items():
            np.testing.assert_array_equal(found.weights[name], value)


def test_a_full_disk_of_one_rank_stops_none(tmp_path: Path, data: Prepared) -> None:
    straight = values(2, train_one, tmp_path / "straight", data.directory, Case(config=SAVING))[0]
    case = Case(config={**SAVING, "keep_checkpoints": 9}, full_disk=2)
    for found in values(2, train_one, tmp_path / "run", data.directory, case):
        assert found.lines == [
            f"{tmp_path / 'run' / 'checkpoints'}: checkpoint not written (No space left on device); "
            "what is there is kept, the next comes in time."
        ]
        for name, value in straight.weights.items():
            np.testing.assert_array_equal(found.weights[name], value)
    names = sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir())
    assert names == ["step_00000002", "step_00000006", "step_00000007"]


def on_main(kind: str) -> Any:
    """On a rank: rank 0 alone does something."""

    def work() -> Any:
        assert os.environ["RANK"] == "0"
        if kind == "Refused":
            raise Refused("bad input")
        if kind == "Interrupted":
            raise Interrupted("stopped", 143)
        if kind == "KeyboardInterrupt":
            raise KeyboardInterrupt
        if kind == "ValueError":
            raise ValueError("a fault")
        return {"some": ["value"]}

    with joined() as world:
        return world.on_main(work)


@pytest.mark.parametrize(
    ("kind", "mirrored", "code"),
    [
        ("Refused", "Refused", 2),
        ("Interrupted", "Interrupted", 143),
        ("KeyboardInterrupt", "Interrupted", 130),
        ("ValueError", "Failed", 1),
    ],
)
def test_an_error_of_the_main_rank_reaches_all(kind: str, mirrored: str, code: int) -> None:
    main, *others = start(3, on_main, kind)
    assert (main.error, main.said) == (kind, False)
    assert main.exit_code in (None, code)
    for other in others:
        assert (other.error, other.exit_code, other.said, other.text) == (mirrored, code, True, main.text)


def test_the_main_ranks_value_reaches_all() -> None:
    assert values(3, on_main, "none") == [{"some": ["value"]}] * 3


def gather() -> Any:
    """On a rank: sums and lists over all ranks."""
    with joined() as world:
        return world.add_up(torch.tensor([float(world.rank), 1.0])).tolist(), world.gathered(world.rank)


def test_sums_and_lists_over_ranks() -> None:
    assert values(3, gather) == [([3.0, 3.0], [0, 1, 2])] * 3


def test_an_environment_that_is_not_whole_is_refused() -> None:
    (alone,) = start(1, gather, WORLD_SIZE="2", MASTER_ADDR=None)
    assert alone.error == "Refused"
    assert "WORLD_SIZE=2, but MASTER_ADDR is not set" in alone.text
