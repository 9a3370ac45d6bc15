"""`inheritune evaluate`: models and runs on suites of the harness, set beside each other and beside the poster."""

from __future__ import annotations

import contextlib
import dataclasses
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from inheritune import against as comparing
from inheritune.console import Console
from inheritune.errors import Failed, Refused
from inheritune.evaluation import check_harness, parse_suite
from inheritune.pipeline.checkpoints import Saved, checkpoint_directories, export_checkpoint
from inheritune.report import (
    card_with_results,
    evaluation_svg,
    latex_evaluation,
    markdown_evaluation,
    render_evaluation,
)
from inheritune.report.records import file_stem
from inheritune.report.table import dict_of
from inheritune.run_directory import lock, read_json, write_atomic, write_json
from inheritune.scores import Evaluation, Role

if TYPE_CHECKING:
    from inheritune.evaluation.evaluating import Candidate

PUBLISHED = "published"
RECORD = "evaluation"
"""`evaluation.json`, `.md`, `.tex`, `.svg`; and the folder of every task's scores with its rows."""
DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}


@dataclasses.dataclass(frozen=True)
class Asked:
    """How models are to be evaluated, as the command line has it."""

    suite: str = "quick"
    """A suite's name, or the harness's tasks, `piqa,mmlu:5`."""
    datasets: Path | None = None
    """A mirror of the hub's data sets; None: the hub."""
    limit: int | None = None
    """At most so many rows of each task; every table says so."""
    batch_size: int | None = None
    """Rows at once; None: as many as fit."""
    device: str | None = None
    """Such as `cuda`; None: the GPU, if there is one."""
    dtype: str | None = None
    """Of the weights; None: as they are stored."""
    revision: str | None = None
    """Of a hub id; with one model only."""
    trust_remote_code: bool = False
    """Whether code that comes with a model may be run."""


@dataclasses.dataclass(frozen=True)
class _Given:
    """A model to evaluate, before it is looked for."""

    name: str
    source: str
    role: Role = "model"
    tokens_trained: int | None = None
    step: int | None = None
    run: str | None = None


def evaluate(
    models: Sequence[str],
    asked: Asked | None = None,
    *,
    out: Path | None = None,
    against: Sequence[str] = (),
    checkpoints: bool = False,
    latex: bool = False,
    card: bool = False,
    console: Console | None = None,
) -> Evaluation:
    """Evaluate models on a suite and write what came of it: `evaluation.json`, a Markdown table, figures.

    Args:
        models: directories, hub ids, or run directories: of a run its target, its reference and its controls.
        asked: suite, data and device.
        out: where it is written; of a single run its directory, else `runs/evaluation`.
        against: further models to compare with, or `published` for the poster's figures.
        checkpoints: of runs, evaluate the saved checkpoints of the target's training instead of the controls.
        latex: write a LaTeX table, too.
        card: write the results into the README.md of each model that is a directory; of a run's target it is done
            anyhow.
        console: where progress is shown.

    Raises:
        Refused: bad input; nothing was written.
        Failed: something went wrong later; finished tasks are kept and the same call goes on.
    """
    console, asked = console or Console(), asked or Asked()
    runs = [word for word in models if is_run(Path(word).expanduser())]
    _check(asked, models, runs, checkpoints=checkpoints)
    from inheritune.evaluation.evaluating import Settings, evaluate as evaluate_found, find, plan

    given = [one for word in models for one in (_of_run(Path(word).expanduser()) if word in runs else [_model(word)])]
    saved_of = {Path(word).expanduser(): _saved(Path(word).expanduser()) for word in runs} if checkpoints else {}
    if checkpoints:
        given = [one for one in given if one.role in ("target", "reference")]
    given = _named([*given, *(_model(word) for word in against if word != PUBLISHED)])
    settings = Settings(
        device=_device(asked.device),
        dtype=DTYPES[asked.dtype] if asked.dtype is not None else None,
        batch_size=asked.batch_size,
        trust_remote_code=asked.trust_remote_code,
    )
    planned = plan(parse_suite(asked.suite), datasets=asked.datasets, limit=asked.limit)
    found = find([_candidate(one, asked.revision) for one in given], settings)
    directory = out if out is not None else Path(runs[0]) if len(models) == len(runs) == 1 else Path("runs/evaluation")
    with lock(directory / RECORD), contextlib.ExitStack() as stack:
        for gap in planned.gaps:
            console.line(f"  {gap.name} is left out: {gap.reason}")
        if checkpoints:
            room = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=directory / RECORD)))
            exported = [one for run, saved in saved_of.items() for one in _exported(run, saved, room)]
            given = _named([*exported, *given])
            found = find([_candidate(one, asked.revision) for one in given], settings)
        evaluation = evaluate_found(found, planned, settings=settings, kept=directory / RECORD, told=console)
    judged = {line.name: comparing.judge(evaluation, line) for line in evaluation.lines if line.tasks}
    evaluation = dataclasses.replace(
        evaluation,
        judged={
            name: {model: dataclasses.asdict(one) for model, one in found.items()} for name, found in judged.items()
        },
        published=comparing.beside_published(evaluation) if PUBLISHED in against else {},
    )
    _write(evaluation, directory, latex=latex, figure=checkpoints)
    _cards(evaluation, given, all_of_them=card)
    console.table(render_evaluation(evaluation, width=console.width))
    console.line(f"Written to {directory / RECORD}.json and .md")
    return evaluation


