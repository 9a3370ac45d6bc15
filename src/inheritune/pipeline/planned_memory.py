"""Whether a training fits a device: its peak predicted by part, the most sequences at once, and what would make room.

`memory.predicted` runs the step on tensors without values, which takes the longer the more layers there are. Their
kinds repeat, so that two shallow models tell what a layer takes; micro-batches in between are interpolated.
"""

from __future__ import annotations

import copy
import dataclasses
import math
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from transformers import PretrainedConfig

from inheritune import surgery
from inheritune.config import TrainConfig
from inheritune.devices import Device
from inheritune.memory import Memory, predicted
from inheritune.optimizer import host_bytes, moment_bytes, step_bytes
from inheritune.parallel import is_compiled
from inheritune.pipeline.planned_models import Planned
from inheritune.planning import training_flops_per_token
from inheritune.reference import block_list

_SHALLOW, _DEEPER = 2, 4
"""Layers of the models that a deep one is extrapolated from: two of each kind where kinds take turns."""
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
            "would_fit": [] if fits else self._mends(shares),
        }

    def _mends(self, shares: int) -> list[dict[str, Any]]:
        """Settings by which it fits, and how many devices that share the state would do."""
        found: list[dict[str, Any]] = []
        smaller = self.largest(self.train, shares=shares)
        if smaller:
            found.append({"train": {"micro_batch_sequences": smaller}})
        for changes in _ROOM:
            if shares > 1 and "optimizer" in changes:  # quantised moments cannot be shared
                continue
            train = dataclasses.replace(self.train, **changes)
            most = self.largest(train, shares=shares)
            if most and train != self.train:
                found.append({"train": changes | {"micro_batch_sequences": min(most, self.micro_batch)}})
        devices = self._devices_enough()
        if devices is not None and devices > shares:
            found.append(
                {"devices": devices, "train": _CHECKPOINTING | {"parallel": "fsdp", "micro_batch_sequences": 1}}
            )
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
                self.planned.model.config,
                train,
                layers=self.planned.layers,
                sequence_length=self.sequence_length,
                micro_batch=micro_batch,
                dtype=getattr(torch, self.device.dtype),
                device="cuda" if self.device.is_gpu else "cpu",
                trust_remote_code=self.trust_remote_code,
                # what compiled blocks keep was compared with real steps on CPUs alone; eager ones keep more
                compiled_blocks=self._compiled and not self.device.is_gpu,
            )
        return self._seen[key]


def extrapolated(config: PretrainedConfig, train: TrainConfig, *, layers: int, **settings: Any) -> Memory:
    """`memory.predicted`, for a deep model from two shallow ones of its first layers, part by part.

    Args:
        config: of the model.
        train: how it is trained.
        layers: that it has.
        settings: further arguments of `memory.predicted`.

    Raises:
        Refused: it cannot be predicted.
    """
    if layers <= _DEEPER:
        return predicted(copy.deepcopy(config), train, **settings)
    shallow, deeper = (
        predicted(surgery.cut_config(config, tuple(range(count))), train, **settings) for count in (_SHALLOW, _DEEPER)
    )

    def at_depth(name: str) -> int:
        one, other = getattr(shallow, name), getattr(deeper, name)
        return int(one + (layers - _SHALLOW) * (other - one) / (_DEEPER - _SHALLOW))

    return Memory(**{one.name: at_depth(one.name) for one in dataclasses.fields(Memory)})
