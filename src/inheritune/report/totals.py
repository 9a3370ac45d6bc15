"""The ledger's totals as a table: what each arm took, and all of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from inheritune.report.evaluation_numbers import Sheet
from inheritune.report.numbers import NOT_APPLICABLE, by_key, count, duration, flops, number_of, percent, plain, words
from inheritune.report.table import dict_of
from inheritune.result import title_of

_GIB = 2**30


def _hours(value: Any) -> str:
    number = number_of(value)
    return NOT_APPLICABLE if number is None else duration(3600 * number)


def _gib(value: Any) -> str:
    number = number_of(value)
    return NOT_APPLICABLE if number is None else f"{number / _GIB:.2f}"


_SHOWN: dict[str, tuple[str, Callable[[Any], str]]] = {
    "trainings": ("Trainings", plain),
    "restarts": ("Restarts", plain),
    "steps": ("Steps", count),
    "tokens": ("Tokens", count),
    "unique_tokens": ("Unique", count),
    "passes": ("Passes", plain),
    "flops": ("FLOPs", flops),
    "wall_hours": ("Wall time", _hours),
    "device_hours": ("Device time", _hours),
    "mfu": ("MFU", percent),
    "energy_kwh": ("kWh", lambda value: by_key("", value)),
    "peak_memory_bytes": ("Peak GiB", _gib),
    "money": ("Price", lambda value: by_key("", value)),
}
"""By measure its heading and how it is shown; in this order."""


def totals_sheet(total: Mapping[str, Any]) -> Sheet | None:
    """The totals of `ledger.json`, a row an arm and one of all trainings; None where there are none.

    A sum that some stages are missing from is a lower bound, and marked.

    Args:
        total: the ledger's entry `total`.
    """
    arms = {title_of(str(name)): dict_of(sums) for name, sums in dict_of(total.get("arms")).items()}
    rows_of = arms | ({"All trainings": whole} if (whole := dict_of(total.get("training"))) else {})
    columns = [key for key in _SHOWN if any(sums.get(key) is not None for sums in rows_of.values())]
    if not columns:
        return None
    rows = [
        (name, str(sums.get("state") or ""), *(_cell(key, sums) for key in columns)) for name, sums in rows_of.items()
    ]
    header = ("", "State", *(_SHOWN[key][0] for key in columns))
    return Sheet("Totals", header, tuple(rows), 2, tuple(_notes(total, rows_of)))


def _cell(key: str, sums: Mapping[str, Any]) -> str:
    text = _SHOWN[key][1](sums.get(key))
    return f"≥ {text}" if text != NOT_APPLICABLE and key in dict_of(sums.get("gaps")) else text


def _notes(total: Mapping[str, Any], rows_of: Mapping[str, Mapping[str, Any]]) -> list[str]:
    notes = []
    if number_of(total.get("wall_hours")) is not None:
        other = {str(name): duration(value) for name, value in dict_of(total.get("other_seconds")).items()}
        besides = ", ".join(f"{words(name)} {text}" for name, text in other.items())
        took = f"{'at least ' if dict_of(total.get('gaps')) else ''}{_hours(total['wall_hours'])}"
        notes.append(f"Everything took {took}" + (f"; beside trainings: {besides}." if besides else "."))
    sources = {str(one) for sums in rows_of.values() for one in _listed(sums.get("energy_sources"))}
    if sources:
        notes.append(f"Energy: {', '.join(sorted(sources))}.")
    gaps = {str(key) for sums in rows_of.values() for key in dict_of(sums.get("gaps"))}
    if gaps:
        named = ", ".join(map(words, sorted(gaps)))
        notes.append(f"≥: not every stage recorded it, so the sum is a lower bound ({named}).")
    return notes


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []
