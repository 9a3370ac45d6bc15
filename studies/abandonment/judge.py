"""How often the rule of `grow.abandon: auto` would have stopped a training that matches, and what it saves.

    python studies/abandonment/judge.py RUN [RUN ...] [--set NAME] [--out FILE] [--simulated N]

A RUN is a run directory, or a folder of them: every `metrics.jsonl` below it with its schedule in the `recipe.yaml`
nearest above; or the packaged reference's directory; or a record that `--out` wrote before, whose curves are judged
again. A curve is taken if the learning rates that it recorded are those of a training that ends where it ends, so one
that was killed or abandoned is not. Several validations of one training count as one curve; the same curve in two
places counts once. Curves that `fitted.txt` names are shown and not counted. Rounds of one run (`rounds/N`) get the
rounds before them as `earlier`.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from inheritune.abandonment import Forecast, Schedule, cannot_reach, forecast
from inheritune.schedule import learning_rate

FITTED = Path(__file__).with_name("fitted.txt")
FRACTIONS = (0.25, 0.4, 0.5, 0.6, 0.75)
MATCHING = (0.0, 0.01, 0.02, 0.05)
"""Benchmarks above the final loss, in nats a token: the training would have matched."""
MISSING = (0.05, 0.1, 0.2, 0.4)
"""Benchmarks below it: it would not have."""
CONFIDENCE = 0.95
Readings = list[tuple[int, float]]


@dataclass
class Curve:
    """A whole training, and what was forecast after each of its validations."""

    name: str
    readings: Readings
    schedule: Schedule
    fitted: bool = False
    earlier: list[tuple[Readings, Schedule]] = field(default_factory=list)
    looks: list[Forecast] = field(default_factory=list)

    @property
    def final(self) -> float:
        """What it ended at, in nats a token."""
        return self.readings[-1][1]

    @property
    def digest(self) -> str:
        """What it is known by, wherever it lies."""
        text = json.dumps([[step, round(loss, 9)] for step, loss in self.readings])
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def look(self) -> None:
        """Forecast after every validation but the last."""
        seen = (self.readings[:number] for number in range(1, len(self.readings)))
        found = (forecast(part, self.schedule, earlier=self.earlier) for part in seen)
        self.looks = [one for one in found if one is not None]

    def at(self, share: float) -> Forecast | None:
        """The last forecast up to a share of its steps."""
        return next((one for one in reversed(self.looks) if one.step <= share * self.schedule.steps), None)

    def abandoned_at(self, wanted: float) -> int | None:
        """The step at which the rule stops it, if it does."""
        return next((one.step for one in self.looks if cannot_reach(one, wanted)), None)


def exact_interval(k: int, m: int, confidence: float = CONFIDENCE) -> tuple[float, float]:
    """The interval of Clopper & Pearson (1934) for a probability, after k of m; by bisection of binomial tails."""

    def at_most(count: int, p: float) -> float:
        return math.fsum(math.comb(m, i) * p**i * (1 - p) ** (m - i) for i in range(count + 1))

    def crossing(count: int, tail: float) -> float:
        low, high = 0.0, 1.0
        for _ in range(60):  # at_most falls as p rises
            middle = (low + high) / 2
            low, high = (middle, high) if at_most(count, middle) > tail else (low, middle)
        return (low + high) / 2

    tail = (1 - confidence) / 2
    return (0.0 if k == 0 else crossing(k - 1, 1 - tail)), (1.0 if k == m else crossing(k, tail))


def curves_of_record(path: Path) -> Iterator[Curve | str]:
    """The curves of an earlier record; one that had earlier rounds is left out, since they are not in it."""
    for one in json.loads(path.read_text(encoding="utf-8"))["curves"]:
        if one.get("earlier_rounds", 0):
            yield f"{path}: {one['name']}: had earlier rounds"
        else:
            readings = [(int(step), float(loss)) for step, loss in one["readings"]]
            yield Curve(one["name"], readings, Schedule(**one["schedule"]))


def curves_below(root: Path, wanted_set: str | None) -> Iterator[Curve | str]:
    """Every curve below a directory, or one line that says why it is none."""
    for path in sorted([*root.rglob("metrics.jsonl"), *root.rglob("training.jsonl")], key=_place):
        records = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        losses = {one["step"]: one["losses"] for one in records if one.get("kind") == "validation"}
        if not losses:
            yield f"{path}: no validations"
            continue
        judging = wanted_set or next(iter(losses[max(losses)]))
        missing = [step for step, one in losses.items() if judging not in one]
        recipe = recipe_of(path)
        if recipe is None or missing:
            yield f"{path}: no recipe.yaml above it" if recipe is None else f"{path}: no losses on {judging}"
            continue
        schedule = schedule_of(records, recipe["train"], max(losses))
        if schedule is None:
            yield f"{path}: its learning rates are not those of a training that ends at step {max(losses)}"
            continue
        name = str(path.parent.relative_to(root.parent))
        yield Curve(name, [(step, float(one[judging])) for step, one in sorted(losses.items())], schedule)


def recipe_of(path: Path) -> dict[str, Any] | None:
    """The recipe of the run that a curve lies in, or of the packaged reference."""
    for up in path.parents:
        if (up / "recipe.yaml").exists():
            text = (up / "recipe.yaml").read_text(encoding="utf-8")
        elif path.name == "training.jsonl" and (up / "inheritune.json").exists():
            text = json.loads((up / "inheritune.json").read_text(encoding="utf-8"))["recipe"]
        else:
            continue
        recipe: dict[str, Any] = yaml.safe_load(text)
        return recipe
    return None


def schedule_of(records: Iterable[dict[str, Any]], train: dict[str, Any], steps: int) -> Schedule | None:
    """The schedule of `steps` steps that a recipe gives, if the recorded learning rates are its own."""
    rates = [(one["step"], one["learning_rate"]) for one in records if one.get("kind") == "step"]
    given = train["learning_rate"]
    final, warmup_steps = float(train["final_learning_rate"]), int(train["warmup_steps"])  # YAML takes 1e-05 for a text
    for peak in map(float, given if isinstance(given, list) else [given]):
        settings: dict[str, Any] = {"steps": steps, "warmup_steps": warmup_steps, "peak": peak, "final": final}
        expected = [learning_rate(step - 1, **settings) for step, _ in rates]
        # one step more or less moves a cosine by about peak / steps
        if rates and np.allclose([rate for _, rate in rates], expected, rtol=0, atol=1e-6 * peak):
            return Schedule(**settings)
    return None


def collected(roots: Sequence[Path], wanted_set: str | None) -> tuple[list[Curve], list[str]]:
    """The curves below all directories, each once, with their earlier rounds; and what was left out."""
    curves: list[Curve] = []
    left_out: list[str] = []
    fitted = {line.split()[0] for line in FITTED.read_text(encoding="utf-8").splitlines() if line[:1] not in ("", "#")}
    for root in roots:
        rounds: dict[Path, list[tuple[Readings, Schedule]]] = {}
        for found in curves_of_record(root) if root.is_file() else curves_below(root.resolve(), wanted_set):
            if isinstance(found, str):
                left_out.append(found)
                continue
            folder = Path(found.name).parent
            if folder.name == "rounds":
                before = rounds.setdefault(folder, [])
                found.earlier = list(before)
                if "seed" not in Path(found.name).name:
                    before.append((found.readings, found.schedule))
            if any(found.digest == one.digest for one in curves):
                left_out.append(f"{found.name}: the same curve as another")
                continue
            found.fitted = found.digest in fitted
            curves.append(found)
    return curves, left_out


def simulated(number: int) -> list[Curve]:
    """Made-up curves with other shapes than the law's: two exponentials in S1, annealing by its own speed, a walk."""
    curves = []
    for seed in range(1000, 1000 + number):  # those of smaller seeds were seen when the rule was made
        draw = np.random.default_rng(seed)
        schedule = Schedule(1000, 40, 1e-3, float(draw.choice([0.0, 1e-5, 1e-4])))
        steps = np.arange(0, 1001, 20)
        share = np.array([schedule.forward_area(int(step)) for step in steps]) / schedule.forward_area(1000)
        decay = 1 - 1 / draw.uniform(5, 200)
        annealed = np.array([schedule.annealing_area(int(step), decay) for step in steps])
        rate = np.array([learning_rate(int(step), steps=1000, warmup_steps=40, peak=1, final=0) for step in steps])
        losses = 3 + draw.uniform(0, 1.0) * np.exp(-draw.uniform(0.5, 3) * share)
        losses += draw.uniform(1, 5) * np.exp(-draw.uniform(10, 60) * share)
        losses -= draw.uniform(0, 0.2) * annealed / annealed[-1]
        noise = np.zeros(len(steps))
        for index, kick in enumerate(draw.standard_normal(len(steps) - 1)):
            noise[index + 1] = 0.7 * noise[index] + 0.015 * kick
        losses += noise * rate
        readings = [(int(step), float(loss)) for step, loss in zip(steps, losses, strict=True)]
        curves.append(Curve(f"simulated {seed}", readings, schedule))
    return curves


