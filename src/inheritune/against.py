"""Scores set beside the poster's and outside baselines': its bold rule, and what can be said honestly. No torch.

The bold rule asks whether a score is 90% of the reference's, or above two baselines. It does not ask whether the score
is above what a guess or a constant answer gets, nor how far apart scores lie by chance: of the poster's own seven bold
scores three (Winograd, WNLI, QNLI) are no better than a coin. So a verdict stands beside the rule.
"""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

from inheritune.published import (
    BASELINES,
    CAVEAT,
    FIGURE1_ASSUMPTION,
    MMLU,
    NINE,
    OUTSIDE_BASELINES,
    REFERENCE,
    SOURCE,
    Average,
    Column,
    OutsideBaseline,
    Reported,
    column_of,
    fit,
    share_error,
)
from inheritune.scores import Better, Evaluation, Line, Model, Paired, Score, reference_of
from inheritune.scoring import ERRORS, near

POSTER = "published"
"""What `--against` calls the poster."""
PUBLISHED = (POSTER, *OUTSIDE_BASELINES)
"""Whatever it knows by name."""
BOLD_SHARE = 0.9
BOLD_BASELINES = 2
Standing = Literal["better", "within error", "worse"]


@dataclass(frozen=True)
class Bold:
    """The poster's rule for one score."""

    bold: bool
    share: float | None
    """The score over the reference's; None without a reference, or where that scored 0."""
    beaten: tuple[str, ...]
    """Baselines that it is above."""
    baselines: int
    """How many there are to be above of."""


@dataclass(frozen=True)
class Verdict:
    """What a score shows."""

    better_than_chance: bool | None
    """By more than two standard errors; None where nothing can be guessed."""
    better_than_majority: bool | None
    """The same of the best constant answer."""
    reference: Standing | None
    """Beside the reference's score; None without one, or without an error to judge by."""
    paired: bool
    """Whether that is by the difference on the same rows, which is more exact than by each score's own error."""
    text: str


@dataclass(frozen=True)
class Judgement:
    """Rule and verdict."""

    bold: Bold | None
    """None where less is better (the rule speaks of scores of which more is), or there is nothing to compare with."""
    verdict: Verdict


@dataclass(frozen=True)
class Printed:
    """A published figure."""

    printed: str | None
    """As it stands in the print; None: a gap."""
    value: float | None
    """In the unit of our scores: accuracies are shares."""
    right: int | None = None
    """Rows answered right; None where metric and rows are not identified, or the print leaves several counts open."""
    standard_error: float | None = None
    """Of a share of as many rows; None where metric and rows are not identified."""


@dataclass(frozen=True)
class Beside:
    """A line of an evaluation beside the poster's column."""

    status: Literal["compared", "unknown", "not compared"]
    """`unknown`: metric or rows of the published figures are not identified; `not compared`: the evaluation is of
    something else, or of less."""
    reason: str | None
    """In words; None where it is compared."""
    table: int | None = None
    heading: str | None = None
    figures: dict[str, Printed] = field(default_factory=dict)
    """By the poster's name of the model."""
    models: dict[str, Judgement] = field(default_factory=dict)
    """By our model, against the poster's reference and baselines; empty where it is not compared."""


@dataclass(frozen=True)
class Difference:
    """How far a score, or a mean of scores, is above a published one."""

    value: float
    """In shares."""
    standard_error: float | None
    """As of independent rows: of the same rows, which both models mostly find easy or hard together, it is less."""
    standing: Standing | None
    """By two standard errors; None without one."""


@dataclass(frozen=True)
class BesideScore:
    """A line of an evaluation beside an outside baseline's score on the same task."""

    heading: str
    metric: str
    printed: str
    value: float
    standard_error: float
    near: tuple[str, ...]
    """`chance`, `majority`: what the published score is no further from than two standard errors, or below."""
    reason: str | None
    """Why it is not compared; None: it is."""
    differences: dict[str, Difference] = field(default_factory=dict)
    """By our model; empty where it is not compared."""
    guessed: tuple[str, ...] = ()
    """Our models whose score is no further from chance or majority than two standard errors, or below."""


@dataclass(frozen=True)
class Overall:
    """A model beside an outside baseline, over the tasks that both have."""

    tasks: tuple[str, ...]
    mean: Difference
    """The plain mean of the tasks' differences; the baseline is beaten where this is `better`."""
    tokens_trained: int | None
    token_share: float | None
    """Tokens that ours was trained on over the baseline's; None where ours are not recorded. Those that the layers it
    inherited were trained on, in the reference, are not among them."""
    left_out: tuple[str, ...] = ()
    """Tasks on which neither is better than guessing or the best constant answer: who guesses yes more often has merit
    there of no kind. Kept where there is no other task."""


