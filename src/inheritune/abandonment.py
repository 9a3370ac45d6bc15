"""Whether a training can still reach a wanted loss: its curve so far, extrapolated under its schedule. No torch.

The law is that of Tissue, Wang & Wang 2024 (arXiv 2408.11029, section 3): loss(s) = L0 + A S1(s)^-a - C S2(s), with S1
the learning rates summed over the steps and S2 the annealing area, in which each fall of the learning rate takes effect
over the steps that follow it. Here it is written by what remains, so that the final loss is itself a parameter:

    loss(s) = final + A f(s) + C g(s),   f = ((S1(s) / S1(end))^-a - 1) / a,   g = 1 - S2(s) / S2(end),   A, C >= 0

C is then what annealing brings over the whole training, in nats a token. Before the learning rate has fallen much the
curve says nothing about C, so the forecast is an average over a grid of (a, decay of S2, C), each cell weighted by how
well it fits and by how probable its C is beforehand (Hoeting et al. 1999, Statistical Science 14). Earlier rounds that
went to their end say what C is like, and whether the bounds would have held for them.

To stop a training that would have matched costs what the run is for, to go on with one that will not costs some
compute. So every choice here leans towards going on.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from inheritune.schedule import learning_rate

Array = npt.NDArray[np.float64]
Curve = Sequence[tuple[int, float]]
"""(step, validation loss in nats a token); the step counts the steps taken."""

_SEEN_SHARE = 0.25
"""Of the steps, before which nothing is forecast."""
_DROPPED_SHARE = 0.25
"""Of the steps seen: the recovery of a cut model (from 5 to 20 nats a token at step 0) follows no power of S1."""
_FEWEST_READINGS = 8
"""After what is dropped: three parameters, and enough left over to tell noise from shape."""
FEWEST_VALIDATIONS = 12
"""Of a whole training, for a forecast to come while there is something left to save."""
_READINGS_COUNTED = 0.5
"""What a reading counts for: neighbours share the training's noise."""
_MOST_COUNTED = 16.0
"""Readings counted at most, however many there are: where the law itself is off, more of them do not mend it."""
_SMALLEST_NOISE = 0.003
"""In nats a token: no fit is taken for closer than that."""
_LAW_ERROR = 0.005
"""In nats a token, by which both bounds are moved apart: the law is an approximation. Chosen on simulated curves."""
_EXPONENTS = (-0.5, -0.25, 0.001, 0.25, 0.5, 1.0, 2.0)
"""Of the power of S1. Below 0 the loss falls more slowly than a logarithm flattens: no law, but a careful bound."""
_ANNEALING_SHARES = (0.01, 0.1, 0.3)
"""Of the steps, over which the effect of a fall of the learning rate builds up: the decay of S2 in units of the run."""
_ANNEALING_SCALE = 0.15
"""In nats a token, the scale of C's half-normal prior. See studies/abandonment."""
_ANNEALING_GRID = np.linspace(0.0, 4 * _ANNEALING_SCALE, 49)
_LIGHTEST_CELL = 1e-8
"""Cells of less than so much of the heaviest one's weight are left out: all of them together move no bound."""
_ANNEALING_KNOWN = (0.03, 0.5)
"""How far C may be from that of earlier rounds, as a standard deviation: nats a token at least, share at least."""


@dataclass(frozen=True)
class Schedule:
    """A training's learning rates (see `schedule.learning_rate`), and their two areas."""

    steps: int
    warmup_steps: int
    peak: float
    final: float

    def __post_init__(self) -> None:
        if self.steps < 1 or self.warmup_steps < 0 or not 0 <= self.final <= self.peak or self.peak <= 0:
            raise ValueError(f"no schedule: {self}")

    def forward_area(self, step: int) -> float:
        """S1: the learning rates of the first `step` steps, summed."""
        return float(_forward_areas(self)[step])

    def annealing_area(self, step: int, decay: float) -> float:
        """S2 after `step` steps: the falls of the learning rate, each growing by 1, `decay`, `decay`^2, ... a step.

        The warm-up's rises count for nothing.

        Args:
            step: steps taken.
            decay: from 0 to below 1, lambda in the paper.
        """
        return float(_annealing_areas(self, decay)[step])


@dataclass(frozen=True)
class Forecast:
    """The loss that a training is to end at, in nats a token."""

    step: int
    """Steps taken when it was made."""
    value: float
    low: float
    """The final loss lies below it with a probability of 1 - level."""
    high: float
    """The final loss lies above it with a probability of 1 - level."""
    level: float
    calibrated_by: int
    """Earlier rounds that it was calibrated by."""
    text: str


@dataclass(frozen=True)
class _Annealing:
    """What is held of C, in nats a token, before the curve is seen: a normal density, cut off below 0."""

    mean: float = 0.0
    deviation: float = _ANNEALING_SCALE


