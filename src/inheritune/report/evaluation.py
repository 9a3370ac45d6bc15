"""An evaluation as tables: for the terminal, in Markdown, in LaTeX. Scores, paired differences, the published figures.

Each table says what it is of: metric, shots, rows, what guessing scores, and that rows or subjects are missing where
they are. Accuracies are shown in percent, perplexities as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from inheritune.report.evaluation_numbers import BOLD_RULE, is_scored, is_share, scientific
from inheritune.report.numbers import NOT_APPLICABLE, count, number_of, percent
from inheritune.report.sheets import PACKAGES, Sheet, in_latex, in_markdown
from inheritune.report.table import dict_of
from inheritune.scores import Evaluation, Line, Paired, Score

if TYPE_CHECKING:
    from rich.console import Group


__all__ = [
    "evaluation_sheets",
    "is_share",
    "latex_evaluation",
    "line_title",
    "markdown_evaluation",
    "render_evaluation",
    "shown",
]

_OVERALL = {
    "better": "beats {} by more than two standard errors",
    "within error": "is not told apart from {}",
    "worse": "is below {} by more than two standard errors",
}
_VERDICT = ("Task", "Model", "Verdict", "Of the reference", "Baselines beaten", "Bold rule")


_LONG = 10**8
"""From here on a perplexity has an exponent in files, too: an untrained cut may reach 1e23."""


def shown(metric: str, value: Any, error: Any = None) -> str:
    """A score and its standard error as tables have them: `61.2 ±1.1`, `1,035 ±12`, `1.429e23 ±3.5e22`."""
    number, spread = number_of(value), number_of(error)
    if number is None:
        return NOT_APPLICABLE
    scale, digits = _scale(metric, number)
    if abs(number) >= _LONG:
        return scientific(number, 3) + ("" if spread is None else f" ±{scientific(spread, 1)}")
    text = f"{scale * number:z,.{digits}f}".replace("-", "−")
    return text if spread is None else f"{text} ±{scale * spread:,.{digits}f}"


def _scale(metric: str, value: float) -> tuple[int, int]:
    """What a metric is multiplied by, and its decimals."""
    if is_share(metric):
        return 100, 1
    if "perplexity" not in metric:
        return 1, 3
    return 1, 2 if abs(value) < 100 else 1 if abs(value) < 1000 else 0


def line_title(line: Line) -> str:
    """A line's name with what was left out of it: `mmlu, 10 of 57 subjects`, `piqa, the first 100 rows`."""
    if line.selection is not None:
        return line.title if line.selection in line.title else f"{line.title}, {line.selection}"
    if not line.whole and line.gap is None and line.title == line.name:
        return f"{line.title}, {_rows(line)} rows"
    return line.title


def _rows(line: Line) -> str:
    """`1,838`, or `100 of 1,838`."""
    rows = f"{line.rows:,}"
    return rows if line.rows == line.rows_in_split else f"{rows} of {line.rows_in_split:,}"


def _metric(line: Line) -> str:
    return line.metric + (" ↓" if line.better == "lower" else "")


@dataclass(frozen=True)
class _Row:
    """A row of the table of scores, as text; what goes with a score is a row of its own below it."""

    task: str
    metric: str
    shots: str
    rows: str
    chance: str
    majority: str
    cells: tuple[str, ...]
    """One a model, in the evaluation's order."""
    beside: bool = False
    """Whether it goes with the score above it."""


def _score_rows(evaluation: Evaluation) -> Iterator[_Row]:
    for line in evaluation.lines:
        scores = [evaluation.scores.get(model.name, {}).get(line.name) for model in evaluation.models]
        rows = NOT_APPLICABLE if line.gap is not None and not is_scored(evaluation, line) else _rows(line)
        levels = [shown(line.metric, level) for level in (line.chance, line.majority)]
        cells = tuple(_cell(line.metric, score) for score in scores)
        yield _Row(line_title(line), _metric(line), str(line.shots), rows, levels[0], levels[1], cells)
        for metric, values in _beside(line, scores):
            yield _Row(line_title(line), metric, str(line.shots), rows, "", "", values, beside=True)


