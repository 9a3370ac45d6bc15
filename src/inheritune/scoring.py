"""From a task's rows to what a table shows: standard errors, chance, majority, groups, paired tests. No torch.

Every metric here is a ratio of sums over rows, or a function of one: of an accuracy the right rows over the rows, of a
perplexity the log-likelihood over what it is spread over (words, bytes, rows). Its standard error is that of a ratio
estimator (Cochran 1977, section 2.11), which for a mean is the sample's deviation over the root of n; a function of it
by the delta method. A metric that is no such ratio (F1, a correlation) is told by its rows not giving the harness's
aggregate (`agrees`), and has no standard error, rather than a wrong one.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from inheritune.scores import Better, Line, Paired, Row, Score, TaskScores

Values = npt.NDArray[np.float64]

PERPLEXITIES = ("perplexity", "word_perplexity", "byte_perplexity")
LIKELIHOODS = (*PERPLEXITIES, "bits_per_byte")
"""Metrics whose rows are log-likelihoods in nats."""
ERRORS = 2.0
"""Standard errors within which two numbers are not told apart."""
RESAMPLES = 2000
_DRAWN_AT_ONCE = 2**21
"""Counts of resampled rows that are held in memory together: 16 MiB."""


def value_of(rows: Sequence[Row], metric: str) -> float:
    """A metric computed from rows alone, as the harness's own aggregation would.

    Raises:
        ValueError: there are no rows, one lacks the metric, or a log-likelihood is spread over nothing.
    """
    return float(_shown(_ratio(*_terms(rows, metric)), metric))


def standard_error(rows: Sequence[Row], metric: str) -> float | None:
    """Of `value_of`, over rows drawn at random, in the metric's unit.

    None where there are fewer than two rows, or the value is not finite.

    Raises:
        ValueError: as `value_of`.
    """
    sums, units = _terms(rows, metric)
    ratio = _ratio(sums, units)
    shown = float(_shown(ratio, metric))
    if len(rows) < 2 or not math.isfinite(shown):
        return None
    residuals = sums - ratio * units
    # With equal units this is the residuals' sample deviation over the root of n.
    error = math.sqrt(len(rows) / (len(rows) - 1) * float(residuals @ residuals)) / float(units.sum())
    if metric in PERPLEXITIES:
        return error * shown
    return error / math.log(2) if metric == "bits_per_byte" else error


def _terms(rows: Sequence[Row], metric: str) -> tuple[Values, Values]:
    """What is summed, and what the sum is divided by, (rows,) each."""
    if not rows:
        raise ValueError(f"{metric}: there are no rows")
    try:
        sums = np.array([row.values[metric] for row in rows], dtype=np.float64)
    except KeyError:
        raise ValueError(f"{metric}: a row has no such value; there are {', '.join(rows[0].values)}") from None
    if metric not in LIKELIHOODS:
        return sums, np.ones(len(rows))
    units = np.array([row.units.get(metric, 1.0) for row in rows], dtype=np.float64)
    if not units.sum() > 0:
        raise ValueError(f"{metric}: the log-likelihood is spread over nothing")
    return -sums, units


def _ratio(sums: Values, units: Values) -> float:
    return float(sums.sum() / units.sum())


def _shown(ratio: float | Values, metric: str) -> Values:
    """A ratio of sums in the metric's unit; of a loss beyond what a float holds the perplexity is infinite."""
    if metric in PERPLEXITIES:
        with np.errstate(over="ignore"):
            return np.asarray(np.exp(ratio))
    return np.asarray(ratio) / (math.log(2) if metric == "bits_per_byte" else 1.0)


def agrees(task: TaskScores, metric: str) -> bool:
    """Whether a task's rows give the harness's aggregate of a metric, but for rounding."""
    try:
        found = value_of(task.rows, metric)
    except ValueError:
        return False
    return math.isclose(found, task.metrics[metric], rel_tol=1e-6, abs_tol=1e-9)


