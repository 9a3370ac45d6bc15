"""The harness's tasks, built with their data: which there are, what they need, what of it is at hand.

Nothing of a task is written anew: each is the harness's own definition, with other keys only where a mirror makes it
necessary, and those are recorded.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import random
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property, partial
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lm_eval.tasks import TaskManager
from lm_eval.tasks._factory import GROUP_FIELD_NAMES
from lm_eval.tasks._index import Kind
from lm_eval.tasks._yaml_loader import load_yaml

from inheritune.errors import Refused
from inheritune.evaluation.mirror import (
    Mirror,
    Missing,
    changes,
    evaluated_split,
    examples_split,
    fetch_command,
    one_line,
    unwritable_cache,
)
from inheritune.evaluation.suites import SUITES, Asked, chosen_rows, unknown_task

_FOLDERS = {
    "wsc": "super_glue/wsc",
    "boolq": "super_glue/boolq",
    "wnli": "glue/wnli",
    "qnli": "glue/qnli",
    "mnli": "glue/mnli",
    "mmlu": "mmlu/default",
    "lambada_openai": "lambada",
    "truthfulqa_mc2": "truthfulqa",
}
"""Where the harness keeps the suites' tasks, if not in a folder of their name: all its 14,000 take seven seconds."""
_PYTHON_SEED, _SEED = 0, 1234
"""The harness's own defaults, so that its command gives the same examples."""
_GROUP = "inheritune"


@dataclass(frozen=True)
class Task:
    """A task of the harness with its data."""

    name: str
    line: str
    """The line of the table that it belongs to: itself, or the group that was asked for."""
    shots: int
    metric: str
    """The one that counts."""
    selected: tuple[int, ...] | None
    """Rows to evaluate; None: all of them."""
    selection: str | None
    """How they were selected, in words."""
    changed: dict[str, list[Any]]
    """Keys that differ from the packaged task's: the value before, the one after."""
    built: Any = field(repr=False, compare=False)
    """The harness's object."""

    @property
    def version(self) -> str:
        """Of its definition in the harness."""
        return str(self.built.VERSION)

    @cached_property
    def rows_in_split(self) -> int:
        """Rows of the evaluated split."""
        return len(self.built.eval_docs)

    @property
    def rows(self) -> int:
        """Rows that are evaluated."""
        return self.rows_in_split if self.selected is None else len(self.selected)

    @cached_property
    def dataset(self) -> dict[str, Any]:
        """Which data it is: `path` on the hub, `name` of the configuration, `split`, `source`, `fingerprint`."""
        config = self.built.config
        before = {key: value[0] for key, value in self.changed.items()}
        split = config.test_split or config.validation_split
        return {
            "path": before.get("dataset_path", config.dataset_path),
            "name": config.dataset_name,
            "split": split,
            "source": "mirror" if "dataset_path" in self.changed else "hub",
            "fingerprint": self._fingerprint(),
        }

    def _fingerprint(self) -> str:
        """SHA-256 of the rows' content, and of those that examples are drawn from."""
        digest = hashlib.sha256()
        drawn_from = [*(self.built.sampler.df if self.shots and hasattr(self.built, "sampler") else [])]
        for row in (*self.built.eval_docs, *drawn_from):
            digest.update(json.dumps(row, sort_keys=True, default=str).encode())
            digest.update(b"\n")
        return digest.hexdigest()

    @cached_property
    def definition(self) -> str:
        """SHA-256 of what the harness does with a row: its keys, the source of its functions; not where data lies."""
        config = self.built.dump_config()
        elsewhere = {"dataset_path", "dataset_kwargs", "fewshot_config", "metadata", "num_fewshot"}
        known = {key: value for key, value in config.items() if key not in elsewhere and not key.endswith("_split")}
        text = re.sub(r" at 0x[0-9a-f]+", "", json.dumps(known, sort_keys=True, default=str))  # of partial functions
        return hashlib.sha256(text.encode()).hexdigest()

    def seed(self) -> None:
        """Draw the same worked examples as the harness's own command would, however often this is asked for."""
        _seed_all()
        self.built.set_fewshot_seed(seed=_SEED)

    def letters(self) -> float:
        """About how many characters a model has to read for it: by some rows, since all of them take long to write."""
        docs = self.built.eval_docs
        rows = self.selected if self.selected is not None else range(self.rows_in_split)
        some = [rows[index] for index in sorted({int(i) for i in np.linspace(0, len(rows) - 1, num=min(8, len(rows)))})]
        self.seed()
        try:
            sizes = [self._letters(docs[row]) for row in some]
        except Exception:  # an estimate is not worth an end: the same error comes again, and is told, when it is run
            return 1.0
        return max(1.0, float(np.mean(sizes)) * len(rows)) if sizes else 1.0

    def _letters(self, doc: Any) -> int:
        context = self.built.fewshot_context(doc, num_fewshot=self.shots)
        made = self.built.construct_requests(doc=doc, ctx=context, metadata=(self.name, 0, 1))
        requests = made if isinstance(made, list) else [made]
        return sum(len(part) for one in requests for part in one.args if isinstance(part, str))


