"""Several models on a suite: what can run runs, what ran before is not repeated, what cannot run is a gap."""

from __future__ import annotations

import contextlib
import gc
import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Protocol

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from inheritune import reference as references, scoring
from inheritune.errors import Refused
from inheritune.evaluation.caching import Cache, key_of
from inheritune.evaluation.language_model import EvaluatedModel
from inheritune.evaluation.measuring import measure, versions
from inheritune.evaluation.mirror import open_mirror
from inheritune.evaluation.suites import Suite
from inheritune.evaluation.tasks import Gap, Harness, Task, quiet
from inheritune.reference import Reference
from inheritune.scores import Evaluation, Line, Model, Paired, Role, Score, TaskScores

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Candidate:
    """A model to evaluate."""

    name: str
    """As tables have it; unique among those evaluated together."""
    source: str
    """A directory or a hub id."""
    role: Role = "model"
    revision: str | None = None
    tokens_trained: int | None = None
    step: int | None = None
    run: str | None = None


@dataclass(frozen=True)
class Settings:
    """How models are evaluated."""

    device: torch.device
    dtype: torch.dtype | None = None
    """Of the weights; None: as they are stored."""
    batch_size: int | None = None
    """Rows at once; None: as many as fit."""
    limit: int | None = None
    """At most so many rows of each task; None: all of them."""
    datasets: Path | None = None
    """A mirror of the hub's data sets; None: the hub."""
    trust_remote_code: bool = False


class Told(Protocol):
    """Where progress goes (see `Console`)."""

    def stage(self, text: str) -> None: ...
    def line(self, text: str) -> None: ...
    def work(self, what: str) -> Progress: ...


class _Silent:
    """Nowhere."""

    def stage(self, text: str) -> None:
        pass

    def line(self, text: str) -> None:
        pass

    def work(self, what: str) -> Progress:
        return lambda _done, _total: None


@dataclass(frozen=True)
class Plan:
    """What is asked for, as far as it can run here."""

    suite: Suite
    harness: Harness
    tasks: tuple[Task, ...]
    gaps: tuple[Gap, ...]

    @property
    def lines(self) -> list[str]:
        """The table's lines, in the order that was asked for."""
        return list(dict.fromkeys(one.line for one in self._all()))

    def _all(self) -> list[Task | Gap]:
        order = {name: index for index, name in enumerate(self._leaves())}
        return sorted([*self.tasks, *self.gaps], key=lambda one: order[one.name])

    def _leaves(self) -> list[str]:
        return [name for asked in self.suite.asked for name in self.harness.members(asked)]

    def shots_of(self, line: str) -> int:
        """The shots asked for, of a line that cannot run."""
        return next((asked.shots or 0 for asked in self.suite.asked if asked.name == line), 0)

    def tasks_of(self, line: str) -> list[Task]:
        """The tasks of a line that can run."""
        return [task for task in self.tasks if task.line == line]

    def gaps_of(self, line: str) -> list[Gap]:
        """Those that cannot."""
        return [gap for gap in self.gaps if gap.line == line]


def plan(suite: Suite, *, datasets: Path | None, limit: int | None) -> Plan:
    """Find the suite's tasks and open their data.

    Raises:
        Refused: an unknown task, a directory that is no mirror, or nothing of it can run here.
    """
    if limit is not None and limit < 1:
        raise Refused(f"--limit {limit}: rows of a task must be 1 or more; leave it out for all of them")
    mirror = open_mirror(datasets)
    harness = Harness(suite.asked)
    found = [one for asked in suite.asked for one in harness.build(asked, mirror=mirror, limit=limit)]
    tasks = tuple(one for one in found if isinstance(one, Task))
    gaps = tuple(one for one in found if isinstance(one, Gap))
    if not tasks:
        others = f" (and {len(gaps) - 1} more)" if len(gaps) > 1 else ""
        raise Refused(f"--suite {suite.name}: no data to evaluate on: {gaps[0].name}: {gaps[0].reason}{others}")
    return Plan(suite, harness, tasks, gaps)


