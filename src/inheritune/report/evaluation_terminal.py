"""An evaluation on a terminal, in short: what would not fit onto a page is left to the files, which have all."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Group
from rich.text import Text

from inheritune.report.evaluation_numbers import (
    BOLD_RULE,
    at_places,
    is_scored,
    is_share,
    places_of,
    short_number,
)
from inheritune.report.numbers import NOT_APPLICABLE, number_of, percent
from inheritune.report.sheets import Sheet
from inheritune.report.table import dict_of
from inheritune.report.terminal_table import LEAST_NAME, Column, table, widest
from inheritune.scores import Evaluation, Line, Model, Paired, Score

_FILE = "evaluation.md"
_MOST_PAIRS = 12
"""Paired differences that a terminal shows whole."""
_MOST_PUBLISHED = 8
"""Published models that it shows."""


def in_short(evaluation: Evaluation, published: Callable[[dict[str, Any]], Iterable[Sheet]], width: int) -> Group:
    """An evaluation for the terminal, a title above each table and notes below it.

    Args:
        evaluation: what is shown.
        published: the tables of what is published, as `Evaluation.published` has it.
        width: columns to fit.
    """
    parts = [
        *_scores(evaluation, width),
        *_verdicts(evaluation, f"Verdicts, suite {evaluation.suite}", evaluation.judged, "reference", width),
        *_differences(evaluation, width),
        *_published(evaluation, published, width),
    ]
    return Group(*parts[:-1])  # without the blank line below the last


def _title(text: str) -> Text:
    # Text, not str: rich would read a name as markup.
    return Text(text, style="bold")


def _notes(*notes: str) -> Iterator[Text]:
    """Notes below a table, each a paragraph, and a blank line."""
    yield from (Text(note, style="dim") for note in notes if note)
    yield Text()


def _alike(found: Iterable[tuple[str, str]]) -> dict[str, list[str]]:
    """By what is said of names, the names that it is said of."""
    names: dict[str, list[str]] = {}
    for name, said in found:
        names.setdefault(said, []).append(name)
    return names


def _grouped(found: Iterable[tuple[str, str]]) -> str:
    """`piqa, boolq: 50.0; logiqa: 25.0`, of names with what is said of each."""
    return "; ".join(f"{', '.join(names)}: {said}" for said, names in _alike(found).items())


def _on_one_line(name: str) -> str:
    return " ".join(name.split())


@dataclass(frozen=True)
class _Row:
    """A row of the scores, as text."""

    task: str
    rows: str
    levels: tuple[str, str]
    """Chance, majority."""
    cells: tuple[tuple[str, str], ...]
    """One a model: a score, and its marks."""
    beside: bool = False
    """Whether it goes with the score above it."""


def _score_rows(evaluation: Evaluation) -> Iterator[_Row]:
    for line in evaluation.lines:
        scores = [evaluation.scores.get(model.name, {}).get(line.name) for model in evaluation.models]
        cells = tuple(
            (NOT_APPLICABLE, "")
            if score is None
            else (
                short_number(line.metric, score.value, score.standard_error),
                "".join(level[0] for level in score.near),
            )
            for score in scores
        )
        levels = (short_number(line.metric, line.chance), short_number(line.metric, line.majority))
        yield _Row(_task(line), _rows(evaluation, line), levels, cells)
        for name, values in _beside(scores):
            yield _Row(f"  {name}", "", ("", ""), tuple((value, "") for value in values), beside=True)


def _task(line: Line) -> str:
    """`piqa`, `mmlu, 10 of 57 subjects, 5-shot`, `wikitext word_perplexity ↓`."""
    metric = f" {line.metric}" if line.metric not in ("acc", "") else ""
    lower = " ↓" if line.better == "lower" else ""
    return f"{line.title}{metric}{lower}{f', {line.shots}-shot' if line.shots else ''}"


def _rows(evaluation: Evaluation, line: Line) -> str:
    """`1,838`, or `100/1,838`."""
    if line.gap is not None and not is_scored(evaluation, line):
        return NOT_APPLICABLE
    return f"{line.rows:,}" if line.rows == line.rows_in_split else f"{line.rows:,}/{line.rows_in_split:,}"


def _beside(scores: Sequence[Score | None]) -> Iterator[tuple[str, list[str]]]:
    """What goes with a task's scores: on a scale where chance is 0, in other metrics, and how many rows were cut."""
    none: tuple[float | None, float | None] = (None, None)
    present = [score for score in scores if score is not None]
    if any(score.rescaled is not None for score in present):
        yield "rescaled", [short_number("acc", None if score is None else score.rescaled) for score in scores]
    for metric in dict.fromkeys(metric for score in present for metric in score.beside):
        pairs = [none if score is None else score.beside.get(metric, none) for score in scores]
        yield metric, [short_number(metric, value, error) for value, error in pairs]
    if any(score.cut_rows for score in present):
        yield "rows cut", [NOT_APPLICABLE if score is None else f"{score.cut_rows:,}" for score in scores]


