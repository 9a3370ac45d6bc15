"""Sections of the page that are made of a record of their own: evaluation, layers, attention, plan, commands."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from inheritune.ledger import PROBE, TOTAL
from inheritune.report.account import indices
from inheritune.report.curves import STANDALONE_STYLE
from inheritune.report.degeneracy import degeneracy_svg
from inheritune.report.evaluation import evaluation_sheets
from inheritune.report.evaluation_figure import evaluation_svg
from inheritune.report.evaluation_terminal import short_sheet
from inheritune.report.numbers import NOT_APPLICABLE, count, decimals, duration, flops, number_of, percent, plain
from inheritune.report.records import Record, read_record
from inheritune.report.sheets import Sheet
from inheritune.report.sums import sums_sheet
from inheritune.report.table import dict_of, models_of
from inheritune.result import title_of
from inheritune.scores import Evaluation

_BEHIND_A_PICTURE = '<rect width="100%" height="100%" fill="none" style="fill:Canvas"/>'
_SECONDS_AN_HOUR = 3600
_DAMAGED = (ValueError, TypeError, LookupError, AttributeError, ArithmeticError)
"""What reading values of another form than a record's may end in."""
_MEASURES = {"influence": "block influence", "angular": "angular distance", "probe": "short trainings"}


@dataclass(frozen=True)
class Section:
    """Tables, and a figure where there is one."""

    sheets: tuple[Sheet, ...]
    figure: str | None = None
    """An SVG element that says what it shows."""
    text: str = ""
    """A sentence before the tables."""
    width: int = 560
    """Of the figure at most, CSS pixels: at this width its text has the size that it is meant for."""


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _dicts(value: Any) -> list[dict[str, Any]]:
    return [one for one in _listed(value) if isinstance(one, dict)]


def evaluation_section(run: Path, gaps: dict[str, str]) -> Section | None:
    """Scores with their errors and what guessing scores, from `evaluation.json`; None where there is none.

    Args:
        run: the run directory.
        gaps: takes the reason why the record cannot be shown.
    """
    evaluation = evaluation_of(run, gaps)
    if evaluation is None:
        return None
    try:
        figure = evaluation_svg(evaluation)
    except _DAMAGED:
        gaps["evaluation.json"] = "evaluation.json holds checkpoints that cannot be drawn"
        figure = None
    sheets = [short_sheet(evaluation), *evaluation_sheets(evaluation)]
    return Section(tuple(sheets), None if figure is None else _within_the_page(figure), width=720)


def evaluation_of(run: Path, gaps: dict[str, str]) -> Evaluation | None:
    """`evaluation.json` of a run; None, and the reason in `gaps`, where it is absent or cannot be shown."""
    name = "evaluation.json"
    record = read_record(run, name, dict, gaps)
    if not record:
        return None
    try:
        evaluation = Evaluation.of(record)
        # A record of the right form may hold values of the wrong one, which come to light when it is shown.
        shown = [short_sheet(evaluation), *evaluation_sheets(evaluation)]
        return evaluation if shown else None
    except _DAMAGED:
        gaps[name] = f"{name} is no evaluation of this version; evaluate again, or restore it"
        return None


def _within_the_page(svg: str) -> str:
    """A picture of its own as an element: without the colours and the ground that the page has itself."""
    return svg.replace(STANDALONE_STYLE, "").replace(_BEHIND_A_PICTURE, "")


def layers_section(run: Path, gaps: dict[str, str]) -> Section | None:
    """How the layers were chosen, from `layer_choice.json`; None where they were named in the recipe."""
    name = "layer_choice.json"
    if not (run / name).exists():
        return None
    record = read_record(run, name, dict, gaps)
    if not record:
        return None
    by = _MEASURES.get(str(record.get("measure")), str(record.get("measure") or "an unknown measure"))
    text = f"Kept: layers {indices(record.get('layers'))}, counted from 0, chosen by {by}."
    sheets = [_candidates(dict_of(record.get("probe"))), _measured(record)]
    return Section(tuple(sheet for sheet in sheets if sheet is not None), text=text)


def _candidates(probe: Record) -> Sheet | None:
    """The choices that were trained a little, the best first; None where none was."""
    found = _dicts(probe.get("candidates"))
    if not found:
        return None
    rungs = len(_listed(probe.get("rungs"))) or 1

    def losses(one: Record) -> list[Any]:
        return _listed(one.get("losses"))[:rungs]

    def order(one: Record) -> tuple[int, float]:
        last = number_of(losses(one)[-1]) if losses(one) else None
        return -len(losses(one)), float("inf") if last is None else last

    chosen = probe.get("chosen")
    rows = []
    for one in sorted(found, key=order):
        after = [decimals(loss) for loss in losses(one)]
        title = f"{one.get('name')}{' (chosen)' if one.get('name') == chosen else ''}"
        rows.append(
            (
                title,
                indices(one.get("layers")),
                count(one.get("parameters")),
                decimals(one.get("untrained")),
                *after,
                *[NOT_APPLICABLE] * (rungs - len(after)),
                count(one.get("steps")),
                count(one.get("tokens")),
                flops(one.get("flops")),
            )
        )
    header = (
        *("Candidate", "Layers", "Parameters", "Untrained"),
        *(f"After rung {rung}" for rung in range(1, rungs + 1)),
        *("Steps", "Tokens", "FLOPs"),
    )
    spent = f"All together: {count(probe.get('tokens'))} tokens, {flops(probe.get('flops'))} FLOPs."
    note = f"Loss on {probe.get('set') or 'the development set'}, nats a token. A dash: it did not go on. {spent}"
    return Sheet("Candidates, trained a little", header, tuple(rows), 2, (note,))