@dataclass(frozen=True)
class _Mixture:
    """Final losses by the cells of the grid, each a t distribution."""

    centers: Array
    scales: Array
    weights: Array
    """They sum to 1."""
    annealing: Array
    """C of each cell."""
    freedom: float

    @property
    def mean(self) -> float:
        return float(self.weights @ self.centers)

    def below(self, value: float) -> float:
        """The probability of a final loss below `value`, by Wallace's normal approximation of t (1959)."""
        t, nu = (value - self.centers) / self.scales, self.freedom
        z = np.sign(t) * np.sqrt(nu * np.log1p(t * t / nu)) * (8 * nu + 1) / (8 * nu + 3)
        return float(self.weights @ [0.5 * math.erfc(-x / math.sqrt(2)) for x in z])

    def quantile(self, probability: float) -> float:
        """The value that is above a final loss with a probability, by bisection."""
        low, high = float((self.centers - 1e4 * self.scales).min()), float((self.centers + 1e4 * self.scales).max())
        for _ in range(60):
            middle = (low + high) / 2
            low, high = (middle, high) if self.below(middle) < probability else (low, middle)
        return (low + high) / 2


def forecast(
    curve: Curve,
    schedule: Schedule,
    *,
    earlier: Sequence[tuple[Curve, Schedule]] = (),
    level: float = 0.99,
) -> Forecast | None:
    """What a training will end at, or None where too little is seen, or nothing is left to foresee.

    The curve may be of the very set that judges: a training that is abandoned is no match, so looking at it can bring
    no false match. It can bring a false abandonment, which the bounds are there for.

    Args:
        curve: the readings so far, in any order; of several at one step the last counts.
        schedule: the training's.
        earlier: rounds before this one, with their schedules. Those that did not come to their end say nothing.
        level: of each of the two bounds, above 0.5 and below 1.

    Raises:
        ValueError: a step outside the schedule, or no such level.
    """
    if not 0.5 < level < 1:
        raise ValueError(f"level: above 0.5 and below 1, not {level}")
    rounds = [(_ordered(one, its), its) for one, its in earlier]
    rounds = [(one, its) for one, its in rounds if one and one[-1][0] == its.steps and math.isfinite(one[-1][1])]
    seen = _ordered(curve, schedule)
    mixture = _mixture(seen, schedule, _annealing(rounds))
    if mixture is None:
        return None
    step, now = seen[-1]
    value, low, high = mixture.mean, mixture.quantile(1 - level), mixture.quantile(level)
    widened = max([1.0, *_excesses(rounds, step / schedule.steps, level)])
    low, high = value - widened * (value - low) - _LAW_ERROR, value + widened * (high - value) + _LAW_ERROR
    # what an earlier round still lost after this share of its steps, this one may lose, too
    low = min(low, now - max((_remaining(one, its, step / schedule.steps) for one, its in rounds), default=0.0))
    calibration = f", calibrated by {len(rounds)} earlier round{'s'[: len(rounds) > 1]}" if rounds else ""
    text = (
        f"after {step:,} of {schedule.steps:,} steps a final loss of {value:.4f} nats a token is expected, "
        f"above {low:.4f} with {level:.4g} probability{calibration}"
    )
    return Forecast(step, value, low, high, level, len(rounds), text)


def cannot_reach(found: Forecast, wanted: float) -> bool:
    """Whether a training is to be abandoned: even the lower bound of its final loss is above what is wanted.

    Args:
        found: its forecast.
        wanted: nats a token; the reference's loss and the tolerance.
    """
    return found.low > wanted


def _ordered(curve: Curve, schedule: Schedule) -> list[tuple[int, float]]:
    readings = sorted(dict(curve).items())
    if readings and not 0 <= readings[0][0] <= readings[-1][0] <= schedule.steps:
        raise ValueError(f"steps from {readings[0][0]} to {readings[-1][0]}, in a training of {schedule.steps}")
    return readings


def _mixture(readings: Sequence[tuple[int, float]], schedule: Schedule, prior: _Annealing) -> _Mixture | None:
    """The final losses that go with a curve; None where too little of it is seen, or all."""
    now = readings[-1][0] if readings else 0
    if not _SEEN_SHARE * schedule.steps <= now < schedule.steps:
        return None
    return _fitted(readings, schedule, prior)


