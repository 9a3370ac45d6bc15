"""Several runs beside each other: which is ahead and by how much, their targets in one table and one figure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from inheritune.comparison import resampled_means
from inheritune.errors import Refused
from inheritune.report.axes import Scales
from inheritune.report.content import Limits, RunRecords, read_run, run_content
from inheritune.report.curves import Panel, panels_of
from inheritune.report.evaluation_numbers import short_number
from inheritune.report.figures import figures_of, numbers_behind
from inheritune.report.numbers import NOT_APPLICABLE, decimals, number_of, percent
from inheritune.report.records import grows
from inheritune.report.sections import evaluation_of
from inheritune.report.sheets import Sheet
from inheritune.report.table import Row, by_set, colour_names, dict_of, judging_set, measured_rows, training_of
from inheritune.scores import Evaluation

_MOST_SETTINGS = 60
_MOST_CHARACTERS = 60


def labels_of(runs: Sequence[RunRecords]) -> list[str]:
    """What each run is called among the others: its name, its directory's where names are the same, else its path."""
    paths = [one.run.resolve() for one in runs]
    choices = [[one.name for one in runs], [path.name for path in paths], [str(path) for path in paths]]
    return next((labels for labels in choices if len(set(labels)) == len(labels)), choices[-1])


def names_of(runs: Sequence[RunRecords]) -> list[str]:
    """What each run is called in figures, whatever its recipe calls it: a run may be called `random`."""
    return [f"run {number}" for number in range(1, len(runs) + 1)]


def read_runs(directories: Sequence[Path]) -> list[RunRecords]:
    """The records of several runs.

    Raises:
        Refused: a directory is none, or is named twice.
    """
    known: set[Path] = set()
    for directory in directories:
        if directory.resolve() in known:
            raise Refused(f"{directory}: named twice; name every run once")
        known.add(directory.resolve())
    return [read_run(directory) for directory in directories]


def same_text(runs: Sequence[RunRecords]) -> bool:
    """Whether the runs were judged on the same text, in as many tokens, so that losses a token can be compared."""
    judged = [_judged_on(one) for one in runs if _loss(one) is not None]
    return len(set(judged)) == 1 and judged[0] != (None, None, None)


def _judged_on(one: RunRecords) -> tuple[Any, Any, Any]:
    size = dict_of(dict_of(one.result.get("sets")).get(judging_set(one.result)))
    documents, tokens, size_bytes = (number_of(size.get(key)) for key in ("documents", "tokens", "bytes"))
    return documents, tokens, size_bytes


def _target(one: RunRecords) -> dict[str, Any]:
    return dict_of(one.result.get("target"))


def _loss(one: RunRecords) -> float | None:
    """The target's loss on the set that the run is judged by, nats a token."""
    judge = judging_set(one.result)
    return number_of(by_set(_target(one), "validation_losses", judge).get(judge))


def verdict(runs: Sequence[RunRecords], labels: Sequence[str]) -> str:
    """In one sentence which run is ahead, by how much, and how certain that is."""
    ranked = sorted(
        ((loss, index) for index, one in enumerate(runs) if (loss := _loss(one)) is not None),
    )
    if not ranked:
        return f"None of {len(runs)} runs has a loss to compare yet."
    if len(ranked) == 1:
        return f"Of {len(runs)} runs only {labels[ranked[0][1]]} has a loss yet: {ranked[0][0]:.3f} nats a token."
    if not same_text(runs):
        return "These runs were judged on different text, so their losses cannot be compared; bits a byte come closest."
    (loss, best), (_, second) = ranked[:2]
    ahead = f"{labels[best]} has the lowest loss of {len(ranked)} runs, {loss:.3f} nats a token"
    difference = _difference(runs[best], runs[second])
    if difference is None:
        return f"{ahead}; {labels[second]} follows with {ranked[1][0]:.3f}, by what margin was not recorded."
    value, low, high, documents = difference
    if low <= 0:
        return (
            f"{ahead}, but {documents:,} documents do not tell it apart from {labels[second]}, {value:.3f} above it "
            f"(95% interval {low:.3f} to {high:.3f})."
        )
    return (
        f"{ahead}, {value:.3f} below {labels[second]} (95% interval {low:.3f} to {high:.3f}, paired over "
        f"{documents:,} documents)."
    )


