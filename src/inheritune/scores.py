"""What an evaluation comes to, as records: a task's rows as a model answered them, and the lines of a table. No torch.

Two levels. `TaskScores` is one task of the harness on one model, with every row: what is cached, and what tests between
models are made of. `Line` and `Score` are what a table shows: a line is a task, or a group of tasks such as MMLU with
its 57 subjects; a score is what one model reached on it. `Evaluation` is `evaluation.json`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, Self

FORMAT = 1
"""Of `evaluation.json` and of what is cached; a record of another format is not read."""
Role = Literal["reference", "target", "control", "checkpoint", "model"]
Better = Literal["higher", "lower"]


@dataclass(frozen=True)
class Row:
    """One row of a task as a model answered it."""

    row: int
    """Its number in the split, from 0."""
    values: dict[str, float]
    """By metric what the harness gave: of an accuracy 0 or 1 (of `truthfulqa_mc2` a share), of a perplexity the row's
    log-likelihood in nats."""
    units: dict[str, float] = field(default_factory=dict)
    """By metric what a log-likelihood is spread over: words, bytes; 1 where the row counts as one."""
    gold: int | None = None
    """Which of the choices is right, from 0; None where there are no choices."""
    choices: int | None = None
    """How many there are."""
    chance: float | None = None
    """What a guess at random is worth on this row; None where nothing can be guessed."""
    cut: bool = False
    """Whether its text was longer than the model's context, so that its beginning was cut off."""
    fingerprint: str = ""
    """Of its content: rows of two evaluations are the same rows where these agree."""


@dataclass(frozen=True)
class TaskScores:
    """One task of the harness, evaluated on one model."""

    task: str
    """The harness's name, such as `mmlu_anatomy`."""
    version: str
    """Of the task's definition in the harness."""
    shots: int
    metrics: dict[str, float]
    """The harness's own aggregates, by metric, as it gives them (accuracies are shares, 0 to 1)."""
    better: dict[str, Better]
    """By metric which direction is better."""
    rows: tuple[Row, ...]
    rows_in_split: int
    selection: str | None
    """None: the whole split; else how rows were chosen, in words: `the first 100 rows`."""
    settings: dict[str, Any]
    """What else the result may depend on: batch size, dtype, device, context, prefix token, versions."""
    dataset: dict[str, Any]
    """`path`, `name`, `split`, `source` (`hub`, or a mirror's), `fingerprint` of the rows."""
    changed: dict[str, list[Any]] = field(default_factory=dict)
    """Keys of the packaged task that were changed, each with the value before and the one after."""
    seconds: float = 0.0

    @property
    def cut_rows(self) -> int:
        """Rows whose beginning was cut off."""
        return sum(row.cut for row in self.rows)

    def record(self) -> dict[str, Any]:
        """As JSON."""
        return {"format": FORMAT, **_written(asdict(self))}

    @classmethod
    def of(cls, record: Mapping[str, Any]) -> Self:
        """From JSON.

        Raises:
            ValueError, TypeError, KeyError: it is no such record, or one of another format.
        """
        known = _known(record)
        known["rows"] = tuple(Row(**row) for row in known["rows"])
        return cls(**known)


@dataclass(frozen=True)
class Line:
    """A line of the table: a task, or a group of tasks that is scored as one."""

    name: str
    """As it was asked for: `piqa`, `mmlu`."""
    title: str
    """As it is shown: a group that is not whole says so, `mmlu, 10 of 57 subjects`."""
    shots: int
    metric: str
    """The one that the suite names: `acc`, `word_perplexity`."""
    better: Better
    tasks: tuple[str, ...]
    """The harness's tasks that it is made of; one, or a group's that could be evaluated."""
    whole: bool
    """Whether every row of every task of it was evaluated; only then it is compared with published scores."""
    rows: int
    rows_in_split: int
    selection: str | None
    """How rows were chosen, in words; None: all of them."""
    chance: float | None
    """What guessing at random scores; None where nothing can be guessed."""
    majority: float | None
    """What the best constant answer (always the first choice, always yes) scores; None where there are no choices."""
    gap: str | None = None
    """Why there are no scores, and how to mend it; None: there are."""
    dataset: dict[str, Any] = field(default_factory=dict)
    """As in `TaskScores`; of a group without the configuration, the fingerprint being one of all its tasks."""
    changed: dict[str, list[Any]] = field(default_factory=dict)
    """As in `TaskScores`; of a group its first task's."""
    harness: str | None = None
    """The harness's version; a record that is gathered over calls may hold lines of several."""


