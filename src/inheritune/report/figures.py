"""The curves of a page on every axis that there is, drawn wide and narrow, with what the page says of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from inheritune.report.axes import Scales, against, units_of
from inheritune.report.curves import STANDALONE_STYLE, Panel, draw_curves
from inheritune.report.numbers import count, decimals, duration, flops

_MOST_LISTED = 40
_LABELS = {"tokens": "Tokens", "steps": "Steps", "FLOPs": "FLOPs", "hours": "Hours", "minutes": "Minutes"}


@dataclass(frozen=True)
class Figure:
    """The curves on one axis, as SVG elements."""

    unit: str
    label: str
    """What the switch calls the axis."""
    across: str
    wide: str
    narrow: str
    description: str
    """In words, for who does not see it."""
    missing: tuple[str, ...]
    """Models without a curve on this axis, by title: what they took was not recorded."""


def figures_of(
    panels: list[Panel], scales: Scales, prefix: str = "", units: Sequence[str] | None = None
) -> list[Figure]:
    """The panels on every axis, against tokens first; none where there are no panels.

    Args:
        panels: against tokens.
        scales: where tokens lie on the other axes.
        prefix: of the ids of the figures.
        units: of the axes, if not all.
    """
    figures = []
    for unit in units_of(scales) if panels else []:
        moved = against(panels, scales, unit)
        if (units is not None and unit not in units) or not moved:
            continue
        known = {model for panel in moved for model in panel.lines}
        titles = {model: panel.title(model) for panel in panels for model in panel.lines}
        figures.append(
            Figure(
                unit=unit,
                label=_LABELS[moved[0].unit],
                across=moved[0].across,
                wide=draw_curves(moved, prefix=f"{prefix}{unit}-"),
                narrow=draw_curves(moved, narrow=True, prefix=f"{prefix}{unit}-"),
                description=" ".join(panel.description for panel in moved),
                missing=tuple(title for model, title in titles.items() if model not in known),
            )
        )
    return figures


def standalone(svg: str) -> str:
    """An SVG element of a page as a file of its own, with its own colours in light and dark."""
    return svg.replace(">", f">{STANDALONE_STYLE}", 1) + "\n"


def numbers_behind(panels: list[Panel], scales: Scales | None = None) -> dict[str, Any]:
    """The points of the curves as one table, thinned to about `_MOST_LISTED` rows, the last one among them."""
    lines = [(panel.title(model), dict(points)) for panel in panels for model, points in panel.lines.items()]
    places = sorted({x for _, points in lines for x in points})
    kept = [*places[: -1 : math.ceil(len(places) / _MOST_LISTED) or 1], *places[-1:]]
    return {
        "across": panels[0].across if panels else "",
        "sets": [(panel.name, len(panel.lines)) for panel in panels],
        "labels": [label for label, _ in lines],
        "rows": [(count(x), [decimals(points.get(x)) for _, points in lines]) for x in kept],
        "spent": _spent(panels, scales or {}),
    }


def _spent(panels: list[Panel], scales: Scales) -> list[tuple[str, str]]:
    """What every curve's whole length comes to on the other axes, a line a model: 98 steps, 1.0e13 FLOPs, 2 min."""
    titles = {model: panel.title(model) for panel in panels for model in panel.lines}
    shown: Mapping[str, Callable[[float], str]] = {
        "steps": lambda steps: f"{count(steps)} steps",
        "FLOPs": lambda spent: f"{flops(spent)} FLOPs",
        "hours": lambda hours: duration(3600 * hours),
    }
    found = []
    for model, title in titles.items():
        ends = [shown[unit](models[model][1][-1]) for unit, models in scales.items() if model in models]
        found += [(title, ", ".join(ends))] if ends else []
    return found
