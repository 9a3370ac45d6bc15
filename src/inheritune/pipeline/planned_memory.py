"""Whether a training fits a device: its peak predicted by part, the most sequences at once, and what would make room.

`memory.predicted` runs the step on tensors without values, which takes the longer the more layers there are. Their
kinds repeat, so that a few shallow models tell what a layer of each takes; micro-batches in between are interpolated.
"""

from __future__ import annotations

import copy
import dataclasses
import math
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from transformers import PreTrainedModel

from inheritune import surgery
from inheritune.config import TrainConfig
from inheritune.devices import Device
from inheritune.errors import Refused
from inheritune.memory import Memory, predicted
from inheritune.optimizer import host_bytes, moment_bytes, step_bytes
from inheritune.parallel import is_compiled
from inheritune.pipeline.planned_models import Planned
from inheritune.planning import training_flops_per_token
from inheritune.reference import LOADING_ERRORS, block_list, weightless

_SHALLOW, _MORE = 2, 2
"""Layers of each kind in the shallowest model that a deep one is extrapolated from, and how many more in another."""
_STATE_BYTES = 16
"""A parameter's float32 weight, gradient and moments; `parallel.sharded` reckons by it, too."""
_AT_ONCE = 8
"""Sequences that a micro-batch to be found is predicted for."""
_CHECKPOINTING: dict[str, Any] = {"activation_checkpointing": True}
_ROOM: tuple[dict[str, Any], ...] = (
    _CHECKPOINTING,
    {"optimizer": "adamw_8bit"},
    {"optimizer": "adamw_8bit"} | _CHECKPOINTING,
    {"offload_optimizer": True} | _CHECKPOINTING,
)
"""Settings of `train` that make room, in the order of what they cost."""


@dataclass(frozen=True)
class Need:
    """What a rank's device holds at the peak of a step, in bytes."""

    parts: dict[str, int]
    host: int

    @property
    def total(self) -> int:
        """On the device."""
        return sum(self.parts.values())


