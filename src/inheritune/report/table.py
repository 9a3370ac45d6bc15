"""The comparison of the models as rows of text: for the page, the terminal, a model card."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from inheritune.report.numbers import count, decimals, duration, flops, percent, plain

if TYPE_CHECKING:
    from rich.table import Table


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
    """The models that the result speaks of, by column title, in the order they are shown."""
    controls = dict_of(result.get("controls"))
    models = {
        "Reference": dict_of(result.get("reference")),
        "Cut": dict_of(controls.get("cut")),
        "Target": dict_of(result.get("target")),
        "Random init": dict_of(controls.get("random")),
    }
    return {title: model for title, model in models.items() if model}


def judging_set(result: Mapping[str, Any]) -> str:
    """The validation set that the verdict is about: shown first."""
    return str(dict_of(result.get("share")).get("set") or "held-out")


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


def _seconds(result: Mapping[str, Any], ledger: Mapping[str, Any]) -> dict[str, Any]:
    """What each trained model's training took, by column title: the result's word, else the ledger's."""
    keys = {"Target": "train target", "Random init": "train random"}
    models = models_of(result)
    return {
        title: model.get("seconds", dict_of(ledger.get(keys.get(title, ""))).get("seconds"))
        for title, model in models.items()
    }


def table_rows(result: Mapping[str, Any], ledger: Mapping[str, Any] | None = None) -> list[Row]:
    """The comparison as text: a header row with the models' titles, then a row for each measure.

    Args:
        result: `result.json`'s record; what it lacks is shown as `–`, and a model it lacks has no column.
        ledger: `ledger.json`'s record, for the time that training took.
    """
    models, judge = models_of(result), judging_set(result)

    def row(label: str, unit: str, key: str, shown: Any) -> Row:
        return Row(label, unit, tuple(shown(model.get(key)) for model in models.values()))

    rows = [Row("", "", tuple(models)), row("Layers", "", "layers", plain), row("Parameters", "", "parameters", count)]
    for label, unit, key, shown in (
        ("Loss", "nats a token", "validation_losses", decimals),
        ("Bits a byte", "", "bits_per_byte", decimals),
        ("Next-token accuracy", "", "accuracy", percent),
    ):
        values = [by_set(model, key, judge) for model in models.values()]
        names = ordered_sets(judge, (name for measured in values for name in measured))
        measures = [(name, tuple(shown(measured.get(name)) for measured in values)) for name in names]
        if len(names) > 1:
            rows += [Row(label, unit, ()), *(Row(name, unit, cells, within=label) for name, cells in measures)]
        else:
            rows += [Row(f"{label}, {name}", unit, cells) for name, cells in measures]
    before = dict_of(result.get("before"))
    starts = {
        "Target": dict_of(before.get("target")).get(judge),
        "Random init": dict_of(before.get("random")).get(judge),
    }
    if any(value is not None for value in starts.values()):
        cells = tuple(decimals(starts.get(title)) for title in models)
        rows.append(Row(f"Initial loss, {judge}", "", cells))
    return [
        *rows,
        row("Tokens seen", "", "tokens_trained", count),
        row("Unique tokens", "", "unique_tokens", count),
        row("Passes", "", "passes", plain),
        row("Training FLOPs", "", "flops", flops),
        Row("Training time", "", tuple(duration(value) for value in _seconds(result, ledger or {}).values())),
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
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1))
    table.add_column("", overflow="fold", max_width=None if width is None else max(16, width - 13 * len(header.cells)))
    for title in header.cells:
        table.add_column(title, justify="right", style="bold" if title == "Target" else None)
    for row in rows:
        # Text, not str: rich would read a set's name as markup.
        label = Text(f"  {row.label}" if row.within else row.label)
        if row.unit and not row.within:
            label.append(f" ({row.unit})", style="dim")
        table.add_row(label, *row.cells)
    return table


def markdown_table(result: Mapping[str, Any], ledger: Mapping[str, Any] | None = None) -> str:
    """The comparison as a Markdown table, for a model card or a README."""
    header, *rows = table_rows(result, ledger)
    lines = [["", *header.cells], ["---", *("---:" for _ in header.cells)]]
    for row in rows:
        if not row.cells:
            continue  # a table in Markdown has no headings between its rows: each row says its measure
        label = f"{row.within}, {row.label}" if row.within else row.label
        label += f" ({row.unit})" if row.unit else ""
        lines.append([re.sub(r"([\\|<>&`*_\[\]])", r"\\\1", label), *row.cells])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"
