"""Table 4 of the poster for any run: each model's layers, initialisation, steps, loss with its interval, FLOPs.

The poster's columns are Models, Layers, Initialization, Steps, Val loss, Wikitext, Lambada; its rows the reference,
random init for T and 2T steps, and the rounds, the last of them the final model. Added are the loss's interval, the
paired difference to the reference, and what a model took: its own training, the rounds before it, the reference's.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from inheritune.comparison import Documents, resampled_means
from inheritune.report.numbers import NOT_APPLICABLE, count, decimals, flops, number_of, percent, plain
from inheritune.report.records import Record, Records, records_of, round_name, round_title
from inheritune.report.sheets import Sheet
from inheritune.report.table import escaped, models_of
from inheritune.result import title_of
from inheritune.scores import Evaluation, Line as EvaluationLine, Score

if TYPE_CHECKING:
    from rich.table import Table

_INITIALISATIONS = {
    "inherit": "Ours",
    "random": "rand init",
    "last": "last n",
    "every-other": "every other",
    "stack": "stack",
    "distill": "rand init, distilled",
    "half-width": "rand init, half width",
}
_SCORED = {"wikitext": "word_perplexity", "lambada_openai": "acc"}
"""The metrics of the tasks that the table shows."""
_WIDE = 10_000
"""Perplexities from here on, of models that hardly know the language, would take other columns' room."""
_WITHOUT_REFERENCE = ("reference", "random", "half-width")


@dataclass(frozen=True)
class Line:
    """A model's line of the table, as text; what does not apply or was not recorded is a dash."""

    model: str
    layers: str
    initialisation: str
    steps: str
    loss: str
    """Nats a token on the judging set."""
    interval: str
    """Of the loss: 95%, by a bootstrap over documents."""
    difference: str
    """The loss less the reference's, nats a token, on the same documents."""
    difference_interval: str
    wikitext: str
    """Perplexity a word, and of how many rows where not of all."""
    lambada: str
    """Accuracy, likewise."""
    flops: str
    """Of its own training."""
    flops_so_far: str
    """With the rounds before it."""
    flops_with_reference: str
    """And with the reference's own training, where the model takes anything from it: all there is to having it."""
    final: bool
    """Whether it is the run's target, or the round that became it."""


def _intervals(records: Records) -> dict[str, tuple[str, str]]:
    """By model the 95% intervals of its loss and of its difference to the reference, in nats a token.

    The documents are drawn once for all models, so that differences are paired (see `comparison`). A model that was
    measured on other documents is left out; one document leaves no spread to judge by.
    """
    found = {name: records.documents(name) for name in records.losses}
    measured = {name: documents for name, documents in found.items() if documents is not None}
    _, tokens = measured.get("reference") or next(iter(measured.values()), (None, np.empty(0)))
    if len(tokens) < 2:
        return {}
    same = {name: nats for name, (nats, theirs) in measured.items() if np.array_equal(theirs, tokens)}
    drawn = dict(zip(same, resampled_means(list(same.values()), tokens), strict=True))
    paired = {name: _interval(drawn[name] - drawn["reference"]) for name in drawn if "reference" in drawn}
    return {name: (_interval(means), paired.get(name, NOT_APPLICABLE)) for name, means in drawn.items()}


def _interval(drawn: Documents) -> str:
    """The 95% interval of resampled means."""
    low, high = np.percentile(drawn, [2.5, 97.5])
    return f"{low:.3f} to {high:.3f}"


def scores_of(evaluation: Record) -> dict[str, dict[str, str]]:
    """By model's name, and by its role, its scores from `evaluation.json` as the table shows them.

    Returns:
        `wikitext`, perplexity a word, and `lambada_openai`, accuracy: where not all rows were evaluated, `34.84 (10 of
        62 rows)`. Empty where the record is missing or none.
    """
    try:
        return _scores_of(Evaluation.of(evaluation))
    except (ValueError, TypeError, LookupError, AttributeError):
        return {}