def _measured(record: Record) -> Sheet | None:
    """Each layer's block influence, and the angle of the stretch that begins with it; None where none was measured."""
    influence, angular = _listed(record.get("influence")), _listed(record.get("angular"))
    if not influence:
        return None
    kept = _listed(record.get("layers"))
    stretch = len(influence) - len(kept)
    turned = _listed(angular[stretch - 1]) if 0 < stretch <= len(angular) else []
    rows = [
        (
            plain(layer),
            "kept" if layer in kept else "left out",
            decimals(value),
            decimals(turned[layer] if layer < len(turned) else None),
        )
        for layer, value in enumerate(influence)
    ]
    notes = [
        f"Means over {count(record.get('tokens'))} tokens of {record.get('set')}. Block influence: one less the cosine "
        "of a block’s input and output.",
        f"Angular distance: of the {stretch} layers that begin with this one, in half turns; the stretch that turns "
        "the hidden state least can best be left out.",
    ]
    return Sheet(
        "What each layer does", ("Layer", "", "Block influence", "Angular distance"), tuple(rows), 2, tuple(notes)
    )


def differences_sheet(result: Mapping[str, Any]) -> Sheet | None:
    """The target against each trained control, paired; None where there is none, or the result has no such figures.

    Args:
        result: `result.json`'s record.
    """
    found = {name: dict_of(value) for name, value in dict_of(result.get("differences")).items()}
    known = [(name, found[name]) for name in models_of(result) if name in found]
    if not known:
        return None
    rows = tuple(
        (
            title_of(name),
            decimals(entry.get("value")),
            f"{decimals(entry.get('low'))} to {decimals(entry.get('high'))}",
        )
        for name, entry in known
    )
    about = known[0][1]
    note = (
        f"Loss on {about.get('set') or 'the judging set'}, nats a token, paired over {count(about.get('documents'))} "
        "documents. Above 0 the target is better; an interval that holds 0 does not tell the two apart."
    )
    header = ("Control", "Control − target", "95% interval")
    return Sheet("Target against each control", header, rows, 1, (note,))


def attention_section(run: Path, gaps: dict[str, str]) -> Section | None:
    """The degeneracy of attention by layer, from `degeneracy.json` or `depth.json`; None where neither is there."""
    name = next((name for name in ("degeneracy.json", "depth.json") if (run / name).exists()), None)
    if name is None:
        return None
    record = read_record(run, name, dict, gaps)
    if not record:
        return None
    holder = record if {"rank", "degeneracy"} & record.keys() else dict_of(record.get("layers"))
    if holder.get("no_degeneracy"):
        gaps[name] = f"nothing to look at in attention ({holder['no_degeneracy']})"
        return None
    found = holder if "rank" in holder else dict_of(holder.get("degeneracy"))
    untrained = dict_of(holder.get("untrained")) or None
    try:
        figure, sheet = degeneracy_svg(found, untrained), _attention(found, untrained)
    except _DAMAGED:
        gaps[name] = f"{name} holds no degeneracy of attention"
        return None
    return Section((sheet,), _within_the_page(figure))


def _attention(record: Record, untrained: Record | None) -> Sheet:
    """A row a layer: means over heads."""

    def mean(heads: Any, shown: Any) -> str:
        return NOT_APPLICABLE if not heads else shown(sum(heads) / len(heads))

    rows = []
    for layer, (ranks, shares) in enumerate(zip(record["rank"], record["column_share"], strict=True)):
        cells = [mean(ranks, "{:.1f}".format), mean(shares, percent)]
        if untrained is not None:
            cells += [mean(untrained["rank"][layer], "{:.1f}".format), mean(untrained["column_share"][layer], percent)]
        rows.append((str(layer), *cells))
    header = ("Layer", "Rank", "Columns", *(("Untrained rank", "Untrained columns") if untrained is not None else ()))
    held = percent(record["held"])
    note = (
        f"Means over heads. Rank: how many of {record['sequence_length']:,} singular values hold {held} of the "
        f"squares; columns: the share that holds {held} of the squared norms. A dash: no attention."
    )
    return Sheet("Attention by layer", header, tuple(rows), 1, (note,))