@dataclass(frozen=True)
class Gap:
    """A task that cannot be evaluated here."""

    name: str
    line: str
    reason: str


@dataclass(frozen=True)
class Needed:
    """A data set that a task needs, for `--list-datasets`."""

    line: str
    dataset: str
    names: tuple[str | None, ...]
    splits: tuple[str, ...]

    @property
    def command(self) -> str:
        """What brings it into a mirror."""
        return fetch_command(self.dataset)


class Harness:
    """lm-evaluation-harness's tasks, as many of them as are asked for."""

    def __init__(self, asked: tuple[Asked, ...]) -> None:
        self.asked = asked
        root = Path(str(resources.files("lm_eval"))) / "tasks"
        suites = {one.name for suite in SUITES.values() for one in suite}
        folders = sorted({root / _FOLDERS.get(one.name, one.name) for one in asked})
        narrow = all(one.name in suites for one in asked) and all(folder.is_dir() for folder in folders)
        with quiet():
            self._manager = TaskManager(include_path=list(folders) if narrow else None, include_defaults=not narrow)
        self._leaves = {one.name: self._members(one.name, {}) for one in asked}
        self._check_twice()

    def _members(self, name: str, overrides: dict[str, Any]) -> dict[str, dict[str, Any]]:
        """The tasks that a name stands for, itself or a group's or tag's, with the keys that groups change of them.

        Raises:
            Refused: there is none of that name, or a group says more than that.
        """
        index = self._manager.task_index
        if name not in index:
            raise unknown_task(name, list(index) or self._manager.all_tasks)
        entry = index[name]
        if entry.kind is Kind.TAG:
            return dict.fromkeys(sorted(entry.tags), overrides)
        if entry.kind is not Kind.GROUP:
            return {name: overrides}
        config = load_yaml(entry.yaml_path) if entry.yaml_path else entry.cfg or {}
        return self._members_of(name, config, overrides)

    def _members_of(self, group: str, config: dict[str, Any], overrides: dict[str, Any]) -> dict[str, dict[str, Any]]:
        """A group's tasks; what it changes of them counts less than what the groups around it do, as in the harness."""
        overrides = {key: value for key, value in config.items() if key not in GROUP_FIELD_NAMES} | overrides
        found: dict[str, dict[str, Any]] = {}
        for member in config.get("task") or []:
            own = dict(member) if isinstance(member, dict) else {"task": member}
            inner = own.pop("group", None) if "group" in own else own.pop("task", None)
            if isinstance(inner, str) and inner in self._manager.task_index:
                inside = self._members(inner, overrides | own)
            elif isinstance(member, dict) and "group" in member:  # a group that is written out within this one
                inside = self._members_of(group, member, overrides)
            else:
                raise Refused(
                    f"--suite: {group}: defines tasks within itself; give the tasks that have names one by one"
                )
            twice = next((task for task in inside if task in found), None)
            if twice is not None:
                raise Refused(
                    f"--suite: {group}: has {twice} twice, so it is no line of rows; give its tasks one by one"
                )
            found |= inside
        return found

    def _check_twice(self) -> None:
        """Refuse a task that comes by two names: its rows would stand in two lines."""
        by: dict[str, str] = {}
        for asked, tasks in self._leaves.items():
            for task in tasks:
                if task in by:
                    ways = " and ".join("by itself" if way == task else f"in {way}" for way in (by[task], asked))
                    raise Refused(f"--suite: {task} comes twice, {ways}; name it once")
                by[task] = asked

    def members(self, asked: Asked) -> tuple[str, ...]:
        """The tasks that it stands for."""
        return tuple(self._leaves[asked.name])

    def is_one_line(self, asked: Asked) -> bool:
        """Whether its tasks are pooled into one score: a task by itself, or a group that the harness weighs by size."""
        entry = self._manager.task_index[asked.name]
        if entry.kind is not Kind.GROUP:
            return self.members(asked) == (asked.name,)
        pooled = (entry.cfg or {}).get("aggregate_metric_list") or []
        pooled = [pooled] if isinstance(pooled, dict) else pooled
        return bool(pooled) and all(one.get("weight_by_size", True) for one in pooled)

    def config(self, asked: Asked, task: str) -> dict[str, Any]:
        """A task's keys, those that a group changes among them; its functions as names."""
        return dict(self._manager.task_index[task].cfg or {}) | self._leaves[asked.name][task]

    def overrides(self, task: str) -> dict[str, Any]:
        """The keys that a group changes of a task."""
        return next(tasks[task] for tasks in self._leaves.values() if task in tasks)

    def file(self, task: str) -> Path | None:
        """The file that defines a task or a group."""
        path = self._manager.task_index[task].yaml_path
        return Path(path) if path is not None else None

    def build(self, asked: Asked, *, mirror: Mirror | None, limit: int | None) -> list[Task | Gap]:
        """Every task of what is asked for, with its data or with the reason why there is none.

        Args:
            asked: a task or a group.
            mirror: where data is; None: the hub, or what the `datasets` library has in its cache.
            limit: evaluate at most so many rows of each task.

        Raises:
            Refused: shots are asked of a task that takes none, or a metric that it does not have.
        """
        pooled = self.is_one_line(asked)
        return [self._build(asked, name, asked.name if pooled else name, mirror, limit) for name in self.members(asked)]

    def _build(self, asked: Asked, name: str, line: str, mirror: Mirror | None, limit: int | None) -> Task | Gap:
        packaged = self.config(asked, name)
        fixed = packaged.get("num_fewshot")
        if fixed == 0 and asked.shots:
            raise Refused(f"--suite: {name}:{asked.shots}: its prompt has its own examples; leave :{asked.shots} out")
        shots = asked.shots if asked.shots is not None else int(fixed or 0)
        try:
            changed = changes(packaged, shots, mirror) if mirror is not None else {}
            built = self._load(name, self._leaves[asked.name][name] | changed, packaged, mirror)
        except Missing as missing:
            return Gap(name, line, str(missing))
        cannot = _cannot(built)
        if cannot is not None:
            return Gap(name, line, cannot)
        _check_shots(name, shots, built)
        built.set_config(key="num_fewshot", value=shots)
        rows = len(built.eval_docs)
        selected, selection = selected_rows(name, asked, limit, rows)
        return Task(
            name=name,
            line=line,
            shots=shots,
            metric=_metric(built, asked),
            selected=selected,
            selection=selection,
            changed={key: [packaged.get(key), value] for key, value in changed.items()},
            built=built,
        )

    def _load(self, name: str, changed: dict[str, Any], packaged: dict[str, Any], mirror: Mirror | None) -> Any:
        """Build a task; the group around it is what lets keys of a packaged task be changed.

        Raises:
            Missing: its data cannot be had or read.
        """
        _seed_all()
        try:
            with quiet():
                spec = {"group": _GROUP, "task": [{"task": name, **changed}]} if changed else name
                loaded = self._manager.load([spec])
        except ImportError as error:
            raise Missing(f"a package that it needs is not installed: {one_line(error)}") from error
        except Exception as error:  # whatever a data library raises for files it cannot get or read
            raise Missing(_unread(error, packaged, mirror)) from error
        return loaded["tasks"][name]

    def needs(self, asked: Asked) -> list[Needed]:
        """The data sets that it needs, one entry a data set."""
        found: dict[str, Needed] = {}
        for name in self.members(asked):
            config = self.config(asked, name)
            path = config.get("dataset_path")
            if not isinstance(path, str):  # a task that is a class of its own says it in code
                continue
            shots = asked.shots if asked.shots is not None else int(config.get("num_fewshot") or 0)
            splits = filter(None, (evaluated_split(config), examples_split(config) if shots else None))
            before = found.get(path, Needed(asked.name, path, (), ()))
            names = (*before.names, config.get("dataset_name"))
            found[path] = Needed(
                asked.name, path, tuple(dict.fromkeys(names)), tuple(dict.fromkeys((*before.splits, *splits)))
            )
        return list(found.values())