def _scores_of(known: Evaluation) -> dict[str, dict[str, str]]:
    found: dict[str, dict[str, str]] = {}
    for model in known.models:
        scores = {
            task: text
            for line in known.lines
            for task, metric in _SCORED.items()
            if line.tasks == (task,)
            and line.shots == 0
            and (text := _score_text(line, known.scores.get(model.name, {}).get(line.name), metric))
        }
        found[model.name] = scores
        if model.role in ("reference", "target"):  # what the table calls them, whatever the evaluation does
            found.setdefault(model.role, scores)
    return found


def _score_text(line: EvaluationLine, score: Score | None, metric: str) -> str | None:
    """A score in a metric, be it the line's own or one beside it; None where there is none."""
    if score is None:
        return None
    value = number_of(score.value if line.metric == metric else score.beside.get(metric, (None, None))[0])
    if value is None:
        return None
    text = (
        percent(value) if metric == "acc" else f"{value:,.2f}" if value < _WIDE else f"{value:.3g}".replace("e+0", "e")
    )
    return text if line.whole else f"{text} ({line.rows:,} of {line.rows_in_split:,} rows)"


def table4_rows(records: Records) -> list[Line]:
    """The table's lines: the reference, controls, then the target or its rounds; the one that matched comes last."""
    intervals, scores = _intervals(records), scores_of(records.evaluation)
    benchmark, trained = records.benchmark, number_of(records.model("reference").get("flops"))
    lines = []
    for model in _models(records, records.final):
        loss = number_of(model.record.get("validation_loss"))
        above = loss - benchmark if loss is not None and benchmark is not None else None
        interval, paired = intervals.get(model.name, (NOT_APPLICABLE, NOT_APPLICABLE))
        score = scores.get(model.name) or scores.get(model.title) or (scores.get("target", {}) if model.final else {})
        whole = _sum(model.so_far, trained) if model.takes_from_reference else model.so_far
        lines.append(
            Line(
                model=model.title,
                layers=plain(model.record.get("layers")),
                initialisation=model.initialisation,
                steps=_steps(model.record),
                loss=decimals(loss),
                interval=interval,
                difference=decimals(above if model.name != "reference" else None),
                difference_interval=paired if model.name != "reference" else NOT_APPLICABLE,
                wikitext=score.get("wikitext", NOT_APPLICABLE),
                lambada=score.get("lambada_openai", NOT_APPLICABLE),
                flops=flops(model.record.get("flops")),
                flops_so_far=flops(model.so_far),
                flops_with_reference=flops(whole),
                final=model.final,
            )
        )
    return lines


@dataclass(frozen=True)
class _Model:
    """A model of the table, its numbers as they were recorded."""

    name: str
    title: str
    initialisation: str
    record: Record
    so_far: float | None
    """FLOPs of its own training and of the rounds before it; None where they are not known."""
    takes_from_reference: bool
    final: bool = False


def _models(records: Records, final: Record | None) -> Iterator[_Model]:
    """The models in the order of the table."""
    listed = [*models_of(records.result), *records.losses]
    names = [name for name in dict.fromkeys(listed) if not name.startswith("round-")]
    init = str(records.result.get("init") or ("inherit" if "reference" in names else "random"))
    for name in sorted(names, key=_place):
        if name == "target" and records.rounds:
            continue  # it is one of them
        record = {"steps": 0, **records.model(name)} if name == "cut" else records.model(name)
        start = init if name in ("target", "cut", "other-data") else _base(name)
        if name == "reference":
            here = record.get("initialisation") == "random" or "train reference" in records.ledger
            word = "rand init" if here else "pre-trained"
        else:
            word = _initialisation(start) + (", untrained" if name == "cut" else "")
        yield _Model(
            name=name,
            title=title_of(name),
            initialisation=word,
            record=record,
            so_far=number_of(record.get("flops")),
            takes_from_reference=start not in _WITHOUT_REFERENCE,
            final=name == "target",
        )
    yield from _round_models(records, final, _initialisation(init), init not in _WITHOUT_REFERENCE)


