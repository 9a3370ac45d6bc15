"""One task on one model: the harness evaluates it, and every row is kept."""

from __future__ import annotations

import importlib.metadata
import platform
import time
from collections.abc import Mapping
from typing import Any, cast

import torch
from lm_eval.evaluator import evaluate as harness_evaluate

from inheritune.errors import Failed, Refused
from inheritune.evaluation.language_model import EvaluatedModel
from inheritune.evaluation.mirror import one_line
from inheritune.evaluation.tasks import Task, quiet
from inheritune.scores import Better, Row, TaskScores
from inheritune.scoring import LIKELIHOODS

_NO_FILTER = "none"


def measure(model: EvaluatedModel, task: Task) -> TaskScores:
    """Evaluate a task on a model, by the harness.

    Args:
        model: the model.
        task: the task, with its data.

    Raises:
        Failed: the harness or the model cannot do it.
    """
    started = time.monotonic()
    try:
        with quiet():
            task.seed()
            model.cut.clear()
            chosen = {task.name: list(task.selected)} if task.selected is not None else None
            # no bootstrap of its own: it starts processes, and the errors are computed from the rows (see `scoring`)
            found = harness_evaluate(model, {"tasks": {task.name: task.built}}, samples=chosen, bootstrap_iters=0)
            assert found is not None
            return _scores(model, task, found, started)
    except Refused:
        raise
    except Exception as error:  # a task's own code, and the harness's, may raise anything
        raise Failed(f"{task.name}: it could not be evaluated: {one_line(error)}") from error


def _scores(model: EvaluatedModel, task: Task, found: Mapping[str, Any], started: float) -> TaskScores:
    """What the harness gave, as it is kept."""
    device = cast("torch.device", model.device)
    return TaskScores(
        task=task.name,
        version=task.version,
        shots=task.shots,
        metrics=_aggregates(found["results"][task.name]),
        better=_directions(found["higher_is_better"][task.name]),
        rows=_rows(task, found["samples"][task.name], model.cut),
        rows_in_split=task.rows_in_split,
        selection=task.selection,
        settings={
            "batch_size": int(model.batch_size_per_gpu),
            "dtype": str(model.model.dtype).removeprefix("torch."),
            "device": device.type,
            "context": int(model.max_length),
            "prefix_token": model.prefix,
            "add_bos_token": model.add_bos_token,
        },
        dataset=task.dataset,
        changed=task.changed,
        seconds=time.monotonic() - started,
    )


def versions() -> dict[str, str]:
    """The versions that scores may depend on."""
    names = ("inheritune", "lm_eval", "datasets", "transformers", "tokenizers", "torch")
    return {name: importlib.metadata.version(name) for name in names} | {"python": platform.python_version()}


def _aggregates(results: Mapping[str, Any]) -> dict[str, float]:
    """The harness's `acc,none` and the like, as `acc`; of a metric under several filters all but one keep theirs."""
    found: dict[str, float] = {}
    for key, value in results.items():
        metric, comma, filter_ = key.partition(",")
        if comma and not metric.endswith("_stderr") and isinstance(value, int | float):
            found[metric if filter_ == _NO_FILTER or metric not in found else key] = float(value)
    return found


def _directions(higher: Mapping[str, bool | None]) -> dict[str, Better]:
    return {metric: "lower" if better is False else "higher" for metric, better in higher.items()}


def _rows(task: Task, samples: list[dict[str, Any]], cut: set[tuple[str, int]]) -> tuple[Row, ...]:
    """Every row as the harness logged it, in order; of several filters the first."""
    first = samples[0]["filter"] if samples else None
    logged = sorted((one for one in samples if one["filter"] == first), key=lambda one: int(one["doc_id"]))
    order = {row: index for index, row in enumerate(task.selected)} if task.selected is not None else None
    rows = []
    for one in logged:
        number = int(one["doc_id"])
        gold, choices, chance = _guess(task.built, one["doc"])
        numbers = {metric: _number(metric, one.get(metric)) for metric in one["metrics"]}
        rows.append(
            Row(
                row=number,
                values={metric: pair[0] for metric, pair in numbers.items() if pair is not None},
                units={metric: pair[1] for metric, pair in numbers.items() if pair is not None and pair[1] is not None},
                gold=gold,
                choices=choices,
                chance=chance,
                cut=(task.name, number if order is None else order[number]) in cut,
                fingerprint=str(one["doc_hash"])[:16],
            )
        )
    return tuple(rows)


def _number(metric: str, value: Any) -> tuple[float, float | None] | None:
    """A row's value, and what a log-likelihood is spread over; None for what is no number.

    Of other metrics a pair is what is right and what was said, for a whole task's F1 or BLEU: no value of a row.
    """
    try:
        if isinstance(value, tuple | list):
            return (float(value[0]), float(value[1])) if metric in LIKELIHOODS and len(value) == 2 else None
        return float(value), None
    except (TypeError, ValueError):
        return None


def _guess(built: Any, doc: Any) -> tuple[int | None, int | None, float | None]:
    """The right choice of a row, how many there are, and what a guess at random is worth."""
    if built.OUTPUT_TYPE == "loglikelihood":  # a continuation out of all there are
        return None, None, 0.0
    if built.OUTPUT_TYPE != "multiple_choice":
        return None, None, None
    choices = built.doc_to_choice(doc)
    target = built.doc_to_text(doc) if built.multiple_input else built.doc_to_target(doc)
    if built.config.process_results is not None:
        # truthfulqa_mc2: the share of probability on true answers; equal ones get the share of true answers
        labels = doc.get("mc2_targets", {}).get("labels") if isinstance(doc, Mapping) else None
        return None, len(choices), sum(labels) / len(labels) if labels else None
    if isinstance(target, str):
        target = choices.index(target) if target in choices else None
    if isinstance(target, list):
        return None, len(choices), len(target) / len(choices)
    # where the definition itself puts the right choice first, always choosing the first is no policy
    placed = isinstance(built.config.doc_to_target, int)
    return (None if placed or target is None else int(target)), len(choices), 1 / len(choices)
