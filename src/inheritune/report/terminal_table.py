"""A table of plain lines for a terminal.

Rich shrinks columns without regard to what must not be broken. Here a number keeps the lines that it has, and words
break: after a blank, `_`, `-` or `/` where they can.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from rich.cells import cell_len
from rich.text import Text

LEAST_NAME = 10
"""Columns that a heading, or a word, has at least; a heading less only where not even that fits."""
_LEAST = 4
_PARTS = re.compile(r".+?(?:[\s_/:@-]+(?!↓)|$)")
"""Of a name: between them it may break."""


@dataclass(frozen=True)
class Column:
    """A column of a table, as text; a cell may have several lines."""

    heading: str
    cells: Sequence[str]
    words: bool = False
    """Whether its cells may be folded; they stand at the left."""
    cap: int = 18
    """Of words: columns that no word asks more than."""

    @property
    def least(self) -> int:
        """Columns that it needs."""
        heading = widest(self.heading.split())
        if not self.words:
            return max(widest(self.cells), min(heading, LEAST_NAME))
        words = (len(cell) - len(cell.lstrip()) + widest(cell.split()) for cell in self.cells)
        return min(self.cap, max([heading, *words]))


def widest(texts: Iterable[str]) -> int:
    """Columns of the longest line of all."""
    return max((cell_len(line) for text in texts for line in text.split("\n")), default=0)


def _folded(text: str, room: int) -> list[str]:
    """A text on lines of at most `room` columns; of an indented one further lines are indented a little more."""
    lines = []
    for line in text.split("\n"):
        before = line[: len(line) - len(line.lstrip())]
        further = f"{before}  " if before else ""
        lines.append(before)
        for part in _PARTS.findall(line.strip()):
            if lines[-1].strip() and cell_len(lines[-1] + part.rstrip()) > room:
                lines.append(further)
            for character in part:  # one by one: a part may be longer than a line
                if lines[-1].strip() and not character.isspace() and cell_len(lines[-1] + character) > room:
                    lines.append(further)
                lines[-1] += character
    return [line.rstrip() for line in lines]


def table(columns: Sequence[Column], width: int, dim: Sequence[bool] = ()) -> Iterator[Text]:
    """The lines of a table: headings, a rule, and the rows, of which some are dim."""
    between = len(columns) - 1
    whole = [widest([c.heading, *c.cells]) for c in columns]
    gap = 2 if sum(whole) + 2 * between <= width else 1
    widths = _widths(columns, width - gap * between)
    yield from _row(columns, widths, [column.heading for column in columns], gap, heading=True)
    yield Text("─" * (sum(widths) + gap * between), style="dim")
    for number, cells in enumerate(zip(*(column.cells for column in columns), strict=True)):
        for line in _row(columns, widths, cells, gap):
            if number < len(dim) and dim[number]:
                line.stylize("dim")
            yield line


def _row(
    columns: Sequence[Column], widths: Sequence[int], cells: Sequence[str], gap: int, *, heading: bool = False
) -> Iterator[Text]:
    """A row's lines; headings stand at its foot."""
    texts = [
        _folded(cell, width) if column.words or heading else cell.split("\n")
        for column, width, cell in zip(columns, widths, cells, strict=True)
    ]
    height = max(map(len, texts), default=0)
    texts = [[""] * (height - len(text)) + text if heading else text + [""] * (height - len(text)) for text in texts]
    for parts in zip(*texts, strict=True):
        placed = [
            part + " " * (width - cell_len(part)) if column.words else " " * (width - cell_len(part)) + part
            for column, width, part in zip(columns, widths, parts, strict=True)
        ]
        yield Text((" " * gap).join(placed).rstrip())


def _widths(columns: Sequence[Column], room: int) -> list[int]:
    """Each column's width: what it needs, then names on one line, then headings; names have what is left."""
    widths = [column.least for column in columns]
    least = [min(LEAST_NAME if c.words else max(_LEAST, widest(c.cells)), c.least) for c in columns]
    while sum(widths) > room and (spare := max(map(int.__sub__, widths, least), default=0)) > 0:
        widths[[width - low for width, low in zip(widths, least, strict=True)].index(spare)] -= 1
    names = [max(width, widest(c.cells)) if c.words else width for c, width in zip(columns, widths, strict=True)]
    whole = [max(width, widest([c.heading])) for c, width in zip(columns, names, strict=True)]
    for wanted in (names, whole):
        while sum(widths) < room and (lacking := max(map(int.__sub__, wanted, widths), default=0)) > 0:
            widths[[want - width for want, width in zip(wanted, widths, strict=True)].index(lacking)] += 1
    return widths