@dataclass(frozen=True)
class BesideBaseline:
    """An evaluation beside an outside baseline."""

    baseline: dict[str, Any]
    """Its model, parameters, tokens, training, source, and the harness's version."""
    harness: str | None
    """The version, or versions, that ours was evaluated with."""
    lines: dict[str, BesideScore]
    """By the line's name, those that it has a score of."""
    missing: tuple[str, ...]
    """Tasks that it has a score of, and the evaluation no line."""
    models: dict[str, Overall]
    """By our model, those that are compared on a line."""


def bold(
    value: float, reference: float | None, baselines: Mapping[str, float], better: Better = "higher"
) -> Bold | None:
    """The poster's rule as printed: at least 90% of the reference's score, or better than at least two baselines.

    Args:
        value: the score.
        reference: the reference's; None where there is none.
        baselines: by name, those that have a score.
        better: which direction.

    Returns:
        None where there is nothing to compare with, or less is better: 90% of a perplexity would be the better one.
    """
    if better == "lower" or (reference is None and not baselines):
        return None
    beaten = tuple(name for name, score in baselines.items() if value > score)
    share = value / reference if reference else None
    return Bold(_reaches(value, reference) or len(beaten) >= BOLD_BASELINES, share, beaten, len(baselines))


def _reaches(value: float, reference: float | None) -> bool:
    if reference is None:
        return False
    least = BOLD_SHARE * reference
    # 0.9 * 0.4 is a rounding error above 0.36.
    return value >= least or math.isclose(value, least, rel_tol=1e-12)


def verdict(
    line: Line,
    score: Score,
    reference: tuple[float, float | None] | None = None,
    pair: Paired | None = None,
    called: str = "the reference",
) -> Verdict:
    """What a score shows, beside chance, majority, and a reference.

    Args:
        line: the score's.
        score: the model's.
        reference: the reference's value and standard error.
        pair: the model's difference to the reference on the same rows, the model first; it decides where it is given.
        called: the reference, in the text.
    """
    chance = None if line.chance is None else "chance" not in score.near
    majority = None if line.majority is None else "majority" not in score.near
    standing = _standing(score, reference, pair, line.better)
    parts = [part for part in (_levels_said(chance, majority), _standing_said(standing, called)) if part]
    text = "; ".join(parts) or "nothing to judge it by"
    return Verdict(chance, majority, standing, pair is not None, text)


def _standing(
    score: Score, reference: tuple[float, float | None] | None, pair: Paired | None, better: Better
) -> Standing | None:
    """Worse or better only where the interval of the difference excludes 0."""
    if pair is not None:
        low, high = pair.low, pair.high
    elif reference is None or reference[1] is None or score.standard_error is None:
        return None
    else:
        difference, margin = score.value - reference[0], ERRORS * math.hypot(score.standard_error, reference[1])
        low, high = difference - margin, difference + margin
    return _told_apart(-high, -low) if better == "lower" else _told_apart(low, high)


def _told_apart(low: float, high: float) -> Standing:
    """By the interval of a difference of which more is better."""
    if low > 0:
        return "better"
    return "worse" if high < 0 else "within error"


def _levels_said(chance: bool | None, majority: bool | None) -> str:
    levels = {"chance": chance, "the majority class": majority}
    above = [name for name, known in levels.items() if known]
    not_above = [name for name, known in levels.items() if known is False]
    said = f"better than {' and '.join(above)}" if above else ""
    if not not_above:
        return said
    return f"{said}, not than {not_above[0]}" if said else f"no better than {' or '.join(not_above)}"


def _standing_said(standing: Standing | None, called: str) -> str:
    if standing is None:
        return ""
    return f"not told apart from {called}" if standing == "within error" else f"{standing} than {called}"


def judge(evaluation: Evaluation, line: Line) -> dict[str, Judgement]:
    """Rule and verdict for the models of an evaluation, beside each other.

    Each model has its own reference (see `reference_of`); the baselines are those of role `model`, without the one that
    is judged. Of a reference nothing is said beside itself.

    Returns:
        By model, those that have a score on the line.
    """
    scores = _scores(evaluation, line)
    models = {model.name: model for model in evaluation.models}
    judged = {}
    for name, score in scores.items():
        found = reference_of(models[name], evaluation.models)
        reference = found.name if found is not None else ""
        other = scores.get(reference)
        pair = None if other is None else _pair(evaluation, line, name, reference)
        baselines = {each: its.value for each, its in scores.items() if models[each].role == "model" and each != name}
        judged[name] = Judgement(
            bold(score.value, None if other is None else other.value, baselines, line.better),
            verdict(line, score, None if other is None else (other.value, other.standard_error), pair),
        )
    return judged


def _scores(evaluation: Evaluation, line: Line) -> dict[str, Score]:
    """By model its score on a line, in the order of the models."""
    found = {model.name: evaluation.scores.get(model.name, {}).get(line.name) for model in evaluation.models}
    return {name: score for name, score in found.items() if score is not None}