def _cell(metric: str, score: Score | None) -> str:
    if score is None:
        return NOT_APPLICABLE
    return " ".join([shown(metric, score.value, score.standard_error), *(f"~{level}" for level in score.near)])


def _beside(line: Line, scores: Sequence[Score | None]) -> Iterator[tuple[str, tuple[str, ...]]]:
    """What goes with a line's scores: on a scale where chance is 0, in other metrics, and how many rows were cut."""

    def row(value: Callable[[Score], str]) -> tuple[str, ...]:
        return tuple(NOT_APPLICABLE if score is None else value(score) for score in scores)

    present = [score for score in scores if score is not None]
    if any(score.rescaled is not None for score in present):
        yield f"{line.metric}, rescaled", row(lambda score: shown("acc", score.rescaled))
    for metric in dict.fromkeys(metric for score in present for metric in score.beside):
        none: tuple[float | None, float | None] = (None, None)
        yield (
            metric,
            tuple(shown(metric, *(none if score is None else score.beside.get(metric, none))) for score in scores),
        )
    if any(score.cut_rows for score in present):
        yield "rows cut", row(lambda score: f"{score.cut_rows:,}")


def _title(evaluation: Evaluation, what: str) -> str:
    limited = f"; {evaluation.limited}" if evaluation.limited else ""
    return f"{what}, suite {evaluation.suite}{limited}"


def _score_notes(evaluation: Evaluation) -> Iterator[str]:
    """What the numbers mean, as far as the table has such; then the gaps."""
    lines = [line for line in evaluation.lines if line.gap is None or is_scored(evaluation, line)]
    scores = [score for by_line in evaluation.scores.values() for score in by_line.values()]
    kinds = {"Accuracies in percent": any(is_share(line.metric) for line in lines)}
    kinds["perplexities as they are"] = any("perplexity" in line.metric for line in lines)
    kinds["± one standard error over rows"] = any(score.standard_error is not None for score in scores)
    if any(kinds.values()):
        text = ", ".join(kind for kind, there in kinds.items() if there)
        yield f"{text[:1].upper()}{text[1:]}."
    if any(line.better == "lower" for line in lines):
        yield "↓: lower is better."
    near = {level for score in scores for level in score.near}
    for level, meaning in (("chance", "guessing at random"), ("majority", "the best constant answer")):
        if level in near:
            yield f"~{level}: within two standard errors of {meaning}, or worse."
    if any(score.rescaled is not None for score in scores):
        yield "Rescaled: 0 is chance, 100 is all rows right."
    if any(score.cut_rows for score in scores):
        yield "Rows cut: their beginning did not fit into the model’s context."
    for line in evaluation.lines:
        if line.gap is not None:
            how = "evaluated only in part" if is_scored(evaluation, line) else "not evaluated"
            yield f"{line.title} was {how}: {line.gap}"


def _score_sheet(evaluation: Evaluation) -> Sheet:
    header = ("Task", "Metric", "Shots", "Rows", "Chance", "Majority", *(model.name for model in evaluation.models))
    rows = [(r.task, r.metric, r.shots, r.rows, r.chance, r.majority, *r.cells) for r in _score_rows(evaluation)]
    return Sheet(_title(evaluation, "Scores"), header, tuple(rows), 2, tuple(_score_notes(evaluation)))


def _paired_sheet(evaluation: Evaluation) -> Sheet | None:
    """Differences between two models on the same rows; None where there are none."""
    lines = {line.name: line for line in evaluation.lines}
    rows = [_paired_row(pair, lines[pair.line]) for pair in evaluation.paired if pair.line in lines]
    if not rows:
        return None
    header = ("Task", "Models", "Rows", "Difference (95% interval)", "Only first right", "Only second right", "p")
    notes = ["First − second on the same rows; accuracies in percentage points. Intervals: paired bootstrap over rows."]
    if any(pair.p_value is not None for pair in evaluation.paired):
        notes.append("p: McNemar’s exact two-sided test on the rows that one of the two alone answered right.")
    if any(line.better == "lower" for line in lines.values()):
        notes.append("↓: lower is better, so that a negative difference favours the first.")
    return Sheet(_title(evaluation, "Paired differences"), header, tuple(rows), 2, tuple(notes))


