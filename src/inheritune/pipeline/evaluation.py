"""`inheritune evaluate`: models and runs on suites of the harness, set beside each other and beside the poster."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import os
from collections.abc import Collection, Sequence
from pathlib import Path

import torch

from inheritune import against as comparing, environment
from inheritune.console import Console
from inheritune.errors import Failed, Refused, nearest
from inheritune.evaluation import check_harness, parse_suite
from inheritune.pipeline.gathered import gather
from inheritune.published import OUTSIDE_BASELINES
from inheritune.report import (
    card_with_results,
    evaluation_svg,
    latex_evaluation,
    markdown_evaluation,
    render_evaluation,
)
from inheritune.run_directory import lock, read_json, write_atomic, write_json
from inheritune.scores import Evaluation

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
        out: where it is written; of a single run its directory, else `runs/evaluation`. A record that is there keeps
            what this call was not about (see `gather`).
        against: further models to compare with (of a run directory its target), `published` for the poster's figures,
            or an outside baseline's name (`published.OUTSIDE_BASELINES`). The first model is the reference where no run
            has one.
        checkpoints: of runs, evaluate the saved checkpoints of the target's training instead of the controls; a run
            may be under way.
        latex: write a LaTeX table, too.
        card: write the results into the README.md of each model that is a directory; of a run's target it is done
            anyhow.
        console: where progress is shown.

    Returns:
        What was evaluated now, without what the record has from before.

    Raises:
        Refused: bad input; nothing was written.
        Failed: something went wrong later; finished tasks are kept and the same call goes on.
    """
    check_harness()
    from inheritune.evaluation.evaluating import Settings, evaluate as evaluate_found, plan
    from inheritune.pipeline.evaluated_models import choose, is_run, one_by_one

    console, asked = console or Console(), asked or Asked()
    models, against = ([os.path.expanduser(word) for word in words] for words in (models, against))
    runs = [word for word in models if is_run(Path(word))]
    beside = [word for word in against if word in comparing.PUBLISHED]
    compared = [word for word in against if word not in beside]
    _check(asked, models, runs, compared, checkpoints=checkpoints)
    suite = parse_suite(asked.suite)
    settings = Settings(
        device=_device(asked.device),
        dtype=DTYPES[asked.dtype] if asked.dtype is not None else None,
        batch_size=asked.batch_size,
        trust_remote_code=asked.trust_remote_code,
    )
    chosen, left_out = choose(models, compared, settings, revision=asked.revision, checkpoints=checkpoints)
    planned = plan(suite, datasets=asked.datasets, limit=asked.limit)
    directory = out if out is not None else Path(runs[0]) if len(models) == len(runs) == 1 else Path("runs/evaluation")
    kept = directory / RECORD
    with lock(kept):
        nothing = _nothing_in_common(beside, {one.name for one in suite.asked})
        for line in (*left_out, *(f"  {gap}" for gap in planned.gaps_in_words()), *nothing):
            console.line(line)
        with contextlib.closing(one_by_one(chosen, kept, console.line)) as found:
            total = len(chosen)
            new = evaluate_found(found, planned, settings=settings, kept=kept, total=total, told=console)
        new = dataclasses.replace(_judged(new, beside), commands=(environment.command(),))
        try:
            console.table(render_evaluation(new, width=console.width))
        finally:  # who reads the table may end before its end, as `head` does
            gathered = _gathered(new, directory, console)
            _write(gathered, new, directory, latex=latex, figure=checkpoints)
            _cards(gathered, {model.name for model in new.models}, console, all_of_them=card)
    console.line(f"Written to {directory / RECORD}.json and .md")
    return new


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

    planned, console = plan(parse_suite(suite), datasets=datasets, limit=limit), Console()
    command = write(planned, directory)
    for line in planned.gaps_in_words():
        console.line(f"  {line}")
    return command