def held(look: Forecast, final: float) -> bool:
    """Whether a curve ended within the bounds."""
    return look.low <= final <= look.high


def forecasts_table(curves: Sequence[Curve]) -> str:
    """A row a curve and fraction."""
    rows = ["| curve | seen | earlier rounds | forecast | low | high | final | held |", "|" + "---|" * 8]
    for curve in curves:
        name = f"{curve.name} (fitted)" if curve.fitted else curve.name
        for share in FRACTIONS:
            look = curve.at(share)
            if look is None:
                rows.append(f"| {name} | {share:.0%} | – | – | – | – | {curve.final:.4f} | too little seen |")
                continue
            numbers = f"{look.value:.4f} | {look.low:.4f} | {look.high:.4f} | {curve.final:.4f}"
            rows.append(
                f"| {name} | {share:.0%} | {look.calibrated_by} | {numbers} | "
                f"{'yes' if held(look, curve.final) else 'NO'} |"
            )
    return "\n".join(rows)


def judged(curves: Sequence[Curve]) -> dict[str, Any]:
    """False abandonments over all looks of a curve, and savings, of the curves that had a look at all."""
    looked = [curve for curve in curves if curve.looks]
    false = []
    for above in MATCHING:
        stopped = [curve.name for curve in looked if curve.abandoned_at(curve.final + above) is not None]
        low, high = exact_interval(len(stopped), len(looked)) if looked else (0.0, 1.0)
        false.append({"above": above, "k": len(stopped), "m": len(looked), "low": low, "high": high, "names": stopped})
    savings = []
    for below in MISSING:
        stops = [(curve, curve.abandoned_at(curve.final - below)) for curve in looked]
        saved = [1 - step / curve.schedule.steps for curve, step in stops if step is not None]
        mean = math.fsum(saved) / len(looked) if looked else 0.0
        savings.append({"below": below, "abandoned": len(saved), "m": len(looked), "saved_share": mean})
    return {
        "curves": len(looked),
        "too_little_seen": [curve.name for curve in curves if not curve.looks],
        "false_abandonments": false,
        "savings": savings,
    }


