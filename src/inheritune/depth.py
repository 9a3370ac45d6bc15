"""How many layers, and which: a recommendation from what was measured, under a budget. No torch.

For the same training tokens a target with more layers is nearly always at least as good, so "how many" has an answer
only where something is short. The budget bounds the target (parameters, memory); within it numbers of layers are
compared at equal FLOPs of training, where fewer layers see more tokens. The rule: the lowest loss on the development
documents decides; where fewer layers are behind by no more than these documents can resolve, they are taken instead.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from inheritune.comparison import Documents, resampled_means

_SHARES = (1, 3 / 4, 1 / 2, 1 / 4)
"""Of the most layers that fit the budget: the numbers of layers that are tried."""
_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}
_BINARY_UNITS = {"k": 2**10, "m": 2**20, "g": 2**30, "t": 2**40}


@dataclass(frozen=True)
class Budget:
    """What a target may take at most; None: as much as it likes."""

    parameters: int | None = None
    memory_bytes: int | None = None
    """At the peak of a training step of one sequence."""

    def allows(self, parameters: int, memory_bytes: int | None) -> bool:
        """Whether a target with so many parameters, and so much memory at a training step's peak, is within it."""
        if self.parameters is not None and parameters > self.parameters:
            return False
        return self.memory_bytes is None or (memory_bytes is not None and memory_bytes <= self.memory_bytes)


@dataclass(frozen=True)
class Contender:
    """A choice of layers within the budget, with what was measured of it. Losses are in nats a token."""

    name: str
    """The word for its layers, such as `first:12+last:3`."""
    layers: tuple[int, ...]
    untrained: float | None
    losses: tuple[float | None, ...] = ()
    """After each rung that it took part in, at equal FLOPs; None where it diverged."""
    equal_tokens: tuple[float | None, ...] = ()
    """The same at equal tokens."""
    nats: Documents | None = None
    """Of one that took part in the last rung: what each development document comes to there, (documents,)."""

    @property
    def depth(self) -> int:
        """How many layers it has."""
        return len(self.layers)


@dataclass(frozen=True)
class Recommendation:
    """What is recommended, and why."""

    contender: Contender
    best: Contender
    """Of the lowest loss: another than the one recommended where fewer layers do as well."""
    reasons: tuple[str, ...]
    """Sentences."""


@dataclass(frozen=True)
class Behind:
    """How far one contender is behind another on the same documents, in nats a token, with its 95% interval."""

    value: float
    low: float | None
    """None where a single document leaves no spread."""
    high: float | None

    @property
    def resolved(self) -> bool:
        """Whether the documents tell it from nothing."""
        return self.low is None or not self.low <= 0  # what is not finite is told apart, too

    def __str__(self) -> str:
        if self.low is None:
            return f"{self.value:.3f} nats a token (one document leaves no interval)"
        return f"{self.value:.3f} nats a token (95% interval {self.low:.3f} to {self.high:.3f})"


def parse_bytes(text: str) -> int:
    """An amount of memory, written `24GB`, `24G` (decimal), `80GiB` (binary) or as a number of bytes.

    Raises:
        ValueError: not such an amount, or none of whole bytes.
    """
    matched = re.fullmatch(r"([0-9]{1,15}(?:\.[0-9]{1,6})?)\s*(?:([kmgt])(i?)b?)?", text.strip(), re.IGNORECASE)
    if matched is None:
        raise ValueError("an amount of memory is a number such as 24GB or 80GiB")
    number, unit, binary = matched.groups()
    size = int(float(number) * (_BINARY_UNITS if binary else _UNITS)[(unit or "").lower()])
    if size < 1:
        raise ValueError("an amount of memory is a number above 0, such as 24GB or 80GiB")
    return size


def depths_to_try(most: int) -> list[int]:
    """Numbers of layers to compare, from the most that fit the budget down to about a quarter of them."""
    return list(dict.fromkeys(max(1, math.floor(most * share + 0.5)) for share in _SHARES))


