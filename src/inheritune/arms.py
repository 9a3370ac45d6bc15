"""Arms: what a run trains side by side, the target and its controls, each from one word of the recipe. No torch.

A word says what a model starts from and, after it, how it is trained: `random`, `random:2x` (twice the steps),
`random@4` (of 4 layers, whatever the target has), `random:2x@4`.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from dataclasses import dataclass

from inheritune.config import PARTS
from inheritune.errors import nearest

WHOLE_INITS = ("inherit", "random", "stack")
"""The init words that are no sum of parts."""
CHOICES = ("last", "every-other")
"""Controls that inherit as the target does, but other layers of the reference."""
OTHER_CONTROLS = ("distill", "half-width")
"""Controls from random init that differ from the target in more than what they start from."""
CUT = "cut"
"""The control that is not trained: the target's start."""
_MOST_TIMES = 100


@dataclass(frozen=True)
class Arm:
    """A model that a run trains."""

    name: str
    """As records name it: `target`, or the control's word."""
    init: str
    """An init word (see `canonical_init`)."""
    choice: str | None = None
    """Which layers of the reference it takes instead of the target's: one of `CHOICES`."""
    times: int = 1
    """Its steps, in multiples of the target's."""
    layers: int | None = None
    """How many layers it has, if not as many as the target."""
    distilled: bool = False
    """Whether it learns from the reference's predictions, whatever the target does."""
    half_width: bool = False
    """Whether it is as deep as the reference and half as wide."""

    @property
    def directory(self) -> str:
        """Its name as a directory's: without a colon, which some file systems and tools take for something else."""
        return self.name.replace(":", "-")

    @property
    def whole_init(self) -> str | None:
        """`inherit` or `stack` where all that it starts from comes from the reference's files; else None."""
        return self.init if self.init in ("inherit", "stack") else None


def target_arm(init: str) -> Arm:
    """The target of a recipe, by the canonical word for what it starts from."""
    return Arm("target", init)


def control_arm(word: str) -> Arm:
    """The control that a word of `controls` stands for (`cut` is none).

    Raises:
        ValueError: no such word; the message says what is allowed.
    """
    matched = re.fullmatch(r"([a-z_+-]+)(?::([0-9]{1,3})x)?(?:@([0-9]{1,4}))?", word)
    if matched is None:
        raise ValueError(
            f"{init_words(control_names())}; but for cut each may end in :2x (twice the steps), @4 (4 layers), or both "
            "in this order, :2x@4"
        )
    base, times, layers = matched.group(1), int(matched.group(2) or 1), matched.group(3)
    if base == CUT:
        raise ValueError("cut by itself: it is the target's start, with its layers, and is not trained")
    if not (1 if matched.group(2) is None else 2) <= times <= _MOST_TIMES:
        raise ValueError(f"2x to {_MOST_TIMES}x after the colon")
    if layers is not None and (int(layers) < 1 or base == "half-width"):
        raise ValueError("1 layer or more after @, which half-width, as deep as the reference, does not take")
    init = "inherit" if base in CHOICES else "random" if base in OTHER_CONTROLS else canonical_init(base)
    name = base if base in (*CHOICES, *OTHER_CONTROLS) else init
    name += f":{times}x" if times > 1 else ""
    name += f"@{int(layers)}" if layers is not None else ""
    return Arm(
        name=name,
        init=init,
        choice=base if base in CHOICES else None,
        times=times,
        layers=int(layers) if layers is not None else None,
        distilled=base == "distill",
        half_width=base == "half-width",
    )


def chosen_layers(choice: str, count: int, total: int) -> tuple[int, ...]:
    """The layers of a reference of `total` that a control takes in place of the target's `count`.

    `last`: the last ones. `every-other`: as many spread evenly from the first, every second where the target has half
    of them (as DistilBERT's student takes its teacher's: Sanh et al. 2019, section 3).
    """
    if choice == "last":
        return tuple(range(total - count, total))
    return tuple(index * total // count for index in range(count))


def init_parts(word: str) -> frozenset[str]:
    """The parts of the reference that an init word inherits; what is not among them comes from random init.

    A word is `inherit` or `stack` (all parts; they differ in the layers that these are taken from), `random` (none), or
    distinct parts joined by `+`.

    Raises:
        ValueError: not such a word; the message says what is allowed.
    """
    if word in WHOLE_INITS:
        return frozenset() if word == "random" else frozenset(PARTS)
    parts = word.split("+")
    if not set(parts) <= set(PARTS) or len(set(parts)) < len(parts):
        raise ValueError(init_words(WHOLE_INITS, word))
    return frozenset(parts)


def canonical_init(word: str) -> str:
    """An init word as runs name it: its parts in the order of `PARTS`, all of them together as `inherit`.

    Raises:
        ValueError: no init word.
    """
    parts = init_parts(word)
    if word in WHOLE_INITS:
        return word
    return "inherit" if len(parts) == len(PARTS) else "+".join(part for part in PARTS if part in parts)


def control_names() -> list[str]:
    """Every word that a control may have, but for sums of parts and what may follow a word."""
    return [CUT, "random", "stack", "inherit", *CHOICES, *OTHER_CONTROLS]


def init_words(words: Sequence[str], wrong: str = "") -> str:
    """What an init may be: these words or a sum of parts; with a hint at what a wrong one was to be."""
    allowed = f"{', '.join(words)}, or distinct parts joined by '+': {', '.join(PARTS)}"
    if "+" not in wrong:
        return allowed + nearest(wrong, [*words, *PARTS])
    matches = [difflib.get_close_matches(part, PARTS, n=1, cutoff=0.5) for part in wrong.split("+")]
    mended = "+".join(dict.fromkeys(match[0] for match in matches if match))
    return f"{allowed}; did you mean {mended!r}?" if all(matches) else allowed
