"""What every prefix of a reference scores before any training: a table with bars for the terminal, and the curve."""

from __future__ import annotations

import html
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from inheritune.report.curves import STANDALONE_STYLE
from inheritune.report.numbers import count, decimals, percent

if TYPE_CHECKING:
    from rich.table import Table

# The figure's units: it is shown 560 CSS pixels wide, or as wide as there is room; its text stays legible on a phone.
_WIDTH, _HEIGHT, _SHOWN = 420, 294, 560
_LEFT, _RIGHT, _TOP, _BOTTOM, _INSET = 38, 412, 54, 248, 8
_CURVE, _QUIET = "var(--target, #0b5aa6)", "var(--cut, #5c5f6a)"
_STYLE = "max-width:100%;height:auto;color-scheme:light dark"
_MOST_MARKS = 48
_MOST_CHARACTERS = 58
_FULL_WIDTH = 76  # columns that the whole table needs, with bars of a few


def scan_table(record: Mapping[str, Any], *, width: int | None = None) -> Table:
    """The scan for the terminal: a row a prefix, its loss as a number and as a bar, the uniform guess as the last.

    Args:
        record: as `layerwise.scan_record` gives it.
        width: columns of the terminal to fit: where they are few, the intervals are left out.
    """
    from rich import box
    from rich.bar import Bar
    from rich.table import Table
    from rich.text import Text

    prefixes, guess = record["prefixes"], record["uniform_guess"]
    longest = max([guess, *(row["loss"] for row in prefixes if row["loss"] is not None)])
    columns: dict[str, Callable[[Mapping[str, Any]], str]] = {
        "Layers": lambda row: count(row["layers"]),
        "Parameters": lambda row: count(row["parameters"]),
        "Loss": lambda row: decimals(row["loss"]),
        "95% interval": lambda row: "" if row["low"] is None else f"{row['low']:.3f} to {row['high']:.3f}",
        "Bits\na byte": lambda row: decimals(row["bits_per_byte"]),
        "Accuracy": lambda row: percent(row["accuracy"]),
    }
    if width is not None and width < _FULL_WIDTH:
        del columns["95% interval"]
    # Text, not str: rich would read a set's name as markup.
    caption = Text(f"Loss in nats a token on {_what(record)}; the guess is among {record['vocabulary']:,} tokens.")
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1), caption=caption, caption_justify="left")
    for title in columns:
        table.add_column(title, justify="right", no_wrap=True)
    table.add_column("")
    for row in prefixes:
        bar = "" if row["loss"] is None else Bar(longest, 0, row["loss"])
        table.add_row(*(shown(row) for shown in columns.values()), bar, end_section=row is prefixes[-1])
    cells = {"Layers": "Uniform\nguess", "Loss": decimals(guess)}
    table.add_row(*(cells.get(title, "") for title in columns), Bar(longest, 0, guess, color="cyan"))
    return table


def scan_svg(record: Mapping[str, Any]) -> str:
    """The scan as a picture of its own: loss against the number of layers, the uniform guess and the whole as rules.

    Args:
        record: as `layerwise.scan_record` gives it.
    """
    prefixes = record["prefixes"]
    losses = [row[key] for row in prefixes for key in ("low", "loss", "high") if row[key] is not None]
    lowest, highest = min([record["uniform_guess"], *losses]), max([record["uniform_guess"], *losses])
    margin = 0.08 * (highest - lowest) or 0.1
    frame = _Frame(len(prefixes), lowest - margin, highest + margin)
    size = f'width="{_SHOWN}" height="{_SHOWN * _HEIGHT // _WIDTH}" style="{_STYLE}"'
    words = f'role="img" aria-label="{html.escape(_description(record))}"'
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" {size} font-size="12" {words}>',
        STANDALONE_STYLE,
        # the system's paper, so that light ink is never on a light page: an image does not know what it is put on
        '<rect width="100%" height="100%" fill="none" style="fill:Canvas"/>',
        _text(_INSET, 20, "Loss of the first n layers, untrained, nats a token", 'font-weight="600"'),
        _text(_INSET, 37, _what(record), f'fill="{_QUIET}"'),
        *_axes(frame),
        *_rules(frame, record["uniform_guess"], prefixes[-1]["loss"]),
        *_curve(frame, prefixes),
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


@dataclass(frozen=True)
class _Frame:
    """Where numbers of layers and losses (nats a token) are in the figure."""

    layers: int
    low: float
    high: float

    def x(self, layer: int) -> float:
        if self.layers == 1:
            return (_LEFT + _RIGHT) / 2
        return _LEFT + _INSET + (_RIGHT - _LEFT - 2 * _INSET) * (layer - 1) / (self.layers - 1)

    def y(self, loss: float) -> float:
        return _BOTTOM - (_BOTTOM - _TOP) * (loss - self.low) / (self.high - self.low)