def _pair(evaluation: Evaluation, line: Line, first: str, second: str) -> Paired | None:
    """The difference between two models on a line, whichever way round it was recorded."""
    for pair in evaluation.paired:
        if (pair.line, pair.first, pair.second) == (line.name, first, second):
            return pair
        if (pair.line, pair.first, pair.second) == (line.name, second, first):
            return replace(
                pair,
                first=first,
                second=second,
                difference=-pair.difference,
                low=-pair.high,
                high=-pair.low,
                first_only=pair.second_only,
                second_only=pair.first_only,
            )
    return None


def beside_column(evaluation: Evaluation, line: Line) -> Beside:
    """A line beside the poster's column of the same task.

    It is compared only where the column's metric and rows are identified, and the line is whole, with the same shots,
    metric and rows.
    """
    column = column_of(line.name)
    if column is None:
        return Beside("not compared", "the poster has no such column")
    figures = {model: _printed(column, model) for model in column.models}
    found = Beside("unknown", column.unknown, column.table, column.heading, figures)
    if column.unknown is not None:
        return found
    reason = _differs(line, column)
    if reason is not None:
        return replace(found, status="not compared", reason=reason)
    theirs = figures[REFERENCE]  # what is identified is of table 2
    reference = None if theirs.value is None else (theirs.value, theirs.standard_error)
    baselines = {name: value for name in BASELINES if (value := figures[name].value) is not None}
    judged = {
        name: Judgement(
            bold(score.value, theirs.value, baselines, line.better),
            verdict(line, score, reference, called="the poster's reference"),
        )
        for name, score in _scores(evaluation, line).items()
    }
    return replace(found, status="compared", models=judged)


def _printed(column: Column, model: str) -> Printed:
    figure, value = column.by_model[model], column.value(model)
    if figure is None or value is None:
        return Printed(None, None)
    if not column.percent or column.unknown is not None:
        return Printed(str(figure), value)
    counts = fit(figure, column.rows).counts
    return Printed(str(figure), value, counts[0] if len(counts) == 1 else None, share_error(value, column.rows))


def _differs(line: Line, column: Column) -> str | None:
    """Why a line is not what a column shows; None: it is."""
    return _not_whole(line) or _other(
        ("shots", line.shots, column.shots), ("metric", line.metric, column.metric), ("rows", line.rows, column.rows)
    )


def _not_whole(line: Line) -> str | None:
    if not line.tasks:
        return f"no scores: {line.gap}"
    if not line.whole:
        rows = f"{line.rows} of {line.rows_in_split} rows"
        return f"not whole: {line.title}, {rows if line.selection is None else f'{line.selection} ({rows})'}"
    return None


def _other(*compared: tuple[str, int | str, int | str | None]) -> str | None:
    """The first of these (what, here, published) that differs, in words."""
    return next(
        (f"other {name}: {ours} here, {theirs} published" for name, ours, theirs in compared if ours != theirs), None
    )


def averages(evaluation: Evaluation) -> dict[str, Average]:
    """Figure 1 for the models of an evaluation, in shares: the plain mean over the nine data sets, and MMLU.

    A model has one only if it has a whole score for all nine, with the poster's shots.
    """
    lines = {line.name: line for line in evaluation.lines}
    found = {}
    for model in evaluation.models:
        scores = evaluation.scores.get(model.name, {})
        values = {column.task: _whole(column, lines.get(column.task), scores.get(column.task)) for column in NINE}
        known = [value for value in values.values() if value is not None]
        mmlu = _whole(MMLU, lines.get(MMLU.task), scores.get(MMLU.task))
        missing = [task for task, value in (values | {MMLU.task: mmlu}).items() if value is None]
        reason = f"no score over all rows, with the poster's shots, for {', '.join(missing)}" if missing else None
        nine = math.fsum(known) / len(known) if len(known) == len(NINE) else None
        found[model.name] = Average(nine, mmlu, reason)
    return found


def _whole(column: Column, line: Line | None, score: Score | None) -> float | None:
    """A score's value, if it is of all rows and the column's shots."""
    return score.value if line and score and line.whole and line.shots == column.shots else None