def recommend(
    contenders: Sequence[Contender], *, document_tokens: Documents, rungs: int, most: int, of_layers: int
) -> Recommendation:
    """Which layers to keep, by the rule that this module's docstring states.

    Args:
        contenders: one or more, all within the budget.
        document_tokens: of the development documents, (documents,).
        rungs: how many a probe had; 0 where nothing was trained.
        most: the most layers that are allowed: by the budget, and one fewer than the reference's.
        of_layers: the reference's.
    """
    finalists = _finalists(contenders, rungs) if rungs else []
    if not finalists:
        return _by_measures(contenders, most, of_layers)
    best = min(finalists, key=lambda one: (_last(one), one.depth))
    chosen, why = best, []
    for one in sorted((one for one in finalists if one.depth < best.depth), key=lambda one: one.depth):
        behind = behind_by(one, best, document_tokens)
        if not behind.resolved:
            chosen = one
            why = [
                f"{best.name} has the lowest loss; {_named(one)} is behind by {behind}: with "
                f"{_counted(len(document_tokens), 'development document')} that is not resolved, so the fewer layers "
                "are taken."
            ]
            break
    why += _against_others(chosen, best, finalists, document_tokens)
    why += _among_its_own(chosen, contenders)
    why += _at_equal_tokens(chosen, [one for one in contenders if len(one.losses) == rungs])
    why += _tendency(chosen, finalists, contenders, rungs)
    return Recommendation(chosen, best, (_extent(chosen, most, of_layers), *why))


def behind_by(one: Contender, other: Contender, document_tokens: Documents) -> Behind:
    """How far `one` is behind `other` after the last rung: a bootstrap over documents, paired.

    Args:
        one: with its `nats`.
        other: with its `nats`.
        document_tokens: (documents,).
    """
    assert one.nats is not None
    assert other.nats is not None
    value = float((one.nats.sum() - other.nats.sum()) / document_tokens.sum())
    if len(document_tokens) < 2:
        return Behind(value, None, None)
    mine, theirs = resampled_means([one.nats, other.nats], document_tokens)
    low, high = (float(x) for x in np.percentile(mine - theirs, [2.5, 97.5]))
    return Behind(value, low, high)


def _finalists(contenders: Sequence[Contender], rungs: int) -> list[Contender]:
    """The best of each number of layers after the last rung, the deepest first."""
    there = [one for one in contenders if len(one.losses) == rungs and one.losses[-1] is not None]
    depths = sorted({one.depth for one in there}, reverse=True)
    return [min((one for one in there if one.depth == depth), key=_last) for depth in depths]


def _by_measures(contenders: Sequence[Contender], most: int, of_layers: int) -> Recommendation:
    """Without training: the most layers that fit, and of their choices the lowest loss untrained."""
    deepest = max(one.depth for one in contenders)
    chosen = min((one for one in contenders if one.depth == deepest), key=_untrained)
    loss = "its loss untrained is not finite" if chosen.untrained is None else f"{chosen.untrained:.3f} nats a token"
    return Recommendation(
        chosen,
        chosen,
        (
            _extent(chosen, most, of_layers),
            "Nothing was trained: the recommendation rests on measures of the untrained choices alone.",
            f"The most layers that are allowed are taken; of their choices {chosen.name} is best untrained, {loss}.",
            "What a choice of layers scores untrained says little of what it scores once trained: a probe would.",
        ),
    )


def _extent(chosen: Contender, most: int, of_layers: int) -> str:
    bound = "the most that are allowed" if chosen.depth == most else f"up to {most} are allowed"
    return f"n = {chosen.depth} of {of_layers} layers ({bound}), chosen as {chosen.name}."


def _against_others(
    chosen: Contender, best: Contender, finalists: Sequence[Contender], document_tokens: Documents
) -> list[str]:
    """The lead at equal FLOPs on what comes next, where the choice is the best."""
    if chosen is not best:
        return []
    said = f"After equal FLOPs {chosen.name} has the lowest loss of all: {_last(chosen):.3f} nats a token."
    others = sorted((one for one in finalists if one is not chosen), key=_last)
    if not others:
        return [said]
    behind = behind_by(others[0], chosen, document_tokens)
    lead = f"{said} The next number of layers, {_named(others[0])}, is behind by {behind}"
    return [f"{lead}." if behind.resolved else f"{lead}, which is not resolved; it has more layers."]