def _difference(best: RunRecords, other: RunRecords) -> tuple[float, float, float, int] | None:
    """Other less best in nats a token, its 95% interval, and over how many documents; None where not paired."""
    one, two = best.lines.documents(_round(best)), other.lines.documents(_round(other))
    if one is None or two is None or not np.array_equal(one[1], two[1]) or len(one[1]) < 2:
        return None
    tokens = one[1]
    drawn_one, drawn_two = resampled_means([one[0], two[0]], tokens)
    low, high = (float(x) for x in np.percentile(drawn_two - drawn_one, [2.5, 97.5]))
    return float((two[0].sum() - one[0].sum()) / tokens.sum()), low, high, len(tokens)


def _round(one: RunRecords) -> str:
    """The target's name in the losses by document; of a growth its round's."""
    return f"round-{_target(one).get('layers')}" if grows(one.run, one.result) else "target"


def table(runs: Sequence[RunRecords], labels: Sequence[str]) -> list[Row]:
    """The targets as columns; below them what each was held against."""
    judge = judging_set(runs[0].result)
    spent = [training_of("target", one.result, one.ledger).get("seconds") for one in runs]
    starts = [dict_of(dict_of(one.result.get("before")).get("target")).get(judging_set(one.result)) for one in runs]
    rows = measured_rows(tuple(labels), [_target(one) for one in runs], judge, starts, spent)
    reference = [dict_of(one.result.get("reference")) for one in runs]
    random = [dict_of(dict_of(one.result.get("controls")).get("random")) for one in runs]
    for title, models in (("Reference’s loss", reference), ("Random init’s loss", random)):
        losses = [by_set(model, "validation_losses", judge).get(judge) for model in models]
        rows.append(Row(f"{title}, {judge}", "", tuple(map(decimals, losses))))
    shares = [dict_of(one.result.get("share")) for one in runs]
    closed = [percent(share.get("value")) if share.get("shown") else NOT_APPLICABLE for share in shares]
    rows.append(Row("Share of the gap closed", "", tuple(closed)))
    return [*rows, Row("State", "", tuple(str(one.result.get("state") or "unknown") for one in runs))]


def panels(runs: Sequence[RunRecords], labels: Sequence[str]) -> tuple[list[Panel], Scales]:
    """The targets' curves, a line a run, and where their tokens lie on the other axes.

    The reference's line is drawn where all runs that have one have the same.
    """
    names = names_of(runs)
    metrics = {name: one.metrics.get("target", []) for name, one in zip(names, runs, strict=True)}
    judges = {judging_set(one.result) for one in runs}
    result = {"share": {"set": judges.pop()}} if len(judges) == 1 else {}
    references = [dict_of(one.result.get("reference")) for one in runs if one.result.get("reference")]
    if references and all(_losses(one) == _losses(references[0]) for one in references):
        result["reference"] = references[0]
    found = panels_of(result, metrics)
    titles = dict(zip(names, labels, strict=True))
    scales: dict[str, dict[str, Any]] = {}
    for name, one in zip(names, runs, strict=True):
        for unit, models in one.scales.items():
            if "target" in models:
                scales.setdefault(unit, {})[name] = models["target"]
    # Training losses scatter by more than runs differ.
    return [replace(panel, titles=titles, training={}) for panel in found], scales


def _losses(model: Mapping[str, Any]) -> Any:
    return model.get("validation_losses")


def settings(runs: Sequence[RunRecords], labels: Sequence[str]) -> Sheet | None:
    """The recipe's keys that differ, a row a key; None where none does, or fewer than two runs have a recipe."""
    recipes = [_loaded(one.recipe) for one in runs]
    known = [recipe for recipe in recipes if recipe]
    keys = [key for key in dict.fromkeys(key for recipe in recipes for key in recipe) if key != "name"]
    rows = []
    for key in keys:
        values = tuple(_short(recipe[key]) if key in recipe else NOT_APPLICABLE for recipe in recipes)
        if len({str(recipe.get(key)) for recipe in known}) > 1:
            rows.append((key, *values))
    if not rows:
        return None
    notes = (
        ("A dash: that recipe has no such key, or the run no recipe.",)
        if any(NOT_APPLICABLE in row for row in rows)
        else ()
    )
    if len(rows) > _MOST_SETTINGS:
        notes = (*notes, f"{len(rows) - _MOST_SETTINGS} more differ; the recipes have them.")
    return Sheet("Where the recipes differ", ("Key", *labels), tuple(rows[:_MOST_SETTINGS]), 1 + len(labels), notes)