def outcome(found: dict[str, Any]) -> str:
    """The judgement as two tables."""
    rows = [f"{found['curves']} curves; {len(found['too_little_seen'])} more had too few validations for any look."]
    rows += ["", "| benchmark above the final loss, nats | abandoned all the same | 95% interval |", "|---|---|---|"]
    rows += [
        f"| {one['above']:g} | {one['k']} of {one['m']} | {one['low']:.1%} to {one['high']:.1%} |"
        for one in found["false_abandonments"]
    ]
    rows += ["", "| benchmark below it, nats | abandoned | steps saved, mean over all |", "|---|---|---|"]
    rows += [
        f"| {one['below']:g} | {one['abandoned']} of {one['m']} | {one['saved_share']:.0%} |"
        for one in found["savings"]
    ]
    return "\n".join(rows)


def main() -> None:
    """Print the tables; write the record where asked to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="*", type=Path, metavar="RUN")
    parser.add_argument("--set", help="the validation set; else each run's first, which judges")
    parser.add_argument("--simulated", type=int, default=0, metavar="N", help="judge N made-up curves, apart")
    parser.add_argument("--out", type=Path, help="write the record as JSON, and what `fitted.txt` would name")
    given = parser.parse_args()
    curves, left_out = collected(given.runs, given.set)
    for curve in curves:
        curve.look()
    counted = [curve for curve in curves if not curve.fitted]
    found = judged(counted)
    print(f"## Real curves\n\n{forecasts_table(curves)}\n\n{outcome(found)}")
    print(f"\nNot counted, since the rule was fitted on them: {len(curves) - len(counted)}.")
    print("".join(f"\nleft out: {line}" for line in left_out))
    made_up = simulated(given.simulated)
    for curve in made_up:
        curve.look()
    if made_up:
        print(f"\n## SIMULATED curves: they count for nothing above\n\n{outcome(judged(made_up))}")
    if given.out:
        record = {
            "real": found,
            "curves": [
                {
                    **{"name": one.name, "digest": one.digest, "fitted": one.fitted, "final": one.final},
                    **{"schedule": dataclasses.asdict(one.schedule), "readings": one.readings},
                    "earlier_rounds": len(one.earlier),
                    "looks": [dataclasses.asdict(look) for look in one.looks],
                }
                for one in curves
            ],
            "left_out": left_out,
            "simulated": judged(made_up) if made_up else None,
        }
        given.out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def _place(path: Path) -> tuple[bool, int, list[tuple[int, str]]]:
    """Rounds first, as their curves are copied to elsewhere; in order of their layers, 8 before 12."""
    numbers = [part.partition("-")[0] for part in path.parts]
    parts = zip(numbers, path.parts, strict=True)
    return "rounds" not in path.parts, len(path.parts), [(int(n) if n.isdigit() else -1, part) for n, part in parts]


if __name__ == "__main__":
    main()
