"""The comparison of the models as rows of text: for the page, the terminal, a model card."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from inheritune.report.numbers import count, decimals, duration, flops, percent, plain
from inheritune.result import title_of

if TYPE_CHECKING:
    from rich.table import Table


OTHER_COLOURS = 4
"""How many colours there are for controls other than `cut` and `random`."""


@dataclass(frozen=True)
class Row:
    """A line of the table: what is measured, its unit, and a cell for each model in the order of the header.

    A measure on several validation sets is a heading, a row without cells, and a row for each set, whose `within` is
    the heading's label.
    """

    label: str
    unit: str
    cells: tuple[str, ...]
    within: str = ""


def dict_of(value: Any) -> dict[str, Any]:
    """The value where it is a JSON object, else an empty one."""
    return value if isinstance(value, dict) else {}


def models_of(result: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The models that the result speaks of, by name, in the order they are shown: random init last."""
    controls = dict_of(result.get("controls"))
    order = ["reference", "cut", "target", *(name for name in controls if name not in ("cut", "random")), "random"]
    models = {**controls, "reference": result.get("reference"), "target": result.get("target")}
    return {name: model for name in order if (model := dict_of(models.get(name)))}


def colour_names(names: Iterable[str]) -> dict[str, str]:
    """The style sheet's name of each model's colour: its own, or for further controls one of a few, in turn."""
    own = ("reference", "cut", "target", "random")
    names = list(names)
    others = [name for name in names if name not in own]
    return {name: name if name in own else f"control-{1 + others.index(name) % OTHER_COLOURS}" for name in names}


def judging_set(result: Mapping[str, Any]) -> str:
    """The validation set that the verdict is about: shown first."""
    stated = dict_of(result.get("share")).get("set")
    measured = dict_of(dict_of(result.get("target")).get("validation_losses"))
    named = [name for name in measured if name != "development"]
    return str(stated or ("held-out" if "held-out" in named or not named else named[0]))


def by_set(model: Mapping[str, Any], key: str, judge: str) -> dict[str, Any]:
    """A measure by validation set; a bare number is the judging set's."""
    value = model.get(key)
    if key == "validation_losses" and value is None:
        value = model.get("validation_loss")
    return value if isinstance(value, dict) else {} if value is None else {judge: value}


def ordered_sets(judge: str, found: Iterable[str]) -> list[str]:
    """The judging set first, the development set last, the others as they were recorded."""
    names = list(dict.fromkeys(found))
    return sorted(names, key=lambda name: (name != judge, name == "development"))


def training_of(name: str, result: Mapping[str, Any], ledger: Mapping[str, Any]) -> dict[str, Any]:
    """What the ledger has of a model's training; of a target that grew, of its round's."""
    round_layers = dict_of(models_of(result).get("target")).get("layers") if "growth" in result else None
    stage = f"round-{round_layers}" if name == "target" and "growth" in result else name
    return dict_of(ledger.get(f"train {stage}"))


def _seconds(result: Mapping[str, Any], ledger: Mapping[str, Any]) -> dict[str, Any]:
    """What each trained model's training took, by name: the result's word, else the ledger's."""
    return {
        name: model.get("seconds", training_of(name, result, ledger).get("seconds"))
        for name, model in models_of(result).items()
    }


def table_rows(result: Mapping[str, Any], ledger: Mapping[str, Any] | None = None) -> list[Row]:
    """The comparison as text: a header row with the models' titles, then a row for each measure.

    Args:
        result: `result.json`'s record; what it lacks is shown as `–`, and a model it lacks has no column.
        ledger: `ledger.json`'s record, for the time that training took.
    """
    models, judge = models_of(result), judging_set(result)
    before = dict_of(result.get("before"))
    starts = [dict_of(before.get(name)).get(judge) for name in models]
    titles = tuple(title_of(name) for name in models)
    return measured_rows(titles, [*models.values()], judge, starts, [*_seconds(result, ledger or {}).values()])


def measured_rows(
    titles: tuple[str, ...],
    models: Sequence[Mapping[str, Any]],
    judge: str,
    starts: Sequence[Any],
    seconds: Sequence[Any],
) -> list[Row]:
    """Models beside each other: a header row with their titles, then a row for each measure.

    Args:
        titles: of the columns.
        models: for each column what `result.json` has of its model.
        judge: the validation set that comes first.
        starts: each model's loss on it before training, nats a token; None where there is none.
        seconds: what each model's training took.
    """

    def row(label: str, unit: str, key: str, shown: Any) -> Row:
        return Row(label, unit, tuple(shown(model.get(key)) for model in models))

    rows = [Row("", "", titles), row("Layers", "", "layers", plain), row("Parameters", "", "parameters", count)]
    for label, unit, key, shown in (
        ("Loss", "nats a token", "validation_losses", decimals),
        ("Bits a byte", "", "bits_per_byte", decimals),
        ("Next-token accuracy", "", "accuracy", percent),
    ):
        values = [by_set(model, key, judge) for model in models]
        names = ordered_sets(judge, (name for measured in values for name in measured))
        measures = [(name, tuple(shown(measured.get(name)) for measured in values)) for name in names]
        if len(names) > 1:
            rows += [Row(label, unit, ()), *(Row(name, unit, cells, within=label) for name, cells in measures)]
        else:
            rows += [Row(f"{label}, {name}", unit, cells) for name, cells in measures]
    if any(value is not None for value in starts):
        rows.append(Row(f"Initial loss, {judge}", "", tuple(map(decimals, starts))))
    return [
        *rows,
        row("Tokens seen", "", "tokens_trained", count),
        row("Unique tokens", "", "unique_tokens", count),
        row("Passes", "", "passes", plain),
        row("Training FLOPs", "", "flops", flops),
        Row("Training time", "", tuple(map(duration, seconds))),
    ]


def render_table(
    result: Mapping[str, Any], ledger: Mapping[str, Any] | None = None, *, width: int | None = None
) -> Table:
    """The comparison for the terminal, models as columns.

    Args:
        result: `result.json`'s record.
        ledger: `ledger.json`'s record, for the time that training took.
        width: columns of the terminal to fit; unset: the console decides.
    """
    from rich import box
    from rich.table import Table
    from rich.text import Text

    header, *rows = table_rows(result, ledger)
    # More than reference, cut, target and random: without padding six models still fit into eighty columns.
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1 if len(header.cells) <= 4 else 0))
    room = None if width is None else max(16, width - 13 * len(header.cells))
    table.add_column("", overflow="fold", max_width=room)
    for title in header.cells:
        # Text, not str: rich would read a name as markup.
        table.add_column(Text(title), justify="right", overflow="fold", style="bold" if title == "Target" else None)
    for row in rows:
        label = Text(f"  {row.label}" if row.within else row.label)
        if row.unit and not row.within:
            label.append(f" ({row.unit})", style="dim")
        table.add_row(label, *row.cells)
    return table


def markdown_table(result: Mapping[str, Any], ledger: Mapping[str, Any] | None = None) -> str:
    """The comparison as a Markdown table, for a model card or a README."""
    header, *rows = table_rows(result, ledger)
    lines = [["", *map(escaped, header.cells)], ["---", *("---:" for _ in header.cells)]]
    for row in rows:
        if not row.cells:
            continue  # a table in Markdown has no headings between its rows: each row says its measure
        label = f"{row.within}, {row.label}" if row.within else row.label
        label += f" ({row.unit})" if row.unit else ""
        lines.append([escaped(label), *row.cells])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def escaped(text: str) -> str:
    """Text as Markdown that shows it as it is."""
    return re.sub(r"([\\|<>&`*_\[\]])", r"\\\1", text)