def selected_rows(task: str, asked: Asked, limit: int | None, rows: int) -> tuple[tuple[int, ...] | None, str | None]:
    """Which rows of a split of `rows` are evaluated, and how to say so; None and None for all of them."""
    if asked.rows is not None and min(asked.rows, limit or rows) < rows:
        count = min(asked.rows, limit or rows)
        return tuple(chosen_rows(task, count, rows)), f"{count:,} of {rows:,} rows, drawn"
    if limit is not None and limit < rows:
        return tuple(range(limit)), f"the first {limit:,} of {rows:,} rows"
    return None, None


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without the harness's and the data library's bars and remarks: a command shows progress of its own."""
    import datasets
    import lm_eval.api.task
    from tqdm import tqdm

    names = ("lm_eval", "datasets", "evaluate", "transformers")  # transformers: of every text longer than the context
    levels = {name: logging.getLogger(name).level for name in names}
    bars = datasets.are_progress_bars_disabled()
    own = lm_eval.api.task.tqdm
    try:
        for name in names:
            # what the data library logs as an error it raises as well
            logging.getLogger(name).setLevel(logging.CRITICAL if name == "datasets" else logging.ERROR)
        datasets.disable_progress_bars()
        lm_eval.api.task.tqdm = partial(tqdm, disable=True)  # its bars cannot be turned off otherwise
        yield
    finally:
        lm_eval.api.task.tqdm = own
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
        if not bars:
            datasets.enable_progress_bars()


def _seed_all() -> None:
    """Seed what a task's own code may draw from, as the harness does when it begins."""
    random.seed(_PYTHON_SEED)
    np.random.seed(_SEED)
    torch.manual_seed(_SEED)


