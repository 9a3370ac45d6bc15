"""What a training comes to, what a checkpoint keeps of it beside tensors, and who may end it early."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from inheritune.consumption import Consumption

Watch = Callable[[list[tuple[int, dict[str, float]]]], bool]
"""Told every validation so far, (step, losses by set), and says whether the training is to end there."""


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
    """Time in steps, over all restarts; validation, evaluation and checkpoints not included."""
    skipped_steps: int
    best_step: int | None
    compiled: bool
    compute_dtype: str
    ranks: int
    micro_batch_sequences: int
    parallel: str
    """`none` (one rank), `ddp` or `fsdp`."""
    abandoned: bool = False
    """Whether it was ended before its last step."""
    consumption: Consumption = field(default_factory=Consumption)
    """What it took, also in steps that a kill undid."""

    def entry(self) -> dict[str, Any]:
        """What the ledger keeps of it."""
        record = {name: getattr(self, name) for name in self.__dataclass_fields__}
        if not self.abandoned:
            del record["abandoned"]
        return record | {"consumption": self.consumption.record()}


@dataclass
class State:
    """What a checkpoint holds beside tensors and the guard."""

    step: int = 0
    seconds: float = 0.0
    skipped_steps: int = 0
    best_loss: float | None = None
    best_step: int | None = None
    compiled: bool = False

    @classmethod
    def from_record(cls, record: dict[str, Any]) -> State:
        """The state that a checkpoint's record holds."""
        return cls(**{name: record[name] for name in cls.__dataclass_fields__})
