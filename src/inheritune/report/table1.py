"""Table 1 of the poster with runs below its rows: what pre-training took, and what the poster leaves out of it.

The poster's columns are model (with its tokens), GPU count, GPU type, days. Device hours follow from these. A run has a
row for its target, as the poster has, and one for all that it trained: controls, rounds that did not match, learning
rates that were not the best, probes. What the reference itself took before is in neither, and has a row of its own
where it is known.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from inheritune.devices import named
from inheritune.errors import Refused
from inheritune.ledger import REFERENCE, TARGET, total
from inheritune.published import TABLE1, Compute
from inheritune.report.numbers import NOT_APPLICABLE, count, duration, flops, number_of, plain, significant
from inheritune.report.records import Records, read_record, records_of
from inheritune.report.sheets import PACKAGES, Sheet, in_latex, in_markdown
from inheritune.report.sums import cell, gap_notes
from inheritune.report.table import dict_of
from inheritune.result import title_of

if TYPE_CHECKING:
    from rich.console import Group

Record = Mapping[str, Any]
_RECORDS = ("recipe.yaml", "ledger.json", "result.json", "growth.jsonl", "metrics.jsonl")
"""What makes a directory a run's: one of these."""
_ON_HUB = {
    "mosaicml/mpt-1b-redpajama-200b": "MPT-1.3B (200B)",
    "eleutherai/pythia-1.4b": "Pythia-1.4B (300B)",
    "facebook/opt-1.3b": "OPT-1.3B (300B)",
    "princeton-nlp/sheared-llama-1.3b": "Sheared LLaMA-1.3B (50B)",
    "openlm-research/open_llama_3b": "OpenLLaMA-3B (1T)",
}
"""References whose own pre-training is a row of the poster's."""
_OWN_MATRICES = 13 * (4 * 3200**2 + 3 * 3200 * 8640) + 32_000 * 3200
"""Of 13 blocks of OpenLLaMA-3B, attention and MLP, and of its head."""
_TITLE = "Table 1: what pre-training took"


@dataclass(frozen=True)
class Line:
    """A row, as text; what does not apply or was not recorded is a dash."""

    model: str
    layers: str = NOT_APPLICABLE
    parameters: str = NOT_APPLICABLE
    unique_tokens: str = NOT_APPLICABLE
    tokens: str = NOT_APPLICABLE
    flops: str = NOT_APPLICABLE
    devices: str = NOT_APPLICABLE
    """How many, and which."""
    wall: str = NOT_APPLICABLE
    device_hours: str = NOT_APPLICABLE
    mfu: str = NOT_APPLICABLE
    energy: str = NOT_APPLICABLE
    memory: str = NOT_APPLICABLE
    money: str = NOT_APPLICABLE


_COLUMNS = (
    ("model", "Model"),
    ("layers", "Layers"),
    ("parameters", "Parameters"),
    ("unique_tokens", "Unique tokens"),
    ("tokens", "Tokens"),
    ("flops", "FLOPs"),
    ("devices", "Devices"),
    ("wall", "Time"),
    ("device_hours", "Device hours"),
    ("mfu", "MFU"),
    ("energy", "kWh"),
    ("memory", "Peak GiB"),
    ("money", "Price"),
)
_WORDS = ("model", "devices")
_FIRST_TO_GO = ("layers", "memory", "parameters", "unique_tokens", "mfu", "energy", "devices", "flops", "money")
"""Columns that give way on a terminal, in this order."""


def _published_line(row: Compute) -> Line:
    """A row of the poster's, with the device hours that follow from it."""
    days = None if row.days is None else 0.5 if row.days.removeprefix("~") == "half" else float(row.days)
    about = "~" if row.days is not None and row.days.startswith("~") else ""
    return Line(
        model=row.model,
        tokens=count(row.tokens),
        devices=f"{row.gpus} {row.gpu}",
        wall=NOT_APPLICABLE if row.days is None else f"{row.days} d",
        device_hours=NOT_APPLICABLE if days is None else about + significant(24 * days * row.gpus),
    )


@dataclass(frozen=True)
class _Run:
    """A run's records."""

    path: Path
    name: str
    state: str
    records: Records
    sums: Record
    reference: Record


