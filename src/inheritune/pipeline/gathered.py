"""`evaluation.json` over several calls: a call replaces what it evaluated, and the record keeps the rest."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from inheritune.scores import Evaluation, Line, Model, Paired, Score


def gather(earlier: Evaluation, new: Evaluation) -> Evaluation:
    """What both came to, `judged` and `published` left empty.

    Of models the record keeps the new ones with what is known of the same ones (name and fingerprint) from before; and
    of runs that are the same runs still, the models that the call was not about, such as controls beside checkpoints.
    Of lines it keeps the new one, unless the earlier one is whole and the new one is not, or is of more rows.

    Args:
        earlier: the record that is there.
        new: what was evaluated now.
    """
    earlier = _of_versions(earlier)
    same = _same(earlier, new)
    others = tuple(_others(earlier, new))
    kept = same | {one.name for one in others}
    lines = _lines(earlier, new, kept)
    scores = {
        model.name: {
            line.name: score
            for line in lines
            if (score := _score(earlier if model.name in kept else None, new, model.name, line)) is not None
        }
        for model in (*new.models, *others)
    }
    stayed = {line.name for line in lines} - {line.name for line in new.lines}
    return replace(
        new,
        suite=",".join(dict.fromkeys([*(earlier.suite.split(",") if stayed else ()), *new.suite.split(",")])),
        lines=lines,
        models=(*new.models, *others),
        scores=scores,
        paired=tuple(_paired(earlier, new, lines, kept)),
        judged={},
        published={},
        failed=_failed(earlier, new, lines, scores, kept),
        commands=tuple(dict.fromkeys([*(earlier.commands if stayed or others else ()), *new.commands])),
        limited="; ".join(f"{line.name}: {line.selection}" for line in lines if line.selection) or None,
    )


def _of_versions(earlier: Evaluation) -> Evaluation:
    """With the harness's version at each line, which records did not have at first."""
    version = earlier.versions.get("lm_eval")
    return replace(earlier, lines=tuple(replace(line, harness=line.harness or version) for line in earlier.lines))


def _same(earlier: Evaluation, new: Evaluation) -> set[str]:
    """The names of the models that are in both."""
    known = {(one.name, one.fingerprint) for one in earlier.models}
    return {one.name for one in new.models if (one.name, one.fingerprint) in known}


def _others(earlier: Evaluation, new: Evaluation) -> Iterator[Model]:
    """The earlier models of runs of which a model is in both, and none changed; without those that are new."""
    before = {one.name: one.fingerprint for one in earlier.models}
    common = [one for one in new.models if one.name in before]
    changed = {one.run for one in common if before[one.name] != one.fingerprint}
    runs = {one.run for one in common} - changed - {None}
    names = {one.name for one in new.models}
    return (one for one in earlier.models if one.run in runs and one.name not in names)


def _lines(earlier: Evaluation, new: Evaluation, kept: set[str]) -> tuple[Line, ...]:
    """The earlier lines in their order, each as it is now; then those that were not there."""
    now = {line.name: line for line in new.lines}
    found = []
    for line in earlier.lines:
        scored = any(line.name in earlier.scores.get(name, {}) for name in kept)
        if scored and (line.name not in now or _tells_more(line, now[line.name])):
            found.append(line)
        elif line.name in now:
            found.append(now[line.name])
    there = {line.name for line in found}
    return (*found, *(line for line in new.lines if line.name not in there))


def _tells_more(line: Line, other: Line) -> bool:
    """Whether one line is whole, or scored at all, and the other is not; or is of more rows."""
    return (line.whole, bool(line.tasks), line.rows) > (other.whole, bool(other.tasks), other.rows)


def _rows(line: Line) -> tuple[Any, ...]:
    """What tells a line's rows, and how they were asked."""
    data = line.dataset.get("fingerprint")
    return (line.tasks, line.shots, line.metric, line.rows, line.selection, data, line.harness)


def _has(evaluation: Evaluation, line: Line) -> bool:
    """Whether an evaluation's line of this name is of the same rows."""
    return any(one.name == line.name and _rows(one) == _rows(line) for one in evaluation.lines)


def _score(earlier: Evaluation | None, new: Evaluation, model: str, line: Line) -> Score | None:
    """A model's score on these very rows, the newer one where both have one."""
    for evaluation in (new, earlier):
        if evaluation is not None and _has(evaluation, line):
            score = evaluation.scores.get(model, {}).get(line.name)
            if score is not None:
                return score
    return None


def _paired(earlier: Evaluation, new: Evaluation, lines: tuple[Line, ...], kept: set[str]) -> Iterator[Paired]:
    """Differences on the lines as they are now, line by line, each once."""
    for line in lines:
        known: set[frozenset[str]] = set()
        for evaluation, models in ((new, None), (earlier, kept)):
            for pair in evaluation.paired if _has(evaluation, line) else ():
                names = frozenset((pair.first, pair.second))
                if pair.line == line.name and names not in known and (models is None or names <= models):
                    known.add(names)
                    yield pair


def _failed(
    earlier: Evaluation,
    new: Evaluation,
    lines: Sequence[Line],
    scores: Mapping[str, Mapping[str, Score]],
    kept: set[str],
) -> dict[str, dict[str, str]]:
    """By model and task why there is no score, as far as there still is none."""
    found = {}
    for model in scores:
        scored = {task for line in lines if line.name in scores[model] for task in line.tasks}
        before = earlier.failed.get(model, {}) if model in kept else {}
        left = {task: why for task, why in (before | new.failed.get(model, {})).items() if task not in scored}
        if left:
            found[model] = left
    return found
