"""Several models on a suite: what can run runs, what ran before is not repeated, what cannot run is a gap."""

from __future__ import annotations

import contextlib
import gc
import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Protocol

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from inheritune import reference as references, scoring
from inheritune.errors import Failed, Refused
from inheritune.evaluation.caching import Cache, key_of
from inheritune.evaluation.language_model import EvaluatedModel
from inheritune.evaluation.measuring import measure, versions
from inheritune.evaluation.mirror import one_line, open_mirror
from inheritune.evaluation.suites import Suite
from inheritune.evaluation.tasks import Gap, Harness, Task, quiet
from inheritune.reference import Reference
from inheritune.scores import Evaluation, Line, Model, Paired, Reading, Role, Score, TaskScores, compared

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

    def gap_of(self, line: str) -> str | None:
        """Why a line cannot run, or only in part, and how to mend it; None: all of it can."""
        gaps = self.gaps_of(line)
        more = f" (and {len(gaps) - 1} more of its tasks)" if len(gaps) > 1 else ""
        return f"{gaps[0].reason}{more}" if gaps else None

    def gaps_in_words(self) -> list[str]:
        """What is left out and why, a text a line of the table, as far as there is any."""
        found = []
        for name in self.lines:
            gap = self.gap_of(name)
            if gap is not None:
                there, out = len(self.tasks_of(name)), len(self.gaps_of(name))
                what = f"{name}: {out} of {there + out} tasks are left out" if there else f"{name} is left out"
                found.append(f"{what}: {gap}")
        return found


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
    found: Iterable[tuple[Candidate, Reference]],
    planned: Plan,
    *,
    settings: Settings,
    kept: Path,
    total: int | None = None,
    told: Told | None = None,
) -> Evaluation:
    """Evaluate models on a suite, task by task; a task that was evaluated before is not repeated.

    Args:
        found: the models (see `find`), each asked for when the one before it is done, so that it may be made then.
            Which of them are compared on the same rows says `scores.compared`.
        planned: the suite, with its data.
        settings: how.
        kept: the directory that tasks' scores are kept in, and found again.
        total: how many models there are, as far as that is known; it is told.
        told: where progress goes.

    Raises:
        Failed: a model cannot be loaded, or no task could be evaluated on any; what was done is kept. A task that fails
            alone, be it the harness's fault or the model's, is told, and its line has no score.
    """
    told = told or _Silent()
    one = _OneModel(planned.tasks, settings, Cache(kept), versions(), told)
    results: dict[str, dict[str, TaskScores]] = {}
    failed: dict[str, dict[str, str]] = {}
    models = []
    for index, (candidate, reference) in enumerate(found, 1):
        told.stage(f"Evaluating {candidate.name}" + (f" ({index} of {total})" if (total or 1) > 1 else ""))
        models.append(_model(candidate, reference))
        results[candidate.name], failed[candidate.name] = one.scores(reference, models[-1].fingerprint)
    if not any(results.values()):
        raise Failed(next(why for reasons in failed.values() for why in reasons.values()))
    used = versions()
    lines = tuple(replace(_line(planned, name, results), harness=used["lm_eval"]) for name in planned.lines)
    return Evaluation(
        suite=planned.suite.name,
        lines=lines,
        models=tuple(models),
        scores={name: _scores(lines, scores) for name, scores in results.items()},
        paired=tuple(_pairs(lines, results, models)),
        versions=used,
        failed={name: reasons for name, reasons in failed.items() if reasons},
        limited=_limited(lines),
    )


