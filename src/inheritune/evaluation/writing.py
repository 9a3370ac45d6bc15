"""The same tasks for the harness's own command: YAML files, and the data sets that they need."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import yaml

from inheritune.errors import Failed, Refused
from inheritune.evaluation.evaluating import Plan
from inheritune.evaluation.tasks import Harness, Needed, Task
from inheritune.run_directory import read_json, write_atomic, write_json

SAMPLES = "samples.json"
WRITTEN = "written.json"
"""The names of the files that were written: they alone are replaced, for YAML in a directory may be anybody's."""


def list_datasets(harness: Harness) -> list[Needed]:
    """What a mirror has to hold, an entry a line and data set."""
    return [needed for asked in harness.asked for needed in harness.needs(asked)]


def write_tasks(planned: Plan, directory: Path) -> str:
    """Write a plan's tasks as files that `lm_eval --include_path DIRECTORY` takes, and say the command.

    Each file includes the packaged task and changes what the plan changes, so a file is of use where this installation
    of the harness is. A group becomes one of the tasks that can run. Chosen rows stand in `samples.json`.

    Args:
        planned: the suite, with its data.
        directory: new, empty, or one that this wrote before; what it wrote there goes (`written.json` lists it).

    Returns:
        The harness's command, without its model.

    Raises:
        Refused: the directory is not one of these, or holds a file of somebody else's by a name that would be written.
    """
    files = {f"{task.name}.yaml": _yaml(_task(planned, task)) for task in planned.tasks}
    for name in planned.lines:
        tasks = planned.tasks_of(name)
        if tasks and [task.name for task in tasks] != [name]:
            files[f"{name}.yaml"] = _yaml(_group(planned, name, tasks))
    chosen = {task.name: list(task.selected) for task in planned.tasks if task.selected is not None}
    if chosen:
        files[SAMPLES] = json.dumps(chosen) + "\n"
    before = _written(directory)
    foreign = next((name for name in files if name not in before and (directory / name).exists()), None)
    if foreign is not None:
        raise Refused(f"--write_tasks {directory}: holds a {foreign} that was not written by it; give a new directory")
    try:
        directory.mkdir(parents=True, exist_ok=True)
        # Before anything else, so that files of a call that was killed are known as well.
        write_json(directory / WRITTEN, sorted({*before, *files}))
        for name in before:
            (directory / name).unlink(missing_ok=True)
        for name, text in files.items():
            write_atomic(directory / name, text)
        write_json(directory / WRITTEN, sorted(files))
    except OSError as error:
        raise Refused(f"--write_tasks {directory}: cannot be written ({error.strerror}); give another") from error
    names = ",".join(name for name in planned.lines if planned.tasks_of(name))
    words = ["lm_eval", "run", "--include_path", str(directory), "--tasks", names]
    return shlex.join([*words, *(["--samples", str(directory / SAMPLES)] if chosen else [])])


def _written(directory: Path) -> list[str]:
    """The names of what was written into a directory before; none if it is new or empty.

    Raises:
        Refused: it is something else.
    """
    try:
        if not any(directory.iterdir()):
            return []
        names = read_json(directory / WRITTEN)
    except FileNotFoundError:
        return []
    except (NotADirectoryError, Failed):
        names = None
    if not isinstance(names, list) or not all(map(_is_ours, names)):
        raise Refused(f"--write_tasks {directory}: holds other files; give a new directory")
    return names


def _is_ours(name: object) -> bool:
    """Whether it can be the name of a file that is written here."""
    return isinstance(name, str) and Path(name).name == name and (name.endswith(".yaml") or name == SAMPLES)


def _task(planned: Plan, task: Task) -> dict[str, Any]:
    """A file's keys; without tags, which would otherwise come to mean these tasks alone."""
    own = planned.harness.overrides(task.name)  # of the group that it was asked for by
    changed = own | {key: value for key, (_, value) in task.changed.items()}
    include = str(planned.harness.file(task.name))
    return {"include": include, "task": task.name, "tag": None, **changed, "num_fewshot": task.shots}


def _group(planned: Plan, name: str, tasks: list[Task]) -> dict[str, Any]:
    members = [task.name for task in tasks]
    of = len(members) + len(planned.gaps_of(name))
    alias = name if len(members) == of else f"{name}, {len(members)} of {of} tasks"
    pooled = [{"metric": tasks[0].metric, "aggregation": "mean", "weight_by_size": True}]
    return {"group": name, "group_alias": alias, "task": members, "aggregate_metric_list": pooled}


def _yaml(record: dict[str, Any]) -> str:
    return yaml.safe_dump(record, sort_keys=False, allow_unicode=True)