def list_datasets(suite: str) -> list[str]:
    """The data sets that a suite needs, each with the command that brings it into a mirror: lines of a shell script.

    Raises:
        Refused: an unknown task.
    """
    check_harness()
    from inheritune.evaluation.tasks import Harness
    from inheritune.evaluation.writing import list_datasets as needed

    lines = []
    for one in needed(Harness(parse_suite(suite).asked)):
        names = [name for name in one.names if name is not None]
        some = f" ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})" if names else ""
        lines += [f"# {one.line}: {one.dataset}{some}, {' and '.join(one.splits)}", one.command]
    return lines


def write_tasks(suite: str, directory: Path, *, datasets: Path | None = None, limit: int | None = None) -> str:
    """Write a suite's tasks as YAML files for the harness's own command, and give that command.

    Raises:
        Refused: an unknown task, no data, or a directory that holds other files.
    """
    check_harness()
    from inheritune.evaluation.evaluating import plan
    from inheritune.evaluation.writing import write_tasks as write

    return write(plan(parse_suite(suite), datasets=datasets, limit=limit), directory)


def is_run(path: Path) -> bool:
    """Whether a directory is a run's."""
    return (path / "recipe.yaml").is_file() and (path / "result.json").is_file()


def _check(asked: Asked, models: Sequence[str], runs: Sequence[str], *, checkpoints: bool) -> None:
    """Refuse what can be refused from the words alone."""
    check_harness()
    if asked.batch_size is not None and asked.batch_size < 1:
        raise Refused(f"--batch_size {asked.batch_size}: must be 1 or more; leave it out to have it chosen")
    if asked.dtype is not None and asked.dtype not in DTYPES:
        raise Refused(f"--dtype {asked.dtype}: not one of {', '.join(DTYPES)}; leave it out for the stored one")
    twice = next((word for word in models if list(models).count(word) > 1), None)
    if twice is not None:
        raise Refused(f"{twice}: named twice; once is enough")
    if checkpoints and len(runs) < len(models):
        other = next(word for word in models if word not in runs)
        raise Refused(f"--checkpoints: {other} is no run directory, so it has no checkpoints")
    if asked.revision is not None and (len(models) > 1 or runs):
        raise Refused("--revision: belongs to a single hub id; evaluate it by itself")


def _device(word: str | None) -> torch.device:
    """The device of a word; without one the GPU, if there is one."""
    try:
        device = torch.device(word or ("cuda" if torch.cuda.is_available() else "cpu"))
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise Refused(f"--device {word}: there is none ({' '.join(str(error).split())[:120]}); give cpu") from None
    return device


def _candidate(one: _Given, revision: str | None) -> Candidate:
    """As `evaluation` takes it."""
    from inheritune.evaluation.evaluating import Candidate

    return Candidate(
        one.name,
        one.source,
        one.role,
        revision=revision if one.role == "model" else None,
        tokens_trained=one.tokens_trained,
        step=one.step,
        run=one.run,
    )


