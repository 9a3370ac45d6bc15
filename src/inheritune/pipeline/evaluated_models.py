"""What `inheritune evaluate` evaluates: the models of words, of runs and of their checkpoints, each with its name.

All but checkpoints are found before anything is written. A checkpoint becomes a model when its turn comes, and goes
when it is done: a training that kept all of them would otherwise need as much room again.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from inheritune.arms import CUT
from inheritune.errors import Failed, Refused
from inheritune.evaluation.evaluating import Candidate, Settings, find, fingerprint
from inheritune.pipeline.checkpoints import Saved, checkpoint_directories, exporter
from inheritune.pipeline.checks import layers_word
from inheritune.pipeline.recorded import recorded_reference
from inheritune.reference import Reference
from inheritune.report.records import file_stem
from inheritune.report.table import dict_of
from inheritune.run_directory import read_json
from inheritune.scores import own_name

_TEMPORARY = ".checkpoint-"
"""What the names of folders begin with that checkpoints are exported into."""


@dataclass(frozen=True)
class Chosen:
    """A model to evaluate."""

    candidate: Candidate
    reference: Reference | None
    """It, found; None of a checkpoint, which is no model yet."""
    make: Callable[[Path], Reference] | None = None
    """Of a checkpoint: makes it a model in a directory, and finds it there."""


def is_run(path: Path) -> bool:
    """Whether a directory is a run's."""
    return (path / "recipe.yaml").is_file() and (path / "result.json").is_file()


def choose(
    words: Sequence[str], against: Sequence[str], settings: Settings, *, revision: str | None, checkpoints: bool
) -> tuple[list[Chosen], list[str]]:
    """Find what words stand for.

    Args:
        words: directories, hub ids, or run directories: of a run its target, its reference and its controls; runs that
            all have the same reference share it.
        against: further models; of a run directory its target. The first is the reference where no run has one.
        settings: whether code that comes with a model may be run; a run's models may where the run itself could.
        revision: of `words`.
        checkpoints: of runs, the saved checkpoints before the target and the reference, and no controls.

    Returns:
        The models, with names of their own; and lines on what is left out, and why.

    Raises:
        Refused: a model is not there, or a run has none yet.
    """
    found, told = [], []
    for word in words:
        if is_run(Path(word)):
            of_run, lines = _of_run(Path(word), settings, checkpoints=checkpoints)
            found += of_run
            told += lines
        else:
            found.append(_found(_of_word(word, revision), settings))
    found = _one_reference(found, len({word for word in words if is_run(Path(word))}))
    for word in against:
        beside = any(one.candidate.role == "reference" for one in found)
        candidate, trusted = _to_compare_with(word), _trusting(Path(word), settings)
        found.append(_found(candidate if beside else replace(candidate, role="reference"), trusted))
    # Checkpoints of all runs come first, as their figure is of them.
    found.sort(key=lambda one: one.candidate.role != "checkpoint")
    names = _names([one.candidate for one in found])
    named = [replace(one, candidate=replace(one.candidate, name=name)) for one, name in zip(found, names, strict=True)]
    return named, told


def one_by_one(
    chosen: Sequence[Chosen], room: Path, told: Callable[[str], None]
) -> Generator[tuple[Candidate, Reference]]:
    """The models, each when it is asked for; a checkpoint's files are there until the next is.

    Args:
        chosen: what `choose` found.
        room: an existing directory for those files, which this process holds alone: what a killed one left goes.
        told: where lines go.

    Raises:
        Refused, Failed: a checkpoint cannot be exported.
    """
    for stale in room.glob(f"{_TEMPORARY}*"):
        shutil.rmtree(stale, ignore_errors=True)
    gone = 0
    for one in chosen:
        if one.make is None:
            assert one.reference is not None
            yield one.candidate, one.reference
            continue
        with tempfile.TemporaryDirectory(prefix=_TEMPORARY, dir=room) as folder:
            try:
                reference = one.make(Path(folder) / "model")
            except (Failed, OSError):
                if Path(one.candidate.source).exists():
                    raise
                told(f"  {one.candidate.name} is left out: the run went on, and did not keep it")
                gone += 1
                continue
            yield one.candidate, reference
    if gone == len(chosen):
        raise Failed("--checkpoints: none is there any more, the run went on; give the same command again")


def _one_reference(chosen: list[Chosen], runs: int) -> list[Chosen]:
    """The models, with one reference for all runs where each of them has the same."""
    references = [one for one in chosen if one.candidate.role == "reference"]
    same = {fingerprint(one.reference) for one in references if one.reference is not None}
    if len(references) < max(2, runs) or len(same) > 1:
        return chosen
    first = references[0]
    shared = replace(first, candidate=replace(first.candidate, run=None))
    others = [one for one in chosen if one is first or one.candidate.role != "reference"]
    return [shared if one is first else one for one in others]


def _found(candidate: Candidate, settings: Settings) -> Chosen:
    """A model that is there, with the tokenizer that evaluation needs."""
    ((_, reference),) = find([candidate], settings)
    return Chosen(candidate, reference)


def _of_word(word: str, revision: str | None = None) -> Candidate:
    return Candidate(own_name(word) if Path(word).exists() else word, word, revision=revision)


def _to_compare_with(word: str) -> Candidate:
    """A model, or a run's target, that others are compared with."""
    run = Path(word)
    if not is_run(run):
        return _of_word(word)
    result = _result(run)
    target = _target(run, result)
    if target is None:
        raise _unfinished(run, result)
    return replace(target, name=own_name(word), role="model", run=None)


