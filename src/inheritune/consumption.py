"""What a training consumed over all its starts: work, time, energy, memory; in sums that a ledger can add up. No torch.

Work counts as often as it was done: a step that a kill undid is done again, and is paid for twice.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from inheritune.errors import Failed
from inheritune.run_directory import read_json, write_json

FILE = "consumption.json"
"""In a training's directory, beside its metrics."""
_SUMMED = (
    *("starts", "steps", "tokens", "flops", "step_seconds", "wall_seconds", "device_seconds", "possible_flops"),
    *("measured_joules", "estimated_joules"),
)


@dataclass(frozen=True)
class Consumption:
    """What a training took, on all ranks and over all starts."""

    starts: int = 0
    steps: int = 0
    tokens: int = 0
    flops: float = 0.0
    """Of the model's arithmetic, as `planning` counts it: activations computed again do not count."""
    step_seconds: float = 0.0
    """Time in steps."""
    wall_seconds: float = 0.0
    """From each start to its end: checkpoints, compiling, steps, validation and evaluation between them."""
    device_seconds: float = 0.0
    """Wall seconds times ranks: each has a device of its own, or a share of a machine's processors."""
    possible_flops: float = 0.0
    """What the devices' peaks come to over the time in steps; FLOPs divided by it are the MFU."""
    measured_joules: float = 0.0
    """By the hardware's counters (see `energy`)."""
    estimated_joules: float = 0.0
    """Of ranks without a counter: the data sheet's power times their wall seconds."""
    energy_sources: tuple[str, ...] = ()
    energy_known: bool = True
    """Whether every rank's energy is in it, measured or estimated."""
    peak_memory_bytes: int = 0
    """Of the rank that took most (see `hardware.memory_used_bytes`)."""
    devices: tuple[str, ...] = ()
    """What it ran on: number, name, peak and its source."""
    whole: bool = True
    """Whether every start is in it: of those before this file was kept nothing is known."""

    @property
    def mfu(self) -> float | None:
        """Model FLOPs utilisation: FLOPs over what the peak allows in the time in steps."""
        return self.flops / self.possible_flops if self.possible_flops else None

    def record(self) -> dict[str, Any]:
        """As JSON."""
        return {name: list(v) if isinstance(v, tuple) else v for name, v in dataclasses.asdict(self).items()}

    @classmethod
    def of(cls, record: Any) -> Consumption | None:
        """What a record holds; None where it is no such record."""
        if not isinstance(record, Mapping):
            return None
        values: dict[str, Any] = {}
        for one in dataclasses.fields(cls):
            value, default = record.get(one.name), one.default
            if isinstance(default, tuple):
                if not isinstance(value, list) or not all(isinstance(word, str) for word in value):
                    return None
                value = tuple(value)
            elif isinstance(default, bool):
                if not isinstance(value, bool):
                    return None
            elif not _is_amount(value) or (isinstance(default, int) and not isinstance(value, int)):
                return None
            values[one.name] = value
        return cls(**values)


def _is_amount(value: Any) -> bool:
    return type(value) in (int, float) and 0 <= value < 1e300  # an integer may be larger than any float


def summed(parts: Iterable[Consumption]) -> Consumption:
    """What several trainings, or several starts of one, took together; memory is that of the largest."""
    parts = list(parts)
    return Consumption(
        **{name: sum(getattr(one, name) for one in parts) for name in _SUMMED},
        energy_sources=_together(one.energy_sources for one in parts),
        energy_known=all(one.energy_known for one in parts),
        peak_memory_bytes=max((one.peak_memory_bytes for one in parts), default=0),
        devices=_together(one.devices for one in parts),
        whole=all(one.whole for one in parts),
    )


def _together(parts: Iterable[tuple[str, ...]]) -> tuple[str, ...]:
    """Each word once, in the order of appearance."""
    return tuple(dict.fromkeys(word for part in parts for word in part))


def read(directory: Path) -> Consumption | None:
    """What is noted in a training's directory; None where nothing is, or it is damaged."""
    try:
        return Consumption.of(read_json(directory / FILE))
    except (Failed, OSError):
        return None


def write(directory: Path, consumption: Consumption) -> None:
    """Note what a training took so far."""
    write_json(directory / FILE, consumption.record())