def _run_of(path: Path, price: float | None) -> _Run:
    """The records of a run directory.

    Raises:
        Refused: it is none.
    """
    if not path.is_dir() or not any((path / name).exists() for name in _RECORDS):
        raise Refused(f"{path}: not a run directory; give the directory that `inheritune run` wrote")
    records = records_of(path)
    name = str(records.result.get("name") or path.resolve().name)
    return _Run(
        path=path,
        name=name,
        state=str(records.result.get("state") or "unknown"),
        records=records,
        sums=total(path, price_per_device_hour=price),
        reference=read_record(path, "reference.json", dict, {}),
    )


def _told_apart(runs: Sequence[_Run]) -> list[_Run]:
    """Runs of the same name, with their directories in it."""
    names = [run.name for run in runs]
    return [replace(run, name=f"{run.name} in {run.path}") if names.count(run.name) > 1 else run for run in runs]


def _lines_of(run: _Run) -> Iterator[Line]:
    """A run's rows: the target's, that of all trainings, that of the reference's own."""
    arms = {name: dict_of(sums) for name, sums in dict_of(run.sums["arms"]).items()}
    under_way = "" if run.state == "done" else f" (so far: {run.state})"
    target = next((name for name, sums in arms.items() if sums["kind"] == TARGET), None)
    if target is not None:
        known = {**run.records.model(TARGET), **run.records.model(target)}
        state = arms[target]["state"]
        yield _line(f"{run.name}: target" + (f" ({state})" if state != "finished" else ""), arms[target], known)
    others = [title_of(name) for name, sums in arms.items() if name != target]
    what = f"{run.name}: all trainings" if others or not arms else f"{run.name}: the same, nothing else was trained"
    yield _line(what + under_way, dict_of(run.sums["training"]), {})
    if REFERENCE not in arms and run.reference:
        yield _reference_line(run)


def _line(model: str, sums: Record, known: Record) -> Line:
    """A row of some sums."""
    devices = [str(one).partition(":")[0] for one in sums.get("devices") or ()]
    return Line(
        model=model,
        layers=plain(known.get("layers")),
        parameters=count(known.get("parameters")),
        unique_tokens=cell(sums, "unique_tokens"),
        tokens=cell(sums, "tokens"),
        flops=cell(sums, "flops"),
        devices=", ".join(dict.fromkeys(one if " x " in one else f"1 {one}" for one in devices)) or NOT_APPLICABLE,
        wall=cell(sums, "wall_hours"),
        device_hours=cell(sums, "device_hours"),
        mfu=cell(sums, "mfu"),
        energy=cell(sums, "energy_kwh"),
        memory=cell(sums, "peak_memory_bytes"),
        money=cell(sums, "money"),
    )


def _reference_line(run: _Run) -> Line:
    """What is known of the reference's own training: by the ledger of the run that made it, else what is published."""
    known, source = run.reference, str(run.reference.get("source"))
    title = f"{run.name}: reference’s own, before"
    made = _made_by(run)
    if made is not None:
        return _line(title, made, known)
    row = next((one for one in TABLE1 if one.model == _ON_HUB.get(source.lower())), None)
    published = Line("", tokens=count(known.get("tokens_trained"))) if row is None else _published_line(row)
    return Line(
        model=title,
        layers=plain(known.get("layers")),
        parameters=count(known.get("parameters")),
        tokens=published.tokens,
        devices=published.devices,
        wall=published.wall,
        device_hours=published.device_hours,
    )


def _made_by(run: _Run) -> Record | None:
    """The sums of the training that made a reference, where it lies in the directory of a run that is still there."""
    source = Path(str(run.reference.get("source")))
    place = next((one for one in (source, run.path / source) if one.is_dir()), None)
    if place is None or place.name != "model":
        return None
    is_reference = place.parent.name == "reference"
    arms = total(place.parent.parent if is_reference else place.parent)["arms"]
    kind = REFERENCE if is_reference else TARGET
    found = next((sums for sums in arms.values() if sums["kind"] == kind), None)
    return None if found is None else dict_of(found)


