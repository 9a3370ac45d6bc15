"""What was evaluated before: a task's scores by all that they depend on, a file each."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from inheritune.errors import Failed
from inheritune.evaluation.tasks import Task
from inheritune.run_directory import read_json, write_atomic
from inheritune.scores import FORMAT, TaskScores

_SETTINGS = ("lm_eval", "transformers", "tokenizers", "torch")


def key_of(task: Task, fingerprint: str, versions: dict[str, str], settings: dict[str, Any]) -> str:
    """What a task's scores on a model depend on, as one name.

    Args:
        task: the task; its definition and its data count, not where the data lies.
        fingerprint: the model's, its tokenizer and config included.
        versions: of the packages; those that compute count.
        settings: device, dtype, and the batch size where it was asked for (one of our own choosing changes scores by
            rounding alone).
    """
    parts = {
        "format": FORMAT,
        "model": fingerprint,
        "task": task.name,
        "version": task.version,
        "definition": task.definition,
        "data": task.dataset["fingerprint"],
        "shots": task.shots,
        "rows": task.selected,
        "versions": {name: versions[name] for name in _SETTINGS},
        "settings": settings,
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]


class Cache:
    """The scores kept in a directory.

    Args:
        directory: made when the first are kept.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def path(self, task: str, key: str) -> Path:
        """The file of a task's scores."""
        return self._directory / f"{task}-{key}.json"

    def read(self, task: str, key: str) -> TaskScores | None:
        """The scores of this task, or None; a damaged file counts as none and is written anew."""
        try:
            record = read_json(self.path(task, key))
            return TaskScores.of(record) if isinstance(record, dict) else None
        except (Failed, ValueError, TypeError, KeyError):
            return None

    def keep(self, task: str, key: str, scores: TaskScores) -> None:
        """Keep a task's scores."""
        self._directory.mkdir(parents=True, exist_ok=True)
        text = json.dumps(scores.record(), ensure_ascii=False, allow_nan=False, separators=(",", ":"))
        write_atomic(self.path(task, key), text + "\n")
