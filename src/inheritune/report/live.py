"""Where a run stands at this moment, from the records that it writes while it goes on."""

from __future__ import annotations

import json
import os
import re
import statistics
from collections import deque
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
    return Following(run)()


class Following:
    """How far a run is, asked again and again: of a training's records only what is new is read.

    Args:
        run: the run directory; what it lacks, or what cannot be read, is left out.
    """

    def __init__(self, run: Path) -> None:
        self._run = run
        self._steps: _Steps | None = None

    def __call__(self) -> Live:
        """As it stands now."""
        run = self._run
        state = str(read_record(run, "result.json", dict, {}).get("state") or "unknown")
        ledger = read_record(run, "ledger.json", dict, {})
        stages = [str(name) for name in ledger if name != TOTAL]
        last = stages[-1] if stages else "preparing"
        found = _latest(run)
        if found is None or state in OVER or f"train {found[0]}" in ledger:
            return Live(state, last)
        name, path = found
        if self._steps is None or self._steps.path != path:
            self._steps = _Steps(path)
        steps = self._steps
        steps.read_on()
        if steps.step is None:
            return Live(state, last)
        speed = statistics.median(steps.speeds) if steps.speeds else None
        total, step, seen = _planned_steps(run, name), steps.step, steps.tokens
        left = (total - step) * seen / step / speed if total and speed and seen and step else None
        return Live(state, f"training {title_of(name)}", int(step), total, tuple(steps.losses), speed, left)


class _Steps:
    """A training's steps, from a file that grows line by line, and is another after a restart took some back.

    Args:
        path: its metrics.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._begin(None)

    def _begin(self, file: tuple[int, int] | None) -> None:
        """Know nothing yet of a file, by device and inode."""
        self._file = file
        self._read_bytes = 0
        self.step: float | None = None
        self.tokens: float | None = None
        self.losses: list[float] = []
        self.speeds: deque[float] = deque(maxlen=_RECENT)

    def read_on(self) -> None:
        """Take in the whole lines that are new; where the file cannot be read all stays as it is."""
        try:
            with self.path.open("rb") as file:
                known = os.fstat(file.fileno())
                if (known.st_dev, known.st_ino) != self._file or known.st_size < self._read_bytes:
                    self._begin((known.st_dev, known.st_ino))
                file.seek(self._read_bytes)
                lines = file.read().split(b"\n")
        except OSError:
            return
        for line in lines[:-1]:
            self._read_bytes += len(line) + 1
            try:
                record = json.loads(line)
            except (ValueError, RecursionError):
                continue
            if isinstance(record, dict) and record.get("kind") == "step":
                self._take(record)

    def _take(self, record: dict[str, Any]) -> None:
        self.step, self.tokens = number_of(record.get("step")), number_of(record.get("tokens"))
        if (loss := number_of(record.get("loss"))) is not None:
            self.losses.append(loss)
        if speed := number_of(record.get("tokens_per_second")):
            self.speeds.append(speed)


def _latest(run: Path) -> tuple[str, Path] | None:
    """The training that wrote last, by name, and where."""
    written = {}
    for name, file in _trainings(run):
        try:
            written[name, run / file] = (run / file).stat().st_mtime_ns
        except OSError:  # it has just gone
            continue
    return max(written, key=lambda key: written[key]) if written else None


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


def _planned_steps(run: Path, name: str) -> int | None:
    """The steps of a training, as recipe and shards say; None where they do not."""
    try:
        recipe = dict_of(yaml.safe_load(read_record(run, "recipe.yaml", str, {}) or "{}"))
    except UNREADABLE:
        return None
    train, data = dict_of(recipe.get("train")), dict_of(recipe.get("data"))
    if name == "pilot" or recipe.get("compare") or dict_of(recipe.get("grow")).get("growth") == "warm":
        return None  # they take other steps than the recipe's own
    times = int(found.group(1)) if (found := re.search(r":([0-9]{1,3})x", name)) else 1
    known = [steps for steps in (_whole(train.get("max_steps")), _steps_of_data(run, data, train)) if steps is not None]
    return min(known) * times if known else None


def _steps_of_data(run: Path, data: Mapping[str, Any], train: Mapping[str, Any]) -> int | None:
    """Steps that all passes over the tokens take."""
    tokens = _tokens(run, data)
    length, batch, passes = (
        _whole(value) for value in (data.get("sequence_length"), train.get("batch_sequences"), data.get("passes"))
    )
    if tokens is None or not length or not batch or not passes:
        return None
    blocks = (int(tokens) - 1) // length
    return -(-blocks * passes // batch)


def _whole(value: Any) -> int | None:
    """A number of a recipe, as a whole one; None where it is none."""
    number = number_of(value)
    return None if number is None else int(number)


def _tokens(run: Path, data: Mapping[str, Any]) -> float | None:
    """Unique training tokens: those of the shards, else those that the recipe asks for."""
    manifest = read_record(run, "data/manifest.json", dict, {})
    train = dict_of(dict_of(manifest.get("sets")).get("train"))
    return number_of(train.get("tokens")) or number_of(data.get("tokens"))
