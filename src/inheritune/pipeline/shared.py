"""What the stages of a run share: the recipe, the directory, whom to tell, and the records that they all write."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from inheritune.arms import CUT, Arm, canonical_init, control_arm, target_arm
from inheritune.config import Recipe
from inheritune.console import Console
from inheritune.distributed import World
from inheritune.growth import layers_in_words
from inheritune.ledger import TOTAL, entries
from inheritune.reference import Reference
from inheritune.run_directory import write_json

Record = dict[str, Any]
_MEASURED_AT_ONCE = 8
"""Sequences a forward pass of a measurement where the recipe leaves the micro-batch to be found."""


@dataclass
class Run:
    """One run."""

    recipe: Recipe
    directory: Path
    console: Console
    world: World
    reference: Reference | None = None
    """None as long as there is none: a recipe from an architecture has one only where it trains one, to grow from."""
    indices: tuple[int, ...] | None = None
    """The target's layers; None as long as they are to be chosen on tokens, or the target grows."""

    @property
    def target(self) -> Arm:
        """The target, by what it starts from."""
        return target_arm(canonical_init(self.recipe.inherit.init))

    @property
    def controls(self) -> list[Arm]:
        """The controls that are trained, in the recipe's order."""
        return [control_arm(word) for word in self.recipe.controls if word != CUT]

    @property
    def has_cut(self) -> bool:
        """Whether the target's start is measured untrained."""
        return CUT in self.recipe.controls

    @property
    def measured_at_once(self) -> int:
        """Sequences a forward pass of a measurement."""
        asked = self.recipe.train.micro_batch_sequences
        return asked if asked != "auto" else _MEASURED_AT_ONCE

    def limit_steps(self, steps: int) -> None:
        """Let every model be trained for so many steps."""
        self.recipe = dataclasses.replace(self.recipe, train=dataclasses.replace(self.recipe.train, max_steps=steps))

    def directory_of(self, arm: Arm) -> Path:
        """Where a trained model's records, checkpoints and export are."""
        return self.directory if arm.name == "target" else self.directory / "controls" / arm.directory

    def state(self, state: str) -> Record:
        """Note how far the run is, for whoever looks at its directory."""
        record = {"name": self.recipe.name, "state": state}
        if self.world.main:
            write_json(self.directory / "result.json", record)
        return record

    @contextlib.contextmanager
    def timed(self, stage: str) -> Iterator[Record]:
        """Write what a finished stage took to the ledger, with what the body puts into the entry."""
        entry: Record = {}
        started = time.monotonic()
        yield entry
        if self.world.main:
            self.note(stage, {"seconds": round(time.monotonic() - started, 3), **entry})

    def note(self, stage: str, entry: Record) -> None:
        """Write a stage's entry into the ledger; its sums are made again when the run is over."""
        ledger = entries(self.directory)
        ledger.pop(TOTAL, None)
        write_json(self.directory / "ledger.json", ledger | {stage: entry})


def called(name: str) -> str:
    """A model's name in a sentence."""
    plain = {"reference": "reference", "target": "target", CUT: "untrained cut"}
    if name.startswith("round-"):
        layers, _, seed = name.removeprefix("round-").partition("-seed-")
        return f"target of {layers_in_words(layers)}" + (f", seed {seed}" if seed else "")
    return plain.get(name, f"{name} control")
