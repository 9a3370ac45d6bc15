"""Training a target (or a control) on few tokens: steps, validation, records, checkpoints.

The loop is plain: every step's batch and learning rate are pure functions of the step's number, so a run that is
started again reads the last checkpoint and goes on where it was.
"""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from transformers import PreTrainedModel

from inheritune import checkpoint
from inheritune.config import TrainConfig
from inheritune.errors import Failed, Interrupted
from inheritune.loss import IGNORED, token_losses
from inheritune.parallel import autocast, compile_blocks, compute_dtype
from inheritune.planning import training_flops_per_token
from inheritune.run_directory import JsonlWriter
from inheritune.schedule import learning_rate
from inheritune.tokens import Prepared, Tokens, TrainingBlocks
from inheritune.validation import SetLosses, measure


@dataclass(frozen=True)
class Progress:
    """What is told after every step."""

    step: int
    steps: int
    loss: float
    tokens_per_second: float
    seconds_left: float


@dataclass(frozen=True)
class Trained:
    """What a training came to."""

    steps: int
    tokens: int
    """Tokens seen, over all passes."""
    unique_tokens: int
    tail_tokens: int
    flops: float
    seconds: float
    """Time in steps, over all restarts; validation and checkpoints not included."""
    best_step: int | None
    compiled: bool
    compute_dtype: str


@dataclass
class _State:
    """What a checkpoint holds beside tensors."""

    step: int = 0
    seconds: float = 0.0
    best_loss: float | None = None
    best_step: int | None = None
    compiled: bool = False

    @classmethod
    def from_record(cls, record: dict[str, Any]) -> _State:
        return cls(**{name: record[name] for name in cls.__dataclass_fields__})