def evaluate(
    found: Sequence[tuple[Candidate, Reference]],
    planned: Plan,
    *,
    settings: Settings,
    kept: Path,
    told: Told | None = None,
) -> Evaluation:
    """Evaluate models on a suite, task by task; a task that was evaluated before is not repeated.

    Args:
        found: the models (see `find`); the first is compared with each of the others on the same rows.
        planned: the suite, with its data.
        settings: how.
        kept: the directory that tasks' scores are kept in, and found again.
        told: where progress goes.

    Raises:
        Failed: the harness or a model fails later; the tasks that were done are kept.
    """
    told = told or _Silent()
    one = _OneModel(planned.tasks, settings, Cache(kept), versions(), told)
    results: dict[str, dict[str, TaskScores]] = {}
    models = []
    for index, (candidate, reference) in enumerate(found, 1):
        told.stage(f"Evaluating {candidate.name}" + (f" ({index} of {len(found)})" if len(found) > 1 else ""))
        models.append(_model(candidate, reference))
        results[candidate.name] = one.scores(reference, models[-1].fingerprint)
    lines = tuple(_line(planned, name, results) for name in planned.lines)
    return Evaluation(
        suite=planned.suite.name,
        lines=lines,
        models=tuple(models),
        scores={name: _scores(planned, lines, scores) for name, scores in results.items()},
        paired=tuple(_pairs(planned, lines, results, [candidate.name for candidate, _ in found])),
        versions=versions(),
        limited=_limited(lines),
    )


def evaluate_model(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, planned: Plan, *, batch_size: int | None = None
) -> dict[str, float]:
    """A model that is in memory on every task of a plan: its scores by `LINE.METRIC`; nothing is kept."""
    with quiet():
        driven = EvaluatedModel(model, tokenizer, batch_size=batch_size)
    results = {task.name: measure(driven, task) for task in planned.tasks}
    found: dict[str, float] = {}
    for name in planned.lines:
        tasks = planned.tasks_of(name)
        if tasks:
            score = scoring.score_of([results[task.name] for task in tasks], tasks[0].metric)
            found[f"{name}.{tasks[0].metric}"] = score.value
            found |= {f"{name}.{metric}": value for metric, (value, _) in score.beside.items()}
    return found