def table1_sheet(runs: Sequence[Path], *, price_per_device_hour: float | None = None) -> Sheet:
    """Table 1: the poster's rows, then those of the runs.

    Args:
        runs: run directories; one that is not over is shown as far as it came.
        price_per_device_hour: of an hour of one device, in any currency; None: no prices.

    Raises:
        Refused: one is no run directory, or the price is no price.
    """
    if price_per_device_hour is not None and not 0 <= price_per_device_hour < float("inf"):
        raise Refused(f"--price {price_per_device_hour:g}: give 0 or more, in any currency, for an hour of one device")
    found = _told_apart([_run_of(path, price_per_device_hour) for path in runs])
    lines = [*map(_published_line, TABLE1), *(line for run in found for line in _lines_of(run))]
    columns = [(name, heading) for name, heading in _COLUMNS if name != "money" or price_per_device_hour is not None]
    # words first, as every format wants them
    columns.sort(key=lambda column: column[0] not in _WORDS)
    rows = tuple(tuple(getattr(line, name) for name, _ in columns) for line in lines)
    words = sum(name in _WORDS for name, _ in columns)
    return Sheet(_TITLE, tuple(heading for _, heading in columns), rows, words, tuple(_notes(found, lines)))


def _notes(runs: Sequence[_Run], lines: Sequence[Line]) -> Iterator[str]:
    """What the rows hold, and what is not in them."""
    yield (
        "The poster’s rows, as printed, are of one training each; device hours follow from devices and days. Its own "
        "leaves out the reference’s training (the row of OpenLLaMA-3B), controls, and passes after the first."
    )
    yield _half_a_day()
    yield (
        "All trainings: with controls, rounds, learning rates and layers that were tried, a pilot, a reference trained "
        "by the run, and steps that were done twice after a kill. Device hours: wall time by devices. MFU: in steps, "
        "of the peak in dense products."
    )
    if any(line.energy.endswith("est.") for line in lines):
        yield "est.: rated power by time; other energy is measured by the devices’ own counters."
    if any("≥" in text for line in lines for text in vars(line).values()):
        yield "≥: some of it was not recorded."
    for run in runs:
        yield from _run_notes(run)


def _half_a_day() -> str:
    """What arithmetic says of the poster's own row: 6 FLOPs a matrix parameter and token, without attention's."""
    a6000 = named("a6000", "bfloat16", cpu_memory_bytes=0)
    one_pass = 6.0 * _OWN_MATRICES * TABLE1[-1].tokens
    return (
        f"One pass of the poster’s own row, {count(_OWN_MATRICES)} parameters in matrices, takes {flops(one_pass)} "
        f"FLOPs: {one_pass / a6000.peak_flops / 3600:.0f} hours at the dense peak of an A6000, so half a day cannot be."
    )


def _run_notes(run: _Run) -> Iterator[str]:
    """What goes with a run's rows."""
    training = dict_of(run.sums["training"])
    other = sum(number_of(seconds) or 0 for seconds in dict_of(run.sums["other_seconds"]).values())
    devices = "; ".join(map(str, training.get("devices") or ()))
    sources = ", ".join(map(str, training.get("energy_sources") or ()))
    yield (
        f"{run.name}: {duration(other)} of other work"
        + (f"; on {devices}" if devices else "")
        + (f"; energy {sources}" if sources else "")
        + (f"; restarted {restarts:.0f} times" if (restarts := number_of(training.get("restarts"))) else "")
        + "."
    )
    yield from (f"{run.name}: {note}" for note in gap_notes(training))


def render_table1(sheet: Sheet, *, width: int = 80) -> Group:
    """Table 1 for the terminal.

    Args:
        sheet: as `table1_sheet` gives it.
        width: columns to fit. Where they are too few, some of the table's give way, and a note says which.
    """
    from rich.console import Group
    from rich.text import Text

    from inheritune.report.terminal_table import Column, table

    headings = dict(_COLUMNS)
    cells = dict(zip(sheet.header, zip(*sheet.rows, strict=True), strict=True))
    columns = {
        name: Column(headings[name], cells[headings[name]], words=name in _WORDS)
        for name in headings
        if headings[name] in cells
    }
    gone = []
    for name in _FIRST_TO_GO:
        if sum(column.least for column in columns.values()) + len(columns) - 1 <= width:
            break
        if columns.pop(name, None) is not None:
            gone.append(headings[name])
    left_out = [f"Left out for want of room: {', '.join(gone)}; --markdown has them."] if gone else []
    return Group(
        Text(sheet.title, style="bold"),
        *table(list(columns.values()), width),
        *(Text(note, style="dim") for note in (*sheet.notes, *left_out)),
    )


def markdown_table1(sheet: Sheet) -> str:
    """Table 1 as Markdown."""
    return in_markdown(sheet)


def latex_table1(sheet: Sheet) -> str:
    """Table 1 as LaTeX, for the packages `booktabs` and `fontenc` with `T1`."""
    return PACKAGES + in_latex(sheet)
