"""The main module of the process that runs a step on datatrove's executor: `-m inheritune.corpus.executor JOB`."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from inheritune.config import SlurmConfig
from inheritune.corpus.steps import Scan, Tokenise
from inheritune.errors import Failed, InherituneError, Refused
from inheritune.run_directory import write_json

if TYPE_CHECKING:
    from inheritune.corpus.cluster import Jobs

_WATCH_SECONDS = 0.5


def main() -> None:
    """Run one job, given as JSON on the command line."""
    job = json.loads(sys.argv[1])
    directory = Path(job["directory"])
    step = {"Scan": Scan, "Tokenise": Tokenise}[job["step"]](**job["arguments"])
    running: list[Jobs] = []
    threading.Thread(target=_end_with_parent, args=(running,), daemon=True).start()
    try:
        if job["executor"] == "local":
            _run_here(step, directory, job)
        else:
            _run_on_cluster(step, directory, job, running)
    except InherituneError as error:
        _end(directory, error)
    except OSError as error:
        why = error.strerror or " ".join(str(error).split())
        _end(directory, Failed(f"{error.filename or directory}: {why}; mend it, then start again to go on"))


def _run_here(step: Scan | Tokenise, directory: Path, job: dict[str, Any]) -> None:
    threading.Thread(target=_end_with_killed_worker, args=(directory,), daemon=True).start()
    from datatrove.executor.local import LocalPipelineExecutor

    executor = LocalPipelineExecutor(
        pipeline=[step],
        tasks=job["tasks"],
        workers=job["workers"],
        logging_dir=job["directory"],
        start_method="forkserver",
    )
    executor.run()


def _run_on_cluster(step: Scan | Tokenise, directory: Path, job: dict[str, Any], running: list[Jobs]) -> None:
    from inheritune.corpus.cluster import Portion, follow, undone

    portion = Portion(step, str(directory), undone(directory, job["tasks"]), job["tasks"], os.getcwd())
    jobs: Jobs
    if job["executor"] == "slurm":
        from inheritune.corpus.slurm_jobs import SlurmJobs

        jobs = SlurmJobs(directory, job["workers"], SlurmConfig(**job["slurm"]))
    else:
        from inheritune.corpus.ray_jobs import RayJobs

        jobs = RayJobs(directory, job["workers"])
    running.append(jobs)
    try:
        jobs.start(portion)
        follow(jobs, directory, job["tasks"], poll_seconds=job["poll_seconds"], grace_seconds=job["grace_seconds"])
    except BaseException:
        jobs.stop()
        raise
    jobs.finish()


def _end(directory: Path, error: InherituneError) -> NoReturn:
    """Tell the parent why, and end at once."""
    write_json(directory / "error.json", {"refused": isinstance(error, Refused), "message": str(error)})
    _end_group()


def _end_group() -> NoReturn:
    """End this process and all that it started, which the parent made a group of its own."""
    os.killpg(0, signal.SIGKILL)
    os._exit(1)


def _end_with_parent(running: list[Jobs]) -> None:
    """The parent holds the other end of standard input: when that closes, however it died, nobody waits for this."""
    # Not through sys.stdin: a fork would copy its lock while it is held, and the copy would wait for ever.
    while os.read(0, 1):
        pass
    try:
        for jobs in running:
            jobs.stop()
    finally:
        _end_group()


def _end_with_killed_worker(directory: Path) -> None:
    """A pool waits for ever for the task of a worker that was killed (out of memory, say)."""
    import multiprocess  # type: ignore[import-untyped]

    workers: set[multiprocess.Process] = set()
    while True:
        workers.update(child for child in multiprocess.active_children() if "PoolWorker" in child.name)
        for worker in workers:
            # SIGTERM is how the pool itself ends its workers.
            if worker.exitcode is not None and worker.exitcode < 0 and worker.exitcode != -signal.SIGTERM:
                reason = f"a worker was killed by signal {-worker.exitcode} (9: out of memory, most likely)"
                _end(directory, Failed(f"{directory}: {reason}; lower data.workers and start again to go on"))
        time.sleep(_WATCH_SECONDS)


if __name__ == "__main__":
    main()
