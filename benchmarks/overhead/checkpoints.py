"""How long `Checkpointer.save` keeps a training waiting: the copy of weights and moments; writing is simulated."""

from __future__ import annotations

import statistics
import time
from pathlib import Path
from typing import Any

import torch

from inheritune.checkpoint import Checkpointer, Tensors
from inheritune.distributed import World
from overhead.figure import Figure, line_fit

PARAMETERS = [25_000_000, 50_000_000, 100_000_000, 200_000_000]
SAVES = 7
_PIECE = 4_000_000


def measure(scratch: Path, *, quick: bool) -> list[Figure]:
    """Seconds of a save by the number of parameters, and what the line through them says for 1e9."""
    runs: list[dict[str, Any]] = []
    for parameters in PARAMETERS[: 3 if quick else 4]:
        first, *later = saves(scratch, parameters, reserve=True)
        without = saves(scratch, parameters, reserve=False, count=1)[0]
        runs.append({"parameters": parameters, "first": first, "later": later, "first_without_reserve": without})
    told = {"extrapolated": True, "writer": "simulated", "device": "cpu", "optimizer": "adamw, float32"}
    later = at_a_billion([(run["parameters"], statistics.median(run["later"])) for run in runs])
    first = at_a_billion([(run["parameters"], run["first"]) for run in runs])
    without = at_a_billion([(run["parameters"], run["first_without_reserve"]) for run in runs])
    return [
        Figure("stall by a checkpoint, 1e9 parameters", later, "s", 1.0, raw={**told, "runs": runs}),
        Figure("stall by the first one, room reserved", first, "s", 1.0, raw=told),
        Figure("stall by the first one, room not reserved", without, "s", raw=told),
    ]


def at_a_billion(points: list[tuple[int, float]]) -> float:
    """The value at 1e9 on the line through the points."""
    offset, slope = line_fit([float(size) for size, _ in points], [value for _, value in points])
    return offset + slope * 1e9


def saves(scratch: Path, parameters: int, *, reserve: bool, count: int = SAVES) -> list[float]:
    """Seconds that each of some saves blocks for."""
    tensors: Tensors = {
        f"{kind}.{piece}": torch.full((min(_PIECE, parameters - piece),), 0.5)
        for kind in ("model", "optimizer.exp_avg", "optimizer.exp_avg_sq")
        for piece in range(0, parameters, _PIECE)
    }
    checkpointer = Checkpointer(scratch / "checkpoints", World(0, 1, torch.device("cpu")), 2, print)
    checkpointer._write = lambda *_: None  # type: ignore[method-assign]  # the simulated writer
    if reserve:
        checkpointer.reserve(tensors)
        checkpointer.finish()
    taken = []
    for step in range(count):
        for tensor in tensors.values():
            tensor.add_(1e-3)  # as a step does: afterwards the caches hold something else
        started = time.perf_counter()
        checkpointer.save(step, tensors, {})
        taken.append(time.perf_counter() - started)
        checkpointer.finish()
    return taken