def _paired_row(pair: Paired, line: Line) -> tuple[str, ...]:
    difference, low, high = (_signed(line.metric, value, pair) for value in (pair.difference, pair.low, pair.high))
    only = [NOT_APPLICABLE if count is None else f"{count:,}" for count in (pair.first_only, pair.second_only)]
    metric = f"{line_title(line)} ({_metric(line)})"
    return metric, f"{pair.first} − {pair.second}", f"{pair.rows:,}", f"{difference} ({low} to {high})", *only, _p(pair)


def _signed(metric: str, value: float, pair: Paired) -> str:
    """A difference with its sign, to the decimals of the largest of its row."""
    scale, digits = _scale(metric, max(map(abs, (pair.difference, pair.low, pair.high))))
    if number_of(value) is None:
        return NOT_APPLICABLE
    if abs(value) >= _LONG:
        return scientific(value, 3, "+")
    return f"{scale * value:+z,.{digits}f}".replace("-", "−")


def _p(pair: Paired) -> str:
    if pair.p_value is None:
        return NOT_APPLICABLE
    return "<0.001" if pair.p_value < 0.001 else f"{pair.p_value:.3f}"


def _published_sheets(evaluation: Evaluation) -> Iterator[Sheet]:
    """What `--against` set beside it by name (see `against.beside_published`); what is not recorded is left out."""
    lines = {line.name: line for line in evaluation.lines}
    found = {name: dict_of(record) for name, record in dict_of(evaluation.published.get("lines")).items()}
    beside = [(lines[name], record) for name, record in found.items() if name in lines and record.get("figures")]
    notes = [str(evaluation.published[key]) for key in ("source", "caveat") if evaluation.published.get(key)]
    by_models: dict[tuple[str, ...], list[tuple[Line, dict[str, Any]]]] = {}
    for line, record in beside:
        by_models.setdefault(tuple(record["figures"]), []).append((line, record))
    for models, records in by_models.items():
        why = [f"{line.title} is not compared: {record['reason']}" for line, record in records if record.get("reason")]
        yield _figures_sheet(models, records, [*notes, *why])
        notes = []  # they are the same for all
    judged = [row for line, record in beside for row in _judged_rows(line, record)]
    if judged:
        yield Sheet(_title(evaluation, "Beside the published scores"), _VERDICT, tuple(judged), 3, (BOLD_RULE,))
    yield from _average_sheets(evaluation, dict_of(evaluation.published.get("figure_1")))
    for name, record in dict_of(evaluation.published.get("baselines")).items():
        yield from _baseline_sheets(evaluation, name, dict_of(record))


def _baseline_sheets(evaluation: Evaluation, name: str, record: dict[str, Any]) -> Iterator[Sheet]:
    """How far the models are from an outside baseline; what there is more of, tasks or models, goes down."""
    lines = {line: dict_of(found) for line, found in dict_of(record.get("lines")).items()}
    models = dict_of(record.get("models"))
    if not lines:
        return
    notes = (*_overall_notes(name, record, models), *_baseline_notes(dict_of(record.get("baseline")), record))
    tasks = [f"{line} ({found['metric']})" for line, found in lines.items()]
    printed = [f"{found['printed']} ±{100 * found['standard_error']:.1f}" for found in lines.values()]
    columns = [
        [*(_apart(dict_of(found.get("differences")).get(model)) for found in lines.values()), _apart(overall["mean"])]
        for model, overall in models.items()
    ]
    if len(models) <= len(tasks):
        header = ("Task", "Published", *models)
        rows = list(zip([*tasks, "Mean"], [*printed, ""], *columns, strict=True))
    else:
        header = ("Model", *tasks, "Mean")
        rows = [("published", *printed, ""), *((model, *c) for model, c in zip(models, columns, strict=True))]
    yield Sheet(_title(evaluation, f"Beside {name}"), header, tuple(rows), 1, notes)