def chance_of(rows: Sequence[Row]) -> float | None:
    """What guessing at random scores; None unless every row can be guessed."""
    known = [row.chance for row in rows if row.chance is not None]
    return math.fsum(known) / len(rows) if rows and len(known) == len(rows) else None


def majority_of(rows: Sequence[Row]) -> float | None:
    """What the best constant answer scores, such as always the first choice; None unless every row has a right one.

    Where rows differ in how many choices they have, an answer that a row lacks is wrong there.
    """
    golds = [row.gold for row in rows if row.gold is not None]
    return max(Counter(golds).values()) / len(rows) if rows and len(golds) == len(rows) else None


def rescaled(value: float, chance: float | None) -> float | None:
    """The value on a scale where chance is 0 and everything right is 1; None without a chance level below 1."""
    return None if chance is None or chance >= 1 else (value - chance) / (1 - chance)


def near(value: float, error: float | None, chance: float | None, majority: float | None, rows: int) -> tuple[str, ...]:
    """Which of `chance` and `majority` a value is below, or no further from than two standard errors.

    Both levels are taken as exact: they belong to these rows. Without a standard error a value is told apart from
    nothing. Where all rows came out alike, as two right ones of two do, there is a standard error of 0 that says
    nothing; then it is the one that the level itself would have on so many rows.
    """

    def margin(level: float) -> float:
        if error is None:
            return math.inf
        return ERRORS * (error or math.sqrt(max(0.0, level * (1 - level)) / rows))

    levels = {"chance": chance, "majority": majority}
    return tuple(name for name, level in levels.items() if level is not None and value <= level + margin(level))


def score_of(tasks: Sequence[TaskScores], metric: str) -> Score:
    """What a model reached on a task, or on several as one.

    The value of one task is the harness's own, to the last digit. Of several every row counts the same, as the harness
    has it for MMLU, and the rows are one sample. (The harness's standard error of a group leaves out how much tasks
    differ in difficulty, so it is a little smaller.)

    Args:
        tasks: of one model.
        metric: as the harness has it.

    Raises:
        ValueError: there are no tasks, or they do not make a line: see `line_of`.
    """
    _require_a_line(tasks, metric)
    value, error = _measured(tasks, metric)
    chance, majority = _levels(tasks, metric)
    others = [name for name in tasks[0].metrics if name != metric and all(name in task.metrics for task in tasks)]
    return Score(
        value=value,
        standard_error=error,
        rescaled=rescaled(value, chance),
        near=near(value, error, chance, majority, sum(len(task.rows) for task in tasks)),
        cut_rows=sum(task.cut_rows for task in tasks),
        beside={name: _measured(tasks, name) for name in others},
        seconds=math.fsum(task.seconds for task in tasks),
        settings=_shared(task.settings for task in tasks),
    )


def line_of(name: str, tasks: Sequence[TaskScores], metric: str, of: int | None = None, parts: str = "tasks") -> Line:
    """The table's line for a task, or for several as one.

    Args:
        name: as it was asked for.
        tasks: of one model; another model's give the same line.
        metric: the one that is shown.
        of: how many tasks the group has; None: these are all.
        parts: what its tasks are called, `subjects`.

    Raises:
        ValueError: there are no tasks, one comes twice or lacks the metric, or they differ in shots or in which
            direction is better.
    """
    _require_a_line(tasks, metric)
    chance, majority = _levels(tasks, metric)
    everything = of is None or len(tasks) == of
    rows, in_split = sum(len(task.rows) for task in tasks), sum(task.rows_in_split for task in tasks)
    selection = _selection(tasks)
    return Line(
        name=name,
        title=name if everything else f"{name}, {len(tasks)} of {of} {parts}",
        shots=tasks[0].shots,
        metric=metric,
        better=_better(tasks[0], metric),
        tasks=tuple(task.task for task in tasks),
        whole=everything and selection is None and rows == in_split,
        rows=rows,
        rows_in_split=in_split,
        selection=selection,
        chance=chance,
        majority=majority,
    )


