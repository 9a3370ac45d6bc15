"""Slurm and Ray: a step's tasks in portions, a job each, on datatrove's executors, followed until every task is marked.

A node starts a process for seconds before a task of a second runs, so a job gets many tasks. datatrove's Slurm executor
returns once the jobs are submitted, and its Ray executor returns though tasks failed: what counts are the tasks' own
marks and the error that a portion leaves, both files in the step's directory, which all nodes share.
"""

from __future__ import annotations

import os
import signal
import socket
import time
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, Protocol

from inheritune.corpus.steps import Scan, Tokenise
from inheritune.errors import Failed, InherituneError, Refused
from inheritune.run_directory import read_json, write_atomic, write_json

ERROR = "error.json"
PROGRESS = "progress.txt"

_WATCH_SECONDS = 0.2


def undone(directory: Path, tasks: int) -> list[int]:
    """The tasks of the step in `directory` that are not marked as complete."""
    marks = {path.name for path in (directory / "completions").iterdir()}
    return [task for task in range(tasks) if f"{task:05d}" not in marks]


@dataclass(frozen=True)
class Portion:
    """A pipeline step of datatrove's: job `rank` of `world_size` runs every `world_size`-th of the undone tasks."""

    step: Scan | Tokenise
    directory: str
    """The step's own, with its marks."""
    undone: list[int]
    tasks: int
    launched_in: str
    """The working directory that relative paths of sources are meant from."""

    def __call__(self, data: Any, rank: int, world_size: int) -> None:
        """Run the job's tasks in a process of their own, since nobody is told of a killed one but its parent.

        Raises:
            Failed: a task did not end well; `error.json` says why.
        """
        if not Path(self.directory).is_dir():
            raise Failed(f"{self.directory}: not there on {socket.gethostname()}; all nodes must share its file system")
        parent = os.getppid()
        child = os.fork()
        if child == 0:
            self._run(self.undone[rank::world_size], rank)
        while (ended := os.waitpid(child, os.WNOHANG))[0] == 0:
            if os.getppid() != parent:  # Ray ended the job
                os.kill(child, signal.SIGKILL)
                os._exit(1)
            time.sleep(_WATCH_SECONDS)
        code = os.waitstatus_to_exitcode(ended[1])
        if code < 0:
            killed = f"a job on {socket.gethostname()} was killed by signal {-code} (9: out of memory, most likely)"
            mend = "lower data.workers or give jobs more memory, then start again to go on"
            self._tell(Failed(f"{self.directory}: {killed}; {mend}"))
        if code != 0:
            raise Failed(f"{self.directory}: job {rank} failed")

    def _run(self, tasks: list[int], rank: int) -> NoReturn:
        code = 1
        try:
            os.chdir(self.launched_in)
            for task in tasks:
                mark = Path(self.directory) / "completions" / f"{task:05d}"
                if not mark.exists():
                    self.step(None, task, self.tasks)
                    mark.touch()
            code = 0
        except InherituneError as error:
            self._tell(error)
        except OSError as error:
            where = error.filename or self.directory
            reason = f"{error.strerror or error} (on {socket.gethostname()})"
            self._tell(Failed(f"{where}: {reason}; mend it, then start again to go on"))
        except BaseException as error:
            log = Path(self.directory) / f"traceback-{rank}.txt"
            write_atomic(log, traceback.format_exc())
            self._tell(Failed(f"{log}: a job ended with {type(error).__name__}; start again to go on"))
        finally:
            os._exit(code)

    def _tell(self, error: InherituneError) -> None:
        record = {"refused": isinstance(error, Refused), "message": str(error)}
        write_json(Path(self.directory) / ERROR, record)


class Jobs(Protocol):
    """What runs the portions of a step."""

    def start(self, portion: Portion) -> None:
        """Submit the jobs."""

    def state(self) -> str | None:
        """How they stand, in words; None once all have ended."""

    def end(self) -> str:
        """What is known about the end of jobs that left tasks undone."""

    def stop(self) -> None:
        """End what still runs."""

    def finish(self) -> None:
        """All tasks are done: let go."""


def follow(jobs: Jobs, directory: Path, tasks: int, *, poll_seconds: float, grace_seconds: float) -> None:
    """Wait until every task is marked, writing to `progress.txt` how many are.

    Args:
        jobs: started.
        directory: the step's, with marks and error.
        tasks: all there are.
        poll_seconds: between looks.
        grace_seconds: for how long marks may still appear after the jobs' end (file systems over a network cache).

    Raises:
        InherituneError: a task raised it, or the jobs ended without having done every task.
    """
    ended: float | None = None
    before = ""
    while True:
        error = read_json(directory / ERROR)
        if error is not None:
            raise (Refused if error["refused"] else Failed)(error["message"])
        left = len(undone(directory, tasks))
        if left == 0:
            return
        state = jobs.state()
        if state is None:
            ended = ended or time.monotonic()
            if time.monotonic() - ended > grace_seconds:
                known = f"ended with {left} of {tasks} tasks not done; {jobs.end()}"
                raise Failed(f"{directory}: {known}; mend it, then start again to go on")
        elif (now := f"{tasks - left} of {tasks} tasks done; {state}") != before:
            write_atomic(directory / PROGRESS, now)
            before = now
        time.sleep(poll_seconds)