def beside_baseline(evaluation: Evaluation, baseline: OutsideBaseline) -> BesideBaseline:
    """An evaluation beside an outside baseline: difference by task, their mean, the share of its tokens.

    A line is compared only where it is whole, without examples, of as many rows, and in the metric that the baseline's
    source names, be it the line's own or one beside it.
    """
    scored = [(line, score) for line in evaluation.lines if (score := baseline.score_of(line.name)) is not None]
    lines = {line.name: _beside_score(evaluation, line, score) for line, score in scored}
    models = {}
    for model in evaluation.models:
        found = {name: line.differences[model.name] for name, line in lines.items() if model.name in line.differences}
        guessed = {name for name in found if lines[name].near and model.name in lines[name].guessed}
        if found:
            told = {name: one for name, one in found.items() if name not in guessed} or found
            left_out = tuple(name for name in found if name not in told)
            models[model.name] = replace(_overall(model, told, baseline), left_out=left_out)
    about = {key: value for key, value in asdict(baseline).items() if key != "scores"}
    missing = tuple(score.task for score in baseline.scores if score.task not in lines)
    used = {line.harness or evaluation.versions.get("lm_eval") for line in evaluation.lines if line.name in lines}
    harness = " and ".join(sorted(version for version in used if version)) or evaluation.versions.get("lm_eval")
    return BesideBaseline(about, harness, lines, missing, models)


def _beside_score(evaluation: Evaluation, line: Line, reported: Reported) -> BesideScore:
    value, error = reported.value, reported.standard_error
    levels = near(value, error, line.chance, line.majority, reported.rows)
    found = BesideScore(reported.heading, reported.metric, str(reported.figure), value, error, levels, None)
    reason = _not_whole(line) or _other(("shots", line.shots, 0), ("rows", line.rows, reported.rows))
    if reason is not None:
        return replace(found, reason=reason)
    ours = {name: _in_metric(line, score, reported.metric) for name, score in _scores(evaluation, line).items()}
    differences = {name: _difference(*one, reported) for name, one in ours.items() if one is not None}
    if not differences:
        reason = _other(("metric", line.metric, reported.metric)) or "no model has a score"
    guessed = tuple(name for name, one in ours.items() if one is not None and _guessed(one, line))
    return replace(found, differences=differences, reason=reason, guessed=guessed)


def _guessed(one: tuple[float, float | None], line: Line) -> bool:
    """Whether a score, with its error, is no better than chance or the best constant answer."""
    value, error = one
    return error is not None and bool(near(value, error, line.chance, line.majority, line.rows))


def _in_metric(line: Line, score: Score, metric: str) -> tuple[float, float | None] | None:
    """A score with its standard error in a metric of its rows; None where they were not scored in it."""
    return (score.value, score.standard_error) if metric == line.metric else score.beside.get(metric)


def _difference(value: float, error: float | None, reported: Reported) -> Difference:
    both = None if error is None else math.hypot(error, reported.standard_error)
    return _judged_difference(value - reported.value, both)


def _judged_difference(value: float, error: float | None) -> Difference:
    standing = None if error is None else _told_apart(value - ERRORS * error, value + ERRORS * error)
    return Difference(value, error, standing)


def _overall(model: Model, found: Mapping[str, Difference], baseline: OutsideBaseline) -> Overall:
    tokens = model.tokens_trained
    return Overall(
        tuple(found), _mean(list(found.values())), tokens, None if tokens is None else tokens / baseline.tokens
    )


def _mean(found: Sequence[Difference]) -> Difference:
    """Of differences on different rows, whose errors are independent."""
    errors = [one.standard_error for one in found if one.standard_error is not None]
    error = math.hypot(*errors) / len(found) if len(errors) == len(found) else None
    return _judged_difference(math.fsum(one.value for one in found) / len(found), error)


def beside_published(evaluation: Evaluation, names: Collection[str] = (POSTER,)) -> dict[str, Any]:
    """What `Evaluation.published` holds, as JSON.

    Of the poster every line beside its column, and figure 1's averages; of each outside baseline `BesideBaseline`.

    Args:
        evaluation: what is set beside them.
        names: of `PUBLISHED`.
    """
    found: dict[str, Any] = _beside_poster(evaluation) if POSTER in names else {}
    outside = [name for name in OUTSIDE_BASELINES if name in names]
    if outside:
        found["baselines"] = {name: asdict(beside_baseline(evaluation, OUTSIDE_BASELINES[name])) for name in outside}
    return _as_read(found)


def beside_which(published: Mapping[str, Any]) -> set[str]:
    """The names of `PUBLISHED` that a record made by `beside_published` is of."""
    return {*([POSTER] if "lines" in published else []), *published.get("baselines", {})}


def _beside_poster(evaluation: Evaluation) -> dict[str, Any]:
    return {
        "source": SOURCE,
        "caveat": CAVEAT,
        "lines": {line.name: asdict(beside_column(evaluation, line)) for line in evaluation.lines},
        "figure_1": {
            "assumption": FIGURE1_ASSUMPTION,
            "models": {name: asdict(average) for name, average in averages(evaluation).items()},
        },
    }


def _as_read(found: dict[str, Any]) -> dict[str, Any]:
    """With lists where there were tuples, so that what is in memory equals what is read back."""
    read: dict[str, Any] = json.loads(json.dumps(found))
    return read
