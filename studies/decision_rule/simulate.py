"""False matches and false misses of the growth decision, in a made-up world whose truth is known.

    python studies/decision_rule/simulate.py [--folder DIRECTORY] [--growths N]

Writes `record.json` and `figure.svg` and prints the README's tables. Seeded.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from inheritune.decision import Verdict, combined, decide, documents_needed, foreseen_half_width

Array = npt.NDArray[np.float64]
Record = dict[str, Any]
TOLERANCE = 0.01
ALPHA = 0.05
ROUNDS = 4
RESAMPLES = 2000
"""At 98.75% they add less than 1% to the bound's variance; 10,000 would only take longer."""
SEQUENCE_TOKENS = 128
SHARED = 0.5
"""Of the variance, what the rounds have in common: the documents and the reference are the same."""
SCATTERS = (0.009, 0.016, 0.023)
"""Of the naive readings, nats a token."""
SEED_NOISE = (0.0, 0.005, 0.01, 0.02)
GRID = [round(-0.03 + 0.0025 * index, 4) for index in range(33)]
"""True differences, nats a token."""
PROFILES = {
    "all at the tolerance": (0.01, 0.01, 0.01, 0.01),
    "approaching": (0.06, 0.03, 0.015, 0.0),
    "reached early": (0.03, 0.0, -0.03, -0.06),
}
"""The recipe's mean true difference by round."""


@dataclass(frozen=True)
class World:
    """How documents differ; standard deviations in nats a token."""

    documents: int
    length_spread: float = 0.55
    document_sd: float = 0.07
    sequence_sd: float = 0.06
    skewed: bool = False
    length_slope: float = 0.0
    """By how much the effect of a document grows with the logarithm of its length."""


def effects(world: World, shape: tuple[int, ...], draw: np.random.Generator) -> Array:
    """Standardised effects: normal, or exponential moved to a mean of 0."""
    return draw.exponential(1.0, shape) - 1 if world.skewed else draw.standard_normal(shape)


def made(world: World, rounds: int, draw: np.random.Generator) -> tuple[Array, Array, npt.NDArray[np.int64]]:
    """Sequences of documents with their differences, the true difference being 0.

    Returns:
        differences in nats (rounds, sequences), tokens (sequences,), each sequence's document (sequences,).
    """
    lengths = 300 * np.exp(world.length_spread * draw.standard_normal(world.documents))
    pieces = np.ceil(lengths / SEQUENCE_TOKENS).astype(np.int64)
    document = np.repeat(np.arange(world.documents), pieces)
    tokens = np.full(len(document), float(SEQUENCE_TOKENS))
    tokens[np.cumsum(pieces) - 1] = lengths - SEQUENCE_TOKENS * (pieces - 1)

    def rounded(size: int) -> Array:
        both = effects(world, (rounds + 1, size), draw)
        return np.asarray(math.sqrt(SHARED) * both[:1] + math.sqrt(1 - SHARED) * both[1:])

    # Weighted by length, the mean logarithm of a lognormal length lies length_spread**2 above its median's.
    by_length = world.length_slope * (np.log(lengths / 300) - world.length_spread**2)
    effect = world.document_sd * rounded(world.documents) + by_length
    return (effect[:, document] + world.sequence_sd * rounded(len(document))) * tokens, tokens, document


def summed(values: Array, document: npt.NDArray[np.int64]) -> Array:
    """Sums over each document's sequences."""
    return np.asarray(np.bincount(document, values), np.float64)


def judged(differences: Array, tokens: Array, seed: int, rounds: int = ROUNDS, resamples: int = RESAMPLES) -> Verdict:
    """The package's verdict about made-up losses."""
    return decide(
        3 * tokens + differences,
        3 * tokens,
        tokens,
        margin=TOLERANCE,
        alpha=ALPHA,
        rounds=rounds,
        seed=seed,
        resamples=resamples,
    )


def bound(verdict: Verdict) -> float:
    """The bound that decides."""
    assert verdict.upper is not None
    assert verdict.upper_by_t is not None
    return max(verdict.upper, verdict.upper_by_t)


