"""What the tables of an evaluation share, in files and on a terminal; and numbers as short as a terminal has them."""

from __future__ import annotations

import re
from typing import Any

from inheritune.report.numbers import NOT_APPLICABLE, number_of
from inheritune.scores import Evaluation, Line

BOLD_RULE = "Bold rule, as printed: at least 90% of the reference’s score, or better than two baselines."
_SHARES = ("exact_match", "em", "f1")
_SCIENTIFIC = 100_000
"""From here on a perplexity has an exponent."""


def is_share(metric: str) -> bool:
    """Whether a metric is a share of rows, which tables show in percent: `acc`, `acc_norm`, `exact_match`."""
    return metric == "acc" or metric.startswith("acc_") or metric in _SHARES


def is_scored(evaluation: Evaluation, line: Line) -> bool:
    """Whether a model has a score on a line; of a group with gaps it may be of the tasks that are there."""
    return any(line.name in scores for scores in evaluation.scores.values())


def short_number(metric: str, value: Any, error: Any = None) -> str:
    """A score and its standard error: `61.2±1.1`, `1,035±12`, `3.05e5±2.0e5`."""
    number, spread = number_of(value), number_of(error)
    if number is None:
        return NOT_APPLICABLE
    places = places_of(metric, number)
    text = at_places(metric, number, places)
    if spread is None:
        return text
    if "e" in text:
        return f"{text}±{scientific(spread, 1) if spread else '0'}"
    return f"{text}±{at_places(metric, spread, min(places, places_of(metric, spread)), 1)}"


def places_of(metric: str, value: float) -> int:
    """Decimals of a number: four significant digits at most, but of percentages, which have one decimal."""
    if is_share(metric) or not value:
        return 1 if is_share(metric) else 2
    exponent = int(f"{abs(value):.3e}".partition("e")[2])
    return min(2 if "perplexity" in metric else 3, 3 - exponent)


def at_places(metric: str, value: float, places: int, digits: int = 2, sign: str = "") -> str:
    """A number in its metric's unit, rounded; one that is too long has so many digits, and an exponent."""
    if is_share(metric):
        text = f"{100 * value:{sign}z,.{places}f}"
    elif abs(round(value, places)) >= _SCIENTIFIC:
        text = scientific(value, digits, sign)
    else:
        text = f"{round(value, places):{sign}z,.{max(0, places)}f}"
    return text.replace("-", "−")


def scientific(value: float, digits: int, sign: str = "") -> str:
    """A number of so many decimals and an exponent: `1.43e23`."""
    return re.sub(r"e\+?(-?)0*(?=\d)", r"e\1", f"{value:{sign}.{digits}e}").replace("-", "−")