@dataclass(frozen=True)
class Score:
    """What a model reached on a line."""

    value: float
    """In the metric's own unit: accuracies are shares."""
    standard_error: float | None
    """Over rows; None where there are fewer than two."""
    rescaled: float | None
    """(value - chance) / (1 - chance); None without a chance level."""
    near: tuple[str, ...]
    """`chance`, `majority`: what it is no further from than two standard errors, or below."""
    cut_rows: int
    beside: dict[str, tuple[float, float | None]]
    """Other metrics of the same rows with their standard errors: `acc_norm`."""
    seconds: float = 0.0
    settings: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Model:
    """A model that was evaluated."""

    name: str
    """As the table has it; unique in an evaluation."""
    role: Role
    source: str
    """A directory or a hub id."""
    fingerprint: str
    parameters: int
    layers: int
    tokens_trained: int | None = None
    """Tokens seen in training by inheritune; None where that is not known."""
    step: int | None = None
    """Of a checkpoint."""
    run: str | None = None
    """The run directory that it belongs to."""


def own_name(source: str) -> str:
    """A model by its directory's name, or by that of the folder around it where it is just called `model`."""
    path = Path(source).expanduser().resolve()
    return path.parent.name if path.name == "model" else path.name


def reference_of(model: Model, models: Sequence[Model]) -> Model | None:
    """What a model is judged beside: its run's reference; else the one of no run, which the user named.

    A model of no run has that of a run beside it where it is the only one.
    """
    found = [one for one in models if one.role == "reference"]
    own = [one for one in found if one.run == model.run] or [one for one in found if one.run is None]
    if not own and model.run is None and len(found) == 1:
        own = found
    return own[0] if own and own[0].name != model.name else None


def compared(models: Sequence[Model]) -> list[tuple[Model, Model]]:
    """Which models are compared on the same rows: few, for each pair is a row of a table on every line.

    Every model with its reference; a run's target (without one its first model) with the run's other models; the first
    of all with those of the other runs, and with each model of no run. Of a run's checkpoints the last alone, and with
    the reference alone.

    Returns:
        Pairs, each once.
    """
    last = {one.run: one for one in models if one.role == "checkpoint"}
    others = [one for one in models if one.role not in ("checkpoint", "reference")]
    first: dict[str | None, Model] = {}
    for one in sorted(others, key=lambda one: one.role != "target"):
        first.setdefault(one.run, one)
    pairs = [(one, reference) for one in (*others, *last.values()) if (reference := reference_of(one, models))]
    pairs += [(first[one.run], one) for one in others if one.run is not None]
    pairs += [(first[others[0].run], one) for one in others if one.run is None or one is first[one.run]]
    found: dict[frozenset[str], tuple[Model, Model]] = {}
    for left, right in pairs:
        if left is not right:
            found.setdefault(frozenset((left.name, right.name)), (left, right))
    return list(found.values())


@dataclass(frozen=True)
class Paired:
    """Two models on the same rows of a line."""

    line: str
    first: str
    second: str
    rows: int
    difference: float
    """first - second, in the metric's unit."""
    low: float
    high: float
    """Its 95% interval: paired bootstrap over rows."""
    first_only: int | None = None
    """Rows that the first alone answered right; None where rows are not right or wrong."""
    second_only: int | None = None
    p_value: float | None = None
    """McNemar's exact two-sided test on those."""


