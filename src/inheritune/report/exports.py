"""What a page shows as tables in Markdown and LaTeX, and its curves and rounds as SVG and PDF, on every axis."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from inheritune.report.axes import Scales, against, units_of
from inheritune.report.beside import labels_of, panels, read_runs, scores, settings, table, verdict
from inheritune.report.content import RunRecords, read_run
from inheritune.report.curves import Panel, curves_pdf, draw_curves, panels_of
from inheritune.report.evaluation import evaluation_sheets
from inheritune.report.figures import standalone
from inheritune.report.growth_figure import growth_panel, round_curves, rule, story
from inheritune.report.records import grows
from inheritune.report.sections import (
    attention_section,
    differences_sheet,
    evaluation_of,
    layers_section,
    peaks_of,
    plan_section,
    sums_section,
)
from inheritune.report.sheets import PACKAGES, Sheet, in_latex, in_markdown
from inheritune.report.table import Row, escaped, table_rows
from inheritune.report.table4 import table4_sheet
from inheritune.run_directory import write_atomic

TABLES = ("markdown", "latex")
FIGURES = ("svg", "pdf")
_PREFIXES = {"curves-tokens": "tokens-", "growth": "g-"}
"""Of ids, so that the files which the page writes anyway are the same bytes."""


def write_exports(runs: Sequence[Path], out: Path, kinds: Iterable[str]) -> list[Path]:
    """Write a page's tables as `report.md` and `report.tex`, its figures as `curves-AXIS.svg` and `.pdf`.

    Args:
        runs: a run directory, or several, which are then shown beside each other.
        out: the directory that is written.
        kinds: of `TABLES` and `FIGURES`.

    Returns:
        The files that were written.

    Raises:
        Refused: one of `runs` is no directory, or named twice.
    """
    kinds = list(kinds)
    if len(runs) == 1:
        one = read_run(runs[0])
        title, said, sheets, figures = one.name, str(one.result.get("verdict") or ""), run_sheets(one), _figures(one)
    else:
        read = read_runs(runs)
        labels = labels_of(read)
        title, said = ", ".join(labels), verdict(read, labels)
        sheets = [measures_sheet("Targets beside each other", table(read, labels))]
        sheets += [sheet for sheet in (settings(read, labels), scores(read, labels)) if sheet is not None]
        figures = _on_every_axis(*panels(read, labels))
    out.mkdir(parents=True, exist_ok=True)
    files = {}
    if "markdown" in kinds:
        heading = f"# {escaped(' '.join(title.split()))}\n\n" + (f"{escaped(said)}\n\n" if said else "")
        files["report.md"] = heading + "\n".join(map(in_markdown, sheets))
    if "latex" in kinds:
        files["report.tex"] = PACKAGES + "\n".join(map(in_latex, sheets))
    written: dict[str, str | bytes] = {**files}
    for name, drawn in figures.items():
        if "svg" in kinds:
            written[f"{name}.svg"] = standalone(draw_curves(drawn, prefix=_PREFIXES.get(name, "")))
        if "pdf" in kinds:
            written[f"{name}.pdf"] = curves_pdf(drawn)
    for name, content in written.items():
        write_atomic(out / name, content.encode("utf-8", "replace") if isinstance(content, str) else content)
    return [out / name for name in written]


def measures_sheet(title: str, rows: Sequence[Row]) -> Sheet:
    """A comparison of models as a sheet; a measure on several sets is a row a set, which says the measure.

    Args:
        title: of the table.
        rows: the header, then the measures.
    """
    header, *measures = rows
    shown = []
    for row in measures:
        if row.cells:
            label = f"{row.within}, {row.label}" if row.within else row.label
            shown.append((f"{label} ({row.unit})" if row.unit else label, *row.cells))
    return Sheet(title, ("", *header.cells), tuple(shown), 1, ())


def run_sheets(one: RunRecords) -> list[Sheet]:
    """A run's tables: results, rounds, evaluation, layers, the plan, what was taken."""
    gaps: dict[str, str] = {}
    found = [measures_sheet("Results", table_rows(one.result, one.ledger))]
    rounds = story(one.lines) if grows(one.run, one.result) else []
    if rounds:
        header = ("Round", "Layers", "Loss", "Target − reference", "Upper bound", "Verdict", "FLOPs")
        lines = [(r.title, r.layers, r.loss, r.difference, r.bound, r.verdict, r.flops) for r in rounds]
        notes = (said,) if (said := rule(one.lines)) else ()
        found.append(Sheet("Growth", header, tuple(lines), 1, notes))
    evaluation = evaluation_of(one.run, gaps)
    found += evaluation_sheets(evaluation) if evaluation is not None else []
    found += [sheet for sheet in (differences_sheet(one.result), table4_sheet(one.lines)) if sheet is not None]
    for section in (
        layers_section(one.run, gaps),
        attention_section(one.run, gaps),
        plan_section(one.run, one.ledger, peaks_of(one.metrics), gaps),
    ):
        found += section.sheets if section is not None else ()
    sums = sums_section(one.ledger)
    return [*found, *([sums] if sums is not None else [])]


def _figures(one: RunRecords) -> dict[str, list[Panel]]:
    """By file's stem the panels of each figure."""
    found = _on_every_axis(panels_of(one.result, one.metrics), one.scales)
    if grows(one.run, one.result):
        controls = {name: records for name, records in one.metrics.items() if name != "target"}
        panel = growth_panel(one.lines, round_curves(one.run, one.lines), controls)
        found |= {"growth": [panel]} if panel is not None else {}
    return found


def _on_every_axis(drawn: list[Panel], scales: Scales) -> dict[str, list[Panel]]:
    moved = {f"curves-{unit.lower()}": against(drawn, scales, unit) for unit in units_of(scales)} if drawn else {}
    return {name: found for name, found in moved.items() if found}