def _model(word: str) -> _Given:
    path = Path(word).expanduser()
    name = path.resolve().name if path.is_dir() else word
    return _Given(path.resolve().parent.name if path.is_dir() and name == "model" else name, word)


def _of_run(run: Path) -> list[_Given]:
    """A run's target, its reference and its controls, as far as they are there.

    Raises:
        Refused: the run has no target yet.
    """
    try:
        result = read_json(run / "result.json")
        reference = dict_of(read_json(run / "reference.json"))
    except Failed as error:
        raise Refused(str(error)) from error
    if not isinstance(result, dict) or not (run / "model").is_dir():
        state = result.get("state", "unknown") if isinstance(result, dict) else "unknown"
        raise Refused(f"{run}: has no finished model yet (it is {state}); let it end: inheritune run")
    target = dict_of(result.get("target"))
    found = [_Given("target", str(run / "model"), "target", _tokens(target), run=str(run))]
    source = reference.get("source")
    if isinstance(source, str):
        found.append(_Given("reference", source, "reference", run=str(run)))
    for name, control in dict_of(result.get("controls")).items():
        stem = file_stem(name)
        directory = run / "controls" / (stem or "") / "model"
        if stem is not None and directory.is_dir():
            found.append(_Given(name, str(directory), "control", _tokens(dict_of(control)), run=str(run)))
    return found


def _tokens(record: dict[str, object] | object) -> int | None:
    tokens = dict_of(record).get("tokens_trained")
    return tokens if isinstance(tokens, int) else None


def _saved(run: Path) -> list[Saved]:
    """A run's checkpoints.

    Raises:
        Refused: it has none.
    """
    found = checkpoint_directories(run)
    if not found:
        raise Refused(f"--checkpoints: {run} has kept none; train with more of them (train.keep_checkpoints)")
    return found


def _exported(run: Path, saved: Sequence[Saved], directory: Path) -> list[_Given]:
    """A run's checkpoints as models in a directory."""
    given = []
    for one in saved:
        rate = f"-{one.learning_rate:g}" if one.learning_rate is not None else ""
        out = directory / f"{run.resolve().name}-{one.training}{rate}-{one.step}"
        export_checkpoint(run, one, out)
        several = len({other.training for other in saved}) > 1 or one.learning_rate is not None
        name = f"{one.training}{rate} step {one.step}" if several else f"step {one.step}"
        given.append(_Given(name, str(out), "checkpoint", one.tokens, one.step, str(run)))
    return given


def _named(given: Sequence[_Given]) -> list[_Given]:
    """The models with names of their own: those of several runs get their run's, others a number."""
    several = len({one.run for one in given if one.run is not None}) > 1
    named = [
        dataclasses.replace(one, name=f"{Path(one.run).resolve().name}/{one.name}") if several and one.run else one
        for one in given
    ]
    found: list[_Given] = []
    for one in named:
        taken = [other.name for other in found]
        number = next(k for k in range(1, len(named) + 1) if (one.name if k == 1 else f"{one.name} {k}") not in taken)
        found.append(one if number == 1 else dataclasses.replace(one, name=f"{one.name} {number}"))
    return found


def _write(evaluation: Evaluation, directory: Path, *, latex: bool, figure: bool) -> None:
    write_json(directory / f"{RECORD}.json", evaluation.record())
    write_atomic(directory / f"{RECORD}.md", markdown_evaluation(evaluation))
    if latex:
        write_atomic(directory / f"{RECORD}.tex", latex_evaluation(evaluation))
    drawn = evaluation_svg(evaluation) if figure else None
    if drawn is not None:
        write_atomic(directory / f"{RECORD}.svg", drawn)


def _cards(evaluation: Evaluation, given: Sequence[_Given], *, all_of_them: bool) -> None:
    """Write results into the cards of runs' targets, and where asked for of the other models that are directories."""
    for one in given:
        card = Path(one.source).expanduser() / "README.md"
        if one.role == "checkpoint" or not card.parent.is_dir() or not (all_of_them or one.role == "target"):
            continue
        text = card.read_text(encoding="utf-8") if card.is_file() else ""
        write_atomic(
            card, card_with_results(text, evaluation, one.name, {line.name: line.dataset for line in evaluation.lines})
        )