def moved(verdict: Verdict, true: float) -> Verdict:
    """The verdict had the true difference been another: estimate and bounds move with it."""
    assert verdict.upper is not None
    assert verdict.upper_by_t is not None
    return dataclasses.replace(
        verdict,
        difference=verdict.difference + true,
        upper=verdict.upper + true,
        upper_by_t=verdict.upper_by_t + true,
        matched=bound(verdict) + true < verdict.margin,
    )


def disagree(verdict: Verdict) -> bool:
    """Whether one bound lies below the tolerance and the other does not."""
    assert verdict.upper is not None
    assert verdict.upper_by_t is not None
    return (verdict.upper < TOLERANCE) != (verdict.upper_by_t < TOLERANCE)


def readings(scatter: float, shape: tuple[int, ...], draw: np.random.Generator) -> Array:
    """Errors of readings on random sequences; a mean of gamma variables is a gamma variable."""
    mean, sd = 3.0, 0.5
    whole = (mean / sd) ** 2 * round((sd / scatter) ** 2)
    return np.asarray(mean * (draw.gamma(whole, size=shape) / whole - 1))


def exact_interval(k: int, m: int, tail: float = 0.025) -> list[float]:
    """Clopper & Pearson's interval for a proportion k / m, by bisection."""

    def at_most(count: int, p: float) -> float:
        logs = [math.lgamma(m + 1) - math.lgamma(i + 1) - math.lgamma(m - i + 1) for i in range(count + 1)]
        return math.fsum(math.exp(log + i * math.log(p) + (m - i) * math.log1p(-p)) for i, log in enumerate(logs))

    def crossing(count: int, wanted: float) -> float:
        low, high = 0.0, 1.0
        for _ in range(40):
            middle = (low + high) / 2
            low, high = (middle, high) if at_most(count, middle) > wanted else (low, middle)
        return (low + high) / 2

    return [0.0 if k == 0 else crossing(k - 1, 1 - tail), 1.0 if k == m else crossing(k, tail)]


def rate(hits: Sequence[bool] | npt.NDArray[np.bool_]) -> Record:
    """How many, of how many, and the interval of the proportion."""
    k, m = int(np.sum(hits)), len(hits)
    return {"k": k, "m": m, "rate": k / m if m else None, "interval": exact_interval(k, m) if m else None}


def resampled_bounds(differences: Array, tokens: Array, level: float, resamples: int, seed: int) -> dict[str, float]:
    """The upper percentile and BCa bounds (Efron & Tibshirani 1993, sections 13.3 and 14.3)."""
    documents, normal = len(tokens), statistics.NormalDist()
    cells = np.random.default_rng(seed).integers(documents, size=(resamples, documents))
    cells += documents * np.arange(resamples)[:, None]
    counts = np.bincount(cells.ravel(), minlength=cells.size).reshape(cells.shape).astype(np.float64)
    ratios = np.sort((counts @ differences) / (counts @ tokens))
    estimate = differences.sum() / tokens.sum()
    without = (differences.sum() - differences) / (tokens.sum() - tokens)
    off = without.mean() - without
    acceleration = (off**3).sum() / (6 * (off**2).sum() ** 1.5)
    below = min(max(float((ratios < estimate).mean()), 1 / resamples), 1 - 1 / resamples)
    bias, z = normal.inv_cdf(below), normal.inv_cdf(1 - level)
    moved_to = normal.cdf(bias + (bias + z) / (1 - acceleration * (bias + z)))
    return {
        "percentile": float(np.quantile(ratios, 1 - level)),
        "BCa": float(np.quantile(ratios, moved_to)),
    }


