"""How far attention degenerates by layer and head: a table with bars for the terminal, and the figure."""

from __future__ import annotations

import html
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from math import log
from statistics import fmean
from typing import TYPE_CHECKING, Any

from inheritune.report.curves import STANDALONE_STYLE
from inheritune.report.numbers import NOT_APPLICABLE, count, percent
from inheritune.report.scan import _CURVE, _INSET, _LEFT, _QUIET, _RIGHT, _SHOWN, _STYLE, _WIDTH, _path, _step, _text

if TYPE_CHECKING:
    from rich.table import Table

Layers = Sequence[Sequence[float] | None]
"""For each layer its heads' values; None where it forms no attention matrix."""

_TALL, _RANKS, _SHARES, _HEIGHT = 150, 82, 306, 494  # a panel's frame, where each begins, where the figure ends
_MOST_CHARACTERS = 54
_FULL_WIDTH = 94  # columns that the whole table needs, with bars of a few


def degeneracy_table(
    record: Mapping[str, Any], untrained: Mapping[str, Any] | None = None, *, width: int | None = None
) -> Table:
    """The measures for the terminal: a row a layer, the mean of its heads and their range, and the rank as a bar.

    Args:
        record: of the reference, as `layerwise.degeneracy_record` gives it.
        untrained: of the same network from random init.
        width: columns of the terminal to fit: where they are few, the ranges are left out.
    """
    from rich import box
    from rich.bar import Bar
    from rich.table import Table
    from rich.text import Text

    ranks, shares = record["rank"], record["column_share"]
    columns: dict[str, Callable[[int], str]] = {
        "Layer": str,
        "Rank": lambda layer: _mean(ranks[layer], _rank),
        "Heads'\nranks": lambda layer: _range(ranks[layer], _rank),
        "Columns": lambda layer: _mean(shares[layer], percent),
        "Heads'\ncolumns": lambda layer: _range(shares[layer], percent),
    }
    if width is not None and width < _FULL_WIDTH:
        del columns["Heads'\nranks"], columns["Heads'\ncolumns"]
    if untrained is not None:
        fresh_ranks, fresh_shares = untrained["rank"], untrained["column_share"]
        columns["Untrained\nrank"] = lambda layer: _mean(fresh_ranks[layer], _rank)
        columns["Untrained\ncolumns"] = lambda layer: _mean(fresh_shares[layer], percent)
    # Text, not str: rich would read a set's name as markup.
    values, held = f"{record['sequence_length']:,} singular values", _held(record)
    caption = Text(
        f"Means over heads and over {_what(record)}. Rank: how many of {values} hold {held} of the squares; "
        f"columns: the share that holds {held} of the squared norms."
    )
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1), caption=caption, caption_justify="left")
    for title in columns:
        table.add_column(title, justify="right", no_wrap=True)
    table.add_column("")
    longest = max(fmean(heads) for heads in ranks if heads is not None)
    for layer, heads in enumerate(ranks):
        bar = "no attention" if heads is None else Bar(longest, 0, fmean(heads))
        table.add_row(*(shown(layer) for shown in columns.values()), bar)
    return table


def _rank(value: float) -> str:
    return f"{value:.1f}"


def _mean(heads: Sequence[float] | None, shown: Callable[[float], str]) -> str:
    return NOT_APPLICABLE if heads is None else shown(fmean(heads))


def _range(heads: Sequence[float] | None, shown: Callable[[float], str]) -> str:
    return "" if heads is None else f"{shown(min(heads))} to {shown(max(heads))}"


def degeneracy_svg(record: Mapping[str, Any], untrained: Mapping[str, Any] | None = None) -> str:
    """The measures as a picture of its own: by layer every head, the heads' mean, and the untrained network's mean.

    Both scales are logarithmic and reach from a single direction or column to all, so that figures can be compared.

    Args:
        record: of the reference, as `layerwise.degeneracy_record` gives it.
        untrained: of the same network from random init.
    """
    length = record["sequence_length"]
    size = f'width="{_SHOWN}" height="{_SHOWN * _HEIGHT // _WIDTH}" style="{_STYLE}"'
    words = f'role="img" aria-label="{html.escape(_description(record, untrained))}"'
    held = f"{_held(record)} of the squares"
    ranks = _Panel(f"Rank that holds {held}, of {length:,}", _RANKS, 1, length, 1)
    shares = _Panel(f"Columns that hold {held}, %", _SHARES, 1 / length, 1, 100)
    legend = "Dots: heads. Line: their mean." + ("" if untrained is None else " Dashed: the mean from random init.")
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" {size} font-size="12" {words}>',
        STANDALONE_STYLE,
        # the system's paper, so that light ink is never on a light page: an image does not know what it is put on
        '<rect width="100%" height="100%" fill="none" style="fill:Canvas"/>',
        _text(_INSET, 20, f"Attention on {_what(record)}", f'fill="{_QUIET}"'),
        _text(_INSET, 37, legend, f'fill="{_QUIET}"'),
    ]
    for panel, measure in ((ranks, "rank"), (shares, "column_share")):
        parts += _drawn(panel, record[measure], None if untrained is None else untrained[measure])
    return "\n".join([*parts, "</svg>"]) + "\n"


