"""A measured figure beside its target."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Figure:
    """One line of the table."""

    name: str
    value: float
    unit: str
    target: float | None = None
    """None: shown, not judged."""
    at_least: bool = False
    """Whether the value may not be below the target, instead of not above."""
    raw: dict[str, Any] = field(default_factory=dict)

    @property
    def met(self) -> bool | None:
        """Whether the target is met."""
        if self.target is None:
            return None
        return self.value >= self.target if self.at_least else self.value <= self.target

    def record(self) -> dict[str, Any]:
        """As JSON."""
        sign = None if self.target is None else ">=" if self.at_least else "<="
        goal = None if self.target is None else f"{sign} {self.target:g}"
        return {
            "figure": self.name,
            "value": self.value,
            "unit": self.unit,
            "target": goal,
            "met": self.met,
            **self.raw,
        }


def shown(record: dict[str, Any]) -> str:
    """A figure's record as a line of the table."""
    met = {True: "yes", False: "no", None: ""}[record["met"]]
    return f"| {record['figure']} | {record['value']:.3g} {record['unit']} | {record['target'] or ''} | {met} |"


def line_fit(sizes: list[float], values: list[float]) -> tuple[float, float]:
    """Offset and slope of the least-squares line."""
    mean_size, mean_value = sum(sizes) / len(sizes), sum(values) / len(values)
    spread = sum((size - mean_size) ** 2 for size in sizes)
    slope = sum((s - mean_size) * (v - mean_value) for s, v in zip(sizes, values, strict=True)) / spread
    return mean_value - slope * mean_size, slope


def exponent(sizes: list[float], values: list[float]) -> float:
    """The slope in log-log: 1 where values are proportional to sizes."""
    return line_fit([math.log(size) for size in sizes], [math.log(value) for value in values])[1]
