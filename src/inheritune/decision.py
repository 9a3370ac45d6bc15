"""Whether a target matches its reference: a bound on the difference of their losses, and what it can resolve. No torch.

A match is non-inferiority: the upper bound of target - reference, in nats a token on fixed documents, lies below a
margin. The bound is one-sided, at alpha over the number of planned rounds (Bonferroni), since growth looks once a round
and one false match ends it. It is a bootstrap-t over documents (Efron & Tibshirani 1993, section 12.5), because the
percentile bound lies too low with few documents or unequal ones: studies/decision_rule has the coverage of both.

What is estimated is a ratio, sum(target - reference) / sum(tokens), so its standard error is that of the documents'
residuals, difference - estimate * tokens (Cochran 1977, Sampling Techniques, section 6.3).
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from inheritune.comparison import Documents

RESAMPLES = 10_000
_FEWEST_BEYOND = 10
"""Draws beyond the bound: where alpha / rounds is small, more are drawn, else the bound is that of a few extremes."""
_CELLS = 1 << 17
"""Numbers drawn at a time, 1 MiB an array: arrays that stay in a core's cache take half as long as larger ones."""
_ROUNDING = 1e-12
"""A spread smaller than this share of what it was computed from is rounding."""
_RESERVE = 0.7
"""Of the margin, the half-width to aim at: one as wide as the margin lets a target that is exactly as good as the
reference match in half of all cases; at alpha / rounds = 0.0125 this lets it match in five of six."""


@dataclass(frozen=True)
class Verdict:
    """Whether one trained target matches the reference; losses in nats a token."""

    matched: bool
    """Whether both bounds lie below the margin."""
    difference: float
    """target - reference, token weighted."""
    upper: float | None
    """The bootstrap's bound on it; None where the documents are too few for one."""
    upper_by_t: float | None
    """The same by Student's t, to check it by; None for one document."""
    half_width: float | None
    """upper - difference."""
    margin: float
    """What both must lie below."""
    alpha: float
    """Probability of a false match over all planned rounds."""
    rounds: int
    """Planned; each bound is at alpha / rounds."""
    documents: int
    """Those with a token."""
    tokens: int
    text: str
    """One sentence for the user."""


@dataclass(frozen=True)
class Combined:
    """The verdicts about one depth, trained with several seeds."""

    verdicts: tuple[Verdict, ...]
    matched: bool
    """Whether every seed matches."""
    difference: float
    """Mean over the seeds, nats a token."""
    spread: float | None
    """Standard deviation over the seeds, nats a token; None for one seed."""
    text: str
    """One sentence for the user."""


class _Bounds(NamedTuple):
    """Estimate and upper bounds, nats a token; infinite where there is none."""

    difference: float
    by_bootstrap: float
    by_t: float

    @property
    def larger(self) -> float:
        return max(self.by_bootstrap, self.by_t)


