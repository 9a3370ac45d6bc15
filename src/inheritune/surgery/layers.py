"""Words for layers: what a user says becomes indices into the reference's blocks, or is refused in one line."""

from __future__ import annotations

import itertools
import re

from inheritune.errors import Refused

Indices = tuple[int, ...]

MEASURES = ("influence", "angular")
"""Words for layers that are chosen by what a reference does with tokens (see `layerwise`)."""
PROBE = "probe"
"""The word for layers that are chosen by training several choices a little (see `probing`)."""
FORMS = "13 (the first 13), half, first:12+last:1, last:13, every:2, 0-11,25, influence:13, angular:13, probe:13"
"""Every form that a word for layers can have, by example."""


def parse_layers(layers: int | str, total: int) -> Indices | None:
    """The user's word for which layers to keep, as indices; None for one that needs tokens to be resolved.

    Forms, joined by `+`: `N` or `first:N` (the first N), `half` (of `total`, rounded down), `last:N`, `every:K` (0, K,
    2K, ...), and indices such as `0-11,25` (both ends included). What needs tokens stands alone: `influence:N`,
    `angular:N`, `probe:N`.

    Args:
        layers: the word; a number is how many of the first layers.
        total: layers of the reference.

    Raises:
        Refused: not such a word, out of range, a layer twice, or out of order.
    """
    word = _word(layers)
    if re.search(r"[0-9]\s+[0-9]", str(layers)):
        raise Refused(f"layers: {str(layers)!r} is not possible: put a comma between layers")
    if is_probe(word):  # its N may be a number of parameters
        return None
    if word.startswith(tuple(f"{measure}:" for measure in MEASURES)):
        measured(word, total)
        return None
    indices: list[int] = []
    for term in word.split("+"):
        indices += _term(term, word, total)
    for before, after in itertools.pairwise(indices):
        if after == before or after in indices[: indices.index(before)]:
            raise Refused(f"layers: {word!r} keeps layer {after} twice; name each layer once")
        if after < before:
            raise Refused(f"layers: {word!r} names layer {after} after layer {before}; name them in ascending order")
    return tuple(indices)


def measured(layers: int | str, total: int) -> tuple[str, int]:
    """The word before the colon and the N of one that needs tokens, such as `angular:N`.

    Raises:
        Refused: N is no number from 1 to `total`.
    """
    word = _word(layers)
    measure, _, count = word.partition(":")
    assert measure in (*MEASURES, PROBE), word
    return measure, _number(count, word, total)


def is_probe(layers: int | str) -> bool:
    """Whether a word has its layers chosen by training: `probe:N`."""
    return _word(layers).startswith(f"{PROBE}:")


def _word(layers: int | str) -> str:
    """A word for layers without blanks."""
    return re.sub(r"\s+", "", str(layers))


def spelled(indices: Indices) -> str:
    """Layer indices in words: `0 to 3`, or `0 to 11, 25`."""
    runs: list[list[int]] = []
    for index in indices:
        if runs and index == runs[-1][-1] + 1:
            runs[-1].append(index)
        else:
            runs.append([index])
    pieces = [f"{run[0]} to {run[-1]}" if len(run) > 2 else ", ".join(map(str, run)) for run in runs]
    return ", ".join(pieces)


def kept(indices: Indices, init: str) -> Indices:
    """The layers that an init takes: those chosen; for `stack` the first half of them (rounded up), repeated and cut.

    Source: Gong et al. 2019, progressive stacking; the control of that name in the Inheritune paper.
    """
    if init != "stack":
        return indices
    half = (len(indices) + 1) // 2
    return tuple(indices[position % half] for position in range(len(indices)))


def _term(term: str, word: str, total: int) -> list[int]:
    """The indices of one term of a word."""
    name, colon, rest = term.partition(":")
    if term == "half" and total > 1:
        return list(range(total // 2))
    if re.fullmatch("[0-9]+", term, re.ASCII) or (colon and name == "first"):
        return list(range(_number(rest if colon else term, word, total)))
    if colon and name == "last":
        return list(range(total - _number(rest, word, total), total))
    if colon and name == "every":
        return list(range(0, total, _number(rest, word, total)))
    if re.fullmatch("[0-9]+(-[0-9]+)?(,[0-9]+(-[0-9]+)?)*", term, re.ASCII):
        return [index for piece in term.split(",") for index in _range(piece, word, total)]
    raise _impossible(word, total)


def _range(piece: str, word: str, total: int) -> range:
    """The indices of `A-B`, both included, or of `A`."""
    first, _, last = piece.partition("-")
    last = last or first
    if len(first) > 6 or len(last) > 6 or int(last) >= total:
        raise Refused(f"layers: {word!r} is not possible: the reference has layers 0 to {total - 1}")
    if int(first) > int(last):
        raise Refused(f"layers: {word!r} is not possible: {piece} holds no layer; both ends are included")
    return range(int(first), int(last) + 1)


def _number(digits: str, word: str, total: int) -> int:
    """A count from 1 to `total`."""
    count = int(digits) if re.fullmatch("[0-9]{1,6}", digits, re.ASCII) else 0
    if not 1 <= count <= total:
        raise _impossible(word, total)
    return count


def _impossible(word: str, total: int) -> Refused:
    half = f", or half ({total // 2})" if total > 1 else ""
    return Refused(
        f"layers: {word!r} is not possible, the reference has {total} layers; give a number from 1 to {total}{half}, "
        f"or a form such as {FORMS}"
    )
