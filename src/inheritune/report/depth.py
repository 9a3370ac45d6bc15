"""How many layers to inherit: what each layer is worth, and the choices that were tried, as tables and as a figure."""

from __future__ import annotations

import html
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from inheritune.report.curves import STANDALONE_STYLE
from inheritune.report.numbers import NOT_APPLICABLE, count, decimals
from inheritune.report.scan import (
    _BOTTOM,
    _CURVE,
    _HEIGHT,
    _INSET,
    _LEFT,
    _QUIET,
    _RIGHT,
    _SHOWN,
    _STYLE,
    _TOP,
    _WIDTH,
    _axes,
    _Frame,
    _path,
    _rule,
    _text,
)

if TYPE_CHECKING:
    from rich.table import Table

Points = list[tuple[int, float]]
"""Numbers of layers, ascending, with losses in nats a token."""

_LAYERS_WIDTH, _CANDIDATES_WIDTH = 86, 100  # columns that the whole tables need
_KEYS = 30  # rows of the figure's key, together


def layers_table(layers: Mapping[str, Any], *, width: int | None = None) -> Table:
    """A row a layer: its block influence, as a bar, too, and what the layers up to it score untrained.

    Args:
        layers: as `depth.json` holds them: a scan's record.
        width: columns of the terminal to fit: where they are few, the intervals are left out.
    """
    from rich import box
    from rich.bar import Bar
    from rich.table import Table
    from rich.text import Text

    prefixes, influence = layers["prefixes"], layers["influence"]
    caption = Text(
        f"Influence: 1 - cosine of a block's input and output. Loss of the layers from 0 to this one, untrained, in "
        f"nats a token on {layers['set']}, {layers['documents']:,} documents; a uniform guess is "
        f"{layers['uniform_guess']:.2f}."
    )
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1), caption=caption, caption_justify="left")
    narrow = width is not None and width < _LAYERS_WIDTH
    for title in (
        "Layer",
        "Influence",
        "Loss\nup to it",
        *(() if narrow else ("95% interval",)),
        "Parameters\nup to it",
    ):
        table.add_column(title, justify="right", no_wrap=True)
    table.add_column("")
    largest = max(influence) if influence is not None else 0.0
    for layer, row in enumerate(prefixes):
        interval = "" if row["low"] is None else f"{row['low']:.3f} to {row['high']:.3f}"
        shown = NOT_APPLICABLE if influence is None else decimals(influence[layer])
        bar = Bar(largest, 0, influence[layer]) if largest > 0 else ""
        cells = [str(layer), shown, decimals(row["loss"]), *(() if narrow else (interval,)), count(row["parameters"])]
        table.add_row(*cells, bar)
    return table


def candidates_table(record: Mapping[str, Any], *, width: int | None = None) -> Table:
    """A row a choice of layers, the deepest first, each depth's best first; what went to the last round is not dim.

    Args:
        record: as `depth.json` holds it.
        width: columns of the terminal to fit: where they are few, memory and untrained losses are left out.
    """
    from rich import box
    from rich.table import Table
    from rich.text import Text

    chosen, rungs = record["recommended"]["name"], len(record["probe"]["rungs"])
    columns: dict[str, Callable[[Mapping[str, Any]], str]] = {
        "": lambda row: "→" if row["name"] == chosen else "",
        "Choice": lambda row: str(row["name"]),
        "n": lambda row: str(len(row["layers"])),
        "Parameters": lambda row: count(row["parameters"]),
        "Memory": lambda row: _gigabytes(row["memory_bytes"]),
        "Untrained": lambda row: decimals(row["untrained"]),
    }
    left_out = []
    if width is not None and width < _CANDIDATES_WIDTH:
        left_out = ["Memory", "Untrained"] if rungs else ["Memory"]
        columns = {title: shown for title, shown in columns.items() if title not in left_out}
    if rungs:
        columns |= {
            "Equal\ntokens": lambda row: decimals(_last(row["equal_tokens"])),
            "Equal\nFLOPs": lambda row: decimals(_last(row["losses"])),
            "Tokens": lambda row: count(row["tokens"]),
            "Rounds": lambda row: str(len(row["losses"])),
        }
    room = f" Left out for want of room: {' and '.join(left_out).lower()} (depth.json)." if left_out else ""
    caption = Text(_caption(record) + room)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1), caption=caption, caption_justify="left")
    for title in columns:
        table.add_column(title, justify="left" if title in ("", "Choice") else "right", no_wrap=True)
    for row in sorted(record["candidates"], key=_order):
        out = rungs > 0 and len(row["losses"]) < rungs
        table.add_row(*(shown(row) for shown in columns.values()), style="dim" if out else None)
    return table


