"""What curves are drawn against: tokens, steps, FLOPs, or time, computed from what a training recorded of itself."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from inheritune.report.curves import Panel, Points
from inheritune.report.numbers import number_of

Places = tuple[list[float], list[float]]
"""(tokens trained, the same places on another axis), both rising."""
Scales = Mapping[str, Mapping[str, Places]]
"""By unit (`steps`, `FLOPs`, `hours`), then by model, where tokens lie; a model whose record lacks it is left out."""

_SECONDS_AN_HOUR = 3600


def scales_of(metrics: Mapping[str, Iterable[Any]], flops_per_token: Mapping[str, float]) -> Scales:
    """Where the tokens of each training lie on the other axes.

    Hours are the time in steps, validation and checkpoints not included, as in the ledger; a training that was
    interrupted goes on counting where it stopped.

    Args:
        metrics: by model's name its metrics records; of a step that was recorded twice the last counts.
        flops_per_token: by model's name what a token of its training takes; a model that is missing has no FLOPs.
    """
    scales: dict[str, dict[str, Places]] = {"steps": {}, "FLOPs": {}, "hours": {}}
    for model, records in metrics.items():
        steps = {
            int(step): record
            for record in records
            if isinstance(record, dict)
            and record.get("kind") in ("step", "validation")
            and (step := number_of(record.get("step"))) is not None
            and number_of(record.get("tokens")) is not None
        }
        tokens = {step: float(record["tokens"]) for step, record in sorted(steps.items())}
        rising = {step: value for step, value in tokens.items() if step >= 0 and value >= 0}
        if len(rising) < 2:
            continue
        scales["steps"][model] = ([*rising.values()], [float(step) for step in rising])
        if (each := flops_per_token.get(model)) is not None:
            scales["FLOPs"][model] = ([*rising.values()], [each * value for value in rising.values()])
        if (hours := _hours(records)) is not None:
            scales["hours"][model] = hours
    return {unit: models for unit, models in scales.items() if models}


def _hours(records: Iterable[Any]) -> Places | None:
    """Tokens and hours after each step; None where a step's speed was not recorded."""
    steps: dict[float, tuple[float, float]] = {}
    for record in records:
        if isinstance(record, dict) and record.get("kind") == "step":
            step, tokens, speed = (number_of(record.get(key)) for key in ("step", "tokens", "tokens_per_second"))
            if step is None or tokens is None or speed is None or speed <= 0:
                return None
            steps[step] = (tokens, speed)
    ordered = [steps[step] for step in sorted(steps)]
    if not ordered:
        return None
    seen, speeds = np.array(ordered, np.float64).T
    seconds = np.cumsum(np.diff(seen, prepend=0.0) / speeds)
    return [0.0, *seen.tolist()], [0.0, *(seconds / _SECONDS_AN_HOUR).tolist()]


def units_of(scales: Scales) -> list[str]:
    """The axes that there are, tokens first."""
    return ["tokens", *scales]


def against(panels: list[Panel], scales: Scales, unit: str) -> list[Panel]:
    """The panels on another axis across, in frames of the same losses; a model without places on it has no curve.

    Args:
        panels: against tokens.
        scales: as `scales_of` gives them.
        unit: of `units_of`.

    Returns:
        Panels of `unit`; of `hours` in minutes where no training took an hour.
    """
    if unit == "tokens":
        return panels
    places = scales[unit]
    factor, named = 1.0, unit
    if unit == "hours" and max(across[-1] for _, across in places.values()) < 1:
        factor, named = 60.0, "minutes"
    moved = [
        replace(
            panel,
            lines=_moved(panel.lines, places, factor),
            training=_moved(panel.training, places, factor),
            unit=named,
        )
        for panel in panels
    ]
    return [panel for panel in moved if panel.lines]


def _moved(lines: Mapping[str, Points], places: Mapping[str, Places], factor: float) -> dict[str, Points]:
    return {model: _on(points, places[model], factor) for model, points in lines.items() if model in places}


def _on(points: Points, places: Places, factor: float) -> Points:
    """The points with their tokens replaced, between two known places in proportion."""
    across = np.interp([x for x, _ in points], *places) * factor
    return [(float(x), y) for x, (_, y) in zip(across, points, strict=True)]