def coverage(worlds: dict[str, World], samples: int, rounds: int, resamples: int) -> list[Record]:
    """How often each bound lies below the true difference, 0; it should be at most alpha / rounds."""
    rows = []
    for name, world in worlds.items():
        draw = np.random.default_rng([world.documents, rounds, world.skewed])
        failed: dict[str, list[bool]] = {}
        for sample in range(samples):
            differences, tokens, document = made(world, 1, draw)
            sums, weights = summed(differences[0], document), summed(tokens, document)
            verdict = judged(sums, weights, sample, rounds, resamples)
            found = resampled_bounds(sums, weights, ALPHA / rounds, resamples, sample) if rounds == ROUNDS else {}
            none = math.inf
            found["bootstrap-t"] = none if verdict.upper is None else verdict.upper
            found["Student's t"] = none if verdict.upper_by_t is None else verdict.upper_by_t
            found["larger of the two"] = max(found["bootstrap-t"], found["Student's t"])
            for bound_name, value in found.items():
                failed.setdefault(bound_name, []).append(value < 0)
        rates = {bound_name: rate(hits) for bound_name, hits in failed.items()}
        rows.append({"world": name, "documents": world.documents, "level": ALPHA / rounds, "below": rates})
    return rows


def all_coverage(samples: int) -> list[Record]:
    """Coverage in the even and the uneven world, at alpha / 4 and, for many rounds, at 0.001."""

    def worlds(documents: int) -> dict[str, World]:
        uneven = World(documents, length_spread=1.0, skewed=True, length_slope=0.03)
        return {"even": World(documents), "uneven": uneven}

    rows = [row for n in (10, 30, 100) for row in coverage(worlds(n), samples, ROUNDS, 4000)]
    rows += coverage(worlds(445), samples // 2, ROUNDS, RESAMPLES)
    return rows + coverage(worlds(100), samples, round(ALPHA / 0.001), 10_000)


def growths(world: World, number: int, rounds: int, by_sequence: bool) -> dict[str, list[list[Verdict]]]:
    """The verdicts of `number` growths at a true difference of 0: by documents, and by sequences if asked."""
    draw = np.random.default_rng([2, world.documents])
    found: dict[str, list[list[Verdict]]] = {"documents": [], "sequences": []}
    for index in range(number):
        differences, tokens, document = made(world, rounds, draw)
        weights = summed(tokens, document)
        found["documents"].append([judged(summed(one, document), weights, index) for one in differences])
        if by_sequence:
            found["sequences"].append([judged(one, tokens, index) for one in differences])
    return found


def ends(bounds: Array, true: Array) -> npt.NDArray[np.int64]:
    """The round at which each growth ends, the number of rounds where none matches.

    Args:
        bounds: what deciding adds to the true difference, (growths, rounds); a match is a sum below the tolerance.
        true: differences of the weights, (growths, rounds).
    """
    matched = bounds + true < TOLERANCE
    return np.asarray(np.where(matched.any(axis=1), matched.argmax(axis=1), bounds.shape[1]), np.int64)


def families(rules: dict[str, Array], seed_noise: float, means: Sequence[float], number: int) -> dict[str, Record]:
    """How growths end by each rule, where each round's weights are the recipe's mean and the noise of their seed."""
    noise = np.random.default_rng(3).standard_normal((number, ROUNDS))
    true = np.array(means) + seed_noise * noise
    good = true <= 0
    found = {}
    for rule, bounds in rules.items():
        end = ends(bounds, true)
        matched = end < ROUNDS
        there = true[np.arange(number), np.minimum(end, ROUNDS - 1)]
        first_good = np.where(good.any(axis=1), good.argmax(axis=1), ROUNDS)
        possible = first_good < ROUNDS
        found[rule] = {
            "false_match": rate(matched & (there >= TOLERANCE - 1e-12)),
            "missed": rate(~matched[possible]),
            "later_than_first_good": rate((matched & (end > first_good))[possible]),
        }
    return found


def by_seeds(verdicts: list[Verdict]) -> dict[str, bool]:
    """Whether three seeds match, by each rule."""
    together = combined(verdicts)
    width = max(bound(one) - one.difference for one in verdicts)
    return {
        "1 seed": verdicts[0].matched,
        "3 seeds, every": together.matched,
        "3 seeds, most": sum(one.matched for one in verdicts) >= 2,
        "3 seeds, mean": together.difference + width < TOLERANCE,
    }


def recipes(verdicts: list[list[Verdict]], number: int) -> list[Record]:
    """What a match for some seeds' weights says of the mean over seeds, which lies anywhere from -0.02 to 0.04."""
    draw = np.random.default_rng(4)
    anywhere, noise = draw.uniform(-0.02, 0.04, number), draw.standard_normal((number, 3))

    def matches(means: Array, seed_noise: float) -> dict[str, npt.NDArray[np.bool_]]:
        true = (means[:, None] + seed_noise * noise).tolist()
        found = [
            by_seeds([moved(one, by) for one, by in zip(row[:3], shifts, strict=True)])
            for row, shifts in zip(verdicts, true, strict=True)
        ]
        return {rule: np.array([one[rule] for one in found]) for rule in found[0]}

    rows = []
    for seed_noise in SEED_NOISE:
        at_tolerance = matches(np.full(number, TOLERANCE), seed_noise)
        for rule, matched in matches(anywhere, seed_noise).items():
            rows.append(
                {
                    "seed_noise": seed_noise,
                    "rule": rule,
                    "matched_and_mean_within_tolerance": rate(anywhere[matched] < TOLERANCE),
                    "matched_though_mean_at_tolerance": rate(at_tolerance[rule]),
                    "missed_though_mean_at_most_0": rate(~matched[anywhere <= 0]),
                }
            )
    return rows


def simulated(number: int) -> Record:
    """Everything that `record.json` holds."""
    base = World(445)
    found = growths(base, number, ROUNDS, by_sequence=True)
    differences, tokens, document = made(base, 1, np.random.default_rng(5))
    pilot, weights = summed(differences[0], document), summed(tokens, document)
    width = foreseen_half_width(3 * weights + pilot, 3 * weights, weights, alpha=ALPHA, rounds=ROUNDS)
    needed = documents_needed(width, base.documents, TOLERANCE)
    draw = np.random.default_rng(6)
    rules = {
        "documents": np.array([[bound(one) for one in row] for row in found["documents"]]),
        "sequences": np.array([[bound(one) for one in row] for row in found["sequences"]]),
    }
    enough = np.array([[bound(one) for one in row] for row in growths(World(needed), number, 1, False)["documents"]])
    # Naive: a match is a reading below the benchmark, so the tolerance is taken off the threshold.
    rules |= {f"naive {scatter}": readings(scatter, (number, ROUNDS), draw) + TOLERANCE for scatter in SCATTERS}
    single = {rule: bounds[:, 0] for rule, bounds in rules.items()} | {"documents, as many as needed": enough[:, 0]}
    first = [row[0] for row in found["documents"]]
    means = summed(differences[0], document) / weights
    return {
        "settings": {
            "tolerance_nats": TOLERANCE,
            "alpha": ALPHA,
            "rounds": ROUNDS,
            "growths": number,
            "resamples": RESAMPLES,
            "world": dataclasses.asdict(base),
        },
        "world": {
            "tokens": statistics.fmean(one.tokens for one in first),
            "document_mean_sd": float(np.std(means, ddof=1)),
            "half_width": statistics.fmean(bound(one) - one.difference for one in first),
            "half_width_foreseen": width,
            "documents_needed": needed,
            "bounds_disagree_at_0": rate([disagree(one) for one in first]),
        },
        "decisions": {
            rule: [{"true": true, **rate(bounds + true < TOLERANCE)} for true in GRID]
            for rule, bounds in single.items()
        },
        "growths_all_at": {
            rule: [{"true": true, **rate(ends(bounds, np.full_like(bounds, true)) < ROUNDS)} for true in GRID]
            for rule, bounds in rules.items()
        },
        "families": [
            {"profile": name, "seed_noise": noise, "rules": families(rules, noise, profile, number)}
            for name, profile in PROFILES.items()
            for noise in SEED_NOISE
        ],
        "recipes": recipes(found["documents"], number),
        "coverage": all_coverage(2 * number),
    }


def percent(found: Record) -> str:
    """A rate with its interval."""
    if not found["m"]:
        return "–"
    low, high = found["interval"]
    return f"{found['rate']:.1%} ({low:.1%} to {high:.1%})"


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown."""
    return "\n".join(f"| {' | '.join(row)} |" for row in [header, ["---"] * len(header), *rows])


def tables(record: Record) -> str:
    """The README's tables."""
    shown = (-0.01, 0.0, 0.005, 0.01, 0.02)
    head = ["rule", *(f"{true:g}" for true in shown)]

    def by_true(curves: Record) -> str:
        rows = [[rule, *(percent(one) for one in curve if one["true"] in shown)] for rule, curve in curves.items()]
        return table(head, rows)

    kinds = ["false_match", "missed", "later_than_first_good"]
    ended = [
        [one["profile"], f"{one['seed_noise']:g}", rule, *(percent(found[kind]) for kind in kinds)]
        for one in record["families"]
        for rule, found in one["rules"].items()
        if one["seed_noise"] in (0.0, 0.01) and rule != "naive 0.016"
    ]
    kinds_of_recipe = [
        "matched_and_mean_within_tolerance",
        "matched_though_mean_at_tolerance",
        "missed_though_mean_at_most_0",
    ]
    seeds = [
        [f"{one['seed_noise']:g}", one["rule"], *(percent(one[kind]) for kind in kinds_of_recipe)]
        for one in record["recipes"]
    ]
    bounds = ["percentile", "BCa", "bootstrap-t", "Student's t", "larger of the two"]
    covered = [
        [one["world"], str(one["documents"]), f"{one['level']:.2%}"]
        + [percent(one["below"][name]) if name in one["below"] else "–" for name in bounds]
        for one in record["coverage"]
    ]
    parts = [
        json.dumps(record["world"]),
        by_true(record["decisions"]),
        by_true(record["growths_all_at"]),
        table(["profile", "seed noise", "rule", "false match", "missed", "later than need be"], ended),
        table(
            ["seed noise", "rule", "of the matches: mean < 0.01", "mean = 0.01: matched", "mean <= 0: missed"], seeds
        ),
        table(["world", "documents", "level", *bounds], covered),
    ]
    return "\n\n".join(parts)


def draw_figure(record: Record, path: Path) -> None:
    """Rates against the true difference: of one decision, and of a growth whose rounds all lie there."""
    import matplotlib as mpl

    mpl.use("svg")
    import matplotlib.pyplot as plt

    mpl.rcParams["svg.hashsalt"] = "decision_rule"  # else the file differs from run to run
    styles = {
        "documents": ("by documents (ours)", "black", "-", "o"),
        "documents, as many as needed": ("ours, as many documents as it asks for", "black", "--", "s"),
        "sequences": ("by sequences, as if independent", "0.45", "-", "^"),
        "naive 0.009": ("naive, scatter 0.009", "0.45", ":", "v"),
        "naive 0.023": ("naive, scatter 0.023", "0.45", "-.", "D"),
    }
    figure, axes = plt.subplots(1, 2, figsize=(10, 4.8), sharey=True, layout="constrained")
    panels = [
        ("decisions", "One decision", ALPHA / ROUNDS),
        ("growths_all_at", "A growth of 4 rounds, all there", ALPHA),
    ]
    for axis, (key, title, level) in zip(axes, panels, strict=True):
        for rule, curve in record[key].items():
            if rule in styles:
                label, color, line, mark = styles[rule]
                x, y = [one["true"] for one in curve], [one["rate"] for one in curve]
                axis.plot(x, y, color=color, linestyle=line, marker=mark, markersize=4, markevery=4, label=label)
        axis.axvline(TOLERANCE, color="0.7", linewidth=1)
        axis.axhline(level, color="0.7", linewidth=1)
        axis.annotate("tolerance", (TOLERANCE, 1.0), (4, -4), textcoords="offset points", va="top", fontsize=9)
        axis.annotate(f"promised: {level:.2%}", (-0.03, level), (0, 3), textcoords="offset points", fontsize=9)
        axis.set(title=title, xlabel="true difference, target − reference (nats a token)")
    axes[0].set_ylabel("share declared matched")
    figure.legend(*axes[0].get_legend_handles_labels(), fontsize=9, loc="outside lower center", ncols=3)
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


def main() -> None:
    """Simulate, write, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path(__file__).parent, help="where record and figure go")
    parser.add_argument("--growths", type=int, default=1000, help="made-up growths a setting")
    given = parser.parse_args()
    record = simulated(given.growths)
    (given.folder / "record.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    draw_figure(record, given.folder / "figure.svg")
    print(tables(record))


if __name__ == "__main__":
    main()