def evaluate_model(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, planned: Plan, *, batch_size: int | None = None
) -> Reading:
    """A model that is in memory on every task of a plan; nothing is kept.

    Raises:
        Failed: no task could be evaluated. One that fails alone leaves a gap.
    """
    with quiet():
        driven = EvaluatedModel(model, tokenizer, batch_size=batch_size)
    results: dict[str, TaskScores] = {}
    failed: dict[str, Failed] = {}
    for task in planned.tasks:
        try:
            results[task.name] = measure(driven, task)
        except Failed as error:
            failed.setdefault(task.line, error)
    if not results:
        raise next(iter(failed.values()))
    lines = tuple(_line(planned, name, {"": results}) for name in planned.lines)
    lines = tuple(replace(line, gap=str(failed[line.name])) if line.name in failed else line for line in lines)
    return Reading(lines, _scores(lines, results))


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
    generation = reference.path / "generation_config.json"  # what texts are written by, where a task asks for them
    parts = [reference.fingerprint, config, text, ids, type(tokenizer).__name__, tokenizer.model_max_length]
    parts += [generation.read_text(encoding="utf-8")] if generation.is_file() else []
    if reference.trust_remote_code:
        parts += [path.read_text(encoding="utf-8") for path in sorted(reference.path.glob("*.py"))]
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

    def scores(self, reference: Reference, model: str) -> tuple[dict[str, TaskScores], dict[str, str]]:
        """Every task's scores on a model, by its fingerprint, and why tasks have none.

        The model is loaded only if one of them is not known yet.
        """
        dtype = str(self.settings.dtype or reference.torch_dtype).removeprefix("torch.")
        how = {"device": self.settings.device.type, "dtype": dtype, "batch_size": self.settings.batch_size}
        keys = {task.name: key_of(task, model, self.versions, how) for task in self.tasks}
        known = {task.name: self.cache.read(task.name, keys[task.name]) for task in self.tasks}
        scores = {name: one for name, one in known.items() if one is not None}
        if scores:
            self.told.line(f"  {len(scores)} of {len(self.tasks)} tasks are known from before")
        left, failed = [task for task in self.tasks if task.name not in scores], {}
        for task, found in self._evaluated(reference, left) if left else ():
            if isinstance(found, TaskScores):
                self.cache.keep(task.name, keys[task.name], found)
                scores[task.name] = found
                self.told.line(f"  {_said(found, task)}")
            else:
                failed[task.name] = str(found)
                self.told.line(f"  {found}; it is left out")
        return {task.name: scores[task.name] for task in self.tasks if task.name in scores}, failed

    def _evaluated(self, reference: Reference, tasks: Sequence[Task]) -> Iterator[tuple[Task, TaskScores | Failed]]:
        """Load a model and evaluate it on tasks, one by one.

        Raises:
            Failed: it cannot be loaded, or has no room on the device.
        """
        settings, letters = self.settings, self._letters
        show, done, total = self.told.work("evaluating"), 0.0, sum(letters[task.name] for task in tasks)
        model: Any = references.load(reference, settings.dtype)
        try:
            model.to(settings.device)
        except RuntimeError as error:  # out of memory is one
            what = f"{reference.source}: cannot be put on {settings.device}: {one_line(error)}"
            raise Failed(f"{what}; give --device cpu, or --dtype bfloat16") from error
        assert reference.tokenizer is not None
        with quiet():
            driven = EvaluatedModel(model, reference.tokenizer, batch_size=settings.batch_size)
        for task in tasks:
            driven.progress = partial(_pass_on, show, done, letters[task.name], total)
            try:
                yield task, measure(driven, task)
            except Failed as error:
                yield task, error
            done += letters[task.name]
        del driven, model
        gc.collect()
        if settings.device.type == "cuda":
            torch.cuda.empty_cache()


def _pass_on(show: Progress, before: float, size: float, total: float, share: float) -> None:
    """Tell of a share of one task as what is done of all."""
    show(int(before + share * size), int(total))


def _said(scores: TaskScores, task: Task) -> str:
    """A task's score in a line, as soon as it is known."""
    metric = _metric([task], [scores])
    score = scoring.score_of([scores], metric)
    value = f"{100 * score.value:.2f}%" if metric.startswith(("acc", "exact")) else f"{score.value:,.4g}"
    rows = task.selection or f"{task.rows:,} rows"
    cut = f", {score.cut_rows} of them cut to the context" if score.cut_rows else ""
    return f"{task.name}: {metric} {value} ({rows}{cut}; {scores.seconds:.1f} s)"


def _metric(tasks: Sequence[Task], scores: Sequence[TaskScores]) -> str:
    """The metric that counts; where a task's code gives others than its definition names, the first that it gives."""
    named = tasks[0].metric
    return named if all(named in one.metrics for one in scores) else next(iter(scores[0].metrics))


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
    tasks, gaps, gap = planned.tasks_of(name), planned.gaps_of(name), planned.gap_of(name)
    if not tasks:
        shots = planned.shots_of(name)
        return Line(name, name, shots, "", "higher", (), False, 0, 0, None, None, None, gap)
    known = [scores for scores in results.values() if all(task.name in scores for task in tasks)]
    if not known:
        return Line(name, name, tasks[0].shots, "", "higher", (), False, 0, 0, None, None, None, gap or "it failed")
    scores, parts = [known[0][task.name] for task in tasks], "subjects" if name == "mmlu" else "tasks"
    line = scoring.line_of(name, scores, _metric(tasks, scores), len(tasks) + len(gaps), parts)
    return replace(line, gap=gap, dataset=_dataset(scores), changed=scores[0].changed)


def _dataset(scores: Sequence[TaskScores]) -> dict[str, Any]:
    """The data of a line."""
    if len(scores) == 1:
        return scores[0].dataset
    fingerprints = [str(one.dataset["fingerprint"]) for one in scores]
    digest = hashlib.sha256(" ".join(fingerprints).encode()).hexdigest()
    return scores[0].dataset | {"name": None, "fingerprint": digest}


def _scores(lines: Sequence[Line], scores: dict[str, TaskScores]) -> dict[str, Score]:
    """A model's scores on the lines all of whose tasks it has."""
    return {
        line.name: scoring.score_of([scores[name] for name in line.tasks], line.metric)
        for line in lines
        if line.tasks and all(name in scores and line.metric in scores[name].metrics for name in line.tasks)
    }


def _pairs(lines: Sequence[Line], results: dict[str, dict[str, TaskScores]], models: Sequence[Model]) -> list[Paired]:
    """The models that are compared, pair by pair, on the lines all of whose tasks both have."""
    found = []
    for names in ((first.name, second.name) for first, second in compared(models)):
        for line in lines:
            if any(task not in results[name] for name in names for task in line.tasks):
                continue
            first, second = ([results[name][task] for task in line.tasks] for name in names)
            with contextlib.suppress(ValueError):  # fewer than two rows that both answered
                found.append(scoring.paired(first, second, line.metric, line=line.name, names=names))
    return found


def _limited(lines: Sequence[Line]) -> str | None:
    """What every table must say where rows were left out."""
    chosen = [f"{line.name}: {line.selection}" for line in lines if line.selection]
    return "; ".join(chosen) if chosen else None