@dataclass(frozen=True)
class _Panel:
    """One measure's frame, and where its values are in it."""

    title: str
    top: float
    low: float
    high: float
    factor: float
    """What a value is shown times."""

    def y(self, value: float) -> float:
        return self.top + _TALL * (1 - log(value / self.low) / log(self.high / self.low))

    def ticks(self) -> list[tuple[float, str]]:
        """1, 3, 10, 30, … as far as they lie in the frame: values, and as they are shown."""
        steps = (step * 10.0**power for power in range(-4, 7) for step in (1, 3))
        slack = 1e-9
        inside = [step for step in steps if self.low * (1 - slack) <= step / self.factor <= self.high * (1 + slack)]
        return [(step / self.factor, f"{step:,.12g}") for step in inside]


def _x(layer: int, layers: int) -> float:
    return _LEFT + _INSET + (_RIGHT - _LEFT - 2 * _INSET) * (layer / (layers - 1) if layers > 1 else 0.5)


def _drawn(panel: _Panel, values: Layers, untrained: Layers | None) -> Iterator[str]:
    """A measure: title, axes, heads, means."""
    layers, bottom = len(values), panel.top + _TALL
    yield _text(_INSET, panel.top - 12, panel.title, 'font-weight="600"')
    for value, text in panel.ticks():
        yield _across(panel.y(value), 'stroke="currentColor" stroke-opacity="0.13"')
        yield _text(_LEFT - 6, panel.y(value) + 4, text, 'text-anchor="end"')
    yield _across(bottom, 'stroke="currentColor"')
    for layer in range(0, layers, max(1, round(_step(layers, 8)))):
        yield _text(_x(layer, layers), bottom + 18, str(layer), 'text-anchor="middle"')
    yield _text(_LEFT, bottom + 34, "Layer", "")
    for layer, heads in enumerate(values):
        for value in heads or ():
            at = f'cx="{_x(layer, layers):.1f}" cy="{panel.y(value):.1f}"'
            yield f'<circle {at} r="1.9" fill="{_CURVE}" fill-opacity="0.4"/>'
    if untrained is not None:
        yield from _line(panel, untrained, f'stroke="{_QUIET}" stroke-dasharray="5 3" stroke-width="1.6"')
    yield from _line(panel, values, f'stroke="{_CURVE}" stroke-width="2"')


def _line(panel: _Panel, values: Layers, attributes: str) -> Iterator[str]:
    """The heads' mean by layer; a layer without attention interrupts it, one between two such is a short stroke."""
    for there, group in groupby(enumerate(values), lambda pair: pair[1] is not None):
        points = [(_x(layer, len(values)), panel.y(fmean(heads))) for layer, heads in group if heads is not None]
        if there and len(points) == 1:
            points = [(points[0][0] - 4, points[0][1]), (points[0][0] + 4, points[0][1])]
        if there:
            yield f'<polyline points="{_path(points)}" fill="none" {attributes}/>'


def _across(down: float, attributes: str) -> str:
    return f'<line x1="{_LEFT}" x2="{_RIGHT}" y1="{down:.1f}" y2="{down:.1f}" {attributes}/>'


def _held(record: Mapping[str, Any]) -> str:
    return f"{record['held']:.0%}"


def _what(record: Mapping[str, Any]) -> str:
    """The text that was measured on, in few words."""
    sequences, length = record["sequences"], record["sequence_length"]
    text = f"{count(sequences)} sequence{'' if sequences == 1 else 's'} of {length:,} tokens of "
    name, room = str(record["set"]), _MOST_CHARACTERS - len(text)
    return text + (name if len(name) <= room else f"{name[: room - 1]}…")


def _description(record: Mapping[str, Any], untrained: Mapping[str, Any] | None) -> str:
    """The figure in words, for who does not see it."""

    def listed(shown: Mapping[str, Any]) -> str:
        layers = zip(shown["rank"], shown["column_share"], strict=True)
        means = (f"{layer}: {_mean(r, _rank)}, {_mean(c, percent)}" for layer, (r, c) in enumerate(layers))
        return "; ".join(means)

    beside = "" if untrained is None else f" From random init: {listed(untrained)}."
    return f"Rank and share of columns of attention on {_what(record)}, by layer. {listed(record)}.{beside}"