@dataclass(frozen=True)
class _Layout:
    """How closely the scores are set."""

    levels: bool
    """Whether chance and majority have columns; else a note has them."""
    stacked: bool
    """Whether the rows of a split stand below those that were evaluated."""
    room: int
    """Columns that a score breaks beyond: before its marks, then before its error."""
    task: int
    """Columns that a task's name may ask for."""


_LAYOUTS = (
    _Layout(levels=True, stacked=False, room=99, task=18),
    _Layout(levels=False, stacked=False, room=99, task=18),
    _Layout(levels=False, stacked=False, room=11, task=14),
    _Layout(levels=False, stacked=True, room=11, task=14),
    _Layout(levels=False, stacked=True, room=9, task=14),
    _Layout(levels=False, stacked=True, room=9, task=LEAST_NAME),
)
"""From the widest to the narrowest."""


def _scores(evaluation: Evaluation, width: int) -> Iterator[Text]:
    """The scores, all models side by side as long as the narrowest layout has room for them, and the notes."""
    rows, models = list(_score_rows(evaluation)), evaluation.models
    count, layout = _layout(rows, models, width)
    for start in range(0, max(1, len(models)), max(1, count)):
        yield _title(f"Scores, suite {evaluation.suite}{' (continued)' if start else ''}")
        columns = _score_columns(rows, models, range(start, min(start + count, len(models))), layout)
        yield from table(columns, width, [row.beside for row in rows])
        if start + count < len(models):
            yield Text()
    notes = list(filter(None, _score_notes(evaluation, layout)))
    yield from [Text()] * bool(notes)
    yield from _notes(*notes)


def _layout(rows: Sequence[_Row], models: Sequence[Model], width: int) -> tuple[int, _Layout]:
    """How many models stand side by side, and how: in as few tables as can be, as many in each of them."""
    for tables in range(1, len(models) + 1):
        count = math.ceil(len(models) / tables)
        starts = range(0, len(models), count)
        for layout in _LAYOUTS:
            parts = [range(start, min(start + count, len(models))) for start in starts]
            if all(_needed(_score_columns(rows, models, part, layout)) <= width for part in parts):
                return count, layout
    return min(1, len(models)), _LAYOUTS[-1] if models else _LAYOUTS[0]


def _needed(columns: Sequence[Column]) -> int:
    return sum(column.least for column in columns) + len(columns) - 1


def _score_columns(
    rows: Sequence[_Row], models: Sequence[Model], shown: Sequence[int], layout: _Layout
) -> list[Column]:
    columns = [Column("Task", [row.task for row in rows], words=True, cap=layout.task)]
    columns.append(Column("Rows", _stacked(rows) if layout.stacked else [row.rows for row in rows]))
    if layout.levels:
        columns += [Column(name, [row.levels[at] for row in rows]) for at, name in enumerate(("Chance", "Majority"))]
    for index in shown:
        cells = _marked([row.cells[index] for row in rows], layout.room)
        columns.append(Column(_on_one_line(models[index].name), cells))
    return columns


def _stacked(rows: Sequence[_Row]) -> list[str]:
    """The rows of the split below those that were evaluated: in the row below, if that goes with the task."""
    cells = [row.rows.replace("/", "/\n") for row in rows]
    for at, row in enumerate(rows[1:], 1):
        if row.beside and "\n" in cells[at - 1]:
            cells[at - 1], cells[at] = cells[at - 1].split("\n")
    return cells


def _marked(cells: Sequence[tuple[str, str]], room: int) -> list[str]:
    """Scores with their marks, broken where they are longer than `room`, numbers below each other where they fit."""
    broken = [_broken(number, marks, room) for number, marks in cells]
    beside = [marks for (_, marks), cell in zip(cells, broken, strict=True) if "\n" not in cell]
    most = max(map(len, beside), default=0)
    if not most:
        return broken
    whole = widest(broken)
    texts = []
    for (_, marks), cell in zip(cells, broken, strict=True):
        missing = most - len(marks) if marks and "\n" not in cell else most + 1
        texts.append(
            "\n".join(f"{line}{' ' * missing}" if len(line) + missing <= whole else line for line in cell.split("\n"))
        )
    return texts


def _broken(number: str, marks: str, room: int) -> str:
    cell = f"{number} {marks}".rstrip()
    if len(cell) <= room:
        return cell
    first = number if len(number) <= room else number.replace("±", "\n±")
    return f"{first}\n{marks}".rstrip()


