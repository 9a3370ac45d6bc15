"""A training's consumption while it runs: measured on every rank, noted on rank 0 so often that a kill costs little.

Rank 0 notes its own work, time and energy every half minute, and what the other ranks measured whenever all of them
meet for a checkpoint. The note, not the checkpoint, is what the next start goes on from: work that a kill undid was
done nevertheless.
"""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch

from inheritune import consumption, energy
from inheritune.consumption import Consumption, summed
from inheritune.distributed import World
from inheritune.hardware import gpu_uuid, memory_used_bytes, peak_flops, restart_peak_memory

_EVERY_SECONDS = 30.0


class _Reading(NamedTuple):
    """What a rank measured since this start."""

    joules: dict[str, float] | None
    """By counter; None: there is none, or it failed."""
    estimated_joules: float | None
    """Without a counter, by rated power; None: there is no figure."""
    sources: tuple[str, ...]
    memory_bytes: int


class Metering:
    """What one training takes, this start and those before it.

    Args:
        directory: the training's.
        world: the ranks.
    """

    def __init__(self, directory: Path, world: World) -> None:
        self._directory, self._world = directory, world
        on_gpu = world.device.type == "cuda"
        self._name = torch.cuda.get_device_name(world.device) if on_gpu else None
        self._meter = energy.Meter(energy.counters(gpu_uuid(world.device) if on_gpu else None))
        self._began = self._noted_at = time.monotonic()
        self._before = consumption.read(directory)
        self._now: Consumption | None = None
        self._readings: list[_Reading] = []

    def begin(self, dtype: torch.dtype, *, resumed: bool) -> float:
        """Steps begin: from here on memory counts. A collective call.

        Args:
            dtype: of matrix products.
            resumed: whether training goes on from a checkpoint.

        Returns:
            The peak of all ranks' devices, FLOP/s.
        """
        world = self._world
        restart_peak_memory(world.device)
        if self._before is None and not resumed and not (self._directory / consumption.FILE).exists():
            self._before = Consumption()
        peak, source = peak_flops(world.device, dtype)
        name = self._name or f"CPU, {torch.get_num_threads()} threads"
        each = f"{name}: {peak / 1e12:.4g} TFLOP/s in {str(dtype).removeprefix('torch.')} ({source})"
        self._peak = peak * world.size
        self._now = Consumption(starts=1, devices=(each if world.size == 1 else f"{world.size} x {each}",))
        self._readings = world.gathered(self._reading())
        self._note()
        return self._peak

    def step(self, tokens: int, flops: float, seconds: float) -> None:
        """A step was done by all ranks."""
        now = self._now
        assert now is not None
        self._now = replace(
            now,
            steps=now.steps + 1,
            tokens=now.tokens + tokens,
            flops=now.flops + flops,
            step_seconds=now.step_seconds + seconds,
            possible_flops=now.possible_flops + self._peak * seconds,
        )
        if time.monotonic() - self._noted_at > _EVERY_SECONDS:
            self._readings[0] = self._reading()
            self._note()

    def meet(self) -> None:
        """Take what every rank measured, and note it: a collective call."""
        if self._now is not None:
            self._readings = self._world.gathered(self._reading())
            self._note()

    def close(self) -> None:
        """End what measures."""
        self._meter.close()

    @property
    def consumption(self) -> Consumption:
        """What the training took, work as of now, time, energy and memory as last noted."""
        before = self._before or Consumption(whole=False)
        if self._now is None:
            return before
        wall = self._noted_at - self._began
        unmeasured = [one.estimated_joules for one in self._readings if one.joules is None]
        this = replace(
            self._now,
            wall_seconds=wall,
            device_seconds=wall * self._world.size,
            measured_joules=energy.together(one.joules for one in self._readings),
            estimated_joules=sum(joules or 0.0 for joules in unmeasured),
            energy_sources=tuple(dict.fromkeys(source for one in self._readings for source in one.sources)),
            energy_known=None not in unmeasured,
            peak_memory_bytes=max(one.memory_bytes for one in self._readings),
        )
        return summed([before, this])

    def _reading(self) -> _Reading:
        """This rank's."""
        joules, memory = self._meter.read(), memory_used_bytes(self._world.device)
        if joules is not None:
            return _Reading(joules, None, self._meter.sources, memory)
        power = energy.rated_power(self._name, torch.get_num_threads())
        if power is None:
            return _Reading(None, None, (), memory)
        watts, source = power
        seconds = time.monotonic() - self._began
        return _Reading(None, watts * seconds, (f"estimated: {watts:.4g} W, {source}",), memory)

    def _note(self) -> None:
        self._noted_at = time.monotonic()
        if self._world.main:
            consumption.write(self._directory, self.consumption)