def plan_section(run: Path, ledger: Record, peaks: Mapping[str, float], gaps: dict[str, str]) -> Section | None:
    """What `plan.json` foresaw beside what the ledger has; None where there was no plan.

    Args:
        run: the run directory.
        ledger: `ledger.json`'s record.
        peaks: by model's name the most memory that a step of its training was seen to use, bytes.
        gaps: takes the reason why the plan cannot be shown.
    """
    name = "plan.json"
    if not (run / name).exists():
        return None
    plan = read_record(run, name, dict, gaps)
    models = _dicts(plan.get("models"))
    if plan and not models:
        gaps[name] = f"{name} plans no training"
    if not models:
        return None
    rows = [_foreseen(one, dict_of(ledger.get(_stage(one)))) for one in models]
    header = (
        *("Training", "Steps planned", "Steps", "Tokens planned", "Tokens", "FLOPs planned", "FLOPs"),
        *("Time planned", "Range", "Time"),
    )
    device = dict_of(plan.get("device"))
    notes = [f"Planned for {plain(device.get('count'))} × {device.get('title') or device.get('name') or 'a device'}."]
    state = number_of(plan.get("state_bytes"))
    if state is not None:
        seen = max(peaks.values(), default=None)
        took = f"at the peak of a step {_gib(seen)} were in use, with all else" if seen is not None else "not measured"
        notes.append(f"Weights, gradients and moments of the largest model that is trained: {_gib(state)}; {took}.")
    notes += [
        "Time: from each start to the end of its steps, with compilation and checkpoints, which no plan counts, and "
        "whatever else the machine did; of "
        "several learning rates the time in steps.",
        "A dash: that training is not over, was not needed, or was not recorded.",
    ]
    return Section((Sheet("The plan against what happened", header, tuple(rows), 1, tuple(notes)),))


def _stage(planned: Record) -> str:
    """A planned training's entry in the ledger: `train target`, `train round-4` (by its layers), `probe`."""
    name = str(planned.get("name"))
    if name == PROBE:
        return name
    return f"train round-{planned.get('layers')}" if name.startswith("round ") else f"train {name}"


def _foreseen(one: Record, took: Record) -> tuple[str, ...]:
    hours = dict_of(one.get("hours"))
    likely, fastest, slowest = (
        None if (value := number_of(hours.get(key))) is None else value * _SECONDS_AN_HOUR
        for key in ("likely", "fastest", "slowest")
    )
    spread = NOT_APPLICABLE if fastest is None else f"{duration(fastest)} to {duration(slowest)}"
    planned = number_of(one.get("training_flops"))
    all_rates = dict_of(took.get("all_rates")) or took  # what is planned is planned for every learning rate
    wall = None if "all_rates" in took else number_of(dict_of(took.get("consumption")).get("wall_seconds"))
    return (
        title_of(str(one.get("name"))),
        *(count(one.get("steps")), count(took.get("steps"))),
        *(count(one.get("tokens")), count(took.get("tokens"))),
        *(flops(planned), flops(all_rates.get("flops"))),
        *(duration(likely), spread, duration(all_rates.get("seconds") if wall is None else wall)),
    )


def _gib(value: Any) -> str:
    number = number_of(value)
    return NOT_APPLICABLE if number is None else f"{number / 2**30:.2f} GiB"


def sums_section(ledger: Record) -> Sheet | None:
    """The totals of `ledger.json` as a table; None where there are none, or none that can be shown."""
    try:
        return sums_sheet(dict_of(ledger.get(TOTAL)))
    except _DAMAGED:
        return None


def peaks_of(metrics: Mapping[str, Iterable[Any]]) -> dict[str, float]:
    """By model the most memory that a step was seen to use, bytes."""
    found: dict[str, float] = {}
    for model, records in metrics.items():
        used = [number_of(record.get("memory_bytes")) for record in records if isinstance(record, dict)]
        known = [value for value in used if value is not None]
        if known:
            found[model] = max(known)
    return found


def commands(run: Path, environment: Record, evaluation: Evaluation | None, *, recipe: bool) -> list[tuple[str, str]]:
    """The commands that repeat a run: what each does, and the line to type.

    Args:
        run: the run directory.
        environment: `environment.json`'s record.
        evaluation: what was evaluated, if anything.
        recipe: whether the run has its recipe.
    """
    path = run.resolve()
    found = []
    commit = environment.get("commit")
    if isinstance(commit, str) and commit.strip("+"):
        changed = ", which had changes that were not committed" if commit.endswith("+") else ""
        found.append(
            (f"The source that made it{changed}:", f"git checkout {shlex.quote(commit.rstrip('+'))} && make setup")
        )
    if isinstance(environment.get("command"), str):
        found.append(("As it was given:", environment["command"]))
    if recipe:
        found.append(
            ("The whole run again, into a new directory:", _inheritune("run", path / "recipe.yaml", "--out NEW"))
        )
    if evaluation is not None:
        suite = shlex.quote(str(evaluation.suite))  # of a record that has no commands yet
        calls = evaluation.commands or (_inheritune("evaluate", path, f"--suite {suite}"),)
        found += [("Its evaluation:" if number == 0 else "And:", call) for number, call in enumerate(calls)]
    found.append(("This page:", _inheritune("report", path)))
    return found


def _inheritune(command: str, path: Path, more: str = "") -> str:
    return " ".join(["inheritune", command, shlex.quote(str(path)), *([more] if more else [])])