def _among_its_own(chosen: Contender, contenders: Sequence[Contender]) -> list[str]:
    """How far the poster's prefix is behind, where other layers were chosen."""
    prefix = next((one for one in contenders if one.layers == tuple(range(chosen.depth))), None)
    if prefix is None or prefix is chosen or not prefix.losses:
        return []
    rung = len(prefix.losses)
    loss, own = prefix.losses[-1], chosen.losses[rung - 1]
    if loss is None or own is None:
        return [f"Of the same number of layers {prefix.name} diverged."]
    return [f"Of the same number of layers {prefix.name} was behind by {loss - own:.3f} nats a token in round {rung}."]


def _at_equal_tokens(chosen: Contender, last_round: Sequence[Contender]) -> list[str]:
    """Whether equal tokens would choose otherwise, of all that took part in the last round."""
    measured = {one.name: one.equal_tokens[-1] for one in last_round if one.equal_tokens}
    finite = {name: loss for name, loss in measured.items() if loss is not None}
    own = finite.get(chosen.name)
    if own is None or len(finite) < 2:
        return []
    best = min(finite, key=lambda name: finite[name])
    if best == chosen.name:
        return [f"At equal tokens it is the best, too: {own:.3f} nats a token."]
    return [
        f"At equal tokens {best} is ahead of it, {finite[best]:.3f} to {own:.3f} nats a token: take that one where "
        "tokens are short, and not FLOPs."
    ]


def _tendency(
    chosen: Contender, finalists: Sequence[Contender], contenders: Sequence[Contender], rungs: int
) -> list[str]:
    """How the lead on the next number of layers changed over the rungs: a probe is shorter than a training."""
    others = sorted((one for one in finalists if one is not chosen), key=_last)
    if not others or rungs < 2:
        return []
    leads = [
        _best_at(contenders, others[0].depth, rung) - _best_at(contenders, chosen.depth, rung)
        for rung in (0, rungs - 1)
    ]
    if not all(map(math.isfinite, leads)):
        return []
    said = (
        f"From the first round to the last its lead on n = {others[0].depth} went from {leads[0]:.3f} to "
        f"{leads[1]:.3f} nats a token"
    )
    shrinking = "it is behind by now, and a longer training may widen that" if leads[1] <= 0 else ""
    shrinking = shrinking or "a longer training may turn it"
    return [f"{said}: {shrinking}." if leads[1] < leads[0] else f"{said}."]


def _best_at(contenders: Sequence[Contender], depth: int, rung: int) -> float:
    """The lowest loss of a number of layers after a rung."""
    losses = (one.losses[rung] for one in contenders if one.depth == depth and len(one.losses) > rung)
    return min((loss for loss in losses if loss is not None), default=math.inf)


def _last(one: Contender) -> float:
    loss = one.losses[-1]
    return math.inf if loss is None else loss


def _untrained(one: Contender) -> float:
    return math.inf if one.untrained is None else one.untrained


def _named(one: Contender) -> str:
    return f"n = {one.depth} ({one.name})"


def _counted(count: int, what: str) -> str:
    return f"{count:,} {what}{'' if count == 1 else 's'}"


def runs(layers: Sequence[int]) -> str:
    """Layers, ascending, as a recipe takes them: `4` for the first four, else `0-1,6-7`."""
    if tuple(layers) == tuple(range(len(layers))):
        return str(len(layers))
    pieces = []
    for _, group in itertools.groupby(enumerate(layers), lambda pair: pair[1] - pair[0]):
        run = [layer for _, layer in group]
        # by itself a number is a count, so a layer alone is a range, too
        pieces.append(str(run[0]) if len(run) == 1 < len(layers) else f"{run[0]}-{run[-1]}")
    return ",".join(pieces)
