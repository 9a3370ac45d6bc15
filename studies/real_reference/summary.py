"""The tables of this study, from its records: `python studies/real_reference/summary.py [RECORDS]`.

What is not recorded yet is left out. Intervals are 95%, by a paired bootstrap over documents.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np

from inheritune.comparison import resampled_means, tokens_to_reach
from inheritune.run_directory import read_json
from inheritune.surgery import spelled

Record = dict[str, Any]
SETS = ("held-out", "wikitext", "stories")


def losses(record: Record, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Nats and tokens of each document of a set, as an arm ended."""
    found = record["trained"][name] if "trained" in record else record["losses"][name]
    return np.array(found["nats"]), np.array(found["tokens"], float)


def loss(record: Record, name: str) -> float:
    """Nats a token over a set, as an arm ended."""
    nats, tokens = losses(record, name)
    return float(nats.sum() / tokens.sum())


def difference(one: Record, other: Record, name: str) -> str:
    """One arm's loss less another's, with its interval."""
    (nats, tokens), (theirs, _) = losses(one, name), losses(other, name)
    drawn = resampled_means([nats, theirs], tokens)
    low, high = np.percentile(drawn[0] - drawn[1], [2.5, 97.5])
    return f"{loss(one, name) - loss(other, name):+.3f} ({low:+.3f} to {high:+.3f})"


def spearman(x: list[float], y: list[float]) -> float:
    """Spearman's rank correlation; there are no ties among measured losses."""
    ranks = [np.argsort(np.argsort(values)) for values in (x, y)]
    return float(np.corrcoef(ranks[0], ranks[1])[0, 1])


def table(header: list[str], rows: list[list[str]]) -> None:
    """A table in Markdown."""
    print("| " + " | ".join(header) + " |\n" + "|---" * len(header) + "|")
    for row in rows:
        print("| " + " | ".join(row) + " |")
    print()


def screening(records: dict[str, Record], reference: Record) -> None:
    """Every cut at equal tokens."""
    arms = {name.removeprefix("screening-"): one for name, one in records.items() if name.startswith("screening-")}
    if not {"first", "random"} <= arms.keys():
        return
    whole, random = loss(reference, SETS[0]), loss(arms["random"], SETS[0])
    ordered = sorted(arms, key=lambda name: loss(arms[name], SETS[0]))
    rows = []
    for name in ordered:
        one = arms[name]
        share = (random - loss(one, SETS[0])) / (random - whole)
        rows.append(
            [
                name,
                spelled(tuple(one["layers"])) if one["layers"] else "",
                *(f"{one['curve'][0]['losses'][key]:.2f}" for key in SETS[:1]),
                *(f"{loss(one, key):.3f}" for key in SETS),
                "" if name == "first" else difference(one, arms["first"], SETS[0]),
                f"{share:.2f}",
            ]
        )
    rows.append(["(reference)", "0 to 29", "", *(f"{loss(reference, key):.3f}" for key in SETS), "", ""])
    print(f"Screening: {arms['first']['tokens']:,} tokens, one seed\n")
    table(["arm", "layers", "untrained", *SETS, "books, less the first 15", "excess removed"], rows)
    cuts = [name for name in ordered if name != "random"]
    ended = [loss(arms[name], SETS[0]) for name in cuts]
    untrained = [arms[name]["curve"][0]["losses"][SETS[0]] for name in cuts]
    print(f"Spearman over {len(cuts)} cuts, trained against untrained loss: {spearman(untrained, ended):.2f}")
    choice = records.get("choice-influence-15")
    if choice is not None:
        kept = [-sum(choice["influence"][layer] for layer in arms[name]["layers"]) for name in cuts]
        print(f"against the influence of the blocks kept, summed: {spearman(kept, ended):.2f}")
    print()


def rates(records: dict[str, Record]) -> None:
    """What each arm came to with each learning rate."""
    found: dict[str, dict[float, float]] = {}
    for name, one in records.items():
        if name.startswith("rates-"):
            arm = name.removeprefix("rates-").rpartition(f"-{one['rate']:g}")[0]
            found.setdefault(arm, {})[one["rate"]] = one["trained"]["development"]["loss"]
    if found:
        columns = sorted({rate for one in found.values() for rate in one})
        print("Development loss after 131,072 tokens, by peak learning rate\n")
        rows = [[arm, *(f"{one[rate]:.3f}" if rate in one else "" for rate in columns)] for arm, one in found.items()]
        table(["arm", *(f"{rate:g}" for rate in columns)], rows)


def main_arms(records: dict[str, Record], reference: Record) -> None:
    """The poster's cut, the best cut and random init, by seed."""
    arms: dict[str, list[Record]] = {}
    for name, one in records.items():
        if name.startswith("main-"):
            arms.setdefault(name.removeprefix("main-").rpartition("-seed-")[0], []).append(one)
    if not arms:
        return
    tokens = max(one["tokens"] for seeds in arms.values() for one in seeds)
    print(f"At their own learning rates: {tokens:,} tokens\n")
    rows = []
    for name, seeds in arms.items():
        for key in SETS:
            values = [loss(one, key) for one in seeds]
            spread = f"{np.std(values, ddof=1):.3f}" if len(values) > 1 else ""
            above = np.mean(values) - loss(reference, key)
            shown = ", ".join(f"{value:.3f}" for value in values)
            rows.append([name, key, shown, f"{np.mean(values):.3f}", spread, f"{above:+.3f}"])
    table(["arm", "set", "by seed", "mean", "sd", "above the reference"], rows)
    against_first(arms)
    to_reach_random(arms)
    print()


def against_first(arms: dict[str, list[Record]]) -> None:
    """The best cut against the poster's, seed by seed."""
    firsts = {one["seed"]: one for one in arms.get("first", [])}
    for name, seeds in arms.items():
        for one in seeds if name not in ("first", "random") else []:
            if one["seed"] in firsts:
                print(f"{name} less first, seed {one['seed']}: {difference(one, firsts[one['seed']], SETS[0])}")


def to_reach_random(arms: dict[str, list[Record]]) -> None:
    """After how many tokens an inheriting arm is where random init ends."""
    if "random" not in arms:
        return
    goal = float(np.mean([loss(one, SETS[0]) for one in arms["random"]]))
    for name, seeds in arms.items():
        for one in seeds if name != "random" else []:
            step = one["tokens"] / one["steps"]
            curve = [(round(point["step"] * step), point["losses"][SETS[0]]) for point in one["curve"]]
            reached = tokens_to_reach(goal, curve)
            print(f"{name}, seed {one['seed']}: at random init's last loss ({goal:.3f}) after {reached} tokens")


def distilled(records: dict[str, Record]) -> None:
    """Distillation at equal time."""
    for name, one in records.items():
        plain = records.get(f"main-{name.removeprefix('distilled-')}-seed-0")
        if name.startswith("distilled-") and name != "distilled-speed" and plain is not None:
            print(f"{name}: {one['tokens']:,} tokens in {one['seconds']:.0f} s, plain {plain['tokens']:,} in ", end="")
            print(f"{plain['seconds']:.0f} s; distilled less plain: ", end="")
            print(", ".join(f"{key} {difference(one, plain, key)}" for key in SETS))


def main() -> None:
    """Print what there is."""
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent / "records"
    records = {path.stem: read_json(path) for path in sorted(folder.glob("*.json"))}
    reference = records.get("reference")
    if reference is None:
        raise SystemExit(f"{folder}: no reference.json; run the phases in order")
    screening(records, reference)
    rates(records)
    main_arms(records, reference)
    distilled(records)


if __name__ == "__main__":
    main()