def _check(
    asked: Asked, models: Sequence[str], runs: Sequence[str], compared: Sequence[str], *, checkpoints: bool
) -> None:
    """Refuse what can be refused from the words alone."""
    if asked.batch_size is not None and asked.batch_size < 1:
        raise Refused(f"--batch_size {asked.batch_size}: must be 1 or more; leave it out to have it chosen")
    if asked.dtype is not None and asked.dtype not in DTYPES:
        raise Refused(f"--dtype {asked.dtype}: not one of {', '.join(DTYPES)}; leave it out for the stored one")
    words = [*models, *compared]
    places = [str(Path(word).resolve()) if Path(word).is_dir() else word for word in words]
    twice = next((word for word, place in zip(words, places, strict=True) if places.count(place) > 1), None)
    if twice is not None:
        raise Refused(f"{twice}: named twice; once is enough")
    for word in compared:
        # A name without a folder is hardly ever a model's on the hub, and asking there takes long without a network.
        hint = "" if "/" in word or Path(word).exists() else nearest(word, comparing.PUBLISHED)
        if hint:
            raise Refused(f"--against {word}: neither a directory nor published scores{hint}")
    if checkpoints and len(runs) < len(models):
        other = next(word for word in models if word not in runs)
        raise Refused(f"--checkpoints: {other} is no run directory, so it has no checkpoints")
    if asked.revision is not None and (len(models) > 1 or runs):
        raise Refused("--revision: belongs to a single hub id; evaluate it by itself")


def _device(word: str | None) -> torch.device:
    """The device of a word; without one the GPU, if there is one."""
    try:
        device = torch.device(word or ("cuda" if torch.cuda.is_available() else "cpu"))
        torch.empty(1, device=device).item()  # `meta` has no values
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise Refused(f"--device {word}: there is none ({' '.join(str(error).split())[:120]}); give cpu") from None
    return device


def _nothing_in_common(beside: Sequence[str], tasks: Collection[str]) -> list[str]:
    """A line for each outside baseline that has a score of none of the tasks."""
    known = {name: found for name, found in OUTSIDE_BASELINES.items() if name in beside}
    return [
        f"  {name} has no score of these tasks; it has of {', '.join(score.task for score in baseline.scores)}"
        for name, baseline in known.items()
        if not any(baseline.score_of(task) for task in tasks)
    ]


def _judged(evaluation: Evaluation, beside: Collection[str]) -> Evaluation:
    """With what may be said of the scores, and what is published of the same tasks under these names."""
    judged = {line.name: comparing.judge(evaluation, line) for line in evaluation.lines if line.tasks}
    return dataclasses.replace(
        evaluation,
        judged={
            name: {model: dataclasses.asdict(one) for model, one in found.items()} for name, found in judged.items()
        },
        published=comparing.beside_published(evaluation, beside),
    )


def _gathered(new: Evaluation, directory: Path, console: Console) -> Evaluation:
    """With what the directory's record has from before."""
    path = directory / f"{RECORD}.json"
    if not path.exists():
        return new
    try:
        earlier = Evaluation.of(read_json(path))
    except (Failed, ValueError, TypeError, KeyError, AttributeError):  # damaged, or of another version
        aside = next(p for n in itertools.count(1) if not (p := path.with_name(f"{path.name}.unread-{n}")).exists())
        path.rename(aside)
        console.line(f"  {path} could not be read; it is kept as {aside.name}, and written anew")
        return new
    beside = comparing.beside_which(new.published) | comparing.beside_which(earlier.published)
    return _judged(gather(earlier, new), beside)


def _write(gathered: Evaluation, new: Evaluation, directory: Path, *, latex: bool, figure: bool) -> None:
    """Write the record and its tables and figure; those of an earlier call are not left behind it."""
    write_json(directory / f"{RECORD}.json", gathered.record())
    write_atomic(directory / f"{RECORD}.md", markdown_evaluation(gathered))
    table, picture = (directory / f"{RECORD}{suffix}" for suffix in (".tex", ".svg"))
    if latex or table.exists():
        write_atomic(table, latex_evaluation(gathered))
    if figure or picture.exists():
        # Where a whole line stayed in the record, checkpoints evaluated on fewer rows are not in it.
        there = not figure or all(line in gathered.lines for line in new.lines)
        drawn = evaluation_svg(gathered if there else new)
        if drawn is not None:
            write_atomic(picture, drawn)
        else:
            picture.unlink(missing_ok=True)


def _cards(evaluation: Evaluation, names: Collection[str], console: Console, *, all_of_them: bool) -> None:
    """Write results into the cards of runs' targets, and where asked for of the other models that are directories.

    A card that cannot be read or written is told, and stays as it is.
    """
    datasets = {line.name: line.dataset for line in evaluation.lines}
    for model in evaluation.models:
        card = Path(model.source) / "README.md"
        wanted = model.role == "target" or (all_of_them and model.role != "checkpoint")
        if not wanted or model.name not in names or not card.parent.is_dir():
            continue
        try:
            text = card.read_bytes().decode("utf-8") if card.is_file() else ""
            write_atomic(card, card_with_results(text, evaluation, model.name, datasets))
        except (Refused, OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) and error.strerror else error
            console.line(f"  {card} is left without the results: {' '.join(str(reason).split())}")