def _of_run(run: Path, settings: Settings, *, checkpoints: bool) -> tuple[list[Chosen], list[str]]:
    """A run's target, its reference, and its controls or checkpoints, as far as they are there; and what is left out.

    Raises:
        Refused: there is no target, or with `checkpoints` none of these.
    """
    settings, result, told = _trusting(run, settings), _result(run), []
    target = _target(run, result)
    if target is None and not checkpoints:
        raise _unfinished(run, result)
    found = _checkpoints(run, settings) if checkpoints else []
    if target is not None:
        found.append(_found(target, settings))
    try:
        reference = _reference(run, settings)
    except Refused as error:
        told.append(f"  the reference of {run} is left out: {error}")
    else:
        found += [reference] if reference is not None else []
    for name, control in dict_of(result.get("controls")).items() if not checkpoints else ():
        stem = file_stem(name)
        directory = _cut(run, result) if name == CUT else run / "controls" / (stem or "") / "model"
        candidate = Candidate(name, str(directory), "control", tokens_trained=_tokens(control), run=str(run))
        try:
            if stem is None or not directory.is_dir():
                raise Refused(f"there is no {directory}")
            found.append(_found(candidate, settings))
        except Refused as error:
            told.append(f"  the control {name} of {run} is left out: {error}")
    return found, told


def _result(run: Path) -> dict[str, Any]:
    try:
        return dict_of(read_json(run / "result.json"))
    except Failed as error:
        raise Refused(str(error)) from error


def _unfinished(run: Path, result: dict[str, Any]) -> Refused:
    state = result.get("state", "unknown")
    return Refused(f"{run}: has no finished model yet (it is {state}); let it end: inheritune run")


def _target(run: Path, result: dict[str, Any]) -> Candidate | None:
    """A run's target; None where there is none yet."""
    if not (run / "model").is_dir():
        return None
    tokens = _tokens(result.get("target"))
    return Candidate("target", str(run / "model"), "target", tokens_trained=tokens, run=str(run))


def _tokens(record: Any) -> int | None:
    tokens = dict_of(record).get("tokens_trained")
    return tokens if isinstance(tokens, int) else None


def _reference(run: Path, settings: Settings) -> Chosen | None:
    """A run's reference, as the run began with it; None where it has none.

    Raises:
        Refused: it is not there any more, it changed, or it has no tokenizer.
    """
    recipe = _recipe(run)
    keys = ("reference", "revision", "reference_file", "reference_dtype")
    asked = {key: word if isinstance(word := recipe.get(key), str) else None for key in keys}
    found = recorded_reference(run, trust_remote_code=settings.trust_remote_code, **asked)
    if found is None:
        return None
    if found.tokenizer is None:
        raise Refused(f"{found.source}: has no tokenizer, so no text can be given to it; put its files beside it")
    return Chosen(Candidate("reference", found.source, "reference", revision=found.revision, run=str(run)), found)


def _cut(run: Path, result: dict[str, Any]) -> Path:
    """Where the control `cut` is: what the target starts from; in a growth, what the round that it is of does."""
    recipe = _recipe(run)
    whole = "stack" if dict_of(recipe.get("inherit")).get("init") == "stack" else "inherit"
    layers = dict_of(result.get("target")).get("layers")
    if (grow := dict_of(recipe.get("grow"))) and isinstance(layers, int):
        whole += f"@{layers_word(grow.get('choice', 'first'), layers)}"
    return run / "starts" / whole


def _trusting(run: Path, settings: Settings) -> Settings:
    """How a run's models are found: code that came with its reference may be run where the run itself could."""
    trusted = is_run(run) and _recipe(run).get("trust_remote_code") is True
    return replace(settings, trust_remote_code=settings.trust_remote_code or trusted)


def _recipe(run: Path) -> dict[str, Any]:
    """A run's recipe as it was written, not checked: an older one may have keys of its time."""
    try:
        return dict_of(yaml.safe_load((run / "recipe.yaml").read_text(encoding="utf-8")))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise Refused(f"{run / 'recipe.yaml'}: damaged, not YAML ({' '.join(str(error).split())[:120]})") from None


def _checkpoints(run: Path, settings: Settings) -> list[Chosen]:
    """A run's checkpoints.

    Raises:
        Refused: it has none, or they cannot become models.
    """
    saved = checkpoint_directories(run)
    if not saved:
        raise Refused(f"--checkpoints: {run} has kept none; train with more of them (train.keep_checkpoints)")
    several = len({one.training for one in saved}) > 1 or any(one.learning_rate is not None for one in saved)
    export = exporter(run)

    def chosen(one: Saved) -> Chosen:
        rate = f"-{one.learning_rate:g}" if one.learning_rate is not None else ""
        name = f"{one.training}{rate} step {one.step}" if several else f"step {one.step}"
        source, tokens = str(one.path), one.tokens
        candidate = Candidate(name, source, "checkpoint", tokens_trained=tokens, step=one.step, run=str(run))

        def make(out: Path) -> Reference:
            export(one, out)
            ((_, reference),) = find([replace(candidate, source=str(out))], settings)
            return reference

        return Chosen(candidate, None, make)

    return [chosen(one) for one in saved]


def _names(candidates: Sequence[Candidate]) -> list[str]:
    """Names of their own: those of several runs get their run's, or its path where two have one name.

    What is still of one name gets a number.
    """
    runs = list(dict.fromkeys(one.run for one in candidates if one.run is not None))
    short = [Path(run).resolve().name for run in runs]
    called = {run: name if short.count(name) == 1 else run for run, name in zip(runs, short, strict=True)}
    found: list[str] = []
    for one in candidates:
        name = f"{called[one.run]}/{one.name}" if one.run is not None and len(runs) > 1 else one.name
        numbered = (name if number == 1 else f"{name} {number}" for number in range(1, len(candidates) + 1))
        found.append(next(each for each in numbered if each not in found))
    return found
