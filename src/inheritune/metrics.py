"""A training's records: `metrics.jsonl`, a line a step, validation and evaluation, and the same in a tracker.

A step's values lie on the device until they are read: when the next step is under way, so that nothing waits for them.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch

from inheritune.hardware import memory_used_bytes
from inheritune.run_directory import JsonlWriter, keep_records
from inheritune.tracking import Tracker

_NOT_LOGGED = ("kind", "step")
_NUMBERS = {"validation": "losses", "evaluation": "scores"}
"""Where a record's numbers stand that is not flat, by its kind."""


class Metrics:
    """Writes records of one training; on ranks other than the main one it does nothing.

    Args:
        path: the JSONL file; what it holds of steps after `step` was written by a run that was killed, and is dropped.
        step: where the training goes on; 0 if it begins.
        tracker: as `tracking.open_tracker` gives it.
    """

    def __init__(self, path: Path | None, step: int, tracker: Tracker | None = None) -> None:
        self._jsonl = None
        self._tracker = tracker
        if path is not None:
            keep_records(path, lambda record: step > 0 and int(record["step"]) <= step)
            self._jsonl = JsonlWriter(path)

    def append(self, record: dict[str, Any]) -> None:
        """Write one record; numbers go to the tracker under their kind and name."""
        if self._jsonl is not None:
            self._jsonl.append(record)
        if self._tracker is not None:
            values = record[_NUMBERS[record["kind"]]] if record["kind"] in _NUMBERS else record
            self._tracker.log(
                {
                    f"{record['kind']}/{name}": float(value)
                    for name, value in values.items()
                    if name not in _NOT_LOGGED and isinstance(value, int | float)
                },
                record["step"],
            )

    def close(self) -> None:
        """Flush and close."""
        if self._jsonl is not None:
            self._jsonl.close()
        if self._tracker is not None:
            self._tracker.close()


@dataclass(frozen=True)
class Progress:
    """What is told after every step."""

    step: int
    steps: int
    loss: float
    tokens_per_second: float
    seconds_left: float


class StepValues(NamedTuple):
    """What a step computed, once it is read."""

    loss: float
    """Nats a token."""
    divergence: float
    """The distillation term, nats a token; 0 without one."""
    gradient_norm: float
    skipped: float
    in_a_row: float
    """Steps skipped one after the other, up to this one."""
    stops: float
    """Ranks that were told to stop."""


@dataclass(frozen=True)
class Launched:
    """A step under way: what is known of it, and what the device will tell."""

    step: int
    tokens: int
    """Of this step."""
    started: float
    """By `time.monotonic`."""
    values: torch.Tensor
    """(6,), float32: `StepValues`."""
    record: dict[str, Any]
    """What its line in the records begins with."""


@dataclass
class StepReader:
    """Reads steps one after the other: times each, writes its line, tells of it."""

    metrics: Metrics
    progress: Callable[[Progress], None]
    steps: int
    """Of the whole training."""
    first: int
    """Steps that were done before this start."""
    late: bool
    """Whether a step is read when the next is under way: its time then is that since the reading before."""
    flops_per_token: float
    peak_flops: float
    """Of all ranks."""
    device: torch.device
    _read_at: float = 0.0
    _began: float = 0.0

    def read(self, launched: Launched) -> tuple[StepValues, float]:
        """Wait for a step, record it, tell of it; its values and the seconds that it took."""
        values = StepValues(*launched.values.tolist())
        now = time.monotonic()
        seconds = now - (max(launched.started, self._read_at) if self.late else launched.started)
        self._read_at = now
        record = {
            "kind": "step",
            "step": launched.step,
            **launched.record,
            "loss": values.loss,
            "gradient_norm": values.gradient_norm,
            "tokens_per_second": launched.tokens / seconds,
            "mfu": launched.tokens * self.flops_per_token / (seconds * self.peak_flops),
            "memory_bytes": memory_used_bytes(self.device),
        }
        if values.divergence:
            record["divergence"] = values.divergence
        if values.skipped:
            record["skipped"] = True
        self.metrics.append(record)
        # The first step after a start compiles, and says nothing of the others.
        done, to_come = launched.step - self.first, self.steps - launched.step
        if done <= 1:
            self._began = now
        each = seconds if done <= 1 else (now - self._began) / (done - 1)
        rate = launched.tokens / seconds
        self.progress(Progress(launched.step, self.steps, values.loss, rate, each * to_come))
        return values, seconds
