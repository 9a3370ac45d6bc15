"""What is asked for: suites by name, or the harness's task names, `piqa,mmlu:5`. No torch, no harness."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass

from inheritune.errors import Refused, nearest

QUICK_ROWS = 200
QUICK_PAGES = 5
_SEED = 0
"""Of the rows that a suite chooses: one choice for everybody, or scores could not be compared."""


@dataclass(frozen=True)
class Asked:
    """A task, or a group of tasks, as it was asked for."""

    name: str
    """The harness's name: `piqa`, `mmlu`."""
    shots: int | None = None
    """Worked examples before the question; None: as many as the task's definition says."""
    metric: str | None = None
    """The metric that counts; None: the task's first, `acc` before others."""
    rows: int | None = None
    """A seeded choice of so many rows of the split; None: all of them."""
    suite: str | None = None
    """The suite that it was named by."""


@dataclass(frozen=True)
class Suite:
    """All that is asked for."""

    name: str
    """As the user gave it."""
    asked: tuple[Asked, ...]


SUITES: dict[str, tuple[Asked, ...]] = {
    # The poster's table 2: 0-shot, but for MMLU. Its "Winograd" is SuperGLUE's wsc (104 rows), not wsc273.
    "table2": (
        *(Asked(name, 0, "acc") for name in ("wsc", "piqa", "boolq", "winogrande", "logiqa")),
        Asked("mmlu", 5, "acc"),
        *(Asked(name, 0, "acc") for name in ("wnli", "qnli", "mnli")),
        Asked("truthfulqa_mc2", 0, "acc"),
    ),
    "table4": (Asked("wikitext", 0, "word_perplexity"), Asked("lambada_openai", 0, "acc")),
    # Minutes on a CPU: what a small model can be seen to learn, without MMLU's long prompts.
    "quick": (
        *(Asked(name, 0, "acc", QUICK_ROWS) for name in ("piqa", "boolq", "winogrande", "logiqa", "lambada_openai")),
        Asked("wikitext", 0, "word_perplexity", QUICK_PAGES),
    ),
}
"""The suites, each a list of what it asks for."""

_WORD = re.compile(r"(?P<name>[^\s:]+)(?::(?P<shots>-?[0-9]+))?")


def parse_suite(text: str) -> Suite:
    """Read `table2`, `piqa,mmlu:5,arc_easy:25`, or both mixed: names apart by commas, `:SHOTS` behind a task's.

    Task names are checked later, where the harness is at hand.

    Raises:
        Refused: a word is no name with or without shots, shots are negative or behind a suite, a task comes twice.
    """
    asked: list[Asked] = []
    for word in (part.strip() for part in text.split(",")):
        match = _WORD.fullmatch(word)
        if match is None:
            raise Refused(f"--suite {text!r}: {word!r} is no task; give names apart by commas, such as piqa,mmlu:5")
        name, shots = match["name"], match["shots"]
        if shots is not None and int(shots) < 0:
            raise Refused(f"--suite: {word}: shots must be 0 or more")
        if name in SUITES:
            if shots is not None:
                raise Refused(f"--suite: {word}: a suite says its tasks' shots; give {name}, or its tasks one by one")
            asked += [Asked(one.name, one.shots, one.metric, one.rows, name) for one in SUITES[name]]
        else:
            asked.append(Asked(name, None if shots is None else int(shots)))
    names = [one.name for one in asked]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise Refused(f"--suite {text}: {twice} comes twice; name it once")
    return Suite(text, tuple(asked))


def unknown_task(name: str, known: list[str]) -> Refused:
    """The complaint about a name that is neither a suite's nor a task's, with the nearest ones."""
    hint = nearest(name, [*SUITES, *known]) or "; see lm_eval ls tasks"
    return Refused(f"--suite: {name}: no suite ({', '.join(SUITES)}) and no task of the harness{hint}")


def chosen_rows(task: str, rows: int, of: int) -> list[int]:
    """A seeded choice of `rows` of a split's `of` rows, in order: always the same for a task.

    By hashes, since no library promises its generator's streams across releases.
    """
    if rows >= of:
        return list(range(of))
    ranked = sorted(range(of), key=lambda row: hashlib.sha256(f"{_SEED}:{task}:{row}".encode()).digest())
    return sorted(ranked[:rows])