def _fitted(readings: Sequence[tuple[int, float]], schedule: Schedule, prior: _Annealing) -> _Mixture | None:
    """The law's fit, a weighted least squares in (final, A) for each cell of the grid; None for too few readings.

    Later readings weigh more, by their step. A cell's weight is its likelihood with the noise profiled out, times the
    prior's density at its C.
    """
    now = readings[-1][0]
    kept = [one for one in readings if one[0] >= max(_DROPPED_SHARE * now, schedule.warmup_steps, 1)]
    steps, losses = np.array([step for step, _ in kept]), np.array([loss for _, loss in kept], np.float64)
    if len(kept) < _FEWEST_READINGS or not np.isfinite(losses).all():
        return None
    areas = _forward_areas(schedule)
    log_share = np.log(areas[steps] / areas[-1])
    forward = np.stack([np.expm1(-a * log_share) / a for a in _EXPONENTS])  # (exponents, readings)
    gaps = np.stack([_gap(schedule, share)[steps] for share in _ANNEALING_SHARES])
    rest = losses - _ANNEALING_GRID[:, None, None] * gaps  # (C, decays, readings)
    weights = steps / steps.sum()
    mean_f, mean_r = forward @ weights, rest @ weights
    spread = ((forward - mean_f[:, None]) ** 2) @ weights
    drop = np.einsum("ard,ed,d->are", rest - mean_r[..., None], forward - mean_f[:, None], weights) / spread
    drop = np.maximum(0.0, drop)  # (C, decays, exponents): A
    final = mean_r[..., None] - drop * mean_f
    off = rest[:, :, None] - final[..., None] - drop[..., None] * forward
    counted = min(_READINGS_COUNTED * len(kept), _MOST_COUNTED)
    variance = (off**2) @ weights * len(kept) / (len(kept) - 3) + _SMALLEST_NOISE**2
    scales = np.sqrt(variance * (1 + mean_f**2 / spread) / counted)
    belief = -0.5 * ((_ANNEALING_GRID - prior.mean) / prior.deviation) ** 2
    likely = belief[:, None, None] - 0.5 * counted * np.log(variance)
    cells = np.exp(likely - likely.max())
    heavy = cells > _LIGHTEST_CELL
    amounts = np.broadcast_to(_ANNEALING_GRID[:, None, None], cells.shape)[heavy]
    return _Mixture(final[heavy], scales[heavy], cells[heavy] / cells[heavy].sum(), amounts, counted - 2)


def _annealing(rounds: Sequence[tuple[list[tuple[int, float]], Schedule]]) -> _Annealing:
    """What earlier rounds, each fitted whole, say of C."""
    fits = [_fitted(readings, schedule, _Annealing()) for readings, schedule in rounds]
    amounts = [float(fit.weights @ fit.annealing) for fit in fits if fit is not None]
    if not amounts:
        return _Annealing()
    mean, (least, share) = float(np.mean(amounts)), _ANNEALING_KNOWN
    return _Annealing(mean, max(least, share * mean, float(np.ptp(amounts))))


def _excesses(rounds: Sequence[tuple[list[tuple[int, float]], Schedule]], share: float, level: float) -> list[float]:
    """How far earlier rounds ended below their own forecasts after a share of their steps, in widths of the bound."""
    found = []
    for index, (readings, schedule) in enumerate(rounds):
        others = [*rounds[:index], *rounds[index + 1 :]]
        seen = [one for one in readings if one[0] <= share * schedule.steps]
        mixture = _mixture(seen, schedule, _annealing(others))
        if mixture is not None:
            found.append((mixture.mean - readings[-1][1]) / (mixture.mean - mixture.quantile(1 - level)))
    return found


def _remaining(readings: Sequence[tuple[int, float]], schedule: Schedule, share: float) -> float:
    """What a whole training still lost after a share of its steps, between its readings taken as linear."""
    steps, losses = zip(*readings, strict=True)
    return float(np.interp(share * schedule.steps, steps, losses) - losses[-1])


@functools.lru_cache(maxsize=8)
def _rates(schedule: Schedule) -> Array:
    """The learning rate of each step, (steps,)."""
    rate = functools.partial(
        learning_rate,
        steps=schedule.steps,
        warmup_steps=schedule.warmup_steps,
        peak=schedule.peak,
        final=schedule.final,
    )
    return np.array([rate(step) for step in range(schedule.steps)])


@functools.lru_cache(maxsize=8)
def _forward_areas(schedule: Schedule) -> Array:
    """S1 after 0, 1, ... steps, (steps + 1,)."""
    return np.concatenate([[0.0], np.cumsum(_rates(schedule))])


@functools.lru_cache(maxsize=24)
def _annealing_areas(schedule: Schedule, decay: float) -> Array:
    """S2 after 0, 1, ... steps, (steps + 1,)."""
    rates = _rates(schedule)
    falls = np.concatenate([[0.0], np.maximum(0.0, rates[:-1] - rates[1:])])
    grown = itertools.accumulate(falls, lambda held, fall: decay * held + fall)
    return np.concatenate([[0.0], np.cumsum(np.fromiter(grown, np.float64, len(falls)))])


def _gap(schedule: Schedule, share: float) -> Array:
    """The part of the annealing that is still to come after 0, 1, ... steps, from 1 to 0; 0 where there is none."""
    areas = _annealing_areas(schedule, math.exp(-1 / (share * schedule.steps)))
    return 1 - areas / areas[-1] if areas[-1] > 0 else np.zeros_like(areas)