def _metric(built: Any, asked: Asked) -> str:
    """The metric that counts: the one asked for, else `acc`, else the task's first.

    Raises:
        Refused: the task has no such metric.
    """
    have = [str(name) for name in getattr(built, "_metric_fn_list", {})] or list(built.higher_is_better())
    if asked.metric is not None:
        if asked.metric not in have:
            raise Refused(f"--suite: {built.task_name} has no metric {asked.metric} (it has {', '.join(have)})")
        return asked.metric
    return "acc" if "acc" in have or not have else have[0]


def _cannot(built: Any) -> str | None:
    """Why a task is not evaluated although its data is there."""
    if getattr(built, "UNSAFE_CODE", False):
        return "it runs code that a model writes, which this command does not; use lm_eval in a sandbox"
    if getattr(built, "MULTIMODAL", False):
        return "it needs a model of images or sound"
    return None


def _check_shots(name: str, shots: int, built: Any) -> None:
    """Refuse more worked examples than there are."""
    drawn_from = getattr(getattr(built, "sampler", None), "df", None)
    if shots and drawn_from is not None and len(drawn_from) < shots:
        raise Refused(f"--suite: {name}:{shots}: it has {len(drawn_from)} worked examples; ask for at most so many")


def _unread(error: Exception, packaged: dict[str, Any], mirror: Mirror | None) -> str:
    """Why a task's data could not be had, in a line."""
    dataset = packaged.get("dataset_path")
    if not isinstance(dataset, str):
        return f"it cannot be built: {one_line(error)}"
    unwritable = unwritable_cache(error)
    if unwritable is not None:
        return unwritable
    what = f"{dataset} ({packaged['dataset_name']})" if packaged.get("dataset_name") else dataset
    if mirror is not None:
        return f"{what} cannot be read: {one_line(error)}; {mirror.fetch(dataset)}"
    return f"{what} cannot be read: {one_line(error)}; get it by: {fetch_command(dataset)} and --datasets DIR"
