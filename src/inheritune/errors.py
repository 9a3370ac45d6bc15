"""The errors a user may meet, each with the exit code it ends the program with; and the hint at a mistyped name."""

import difflib
from collections.abc import Sequence


class InherituneError(Exception):
    """An expected failure: its text is one line saying what, where and how to mend it."""

    exit_code = 1
    said = False
    """Whether another rank says it."""


class Refused(InherituneError):
    """Bad input, found before anything was written."""

    exit_code = 2


class Failed(InherituneError):
    """Something went wrong later (disk full, non-finite loss); what was finished is kept and the run can go on."""

    exit_code = 1


class Diverged(Failed):
    """A training that goes nowhere: too many steps in a row were skipped, or its loss is not finite."""


class Interrupted(BaseException):
    """Ctrl-C (130) or SIGTERM (143), after a checkpoint was written; like KeyboardInterrupt no Exception.

    It comes out of any line at all, those of libraries included, whose `except Exception` would take it for an error of
    what they just did, and go on.
    """

    said = False
    """Whether another rank says it."""

    def __init__(self, message: str, exit_code: int = 130) -> None:
        super().__init__(message)
        self.exit_code = exit_code


def nearest(name: str, names: Sequence[str]) -> str:
    """A hint at the name most like a wrong one, to append to a complaint; empty if none is near."""
    found = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    return f"; did you mean {found[0]!r}?" if found else ""


def is_text(word: str) -> bool:
    """Whether a word can be written: a file name whose bytes are not UTF-8 holds surrogates in Python."""
    return not any("\ud800" <= character <= "\udfff" for character in word)


_CONTROLS = {code: "\N{REPLACEMENT CHARACTER}" for code in (*range(32), *range(127, 160)) if chr(code) not in "\t\n\r"}


def printable(text: str) -> str:
    """A text without control characters, which a terminal would obey and XML does not allow; line ends stay."""
    return text.translate(_CONTROLS)
