"""What of a training is kept on disk: weights, moments, counters and the guard, the last ones; and the best weights."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from inheritune.checkpoint import Checkpointer, Tensors
from inheritune.distributed import World
from inheritune.errors import Failed
from inheritune.optimizer import Guard, empty_moments, moments, updates
from inheritune.trained import State


class TrainingState:
    """Reads and writes a training's state; with several ranks each of its methods is a collective call.

    Args:
        checkpointer: of the training.
        best: the directory of the best weights, if any are kept.
        model: on the ranks' devices.
        optimizer: of the model's parameters.
        guard: its judge of steps.
        world: the ranks.
        report: told what could not be read.
    """

    def __init__(
        self,
        checkpointer: Checkpointer,
        best: Path,
        *,
        model: PreTrainedModel,
        optimizer: torch.optim.Optimizer,
        guard: Guard,
        world: World,
        report: Callable[[str], None],
    ) -> None:
        self._checkpointer = checkpointer
        self._best = best
        self._names = {parameter: name for name, parameter in model.named_parameters()}
        self._optimizer = optimizer
        self._guard = guard
        self._world = world
        self._report = report

    def reserve(self) -> None:
        """Make room for the copy that a checkpoint is written from."""
        self._checkpointer.reserve(self._tensors())

    def save(self, counters: State, place: dict[str, int]) -> None:
        """Begin to write a checkpoint.

        Args:
            counters: of the training.
            place: where it stands in the data.
        """
        self._checkpointer.save(
            counters.step,
            self._tensors(),
            {
                **dataclasses.asdict(counters),
                **place,
                "updates": updates(self._optimizer),
                "guard": self._guard.state(),
                "ranks": self._world.size,
                "threads": torch.get_num_threads(),
            },
        )

    def load(self, path: Path, record: dict[str, Any]) -> State:
        """Load a whole checkpoint, whatever ranks wrote it.

        Args:
            path: its directory.
            record: what it holds beside tensors.

        Returns:
            Its counters; without a best step where the best weights are gone or damaged.
        """
        tensors = self._weights()
        room = empty_moments(
            self._optimizer,
            self._names,
            {name.removeprefix("optimizer.") for name in self._checkpointer.held(path, record)},
            record["updates"],
        )
        self._checkpointer.load(path, tensors | {f"optimizer.{name}": tensor for name, tensor in room.items()})
        self._guard.load(record["guard"])
        counters = State.from_record(record)
        if counters.best_step is not None:
            try:
                best = self._checkpointer.checked(self._best)
            except Failed as error:
                self._report(f"{error}. What is best from here on is exported.")
                counters.best_step = counters.best_loss = None
            else:  # they may have been kept after this checkpoint, and are then those of another step
                counters.best_step = best.get("step", counters.best_step)
                counters.best_loss = best.get("loss", counters.best_loss)
        self._report(f"Going on after step {counters.step}.")
        then, now, threads = record["ranks"], self._world.size, torch.get_num_threads()
        if (then, record["threads"]) != (now, threads):
            what = f"written by {then} ranks of {record['threads']} threads, now {now} of {threads}"
            self._report(f"The checkpoint was {what}: the same data, but sums may round otherwise.")
        return counters

    def save_best(self, step: int, loss: float) -> None:
        """Keep the weights as they are after a step, with their loss on the development set, as the best."""
        self._checkpointer.save_now(self._best, self._weights(), {"step": step, "loss": loss})

    def load_best(self) -> None:
        """Give the model its best weights.

        Raises:
            Failed: they are gone or damaged.
        """
        self._checkpointer.checked(self._best)
        self._checkpointer.load(self._best, self._weights())

    def _weights(self) -> Tensors:
        return {f"model.{name}": parameter.detach() for parameter, name in self._names.items()}

    def _tensors(self) -> Tensors:
        """What a checkpoint holds as tensors."""
        held = moments(self._optimizer, self._names)
        return self._weights() | {f"optimizer.{name}": tensor for name, tensor in held.items()}
