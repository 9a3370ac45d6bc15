"""The main module of the process that runs a step on datatrove's executor: `-m inheritune.corpus.executor JOB`."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import NoReturn

from inheritune.corpus.steps import Scan, Tokenise
from inheritune.errors import Failed, InherituneError, Refused
from inheritune.run_directory import write_json

_WATCH_SECONDS = 0.5


def main() -> None:
    """Run one job, given as JSON on the command line."""
    job = json.loads(sys.argv[1])
    directory = Path(job["directory"])
    threading.Thread(target=_end_with_parent, daemon=True).start()
    threading.Thread(target=_end_with_killed_worker, args=(directory,), daemon=True).start()
    from datatrove.executor.local import LocalPipelineExecutor

    executor = LocalPipelineExecutor(
        pipeline=[{"Scan": Scan, "Tokenise": Tokenise}[job["step"]](**job["arguments"])],
        tasks=job["tasks"],
        workers=job["workers"],
        logging_dir=job["directory"],
        start_method="forkserver",
    )
    try:
        executor.run()
    except InherituneError as error:
        _end(directory, error)
    except OSError as error:
        _end(directory, Failed(f"{error.filename or directory}: {error.strerror}; mend it, then start again to go on"))


def _end(directory: Path, error: InherituneError) -> NoReturn:
    """Tell the parent why, and end at once."""
    write_json(directory / "error.json", {"refused": isinstance(error, Refused), "message": str(error)})
    _end_group()


def _end_group() -> NoReturn:
    """End this process and all that it started, which the parent made a group of its own."""
    os.killpg(0, signal.SIGKILL)
    os._exit(1)


def _end_with_parent() -> None:
    """The parent holds the other end of standard input: when that closes, however it died, nobody waits for this."""
    # Not through sys.stdin: a fork would copy its lock while it is held, and the copy would wait for ever.
    while os.read(0, 1):
        pass
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
