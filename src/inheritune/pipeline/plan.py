"""`inheritune plan`: what a recipe costs, before anything is downloaded or spent: FLOPs, memory, hours, energy, money.

Known from configs alone. A plan is a record of plain values, so that it can be printed (`report.plan`), written as
JSON, and compared with a run's `ledger.json`.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

import torch

from inheritune import surgery
from inheritune.config import Recipe
from inheritune.console import Console
from inheritune.costs import Claim, Spending, Training, judged, spending
from inheritune.devices import CPU, MEASURED, ON_CPUS, ON_GPUS, Device, named
from inheritune.energy import rated_power
from inheritune.errors import Refused
from inheritune.growth import planned_depths
from inheritune.hardware import available_memory_bytes, peak_flops
from inheritune.optimizer import moment_bytes
from inheritune.parallel import compute_dtype
from inheritune.pipeline import checks
from inheritune.pipeline.planned_memory import Fitting
from inheritune.pipeline.planned_models import (
    Arithmetic,
    Indices,
    Models,
    Planned,
    data_of,
    indices_of,
    largest,
    reference_of,
)
from inheritune.pipeline.step_timing import Timing, timed
from inheritune.planning import attention_flops_per_token
from inheritune.probing import MOST_OF_A_COUNT
from inheritune.reference import Reference

Record = dict[str, Any]

_MOST_TIMED_SECONDS = 30.0
"""A step is timed where it is foreseen to take no longer than this."""
_SHORT_SECONDS = 0.02
"""A step of a few layers is some hundred kernels, forward, backward and optimiser, of about 10 microseconds each to
start."""
NOT_COUNTED = (
    "downloading and preparing text, surgery and its proof, measuring the reference and the untrained cut, "
    "compilation, checkpoints, evaluation on tasks, and what several devices wait for each other"
)


_MOST = 10**9
"""Devices, hours and prices beyond it are no plan's."""


@dataclass(frozen=True)
class Circumstances:
    """On what a recipe is to be run, as the command line has it."""

    device: str = MEASURED
    """One of `devices.NAMES`."""
    devices: int = 1
    price: float | None = None
    """Of an hour of one device, in any currency."""
    claim_hours: float | None = None
    """What the target's training is said to take."""

    def check(self) -> None:
        """Refuse what cannot be."""
        if not 1 <= self.devices <= _MOST:
            raise Refused(f"plan: --devices {self.devices}: give 1 to {_MOST:,}")
        if self.price is not None and not 0 <= self.price <= _MOST:
            raise Refused(f"plan: --price {self.price:g}: give 0 or more, in any currency, for an hour of one device")
        if self.claim_hours is not None and not 1 / _MOST <= self.claim_hours <= _MOST:
            raise Refused(
                f"plan: --claim {self.claim_hours:g}: give the hours that the target's training is said to take"
            )


def make_plan(
    recipe: Recipe,
    circumstances: Circumstances | None = None,
    *,
    console: Console | None = None,
    reference: Reference | None = None,
    quick: bool = False,
) -> Record:
    """What a recipe costs.

    Args:
        recipe: the experiment.
        circumstances: on what it is to be run; this machine where nothing is said.
        console: told what takes long.
        reference: the recipe's, if it was found before; its config is then not looked for.
        quick: leave out what takes seconds (activations' memory, timed steps), and ask no hub.

    Returns:
        Plain values; see `report.plan` for what they mean.

    Raises:
        Refused: the recipe lacks what a plan needs, no config is to be had, there is no such device, or a claim is
            below what is physically possible.
    """
    asked = circumstances or Circumstances()
    asked.check()
    return _Planning(recipe, asked, console or Console(silent=True), reference, quick).record()