def _score_notes(evaluation: Evaluation, layout: _Layout) -> Iterator[str]:
    """What the numbers mean, as far as there are such; levels without columns; what was left out."""
    lines = [line for line in evaluation.lines if line.gap is None or is_scored(evaluation, line)]
    yield " ".join(_legend(evaluation, lines))
    if not layout.levels:
        chance = _grouped(
            (line.name, short_number(line.metric, line.chance)) for line in lines if line.chance is not None
        )
        constant = _grouped(
            (line.name, short_number(line.metric, line.majority)) for line in lines if line.majority is not None
        )
        yield " ".join([f"Chance: {chance}."] * bool(chance) + [f"Best constant answer: {constant}."] * bool(constant))
    yield _not_all_rows(evaluation, lines)
    gaps = [
        (line.name, f"{'evaluated only in part' if is_scored(evaluation, line) else 'not evaluated'}: {line.gap}")
        for line in evaluation.lines
        if line.gap is not None
    ]
    for said, names in _alike(gaps).items():
        yield f"{', '.join(names)} {'was' if len(names) == 1 else 'were'} {said}"


def _legend(evaluation: Evaluation, lines: Sequence[Line]) -> Iterator[str]:
    scores = [score for by_line in evaluation.scores.values() for score in by_line.values()]
    kinds = {"Accuracies in percent": any(is_share(line.metric) for line in lines)}
    kinds["± one standard error over rows"] = any(score.standard_error is not None for score in scores)
    kinds["↓ lower is better"] = any(line.better == "lower" for line in lines)
    if any(kinds.values()):
        yield f"{', '.join(kind for kind, there in kinds.items() if there)}."
    near = {level for score in scores for level in score.near}
    meanings = {"chance": "above chance", "majority": "above the best constant answer"}
    letters = [level for level in meanings if level in near]
    if letters:
        said = ", ".join(meanings[level] for level in letters)
        yield f"{', '.join(level[0] for level in letters)}: no more than two standard errors {said}."
    if any(score.rescaled is not None for score in scores):
        yield "Rescaled: 0 is chance, 100 all rows right."
    if any(score.cut_rows for score in scores):
        yield "Rows cut: their beginning did not fit into the model’s context."


def _not_all_rows(evaluation: Evaluation, lines: Sequence[Line]) -> str:
    """Which rows were evaluated, in one sentence; of how many, the table says."""
    chosen = {line.name: line.selection for line in lines if line.selection is not None}
    for line in lines:
        if not line.whole and line.selection is None and line.rows != line.rows_in_split:
            chosen[line.name] = f"{line.rows:,} of {line.rows_in_split:,} rows"
    if not chosen:
        return f"Not all rows: {evaluation.limited}." if evaluation.limited else ""
    alike = {name: re.sub(r"(\d) of [\d,]+ rows", r"\1 rows", said) for name, said in chosen.items()}
    several = {said for said in alike.values() if list(alike.values()).count(said) > 1}
    said = _grouped((name, alike[name] if alike[name] in several else said) for name, said in chosen.items())
    return f"Not all rows: {said}."


def _verdicts(
    evaluation: Evaluation, title: str, judged: Mapping[str, Any], reference: str, width: int
) -> Iterator[Text]:
    """What may be said of the scores of the first model that anything is said of.

    Args:
        evaluation: of these lines and models.
        title: the model's name follows it.
        judged: by line, then by model, rule and verdict.
        reference: what the models are judged beside.
        width: columns to fit.
    """
    lines = {line.name: line for line in evaluation.lines}
    found = {name: dict_of(by_model) for name, by_model in judged.items() if name in lines}
    names = [model.name for model in evaluation.models if any(model.name in by_model for by_model in found.values())]
    if not names:
        return
    of_first = {name: dict_of(by_model[names[0]]) for name, by_model in found.items() if names[0] in by_model}
    verdicts = [dict_of(judgement.get("verdict")) for judgement in of_first.values()]
    rules = [dict_of(judgement.get("bold")) for judgement in of_first.values()]
    said = {True: "better", False: "no better", "within error": "not told apart", None: NOT_APPLICABLE}

    def than(what: str) -> list[str]:
        return [said.get(level := verdict.get(what), str(level)) for verdict in verdicts]

    columns = [
        Column("Task", [lines[name].title for name in of_first], words=True),
        Column("Than chance", than("better_than_chance"), words=True),
        Column("Than majority", than("better_than_majority"), words=True),
        Column(f"Than {reference}", than("reference"), words=True),
        Column(f"Of {reference}", [percent(rule.get("share")) for rule in rules]),
        Column(
            "Baselines beaten",
            [f"{len(r['beaten'])}/{r['baselines']}" if r.get("baselines") else NOT_APPLICABLE for r in rules],
        ),
        Column(
            "Bold rule", [("bold" if r["bold"] else "not bold") if r else NOT_APPLICABLE for r in rules], words=True
        ),
    ]
    yield _title(f"{title}: {_on_one_line(names[0])}")
    yield from table([column for column in columns if set(column.cells) != {NOT_APPLICABLE}], width)
    others = f"{_FILE} has those of all models." if len(names) > 1 else ""
    yield from _notes(f"{BOLD_RULE if any(rules) else ''} {others}".strip())