def _place(name: str) -> tuple[bool, ...]:
    """For sorting: the reference, random init, that for more steps or of other layers, other controls, cut, target."""
    return name == "target", name == "cut", name != "reference", _base(name) != "random", name != "random"


def _round_models(records: Records, final: Record | None, word: str, inherits: bool) -> Iterator[_Model]:
    """The rounds; the one that matched comes last and costs all that the growth took."""
    so_far: float | None = 0.0
    models = []
    for one in records.rounds:
        so_far = _sum(so_far, number_of(one.get("flops")))
        grown = ", grown" if one.get("growth") == "warm" else ""
        record = {**records.model(round_name(one)), **{key: value for key, value in one.items() if value is not None}}
        name, title = round_name(one), round_title(one)
        models.append(_Model(name, title, word + grown, record, so_far, inherits, final=one is final))
    matched = records.result.get("matched") is True
    yield from (model for model in models if not (model.final and matched))
    for model in models:
        if model.final and matched:
            yield replace(model, title="Final model →", so_far=so_far)


def _base(name: str) -> str:
    """A control's word without its steps and layers."""
    return name.partition("@")[0].partition(":")[0]


def _initialisation(word: str) -> str:
    """What an init word or a control is called in the table, in the poster's words where it has one."""
    return _INITIALISATIONS.get(word) or title_of(word)


def _sum(one: float | None, other: float | None) -> float | None:
    return None if one is None or other is None else one + other


def _steps(record: Record) -> str:
    """Steps taken, and of how many where a round was abandoned."""
    taken = count(record.get("steps"))
    return f"{taken} of {count(record.get('planned_steps'))}" if record.get("state") == "abandoned" else taken


_COLUMNS = (
    ("model", "Model", "Model"),
    ("layers", "Layers", "Lay-\ners"),
    ("initialisation", "Initialisation", "Initiali-\nsation"),
    ("steps", "Steps", "Steps"),
    ("loss", "Val loss", "Val\nloss"),
    ("interval", "95% interval", "95%\ninterval"),
    ("difference", "− reference", "− refe-\nrence"),
    ("difference_interval", "95% interval", "95%\ninterval"),
    ("wikitext", "Wikitext", "Wiki-\ntext"),
    ("lambada", "LAMBADA", "LAM-\nBADA"),
    ("flops", "FLOPs", "FLOPs"),
    ("flops_so_far", "FLOPs so far", "so\nfar"),
    ("flops_with_reference", "FLOPs with reference’s", "with\nref."),
)
"""A field of `Line`, its heading, and that on a terminal."""
_SCORES = ("wikitext", "lambada")
_FIRST_TO_GO = ("difference_interval", "flops", "difference")
"""Columns that give way, in this order, after scores that no model has. The difference is what the verdict is about."""
_WORDS = ("model", "initialisation")


def render_table4(run: Path, *, width: int = 80) -> Table:
    """Table 4 for the terminal.

    Args:
        run: the run directory.
        width: columns to fit. Where they are too few, scores that no model has go first, then the interval of the
            difference to the reference, the FLOPs of the training alone, the difference; the caption says so.
    """
    from rich import box
    from rich.table import Table
    from rich.text import Text

    records = records_of(run)
    lines = table4_rows(records)
    columns = _fitting(lines, width)
    table = Table(
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        padding=0,
        caption=Text(_caption(records, lines, [name for name, _, _ in _COLUMNS if name not in columns])),
        caption_justify="left",
    )
    for name, _, heading in _COLUMNS:
        if name in columns:
            justify: Any = "left" if name in _WORDS else "right"
            least = _room(lines, name, heading)
            table.add_column(heading, justify=justify, min_width=least, no_wrap=name not in _WORDS, overflow="fold")
    for line in lines:
        # Text, not str: rich would read a control's name as markup.
        cells = [Text(_short(line, name)) for name in columns]
        table.add_row(*cells, style="bold" if line.final else None)
    return table