def _require_a_line(tasks: Sequence[TaskScores], metric: str) -> None:
    if not tasks:
        raise ValueError("a line needs at least one task")
    names = [task.task for task in tasks]
    if len(set(names)) < len(names):
        raise ValueError(
            f"a task comes twice: {', '.join(sorted(name for name, n in Counter(names).items() if n > 1))}"
        )
    for task in tasks:
        if metric not in task.metrics:
            raise ValueError(f"{task.task} has no metric {metric!r}; it has {', '.join(task.metrics)}")
        if task.shots != tasks[0].shots:
            raise ValueError(f"{task.task} has {task.shots} shots, {names[0]} has {tasks[0].shots}: no line of both")
        if _better(task, metric) != _better(tasks[0], metric):
            raise ValueError(f"{task.task} and {names[0]} differ in which {metric} is better")


def _better(task: TaskScores, metric: str) -> Better:
    return task.better.get(metric, "lower" if metric in LIKELIHOODS else "higher")


def _pooled(tasks: Sequence[TaskScores]) -> list[Row]:
    return [row for task in tasks for row in task.rows]


def _measured(tasks: Sequence[TaskScores], metric: str) -> tuple[float, float | None]:
    """A metric's value and its standard error."""
    ratio = all(agrees(task, metric) for task in tasks)
    error = standard_error(_pooled(tasks), metric) if ratio else None
    if len(tasks) == 1:
        return tasks[0].metrics[metric], error
    if ratio and metric in LIKELIHOODS:
        return value_of(_pooled(tasks), metric), error
    sizes = [len(task.rows) for task in tasks]
    return sum(task.metrics[metric] * size for task, size in zip(tasks, sizes, strict=True)) / sum(sizes), error


def _levels(tasks: Sequence[TaskScores], metric: str) -> tuple[float | None, float | None]:
    """Chance and majority, which are levels of an accuracy alone: of a mean of what is right."""
    accuracy = metric == "acc" or metric.startswith("acc_")
    if not accuracy or not all(agrees(task, metric) for task in tasks):
        return None, None
    rows = _pooled(tasks)
    return chance_of(rows), majority_of(rows)


def _selection(tasks: Sequence[TaskScores]) -> str | None:
    """How rows were chosen; None where all were taken."""
    found = {task.selection for task in tasks}
    if found == {None}:
        return None
    if len(tasks) == 1:
        return tasks[0].selection
    # of a group's tasks, which differ in size, one text: `the first 20 rows of each task`
    texts = {re.sub(r" of [\d,]+ rows", " rows", text) for text in found if text is not None}
    if len(texts) == 1:
        return f"{'at most ' if None in found else ''}{texts.pop()} of each task"
    return "; ".join(f"{task.task}: {task.selection or 'all rows'}" for task in tasks)