@dataclass(frozen=True)
class Reading:
    """One model on a suite between the steps of its training: what is recorded of it, and told."""

    lines: tuple[Line, ...]
    scores: dict[str, Score]
    """By line's name; of a line that is not here `Line.gap` says why."""

    @property
    def gaps(self) -> dict[str, str]:
        """By line's name why it has no score, or one of only some of its tasks."""
        return {line.name: line.gap for line in self.lines if line.gap is not None}

    def record(self) -> dict[str, Any]:
        """As JSON: plain numbers by `LINE.METRIC`, such as `piqa.acc`, and what it takes to believe them.

        A number that is not finite is null.
        """
        found: dict[str, tuple[float, float | None]] = {}
        for line in self._scored():
            score = self.scores[line.name]
            for metric, pair in {line.metric: (score.value, score.standard_error), **score.beside}.items():
                found[f"{line.name}.{metric}"] = pair
        return {
            "scores": {name: _finite(value) for name, (value, _) in found.items()},
            "errors": {name: _finite(error) for name, (_, error) in found.items()},
            "lines": {line.name: self._details(line) for line in self._scored()},
            "gaps": self.gaps,
        }

    def _scored(self) -> list[Line]:
        return [line for line in self.lines if line.name in self.scores]

    def _details(self, line: Line) -> dict[str, Any]:
        score = self.scores[line.name]
        names = ("title", "shots", "metric", "whole", "rows", "rows_in_split", "selection", "chance", "majority")
        return {name: getattr(line, name) for name in names} | {"near": [*score.near], "cut_rows": score.cut_rows}


@dataclass(frozen=True)
class Evaluation:
    """`evaluation.json`."""

    suite: str
    lines: tuple[Line, ...]
    models: tuple[Model, ...]
    scores: dict[str, dict[str, Score]]
    """By model's name, then by line's name."""
    paired: tuple[Paired, ...] = ()
    judged: dict[str, dict[str, Any]] = field(default_factory=dict)
    """By line, then by model, what may be said of its score: the poster's bold rule, and the honest verdict."""
    published: dict[str, Any] = field(default_factory=dict)
    """What `--against` set beside it by name: the poster's figures, outside baselines."""
    versions: dict[str, str] = field(default_factory=dict)
    failed: dict[str, dict[str, str]] = field(default_factory=dict)
    """By model, then by the harness's task, why it could not be evaluated; its line has no score."""
    limited: str | None = None
    """What every table must say where not all rows were evaluated."""
    commands: tuple[str, ...] = ()
    """The calls that it came from, as they were given."""

    def record(self) -> dict[str, Any]:
        """As JSON."""
        return {"format": FORMAT, **_written(asdict(self))}

    @classmethod
    def of(cls, record: Mapping[str, Any]) -> Self:
        """From JSON.

        Raises:
            ValueError, TypeError, KeyError: it is no such record, or one of another format.
        """
        known = _known(record)
        known["lines"] = tuple(Line(**line | {"tasks": tuple(line["tasks"])}) for line in known["lines"])
        known["models"] = tuple(Model(**model) for model in known["models"])
        known["scores"] = {
            name: {line: _score(score) for line, score in scores.items()} for name, scores in known["scores"].items()
        }
        known["paired"] = tuple(Paired(**pair) for pair in known["paired"])
        known["commands"] = tuple(map(str, known.get("commands", ())))
        return cls(**known)


def _score(record: Mapping[str, Any]) -> Score:
    beside = {metric: (value, error) for metric, (value, error) in record["beside"].items()}
    return Score(**{**record, "near": tuple(record["near"]), "beside": beside})


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


_INFINITE = {"Infinity": math.inf, "-Infinity": -math.inf, "NaN": math.nan}
"""Perplexities may be beyond every number, and JSON has no word for that: these texts stand for them."""


def _known(record: Mapping[str, Any]) -> dict[str, Any]:
    """A record's values as they were before it was written.

    Raises:
        ValueError: it is of another format.
    """
    known: dict[str, Any] = _read(record)
    if known.pop("format", None) != FORMAT:
        raise ValueError("a record of another format")
    return known


def _written(value: Any) -> Any:
    """A record without numbers that JSON does not have."""
    if isinstance(value, dict):
        return {key: _written(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_written(one) for one in value]
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    return value


def _read(value: Any) -> Any:
    """What `_written` made, as it was."""
    if isinstance(value, Mapping):
        return {key: _read(one) for key, one in value.items()}
    if isinstance(value, list):
        return [_read(one) for one in value]
    return _INFINITE.get(value, value) if isinstance(value, str) else value