def _differences(evaluation: Evaluation, width: int) -> Iterator[Text]:
    """Differences on the same rows: of many, those alone that have the reference in them."""
    lines = {line.name: line for line in evaluation.lines}
    pairs = [pair for pair in evaluation.paired if pair.line in lines]
    references = {model.name for model in evaluation.models if model.role == "reference"}
    kept = [pair for pair in pairs if references & {pair.first, pair.second}]
    shown = kept if kept and len(pairs) > _MOST_PAIRS else pairs
    if not shown:
        return
    columns = [
        Column("Task", [lines[pair.line].title for pair in shown], words=True),
        Column("Models", [_on_one_line(f"{pair.first} − {pair.second}") for pair in shown], words=True),
        Column("Difference (95% interval)", [_difference(lines[pair.line].metric, pair) for pair in shown]),
        Column("", [NOT_APPLICABLE if pair.p_value is None else f"p {_p(pair.p_value)}" for pair in shown]),
    ]
    yield _title(f"Paired differences, suite {evaluation.suite}")
    yield from table([column for column in columns if set(column.cells) != {NOT_APPLICABLE}], width)
    tested = any(pair.p_value is not None for pair in shown)
    notes = [
        "First − second on the same rows (accuracies: percentage points), paired bootstrap"
        + ("; p: McNemar’s exact test." if tested else ".")
    ]
    if len(shown) < len(pairs):
        notes.append(f"{_FILE} has the other pairs.")
    yield from _notes(" ".join(notes))


def _difference(metric: str, pair: Paired) -> str:
    """`+0.5 (−3.0 to +4.0)`, to the decimals of the largest."""
    values = [number_of(value) for value in (pair.difference, pair.low, pair.high)]
    places = min((places_of(metric, value) for value in values if value is not None), default=0)
    texts = [NOT_APPLICABLE if value is None else at_places(metric, value, places, sign="+") for value in values]
    return f"{texts[0]} ({texts[1]} to {texts[2]})"


def _p(value: float) -> str:
    return "<0.001" if value < 0.001 else f"{value:.{2 if value >= 0.1 else 3}f}"


def _published(
    evaluation: Evaluation, published: Callable[[dict[str, Any]], Iterable[Sheet]], width: int
) -> Iterator[Text]:
    """What is published of these lines: figures that are there, of a few models; verdicts; figure 1."""
    lines = {line.name: dict(found) for line in evaluation.lines if (found := _record(evaluation, line))}
    by_table: dict[Any, list[dict[str, Any]]] = {}
    for record in lines.values():
        by_table.setdefault(record.get("table"), []).append(record)
    left_out = []
    for number, records in by_table.items():
        figures = [dict_of(record["figures"]) for record in records]
        models = [
            name for name in figures[0] if any(dict_of(of.get(name)).get("printed") is not None for of in figures)
        ]
        if len(models) > _MOST_PUBLISHED:
            left_out.append(f"Published, table {number}: {len(models)} models; {_FILE} has them.")
            models = []
        for record, of in zip(records, figures, strict=True):
            record["figures"] = {name: of.get(name) for name in models}
    reasons = [(name, _reason(record)) for name, record in lines.items() if record.get("reason")]
    judged = {name: record.pop("models", {}) for name, record in lines.items()}
    bare = {name: record | {"reason": None} for name, record in lines.items()}
    for sheet in published(evaluation.published | {"lines": bare}):
        yield _title(sheet.title)
        cells = list(zip(sheet.header, *sheet.rows, strict=True))
        yield from table([Column(h, c, words=at < sheet.words) for at, (h, *c) in enumerate(cells)], width)
        yield from _notes(*sheet.notes)
    for reason, names in _alike(reasons).items():
        yield Text(f"{', '.join(names)} {'is' if len(names) == 1 else 'are'} not compared: {reason}", style="dim")
    if reasons:
        yield Text()
    yield from (Text(note) for note in left_out)
    if left_out:
        yield Text()
    yield from _verdicts(evaluation, "Beside the published scores", judged, "poster’s reference", width)


def _record(evaluation: Evaluation, line: Line) -> dict[str, Any]:
    """A line's published figures; empty where there are none."""
    record = dict_of(dict_of(evaluation.published.get("lines")).get(line.name))
    return record if record.get("figures") else {}


def _reason(record: Mapping[str, Any]) -> str:
    """Why a line is not compared, without what the table of scores says."""
    reason = str(record["reason"])
    return reason.partition(":")[0] if reason.startswith(("not whole:", "no scores:")) else reason