def _apart(difference: Any) -> str:
    """`+5.1 ±1.6`, `+0.4 ±1.6 ~` where two standard errors do not tell it from 0."""
    found = dict_of(difference)
    value, error = number_of(found.get("value")), number_of(found.get("standard_error"))
    if value is None:
        return NOT_APPLICABLE
    spread = "" if error is None else f" ±{100 * error:.1f}"
    mark = " ~" if found.get("standing") == "within error" else ""
    return f"{100 * value:+z.1f}{spread}{mark}".replace("-", "−")


def _baseline_notes(about: dict[str, Any], record: dict[str, Any]) -> Iterator[str]:
    """What the baseline is, what a difference is, and what is not compared."""
    yield (
        f"{about.get('model')}: {count(about.get('parameters'))} parameters, {count(about.get('tokens'))} tokens; "
        f"{about.get('training')}. Scores: {about.get('source')}; lm-evaluation-harness "
        f"{about.get('harness') or 'of a version that is not named'}, here {record.get('harness') or 'not recorded'}."
    )
    yield (
        "Ours − published, in percentage points, ± one standard error as of independent rows; ~: within two of zero. "
        "The metric is the one that the source names."
    )
    lines = dict_of(record.get("lines"))
    guessed = [line for line, found in lines.items() if found.get("near")]
    if guessed:
        yield f"Published, and no better than guessing or the best constant answer: {', '.join(guessed)}."
    left_out = dict.fromkeys(
        task for one in dict_of(record.get("models")).values() for task in dict_of(one).get("left_out") or ()
    )
    if left_out:
        names = ", ".join(left_out)
        yield f"Left out of a mean where ours is no better than that, too, since there either only guesses: {names}."
    yield from (f"{line} is not compared: {found['reason']}" for line, found in lines.items() if found.get("reason"))
    if record.get("missing"):
        yield f"Not evaluated here: {', '.join(record['missing'])}."


def _overall_notes(name: str, record: dict[str, Any], models: dict[str, Any]) -> Iterator[str]:
    """A sentence a model: the mean over tasks, whether that beats the baseline, on which share of its tokens."""
    of = count(dict_of(record.get("baseline")).get("tokens"))
    for model, found in models.items():
        mean, tasks = dict_of(found.get("mean")), len(found["tasks"])
        standing = _OVERALL.get(str(mean.get("standing")), "no error to judge {} by").format(name)
        share = number_of(found.get("token_share"))
        trained = "" if share is None else f", trained on {count(found.get('tokens_trained'))} tokens to its {of}"
        percents = "" if share is None else f" ({f'{100 * share:.2g}%' if share >= 1e-6 else 'less than 0.0001%'})"
        points = _apart(mean).removesuffix(" ~")
        yield f"{model} {standing}: {points} points over {tasks} task{'s' * (tasks != 1)}{trained}{percents}."
    if any(number_of(found.get("token_share")) is not None for found in models.values()):
        yield "Tokens are those of its own training: what inherited layers were trained on before is not counted."


def _figures_sheet(
    models: Sequence[str], records: Sequence[tuple[Line, dict[str, Any]]], notes: Sequence[str]
) -> Sheet:
    """The published figures as printed; what there is more of, tasks or models, goes down."""
    tasks = [f"{line.name} ({record.get('heading')})" for line, record in records]
    figures = [[_printed(record["figures"][model]) for model in models] for _, record in records]
    if len(tasks) > len(models):
        rows = [(task, *row) for task, row in zip(tasks, figures, strict=True)]
        header = ("Task", *models)
    else:
        rows = [(model, *row) for model, row in zip(models, zip(*figures, strict=True), strict=True)]
        header = ("Published model", *tasks)
    return Sheet(f"Published, table {records[0][1].get('table')}, as printed", header, tuple(rows), 1, tuple(notes))