def _caption(record: Mapping[str, Any]) -> str:
    where = f"nats a token on {record['set']}, {record['documents']:,} documents"
    rungs = record["probe"]["rungs"]
    if not rungs:
        return f"Losses in {where}; nothing was trained."
    return (
        f"Losses in {where}, after the last round that a choice took part in, of {len(rungs)}; within each n the "
        "better half went on. Only losses of the same round compare."
    )


def _order(row: Mapping[str, Any]) -> tuple[int, int, float]:
    loss = _last(row["losses"]) if row["losses"] else row["untrained"]
    return -len(row["layers"]), -len(row["losses"]), float("inf") if loss is None else loss


def _last(losses: Sequence[float | None]) -> float | None:
    return losses[-1] if losses else None


def _gigabytes(size: int | None) -> str:
    return NOT_APPLICABLE if size is None else f"{size / 1e9:.2f} GB"


def depth_svg(record: Mapping[str, Any]) -> str:
    """The answer as a picture: loss against the number of layers, untrained and after the probe, the choice ringed.

    Args:
        record: as `depth.json` holds it.
    """
    curves = _curves(record)
    whole = record["layers"]["prefixes"][-1]["loss"]
    losses = [loss for points, _ in curves.values() for _, loss in points] + ([] if whole is None else [whole])
    low, high = (min(losses), max(losses)) if losses else (0.0, 1.0)
    margin = 0.08 * (high - low) or 0.1
    frame = _Frame(record["of_layers"], low - margin, high + margin)
    height = _HEIGHT + _KEYS
    size = f'width="{_SHOWN}" height="{_SHOWN * height // _WIDTH}" style="{_STYLE}"'
    words = f'role="img" aria-label="{html.escape(_description(record, curves))}"'
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" {size} font-size="12" {words}>',
        STANDALONE_STYLE,
        # the system's paper, so that light ink is never on a light page: an image does not know what it is put on
        '<rect width="100%" height="100%" fill="none" style="fill:Canvas"/>',
        _text(_INSET, 20, "Loss by the number of layers kept, nats a token", 'font-weight="600"'),
        _text(_INSET, 37, f"Recommended: {record['recommended']['name']}", f'fill="{_QUIET}"'),
        *_axes(frame),
        *_beyond(frame, record["most_layers"]),
        *_drawn(frame, curves),
        *_ring(frame, record),
    ]
    if whole is not None:
        parts += [
            _rule(frame.y(whole), 'stroke="currentColor" stroke-width="1.4"'),
            _text(_LEFT, frame.y(whole) - 5, f"Whole reference {whole:.2f}", ""),
        ]
    return "\n".join([*parts, *_key(curves), "</svg>"]) + "\n"