class _Planning:
    """One plan on its way."""

    def __init__(
        self, recipe: Recipe, asked: Circumstances, console: Console, reference: Reference | None, quick: bool
    ) -> None:
        checks.check_recipe(recipe)
        self._recipe, self._asked, self._console, self._quick = recipe, asked, console, quick
        self._notes: list[str] = []
        self._data, held_out, prepared = data_of(recipe)
        self._held_out = held_out
        if reference is not None:
            self._outlined, self._origin = reference, str(reference.path)
        else:
            self._outlined, self._origin = reference_of(recipe, prepared, fetch=not quick)
        grown_from = self._outlined if recipe.reference is not None or recipe.grow is not None else None
        self._models = Models(recipe, grown_from, self._data)
        teacher = grown_from.skeleton if grown_from is not None else None
        recomputed = recipe.train.activation_checkpointing
        self._arithmetic = Arithmetic(recipe.data.sequence_length, held_out, teacher, recomputed)
        self._device = device_of(asked.device, recipe)

    def record(self) -> Record:
        """The plan as plain values."""
        growth, trainings = None, self._trainings()
        if self._working < self._asked.devices:
            self._notes.append(
                f"a step has {self._working} sequences, so that {self._working} of {self._asked.devices} devices work"
            )
        if self._recipe.grow is not None:
            growth = self._growth(trainings)
        target = next(one for one in trainings if one.name == "target" or one.name.startswith("round"))
        claim = self._claim([one for one in trainings if one.name.startswith("round ")] or [target])
        fitting = self._fitting(largest(trainings))
        memory = None if self._quick else self._memory(fitting)
        timing = self._timing(target, memory) if memory is not None else None
        if timing is None:
            self._note_short_steps(target)
        total = self._total(trainings) if growth is None else None
        return {
            "recipe": self._recipe.name,
            "reference": self._described_reference(),
            "device": self._described_device(),
            "data": self._described_data(),
            "models": [self._described(one) for one in trainings],
            "total": total,
            "growth": self._costed(growth) if growth is not None else None,
            "step_seconds": dataclasses.asdict(timing) | {"median": timing.step_seconds} if timing else None,
            "state_bytes": fitting.state_bytes,
            "memory": memory,
            "disk": self._disk(trainings),
            "claim": dataclasses.asdict(claim) if claim is not None else None,
            "notes": self._notes,
            "not_counted": NOT_COUNTED,
        }

    @property
    def _working(self) -> int:
        """Devices that a step has a sequence for."""
        return min(self._asked.devices, self._data.batch_sequences)

    def _trainings(self) -> list[Planned]:
        """Every model that is trained; of a growth every round, and the controls beside the deepest."""
        recipe, models = self._recipe, self._models
        if models.reference is None:
            return [models.whole("target", self._outlined.skeleton, trained=True)]
        if recipe.grow is not None:
            own = (
                [models.whole("reference", models.reference.skeleton, trained=True)] if recipe.reference is None else []
            )
            depths = planned_depths(recipe.grow, models.reference.layers)
            return [*own, *self._rounds(depths), *models.controls_beside(self._round_indices(depths[-1]))]
        indices, note = indices_of(recipe, models.reference)
        self._notes += [note] if note is not None else []
        other = [models.of(models.target, indices, name="other-data")] if recipe.compare is not None else []
        self._check_other()
        controls = [models.of(arm, indices) for arm in models.controls]
        probe = [models.probe(indices)] if surgery.is_probe(recipe.inherit.layers) else []
        return [*probe, models.of(models.target, indices), *other, *controls]

    def _check_other(self) -> None:
        """Refuse other data that is known to be too little, as a run would once it is prepared."""
        other, data = self._recipe.compare, self._data
        if other is not None and other.tokens is not None:
            tokens = int(other.tokens)
            found = dataclasses.replace(data, tokens=tokens).steps(other.passes, self._recipe.train.max_steps)
            checks.check_lasts(found, self._models.steps, tokens, other.passes)

    def _round_indices(self, depth: int) -> Indices:
        assert self._models.reference is not None
        return checks.round_indices(self._recipe, depth, self._models.reference.layers)

    def _rounds(self, depths: tuple[int, ...]) -> list[Planned]:
        """The planned rounds, each with one seed."""
        grow, models = self._recipe.grow, self._models
        assert grow is not None
        found = []
        for number, depth in enumerate(depths, 1):
            steps = models.steps
            if grow.growth == "warm" and number > 1:
                steps = grow.warm_steps or max(1, steps // 2)
            found.append(models.of(models.target, self._round_indices(depth), name=f"round {number}", steps=steps))
        return found

    def _growth(self, trainings: list[Planned]) -> list[tuple[int, float, float]]:
        """For each round, if it is the one that matches: its layers, and the FLOPs of all, training's and others'."""
        grow, models = self._recipe.grow, self._models
        assert grow is not None
        rounds = [one for one in trainings if one.name.startswith("round ")]
        before = [one for one in trainings if one.name == "reference"]
        pilot = min(grow.pilot_steps, models.steps)
        if pilot:
            middle = rounds[len(rounds) // 2]
            tokens = pilot * self._data.batch_sequences * self._data.sequence_length
            before.append(dataclasses.replace(middle, name="pilot", steps=pilot, tokens=tokens, repeats=1))
        found = []
        for number, last in enumerate(rounds, 1):
            again = dataclasses.replace(last, repeats=last.repeats * (grow.decision_seeds - 1))
            controls = models.controls_beside(self._round_indices(last.layers))
            played = [*before, *rounds[:number], *([again] if again.repeats else []), *controls]
            found.append((last.layers, *self._flops(played)))
        return found

    def _flops(self, trainings: list[Planned]) -> tuple[float, float]:
        """Of training, and of what else is computed."""
        training = sum(self._arithmetic.training(one) for one in trainings)
        return training, sum(sum(self._arithmetic.extra(one).values()) for one in trainings)

    def _costed(self, growth: list[tuple[int, float, float]]) -> Record:
        """A growth's cost if its first, its last, or any round alike matches."""
        mean = tuple(sum(one[kind] for one in growth) / len(growth) for kind in (1, 2))
        return {
            "depths": [layers for layers, *_ in growth],
            "first_matches": self._spent(*growth[0][1:]),
            "expected": self._spent(*mean),
            "last_matches": self._spent(*growth[-1][1:]),
            "assumption": "every planned round is as likely as any other to be the one that matches",
        }

    def _total(self, trainings: list[Planned]) -> Record:
        """All trainings together."""
        return self._spent(*self._flops(trainings))

    def _spent(self, training: float, extra: float) -> Record:
        """FLOPs, and what they take on the devices."""
        asked = self._asked
        found = spending(
            training, self._device, asked.devices, working=self._working, price=asked.price, extra_flops=extra
        )
        return {"training_flops": training, "other_flops": extra, **_spending(found)}

    def _described(self, planned: Planned) -> Record:
        """A row of the plan."""
        training, extra = self._flops([planned])
        return {
            "name": planned.name,
            "layers": planned.layers,
            "parameters": planned.parameters,
            "parts": planned.parts,
            "steps": planned.steps,
            "tokens": planned.tokens,
            "learning_rates": planned.repeats,
            "flops_per_token": self._arithmetic.per_token(planned.model),
            "other": self._arithmetic.extra(planned),
            **self._spent(training, extra),
        }

    def _described_reference(self) -> Record | None:
        """The reference that is there, untrained."""
        found = self._outlined
        if self._recipe.reference is None:
            return None
        whole = Planned("reference", found.skeleton)
        return {
            "source": found.source,
            "config_from": self._origin,
            "layers": found.layers,
            "parameters": found.parameters,
            "parts": whole.parts,
        }

    def _described_device(self) -> Record:
        """The devices, and what is taken for granted of them."""
        return {**dataclasses.asdict(self._device), "count": self._asked.devices, "price": self._asked.price}

    def _described_data(self) -> Record:
        """How much text, in which steps."""
        data, recipe = self._data, self._recipe
        return {
            "tokens": data.tokens,
            "passes": recipe.data.passes,
            "sequence_length": data.sequence_length,
            "batch_sequences": data.batch_sequences,
            "step_tokens": data.batch_sequences * data.sequence_length,
            "steps": self._models.steps,
            "held_out_tokens": self._held_out.tokens,
            "validate_every_steps": self._held_out.every_steps,
        }

    def _fitting(self, planned: Planned) -> Fitting:
        """The memory of a model's training."""
        teacher = 0
        if planned.distilled and self._models.reference is not None:
            teacher = self._models.reference.parameters * _bytes_of(self._models.reference.dtype)
        return Fitting(
            planned,
            self._recipe.train,
            self._recipe.data.sequence_length,
            self._device,
            self._asked.devices,
            teacher_bytes=teacher,
            trust_remote_code=self._recipe.trust_remote_code,
        )

    def _memory(self, fitting: Fitting) -> Record | None:
        """What a step takes; None, with a note, where it cannot be predicted."""
        try:
            return fitting.record()
        except Refused as error:
            self._notes.append(str(error))
            return None

    def _timing(self, target: Planned, memory: Record) -> Timing | None:
        """Steps of the target, timed where the device is this machine and they are short; hours are then by these."""
        device = self._device
        step_tokens = self._data.batch_sequences * self._data.sequence_length
        training, extra = self._arithmetic.training(target), self._arithmetic.extra(target)
        share = 1 + extra.get("recomputation", 0.0) / training
        flops = step_tokens * self._arithmetic.per_token(target.model) * share
        foreseen = flops / (device.peak_flops * device.utilisation.low)
        if device.name != MEASURED or self._asked.devices > 1 or not memory["fits"] or foreseen > _MOST_TIMED_SECONDS:
            return None
        self._console.line("Timing a few steps ...")
        try:
            found = self._timed(target, memory, training)
        except torch.OutOfMemoryError:
            self._notes.append("no step was timed: others hold the memory that it takes")
            return None
        self._device = dataclasses.replace(device, utilisation=found.utilisation(flops, device.peak_flops))
        return found

    def _timed(self, target: Planned, memory: Record, training: float) -> Timing:
        """Steps of the target, timed."""
        device, recipe = self._device, self._recipe
        return timed(
            target.model.config,
            recipe.train,
            sequence_length=recipe.data.sequence_length,
            micro_batch=memory["micro_batch_sequences"],
            dtype=getattr(torch, device.dtype),
            device=this_device(),
            flops=training / target.repeats,
            trust_remote_code=recipe.trust_remote_code,
            report=self._console.line,
        )

    def _note_short_steps(self, target: Planned) -> None:
        """Say where a utilisation that large models reach is no guide: a GPU takes microseconds to begin anything."""
        device, step_tokens = self._device, self._data.batch_sequences * self._data.sequence_length
        flops = step_tokens * self._arithmetic.per_token(target.model)
        seconds = flops / (device.peak_flops * device.utilisation.likely * self._asked.devices)
        if device.is_gpu and seconds < _SHORT_SECONDS:
            self._notes.append(
                f"by its arithmetic a step takes {1000 * seconds:.2g} ms, which starting its kernels exceeds: the "
                "hours are a bound from below"
            )

    def _claim(self, targets: list[Planned]) -> Claim | None:
        """What becomes of the claim, if there is one: before anything takes long.

        Args:
            targets: the target; of a growth its rounds, the first of which every growth trains.
        """
        if self._asked.claim_hours is None:
            return None
        first = self._judged(targets[0])
        if len(targets) == 1:
            return first
        last = first.utilisation * self._arithmetic.training(targets[-1]) / self._arithmetic.training(targets[0])
        said = f"{first.verdict}, if the first round of {targets[0].layers} layers matches"
        return dataclasses.replace(
            first, verdict=f"{said}; {last:.0%} if it is the last, of {targets[-1].layers} layers, by itself"
        )

    def _judged(self, target: Planned) -> Claim:
        """What becomes of the claim about one training."""
        assert self._asked.claim_hours is not None
        training = Training(
            tokens=target.tokens,
            one_pass_tokens=self._data.seen(self._data.steps(1, None), 1) if self._data.tokens is not None else None,
            flops_per_token=self._arithmetic.per_token(target.model),
            attention_flops_per_token=attention_flops_per_token(target.model, self._data.sequence_length),
        )
        return judged(self._asked.claim_hours, self._device, self._working, training)

    def _disk(self, trainings: list[Planned]) -> Record:
        """What a run directory holds at most, in bytes; a growth's rounds drop their checkpoints once they are over."""
        train, data = self._recipe.train, self._data
        tokens = data.tokens if data.tokens is not None else data.seen(self._models.steps, 1)
        if data.tokens is None:
            self._notes.append(
                "data.tokens is unset: all of the text becomes shards, on disk maybe far more than these steps see"
            )
        embedding = self._outlined.embedding_rows
        other = self._recipe.compare
        if other is not None and other.prepared is None:
            tokens += int(other.tokens) if other.tokens is not None else tokens
        shards = (tokens + self._held_out.tokens) * (2 if embedding <= 2**16 else 4)
        dtype = _bytes_of(self._outlined.dtype)
        kept = [_checkpoint_bytes(one, self._recipe) for one in trainings]
        rounds = [size for one, size in zip(trainings, kept, strict=True) if one.name.startswith("round ")]
        others = sum(kept) - sum(rounds)
        starts = {one.layers: one.parameters for one in trainings} if self._models.reference is not None else {}
        models = sum(one.parameters for one in trainings) + sum(starts.values())
        found = {
            "shards": shards,
            "checkpoints": others + (sum(rounds) if train.keep_checkpoints == "all" else max(rounds, default=0)),
            "models": dtype * models,
        }
        return {f"{name}_bytes": int(size) for name, size in (*found.items(), ("total", sum(found.values())))}


def this_device() -> torch.device:
    """The GPU, if there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def device_of(name: str, recipe: Recipe) -> Device:
    """A device of the table, or this machine's, in the dtype that the recipe computes in there.

    Raises:
        Refused: no such device.
    """
    here = this_device()
    name = name.lower()
    if name != MEASURED:
        # a GPU of the table multiplies bfloat16; `cpu` is like this machine's
        setting = recipe.train.compute_dtype
        auto = "bfloat16" if name != CPU else _plain(compute_dtype("auto", torch.device("cpu")))
        dtype = auto if setting == "auto" else setting
        return named(name, dtype, cpu_memory_bytes=available_memory_bytes(torch.device("cpu")))
    dtype_here = compute_dtype(recipe.train.compute_dtype, here)
    peak, source = peak_flops(here, dtype_here)
    dtype = _plain(dtype_here)
    on_gpu = here.type == "cuda"
    if on_gpu:
        title, memory = torch.cuda.get_device_name(here), torch.cuda.get_device_properties(here).total_memory
    else:
        threads = torch.get_num_threads()
        title, memory = f"this CPU, {threads} thread{'s' if threads > 1 else ''}", available_memory_bytes(here)
    power = rated_power(title if on_gpu else None, torch.get_num_threads())
    return Device(
        name=MEASURED,
        title=title,
        dtype=dtype,
        peak_flops=peak,
        memory_bytes=memory,
        watts=power[0] if power is not None else None,
        source=("large matrix products, measured" if source == "measured" else source)
        + (f"; {power[0]:.4g} W, {power[1]}" if power is not None else ""),
        utilisation=ON_GPUS if on_gpu else ON_CPUS[dtype],
        is_gpu=on_gpu,
        bounds=source != "measured",
    )


def _plain(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _bytes_of(dtype: str) -> int:
    found = getattr(torch, dtype)
    assert isinstance(found, torch.dtype)
    return found.itemsize


def _checkpoint_bytes(planned: Planned, recipe: Recipe) -> int:
    """What a training's checkpoints take: float32 weights and the moments, in each that is kept."""
    if not planned.steps:
        return 0
    train = recipe.train
    moments = moment_bytes(planned.model.parameters(), dataclasses.replace(train, offload_optimizer=False))
    written = -(-planned.steps // train.checkpoint_every_steps)
    # one goes when the next is whole
    kept = written if train.keep_checkpoints == "all" else min(written, train.keep_checkpoints + 1)
    if planned.name == surgery.PROBE:  # a rung keeps those of the better half, and of the one at work
        return (math.ceil(MOST_OF_A_COUNT / 2) + 1) * (4 * planned.parameters + moments)
    best = 4 * planned.parameters if train.export == "best" else 0
    return planned.repeats * (kept * (4 * planned.parameters + moments) + best)


def _spending(found: Spending) -> Record:
    fastest, likely, slowest = found.hours
    return {
        "floor_hours": found.floor_hours,
        "hours": {"fastest": fastest, "likely": likely, "slowest": slowest},
        "kilowatt_hours": found.kilowatt_hours,
        "money": found.money,
    }