def decide(
    target: Documents,
    reference: Documents,
    tokens: Documents,
    *,
    margin: float,
    alpha: float = 0.05,
    rounds: int = 1,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> Verdict:
    """Whether the target is at most `margin` worse than the reference, as far as these documents can tell.

    The larger of the two bounds decides: a false match ends a growth too early, a false miss costs a round. They differ
    with few documents or unequal ones, and neither is always the safer one.

    Args:
        target: the target's total loss of each document, nats, (documents,).
        reference: the reference's, of the same documents.
        tokens: the documents' tokens, (documents,); documents without any are left out.
        margin: what target - reference must lie below, nats a token; 0 where the target must be better.
        alpha: probability of a false match over all rounds, above 0 and below 0.5.
        rounds: decisions that are planned, each at alpha / rounds.
        seed: of the draws.
        resamples: draws of documents, at least; more where alpha / rounds is below 0.001.

    Raises:
        ValueError: shapes that differ, losses that are not finite, no token, no such alpha, rounds, margin or
            resamples.
    """
    if not math.isfinite(margin):
        raise ValueError(f"margin: a number of nats a token, not {margin}")
    differences, tokens = _checked(target, reference, tokens)
    bounds = _bounds(differences, tokens, _level(alpha, rounds), seed, resamples)
    matched = bounds.larger < margin
    upper = bounds.by_bootstrap if math.isfinite(bounds.by_bootstrap) else None
    return Verdict(
        matched=matched,
        difference=bounds.difference,
        upper=upper,
        upper_by_t=bounds.by_t if math.isfinite(bounds.by_t) else None,
        half_width=None if upper is None else upper - bounds.difference,
        margin=margin,
        alpha=alpha,
        rounds=rounds,
        documents=len(tokens),
        tokens=round(float(tokens.sum())),
        text=_sentence(bounds, margin, alpha / rounds, len(tokens)),
    )


def combined(verdicts: Sequence[Verdict]) -> Combined:
    """What the verdicts about several training seeds say together: a match if every seed matches.

    Of the rules tried in studies/decision_rule this one alone keeps, for the mean over seeds too, about the error that
    each bound promises: a recipe whose mean lies at the tolerance can have a lucky seed, a lucky majority, a lucky mean
    of three, but hardly luck with all. It misses the more good recipes for that, the more the seeds differ.

    Raises:
        ValueError: no verdict, or verdicts by different rules.
    """
    if len({(one.margin, one.alpha, one.rounds) for one in verdicts}) != 1:
        raise ValueError("verdicts: at least one, and all by the same margin, alpha and rounds")
    differences = [one.difference for one in verdicts]
    mean = statistics.fmean(differences)
    if len(verdicts) == 1:
        return Combined(tuple(verdicts), verdicts[0].matched, mean, None, verdicts[0].text)
    matching, spread = sum(one.matched for one in verdicts), statistics.stdev(differences)
    matched = matching == len(verdicts)
    text = (
        f"{'matched' if matched else 'not matched'}: {matching} of {len(verdicts)} training seeds match, target - "
        f"reference is {mean:.4f} nats a token in the mean over seeds, with a standard deviation of {spread:.4f}; "
        f"this holds for the weights of these seeds"
    )
    return Combined(tuple(verdicts), matched, mean, spread, text)


def foreseen_half_width(
    target: Documents, reference: Documents, tokens: Documents, *, alpha: float, rounds: int
) -> float:
    """How far above the estimate the deciding bound will lie, from a pilot pair of models on the same documents.

    The bounds move with the mean difference, so the pilot's own plays no role: only how the documents differ from each
    other counts. A pilot that differs less from its reference than a target will foresees too little.

    Args:
        target: the pilot's total loss of each document, nats, (documents,).
        reference: the reference's.
        tokens: the documents' tokens, (documents,).
        alpha: as for `decide`.
        rounds: as for `decide`.

    Returns:
        Nats a token; infinite where the documents are too few for a bound.

    Raises:
        ValueError: as `decide`.
    """
    differences, tokens = _checked(target, reference, tokens)
    bounds = _bounds(differences, tokens, _level(alpha, rounds), 0, RESAMPLES)
    return bounds.larger - bounds.difference


def documents_needed(half_width: float, documents: int, margin: float) -> int:
    """How many documents of the same kind would make the half-width 0.7 of the margin.

    It falls with the root of their number. The reserve is for the target's sake: see `_RESERVE`.

    Args:
        half_width: of the bound over `documents`, nats a token.
        documents: how many it was measured on.
        margin: nats a token, above 0.

    Raises:
        ValueError: no such half-width, documents or margin.
    """
    if not (math.isfinite(half_width) and half_width >= 0 and documents >= 1 and 0 < margin < math.inf):
        raise ValueError(f"no number of documents follows from {half_width}, {documents}, {margin}")
    return max(2, math.ceil(documents * (half_width / (_RESERVE * margin)) ** 2))


def t_quantile(tail: float, freedom: int) -> float:
    """Student's t that is exceeded with probability `tail`, to about 1e-9, by bisection.

    Args:
        tail: above 0, at most 0.5.
        freedom: degrees of freedom, at least 1.

    Raises:
        ValueError: no such tail or freedom.
    """
    if not (0 < tail <= 0.5 and freedom >= 1):
        raise ValueError(f"no quantile of t for a tail of {tail} and {freedom} degrees of freedom")
    low, high = 0.0, 1.0
    while _t_tail(high, freedom) > tail:
        low, high = high, 2 * high
    while high - low > 1e-10 * high:
        middle = (low + high) / 2
        low, high = (middle, high) if _t_tail(middle, freedom) > tail else (low, middle)
    return (low + high) / 2


def _checked(target: Documents, reference: Documents, tokens: Documents) -> tuple[Documents, Documents]:
    """The documents' differences in nats and their tokens, those without a token left out."""
    if not (target.ndim == 1 and target.shape == reference.shape == tokens.shape):
        raise ValueError(f"a value a document is needed, not {target.shape}, {reference.shape} and {tokens.shape}")
    if not (np.isfinite(target).all() and np.isfinite(reference).all()):
        raise ValueError("losses that are not finite")
    if not ((tokens >= 0).all() and 0 < tokens.sum() < math.inf):
        raise ValueError("tokens: none below 0, and at least one in all")
    kept = tokens > 0
    return target[kept] - reference[kept], np.asarray(tokens[kept], np.float64)


def _level(alpha: float, rounds: int) -> float:
    """The probability at which each bound is taken."""
    if not (0 < alpha < 0.5 and rounds >= 1):
        raise ValueError(f"alpha: above 0 and below 0.5, and rounds: at least 1, not {alpha} and {rounds}")
    return alpha / rounds


def _bounds(differences: Documents, tokens: Documents, level: float, seed: int, resamples: int) -> _Bounds:
    """The upper bounds of sum(differences) / sum(tokens) at a level."""
    if resamples < 1:
        raise ValueError(f"resamples: at least 1, not {resamples}")
    documents, total = len(tokens), tokens.sum()
    difference = float(differences.sum() / total)
    if documents == 1:
        return _Bounds(difference, math.inf, math.inf)
    residuals = differences - difference * tokens
    if not residuals.any():  # the same model twice
        return _Bounds(difference, difference, difference)
    error = float(np.sqrt(documents / (documents - 1) * (residuals @ residuals)) / total)
    drawn = max(resamples, math.ceil(_FEWEST_BEYOND / level))
    ratios = np.sort(_studentised(residuals, tokens, drawn, seed))
    # the order statistic of Davison & Hinkley 1997, section 5.2, rounded outwards
    lowest = float(ratios[max(0, math.floor(level * (drawn + 1)) - 1)])
    by_t = difference + t_quantile(level, documents - 1) * error
    return _Bounds(difference, difference - lowest * error, by_t)


def _studentised(residuals: Documents, tokens: Documents, resamples: int, seed: int) -> Documents:
    """(estimate of a draw - estimate) / standard error of the draw, for draws of documents with replacement.

    Args:
        residuals: of the documents, their sum 0, (documents,).
        tokens: theirs.
        resamples: how many draws.
        seed: of the draws.

    Returns:
        (resamples,); -inf where a draw has no spread, as if it were an arbitrarily good one.
    """
    generator = np.random.default_rng(seed)
    documents = len(tokens)
    # Sums over a draw are products with how often it holds each document; these five give estimate and error.
    summed = np.stack([residuals, tokens, residuals**2, residuals * tokens, tokens**2], axis=1)
    found = np.empty(resamples)
    rows = max(1, _CELLS // documents)
    for begin in range(0, resamples, rows):
        part = min(rows, resamples - begin)
        cells = generator.integers(documents, size=(part, documents)) + documents * np.arange(part)[:, None]
        counts = np.bincount(cells.ravel(), minlength=part * documents).reshape(part, documents)
        first, weight, squares, cross, weights = (counts.astype(np.float64) @ summed).T
        shift = first / weight
        variance = squares - 2 * shift * cross + shift**2 * weights
        spread = variance > _ROUNDING * squares
        error = np.sqrt(documents / (documents - 1) * np.where(spread, variance, 1.0)) / weight
        found[begin : begin + part] = np.where(spread, shift / error, -math.inf)
    return found


def _sentence(bounds: _Bounds, margin: float, level: float, documents: int) -> str:
    """What a user reads of a decision."""
    measured = f"target - reference is {bounds.difference:.4f} nats a token"
    if documents == 1:
        return f"not matched: {measured}, and one validation document leaves no spread to judge by"
    confidence = f"{100 * (1 - level):.4g}%"
    if not math.isfinite(bounds.by_bootstrap):
        return f"not matched: {measured}, and {documents} documents are too few for an upper {confidence} bound"
    goal = f"the tolerance of {margin:g}" if margin > 0 else f"{margin:g}"
    upper = f"{_apart(bounds.by_bootstrap, margin)} nats a token (upper {confidence} bound over {documents} documents)"
    matched = bounds.larger < margin
    if (bounds.by_bootstrap < margin) != (bounds.by_t < margin):
        both = f"{_apart(bounds.by_bootstrap, margin)} by the bootstrap, {_apart(bounds.by_t, margin)} by Student's t"
        said = f"the upper {confidence} bounds over {documents} documents disagree about {goal} nats a token"
        return f"not matched: {measured}; {said} ({both}), and the larger decides; this holds for these weights"
    if matched:
        return f"matched: target - reference is at most {upper}, below {goal}; this holds for these weights"
    return f"not matched: {measured} and may be as much as {upper}, not below {goal}; this holds for these weights"


def _apart(value: float, margin: float) -> str:
    """A number with 4 decimals, or with 8 where it would look like the margin."""
    shown = f"{value:.4f}"
    return shown if float(shown) != margin else f"{value:.8f}"


def _t_tail(t: float, freedom: int) -> float:
    """The probability that Student's t exceeds `t` >= 0 (Abramowitz & Stegun 1964, 26.7.1)."""
    return 0.5 * _incomplete_beta(freedom / (freedom + t * t), t * t / (freedom + t * t), freedom / 2, 0.5)


def _incomplete_beta(x: float, rest: float, a: float, b: float) -> float:
    """I_x(a, b), regularised, by its continued fraction (DLMF 8.17.22); `rest` is 1 - x, which x near 1 loses."""
    if x > (a + 1) / (a + b + 2):  # there the fraction converges slowly, and that of the complement fast
        return 1 - _incomplete_beta(rest, x, b, a)
    if x == 0:
        return 0.0
    front = math.exp(a * math.log(x) + b * math.log(rest) + math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b)) / a
    # Evaluated from its end: 1 / (1 + d_1 / (1 + d_2 / ...)).
    tail = 0.0
    for index in range(60, 0, -1):
        m = index // 2
        if index % 2:
            term = -(a + m) * (a + b + m) / ((a + 2 * m) * (a + 2 * m + 1))
        else:
            term = m * (b - m) / ((a + 2 * m - 1) * (a + 2 * m))
        tail = term * x / (1 + tail)
    return front / (1 + tail)