def _short(line: Line, name: str) -> str:
    """A cell for the terminal: what other columns say, or no one needs, is left out."""
    text: str = getattr(line, name)
    if name == "model":
        return re.sub(r", [0-9]+(x steps| layers?)", "", text)
    if name in _SCORES:  # the caption says what the star is
        return re.sub(r" \(.*\)", "*", text)
    # A loss and the ends of its interval are never negative: a dash between them is no minus.
    return text.replace(" to ", "–") if name == "interval" else text.replace(" of ", "\nof ")


def _room(lines: Sequence[Line], name: str, heading: str) -> int:
    """Characters that a column needs: words may go below one another."""
    cells = [heading, *(_short(line, name) for line in lines)]
    return max(len(part) for cell in cells for part in (cell.split() if name in _WORDS else cell.split("\n")))


def _fitting(lines: Sequence[Line], width: int) -> list[str]:
    """The columns that fit, by their fields."""
    room = {name: _room(lines, name, heading) for name, _, heading in _COLUMNS}
    empty = [name for name in _SCORES if all(getattr(line, name) == NOT_APPLICABLE for line in lines)]
    for leaving in (empty, *([name] for name in _FIRST_TO_GO)):
        if sum(room.values()) + len(room) + 1 <= width:
            break
        room = {name: needed for name, needed in room.items() if name not in leaving}
    return list(room)


def _caption(records: Records, lines: Sequence[Line], left_out: Sequence[str]) -> str:
    """What the columns are, and which had no room."""
    documents = records.documents("reference")
    over = f", 95% interval over {len(documents[0]):,} documents" if documents is not None else ""
    own = "" if "flops" in left_out else "of a model’s own training; "
    text = (
        f"Val loss: nats a token on {records.judge}{over}. FLOPs: {own}so far: with the rounds before it; with ref.: "
        "and the reference’s own training, where the model takes from it."
    )
    scores = {name: [getattr(line, name) for line in lines] for name in _SCORES}
    titles = {name: title for name, title, _ in _COLUMNS}
    for name, cells in scores.items():
        limits = dict.fromkeys(found[1] for cell in cells if (found := re.search(r"\((.*)\)", cell)))
        if limits and name not in left_out:
            text += f" * {titles[name]}: {', '.join(limits)}."
    words = {"difference": "the difference to the reference", "flops": "own FLOPs"}
    if "difference" not in left_out:
        words["difference_interval"] = "the interval of the difference"
    words |= {name: f"{titles[name]} (no score yet)" for name in _SCORES}
    missing = [words[name] for name in left_out if name in words]
    return f"{text} Left out for want of room: {', '.join(missing)}." if missing else text


def table4_sheet(records: Records) -> Sheet | None:
    """Table 4 as a sheet; None where it would have no line."""
    lines = table4_rows(records)
    if not lines:
        return None
    rows = tuple(tuple(getattr(line, name) for name, _, _ in _COLUMNS) for line in lines)
    note = f"Validation loss on {records.judge}, nats a token; intervals by a bootstrap over documents."
    # words come first in a sheet
    return Sheet("Table 4", tuple(heading for _, heading, _ in _COLUMNS), rows, 3, (note,))


def markdown_table4(run: Path) -> str:
    """Table 4 as Markdown, the final model in bold."""
    rows = [[heading for _, heading, _ in _COLUMNS], ["---" if name in _WORDS else "---:" for name, _, _ in _COLUMNS]]
    for line in table4_rows(records_of(run)):
        cells = [escaped(getattr(line, name)) for name, _, _ in _COLUMNS]
        rows.append([f"**{cell}**" for cell in cells] if line.final else cells)
    return "\n".join(f"| {' | '.join(row)} |" for row in rows) + "\n"
