"""The full-data recipe's loop: which depths are planned, which training comes next, and where it ends. No torch.

The loop is a function of the records of the rounds that are over, so it goes on wherever it was stopped and repeats
nothing. What a round is (surgery, training, measurement, verdict) is handed in.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from inheritune.config import GrowConfig
from inheritune.errors import Refused

Record = dict[str, Any]


@dataclass(frozen=True)
class Next:
    """A training that is to come."""

    round: int
    """Counted from 1."""
    layers: int
    seed: int
    """0 for the round's own training; above, repetitions of one that matched."""


@dataclass(frozen=True)
class Growth:
    """What a growth came to."""

    records: list[Record] = field(default_factory=list)
    """Of every training, in order."""
    matched: Record | None = None
    """The record of the round that matched, with every seed; None if none did."""

    @property
    def best(self) -> Record | None:
        """The round that matched, else the one with the lowest validation loss among those that ended."""
        ended = [one for one in self.records if one["state"] == "finished" and one["seed"] == 0]
        return self.matched or min(ended, key=lambda one: float(one["validation_loss"]), default=None)


def layers_in_words(count: int | str) -> str:
    """`1 layer`, `2 layers`."""
    return f"{count} layer" if str(count) == "1" else f"{count} layers"


def planned_depths(grow: GrowConfig, total: int) -> tuple[int, ...]:
    """The layers of every planned round.

    Args:
        grow: the recipe's.
        total: layers of the reference.

    Raises:
        Refused: there is no such round.
    """
    start = total // 2 if grow.start == "half" else grow.start
    most = total if grow.most is None else grow.most
    if not 1 <= start <= total:
        reason = f"the reference has {layers_in_words(total)}"
        raise Refused(f"grow.start: {start} is not possible, {reason}; give 1 to {total}")
    if not start <= most <= total:
        what = f"the first round has {layers_in_words(start)} and the reference {total}"
        raise Refused(f"grow.most: {most} is not possible, {what}; give {start} to {total}")
    return tuple(range(start, most + 1, grow.step))


def grow(depths: tuple[int, ...], seeds: int, records: list[Record], play: Callable[[Next], Record]) -> Growth:
    """Train round after round until one matches with every seed.

    Args:
        depths: layers of the planned rounds, in ascending order.
        seeds: with how many seeds a round that matches is trained before it counts, the first included.
        records: of the trainings that are over; each with `round`, `seed`, and `verdict` (None where it was abandoned).
        play: does a training and returns its record.
    """
    done = {(one["round"], one["seed"]): one for one in records}
    order: list[Record] = []
    for number, layers in enumerate(depths, 1):
        matched = True
        for seed in range(seeds):
            record = done.get((number, seed)) or play(Next(number, layers, seed))
            order.append(record)
            matched = _matches(record)
            if not matched:
                break
        if matched:
            return Growth(order, next(one for one in order if (one["round"], one["seed"]) == (number, 0)))
    return Growth(order)


def _matches(record: Record) -> bool:
    return record["verdict"] is not None and bool(record["verdict"]["matched"])