def _shared(settings: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Settings of several tasks as one: where they differ, the list of what there was, in order."""
    found: dict[str, list[Any]] = {}
    for mapping in settings:
        for name, value in mapping.items():
            seen = found.setdefault(name, [])
            if value not in seen:
                seen.append(value)
    return {name: values[0] if len(values) == 1 else values for name, values in found.items()}


def paired(
    first: Sequence[TaskScores],
    second: Sequence[TaskScores],
    metric: str,
    *,
    line: str,
    names: tuple[str, str],
    seed: int = 0,
) -> Paired:
    """Two models' difference on the rows that both answered: same task, same number, same content.

    Args:
        first: the first model's tasks of the line.
        second: the second's.
        metric: the one that is compared.
        line: the line's name.
        names: of the models.
        seed: of the bootstrap's draws.

    Raises:
        ValueError: shots differ, a row lacks the metric, fewer than two rows are the same, or the difference is not
            finite.
    """
    ours, theirs = _matched(first, second, names)
    terms = (*_terms(ours, metric), *_terms(theirs, metric))
    difference = value_of(ours, metric) - value_of(theirs, metric)
    if not math.isfinite(difference):
        raise ValueError(f"{line}: the difference between {names[0]} and {names[1]} is not finite")
    drawn = _resampled_differences(np.stack(terms, axis=1), metric, seed)
    low, high = (float(x) for x in np.percentile(drawn, [2.5, 97.5]))
    found = Paired(line, *names, rows=len(ours), difference=difference, low=low, high=high)
    if metric in LIKELIHOODS or not np.isin([terms[0], terms[2]], [0.0, 1.0]).all():
        return found
    first_only, second_only = int(np.sum(terms[0] > terms[2])), int(np.sum(terms[0] < terms[2]))
    p_value = mcnemar(first_only, second_only)
    return replace(found, first_only=first_only, second_only=second_only, p_value=p_value)


def _matched(
    first: Sequence[TaskScores], second: Sequence[TaskScores], names: tuple[str, str]
) -> tuple[list[Row], list[Row]]:
    """The rows that two models share, in the first's order."""
    shots = {task.task: task.shots for task in first}
    for task in second:
        if shots.get(task.task, task.shots) != task.shots:
            raise ValueError(f"{task.task}: {names[0]} had {shots[task.task]} shots, {names[1]} {task.shots}")
    theirs = {(task.task, row.row, row.fingerprint): row for task in second for row in task.rows}
    keyed = [((task.task, row.row, row.fingerprint), row) for task in first for row in task.rows]
    pairs = [(row, theirs[key]) for key, row in keyed if key in theirs]
    if len(pairs) < 2:
        count = "no row" if not pairs else "only one row"
        raise ValueError(
            f"{names[0]} and {names[1]} have {count} in common (same task, number and content): nothing can be paired"
        )
    return [ours for ours, _ in pairs], [other for _, other in pairs]


def _resampled_differences(terms: Values, metric: str, seed: int) -> Values:
    """First less second in each of `RESAMPLES` draws of rows, in the metric's unit.

    Rows with the same terms are interchangeable, so it is drawn how often each kind of row comes: of right and wrong
    answers there are four kinds, however many rows.

    Args:
        terms: sum and unit of the first, then of the second, (rows, 4).
        metric: decides how a ratio is shown.
        seed: of the draws.
    """
    kinds, sizes = np.unique(terms, axis=0, return_counts=True)
    generator = np.random.default_rng(seed)
    at_once = max(1, _DRAWN_AT_ONCE // len(kinds))
    sums = []
    for start in range(0, RESAMPLES, at_once):
        draws = min(at_once, RESAMPLES - start)
        sums.append(generator.multinomial(len(terms), sizes / len(terms), size=draws).astype(np.float64) @ kinds)
    drawn = np.concatenate(sums)  # (RESAMPLES, 4)
    return np.asarray(_shown(drawn[:, 0] / drawn[:, 1], metric) - _shown(drawn[:, 2] / drawn[:, 3], metric))


def mcnemar(first_only: int, second_only: int) -> float:
    """The exact two-sided p-value of McNemar's test: whether either alone is right as often as the other.

    Twice the binomial's tail, at most 1 (McNemar 1947, with the exact distribution in place of chi-square). In whole
    numbers until the last division, so it is exact for any count.

    Args:
        first_only: rows that the first alone answered right.
        second_only: rows that the second alone answered right.
    """
    if min(first_only, second_only) < 0:
        raise ValueError("a count of rows is not negative")
    discordant, fewer = first_only + second_only, min(first_only, second_only)
    ways, tail = 1, 0
    for right in range(fewer + 1):
        tail += ways
        ways = ways * (discordant - right) // (right + 1)
    return min(1.0, 2 * tail / (1 << discordant))