def fingerprint(reference: Reference) -> str:
    """SHA-256 of all of a model that scores depend on: weights (see `Reference.fingerprint`), config, tokenizer."""
    config = {
        key: value
        for key, value in json.loads(reference.config.to_json_string(use_diff=False)).items()
        if key not in ("_name_or_path", "transformers_version", references.LINEAGE_KEY)
    }
    tokenizer = reference.tokenizer
    assert tokenizer is not None
    backend = getattr(tokenizer, "backend_tokenizer", None)
    text = backend.to_str() if backend is not None else sorted(tokenizer.get_vocab().items())
    ids = {name: getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad", "unk")}
    parts = [reference.fingerprint, config, text, ids, type(tokenizer).__name__]
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()


def find(candidates: Sequence[Candidate], settings: Settings) -> list[tuple[Candidate, Reference]]:
    """Find the models, without loading them.

    Raises:
        Refused: one is not there, cannot be read, or has no tokenizer.
    """
    found = []
    for candidate in candidates:
        reference = references.find(candidate.source, candidate.revision, settings.trust_remote_code)
        if reference.tokenizer is None:
            raise Refused(
                f"{candidate.source}: has no tokenizer, so no text can be given to it; put its files beside it"
            )
        found.append((candidate, reference))
    return found


@dataclass(frozen=True)
class _OneModel:
    """What the models of an evaluation have in common."""

    tasks: Sequence[Task]
    settings: Settings
    cache: Cache
    versions: dict[str, str]
    told: Told

    @cached_property
    def _letters(self) -> dict[str, float]:
        return {task.name: task.letters() for task in self.tasks}

    def scores(self, reference: Reference, model: str) -> dict[str, TaskScores]:
        """Every task's scores on a model, by its fingerprint; it is loaded only if one of them is not known yet."""
        dtype = str(self.settings.dtype or reference.torch_dtype).removeprefix("torch.")
        how = {"device": self.settings.device.type, "dtype": dtype, "batch_size": self.settings.batch_size}
        keys = {task.name: key_of(task, model, self.versions, how) for task in self.tasks}
        known = {task.name: self.cache.read(task.name, keys[task.name]) for task in self.tasks}
        scores = {name: one for name, one in known.items() if one is not None}
        if scores:
            self.told.line(f"  {len(scores)} of {len(self.tasks)} tasks are known from before")
        left = [task for task in self.tasks if task.name not in scores]
        if left:
            for name, one in self._evaluated(reference, left):
                self.cache.keep(name, keys[name], one)
                scores[name] = one
        return {task.name: scores[task.name] for task in self.tasks}

    def _evaluated(self, reference: Reference, tasks: Sequence[Task]) -> Iterator[tuple[str, TaskScores]]:
        """Load a model and evaluate it on tasks, one by one."""
        settings, letters = self.settings, self._letters
        show, done, total = self.told.work("evaluating"), 0.0, sum(letters[task.name] for task in tasks)
        model: Any = references.load(reference, settings.dtype)
        model.to(settings.device)
        assert reference.tokenizer is not None
        with quiet():
            driven = EvaluatedModel(model, reference.tokenizer, batch_size=settings.batch_size)
        for task in tasks:
            driven.progress = partial(_pass_on, show, done, letters[task.name], total)
            scores = measure(driven, task)
            done += letters[task.name]
            self.told.line(f"  {_said(scores, task)}")
            yield task.name, scores
        del driven, model
        gc.collect()
        if settings.device.type == "cuda":
            torch.cuda.empty_cache()


def _pass_on(show: Progress, before: float, size: float, total: float, share: float) -> None:
    """Tell of a share of one task as what is done of all."""
    show(int(before + share * size), int(total))


def _said(scores: TaskScores, task: Task) -> str:
    """A task's score in a line, as soon as it is known."""
    score = scoring.score_of([scores], task.metric)
    accuracy = task.metric.startswith(("acc", "exact"))
    value = f"{100 * score.value:.2f}%" if accuracy else f"{score.value:,.4g}"
    rows = task.selection or f"{task.rows:,} rows"
    cut = f", {score.cut_rows} of them cut to the context" if score.cut_rows else ""
    return f"{task.name}: {task.metric} {value} ({rows}{cut}; {scores.seconds:.1f} s)"


def _model(candidate: Candidate, reference: Reference) -> Model:
    return Model(
        name=candidate.name,
        role=candidate.role,
        source=candidate.source,
        fingerprint=fingerprint(reference),
        parameters=reference.parameters,
        layers=reference.layers,
        tokens_trained=candidate.tokens_trained if candidate.tokens_trained is not None else reference.tokens_trained,
        step=candidate.step,
        run=candidate.run,
    )


def _line(planned: Plan, name: str, results: dict[str, dict[str, TaskScores]]) -> Line:
    """A line of the table: its rows are those of the first model, which all models share."""
    tasks, gaps = planned.tasks_of(name), planned.gaps_of(name)
    more = f" (and {len(gaps) - 1} more of its tasks)" if len(gaps) > 1 else ""
    gap = f"{gaps[0].reason}{more}" if gaps else None
    if not tasks:
        shots = planned.shots_of(name)
        return Line(name, name, shots, "", "higher", (), False, 0, 0, None, None, None, gap)
    first = next(iter(results.values()))
    scores, parts = [first[task.name] for task in tasks], "subjects" if name == "mmlu" else "tasks"
    line = scoring.line_of(name, scores, tasks[0].metric, len(tasks) + len(gaps), parts)
    return replace(line, gap=gap, dataset=scores[0].dataset)


def _scores(planned: Plan, lines: Sequence[Line], scores: dict[str, TaskScores]) -> dict[str, Score]:
    return {
        line.name: scoring.score_of([scores[task.name] for task in planned.tasks_of(line.name)], line.metric)
        for line in lines
        if line.tasks
    }


def _pairs(
    planned: Plan, lines: Sequence[Line], results: dict[str, dict[str, TaskScores]], names: list[str]
) -> list[Paired]:
    """The first model against each of the others, line by line."""
    found = []
    for other in names[1:]:
        for line in lines:
            tasks = [task.name for task in planned.tasks_of(line.name)]
            first, second = ([results[name][task] for task in tasks] for name in (names[0], other))
            with contextlib.suppress(ValueError):  # fewer than two rows that both answered
                found.append(scoring.paired(first, second, line.metric, line=line.name, names=(names[0], other)))
    return found


def _limited(lines: Sequence[Line]) -> str | None:
    """What every table must say where rows were left out."""
    chosen = [f"{line.name}: {line.selection}" for line in lines if line.selection]
    return "; ".join(chosen) if chosen else None
