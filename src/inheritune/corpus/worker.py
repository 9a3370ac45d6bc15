"""Runs a step's tasks: small jobs in this process, others on one of datatrove's executors in a process of their own.

The executor starts its workers by importing the main module again, which a script without `if __name__ == "__main__"`,
an interactive session or `python -c` cannot bear; in a process of its own the main module is executor.py. It also keeps
datatrove's log lines, and its changes to the environment, out of the caller's process.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

from inheritune.config import DataConfig
from inheritune.corpus.steps import Scan, Tokenise
from inheritune.errors import Failed, Refused
from inheritune.run_directory import read_json

Step = Scan | Tokenise

_PARALLELISM = "TOKENIZERS_PARALLELISM"
_THREADS = 16
"""Most tasks at once in this process: with more, they wait for the interpreter."""
_WATCH_SECONDS = 0.5
_REPORT_SECONDS = 30.0
_CANCEL_SECONDS = 30.0
_POLL_SECONDS = 2.0
"""Between looks at a cluster's jobs."""
_GRACE_SECONDS = 90.0
"""How long marks may still appear after a cluster's jobs have ended: NFS keeps a directory's list for a minute."""


def check_executor(data: DataConfig) -> None:
    """Refuse an executor that this machine lacks.

    Raises:
        Refused: no Ray or Slurm here, or no settings for it.
    """
    if data.executor == "ray" and importlib.util.find_spec("ray") is None:
        raise Refused("data.executor: ray is not installed; pip install 'inheritune[ray]'")
    if data.executor == "slurm":
        if data.slurm is None or data.workers < 1:
            raise Refused("data.executor: slurm needs data.slurm.partition, and data.workers, the number of jobs")
        missing = [name for name in ("sbatch", "squeue", "scancel") if shutil.which(name) is None]
        if missing:
            raise Refused(
                f"data.executor: slurm, but there is no {missing[0]} on PATH; start it where Slurm takes jobs from"
            )


def run_tasks(
    step: Step, name: str, tasks: int, data: DataConfig, workers: int, *, small: bool, report: Callable[[str], None]
) -> None:
    """Run the tasks of a step that are not marked as complete.

    Args:
        step: what they do.
        name: the step's directory for marks and logs, below its work directory.
        tasks: how many there are.
        data: the executor and its settings.
        workers: processes, or jobs; 0: a core of the Ray cluster each.
        small: whether starting an executor would take longer than the work.
        report: takes lines about progress.

    Raises:
        InherituneError: what a task raised.
    """
    directory = Path(step.work) / name
    marks = directory / "completions"
    marks.mkdir(parents=True, exist_ok=True)
    undone = [rank for rank in range(tasks) if not (marks / f"{rank:05d}").exists()]
    local = data.executor == "local"
    if undone and not small and (not local or (workers > 1 and tasks > 1)):
        _run_apart(step, directory, tasks, data, min(workers, tasks), report)
        return
    if undone and not local:
        report(f"{name}: done in this process, too little work for {data.executor}")
    _run_here(step, undone, tasks, marks, workers)


def _run_here(step: Step, undone: list[int], tasks: int, marks: Path, workers: int) -> None:
    """Run tasks in this process. A thread that tokenises lets others run; scanning does not."""
    cores = len(os.sched_getaffinity(0))
    threads = min(workers or cores, cores, _THREADS) if isinstance(step, Tokenise) else 1
    several = len(undone) >= threads > 1

    def run(rank: int) -> None:
        step(None, rank, tasks)
        (marks / f"{rank:05d}").touch()

    # Threads of our own use the cores better than the tokenizer's, which wait for each other after each batch.
    with _single_threaded(workers == 1 or several), ThreadPoolExecutor(threads if several else 1) as pool:
        futures = [pool.submit(run, rank) for rank in undone]
        try:
            for future in futures:
                future.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)  # those under way are waited for as the pool is left
            raise


@contextmanager
def _single_threaded(wanted: bool) -> Iterator[None]:
    """Keep the tokenizer itself to one thread."""
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


def _run_apart(
    step: Step, directory: Path, tasks: int, data: DataConfig, workers: int, report: Callable[[str], None]
) -> None:
    error_file, progress_file = directory / "error.json", directory / "progress.txt"
    error_file.unlink(missing_ok=True)
    progress_file.unlink(missing_ok=True)
    job = {
        "step": type(step).__name__,
        "arguments": vars(step),
        "directory": str(directory),
        "tasks": tasks,
        "workers": workers,
        "executor": data.executor,
        "slurm": data.slurm and dataclasses.asdict(data.slurm),
        "poll_seconds": _POLL_SECONDS,
        "grace_seconds": _GRACE_SECONDS,
    }
    with (directory / "log.txt").open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "inheritune.corpus.executor", json.dumps(job)],
            stdin=subprocess.PIPE,  # closes when this process ends, however it ends
            stdout=log,
            stderr=log,
            env=_environment(),
            process_group=0,
        )
        try:
            code = _wait(process, progress_file, report)
        finally:
            _end(process)
    error = read_json(error_file)
    if error is not None:
        raise (Refused if error["refused"] else Failed)(error["message"])
    if code != 0:
        raise Failed(
            f"{directory / 'log.txt'}: a worker ended with code {code}; its last lines say why; start again to go on"
        )


def _environment() -> dict[str, str]:
    """What the process and, through it, the nodes find their programs and libraries by."""
    # datatrove takes a process that stands in a job array for one of its own jobs.
    inherited = {key: value for key, value in os.environ.items() if not key.startswith("SLURM_") or key == "SLURM_CONF"}
    return inherited | {
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)]),
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
        _PARALLELISM: "false",
        "OMP_NUM_THREADS": "1",
    }


def _wait(process: subprocess.Popen[bytes], progress_file: Path, report: Callable[[str], None]) -> int:
    """The process's exit code; until it ends, what it writes about its progress is reported now and then."""
    told, when = "", -_REPORT_SECONDS
    while True:
        try:
            return process.wait(timeout=_WATCH_SECONDS)
        except subprocess.TimeoutExpired:
            now = progress_file.read_text(encoding="utf-8") if progress_file.exists() else ""
            if now != told and time.monotonic() - when >= _REPORT_SECONDS:
                report(now)
                told, when = now, time.monotonic()


def _end(process: subprocess.Popen[bytes]) -> None:
    """End the process if it still runs, giving it time to cancel its jobs, and all that it started."""
    try:
        assert process.stdin is not None
        process.stdin.close()
        with suppress(subprocess.TimeoutExpired):
            process.wait(timeout=_CANCEL_SECONDS)
    finally:
        if process.returncode != 0:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
        process.wait()
