"""Where a run stands at this moment, from the records that it writes while it goes on."""

from __future__ import annotations

import re
import statistics
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from inheritune.ledger import TOTAL, name_of_stem
from inheritune.report.numbers import number_of
from inheritune.report.records import UNREADABLE, read_record
from inheritune.report.table import dict_of
from inheritune.result import title_of

_RECENT = 20
"""Steps whose median says how fast a training goes."""
OVER = ("done", "failed", "trained", "inherited", "prepared")
"""States in which a run writes no more, unless it is started again."""


@dataclass(frozen=True)
class Live:
    """A run as it stands."""

    state: str
    """`running`, `done` and so on; `unknown` where `result.json` does not say."""
    stage: str
    """The training that wrote last, or the last stage of the ledger."""
    step: int | None = None
    steps: int | None = None
    """Of that training, as far as the recipe tells."""
    losses: tuple[float, ...] = ()
    """Of its steps, nats a token."""
    tokens_per_second: float | None = None
    seconds_left: float | None = None
    """Of that training; None where its steps are not known, or nothing is under way."""

    @property
    def over(self) -> bool:
        """Whether there is nothing to wait for."""
        return self.state in OVER


def live(run: Path) -> Live:
    """How far a run is.

    Args:
        run: the run directory; what it lacks, or what cannot be read, is left out.
    """
    state = str(read_record(run, "result.json", dict, {}).get("state") or "unknown")
    ledger = read_record(run, "ledger.json", dict, {})
    stages = [str(name) for name in ledger if name != TOTAL]
    last = stages[-1] if stages else "preparing"
    found = _latest(run)
    if found is None or state in OVER:
        return Live(state, last)
    name, records = found
    steps = [record for record in records if isinstance(record, dict) and record.get("kind") == "step"]
    step = number_of(steps[-1].get("step")) if steps else None
    if step is None or f"train {name}" in ledger:
        return Live(state, last)
    losses = tuple(loss for record in steps if (loss := number_of(record.get("loss"))) is not None)
    speeds = [speed for record in steps[-_RECENT:] if (speed := number_of(record.get("tokens_per_second")))]
    speed = statistics.median(speeds) if speeds else None
    total = _steps(run, name)
    seen = number_of(steps[-1].get("tokens"))
    left = (total - step) * seen / step / speed if total and speed and seen and step else None
    return Live(state, f"training {title_of(name)}", int(step), total, losses, speed, left)


def _latest(run: Path) -> tuple[str, list[Any]] | None:
    """The training that wrote last, by name, and its records."""
    written = {}
    for name, file in _trainings(run):
        try:
            written[name, file] = (run / file).stat().st_mtime_ns
        except OSError:  # it has just gone
            continue
    if not written:
        return None
    name, file = max(written, key=lambda key: written[key])
    return name, read_record(run, file, list, {})


def _trainings(run: Path) -> Iterator[tuple[str, str]]:
    """Each training that has records by its name in the ledger, and their file within the run."""
    kinds = {"": "target", "reference": "reference", "pilot": "pilot"}
    yield from ((name, f"{folder}/metrics.jsonl".lstrip("/")) for folder, name in kinds.items())
    for path in sorted(run.glob("rounds/*/metrics.jsonl")):
        yield f"round-{path.parent.name}", str(path.relative_to(run))
    for path in sorted(run.glob("controls/*/metrics.jsonl")):
        yield name_of_stem(path.parent.name), str(path.relative_to(run))
    for path in sorted(run.glob("learning_rates/*/metrics.jsonl")):
        yield f"target at {path.parent.name}", str(path.relative_to(run))
    for path in sorted(run.glob("controls/*/learning_rates/*/metrics.jsonl")):
        yield f"{name_of_stem(path.parts[-4])} at {path.parent.name}", str(path.relative_to(run))


def _steps(run: Path, name: str) -> int | None:
    """The steps of a training, as recipe and shards say; None where they do not."""
    try:
        recipe = dict_of(yaml.safe_load(read_record(run, "recipe.yaml", str, {}) or "{}"))
    except UNREADABLE:
        return None
    train, data = dict_of(recipe.get("train")), dict_of(recipe.get("data"))
    if name == "pilot" or recipe.get("compare") or dict_of(recipe.get("grow")).get("growth") == "warm":
        return None  # they take other steps than the recipe's own
    times = int(found.group(1)) if (found := re.search(r":([0-9]{1,3})x", name)) else 1
    most = number_of(train.get("max_steps"))
    if most is not None:
        return int(most) * times
    tokens = _tokens(run, data)
    length, batch, passes = (
        number_of(value) for value in (data.get("sequence_length"), train.get("batch_sequences"), data.get("passes"))
    )
    if tokens is None or not length or not batch or not passes:
        return None
    blocks = (int(tokens) - 1) // int(length)
    return -(-blocks * int(passes) // int(batch)) * times


def _tokens(run: Path, data: Mapping[str, Any]) -> float | None:
    """Unique training tokens: those of the shards, else those that the recipe asks for."""
    manifest = read_record(run, "data/manifest.json", dict, {})
    train = dict_of(dict_of(manifest.get("sets")).get("train"))
    return number_of(train.get("tokens")) or number_of(data.get("tokens"))
