"""Runs a step's tasks: small jobs in this process, others on datatrove's local executor in a process of their own.

The executor starts its workers by importing the main module again, which a script without `if __name__ == "__main__"`,
an interactive session or `python -c` cannot bear; in a process of its own the main module is executor.py. It also keeps
datatrove's log lines, and its changes to the environment, out of the caller's process.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from inheritune.corpus.steps import Scan, Tokenise
from inheritune.errors import Failed, Refused
from inheritune.run_directory import read_json

Step = Scan | Tokenise

_PARALLELISM = "TOKENIZERS_PARALLELISM"


def run_tasks(step: Step, name: str, tasks: int, workers: int, *, small: bool) -> None:
    """Run the tasks of a step that are not marked as complete; `name` is the step's directory for marks and logs.

    Raises:
        InherituneError: what a task raised.
    """
    directory = Path(step.work) / name
    marks = directory / "completions"
    marks.mkdir(parents=True, exist_ok=True)
    if small or workers == 1 or tasks == 1:
        with _single_threaded(workers == 1):
            for rank in range(tasks):
                mark = marks / f"{rank:05d}"
                if not mark.exists():
                    step(None, rank, tasks)
                    mark.touch()
    else:
        _run_apart(step, directory, tasks, min(workers, tasks))


@contextmanager
def _single_threaded(wanted: bool) -> Iterator[None]:
    """Keep the tokenizer to one thread where one worker was asked for."""
    before = os.environ.get(_PARALLELISM)
    if wanted:
        os.environ[_PARALLELISM] = "false"
    try:
        yield
    finally:
        if wanted and before is None:
            del os.environ[_PARALLELISM]
        elif wanted and before is not None:
            os.environ[_PARALLELISM] = before


def _run_apart(step: Step, directory: Path, tasks: int, workers: int) -> None:
    error_file = directory / "error.json"
    error_file.unlink(missing_ok=True)
    job = {
        "step": type(step).__name__,
        "arguments": vars(step),
        "directory": str(directory),
        "tasks": tasks,
        "workers": workers,
    }
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
        _PARALLELISM: "false",
        "OMP_NUM_THREADS": "1",
    }
    with (directory / "log.txt").open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "inheritune.corpus.executor", json.dumps(job)],
            stdin=subprocess.PIPE,  # closes when this process ends, however it ends
            stdout=log,
            stderr=log,
            env=environment,
            process_group=0,
        )
        code = None
        try:
            code = process.wait()
        finally:
            if code != 0:
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
    error = read_json(error_file)
    if error is not None:
        raise (Refused if error["refused"] else Failed)(error["message"])
    if code != 0:
        raise Failed(
            f"{directory / 'log.txt'}: a worker ended with code {code}; its last lines say why; start again to go on"
        )