def _printed(figure: Any) -> str:
    printed = dict_of(figure).get("printed")
    return NOT_APPLICABLE if printed is None else str(printed)


def _judged_rows(line: Line, record: dict[str, Any]) -> Iterator[tuple[str, ...]]:
    for model, judgement in dict_of(record.get("models")).items():
        bold, verdict = dict_of(judgement.get("bold")), dict_of(judgement.get("verdict"))
        beaten = f"{len(bold['beaten'])}/{bold['baselines']}" if bold else NOT_APPLICABLE
        rule = ("bold" if bold["bold"] else "not bold") if bold else NOT_APPLICABLE
        yield line_title(line), model, str(verdict.get("text", "")), percent(bold.get("share")), beaten, rule


def _average_sheets(evaluation: Evaluation, figure: dict[str, Any]) -> Iterator[Sheet]:
    """Figure 1's averages, where a model has one."""
    models = {name: dict_of(average) for name, average in dict_of(figure.get("models")).items()}
    rows = [(name, percent(average.get("nine")), percent(average.get("mmlu"))) for name, average in models.items()]
    if all(cell == NOT_APPLICABLE for _, *cells in rows for cell in cells):
        return
    notes = [f"Assumed: {figure['assumption']}."] if figure.get("assumption") else []
    notes += [f"{name}: {average['reason']}." for name, average in models.items() if average.get("reason")]
    yield Sheet(_title(evaluation, "Figure 1"), ("Model", "Mean of nine", "MMLU"), tuple(rows), 1, tuple(notes))


def _verdict_sheet(evaluation: Evaluation) -> Sheet | None:
    """What may be said of each score, and the poster's bold rule beside it; None where nothing was judged."""
    lines = {line.name: line for line in evaluation.lines}
    judged = {name: {"models": found} for name, found in evaluation.judged.items() if name in lines}
    rows = [row for name, record in judged.items() for row in _judged_rows(lines[name], record)]
    if not rows:
        return None
    if all(rule == NOT_APPLICABLE for *_, rule in rows):  # no reference and no baselines here: the verdict alone
        return Sheet(_title(evaluation, "Verdicts"), _VERDICT[:3], tuple(row[:3] for row in rows), 3, ())
    return Sheet(_title(evaluation, "Verdicts"), _VERDICT, tuple(rows), 3, (BOLD_RULE,))


def evaluation_sheets(evaluation: Evaluation) -> list[Sheet]:
    """The tables of an evaluation, that of the scores first."""
    found = (_score_sheet(evaluation), _verdict_sheet(evaluation), _paired_sheet(evaluation))
    return [sheet for sheet in found if sheet is not None] + list(_published_sheets(evaluation))


def render_evaluation(evaluation: Evaluation, *, width: int = 80) -> Group:
    """An evaluation for the terminal, in short: scores, verdicts on one model, paired and published figures.

    Args:
        evaluation: what is shown.
        width: columns to fit. Models that have no room go into further tables of the same rows.
    """
    from inheritune.report.evaluation_terminal import in_short

    def published(record: dict[str, Any]) -> Iterator[Sheet]:
        yield from _published_sheets(replace(evaluation, limited=None, published=record))

    return in_short(evaluation, published, width)


def markdown_evaluation(evaluation: Evaluation) -> str:
    """An evaluation as Markdown: a table each for scores, paired differences and published figures, with notes."""
    return "\n".join(map(in_markdown, evaluation_sheets(evaluation)))


def latex_evaluation(evaluation: Evaluation) -> str:
    """An evaluation as LaTeX tables for the packages `booktabs` and `fontenc` with `T1`."""
    return PACKAGES + "\n".join(map(in_latex, evaluation_sheets(evaluation)))
