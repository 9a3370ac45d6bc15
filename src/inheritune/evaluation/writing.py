"""The same tasks for the harness's own command: YAML files, and the data sets that they need."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import yaml

from inheritune.errors import Refused
from inheritune.evaluation.evaluating import Plan
from inheritune.evaluation.tasks import Harness, Needed, Task
from inheritune.run_directory import write_atomic

SAMPLES = "samples.json"


def list_datasets(harness: Harness) -> list[Needed]:
    """What a mirror has to hold, an entry a line and data set."""
    return [needed for asked in harness.asked for needed in harness.needs(asked)]


def write_tasks(planned: Plan, directory: Path) -> str:
    """Write a plan's tasks as files that `lm_eval --include_path DIRECTORY` takes, and say the command.

    Each file includes the packaged task and changes what the plan changes, so a file is of use where this installation
    of the harness is. A group becomes one of the tasks that can run. Chosen rows stand in `samples.json`.

    Args:
        planned: the suite, with its data.
        directory: new, empty, or one that this wrote before.

    Returns:
        The harness's command, without its model.

    Raises:
        Refused: the directory holds other files.
    """
    if directory.is_dir() and any(path.suffix != ".yaml" and path.name != SAMPLES for path in directory.iterdir()):
        raise Refused(f"--write-tasks {directory}: holds other files; give a new directory")
    directory.mkdir(parents=True, exist_ok=True)
    for path in (*directory.glob("*.yaml"), directory / SAMPLES):
        path.unlink(missing_ok=True)
    for task in planned.tasks:
        write_atomic(directory / f"{task.name}.yaml", _yaml(_task(planned, task)))
    for name in planned.lines:
        tasks = planned.tasks_of(name)
        if tasks and [task.name for task in tasks] != [name]:
            write_atomic(directory / f"{name}.yaml", _yaml(_group(planned, name, tasks)))
    chosen = {task.name: list(task.selected) for task in planned.tasks if task.selected is not None}
    if chosen:
        write_atomic(directory / SAMPLES, json.dumps(chosen) + "\n")
    names = ",".join(name for name in planned.lines if planned.tasks_of(name))
    words = ["lm_eval", "run", "--include_path", str(directory), "--tasks", names]
    return shlex.join([*words, *(["--samples", str(directory / SAMPLES)] if chosen else [])])


def _task(planned: Plan, task: Task) -> dict[str, Any]:
    """A file's keys; without tags, which would otherwise come to mean these tasks alone."""
    changed = {key: value for key, (_, value) in task.changed.items()}
    include = str(planned.harness.file(task.name))
    return {"include": include, "task": task.name, "tag": None, "num_fewshot": task.shots, **changed}


def _group(planned: Plan, name: str, tasks: list[Task]) -> dict[str, Any]:
    members = [task.name for task in tasks]
    of = len(members) + len(planned.gaps_of(name))
    alias = name if len(members) == of else f"{name}, {len(members)} of {of} tasks"
    pooled = [{"metric": tasks[0].metric, "aggregation": "mean", "weight_by_size": True}]
    return {"group": name, "group_alias": alias, "task": members, "aggregate_metric_list": pooled}


def _yaml(record: dict[str, Any]) -> str:
    return yaml.safe_dump(record, sort_keys=False, allow_unicode=True)
