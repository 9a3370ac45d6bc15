"""A few real steps of a training, timed: of the model at random init on random tokens, which cost what others cost."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from transformers import PretrainedConfig

from inheritune.config import TrainConfig
from inheritune.devices import Utilisation
from inheritune.hardware import give_back_freed_memory, keep_freed_memory
from inheritune.objective import Objective
from inheritune.optimizer import gradient_norm, make_optimizer, take_step
from inheritune.parallel import compile_blocks, place
from inheritune.recomputation import recompute_blocks
from inheritune.reference import fresh

_WARM_STEPS = 2
"""The first of them compiles and makes the moments."""
_MOST_STEPS, _SECONDS = 10, 20.0
"""Steps that are timed at most, and for how long; three at least."""
_MARGIN = 0.15
"""By how much a training's steps may take longer or shorter than a few of them (benchmarks/plan.py)."""


@dataclass(frozen=True)
class Timing:
    """What steps took."""

    seconds: tuple[float, ...]
    compiled: bool

    @property
    def step_seconds(self) -> float:
        """The median."""
        return statistics.median(self.seconds)

    def utilisation(self, flops: float, peak_flops: float) -> Utilisation:
        """The share of a peak that a step of so many FLOPs reached."""
        share = flops / self.step_seconds / peak_flops
        how = f"{len(self.seconds)} steps timed here{', compiled' if self.compiled else ''}, {_MARGIN:.0%} either way"
        return Utilisation(share * (1 - _MARGIN), share, share * (1 + _MARGIN), how)


def timed(
    config: PretrainedConfig,
    train: TrainConfig,
    *,
    sequence_length: int,
    micro_batch: int,
    dtype: torch.dtype,
    device: torch.device,
    flops: float,
    trust_remote_code: bool,
    report: Callable[[str], None],
) -> Timing:
    """Time steps as `training.Trainer` takes them on one rank, without teacher, validation and checkpoints.

    Args:
        config: of the model.
        train: the recipe's settings.
        sequence_length: tokens of a sequence.
        micro_batch: sequences of a forward pass.
        dtype: of matrix products.
        device: this machine's.
        flops: of the whole training, by which `compile: auto` decides.
        trust_remote_code: whether code that comes with the config may be run.
        report: told what is not as asked for.
    """
    on_cpu = device.type == "cpu"
    if on_cpu:
        keep_freed_memory()
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        try:
            step, compiled = _step(
                config, train, (sequence_length, micro_batch, dtype, device), flops, trust_remote_code, report
            )
            for _ in range(_WARM_STEPS):
                step()
            return Timing(tuple(_seconds(step, device)), compiled)
        finally:
            if on_cpu:
                give_back_freed_memory()


def _seconds(step: Callable[[], None], device: torch.device) -> list[float]:
    """How long steps take, one after the other, until there are enough of them."""
    found: list[float] = []
    while len(found) < 3 or (len(found) < _MOST_STEPS and sum(found) < _SECONDS):
        _finish(device)
        started = time.perf_counter()
        step()
        _finish(device)
        found.append(time.perf_counter() - started)
    return found


def _step(
    config: PretrainedConfig,
    train: TrainConfig,
    shape: tuple[int, int, torch.dtype, torch.device],
    flops: float,
    trust_remote_code: bool,
    report: Callable[[str], None],
) -> tuple[Callable[[], None], bool]:
    """One step of the training, to be called again and again; and whether its blocks are compiled."""
    sequence_length, micro_batch, dtype, device = shape
    model = fresh(config, train.seed, trust_remote_code=trust_remote_code).float().train()
    compiled = compile_blocks(model, train.compile, device, flops=flops, report=report)
    place(model, device)
    if train.activation_checkpointing:
        recompute_blocks(model)
    objective, parameters = Objective(model, dtype), list(model.parameters())
    optimizer = make_optimizer(model, train, compiled=compiled)
    embedding = model.get_input_embeddings().weight
    assert isinstance(embedding, torch.Tensor)
    ids = torch.randint(len(embedding), (train.batch_sequences, sequence_length), device=device)

    def step() -> None:
        for part in ids.split(micro_batch):
            # the last micro-batch is filled up, so that a compiled model need not compile again
            rows = part.repeat(-(-micro_batch // len(part)), 1)[:micro_batch]
            (objective(rows, rows).minimised / ids.numel()).backward()
        take_step(optimizer, torch.zeros((), device=device), gradient_norm(parameters), train.gradient_clip)

    return step, compiled


def _finish(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