@dataclass
class Fitting:
    """The memory of one training.

    Args:
        planned: the model.
        train: how it is trained.
        sequence_length: tokens of a sequence.
        device: of each rank.
        count: ranks.
        teacher_bytes: weights of the reference beside it, where it is learnt from.
        trust_remote_code: whether code that comes with the config may be run.
    """

    planned: Planned
    train: TrainConfig
    sequence_length: int
    device: Device
    count: int
    teacher_bytes: int = 0
    trust_remote_code: bool = False
    _seen: dict[tuple[bool, int], Memory] = field(default_factory=dict)

    @property
    def most(self) -> int:
        """Sequences of a step that a rank gets: no micro-batch is larger."""
        return math.ceil(self.train.batch_sequences / self.count)

    @property
    def micro_batch(self) -> int:
        """The recipe's; where it is to be found, a number to reckon with."""
        asked = self.train.micro_batch_sequences
        return min(self.most, _AT_ONCE if asked == "auto" else asked)

    @cached_property
    def shared(self) -> bool:
        """Whether the ranks share the training state, as `parallel.sharded` decides."""
        if self.count == 1 or self.train.parallel == "ddp":
            return False
        large = self.device.is_gpu and _STATE_BYTES * self.planned.parameters > self.device.memory_bytes / 2
        return self.train.parallel == "fsdp" or large

    @property
    def state_bytes(self) -> int:
        """Weights, gradients and moments on each device, without activations."""
        whole = 8 * self.planned.parameters + moment_bytes(self.planned.model.parameters(), self.train)
        return whole // (self.count if self.shared else 1)

    def need(self, train: TrainConfig, micro_batch: int, *, shares: int = 1) -> Need:
        """The peak by part, where so many ranks share the training state.

        Raises:
            Refused: it cannot be predicted.
        """
        seen = self._predicted(train.activation_checkpointing, micro_batch)
        tensors = list(self.planned.model.parameters())
        moments = moment_bytes(tensors, train)
        parts = {
            "weights": seen.weights // shares,
            "gradients": seen.gradients // shares,
            "optimizer": moments // shares,
            "activations": seen.activations,
            "logits": seen.logits,
            "working": seen.working,
        }
        # the passes have the peak, or the optimiser's step, when all gradients are there and activations are gone
        step = seen.weights + 4 * self.planned.parameters + step_bytes(tensors, train, compiled=self._compiled)
        lacking = step - seen.weights - seen.gradients - seen.activations - seen.logits - seen.working
        parts["working"] += max(0, lacking // shares)
        if shares > 1:
            parts["gathered"] = 3 * 4 * self._largest_unit
        if self.teacher_bytes:
            parts["teacher"] = self.teacher_bytes
        return Need(parts, host_bytes(tensors, train) // shares)

    def largest(self, train: TrainConfig, *, shares: int = 1) -> int:
        """The most sequences of a micro-batch that fit; 0: not even one."""
        few, many = 1, max(2, self.micro_batch)
        low, high = (self.need(train, count, shares=shares).total for count in (few, many))
        each = max(1.0, (high - low) / (many - few))
        room = self.device.usable_bytes - low
        return 0 if room < 0 else min(self.most, 1 + int(room / each))

    def record(self) -> dict[str, Any]:
        """What is needed, whether it fits, and what would make it fit.

        Raises:
            Refused: it cannot be predicted.
        """
        shares = self.count if self.shared else 1
        most = self.largest(self.train, shares=shares)
        auto = self.train.micro_batch_sequences == "auto"
        asked = max(1, most) if auto else self.micro_batch
        need = self.need(self.train, asked, shares=shares)
        fits = need.total <= self.device.usable_bytes
        return {
            "model": self.planned.name,
            "micro_batch_sequences": asked,
            "parts_bytes": need.parts,
            "total_bytes": need.total,
            "host_bytes": need.host,
            "usable_bytes": self.device.usable_bytes,
            "shared_by": shares,
            "fits": fits,
            "largest_micro_batch_sequences": most,
            "would_fit": [] if fits else self._mends(shares, asked),
        }

    def _mends(self, shares: int, asked: int) -> list[dict[str, Any]]:
        """Settings by which it fits, as `asked` sequences do not, and how many devices that share the state would."""
        found: list[dict[str, Any]] = []
        smaller = self.largest(self.train, shares=shares)
        if 0 < smaller < asked:
            found.append({"train": {"micro_batch_sequences": smaller}})
        for changes in _ROOM:
            if shares > 1 and "optimizer" in changes:  # quantised moments cannot be shared
                continue
            train = dataclasses.replace(self.train, **changes)
            if train.optimizer == "adamw_8bit" and (train.offload_optimizer or train.parallel == "fsdp"):
                continue
            most = self.largest(train, shares=shares)
            if most and train != self.train:
                found.append({"train": changes | {"micro_batch_sequences": min(most, self.micro_batch)}})
        devices = self._devices_enough()
        if devices is not None and devices > shares:
            plain = {"optimizer": "adamw"} if self.train.optimizer != "adamw" else {}
            changes = _CHECKPOINTING | {"parallel": "fsdp", "micro_batch_sequences": 1} | plain
            found.append({"devices": devices, "train": changes})
        return found

    def _devices_enough(self) -> int | None:
        """How many devices, sharing the state and recomputing activations, hold a micro-batch of one sequence."""
        train = dataclasses.replace(self.train, optimizer="adamw", activation_checkpointing=True)
        for count in (2, 4, 8, 16, 32, 64):
            if self.need(train, 1, shares=count).total <= self.device.usable_bytes:
                return count
        return None

    @cached_property
    def _compiled(self) -> bool:
        flops = self.planned.tokens * training_flops_per_token(self.planned.model, self.sequence_length)
        return is_compiled(self.train.compile, "cuda" if self.device.is_gpu else "cpu", flops)

    @property
    def _largest_unit(self) -> int:
        """Parameters of what FSDP gathers at a time: a block, or all that is outside of the blocks."""
        blocks = [sum(one.numel() for one in block.parameters()) for block in block_list(self.planned.model)[1]]
        return max([*blocks, self.planned.parameters - sum(blocks)])

    def _predicted(self, checkpointing: bool, micro_batch: int) -> Memory:
        """A step with AdamW in float32, in one rank's whole state."""
        key = (checkpointing, micro_batch)
        if key not in self._seen:
            train = dataclasses.replace(
                self.train,
                activation_checkpointing=checkpointing,
                batch_sequences=2 * micro_batch if self.most > micro_batch else micro_batch,
                optimizer="adamw",
                offload_optimizer=False,
            )
            self._seen[key] = extrapolated(
                self.planned.model,
                train,
                sequence_length=self.sequence_length,
                micro_batch=micro_batch,
                dtype=getattr(torch, self.device.dtype),
                device="cuda" if self.device.is_gpu else "cpu",
                trust_remote_code=self.trust_remote_code,
                # what compiled blocks keep was compared with real steps on CPUs alone; eager ones keep more
                compiled_blocks=self._compiled and not self.device.is_gpu,
            )
        return self._seen[key]


def extrapolated(model: PreTrainedModel, train: TrainConfig, *, trust_remote_code: bool, **settings: Any) -> Memory:
    """`memory.predicted`, for a deep model from shallow ones of some of its layers, part by part.

    Of each kind of layers two are in the shallowest model, and two more in another; what these add is counted for all
    of their kind. Where gradients do not accumulate the model is predicted as it is: the peak may then be at the end of
    the forward pass of a shallow one, and at that of the backward pass of a deep one, or the reverse.

    Args:
        model: on the meta device.
        train: how it is trained.
        trust_remote_code: whether code that comes with its config may be run.
        settings: further arguments of `memory.predicted`, `micro_batch` among them.

    Raises:
        Refused: it cannot be predicted.
    """

    def needed(indices: tuple[int, ...]) -> Memory | None:
        """Of a model of these layers; None where no config says what they are."""
        try:
            config = surgery.cut_config(model.config, indices)
            found = surgery.forms(weightless(config, trust_remote_code=trust_remote_code))
        except (Refused, StopIteration, *LOADING_ERRORS):
            return None
        if found != [forms[index] for index in indices]:
            return None
        return predicted(config, train, trust_remote_code=trust_remote_code, **settings)

    forms = surgery.forms(model)
    by_kind = [[layer for layer, form in enumerate(forms) if form == kind] for kind in dict.fromkeys(forms)]
    shallow = [layer for layers in by_kind for layer in layers[:_SHALLOW]]
    growing = [layers[_SHALLOW:] for layers in by_kind if len(layers) > _SHALLOW]
    models = [sorted(shallow), *(sorted([*shallow, *more[:_MORE]]) for more in growing)]
    if train.batch_sequences > settings["micro_batch"] and sum(map(len, models)) < len(forms):
        known = []
        for layers in models:
            if (found := needed(tuple(layers))) is None:
                break
            known.append(found)
        else:
            counts = [len(more) / min(len(more), _MORE) for more in growing]
            return _at_depth(known[0], list(zip(known[1:], counts, strict=True)))
    return predicted(copy.deepcopy(model.config), train, trust_remote_code=trust_remote_code, **settings)


def _at_depth(shallow: Memory, deeper: list[tuple[Memory, float]]) -> Memory:
    """A shallow model's memory, and so often what each deeper one takes beyond it."""

    def part(name: str) -> int:
        base = getattr(shallow, name)
        return int(base + sum(times * (getattr(one, name) - base) for one, times in deeper))

    return Memory(**{one.name: part(one.name) for one in dataclasses.fields(Memory)})
