"""A table of words and numbers, and what it is in Markdown and in LaTeX."""

from __future__ import annotations

import re
from dataclasses import dataclass

from inheritune.report.table import escaped

PACKAGES = "% \\usepackage[T1]{fontenc} \\usepackage{booktabs}\n"
"""What tables in LaTeX need."""


@dataclass(frozen=True)
class Sheet:
    """A table as text, for any format."""

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    words: int
    """How many columns, from the left, hold words; the others hold numbers."""
    notes: tuple[str, ...]
    """Sentences that go below it."""


def in_markdown(sheet: Sheet) -> str:
    """A table in Markdown: its title, the table, the notes as a list."""
    rule = ["---" if index < sheet.words else "---:" for index in range(len(sheet.header))]
    rows = [[_markdown_text(cell) for cell in row] for row in (sheet.header, *sheet.rows)]
    table = "\n".join(f"| {' | '.join(row)} |" for row in (rows[0], rule, *rows[1:]))
    notes = "".join(f"- {_markdown_text(note)}\n" for note in sheet.notes)
    return f"**{_markdown_text(sheet.title)}**\n\n{table}\n" + (f"\n{notes}" if notes else "")


def _markdown_text(text: str) -> str:
    """Text as Markdown that shows it as it is, on one line: struck out, or in mathematics, it would be on GitHub."""
    return re.sub(r"([~$])", r"\\\1", escaped(" ".join(text.split())))


_LATEX = {
    **{character: f"\\{character}" for character in "&%$#_{}"},
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "`": r"\textasciigrave{}",
    '"': r"\textquotedbl{}",
    # At the start of a row these would be taken for arguments of the `\\` before it.
    "[": "{[}",
    "]": "{]}",
    "*": "{*}",
    "--": "-{}-",
    "±": r"$\pm$",
    "−": "$-$",
    "↓": r"$\downarrow$",
    "≥": r"$\geq$",
    "–": "--",
    "’": "'",
}


def in_latex(sheet: Sheet) -> str:
    """A table in LaTeX, for `PACKAGES`."""
    columns = "l" * sheet.words + "r" * (len(sheet.header) - sheet.words)
    header, *rows = (" & ".join(map(_latex_text, row)) + r" \\" for row in (sheet.header, *sheet.rows))
    notes = " ".join(map(_latex_text, sheet.notes))
    lines = [
        r"\begin{table}",
        r"\centering",
        rf"\caption{{{_latex_text(sheet.title)}.}}",
        rf"\begin{{tabular}}{{{columns}}}",
        r"\toprule",
        header,
        r"\midrule",
        *rows,
        r"\bottomrule",
        r"\end{tabular}",
        *([rf"\par\smallskip\parbox{{\linewidth}}{{\footnotesize {notes}}}"] if notes else []),
        r"\end{table}",
    ]
    return "\n".join(lines) + "\n"


def _latex_text(text: str) -> str:
    """Text as LaTeX that shows it as it is."""
    found = re.compile("|".join(re.escape(key) for key in sorted(_LATEX, key=len, reverse=True)))
    return found.sub(lambda match: _LATEX[match[0]], " ".join(text.split()))
