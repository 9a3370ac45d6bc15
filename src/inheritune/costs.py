"""What arithmetic takes on devices: steps, hours, energy, money; and which claims no device can keep. No torch."""

from __future__ import annotations

import math
from dataclasses import dataclass

from inheritune.devices import SHEETS, Device, named
from inheritune.errors import Refused


@dataclass(frozen=True)
class Data:
    """How much there is to train on, and how a step takes it."""

    tokens: int | None
    """Unique ones, of one pass; None where they are as many as `max_steps` asks for."""
    sequence_length: int
    batch_sequences: int

    def steps(self, passes: int, max_steps: int | None) -> int:
        """Steps of a training, as `tokens.TrainingBlocks` counts them."""
        blocks = self._blocks(passes)
        if blocks is None:
            assert max_steps is not None
            return max_steps
        return min(-(-blocks // self.batch_sequences), max_steps or math.inf)  # type: ignore[return-value]

    def seen(self, steps: int, passes: int) -> int:
        """Tokens that so many steps train on."""
        blocks, sequences = self._blocks(passes), steps * self.batch_sequences
        return self.sequence_length * (sequences if blocks is None else min(sequences, blocks))

    def _blocks(self, passes: int) -> int | None:
        """Sequences in all passes."""
        return None if self.tokens is None else max(0, (self.tokens - 1) // self.sequence_length) * passes


@dataclass(frozen=True)
class Spending:
    """What an amount of arithmetic takes on some devices of one kind."""

    floor_hours: float
    """At the devices' peak: no program is faster."""
    hours: tuple[float, float, float]
    """At the highest, the likely and the lowest utilisation."""
    kilowatt_hours: float | None
    """At the likely utilisation, of the devices alone, at the power of their data sheet."""
    money: float | None
    """At the likely utilisation, in the currency that the price of a device-hour is in."""


def spending(
    flops: float,
    device: Device,
    count: int,
    *,
    working: int | None = None,
    price: float | None = None,
    extra_flops: float = 0.0,
) -> Spending:
    """What so many FLOPs take.

    Args:
        flops: of training, which no program can leave out.
        device: where.
        count: how many of it are held.
        working: how many of them have work, each with the utilisation of one by itself; None: all.
        price: of an hour of one device.
        extra_flops: what else is computed: validation, a teacher, activations a second time.
    """
    rate = device.peak_flops * (count if working is None else working)
    floor, whole = flops / rate / 3600, (flops + extra_flops) / rate / 3600
    used = device.utilisation
    hours = (whole / used.high, whole / used.likely, whole / used.low)
    energy = hours[1] * count * device.watts / 1000 if device.watts is not None else None
    return Spending(floor, hours, energy, hours[1] * count * price if price is not None else None)


@dataclass(frozen=True)
class Claim:
    """A time that somebody names for the target's training, against what it takes."""

    hours: float
    floor_hours: float
    utilisation: float
    """Share of the devices' peak that it asks for."""
    verdict: str


@dataclass(frozen=True)
class Training:
    """A target's training, as far as a claim is about it."""

    tokens: int
    """In all passes."""
    one_pass_tokens: int | None
    """None where it is not known how many there are."""
    flops_per_token: float
    attention_flops_per_token: float
    """Of them."""


def judged(hours: float, device: Device, count: int, training: Training) -> Claim:
    """What becomes of a claim.

    Args:
        hours: what the target's training is said to take.
        device: on what.
        count: how many of it.
        training: the target's.

    Raises:
        Refused: not even at their peak are the devices so fast; the line says what would do.
    """
    floor = training.tokens * training.flops_per_token / (device.peak_flops * count) / 3600
    if floor > hours and device.bounds:
        raise Refused(_impossible(hours, device, count, training))
    share, used = floor / hours, device.utilisation
    usual = f"{used.low:.0%} to {used.high:.0%} are usual"
    peak = "the peak" if device.bounds else f"a rate that is no bound ({device.source})"
    verdict = f"takes {share:.0%} of {peak}" if share <= used.high else f"would take {share:.0%} of {peak}"
    return Claim(hours, floor, share, f"{verdict}; {usual}")


def _impossible(hours: float, device: Device, count: int, training: Training) -> str:
    """Why a claim cannot be, and what would do instead."""
    rate, likely, each = device.peak_flops * count, device.utilisation.likely, training.flops_per_token
    flops, most = training.tokens * each, 3600 * hours * rate / each
    wanted = flops / (3600 * hours)
    needed = wanted / device.peak_flops
    others = [named(name, device.dtype, cpu_memory_bytes=0) for name in SHEETS if name != device.name]
    instead = [f"{math.ceil(wanted / (one.peak_flops * one.utilisation.likely))} {one.title}" for one in others]
    return (
        f"--claim {hours:g}: {in_words(training.tokens)} tokens at {each:.3g} FLOPs each take "
        f"{flops / rate / 3600:.3g} hours at the dense peak of {count} {device.title} ({rate / 1e12:.4g} TFLOP/s, "
        f"{device.source}){_one_pass(hours, rate, training)}: {hours:g} hours cannot be. It would take "
        f"{math.ceil(needed)} of them at their peak; at a likely {likely:.0%} of it {math.ceil(needed / likely)} of "
        f"them, or {', or '.join(instead)}; or at most {in_words(most)} tokens "
        f"({in_words(most * likely)} at {likely:.0%})"
    )


def _one_pass(hours: float, rate: float, training: Training) -> str:
    """What one pass of several takes: where even that is too much, the passes are no excuse."""
    tokens = training.one_pass_tokens
    if tokens is None or tokens >= training.tokens:
        return ""
    first = tokens * training.flops_per_token / rate / 3600
    bare = tokens * (training.flops_per_token - training.attention_flops_per_token) / rate / 3600
    beyond = "even one pass" if first > hours else "one pass"
    return f", {beyond} over {in_words(tokens)} {first:.3g} ({bare:.3g} without attention)"


def in_words(tokens: float) -> str:
    """A number of tokens to three digits: 8.00B, 614M."""
    for suffix in ("", "K", "M", "B", "T"):
        if tokens < 999.5 or suffix == "T":
            digits = 0 if not suffix or tokens >= 99.95 else 1 if tokens >= 9.995 else 2
            return f"{tokens:.{digits}f}{suffix}"
        tokens /= 1000
    raise AssertionError("unreachable: T takes every number")
