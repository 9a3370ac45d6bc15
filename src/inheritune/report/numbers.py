"""Numbers as people read them, by unit; what is absent or not finite is a dash."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

NOT_APPLICABLE = "–"


def number_of(value: Any) -> float | None:
    """The value where it is a finite number, else None."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return value


def count(value: Any) -> str:
    """Tokens or parameters to three digits: 4,096, 40.9K, 3.80M, 1.21B."""
    number = number_of(value)
    if number is None:
        return NOT_APPLICABLE
    if abs(number) < 10_000:
        return f"{number:,.0f}"
    for suffix in ("K", "M", "B", "T"):
        number /= 1000
        # 999.5 would round to four digits: it is 1.00 of the next unit.
        if abs(number) < 999.5 or suffix == "T":
            digits = 2 if abs(number) < 9.995 else 1 if abs(number) < 99.95 else 0
            return f"{number:,.{digits}f}{suffix}"
    raise AssertionError("unreachable: T takes every number")


def duration(value: Any) -> str:
    """Seconds in the two largest units: 3.2 s, 1 min 32 s, 2 h 5 min, 3 d 4 h."""
    seconds = number_of(value)
    if seconds is None:
        return NOT_APPLICABLE
    if seconds < 59.5:
        return f"{seconds:.1f} s" if seconds < 9.95 else f"{seconds:.0f} s"
    for large, small, size, unit in (("min", "s", 60, 1), ("h", "min", 3600, 60), ("d", "h", 86400, 3600)):
        whole, rest = divmod(round(seconds / unit), size // unit)
        if whole < {"min": 60, "h": 24}.get(large, math.inf):
            return f"{whole:,} {large} {rest} {small}" if rest else f"{whole:,} {large}"
    raise AssertionError("unreachable: days take every number")


def flops(value: Any) -> str:
    """FLOPs to two digits: 1.2e15."""
    number = number_of(value)
    if number == 0:
        return "0"
    return NOT_APPLICABLE if number is None else re.sub(r"e\+?0*(?=\d)", "e", f"{number:.1e}")


def decimals(value: Any) -> str:
    """A loss, or bits a byte, to three decimals."""
    number = number_of(value)
    return NOT_APPLICABLE if number is None else f"{number:.3f}"


def percent(value: Any) -> str:
    """A share of one as a percentage: 34.1%."""
    number = number_of(value)
    return NOT_APPLICABLE if number is None else f"{100 * number:.1f}%"


def plain(value: Any) -> str:
    """A number as it is, to two decimals at most: layers, passes."""
    number = number_of(value)
    return NOT_APPLICABLE if number is None else f"{round(number, 2):,.12g}"


def significant(value: Any) -> str:
    """Hours, energy or money to three digits: 0.0123, 4.56, 5,280."""
    number = number_of(value)
    if number is None:
        return NOT_APPLICABLE
    if 0 < number < 0.001:
        return "<0.001"
    return f"{number:,.0f}" if abs(number) >= 100 else f"{number:.3g}"


def by_key(key: str, value: Any) -> str:
    """A value of the ledger or of the environment, by what its key says of its unit."""
    if value is None:
        return NOT_APPLICABLE
    if isinstance(value, list | tuple):
        return ", ".join(by_key(key, item) for item in value) or NOT_APPLICABLE
    if isinstance(value, bool) or not isinstance(value, int | float):
        return {"True": "yes", "False": "no"}.get(str(value), str(value))
    if "per_second" in key:
        return count(value) if abs(value) < 1e15 else flops(value)
    for word, shown in (("flops", flops), ("seconds", duration), ("tokens", count), ("parameters", count)):
        if word in key:
            return shown(value)
    return plain(value) if isinstance(value, int) else NOT_APPLICABLE if number_of(value) is None else f"{value:.4g}"


def words(key: str) -> str:
    """A record's key as words."""
    return key.replace("_", " ")


def flat(record: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """A nested record as (name, text) pairs; a nested key is `outer: inner`."""
    pairs: list[tuple[str, str]] = []
    for key, value in record.items():
        name = f"{prefix}{words(str(key))}"
        pairs += flat(value, f"{name}: ") if isinstance(value, dict) else [(name, by_key(str(key), value))]
    return pairs
