"""A growth run's rounds for the page: their story as a table, and loss against steps with the benchmark as a rule."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from inheritune.report.curves import Panel, Points
from inheritune.report.numbers import NOT_APPLICABLE, count, decimals, flops, number_of, plain
from inheritune.report.records import Record, Records, read_record, round_name, round_title
from inheritune.report.table import dict_of
from inheritune.result import title_of


@dataclass(frozen=True)
class Round:
    """A line of the story, as text."""

    title: str
    layers: str
    loss: str
    """Nats a token on the judging set."""
    difference: str
    """The loss less the reference's, on the same documents."""
    bound: str
    """One-sided, of the difference: what has to lie below the margin."""
    verdict: str
    flops: str
    """Of its own training."""
    text: str
    """The decision, or the forecast that ended it, in its own words."""
    final: bool


def story(records: Records, curves: Mapping[str, Points] | None = None) -> list[Round]:
    """What each round came to, in order; then those under way.

    Args:
        records: the run's.
        curves: by round's name its curve; those that `records` does not know are under way.
    """
    final = records.final
    lines = [_line(one, one is final) for one in records.rounds]
    known = {round_name(one) for one in records.rounds}
    for name, points in (curves or {}).items():
        if name not in known:
            title = title_of(name).partition(", ")[2]
            layers = name.removeprefix("round-").partition("-")[0]
            verdict = f"not over, {count(points[-1][0])} steps measured" if points else "not over"
            dashes = dict.fromkeys(("loss", "difference", "bound", "flops"), NOT_APPLICABLE)
            lines.append(Round(title or NOT_APPLICABLE, layers, verdict=verdict, text="", final=False, **dashes))
    return lines


def _line(one: Record, final: bool) -> Round:
    verdict = dict_of(one.get("verdict"))
    if one.get("state") == "abandoned":
        said = f"abandoned after {count(one.get('steps'))} of {count(one.get('planned_steps'))} steps"
    elif verdict:
        said = "matches" if verdict.get("matched") is True else "no match"
    else:
        said = "no verdict recorded"
    return Round(
        title=round_title(one).removeprefix("Round "),
        layers=plain(one.get("layers")),
        loss=decimals(one.get("validation_loss")),
        difference=_four(verdict.get("difference")),
        bound=_four(verdict.get("upper")),
        verdict=said,
        flops=flops(one.get("flops")),
        text=str(verdict.get("text") or dict_of(one.get("forecast")).get("text") or ""),
        final=final,
    )


def _four(value: Any) -> str:
    """A difference to four decimals: the margins it is held against are of a hundredth."""
    number = number_of(value)
    return NOT_APPLICABLE if number is None else f"{number:.4f}"


def rule(records: Records) -> str:
    """What makes a match, in a sentence, as the verdicts say it; empty where none does."""
    for verdict in (dict_of(one.get("verdict")) for one in records.rounds):
        margin, alpha, rounds = (number_of(verdict.get(key)) for key in ("margin", "alpha", "rounds"))
        if margin is not None and alpha is not None and rounds:
            documents = number_of(verdict.get("documents"))
            over = f" over {documents:,.0f} documents" if documents is not None else ""
            below = f"below {margin:g} nats a token" if margin else "below 0"
            return f"A match: target − reference lies {below} at its one-sided {1 - alpha / rounds:.1%} bound{over}."
    return ""


def curve(records: Iterable[Any], judge: str) -> Points:
    """(step, loss on the judging set) from metrics records; of a step measured twice the last record counts."""
    points: dict[float, float] = {}
    for record in records:
        if isinstance(record, dict) and record.get("kind") == "validation":
            step, loss = number_of(record.get("step")), number_of(dict_of(record.get("losses")).get(judge))
            if step is not None and loss is not None:
                points[step] = loss
    return sorted(points.items())


def round_curves(run: Path, records: Records) -> dict[str, Points]:
    """By round's name its curve: from its record, else from its directory, where those under way have theirs."""
    curves = {round_name(one): _listed(one.get("curve")) for one in records.rounds}
    if (run / "rounds").is_dir():
        found = (path.name for path in (run / "rounds").iterdir())
        stems = [name for name in found if re.fullmatch(r"[0-9]{1,4}(-seed-[0-9]{1,4})?", name)]
        for stem in sorted(stems, key=lambda stem: [int(number) for number in re.findall("[0-9]+", stem)]):
            if not curves.get(f"round-{stem}"):
                metrics = read_record(run, f"rounds/{stem}/metrics.jsonl", list, {})
                curves[f"round-{stem}"] = curve(metrics, records.judge)
    return curves


def _listed(values: Any) -> Points:
    """A record's curve, a list of [step, loss]; what is no such pair is left out."""
    pairs = (
        [value for value in values if isinstance(value, list) and len(value) == 2] if isinstance(values, list) else []
    )
    numbers = [(number_of(step), number_of(loss)) for step, loss in pairs]
    return sorted((step, loss) for step, loss in numbers if step is not None and loss is not None)


def growth_panel(records: Records, rounds: Mapping[str, Points], controls: Mapping[str, Iterable[Any]]) -> Panel | None:
    """Loss against steps, a line a model; None where no round and no control was measured while it trained.

    Args:
        records: the run's.
        rounds: as `round_curves` gives them.
        controls: by control's name its metrics records.
    """
    final = records.final
    kept = round_name(final) if final is not None else ""
    # Controls come first, so that they look as they do where there are no rounds. The round that became the target has
    # the target's colour, mark and line.
    lines = {name: curve(metrics, records.judge) for name, metrics in controls.items()}
    lines |= {"target" if name == kept else name: points for name, points in rounds.items()}
    shown = {name: points for name, points in lines.items() if points}
    if not shown:
        return None
    longest = max(points[-1][0] for points in shown.values())
    # As for the curves against tokens; and the end of a round that was abandoned early.
    inside = [y for points in shown.values() for x, y in points if x >= 0.2 * longest or x == points[-1][0]]
    benchmark = records.benchmark
    inside += [benchmark] if benchmark is not None else []
    margin = 0.08 * (max(inside) - min(inside)) or 0.1
    panel = Panel(records.judge, tuple(lines), shown, {}, benchmark, None, min(inside) - margin, max(inside) + margin)
    # Three decimals: a match is about hundredths.
    return replace(panel, unit="steps", digits=3, titles={"target": title_of(kept)} if kept else {})


def without_curve(rounds: Mapping[str, Points]) -> str:
    """The gap of rounds whose curve is nowhere; empty where there is none."""
    missing = [title_of(name) for name, points in rounds.items() if not points]
    return f"no curve was recorded of: {'; '.join(missing)}" if missing else ""