def _axes(frame: _Frame) -> Iterator[str]:
    for value, text in _ticks(frame.low, frame.high):
        yield _rule(frame.y(value), 'stroke="currentColor" stroke-opacity="0.13"')
        yield _text(_LEFT - 6, frame.y(value) + 4, text, 'text-anchor="end"')
    yield _rule(_BOTTOM, 'stroke="currentColor"')
    step = max(1, round(_step(frame.layers, 8)))
    for layer in sorted({1, *range(step, frame.layers + 1, step)}):
        yield _text(frame.x(layer), _BOTTOM + 18, str(layer), 'text-anchor="middle"')
    yield _text(_LEFT, _BOTTOM + 36, "Layers kept, n", "")


def _rules(frame: _Frame, guess: float, whole: float | None) -> Iterator[str]:
    """The two losses to compare with: a curve that falls leaves the one room at the right, the other at the left."""
    yield _rule(frame.y(guess), f'stroke="{_QUIET}" stroke-dasharray="5 3" stroke-width="1.4"')
    yield _text(_RIGHT, frame.y(guess) - 5, f"Uniform guess {guess:.2f}", f'text-anchor="end" fill="{_QUIET}"')
    if whole is not None:
        yield _rule(frame.y(whole), 'stroke="currentColor" stroke-width="1.4"')
        yield _text(_LEFT, frame.y(whole) - 5, f"Whole reference {whole:.2f}", "")


def _curve(frame: _Frame, prefixes: Iterable[Mapping[str, Any]]) -> Iterator[str]:
    points = {frame.x(row["layers"]): row for row in prefixes if row["loss"] is not None}
    band = [(x, frame.y(row["high"])) for x, row in points.items() if row["high"] is not None]
    band += [(x, frame.y(row["low"])) for x, row in reversed(points.items()) if row["low"] is not None]
    line = [(x, frame.y(row["loss"])) for x, row in points.items()]
    yield f'<polygon points="{_path(band)}" fill="{_CURVE}" fill-opacity="0.2"/>'
    yield f'<polyline points="{_path(line)}" fill="none" stroke="{_CURVE}" stroke-width="2"/>'
    if frame.layers <= _MOST_MARKS:
        yield from (f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2.6" fill="{_CURVE}"/>' for x, y in line)


def _what(record: Mapping[str, Any]) -> str:
    """The text that was measured on, in few words."""
    name, documents = str(record["set"]), record["documents"]
    text = f", {documents:,} document{'' if documents == 1 else 's'}, {count(record['tokens'])} tokens"
    if record["positions"] < record["tokens"]:
        text += f", {count(record['positions'])} scored"
    room = _MOST_CHARACTERS - len(text)
    return (name if len(name) <= room else f"{name[: room - 1]}…") + text


def _description(record: Mapping[str, Any]) -> str:
    """The figure in words, for who does not see it."""
    losses = ", ".join(f"{row['layers']}: {decimals(row['loss'])}" for row in record["prefixes"])
    guess = decimals(record["uniform_guess"])
    return (
        f"Loss on {record['set']}, nats a token, by the number of first layers kept. {losses}. Uniform guess: {guess}."
    )


def _step(span: float, most: int) -> float:
    """The smallest of 0.001, 0.002, 0.005, 0.01, … 1, 2, 5, … that divides a span into at most `most` parts."""
    steps = (factor * 10.0**power for power in range(-3, 9) for factor in (1, 2, 5))
    return next(step for step in steps if span / step <= most)


def _ticks(low: float, high: float) -> list[tuple[float, str]]:
    """Some three to seven round values within a range, as numbers and as text."""
    step = _step(high - low, 7)
    digits = max(0, -math.floor(math.log10(step) + 1e-9))
    values = [step * index for index in range(math.ceil(low / step), math.floor(high / step) + 1)]
    return [(value, f"{value:.{digits}f}") for value in values]


def _text(across: float, down: float, text: str, attributes: str) -> str:
    fill = "" if "fill=" in attributes else ' fill="currentColor"'
    return f'<text x="{across:.1f}" y="{down:.1f}"{fill} {attributes}>{html.escape(text)}</text>'


def _rule(down: float, attributes: str) -> str:
    return f'<line x1="{_LEFT}" x2="{_RIGHT}" y1="{down:.1f}" y2="{down:.1f}" {attributes}/>'


def _path(points: list[tuple[float, float]]) -> str:
    return " ".join(f"{across:.1f},{down:.1f}" for across, down in points)