def _curves(record: Mapping[str, Any]) -> dict[str, tuple[Points, str]]:
    """What is drawn: for each curve its points, and how its line looks."""
    rows, rungs = record["candidates"], len(record["probe"]["rungs"])
    prefixes = [(row["layers"], row["loss"]) for row in record["layers"]["prefixes"] if row["loss"] is not None]
    untrained = f'stroke="{_QUIET}" stroke-dasharray="2 3" stroke-width="1.4"'
    if not rungs:
        best = _best(rows, lambda row: row["untrained"])
        return {"First n, untrained": (prefixes, untrained), "Best choice, untrained": (best, _strong(_CURVE))}
    there = [row for row in rows if len(row["losses"]) == rungs]
    tokens = record["probe"]["rungs"][-1]["steps"] * record["batch_sequences"] * record["sequence_length"]
    equal = _best(there, lambda row: _last(row["losses"]))
    same = _best(there, lambda row: _last(row["equal_tokens"]))
    dashed = f'stroke="{_CURVE}" stroke-dasharray="6 3" stroke-width="1.6"'
    return {
        f"Best choice, after {count(tokens)} tokens each": (same, dashed),
        "Best choice, after equal FLOPs": (equal, _strong(_CURVE)),
    }


def _strong(colour: str) -> str:
    return f'stroke="{colour}" stroke-width="2"'


def _best(rows: Sequence[Mapping[str, Any]], loss_of: Callable[[Mapping[str, Any]], float | None]) -> Points:
    """The lowest loss of each number of layers."""
    best: dict[int, float] = {}
    for row in rows:
        depth, loss = len(row["layers"]), loss_of(row)
        if loss is not None:
            best[depth] = min(loss, best.get(depth, loss))
    return sorted(best.items())


def _drawn(frame: _Frame, curves: Mapping[str, tuple[Points, str]]) -> Iterator[str]:
    for points, look in curves.values():
        places = [(frame.x(depth), frame.y(loss)) for depth, loss in points]
        yield f'<polyline points="{_path(places)}" fill="none" {look}/>'
        yield from (f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2.6" fill="{_CURVE}"/>' for x, y in places)


def _beyond(frame: _Frame, most: int) -> Iterator[str]:
    """What the budget does not allow, shaded: from half a layer beyond the most that fits."""
    if most >= frame.layers:
        return
    left = (frame.x(most) + frame.x(most + 1)) / 2
    box = f'x="{left:.1f}" y="{_TOP}" width="{_RIGHT - left:.1f}" height="{_BOTTOM - _TOP}"'
    yield f'<rect {box} fill="{_QUIET}" fill-opacity="0.12"/>'


def _ring(frame: _Frame, record: Mapping[str, Any]) -> Iterator[str]:
    name = record["recommended"]["name"]
    row = next(row for row in record["candidates"] if row["name"] == name)
    loss = _last(row["losses"]) if row["losses"] else row["untrained"]
    if loss is not None:
        at = f'cx="{frame.x(len(row["layers"])):.1f}" cy="{frame.y(loss):.1f}"'
        yield f'<circle {at} r="6" fill="none" stroke="currentColor" stroke-width="1.6"/>'


def _key(curves: Mapping[str, tuple[Points, str]]) -> Iterator[str]:
    for number, (name, (_, look)) in enumerate(curves.items()):
        down = _BOTTOM + 52 + 15 * number
        yield f'<line x1="{_LEFT}" x2="{_LEFT + 26}" y1="{down - 4}" y2="{down - 4}" {look}/>'
        yield _text(_LEFT + 32, down, name, "")
    yield _text(_RIGHT, _BOTTOM + 36, "Shaded: over the budget, or the whole", f'text-anchor="end" fill="{_QUIET}"')


def _description(record: Mapping[str, Any], curves: Mapping[str, tuple[Points, str]]) -> str:
    """The figure in words, for who does not see it."""
    said = [
        f"{name}: {', '.join(f'{depth}: {loss:.3f}' for depth, loss in points)}."
        for name, (points, _) in curves.items()
    ]
    recommended = f"Recommended: {record['recommended']['name']}."
    return " ".join([f"Loss on {record['set']}, nats a token, by the number of layers kept.", *said, recommended])
