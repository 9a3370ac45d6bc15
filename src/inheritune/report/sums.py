"""The ledger's sums as text: a model's row, and the table of a run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from inheritune.report.numbers import NOT_APPLICABLE, count, duration, flops, number_of, percent, plain, significant
from inheritune.report.sheets import Sheet
from inheritune.report.table import dict_of
from inheritune.result import title_of

Record = Mapping[str, Any]
_KINDS = {"pilot": "Pilot", "probe": "Probe of layers"}
_MEASURES = (
    ("unique_tokens", "Unique tokens"),
    ("tokens", "Tokens"),
    ("passes", "Passes"),
    ("steps", "Steps"),
    ("flops", "FLOPs"),
    ("wall_hours", "Wall"),
    ("device_hours", "Device hours"),
    ("mfu", "MFU"),
    ("energy_kwh", "kWh"),
    ("peak_memory_bytes", "Peak GiB"),
    ("restarts", "Restarts"),
)


def cell(sums: Record, measure: str) -> str:
    """A measure of some sums (see `ledger.total`): `≥` before a lower bound, `est.` after energy that was not measured.

    Args:
        sums: of a run, or of one of its arms.
        measure: its key.
    """
    value = number_of(sums.get(measure))
    if value is None:
        return NOT_APPLICABLE
    text = _text(measure, value)
    lower = "≥" if measure in dict_of(sums.get("gaps")) and measure != "mfu" else ""
    return f"{lower}{text}" + (" est." if measure == "energy_kwh" and _is_estimated(sums) else "")


def _text(measure: str, value: float) -> str:
    if measure in ("tokens", "unique_tokens", "steps"):
        return count(value)
    if measure == "flops":
        return flops(value)
    if measure == "wall_hours":
        return duration(3600 * value)
    if measure == "mfu":
        return percent(value)
    if measure == "peak_memory_bytes":
        return f"{value / 2**30:.2f}"
    return plain(value) if measure in ("passes", "restarts") else significant(value)


def _is_estimated(sums: Record) -> bool:
    """Whether energy is estimated, be it in part."""
    return any(str(source).startswith("estimated") for source in sums.get("energy_sources") or ())


def sums_sheet(total: Record) -> Sheet | None:
    """A run's sums as a table, a row an arm and one of all; None where there are none.

    Args:
        total: as `ledger.total` gives it.
    """
    arms = {str(name): dict_of(sums) for name, sums in dict_of(total.get("arms")).items()}
    training = dict_of(total.get("training"))
    if not arms or not training:
        return None
    rows = [(_name(name, sums), sums) for name, sums in arms.items()]
    rows += [("All trainings", training)]
    return Sheet(
        "What was taken",
        ("", *(heading for _, heading in _MEASURES)),
        tuple((name, *(cell(sums, measure) for measure, _ in _MEASURES)) for name, sums in rows),
        1,
        tuple(notes(total)),
    )


def _name(arm: str, sums: Record) -> str:
    """`Target`, `Random init, abandoned`, `Target, 3 trainings`."""
    title = _KINDS.get(arm) or title_of(arm)
    number, state = number_of(sums.get("trainings")) or 1, sums.get("state")
    return title + (f", {number:.0f} trainings" if number > 1 else "") + (f", {state}" if state != "finished" else "")


def notes(total: Record) -> Iterator[str]:
    """What the sums of a run hold, where energy is from, and what was not recorded."""
    training, other = dict_of(total.get("training")), dict_of(total.get("other_seconds"))
    wall = cell({"wall_hours": total.get("wall_hours"), "gaps": total.get("gaps")}, "wall_hours")
    rest = duration(sum(number_of(seconds) or 0 for seconds in other.values()))
    yield f"All in all {wall}, of which {rest} were no training: {', '.join(map(str, other)) or 'nothing'}."
    if training.get("devices"):
        yield f"On {'; '.join(map(str, training['devices']))}."
    if training.get("energy_sources"):
        yield f"Energy: {', '.join(map(str, training['energy_sources']))}."
    yield from gap_notes(training)


def gap_notes(sums: Record) -> Iterator[str]:
    """A sentence for each group of stages that lack the same measures."""
    by_stages: dict[str, list[str]] = {}
    headings = dict(_MEASURES)
    for measure, stages in dict_of(sums.get("gaps")).items():
        if measure in headings and isinstance(stages, list):
            by_stages.setdefault(", ".join(map(str, stages)), []).append(headings[measure])
    for stages, measures in by_stages.items():
        yield f"Not recorded, or only in part: {', '.join(measures)} of {stages}."