@dataclass
class Trainer:
    """One training: the model, its data, where its records go, and whom to tell."""

    model: PreTrainedModel
    prepared: Prepared
    config: TrainConfig
    directory: Path
    """Gets `metrics.jsonl` and `checkpoints/`."""
    sequence_length: int
    passes: int
    report: Callable[[str], None]
    progress: Callable[[Progress], None]
    _state: _State = field(default_factory=_State)

    @property
    def best_weights(self) -> Path | None:
        """Where the weights with the lowest development loss are, if they are what is exported."""
        return self.directory / "best" if self.config.export == "best" else None

    def run(self) -> Trained:
        """Train to the end, from the last checkpoint if there is one; the model is changed in place.

        Weights are float32 while training, whatever dtype the model came in.

        Raises:
            Failed: the loss is not finite, or a checkpoint cannot be written.
            Interrupted: Ctrl-C or SIGTERM, after a checkpoint.
        """
        self.model.float().train()
        self.model.requires_grad_(True)
        blocks = TrainingBlocks(
            self.prepared.set("train"), self.sequence_length, self.passes, self.config.batch_sequences, self.config.seed
        )
        steps = min(blocks.steps, self.config.max_steps or blocks.steps)
        flops_per_token = training_flops_per_token(self.model, self.sequence_length)
        tokens = min(steps * self.config.batch_sequences, blocks.blocks * self.passes) * self.sequence_length
        device = self.model.device
        dtype = compute_dtype(self.config.compute_dtype, device)
        optimizer = _optimizer(self.model, self.config)
        self._resume(optimizer)
        if self._state.step < steps:
            self._state.compiled = compile_blocks(
                self.model, self.config.compile, device, flops=tokens * flops_per_token, report=self.report
            )
            metrics = Metrics(self.directory, self.config.tracker)
            try:
                self._loop(blocks, steps, optimizer, dtype, metrics)
            finally:
                metrics.close()
        return Trained(
            steps=steps,
            tokens=tokens,
            unique_tokens=min(blocks.blocks * self.sequence_length, tokens),
            tail_tokens=blocks.tail_tokens,
            flops=tokens * flops_per_token,
            seconds=self._state.seconds,
            best_step=self._state.best_step,
            compiled=self._state.compiled,
            compute_dtype=str(dtype).removeprefix("torch."),
        )

    def _loop(
        self,
        blocks: TrainingBlocks,
        steps: int,
        optimizer: torch.optim.Optimizer,
        dtype: torch.dtype,
        metrics: Metrics,
    ) -> None:
        """Steps, each with its record, and what falls between them."""
        config, state = self.config, self._state
        first_step, begin = state.step, time.monotonic()
        if state.step == 0:
            self._validate(metrics, blocks, dtype)
        with _stop_signals() as stop:
            while state.step < steps:
                started = time.monotonic()
                rate = learning_rate(
                    state.step,
                    steps=steps,
                    warmup_steps=config.warmup_steps,
                    peak=config.learning_rate,
                    final=config.final_learning_rate,
                )
                loss, norm, tokens = self._step(blocks, optimizer, rate, dtype)
                seconds = time.monotonic() - started
                state.step += 1
                state.seconds += seconds
                metrics.append(
                    {
                        "kind": "step",
                        "step": state.step,
                        "tokens": self._tokens_seen(blocks),
                        "pass": (self._sequences_seen(blocks) - 1) // blocks.blocks,
                        "loss": loss,
                        "learning_rate": rate,
                        "gradient_norm": norm,
                        "tokens_per_second": tokens / seconds,
                    }
                )
                if not (math.isfinite(loss) and math.isfinite(norm)):
                    raise Failed(
                        f"{self.directory}: loss {loss}, gradient norm {norm} at step {state.step}; "
                        "the last checkpoint is kept: lower train.learning_rate or lengthen the warm-up in a new run"
                    )
                # The first step after a start compiles, and says nothing of the others.
                if state.step - first_step <= 1:
                    begin = time.monotonic()
                    left = seconds * (steps - state.step)
                else:
                    left = (time.monotonic() - begin) / (state.step - first_step - 1) * (steps - state.step)
                self.progress(Progress(state.step, steps, loss, tokens / seconds, left))
                last = state.step == steps
                if last or state.step % config.validate_every_steps == 0:
                    self._validate(metrics, blocks, dtype)
                if last or stop or state.step % config.checkpoint_every_steps == 0:
                    self._save(optimizer)
                if stop:
                    raise Interrupted(
                        f"{self.directory}: stopped after step {state.step} of {steps}, checkpoint written",
                        128 + stop[0],
                    )

    def _step(
        self, blocks: TrainingBlocks, optimizer: torch.optim.Optimizer, rate: float, dtype: torch.dtype
    ) -> tuple[float, float, int]:
        """One optimiser step: mean loss in nats a token, gradient norm before clipping, tokens."""
        # Dropout, where a model has it, is drawn from the step's number: a resumed run draws the same.
        torch.manual_seed((self.config.seed * 1_000_003 + self._state.step) % 2**63)
        inputs, labels = blocks.batch(self._state.step)  # each (sequences, sequence_length)
        tokens = labels.size
        for group in optimizer.param_groups:
            group["lr"] = rate
        total = torch.zeros((), device=self.model.device)
        for ids, targets in _micro_batches(inputs, labels, self.config.micro_batch_sequences, self.model.device):
            with autocast(dtype, self.model.device):
                logits = self.model(input_ids=ids, use_cache=False).logits  # (B, T, V)
            # Divided by the step's tokens, not the micro-batch's: the gradient is the mean over the step's tokens
            # however they are split. (The published code sums over micro-batches and then clips the sum.)
            loss = token_losses(logits, targets).sum() / tokens
            loss.backward()
            total += loss.detach()
        limit = self.config.gradient_clip or math.inf
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), limit)
        if math.isfinite(float(norm)):  # else the weights stay as they were, and `_loop` ends the run
            optimizer.step()
        optimizer.zero_grad()
        return float(total), float(norm), tokens

    def _sequences_seen(self, blocks: TrainingBlocks) -> int:
        return min(self._state.step * self.config.batch_sequences, blocks.blocks * self.passes)

    def _tokens_seen(self, blocks: TrainingBlocks) -> int:
        return self._sequences_seen(blocks) * self.sequence_length

    def _validate(self, metrics: Metrics, blocks: TrainingBlocks, dtype: torch.dtype) -> None:
        """Measure every set but the training set; keep the best weights by the development set if they are exported."""
        losses = measure_all(self.model, self.prepared, self.sequence_length, self.config.micro_batch_sequences, dtype)
        metrics.append(
            {
                "kind": "validation",
                "step": self._state.step,
                "tokens": self._tokens_seen(blocks),
                "losses": {name: result.loss for name, result in losses.items()},
            }
        )
        development = losses["development"].loss if "development" in losses else math.inf
        if self.config.export == "best" and (self._state.best_loss is None or development < self._state.best_loss):
            self._state.best_loss, self._state.best_step = development, self._state.step
            checkpoint.save_weights(self.directory / "best", self.model)

    def _resume(self, optimizer: torch.optim.Optimizer) -> None:
        found = checkpoint.checkpoints(self.directory / "checkpoints")
        if found:
            self._state = _State.from_record(checkpoint.load(found[-1], self.model, optimizer))
            self.report(f"Going on after step {self._state.step}.")

    def _save(self, optimizer: torch.optim.Optimizer) -> None:
        state = {name: getattr(self._state, name) for name in _State.__dataclass_fields__}
        checkpoint.save(
            self.directory / "checkpoints", self._state.step, self.model, optimizer, state, self.config.keep_checkpoints
        )


class Metrics:
    """A training's records: `metrics.jsonl`, and the same in a tracker if one is asked for."""

    def __init__(self, directory: Path, tracker: str) -> None:
        self._jsonl = JsonlWriter(directory / "metrics.jsonl")
        self._board = None
        if tracker == "tensorboard":
            from torch.utils.tensorboard import SummaryWriter

            self._board = SummaryWriter(directory / "tensorboard")

    def append(self, record: dict[str, Any]) -> None:
        """Write one record; numbers go to the tracker under their kind and name."""
        self._jsonl.append(record)
        if self._board is None:
            return
        values = record["losses"] if record["kind"] == "validation" else record
        for name, value in values.items():
            if isinstance(value, (int, float)) and name not in ("step", "kind"):
                self._board.add_scalar(f"{record['kind']}/{name}", value, record["step"])

    def close(self) -> None:
        """Flush and close."""
        self._jsonl.close()
        if self._board is not None:
            self._board.close()


def measure_all(
    model: PreTrainedModel, prepared: Prepared, sequence_length: int, batch_sequences: int, dtype: torch.dtype
) -> dict[str, SetLosses]:
    """Measure a model on the development set and on every validation set, whole."""
    return {
        name: measure(
            model,
            prepared.set(name),
            sequence_length=sequence_length,
            context_token=prepared.context_token,
            batch_sequences=batch_sequences,
            dtype=dtype,
        )
        for name in prepared.measured_names
    }


def _optimizer(model: PreTrainedModel, config: TrainConfig) -> torch.optim.AdamW:
    """AdamW with decay on matrices alone: norms and biases are vectors, and decaying them has no use."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    matrices = [parameter for parameter in parameters if parameter.dim() >= 2]
    vectors = [parameter for parameter in parameters if parameter.dim() < 2]
    groups = [
        {"params": matrices, "weight_decay": config.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(
        groups, lr=config.learning_rate, betas=(config.beta1, config.beta2), eps=config.epsilon, fused=True
    )


def _micro_batches(
    inputs: Tokens, labels: Tokens, sequences: int, device: torch.device
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """A step's sequences in equal parts, each (sequences, T); the last is filled up with rows that do not count.

    Equal shapes keep a compiled model from compiling again for the last step of a run.
    """
    for start in range(0, len(inputs), sequences):
        ids, targets = (
            torch.from_numpy(inputs[start : start + sequences]),
            torch.from_numpy(labels[start : start + sequences]),
        )
        missing = sequences - len(ids)
        if missing and len(inputs) > sequences:
            ids = torch.nn.functional.pad(ids, (0, 0, 0, missing))
            targets = torch.nn.functional.pad(targets, (0, 0, 0, missing), value=IGNORED)
        yield ids.to(device), targets.to(device)


@contextmanager
def _stop_signals() -> Iterator[list[int]]:
    """Collect SIGINT and SIGTERM instead of dying of them; a second Ctrl-C is let through."""
    received: list[int] = []

    def note(number: int, _frame: FrameType | None) -> None:
        if received:
            raise KeyboardInterrupt
        received.append(number)

    try:
        previous = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    except ValueError:  # not in the main thread, where signals cannot be handled: the caller's handlers stay
        yield received
        return
    try:
        yield received
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