def _loaded(recipe: str) -> dict[str, Any]:
    try:
        return dict(_flat(yaml.safe_load(recipe)))
    except (yaml.YAMLError, ValueError, TypeError, RecursionError):  # an alias may stand within what it names
        return {}


def _flat(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, one in value.items() if isinstance(value, dict) else ():
        name = f"{prefix}{key}"
        if isinstance(one, dict) and one:
            yield from _flat(one, f"{name}.")
        else:
            yield name, one


def _short(value: Any) -> str:
    text = {True: "true", False: "false", None: "null"}.get(value) if isinstance(value, bool | None) else None
    text = text or str(value)
    return text if len(text) <= _MOST_CHARACTERS else f"{text[: _MOST_CHARACTERS - 1]}…"


def scores(runs: Sequence[RunRecords], labels: Sequence[str]) -> Sheet | None:
    """The targets' scores, a row a task that was asked in the same way; None where nothing was evaluated."""
    found = {label: evaluation_of(one.run, {}) for label, one in zip(labels, runs, strict=True)}
    rows: dict[tuple[Any, ...], dict[str, str]] = {}
    for label, evaluation in found.items():
        for key, cell in _target_scores(evaluation) if evaluation is not None else ():
            rows.setdefault(key, {})[label] = cell
    if not rows:
        return None
    table_of = []
    for (task, metric, shots, seen, of, chance, _selection, _data), cells in rows.items():
        counted = f"{seen:,}" if seen == of else f"{seen:,}/{of:,}"
        known = (cells.get(label, NOT_APPLICABLE) for label in labels)
        table_of.append((task, metric, str(shots), counted, short_number(metric, chance), *known))
    header = ("Task", "Metric", "Shots", "Rows", "Chance", *labels)
    note = "± one standard error over rows; accuracies in percent. A dash: not evaluated, or asked in another way."
    return Sheet("Scores of the targets", header, tuple(table_of), 2, (note,))


def _target_scores(evaluation: Evaluation) -> Iterator[tuple[tuple[Any, ...], str]]:
    target = next((model.name for model in evaluation.models if model.role == "target"), None)
    of_target = evaluation.scores.get(target, {}) if target is not None else {}
    for line in evaluation.lines:
        if (score := of_target.get(line.name)) is not None:
            rows = (line.rows, line.rows_in_split, line.chance, line.selection, str(line.dataset.get("fingerprint")))
            yield (
                (line.name, line.metric, line.shots, *rows),
                short_number(line.metric, score.value, score.standard_error),
            )


def runs_content(runs: Sequence[RunRecords], limits: Limits) -> dict[str, Any]:
    """What the template of several runs shows.

    Args:
        runs: at least two.
        limits: what all runs together may take.
    """
    labels = labels_of(runs)
    drawn, scales = panels(runs, labels)
    share = len(runs)
    units = ("tokens",) if limits.units != () else ()
    each = replace(limits, characters=limits.characters // share, tensors=limits.tensors // share, units=units)
    found = [sheet for sheet in (settings(runs, labels), scores(runs, labels)) if sheet is not None]
    header, *rows = table(runs, labels)
    return {
        "labels": labels,
        "verdict": verdict(runs, labels),
        "comparable": same_text(runs),
        "header": header,
        "colours": [*colour_names(names_of(runs)).values()],
        "rows": rows,
        "figures": figures_of(drawn, scales, "all-", limits.units),
        "numbers": numbers_behind(drawn, scales),
        "without": [
            label
            for name, label in zip(names_of(runs), labels, strict=True)
            if drawn and not any(name in panel.lines for panel in drawn)
        ],
        "above": [(panel.name, panel.above) for panel in drawn if panel.above],
        "sheets": {sheet.title: sheet for sheet in found},
        "runs": [run_content(one, each, f"r{number}-") for number, one in enumerate(runs, 1)],
    }
